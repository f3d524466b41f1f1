"""Sub-buffer pages of the kernel's ring buffer, built record by record.

A page is: u64 timestamp, a ``local_t`` of long size (data length and flags), data. Each record starts with a
u32: ``type_len`` (5 bits) and ``time_delta`` (27 bits), whose order in the word depends on the endianness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

MISSED_EVENTS = 1 << 31
MISSED_STORED = 1 << 30
UNKNOWN = -1
"""``missed`` of a page whose events were lost, nobody knows how many."""

MAX_DELTA = 1 << 27
MAX_EXTEND = 1 << 59
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_MAX_SMALL = 28 * 4


def _u32(value: int, big_endian: bool) -> bytes:
    return value.to_bytes(4, "big" if big_endian else "little")


def _head(type_len: int, delta: int, big_endian: bool) -> bytes:
    if not 0 <= delta < MAX_DELTA:
        raise ValueError(f"delta {delta} does not fit in 27 bits")
    return _u32(type_len << 27 | delta if big_endian else delta << 5 | type_len, big_endian)


def _align4(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@dataclass
class Data:
    """An event, ``delta`` after the record before; ``long_form`` stores its length in a word of its own."""

    delta: int
    payload: bytes
    long_form: bool = False

    def encode(self, big_endian: bool, room: int) -> bytes:
        body = _align4(self.payload)
        if body and len(body) <= _MAX_SMALL and not self.long_form:
            return _head(len(body) // 4, self.delta, big_endian) + body
        return _head(0, self.delta, big_endian) + _u32(len(body) + 4, big_endian) + body


@dataclass
class TimeExtend:
    """Time passed: up to 59 bits."""

    delta: int

    def encode(self, big_endian: bool, room: int) -> bytes:
        if not 0 <= self.delta < MAX_EXTEND:
            raise ValueError(f"extend {self.delta} does not fit in 59 bits")
        low, high = self.delta % MAX_DELTA, self.delta // MAX_DELTA
        return _head(_TIME_EXTEND, low, big_endian) + _u32(high, big_endian)


@dataclass
class AbsoluteTime:
    """The time now: its low 59 bits are stored, the reader restores the rest."""

    ts: int

    def encode(self, big_endian: bool, room: int) -> bytes:
        low, high = self.ts % MAX_DELTA, self.ts % MAX_EXTEND // MAX_DELTA
        return _head(_TIME_STAMP, low, big_endian) + _u32(high, big_endian)


@dataclass
class Padding:
    """``length`` bytes with nothing in them (header included); None: up to the end of the page."""

    length: int | None = None
    delta: int = 1

    def encode(self, big_endian: bool, room: int) -> bytes:
        size = room if self.length is None else self.length
        head = _head(_PADDING, 0 if self.length is None else self.delta, big_endian)
        return (head + _u32(size - 4, big_endian) + bytes(max(0, size - 8)))[:size]


@dataclass
class Discarded:
    """An event the kernel took back: its delta still counts, but a delta of 0 is stored as 1."""

    delta: int
    payload: bytes

    def encode(self, big_endian: bool, room: int) -> bytes:
        body = Data(0, self.payload).encode(big_endian, room)[4:]
        return _head(_PADDING, self.delta or 1, big_endian) + _u32(len(body), big_endian) + body[4:]


Record = Data | TimeExtend | AbsoluteTime | Padding | Discarded


@dataclass
class Page:
    """One sub-buffer. ``missed``: events lost before it (``UNKNOWN``: no count is stored); None: none were.

    As in the kernel, a count that finds no room after the data is left out, and the flags of a 64-bit word
    come with all the bits above them (the kernel adds a negative int). ``commit`` overrides the word before
    flags are added, for pages that lie.
    """

    timestamp: int
    records: list[Record] = field(default_factory=list)
    missed: int | None = None
    size: int = 4096
    commit: int | None = None

    def to_bytes(self, big_endian: bool = False, long_size: int = 8) -> bytes:
        order: Literal["big", "little"] = "big" if big_endian else "little"
        room = self.size - 8 - long_size
        data = b""
        for record in self.records:
            data += record.encode(big_endian, room - len(data))
        if len(data) > room:
            raise ValueError(f"{len(data)} bytes of records in a page with room for {room}")
        commit = len(data) if self.commit is None else self.commit
        if self.missed is not None:
            commit -= MISSED_EVENTS
            if self.missed != UNKNOWN and len(data) + long_size <= room:
                commit += MISSED_STORED
                data += self.missed.to_bytes(long_size, order)
        stamp = (self.timestamp % (1 << 64)).to_bytes(8, order)
        word = (commit % (1 << 8 * long_size)).to_bytes(long_size, order)
        return (stamp + word + data).ljust(self.size, b"\0")


def _reserved(payload: bytes) -> bytes:
    """Pad as the kernel reserves: a record of 12 bytes could not turn into an extend and padding, so 16."""
    return payload.ljust(12, b"\0") if 4 < len(payload) <= 8 else payload


def pack_stream(
    events: Iterable[tuple[int, bytes]],
    *,
    size: int = 4096,
    big_endian: bool = False,
    long_size: int = 8,
    missed: Mapping[int, int] | None = None,
    absolute: Callable[[int], bool] = lambda _index: False,
    backwards: Literal["absolute", "late"] = "absolute",
    long_form: bool = False,
) -> list[bytes]:
    """Pack ``(timestamp, payload)`` of one CPU into pages, choosing records as the kernel does.

    A page's first event has the page's stamp; a delta of 27 bits or more gets a time extend. ``missed`` maps
    the index of an event to the count lost before it (such an event starts a page); ``absolute`` says which
    events (by index) get an absolute stamp, as those do in the kernel that interrupt another's writing. A
    step back in time is stamped absolutely, or with "late" as the kernel does it: delta 0, which leaves the
    rest of the page late by the size of the step.
    """
    missed = missed or {}
    room = size - 8 - long_size
    pages: list[Page] = []
    used = last = 0
    for index, (ts, payload) in enumerate(events):
        delta = ts - last
        records: list[Record] = [Data(0, _reserved(payload), long_form)]
        if absolute(index) or (delta < 0 and backwards == "absolute"):
            records.insert(0, AbsoluteTime(ts))
        elif delta >= MAX_DELTA:
            records.insert(0, TimeExtend(min(delta, MAX_EXTEND - 1)))
        else:
            records = [Data(max(delta, 0), _reserved(payload), long_form)]
        length = sum(len(r.encode(big_endian, room)) for r in records)
        if not pages or index in missed or used + length > room or delta >= MAX_EXTEND:
            records = [Data(0, _reserved(payload), long_form)]
            length = len(records[0].encode(big_endian, room))
            pages.append(Page(ts, [], missed.get(index), size))
            used = 0
        pages[-1].records += records
        used += length
        last = ts
    return [page.to_bytes(big_endian, long_size) for page in pages]
