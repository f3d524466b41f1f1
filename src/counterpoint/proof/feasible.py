"""The offsets that put no guest event into a gap: exact integer interval sets.

With spans [lo, hi] in which a thread may be in guest mode and guest stamps g, an offset ``o = guest - host`` is
feasible when every g - o lies in a span. Each pair of an event g and a gap (a, b) between two spans forbids the
open interval (g - b, g - a); the feasible set is what all pairs leave of a searched range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64

MAX_PAIRS = 1 << 21
"""(event, gap) pairs worked on at once: bounds the memory of a step, not the result."""

FIRST_EVENTS = 4
"""Events of the first step; each further step takes STRIDE_FACTOR times as many."""

STRIDE_FACTOR = 8

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


def narrow(found: IntervalSet, guest: I64, gap_lo: I64, gap_hi: I64, slack: I64 | None = None) -> IntervalSet:
    """Remove from ``found`` every offset that puts an event of ``guest`` i64[n] into a gap.

    Gap k is the open interval (gap_lo[k], gap_hi[k]) of host time; gaps are disjoint and in order. ``slack`` i64[n]: by
    how much each event may be earlier or later than it says; it must lie as deep in the gap. A few events spread over
    the recording come first: they leave little for the others to look at. Raises TooManyError.
    """
    if not len(gap_lo):
        return found
    if slack is None:
        slack = np.zeros(len(guest), np.int64)
    stride = max(1, len(guest) // FIRST_EVENTS)
    while len(found) and len(guest):
        found = _narrow_by(found, guest[::stride], gap_lo, gap_hi, slack[::stride])
        if stride == 1:
            break
        stride = max(1, stride // STRIDE_FACTOR)
    return found


def _narrow_by(found: IntervalSet, events: I64, gap_lo: I64, gap_hi: I64, slack: I64) -> IntervalSet:
    """``narrow`` by these events at once, or in halves where that is too much at once."""
    if not len(found) or not len(events):
        return found
    if len(found) * len(events) <= MAX_PAIRS or len(events) == 1:
        first, count = _pairs(found, events, gap_lo, gap_hi)
        if int(count.sum()) <= MAX_PAIRS or len(events) == 1:
            found = _remove(found, (events, slack), first, count, gap_lo, gap_hi) if count.any() else found
            if len(found) > MAX_INTERVALS_PER_GAP * len(gap_lo) + 4096:
                raise TooManyError
            return found
    half = _narrow_by(found, events[::2], gap_lo, gap_hi, slack[::2])
    return _narrow_by(half, events[1::2], gap_lo, gap_hi, slack[1::2])


def _pairs(found: IntervalSet, events: I64, gap_lo: I64, gap_hi: I64) -> tuple[I64, I64]:
    """For each (interval, event): the first gap it can touch and how many, flattened interval by interval."""
    host_hi = events[None, :] - found.lo[:, None]
    host_lo = events[None, :] - found.hi[:, None]
    first = np.searchsorted(gap_hi, host_lo.ravel(), side="right")
    last = np.searchsorted(gap_lo, host_hi.ravel(), side="left")
    return first, np.maximum(last - first, 0)


def _remove(
    found: IntervalSet, events: tuple[I64, I64], first: I64, count: I64, gap_lo: I64, gap_hi: I64
) -> IntervalSet:
    pair = np.repeat(np.arange(len(count)), count)
    gap = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[pair]
    event, slack = (column[pair % len(column)] for column in events)
    return found.minus(event + slack - gap_hi[gap] + 1, event - slack - gap_lo[gap] - 1)
