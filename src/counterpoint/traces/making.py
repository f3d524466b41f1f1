"""Payloads and format texts of events that came without any: columns to the bytes that ``Contents`` wants.

A record is the common fields (type, flags, preempt count, pid), an s64 or u64 for each integer, a locator of 32 bits
for each text, and the event's line as printed, which the texts point into.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I32, I64

MAX_LINE = 1 << 14
"""More bytes of a line are cut off: a locator's offset has 16 bits."""

_COMMON = (
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
)

Span = tuple[I64, I64]
"""First byte i64[n] and length i64[n] of texts within a source of bytes."""


@dataclass(frozen=True, slots=True)
class Kind:
    """All n events of one name. ``rows`` i64[n]: which they are; ``line``: what was printed of each.

    ``integers``: i64[n] or u64[n] by field; ``texts``: spans by field, within the events' lines.
    """

    system: str
    name: str
    rows: I64
    line: Span
    integers: Mapping[str, npt.NDArray[np.integer]] = field(default_factory=dict)
    texts: Mapping[str, Span] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Payloads:
    """As in ``Contents``: the payload of row i is ``length[i]`` bytes from ``data[offset[i]]`` on."""

    data: npt.NDArray[np.uint8]
    offset: I64
    length: I32
    format_texts: list[tuple[str, bytes]]


def make_payloads(kinds: Sequence[Kind], pid: I32, source: npt.NDArray[np.uint8]) -> Payloads:
    """The payloads of events with pids ``pid`` i32[n] that the ``kinds`` divide; their spans lie within ``source``."""
    length = np.zeros(len(pid), np.int64)
    heads = [_dtype(kind) for kind in kinds]
    for kind, head in zip(kinds, heads, strict=True):
        size = np.minimum(kind.line[1], MAX_LINE)
        length[kind.rows] = -(-(head.itemsize + size + 1) // 4) * 4
    offset = np.cumsum(length) - length
    data = np.zeros(int(length.sum()), np.uint8)
    for number, (kind, head) in enumerate(zip(kinds, heads, strict=True), 1):
        begin, size = kind.line[0], np.minimum(kind.line[1], MAX_LINE)
        records = np.zeros(len(kind.rows), head)
        records["type"], records["pid"] = number, pid[kind.rows]
        for name, values in kind.integers.items():
            records[f"i {name}"] = values
        for name, (at, count) in kind.texts.items():
            inside = np.clip(count, 0, np.maximum(begin + size - at, 0))
            records[f"t {name}"] = head.itemsize + np.minimum(at - begin, size) | inside << 16
        records["line"] = head.itemsize | (size + 1) << 16
        where = offset[kind.rows]
        data[where[:, None] + np.arange(head.itemsize)] = records.view(np.uint8).reshape(len(records), head.itemsize)
        apart = np.repeat(where + head.itemsize - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
        data[apart] = source[np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))]
    texts = [(k.system, _format(k, d, n).encode()) for n, (k, d) in enumerate(zip(kinds, heads, strict=True), 1)]
    return Payloads(data, offset, length.astype(np.int32), texts)


def _dtype(kind: Kind) -> np.dtype[np.void]:
    fields: list[tuple[str, str]] = [("type", "<u2"), ("flags", "<u2"), ("pid", "<i4")]
    fields += [(f"i {name}", "<u8" if values.dtype.kind == "u" else "<i8") for name, values in kind.integers.items()]
    fields += [(f"t {name}", "<u4") for name in kind.texts]
    return np.dtype([*fields, ("line", "<u4")])


def _format(kind: Kind, head: np.dtype[np.void], number: int) -> str:
    lines = []
    assert head.fields is not None
    for name, (dtype, at, *_) in head.fields.items():
        if name == "line" or name.startswith("t "):
            declared, signed = f"__data_loc char[] {name.removeprefix('t ')}", 0
        elif name.startswith("i "):
            signed = int(dtype.kind == "i")
            declared = f"{'s64' if signed else 'u64'} {name[2:]}"
        else:
            continue
        lines.append(f"\tfield:{declared};\toffset:{at};\tsize:{dtype.itemsize};\tsigned:{signed};\n")
    return f'name: {kind.name}\nID: {number}\nformat:\n{_COMMON}{"".join(lines)}\nprint fmt: "%s", __get_str(line)\n'
