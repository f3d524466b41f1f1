"""Ring-buffer sub-buffers ("pages") to columns: stamp, place and length of every record.

Layout (kernel/trace/ring_buffer.c, include/linux/ring_buffer.h, and libtraceevent's kbuffer-parse.c)::

    u64 stamp | long commit | data      commit: size of the data, bit 31 events were lost before this page,
                                        bit 30 their number follows the data
    record:  u32 header = type_len:5, time_delta:27 (from the low end; from the high end on big-endian)
             type_len 1..28   4 * type_len bytes of payload
                      0       array[0] bytes, itself included, rounded up to 4
                      29      padding: time_delta 0 ends the page, else a discarded record of array[0] bytes
                      30      TIME_EXTEND: time += (array[0] << 27) + time_delta
                      31      TIME_STAMP: an absolute stamp of 59 bits; the top 5 are those of the time so far

All pages are walked in lock step, one record of every page per step, so that the work is numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I32, I64, U64

PADDING = 29
TIME_EXTEND = 30
TIME_STAMP = 31
DELTA_BITS = 27
COMMIT_MASK = (1 << 27) - 1
MISSED_EVENTS = 1 << 31
MISSED_STORED = 1 << 30
STAMP_BITS = 59
STAMP_TOP = np.uint64(0xF8 << 56)
MISSED_UNKNOWN = -1
"""The count of a loss that the kernel flagged without a number."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What the pages hold, in page order.

    ``stamp`` u64[n] raw trace-clock values; ``offset`` i64[n] byte of the payload within the data; ``length``
    i32[n] bytes of payload; ``page_row`` i64[pages + 1]: records of page p are rows page_row[p]:page_row[p+1];
    ``missed`` i64[pages]: events lost before the page (0 none, -1 not counted); ``damaged`` bool[pages]: a
    record ran past its page's end, the page was read up to it.
    """

    stamp: U64
    offset: I64
    length: I32
    page_row: I64
    missed: I64
    damaged: npt.NDArray[np.bool_]


def unaligned(data: npt.NDArray[np.uint8], code: str) -> npt.NDArray[Any]:
    """View ``data`` as numbers of dtype ``code`` beginning at every byte: index it by byte offset."""
    dtype = np.dtype(code)
    count = max(len(data) - dtype.itemsize + 1, 0)
    return np.ndarray((count,), dtype=dtype, buffer=data.data if count else b"", strides=(1,))


def scan_pages(
    data: npt.NDArray[np.uint8],
    pages: I64,
    page_end: I64,
    *,
    long_size: int = 8,
    big_endian: bool = False,
) -> Scan:
    """Read all records of the pages that begin at bytes ``pages`` i64[P] of ``data`` and end at ``page_end``.

    ``long_size`` is the recorded kernel's (the commit word's). Pages shorter than their header are empty.
    Nothing outside [pages, page_end) is read; sizes that do not fit mark the page as damaged.
    """
    order = ">" if big_endian else "<"
    header = 8 + long_size
    count = len(pages)
    whole = page_end - pages >= header
    safe = np.where(whole, pages, 0)
    if len(data) < header or not whole.any():
        empty = np.zeros(0, np.int64)
        return Scan(
            empty.astype(np.uint64),
            empty,
            empty.astype(np.int32),
            np.zeros(count + 1, np.int64),
            np.zeros(count, np.int64),
            ~whole,
        )
    words = unaligned(data, f"{order}u4")
    stamp = np.where(whole, unaligned(data, f"{order}u8")[safe], 0).astype(np.uint64)
    commit = np.where(whole, unaligned(data, f"{order}u{long_size}")[safe + 8], 0).astype(np.uint64)
    size = (commit & np.uint64(COMMIT_MASK)).astype(np.int64)
    start = pages + header
    end = start + size
    damaged = ~whole | (end > page_end)
    end = np.where(whole, np.minimum(end, page_end), start)

    missed = np.zeros(count, np.int64)
    lost = (commit & np.uint64(MISSED_EVENTS)) != 0
    missed[lost] = MISSED_UNKNOWN
    stored = lost & ((commit & np.uint64(MISSED_STORED)) != 0) & (end + long_size <= page_end)
    missed[stored] = unaligned(data, f"{order}i{long_size}")[end[stored]]
    missed[lost & (missed <= 0)] = MISSED_UNKNOWN

    page_of, stamps, offsets, lengths = _walk(words, start, end, stamp, damaged, big_endian)
    page_row = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(page_of, minlength=count), out=page_row[1:])
    # steps come page by page within a step; a stable sort by page restores each page's own order
    order_rows = np.argsort(page_of.astype(np.uint16) if count <= 0xFFFF else page_of, kind="stable")
    return Scan(stamps[order_rows], offsets[order_rows], lengths[order_rows], page_row, missed, damaged)


def _walk(
    words: npt.NDArray[np.uint32],
    start: I64,
    end: I64,
    stamp: U64,
    damaged: npt.NDArray[np.bool_],
    big_endian: bool,
) -> tuple[I64, U64, I64, I32]:
    """Walk all pages in lock step; returns (page, stamp, payload offset, payload length) in step order."""
    page = np.flatnonzero(start + 4 <= end)
    pos, stop, now = start[page], end[page], stamp[page].copy()
    last_word = len(words) - 1
    out: list[tuple[I64, U64, I64, I32]] = []
    while len(page):
        head = words[pos].astype(np.uint32, copy=False)
        if big_endian:
            kind = (head >> np.uint32(DELTA_BITS)).astype(np.int64)
            delta = (head & np.uint32((1 << DELTA_BITS) - 1)).astype(np.uint64)
        else:
            kind = (head & np.uint32(31)).astype(np.int64)
            delta = (head >> np.uint32(5)).astype(np.uint64)
        length = kind << 2
        payload = pos + 4
        is_data = (kind > 0) & (kind < PADDING)
        now += delta
        if not is_data.all():
            rare = np.flatnonzero(~is_data)
            now[rare], length[rare], payload[rare], is_data[rare] = _rare(
                words, last_word, kind[rare], delta[rare], now[rare], payload[rare], stop[rare]
            )
        following = payload + length
        fits = following <= stop
        if not fits.all():
            damaged[page[~fits]] = True
            is_data &= fits
            following = np.where(fits, following, stop)
        if is_data.all():
            out.append((page, now.copy(), payload, length.astype(np.int32)))
        elif is_data.any():
            out.append((page[is_data], now[is_data], payload[is_data], length[is_data].astype(np.int32)))
        going = following + 4 <= stop
        if going.all():
            pos = following
        else:
            page, pos, stop, now = page[going], following[going], stop[going], now[going]
    if not out:
        none = np.zeros(0, np.int64)
        return none, none.astype(np.uint64), none, none.astype(np.int32)
    pages, stamps, offsets, lengths = zip(*out, strict=True)
    return np.concatenate(pages), np.concatenate(stamps), np.concatenate(offsets), np.concatenate(lengths)


def _rare(
    words: npt.NDArray[np.uint32], last_word: int, kind: I64, delta: U64, now: U64, payload: I64, stop: I64
) -> tuple[U64, I64, I64, npt.NDArray[np.bool_]]:
    """The records of one step that are not plain data: returns (time, length, payload, is data).

    ``now`` has the record's own delta added already.
    """
    first = words[np.minimum(payload, last_word)].astype(np.uint64)
    is_long = kind == 0
    is_padding = kind == PADDING
    is_extend = kind == TIME_EXTEND
    is_absolute = kind == TIME_STAMP

    before = now - delta
    extended = (first << np.uint64(DELTA_BITS)) + delta
    absolute = extended | (before & STAMP_TOP)
    # the 59 bits ran over since the last stamp (ring_buffer.c rb_fix_abs_ts)
    wrapped = (absolute < before) & (before - absolute > np.uint64(1 << (STAMP_BITS - 1)))
    absolute = np.where(wrapped, absolute + np.uint64(1 << STAMP_BITS), absolute)
    now = np.where(is_absolute, absolute, np.where(is_extend, before + extended, now))

    array0 = first.astype(np.int64)
    # a padding record's array[0] counts from itself; one without delta fills the rest of the page
    padding = np.where(delta == 0, stop - payload, np.maximum(array0 & ~3, 4))
    length = np.where(is_long, np.maximum((array0 - 4 + 3) & ~3, 0), np.where(is_padding, padding, 0))
    payload = payload + np.where(is_padding, 0, 4)
    return now, length, payload, is_long
