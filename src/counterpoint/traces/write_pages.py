"""Records to ring-buffer sub-buffers ("pages"), as the kernel lays them out; the inverse of ``ring``.

All records of a CPU are placed by array arithmetic: sizes, then page breaks, then every header and every payload word
in one scatter each. What the kernel decides, and when (kernel/trace/ring_buffer.c):

* a page begins with the stamp of its first event, whose own delta is then 0 (rb_reserve_next_event, RB_ADD_STAMP_FORCE
  aside); a delta of more than 27 bits gets a TIME_EXTEND before it (rb_add_time_stamp);
* where events were lost the page read next says so in its commit word, with the number after its data if that has room
  (ring_buffer_read_page);
* a clock that steps back is not told to the reader: the delta becomes 0 (rb_check_timestamp), so that all that follows
  in the same page is stamped late by the size of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64
from counterpoint.traces.ring import (
    COMMIT_MASK,
    DELTA_BITS,
    MISSED_EVENTS,
    MISSED_STORED,
    MISSED_UNKNOWN,
    STAMP_BITS,
    TIME_EXTEND,
    TIME_STAMP,
    unaligned,
)

_MAX_SHORT = 28 * 4
_LOW27 = np.uint64((1 << DELTA_BITS) - 1)
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one length: ``place`` i64[k] are their places among the CPU's events, ``rows`` their payloads.

    ``rows`` is u8[k, length], or any 1-d array (structured, say) whose k items are the payloads' bytes.
    """

    place: I64
    rows: npt.NDArray[Any]

    def words(self) -> Words:
        """The payloads as u32[k, words] in the bytes' own order, padded with zeros as the kernel reserves them."""
        count = len(self.place)
        rows = np.ascontiguousarray(self.rows)
        if len(rows) != count:
            raise ValueError(f"{len(rows)} payloads for {count} events")
        flat = rows.view(np.uint8).reshape(count, -1) if count else np.zeros((0, 4), np.uint8)
        length = flat.shape[1]
        wanted = reserved(length)
        if wanted != length:
            padded = np.zeros((count, wanted), np.uint8)
            padded[:, :length] = flat
            flat = padded
        return flat.view(np.uint32)


def reserved(length: int) -> int:
    """Bytes that the kernel reserves for a payload of ``length``: a multiple of 4, and never 8.

    A record of 12 bytes with its header could not be turned into a TIME_EXTEND and padding (rb_calculate_event_length).
    """
    if length <= 0:
        raise ValueError("an event has a payload")
    whole = length + -length % 4
    return 12 if whole == 8 else whole


def gathered(data: npt.NDArray[np.uint8], offset: I64, length: npt.NDArray[np.integer]) -> list[Batch]:
    """Batches of payloads that lie in ``data`` at bytes ``offset`` i64[n], ``length`` [n]: as a recording has them.

    A record without payload, which no kernel writes, gets four bytes of zeros.
    """
    batches = []
    for size in np.flatnonzero(np.bincount(length, minlength=1)).tolist():
        place = np.flatnonzero(length == size)
        if not size:
            batches.append(Batch(place, np.zeros((len(place), 4), np.uint8)))
            continue
        view = unaligned(data, f"V{size}")
        batches.append(Batch(place, view[offset[place]]))
    return batches


@dataclass(frozen=True, slots=True)
class Pages:
    """One CPU's pages: ``data`` u8[pages * page_size]; page p holds events first_row[p]:first_row[p + 1] (i64).

    ``stamp`` u64[n] is what a reader will find: what was given, except behind a step back written as "late".
    """

    data: npt.NDArray[np.uint8]
    first_row: I64
    stamp: U64


