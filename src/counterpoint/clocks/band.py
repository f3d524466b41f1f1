"""How far a true stamp may lie from a map's, over time: the bound of a line that was fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.clocks.wide import divide, multiply

BILLION = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Band:
    """Bounds of ``true guest stamp - the map's``, in guest units, span by span of host time.

    ``host`` are n+1 host stamps in order: from ``host[i]`` to ``host[i + 1]`` (both included) the difference is at
    least ``lo[i]`` and at most ``hi[i]``. Before the first and after the last the bounds grow with the distance: the
    guest may run ``slower_ppb`` less or ``faster_ppb`` more than the map, in billionths of a guest unit per host unit,
    both >= 0.
    """

    host: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    slower_ppb: int
    faster_ppb: int

    def at(self, host: U64) -> tuple[I64, I64]:
        """The bounds (lo, hi), i64[n] each, at host stamps u64[n] within 2**62 of the band."""
        edges = relative(np.array(self.host, np.uint64), self.host[0])
        when = relative(host, self.host[0])
        span = np.clip(np.searchsorted(edges, when, side="right") - 1, 0, len(self.lo) - 1)
        lo, hi = np.array(self.lo, np.int64)[span], np.array(self.hi, np.int64)[span]
        # on an edge both spans' bounds hold; the later one's is used
        before, after = np.maximum(-when, 0), np.maximum(when - edges[-1], 0)
        lo -= _grown(before, self.faster_ppb) + _grown(after, self.slower_ppb)
        hi += _grown(before, self.slower_ppb) + _grown(after, self.faster_ppb)
        return lo, hi

    @property
    def extremes(self) -> tuple[int, int]:
        """The widest bounds within the band."""
        return min(self.lo), max(self.hi)

    @property
    def width(self) -> int:
        """The width of the widest span, in guest units."""
        return max(hi - lo for lo, hi in zip(self.lo, self.hi, strict=True))


def _grown(distance: I64, ppb: int) -> I64:
    """``distance * ppb / 10**9``, i64[n], rounded up."""
    if ppb == 0:
        return np.zeros(len(distance), np.int64)
    high, low = multiply(distance.view(np.uint64), ppb)
    quotient, rest = divide(high, low, BILLION)
    out: I64 = (quotient + (rest > 0)).view(np.int64)
    return out
