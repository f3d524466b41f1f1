"""Interval sets, ``narrow`` and ``check`` against oracles that try every offset one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.proof import feasible
from counterpoint.proof.feasible import IntervalSet, TooManyError, narrow
from counterpoint.proof.fit import Fit, Thread, check, fit, overlap_range
from counterpoint.proof.windows import FOREVER, RunWindows

LOW, HIGH = -60, 60


def column(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def members(found: IntervalSet) -> set[int]:
    return {value for lo, hi in found.intervals() for value in range(lo, hi + 1)}


intervals = st.lists(st.tuples(st.integers(LOW, HIGH), st.integers(LOW, HIGH)), max_size=8)


@st.composite
def disjoint(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Disjoint closed intervals in order, which may touch."""
    edges = sorted(draw(st.lists(st.integers(LOW, HIGH), max_size=12, unique=True)))
    return list(zip(edges[::2], edges[1::2], strict=False))


@given(disjoint(), intervals)
def test_minus_is_set_difference(mine: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    found = IntervalSet(column([lo for lo, _ in mine]), column([hi for _, hi in mine]))
    left = found.minus(column([lo for lo, _ in holes]), column([hi for _, hi in holes]))
    removed = {v for lo, hi in holes for v in range(lo, hi + 1)}
    assert members(left) == members(found) - removed
    assert all(a[1] < b[0] for a, b in pairwise(left.intervals()))


@given(disjoint(), st.integers(LOW - 3, HIGH + 3))
def test_find_names_the_interval_around_a_value(mine: list[tuple[int, int]], value: int) -> None:
    found = IntervalSet(column([lo for lo, _ in mine]), column([hi for _, hi in mine]))
    assert found.find(value) == next((i for i in mine if i[0] <= value <= i[1]), None)


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_an_interval_that_ends_before_it_begins_is_empty(lo: int, hi: int) -> None:
    assert members(IntervalSet.of(lo, hi)) == set(range(lo, hi + 1))


@st.composite
def gaps(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Open gaps (a, b) in order; a gap may begin where the one before ends."""
    edges = sorted(draw(st.lists(st.integers(-40, 40), min_size=2, max_size=10)))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b]


@settings(max_examples=200)
@given(gaps(), st.lists(st.integers(-40, 40), max_size=12), st.sampled_from([1, 7, 1 << 21]))
def test_narrow_leaves_what_no_event_forbids(between: list[tuple[int, int]], guest: list[int], pairs: int) -> None:
    before, feasible.MAX_PAIRS = feasible.MAX_PAIRS, pairs
    try:
        left = narrow(
            IntervalSet.of(-90, 90), column(guest), column([a for a, _ in between]), column([b for _, b in between])
        )
    finally:
        feasible.MAX_PAIRS = before
    allowed = {o for o in range(-90, 91) if not any(a < g - o < b for g in guest for a, b in between)}
    assert members(left) == allowed


def test_narrow_gives_up_where_the_events_bound_nothing() -> None:
    # each event takes one offset from between those that the others take
    tiny = np.arange(800, dtype=np.int64) * 100
    with pytest.raises(TooManyError):
        narrow(IntervalSet.of(-(10**6), 10**6), np.arange(0, 60, 3), tiny, tiny + 2)


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Closed spans (lo, hi, is_run) in order between two open ends; they may touch and be of no length."""
    edges = sorted(draw(st.lists(st.integers(-40, 40), min_size=2, max_size=14)))
    inner = list(zip(edges[1:-1:2], edges[2:-1:2], strict=False))
    kinds = draw(st.lists(st.booleans(), min_size=len(inner), max_size=len(inner)))
    far = int(FOREVER)
    return [
        (-far, edges[0], False),
        *((lo, hi, kind) for (lo, hi), kind in zip(inner, kinds, strict=True)),
        (edges[-1], far, False),
    ]


def thread_of(parts: list[tuple[int, int, bool]], base: int = 0) -> Thread:
    none = np.full(len(parts), -1, np.int64)
    lo, hi = column([p[0] for p in parts]), column([p[1] for p in parts])
    return Thread(RunWindows(1, base, lo, hi, np.array([p[2] for p in parts], np.bool_), none, none))


@settings(max_examples=300)
@given(spans(), st.lists(st.integers(-60, 60), max_size=12), st.integers(-60, 60))
def test_check_counts_as_one_by_one(parts: list[tuple[int, int, bool]], guest: list[int], offset: int) -> None:
    thread = thread_of(parts)
    result = check(column(guest), offset, thread)

    def inside(host: int) -> bool:
        return any(lo <= host <= hi for lo, hi, is_run in parts if is_run)

    def allowed(host: int) -> bool:
        return any(lo <= host <= hi for lo, hi, _ in parts)

    hosts = [g - offset for g in guest]
    assert result.inside == sum(map(inside, hosts))
    assert result.violations == sum(not allowed(h) for h in hosts)
    assert result.unknown == sum(allowed(h) and not inside(h) for h in hosts)
    assert result.violating.tolist() == [not allowed(h) for h in hosts]
    if not guest or result.violations:
        assert result.feasible is None
        return
    fits = {o for o in range(-200, 201) if all(allowed(g - o) for g in guest)}
    low = high = offset
    while low - 1 in fits:
        low -= 1
    while high + 1 in fits:
        high += 1
    assert result.feasible is not None
    lo, hi = result.feasible
    assert (max(lo, -200), min(hi, 200)) == (low, high)
    # the witnesses are the events that the next offset would put outside
    if lo > -200:
        assert not allowed(guest[result.low_event] - (lo - 1))
    if hi < 200:
        assert not allowed(guest[result.high_event] - (hi + 1))


@settings(max_examples=200)
@given(spans(), st.lists(st.integers(-60, 60), min_size=1, max_size=9))
def test_fit_finds_exactly_the_offsets_that_fit(parts: list[tuple[int, int, bool]], guest: list[int]) -> None:
    thread = thread_of(parts)
    low, high = overlap_range(column(guest), thread)
    found = fit(column(guest), thread)
    fits = {o for o in range(low, high + 1) if all(any(lo <= g - o <= hi for lo, hi, _ in parts) for g in guest)}
    if found.weak:
        assert members(found.interval_set) == fits
    else:
        assert members(found.interval_set) <= fits
    assert bool(found.candidates) == bool(fits)


@given(spans(), st.lists(st.integers(-60, 60), min_size=1, max_size=9))
def test_the_search_covers_every_offset_with_half_of_the_events_in_sight(
    parts: list[tuple[int, int, bool]], guest: list[int]
) -> None:
    thread = thread_of(parts)
    low, high = overlap_range(column(guest), thread)
    first, last = thread.windows.first, thread.windows.last
    for offset in range(-150, 151):
        if 2 * sum(first <= g - offset <= last for g in guest) >= len(guest):
            assert low <= offset <= high


@pytest.mark.parametrize("offset", [1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63), (1 << 62) + 12345])
@pytest.mark.parametrize("guest", [[0, 5], [-(1 << 62), 1 << 62], [(1 << 63) - 1], [-(1 << 63)]])
def test_an_offset_however_far_puts_events_out_of_sight_and_into_no_gap(offset: int, guest: list[int]) -> None:
    thread = thread_of([(-int(FOREVER), 0, False), (10, 20, True), (30, int(FOREVER), False)])
    result = check(column(guest), offset, thread)
    hosts = [g - offset for g in guest]
    gap = sum(0 < h < 10 or 20 < h < 30 for h in hosts)
    assert result.violations == gap
    assert result.inside + result.unknown + result.violations == len(guest)


def test_nothing_is_found_where_there_are_no_events() -> None:
    assert fit(column([]), thread_of([(-int(FOREVER), 0, False), (30, int(FOREVER), False)])) == Fit()


def test_an_interval_that_ends_where_the_search_does_is_weak() -> None:
    # one long window: every offset that half of the events may have fits, so the ends are the search's alone
    parts = [(-int(FOREVER), 0, False), (1, 10**6, True), (10**6 + 1, int(FOREVER), False)]
    found = fit(column(list(range(0, 10**5, 10))), thread_of(parts))
    assert found.weak
    assert not found.is_unique
