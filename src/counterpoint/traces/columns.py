"""Fields of events to columns: integers as numpy arrays, strings and arrays as lists for text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I32, I64, distinct
from counterpoint.traces.distinct import distinct_bytes
from counterpoint.traces.formats import EventFormat, Field
from counterpoint.traces.ring import unaligned

MAX_COPIED = 256
"""Bytes of a record that is copied whole for its integer fields."""


def int_column(
    data: npt.NDArray[np.uint8], field: Field, offset: I64, length: I32, big_endian: bool
) -> npt.NDArray[np.integer]:
    """Gather an integer field from the records at bytes ``offset`` i64[n] of ``length`` i32[n].

    Returns n values of the field's own size and sign, native byte order; 0 where a record is too short.
    """
    code = f"{'>' if big_endian else '<'}{'i' if field.signed else 'u'}{field.size}"
    native = np.dtype(code).newbyteorder("=")
    if not len(offset):
        return np.zeros(0, native)
    end = field.offset + field.size
    if int(length.min()) >= end:
        return unaligned(data, code)[offset + field.offset].astype(native, copy=False)
    fits = length >= end
    out = np.zeros(len(offset), native)
    out[fits] = unaligned(data, code)[offset[fits] + field.offset]
    return out


def element_size(field: Field) -> int:
    """Bytes of an element of an array field; 1 where that is not known."""
    return field.element_size if field.element_size in (1, 2, 4, 8) else 1


class EventBatch:
    """The records of one event kind, as columns of Python values (for text; numbers have ``ints_array``)."""

    def __init__(
        self, data: npt.NDArray[np.uint8], event: EventFormat, offset: I64, length: I32, big_endian: bool
    ) -> None:
        """Take the records at bytes ``offset`` of ``data``, all of kind ``event``."""
        self._data = data
        self._bytes = data.data
        self._event = event
        self._offset = offset
        self._length = length
        self._big_endian = big_endian
        self._records: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self._offset)

    def _field(self, name: str) -> Field:
        field = self._event.field(name)
        if field is None:
            raise KeyError(f"{self._event.system}:{self._event.name} has no field {name!r}")
        return field

    def ints_array(self, name: str) -> npt.NDArray[np.integer]:
        """A scalar integer field as an array; a dynamic field's raw locator. KeyError: no such field."""
        field = self._field(name)
        if field.dynamic:
            field = Field(field.name, "", field.offset, 4, False, "int", 4)
        elif field.kind != "int":
            raise KeyError(f"{self._event.system}:{self._event.name}: {name!r} is no integer")
        return self.integers(field)

    def integers(self, field: Field) -> npt.NDArray[np.integer]:
        """A scalar integer field of the event as an array; for events that have two fields of one name."""
        size = int(self._length[0]) if len(self) else 0
        if field.offset + field.size > size or size > MAX_COPIED:
            return int_column(self._data, field, self._offset, self._length, self._big_endian)
        if self._records is None:
            if not (self._length == size).all():
                return int_column(self._data, field, self._offset, self._length, self._big_endian)
            # they lie scattered: fetched once, whole, they are at hand for all of their fields
            self._records = unaligned(self._data, f"V{size}")[self._offset].view(np.uint8)
        code = np.dtype(f"{'>' if self._big_endian else '<'}{'i' if field.signed else 'u'}{field.size}")
        column = np.ndarray(len(self), code, buffer=self._records.data, offset=field.offset, strides=(size,))
        return column.astype(code.newbyteorder("="))

    def gathered(self, field: Field, most: int) -> tuple[npt.NDArray[np.uint8], I64]:
        """The bytes of a field of all records, end to end, and where each begins: u8[m], i64[n + 1].

        OverflowError where there are more than ``most`` bytes: the fields of a record may all be the whole of it.
        """
        begin, size = self._spans(field)
        if field.kind == "array":
            size -= size % element_size(field)
        ends = np.zeros(len(self) + 1, np.int64)
        np.cumsum(size, out=ends[1:])
        if ends[-1] > most:
            raise OverflowError(f"{ends[-1]} bytes")
        if len(self) and 0 < size[0] == size.min() == size.max():
            return unaligned(self._data, f"V{size[0]}")[begin].view(np.uint8), ends
        at = np.arange(ends[-1]) + np.repeat(begin - ends[:-1], size)
        return self._data[at], ends

    def values(self, field: Field) -> list[Any]:
        """A field's values as JSON has them: integers, texts up to the first NUL, lists; bytes as hexadecimal text."""
        if field.kind == "int" and not field.dynamic:
            numbers: list[int] = self.integers(field).tolist()
            return numbers
        if field.kind == "string":
            return [_until_nul(raw) for raw in self._raw(field)]
        return self._elements(field) if field.kind == "array" else [raw.hex() for raw in self._raw(field)]

    def ints(self, name: str) -> list[int]:
        """A scalar integer field, signed as declared."""
        values: list[int] = self.ints_array(name).tolist()
        return values

    def _spans(self, field: Field) -> tuple[I64, I64]:
        """First byte and length of a field's data in each record, kept inside the record."""
        length = self._length.astype(np.int64)
        if field.dynamic:
            locator = self.integers(replace(field, size=4, signed=False)).astype(np.int64)
            begin = locator & 0xFFFF
            if field.dynamic == "rel_loc":
                begin = begin + field.offset + 4
            size = locator >> 16
        else:
            begin = np.full(len(self), field.offset, np.int64)
            # a declared size of 0 is an array to the end of the record
            size = np.full(len(self), field.size, np.int64) if field.size else length - field.offset
        begin = np.minimum(begin, length)
        return self._offset + begin, np.clip(size, 0, length - begin)

    def raw(self, name: str) -> list[bytes]:
        """The bytes of a field, in the recorded byte order; of a dynamic field, what its locator points to."""
        return self._raw(self._field(name))

    def _raw(self, field: Field) -> list[bytes]:
        begin, size = self._spans(field)
        data = self._bytes
        return [data[b : b + n].tobytes() for b, n in zip(begin.tolist(), size.tolist(), strict=True)]

    def distinct_raw(self, field: Field) -> tuple[list[bytes], I64]:
        """The distinct values of ``raw``, and which of them each record has i64[n]."""
        begin, size = self._spans(field)
        index = np.zeros(len(self), np.int64)
        out: list[bytes] = []
        for one in distinct(size)[0].tolist():
            rows = np.flatnonzero(size == one)
            if not one:
                index[rows] = len(out)
                out.append(b"")
                continue
            data = unaligned(self._data, f"V{one}")[begin[rows]].view(np.uint8).reshape(len(rows), one)
            first, number = distinct_bytes(data)
            index[rows] = number + len(out)
            out += [data[at].tobytes() for at in first.tolist()]
        return out, index

    def distinct_text(self, field: Field) -> tuple[list[str], I64]:
        """Texts up to their first NUL, and which of them each record has i64[n]; two of them may be equal."""
        raws, index = self.distinct_raw(field)
        return list(map(_until_nul, raws)), index

    def distinct_elements(self, field: Field) -> tuple[list[list[int]], I64]:
        """The elements of an array field, likewise."""
        raws, index = self.distinct_raw(field)
        return [self._numbers(field, raw) for raw in raws], index

    def text(self, name: str) -> list[str]:
        """A string field up to its first NUL."""
        texts, index = self.distinct_text(self._field(name))
        return [texts[i] for i in index.tolist()]

    def array(self, name: str) -> list[list[int]]:
        """The elements of an array field; bytes where the element's size is not known."""
        return self._elements(self._field(name))

    def _elements(self, field: Field) -> list[list[int]]:
        return [self._numbers(field, raw) for raw in self._raw(field)]

    def _numbers(self, field: Field, raw: bytes) -> list[int]:
        size = element_size(field)
        code = f"{'>' if self._big_endian else '<'}{'i' if field.signed else 'u'}{size}"
        numbers: list[int] = np.frombuffer(raw[: len(raw) // size * size], code).tolist()
        return numbers


def _until_nul(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
