"""Values that hold from one time to the next: functions of time in steps, as sorted columns."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64, Bools


def combine(first: I64, second: I64) -> tuple[I64, I64, I64]:
    """Cut two functions at each other's steps.

    ``first``, ``second`` i64[n], i64[m]: where each one's steps begin, in order. Returns all the beginnings i64[k],
    strictly increasing, and the step of each function that holds there (-1: before its first). Of steps that begin at
    the same time the last one counts.
    """
    both = np.concatenate((first, second))
    # two runs that are in order are merged, where np.union1d would hash them
    both.sort(kind="stable")
    begin = both[np.r_[True, both[1:] != both[:-1]]] if len(both) else both
    return begin, step_at(first, begin), step_at(second, begin)


def step_at(begin: I64, when: I64) -> I64:
    """The steps i64[k] that hold at the times ``when`` i64[k]; -1: before the first."""
    return np.searchsorted(begin, when, side="right") - 1


def merged(lo: I64, hi: I64) -> tuple[I64, I64]:
    """The union of the half-open spans [lo, hi), in any order, as spans in order that neither touch nor are empty."""
    some = hi > lo
    lo, hi = lo[some], hi[some]
    order = np.argsort(lo, kind="stable")
    lo, reach = lo[order], np.maximum.accumulate(hi[order])
    fresh = np.r_[True, lo[1:] > reach[:-1]] if len(lo) else np.zeros(0, np.bool_)
    starts = np.flatnonzero(fresh)
    return lo[starts], reach[np.r_[starts[1:] - 1, len(lo) - 1]] if len(lo) else reach


def within(lo: I64, hi: I64, when: I64) -> Bools:
    """Whether each of the times ``when`` lies in one of the spans [lo, hi), which are in order and apart."""
    at = step_at(lo, when)
    found: Bools = (at >= 0) & (when < hi[at]) if len(lo) else np.zeros(len(when), np.bool_)
    return found


def last_set(given: I64) -> I64:
    """Of a column i64[n] with -1 where nothing is set: the place i64[n] of the last one set up to each; -1: none."""
    return np.maximum.accumulate(np.where(given >= 0, np.arange(len(given)), -1))


def held(given: I64) -> I64:
    """A column i64[n] with -1 where nothing is set, each value held until the next; -1 before the first."""
    at = last_set(given)
    return np.where(at >= 0, given[at], -1)
