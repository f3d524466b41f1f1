"""The bounds of slewed clocks: the truth lies in them wherever NTP takes it, and ambiguous events say nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from counterpoint.proof.cone import cone
from counterpoint.proof.fit import Thread
from proof.line_worlds import thread

SPREAD = Fraction(1, 2000)


def slewed(seed: int, count: int = 1500) -> tuple[Thread, np.ndarray, np.ndarray, np.ndarray]:
    """(thread, host times of events, the clock's distance from the line there, where the line puts them)."""
    rng = np.random.default_rng(seed)
    gap = np.maximum(rng.exponential(2500, count), 200).astype(np.int64)
    run = np.maximum(rng.exponential(3000, count), 300).astype(np.int64)
    lo = np.cumsum(gap + np.r_[0, run[:-1]])
    hi = lo + run
    which = np.sort(rng.integers(0, count, 2 * count))
    host = np.sort(lo[which] + (rng.random(2 * count) * (run[which] - 40)).astype(np.int64) + 20)
    # a rate that changes at any time, as far as it may
    turns = np.sort(rng.integers(0, host[-1], 12))
    rate = rng.uniform(-1, 1, 13) * float(SPREAD)
    edges = np.r_[0, turns, host[-1]]
    grown = np.r_[0.0, np.cumsum(np.diff(edges) * rate)]
    away = np.interp(host, edges, grown - np.interp(host[count], edges, grown)).astype(np.int64)
    return thread(lo, hi), host, away, host + away


@pytest.mark.parametrize("seed", range(20))
def test_the_clock_stays_within_its_bounds(seed: int) -> None:
    windows, host, away, when = slewed(seed)
    found = cone([(when, windows)], SPREAD, 0, 1)
    assert found is not None
    at = np.clip(np.searchsorted(found.when, when), 0, len(found.when) - 1)
    opens = np.ceil(np.abs(found.when[at] - when) * float(SPREAD)).astype(np.int64) + 2
    assert (found.low[at] - opens <= away).all()
    assert (away <= found.high[at] + opens).all()
    assert np.median(found.high - found.low) < 3000
    assert len(host) == len(when)


@pytest.mark.parametrize("seed", range(5))
def test_two_cpus_of_one_clock_bound_it_more(seed: int) -> None:
    windows, _, _, when = slewed(seed)
    half = len(when) // 2
    alone = cone([(when[::2], windows)], SPREAD, 0, 1)
    both = cone([(when[::2], windows), (when[1::2], windows)], SPREAD, 0, 1)
    assert alone is not None
    assert both is not None
    assert (both.high - both.low).mean() < (alone.high - alone.low).mean()
    assert half