def pack_pages(
    stamp: U64,
    batches: Sequence[Batch],
    *,
    page_size: int = 4096,
    long_size: int = 8,
    big_endian: bool = False,
    lost_row: Sequence[int] = (),
    lost_count: Sequence[int] = (),
    backwards: Literal["absolute", "late"] = "absolute",
) -> Pages:
    """Pack the events of one CPU, ``stamp`` u64[n] in the order of recording, whose payloads are in ``batches``.

    Before event ``lost_row[i]`` (ascending) ``lost_count[i]`` events were lost (-1: not counted). A step back in time
    is stamped absolutely, or "late" as the kernel does it. ValueError where the batches do not hold every event once,
    or an event has no room in a page.
    """
    count = len(stamp)
    room = page_size - 8 - long_size
    words = [batch.words() for batch in batches]
    size = np.zeros(count, np.int64)
    for batch, rows in zip(batches, words, strict=True):
        size[batch.place] = 4 * rows.shape[1]
    if sum(len(batch.place) for batch in batches) != count or (count and int(size.min()) == 0):
        raise ValueError(f"the batches do not hold each of the {count} events once")
    is_long = size > _MAX_SHORT
    body = size + 4 + 4 * is_long
    if count and int(body.max()) > room:
        raise ValueError(f"an event of {int(size.max())} bytes has no room in a page of {page_size}")

    delta = np.zeros(count, np.int64)
    delta[1:] = (stamp[1:] - stamp[:-1]).view(np.int64)
    back = delta < 0
    absolute = back if backwards == "absolute" else np.zeros(count, np.bool_)
    delta[back] = 0
    extend = absolute | (delta >= 1 << DELTA_BITS)
    forced = np.zeros(count, np.bool_)
    forced[np.asarray(lost_row, np.int64)] = True
    # a longer time does not fit in 59 bits; and no absolute stamp reaches so far back (rb_fix_abs_ts)
    forced |= delta >= 1 << STAMP_BITS
    if backwards == "absolute":
        forced[1:] |= back[1:] & (stamp[:-1] - stamp[1:] >= np.uint64(1 << (STAMP_BITS - 1)))
        # the top bits of an absolute stamp are those of the time before it
        forced[1:] |= back[1:] & (stamp[:-1] >> np.uint64(STAMP_BITS) != stamp[1:] >> np.uint64(STAMP_BITS))
    first_row = _breaks(body, extend, forced, room)

    opens = first_row[:-1]
    extend[opens] = absolute[opens] = False
    delta[opens] = 0
    total = body + 8 * extend
    end = np.cumsum(total)
    page = np.repeat(np.arange(len(opens)), np.diff(first_row))
    used = np.diff(np.r_[0, end[first_row[1:] - 1]]) if count else np.zeros(0, np.int64)
    before = np.r_[0, np.cumsum(used)[:-1]] if count else used
    # in words from the beginning of the data
    at = (end - total - before[page] + page * page_size + 8 + long_size) >> 2

    data = np.zeros(len(opens) * page_size, np.uint8)
    out = data.view(np.uint32)
    rare = np.flatnonzero(extend)
    if len(rare):
        kind = np.where(absolute[rare], TIME_STAMP, TIME_EXTEND).astype(np.uint64)
        value = np.where(absolute[rare], stamp[rare] & np.uint64((1 << STAMP_BITS) - 1), delta[rare].astype(np.uint64))
        out[at[rare]] = _header(kind, value & _LOW27, big_endian)
        out[at[rare] + 1] = _word(value >> np.uint64(DELTA_BITS), big_endian)
        at[rare] += 2
    own = np.where(extend, 0, delta).astype(np.uint64)
    out[at] = _header(np.where(is_long, 0, size >> 2).astype(np.uint64), own, big_endian)
    long_rows = np.flatnonzero(is_long)
    if len(long_rows):
        out[at[long_rows] + 1] = _word((size[long_rows] + 4).astype(np.uint64), big_endian)
        at[long_rows] += 1
    for batch, rows in zip(batches, words, strict=True):
        start = at[batch.place] + 1
        for column in range(rows.shape[1]):
            out[start + column] = rows[:, column]
    _page_heads(data, page_size, long_size, big_endian, stamp[opens], used, opens, lost_row, lost_count)

    if backwards == "late" and back.any():
        # what the reader adds up, from each page's own stamp
        steps = np.cumsum(delta)
        found = stamp[opens][page] + (steps - steps[opens][page]).view(np.uint64)
    else:
        found = stamp
    return Pages(data, first_row, found)


def _breaks(body: I64, extend: npt.NDArray[np.bool_], forced: npt.NDArray[np.bool_], room: int) -> I64:
    """First event of each page, and the number of events: pages are filled while the next event has room."""
    count = len(body)
    if not count:
        return np.zeros(1, np.int64)
    end = np.cumsum(body + 8 * extend)
    stops = np.append(np.flatnonzero(forced), count).tolist()
    first, at, stop = [], 0, 0
    # the smallest record has 8 bytes: no page holds more than this
    most = room // 8 + 1
    reach = room + int(extend[0]) * 8
    while at < count:
        first.append(at)
        while stops[stop] <= at:
            stop += 1
        # the event that opens a page needs no extend
        reach = room + (int(end[at - 1]) if at else 0) + 8 * int(extend[at])
        at += int(end[at : at + most].searchsorted(reach, side="right"))
        at = min(at, stops[stop])
    return np.array([*first, count], np.int64)


def _header(kind: U64, delta: U64, big_endian: bool) -> Words:
    """A record's first word: 5 bits of type_len and 27 of time_delta, in the order of the machine."""
    return _word(kind << np.uint64(DELTA_BITS) | delta if big_endian else delta << np.uint64(5) | kind, big_endian)


def _word(value: U64, big_endian: bool) -> Words:
    return value.astype(">u4" if big_endian else "<u4").view(np.uint32)


def _page_heads(
    data: npt.NDArray[np.uint8],
    page_size: int,
    long_size: int,
    big_endian: bool,
    stamp: U64,
    used: I64,
    opens: I64,
    lost_row: Sequence[int],
    lost_count: Sequence[int],
) -> None:
    """Write each page's stamp and commit word, and the numbers of lost events."""
    order = ">" if big_endian else "<"
    pages = data.reshape(-1, page_size)
    commit = used & COMMIT_MASK
    lost_page = np.searchsorted(opens, np.asarray(lost_row, np.int64))
    for page, missed in zip(lost_page.tolist(), lost_count, strict=True):
        # the kernel adds a negative int: all bits above the flag come with it
        word = int(commit[page]) - MISSED_EVENTS
        if missed != MISSED_UNKNOWN and int(used[page]) + 8 + 2 * long_size <= page_size:
            word += MISSED_STORED
            start = 8 + long_size + int(used[page])
            pages[page, start : start + long_size] = np.array([missed], f"{order}i{long_size}").view(np.uint8)
        commit[page] = word
    pages[:, :8] = stamp.astype(f"{order}u8").view(np.uint8).reshape(-1, 8)
    pages[:, 8 : 8 + long_size] = commit.astype(f"{order}i{long_size}").view(np.uint8).reshape(-1, long_size)
