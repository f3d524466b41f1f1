"""The offsets that put no guest event into a gap: exact integer interval sets.

With spans [lo, hi] in which a thread may be in guest mode and guest stamps g, an offset ``o = guest - host`` is
feasible when every g - o lies in a span. Each pair of an event g and a gap (a, b) between two spans forbids the
open interval (g - b, g - a); the feasible set is what all pairs leave of a searched range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.traces.ring import I64

MAX_PAIRS = 1 << 21
"""(event, gap) pairs worked on at once: bounds the memory of a step, not the result."""

MAX_INTERVALS_PER_GAP = 4
"""More feasible intervals than this times the gaps say nothing; the search stops there (``TooManyError``)."""

Interval = tuple[int, int]


class TooManyError(Exception):
    """The events leave more intervals than are worth keeping: they do not bound the offset."""


@dataclass(frozen=True, slots=True)
class IntervalSet:
    """Disjoint closed integer intervals in order: ``lo``, ``hi`` i64[k]."""

    lo: I64
    hi: I64

    @classmethod
    def of(cls, lo: int, hi: int) -> IntervalSet:
        """The one interval [lo, hi] (empty where hi < lo)."""
        keep = slice(0, 1 if lo <= hi else 0)
        return cls(np.array([lo], np.int64)[keep], np.array([hi], np.int64)[keep])

    def __len__(self) -> int:
        """Number of intervals."""
        return len(self.lo)

    def intervals(self) -> list[Interval]:
        """The intervals as pairs."""
        return list(zip(self.lo.tolist(), self.hi.tolist(), strict=True))

    def find(self, value: int) -> Interval | None:
        """The interval that holds ``value``, or None."""
        at = int(np.searchsorted(self.lo, value, side="right")) - 1
        if at < 0 or value > int(self.hi[at]):
            return None
        return int(self.lo[at]), int(self.hi[at])

    def minus(self, lo: I64, hi: I64) -> IntervalSet:
        """Remove the closed intervals [lo, hi] (any order, may overlap; hi < lo removes nothing)."""
        real = hi >= lo
        lo, hi = lo[real], hi[real]
        if not len(lo) or not len(self.lo):
            return self
        order = np.argsort(lo, kind="stable")
        lo, hi = lo[order], np.maximum.accumulate(hi[order])
        fresh = np.r_[True, lo[1:] > hi[:-1] + 1]
        starts = np.flatnonzero(fresh)
        hole_lo, hole_hi = lo[starts], hi[np.r_[starts[1:] - 1, len(hi) - 1]]
        # what is left between holes, cut by each of our intervals
        left_lo = np.r_[np.iinfo(np.int64).min, hole_hi + 1]
        left_hi = np.r_[hole_lo - 1, np.iinfo(np.int64).max]
        first = np.searchsorted(left_hi, self.lo, side="left")
        last = np.searchsorted(left_lo, self.hi, side="right")
        count = np.maximum(last - first, 0)
        mine = np.repeat(np.arange(len(count)), count)
        piece = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[mine]
        new_lo = np.maximum(self.lo[mine], left_lo[piece])
        new_hi = np.minimum(self.hi[mine], left_hi[piece])
        keep = new_lo <= new_hi
        return IntervalSet(new_lo[keep], new_hi[keep])


def narrow(found: IntervalSet, guest: I64, gap_lo: I64, gap_hi: I64) -> IntervalSet:
    """Remove from ``found`` every offset that puts an event of ``guest`` i64[n] into a gap.

    Gap k is the open interval (gap_lo[k], gap_hi[k]) of host time; gaps are disjoint and in order. Events are
    taken in an order that spreads over the recording, in steps of at most MAX_PAIRS pairs. Raises TooManyError.
    """
    if not len(gap_lo):
        return found
    pending = spread(len(guest))
    at, step = 0, 4
    while at < len(pending) and len(found):
        while True:
            events = guest[pending[at : at + step]]
            first, count = _pairs(found, events, gap_lo, gap_hi)
            if int(count.sum()) <= MAX_PAIRS or step == 1:
                break
            step = max(1, step // 4)
        if count.any():
            found = _remove(found, events, first, count, gap_lo, gap_hi)
            if len(found) > MAX_INTERVALS_PER_GAP * len(gap_lo) + 4096:
                raise TooManyError
        at += step
        step = min(step * 4, 1 << 20)
    return found


def spread(count: int) -> I64:
    """The numbers 0..count-1 so that each beginning of the list is spread over the whole (a fixed order)."""
    if count <= 1:
        return np.arange(count)
    # multiples of the golden section are evenly spread at every length
    weight = (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    inverse = np.argsort(weight, kind="stable")
    order = np.empty(count, np.int64)
    order[inverse] = np.arange(count)
    position = np.empty(count, np.int64)
    position[order] = np.arange(count)
    return position


def _pairs(found: IntervalSet, events: I64, gap_lo: I64, gap_hi: I64) -> tuple[I64, I64]:
    """For each (interval, event): the first gap it can touch and how many, flattened interval by interval."""
    host_hi = events[None, :] - found.lo[:, None]
    host_lo = events[None, :] - found.hi[:, None]
    first = np.searchsorted(gap_hi, host_lo.ravel(), side="right")
    last = np.searchsorted(gap_lo, host_hi.ravel(), side="left")
    return first, np.maximum(last - first, 0)


def _remove(found: IntervalSet, events: I64, first: I64, count: I64, gap_lo: I64, gap_hi: I64) -> IntervalSet:
    pair = np.repeat(np.arange(len(count)), count)
    gap = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[pair]
    event = events[pair % len(events)]
    return found.minus(event - gap_hi[gap] + 1, event - gap_lo[gap] - 1)
