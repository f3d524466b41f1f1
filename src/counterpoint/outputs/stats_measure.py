"""Distances of a timeline in ns, and how they spread, as ``stats --json`` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from counterpoint.analysis.spread import Spread, spread
from counterpoint.clocks.counter import I64, Bools, add, relative
from counterpoint.clocks.rate import Rate

Json = dict[str, Any]


class Measure:
    """Units of the first host's clock as ns; where their rate is not known they stay as they are."""

    def __init__(self, rate: Rate | None, base: int) -> None:
        """Times count from ``base``."""
        self.rate = rate
        self._base = base

    def ns(self, units: I64) -> I64:
        """Distances i64[n], none of them below 0, in ns."""
        return units if self.rate is None else self.rate.array_to_ns(units.view(np.uint64))

    def one(self, units: int) -> int:
        """One distance in ns."""
        return units if self.rate is None else self.rate.to_ns(units)

    def at(self, when: I64) -> I64:
        """Times i64[n] in ns: their differences add up."""
        stamps = add(when.view(np.uint64), self._base)
        return relative(stamps, self._base) if self.rate is None else self.rate.array_to_ns(stamps)

    def spread(self, units: I64, group: I64 | None = None, groups: int = 1, known: Bools | None = None) -> list[Json]:
        """The spread of distances i64[n] in each group, see ``spread.spread``; of those known none is below 0."""
        known = np.ones(len(units), np.bool_) if known is None else known
        return _rows(spread(units, group, groups, known, self.ns(np.where(known, units, 0))), self.ns, self.one)

    def between(self, begin: I64, end: I64, known: Bools) -> Json:
        """The spread of the distances from begin to end, where both are known."""
        return self.spread(np.where(known, np.maximum(end - begin, 0), 0), known=known)[0]


def spread_ns(ns: I64, group: I64 | None = None, groups: int = 1) -> list[Json]:
    """The spread of distances that are in ns already, and may be below 0."""
    return _rows(spread(ns, group, groups), lambda values: values, int)


def _rows(found: Spread, ns: Callable[[I64], I64], one: Callable[[int], int]) -> list[Json]:
    """The rows of a spread, its values converted by ``ns`` and its sums by ``one``."""
    columns = [ns(each).tolist() for each in (found.least, found.p50, found.p99, found.most)]
    totals = [one(total) for total in found.total.tolist()]
    rows = zip(found.count.tolist(), found.known.tolist(), totals, *columns, strict=True)
    return [_json(row, buckets) for row, buckets in zip(rows, found.buckets, strict=True)]


def _json(row: Sequence[int], buckets: I64) -> Json:
    """``row``: count, known, total, least, p50, p99, most."""
    count, known, total, *rest = row
    names = ("mean", "min", "p50", "p99", "max")
    values = (total // known, *rest) if known else (None,) * len(names)
    histogram = [[0 if k == 0 else 1 << (k - 1), int(buckets[k])] for k in np.flatnonzero(buckets).tolist()]
    measured = dict(zip(names, values, strict=True))
    return {"count": count, "known": known, "total": total, **measured, "histogram": histogram}


def joined(columns: Iterable[I64]) -> I64:
    """Columns end to end, of which there may be none."""
    return np.concatenate([np.zeros(0, np.int64), *columns])


def kinds(keys: I64) -> tuple[list[tuple[int, ...]], I64]:
    """The distinct columns of ``keys`` i64[k, n], and which of them each is, i64[n]."""
    code = np.zeros(keys.shape[1], np.int64)
    for line in keys:
        values, at = np.unique(line, return_inverse=True)
        _, code = np.unique(code * max(len(values), 1) + at, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    return [tuple(column) for column in keys[:, first].T.tolist()], code
