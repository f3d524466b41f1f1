"""Marks: when one machine's clock shows that a virtual counter reaches a compare value, CVAL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools

MAX_WAIT_NS = 1_000_000_000
"""Longer waits are not measured: clock events and cycle counters may cut them short or overflow, by some 10 minutes."""

_SLOPE_BITS = 24  # the kernel's factors to ticks are right to better than 1 in 2**24


@dataclass(frozen=True, slots=True)
class Marks:
    """When a machine's clock shows that the counter reaches ``cval`` u64[n]: between ``lo`` and ``hi`` i64[n].

    ``lo``, ``hi`` are numbers of the machine's domain; ``lo_known``, ``hi_known`` bool[n] tell which of them hold.
    ``row`` i64[n] is the event that says so. ``when`` i64[n]: its stamp from the recording's base.
    """

    cval: U64
    lo: I64
    hi: I64
    lo_known: Bools
    hi_known: Bools
    row: I64
    when: I64

    def __len__(self) -> int:
        """How many."""
        return len(self.cval)

    @property
    def columns(self) -> tuple[U64, I64, I64, Bools, Bools, I64, I64]:
        """All of them."""
        return self.cval, self.lo, self.hi, self.lo_known, self.hi_known, self.row, self.when

    def take(self, chosen: Bools | I64) -> Marks:
        """Those chosen."""
        cval, lo, hi, lo_known, hi_known, row, when = self.columns
        return Marks(
            cval[chosen], lo[chosen], hi[chosen], lo_known[chosen], hi_known[chosen], row[chosen], when[chosen]
        )

    def between(self, begin: int, end: int) -> Marks:
        """Those of ``begin`` <= ``when`` <= ``end``."""
        return self.take((self.when >= begin) & (self.when <= end))


def joined(parts: Sequence[Marks]) -> Marks:
    """The marks of several parts as one."""
    if not parts:
        return NO_MARKS
    return Marks(*(np.concatenate(columns) for columns in zip(*(part.columns for part in parts), strict=True)))


_NONE, _NEVER = np.zeros(0, np.int64), np.zeros(0, np.bool_)
NO_MARKS = Marks(np.zeros(0, np.uint64), _NONE, _NONE, _NEVER, _NEVER, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class Saved:
    """The CVAL u64[n] of an enabled virtual timer that KVM saved for a thread at ``when`` i64[n] (host's base)."""

    cval: U64
    when: I64


def factor_slack(distance: I64) -> I64:
    """By how much the factors' own rounding may shift what lies ``distance`` ahead, i64[n]."""
    return (np.abs(distance) >> _SLOPE_BITS) + 1
