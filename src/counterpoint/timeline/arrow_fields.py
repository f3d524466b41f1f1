"""The fields of all events as one struct of typed Arrow columns: a column a name, of the type that holds them all.

Where events use one name for things that no type holds together, the others' columns are named by their type: ``now``
is signed, ``now_u64`` unsigned. ``FieldColumns.names`` says which column has which field of which event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64
from counterpoint.errors import UsageError
from counterpoint.traces.columns import EventBatch, element_size
from counterpoint.traces.formats import EventFormat, Field, named_fields
from counterpoint.traces.recording import Recording

MAX_COLUMNS = 4096
"""Columns made of fields; a recording of every event that a kernel has needs about half of them."""

MAX_BYTES = 1 << 28
"""Bytes of texts and arrays in one block."""

Kind = Literal["int", "text", "list", "bytes"]


def arrow() -> Any:  # noqa: ANN401 (pyarrow has no types)
    """The pyarrow module; UsageError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise UsageError("pyarrow is not installed: pip install 'counterpoint[parquet]'") from None
    return pyarrow


@dataclass(slots=True)
class _Column:
    """A column ``name`` of the struct. ``dtype``: of its integers, or of a list's elements."""

    name: str
    kind: Kind
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Source:
    """A field of the events of one kind, and the number of the column that has it."""

    field: Field
    column: int


