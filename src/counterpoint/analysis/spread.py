"""How values spread: count, sum, mean, quantiles and a histogram by powers of two, of many groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, Bools

BUCKETS = 64
"""Of a histogram: bucket 0 holds what is 0 or less, bucket k the values from 2**(k - 1) to 2**k - 1."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of m groups. ``count`` i64[m]: all of a group; ``known`` i64[m]: those of which the value is known.

    The rest is of the known ones: ``total``, ``least``, ``p50``, ``p99``, ``most`` i64[m], 0 where none is known, and
    ``buckets`` i64[m, 64], see ``BUCKETS``. A quantile is the value of nearest rank: p50 of four is the second.
    """

    count: I64
    known: I64
    total: I64
    least: I64
    p50: I64
    p99: I64
    most: I64
    buckets: I64

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.count)


def spread(
    values: I64,
    group: I64 | None = None,
    groups: int = 1,
    known: Bools | None = None,
    sizes: I64 | None = None,
) -> Spread:
    """The spread of ``values`` i64[n] in each of ``groups`` groups.

    ``group`` i64[n]: from 0 on, -1: of none (None: all are of one). ``known`` bool[n]: which values count (None: all).
    ``sizes`` i64[n]: what the histogram is of, where that is in other units.
    """
    group = np.zeros(len(values), np.int64) if group is None else group
    known = np.ones(len(values), np.bool_) if known is None else known
    member = group >= 0
    count = np.bincount(group[member], minlength=groups)
    use = member & known
    sizes = (values if sizes is None else sizes)[use]
    values, group = values[use], group[use]
    buckets = np.bincount(group * BUCKETS + bucket_of(sizes), minlength=groups * BUCKETS).reshape(groups, BUCKETS)
    values, group = _sorted(values, group, groups)
    start = np.searchsorted(group, np.arange(groups + 1))
    n = np.diff(start)
    # sums modulo 2**64 give differences that are right where the sum itself has a place
    sums = np.r_[np.int64(0), np.cumsum(values)]
    total = sums[start[1:]] - sums[start[:-1]]

    def ranked(per_cent: int) -> I64:
        # the smallest rank that has at least that share of the values up to it
        at = start[:-1] + np.maximum((n * per_cent + 99) // 100 - 1, 0)
        return np.where(n > 0, np.r_[values, np.int64(0)][at], 0)

    return Spread(count, n, total, ranked(0), ranked(50), ranked(99), ranked(100), buckets)


def _sorted(values: I64, group: I64, groups: int) -> tuple[I64, I64]:
    """Values i64[n] and their groups i64[n], sorted by group and value."""
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    width = most - least + 1
    if groups * width < 1 << 62:
        # one number each: many times faster to sort than two columns
        key = np.sort(group * width + (values - least))
        group = key // width
        return key - group * width + least, group
    order = np.lexsort((values, group))
    return values[order], group[order]


def bucket_of(values: I64) -> I64:
    """The bucket i64[n] of each value."""
    positive = np.maximum(values, 0)
    high = positive >> 32
    # of numbers below 2**32 a double's exponent is how many bits they have
    upper, lower = (np.frexp(part.astype(np.float64))[1].astype(np.int64) for part in (high, positive & 0xFFFFFFFF))
    return np.where(high > 0, upper + 32, lower)
