"""Events as CTF event records: bytes built kind by kind as rows of numpy columns, then laid in the order of time.

What is fixed in a record of one kind is a row of bytes of one width, stored with one strided copy; texts and arrays of
varying length go between such rows. Integers are copied as they were recorded, in the machine's own byte order, which
is the CTF trace's too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64
from counterpoint.errors import UsageError
from counterpoint.traces.columns import EventBatch, element_size
from counterpoint.traces.formats import EventFormat, Field
from counterpoint.traces.recording import Recording
from counterpoint.traces.ring import unaligned

Bytes = npt.NDArray[np.uint8]

MAX_BYTES = 1 << 26
"""Bytes of event records built at once."""

MAX_EVENT = 1 << 20
"""Bytes of an event's fields: a record in a ring buffer is no longer, and its fields do not overlap."""

MAX_FIXED = 4096
"""Bytes of a field that are written whether they were recorded or not."""

TASK_BYTES = 16
"""Of a task's name: the kernel's TASK_COMM_LEN (include/linux/sched.h), its NUL included."""

HEADER: list[tuple[str, int]] = [("id", 2), ("timestamp", 8)]
CONTEXT: list[tuple[str, int]] = [("tid", 4), ("procname", TASK_BYTES), ("stamp", 8), ("proved", 1)]
HEAD_BYTES = sum(size for _, size in HEADER + CONTEXT)

Shape = Literal["int", "chars", "text", "ints", "sequence"]

_REST = Field("data", "", 0, 0, False, "bytes", 1)
"""All of a record whose format is not known."""


def shape_of(field: Field) -> Shape:
    """How a field is written: an integer, a text of fixed or any length, integers of fixed or any number."""
    if field.kind == "int" and not field.dynamic:
        return "int"
    open_ended = field.dynamic != "" or not 0 < field.size <= MAX_FIXED
    if field.kind == "string":
        return "text" if open_ended else "chars"
    return "sequence" if open_ended or field.size % element_size(field) else "ints"


def fields_of(event: EventFormat | None) -> tuple[Field, ...]:
    """The fields that are written of an event: its own, or all of its bytes where its format is not known."""
    return (_REST,) if event is None else event.fields


@dataclass(frozen=True, slots=True)
class Heads:
    """What precedes the fields of n events, [n] each: ``task`` are texts of TASK_BYTES."""

    kind: npt.NDArray[np.uint16]
    time: U64
    tid: npt.NDArray[np.int32]
    task: npt.NDArray[np.void]
    stamp: U64
    proved: npt.NDArray[np.bool_]

    def rows(self, chosen: I64, big_endian: bool) -> Bytes:
        """Their bytes, u8[k, HEAD_BYTES], for the events ``chosen`` i64[k]."""
        order = ">" if big_endian else "<"
        out = np.empty(
            len(chosen),
            np.dtype([("kind", f"{order}u2"), ("time", f"{order}u8"), ("tid", f"{order}i4"),
                      ("task", f"V{TASK_BYTES}"), ("stamp", f"{order}u8"), ("proved", "u1")]),
        )  # fmt: skip
        for name in out.dtype.names or ():
            out[name] = getattr(self, name)[chosen]
        return out.view(np.uint8).reshape(len(chosen), HEAD_BYTES)


@dataclass(frozen=True, slots=True)
class _Varying:
    """Bytes of k events, end to end, and where each event's begin: ``ends`` i64[k + 1]."""

    data: Bytes
    ends: I64


_Piece = Bytes | _Varying


def event_bytes(recording: Recording, rows: I64, heads: Heads) -> tuple[Bytes, I64]:
    """The records of the events at ``rows`` i64[n], one after the other, and where each begins: u8[m], i64[n + 1].

    OverflowError where they are more than MAX_BYTES, UsageError where one has more than MAX_EVENT.
    """
    ids = recording.event_id[rows]
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    size = np.zeros(len(rows), np.int64)
    kinds: list[tuple[I64, list[_Piece]]] = []
    left = MAX_BYTES
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        chosen = order[begin:end]
        event = recording.formats.get(int(ordered[begin]))
        pieces: list[_Piece] = [heads.rows(chosen, recording.big_endian)]
        left -= len(chosen) * HEAD_BYTES
        for piece in payload(recording, event, rows[chosen], left):
            pieces.append(piece)
            left -= _bytes(piece)
            size[chosen] += _sizes(piece)
            if left < 0:
                raise OverflowError(f"more than {MAX_BYTES} bytes")
        size[chosen] += HEAD_BYTES
        if int(size[chosen].max()) > MAX_EVENT:
            raise UsageError(
                f"{recording.path}: an event {recording.event_name(int(ordered[begin]))} has more than {MAX_EVENT}"
                " bytes of fields, which overlap: it cannot be written"
            )
        kinds.append((chosen, pieces))
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(size, out=starts[1:])
    out = np.empty(int(starts[-1]), np.uint8)
    for chosen, pieces in kinds:
        at = starts[chosen]
        for piece in pieces:
            if isinstance(piece, _Varying):
                out[np.repeat(at - piece.ends[:-1], np.diff(piece.ends)) + np.arange(len(piece.data))] = piece.data
            else:
                code = f"V{piece.shape[1]}"
                unaligned(out, code)[at] = np.ascontiguousarray(piece).view(code).reshape(-1)
            at = at + _sizes(piece)
    return out, starts