@dataclass(slots=True)
class _Part:
    """What one kind of event gives a column of a block: at places ``at`` i64[k], the values or their bytes and ends."""

    at: I64
    data: npt.NDArray[Any]
    ends: I64 | None = None
    big_endian: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of one kind in a block: ``at`` i64[k] are their places in it, ``rows`` i64[k] those in the recording."""

    machine: int
    event: EventFormat
    at: I64
    rows: I64


@dataclass
class FieldColumns:
    """The columns for all events that occur in ``recordings``.

    ``names``: of each event ("system:name" of a machine's number) the column of each field. ``left_out``: how many
    fields have no column, for there are too many.
    """

    recordings: Sequence[Recording]
    names: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    left_out: int = 0

    def __post_init__(self) -> None:
        """Find the columns and their types."""
        kinds: dict[str, dict[str, list[tuple[tuple[int, int], Field]]]] = {}
        for machine, recording in enumerate(self.recordings):
            for event_id in recording.counts_by_id():
                event = recording.formats.get(event_id)
                for name, one in named_fields(event) if event else ():
                    group = kinds.setdefault(name, {}).setdefault(_group(one), [])
                    group.append(((machine, event_id), one))
        self.columns: list[_Column] = []
        self._sources: dict[tuple[int, int], list[_Source]] = {}
        taken = set(kinds)
        for name, groups in kinds.items():
            for number, (suffix, members) in enumerate(_merged(groups)):
                if len(self.columns) >= MAX_COLUMNS:
                    self.left_out += len(members)
                    continue
                unique = name if number == 0 else f"{name}_{suffix}"
                while number and unique in taken:
                    unique += "_"
                taken.add(unique)
                self.columns.append(_Column(unique, _kind(members[0][1]), _common([f for _, f in members])))
                for (machine, event_id), one in members:
                    self._sources.setdefault((machine, event_id), []).append(_Source(one, len(self.columns) - 1))
                    event = self.recordings[machine].formats[event_id]
                    mine = self.names.setdefault((machine, f"{event.system}:{event.name}"), {})
                    mine.setdefault(name, unique)
        self._types = [_type(c) for c in self.columns]
        self._nulls: dict[tuple[int, int], Any] = {}

    @property
    def type(self) -> Any:  # noqa: ANN401
        """The struct's Arrow type."""
        pa = arrow()
        return pa.struct([pa.field(c.name, t) for c, t in zip(self.columns, self._types, strict=True)])

    def block(self, count: int, chunks: Iterable[Chunk]) -> Any:  # noqa: ANN401
        """The StructArray of ``count`` events; OverflowError where their texts and arrays are more than MAX_BYTES."""
        pa = arrow()
        left = MAX_BYTES
        parts: dict[int, list[_Part]] = {}
        for chunk in chunks:
            recording = self.recordings[chunk.machine]
            batch = recording.batch(chunk.event, chunk.rows)
            for source in self._sources.get((chunk.machine, chunk.event.id), ()):
                part = _part(batch, source.field, chunk.at, self.columns[source.column], recording.big_endian, left)
                left -= 0 if part.ends is None else part.data.nbytes
                parts.setdefault(source.column, []).append(part)
        arrays = [
            _array(column, self._types[number], parts[number], count) if number in parts else self._null(number, count)
            for number, column in enumerate(self.columns)
        ]
        return pa.StructArray.from_arrays(arrays, fields=list(self.type)) if arrays else None

    def _null(self, number: int, count: int) -> Any:  # noqa: ANN401
        if (number, count) not in self._nulls:
            if self._nulls and count != next(iter(self._nulls))[1]:
                self._nulls.clear()
            self._nulls[number, count] = arrow().nulls(count, self._types[number])
        return self._nulls[number, count]


def _kind(one: Field) -> Kind:
    if one.kind == "int" and not one.dynamic:
        return "int"
    if one.kind == "string":
        return "text"
    return "list" if one.kind == "array" else "bytes"


def _group(one: Field) -> str:
    """Fields of one name in one group go into one column, unless their integers do not fit together."""
    kind = _kind(one)
    if kind in ("int", "list"):
        return f"{kind} {'i' if one.signed else 'u'}{one.size if kind == 'int' else element_size(one)}"
    return kind


def _merged(
    groups: dict[str, list[tuple[tuple[int, int], Field]]],
) -> list[tuple[str, list[tuple[tuple[int, int], Field]]]]:
    """The groups joined where one type holds them, each with the suffix that its column gets where it is not first."""
    out = []
    for kind, unsigned, signed in (("int", "u64", "i64"), ("list", "list_u64", "list")):
        mine = {g: m for g, m in groups.items() if g.startswith(kind)}
        wide = mine.pop(f"{kind} u8", []) if any(g.startswith(f"{kind} i") for g in mine) else []
        rest = [member for members in mine.values() for member in members]
        out += [(s, m) for s, m in ((signed, rest), (unsigned, wide)) if m]
    return out + [(g, groups[g]) for g in ("text", "bytes") if g in groups]


def _common(fields: Sequence[Field]) -> np.dtype[Any]:
    """The least integer type that holds all of these fields' values."""
    if _kind(fields[0]) not in ("int", "list"):
        return np.dtype(np.uint8)
    sizes = [(f.size if _kind(f) == "int" else element_size(f), f.signed) for f in fields]
    return np.result_type(*(np.dtype(f"{'i' if signed else 'u'}{size}") for size, signed in sizes))


def _type(column: _Column) -> Any:  # noqa: ANN401
    pa = arrow()
    if column.kind == "text":
        return pa.dictionary(pa.int32(), pa.string())
    if column.kind == "bytes":
        return pa.binary()
    element = pa.from_numpy_dtype(column.dtype)
    return pa.list_(element) if column.kind == "list" else element


def _part(batch: EventBatch, one: Field, at: I64, column: _Column, big_endian: bool, most: int) -> _Part:
    if column.kind == "int":
        return _Part(at, batch.integers(one))
    data, ends = batch.gathered(one, max(most, 0))
    if column.kind == "list":
        code = f"{'>' if big_endian else '<'}{'i' if one.signed else 'u'}{element_size(one)}"
        return _Part(at, data.view(code).astype(column.dtype), ends // element_size(one))
    return _Part(at, data, ends)


def _array(column: _Column, kind: Any, parts: list[_Part], count: int) -> Any:  # noqa: ANN401
    """A column of ``count`` events: null where no part has a value."""
    pa = arrow()
    if column.kind == "int":
        values, there = np.zeros(count, column.dtype), np.zeros(count, np.bool_)
        for part in parts:
            values[part.at], there[part.at] = part.data, True
        return from_numpy(kind, values, there)
    if column.kind == "text":
        codes, there = np.zeros(count, np.int32), np.zeros(count, np.bool_)
        known: dict[str, int] = {}
        for part in parts:
            codes[part.at], there[part.at] = _codes(part, known), True
        return pa.DictionaryArray.from_arrays(
            from_numpy(pa.int32(), codes, there), pa.array(list(known), pa.string()), safe=False
        )
    at = np.concatenate([p.at for p in parts])
    sizes = np.zeros(count + 1, np.int64)
    for part in parts:
        assert part.ends is not None
        sizes[part.at + 1] = np.diff(part.ends)
    ends = np.cumsum(sizes)
    data = np.empty(ends[-1], column.dtype)
    for part in parts:
        assert part.ends is not None
        size = np.diff(part.ends)
        data[np.arange(len(part.data)) + np.repeat(ends[part.at] - part.ends[:-1], size)] = part.data
    there = np.zeros(count, np.bool_)
    there[at] = True
    offsets, valid = pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(np.packbits(there, bitorder="little"))
    if column.kind == "bytes":
        return pa.Array.from_buffers(kind, count, [valid, offsets, pa.py_buffer(data)])
    return pa.Array.from_buffers(kind, count, [valid, offsets], children=[pa.array(data)])


def from_numpy(kind: Any, values: npt.NDArray[Any], there: npt.NDArray[np.bool_] | None = None) -> Any:  # noqa: ANN401
    """An Arrow array of ``values`` [n], null where ``there`` bool[n] is False (None: nowhere)."""
    pa = arrow()
    valid = None if there is None or there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def _codes(part: _Part, known: dict[str, int]) -> npt.NDArray[np.int32]:
    """The numbers of a part's texts, up to the first NUL of each, in ``known``, which gets those that are new."""
    pa = arrow()
    assert part.ends is not None
    texts = pa.Array.from_buffers(
        pa.large_binary(), len(part.at), [None, pa.py_buffer(part.ends), pa.py_buffer(part.data)]
    ).dictionary_encode()
    numbers = np.array(
        [
            known.setdefault(text.split(b"\0", 1)[0].decode("utf-8", "replace"), len(known))
            for text in texts.dictionary.to_pylist()
        ],
        np.int32,
    )
    codes: npt.NDArray[np.int32] = numbers[texts.indices.to_numpy(zero_copy_only=False)]
    return codes