def _bytes(piece: _Piece) -> int:
    return len(piece.data) if isinstance(piece, _Varying) else piece.size


def _sizes(piece: _Piece) -> I64 | int:
    return np.diff(piece.ends) if isinstance(piece, _Varying) else piece.shape[1]


def payload(recording: Recording, event: EventFormat | None, rows: I64, most: int) -> Iterator[_Piece]:
    """The fields of events of one kind, in the order of ``fields_of``; OverflowError where one has above ``most``."""
    batch = recording.batch(event or EventFormat(0, "", "", (), (), ""), rows)
    run: list[Field] = []
    for field in fields_of(event):
        shape = shape_of(field)
        if shape in ("text", "sequence"):
            yield from _fixed(batch, run, most)
            run = []
            yield from (
                _text(batch, field, most) if shape == "text" else _sequence(batch, field, most, recording.big_endian)
            )
        else:
            if run and (field.offset != run[-1].offset + run[-1].size):
                yield from _fixed(batch, run, most)
                run = []
            run.append(field)
    yield from _fixed(batch, run, most)


def _fixed(batch: EventBatch, run: list[Field], most: int) -> list[Bytes]:
    """Fields that lie side by side in the records, as rows of bytes; 0 where a record is too short."""
    if not run:
        return []
    width = sum(field.size for field in run)
    if width * len(batch) > most:
        raise OverflowError(f"{width * len(batch)} bytes")
    data, ends = batch.gathered(Field("", "", run[0].offset, width, False, "bytes", 1), most)
    if len(data) == width * len(batch):
        rows = data.reshape(len(batch), width)
    else:
        rows = np.zeros((len(batch), width), np.uint8)
        at = 0
        for field in run:
            # a record that ends inside a field has none of it, as everywhere else
            piece, ends = batch.gathered(Field("", "", field.offset, field.size, False, "bytes", 1), most)
            lengths = np.diff(ends)
            whole = np.flatnonzero(lengths == field.size) if field.kind == "int" else np.arange(len(batch))
            for length in np.unique(lengths[whole]).tolist():
                mine = whole[lengths[whole] == length]
                rows[mine, at : at + length] = piece[ends[mine][:, None] + np.arange(length)]
            at += field.size
    at = 0
    for field in run:
        if field.kind == "string":
            texts = rows[:, at : at + field.size]
            if (texts >= 0x80).any():
                rows = rows.copy()
                texts = rows[:, at : at + field.size]
                _clean(texts)
        at += field.size
    return [rows]


def _clean(texts: Bytes) -> None:
    """Put a question mark for each byte of the texts u8[k, w] that is not UTF-8, in place."""
    mine = np.flatnonzero((texts >= 0x80).any(axis=1))
    found, which = np.unique(texts[mine], axis=0, return_inverse=True)
    width = texts.shape[1]
    clean = b"".join(valid_utf8(raw.tobytes()) for raw in found)
    texts[mine] = np.frombuffer(clean, np.uint8).reshape(-1, width)[which.reshape(-1)]


def valid_utf8(raw: bytes) -> bytes:
    """The bytes with a question mark for each that is not UTF-8."""
    return raw.decode("utf-8", "surrogateescape").encode("utf-8", "replace")


def _text(batch: EventBatch, field: Field, most: int) -> list[_Piece]:
    """Texts of any length, each up to its first NUL, and that NUL."""
    data, ends = batch.gathered(field, most)
    # what is left of each text: its bytes before the first NUL
    cut = np.flatnonzero(data == 0)
    first = np.searchsorted(cut, ends[:-1])
    stop = np.r_[cut, len(data)][first] if len(cut) else np.full(len(batch), len(data))
    length = np.minimum(stop, ends[1:]) - ends[:-1]
    out = np.zeros(len(batch) + 1, np.int64)
    np.cumsum(length + 1, out=out[1:])
    if out[-1] > most:
        raise OverflowError(f"{out[-1]} bytes")
    whole = np.zeros(int(out[-1]), np.uint8)
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    whole[np.repeat(out[:-1], length) + within] = data[np.repeat(ends[:-1], length) + within]
    if (whole >= 0x80).any():
        whole = np.frombuffer(b"\0".join(map(valid_utf8, whole.tobytes().split(b"\0"))), np.uint8)
    return [_Varying(whole, out)]


def _sequence(batch: EventBatch, field: Field, most: int, big_endian: bool) -> list[_Piece]:
    """How many elements an array has, u32, and the array."""
    data, ends = batch.gathered(field, most)
    size = element_size(field) if field.kind == "array" else 1
    counts = (np.diff(ends) // size).astype(">u4" if big_endian else "<u4")
    return [counts.view(np.uint8).reshape(len(batch), 4), _Varying(data, ends)]
