"""Pieces and their lines: the truth is among them, all lines that hold the events are, and rivals are counted."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.clocks.scaling import Scale
from counterpoint.proof.lines import Lines, Piece, bounds, by_guest, in_use, sharing_rates, value_bounds
from counterpoint.proof.pieces import find_pieces
from counterpoint.proof.polygon import Polygon, above, below
from proof.line_worlds import PPM, Drawn, drawn, thread


@pytest.mark.parametrize("seed", range(12))
def test_the_true_line_is_among_those_found(seed: int) -> None:
    world = drawn(seed, slope=Fraction(seed * 71 - 400) * PPM)
    (piece,) = find_pieces(world.guest, world.thread, Scale())
    assert (piece.first, piece.last) == (0, len(world.guest))
    assert piece.is_unique
    assert world.polygon_holds(piece)
    lo, hi = piece.rates()
    assert lo <= 1 + world.slope <= hi
    assert hi - lo < 400 * PPM


@pytest.mark.parametrize("seed", range(6))
def test_its_bounds_hold_the_truth_at_any_time(seed: int) -> None:
    world = drawn(seed)
    (piece,) = find_pieces(world.guest, world.thread, Scale())
    line = in_use(piece.lines, piece.scale)
    host = np.linspace(-(10**7), 10**7, 41).astype(np.int64)
    low, high = value_bounds(piece.lines, piece.scale, line, 0, host, 0)
    used = line.scale.apply_signed_relative(host, 0) + line.offset
    true = [(h + world.offset + world.slope * h).__floor__() for h in host.tolist()]
    assert all(a <= t - u <= b for t, u, a, b in zip(true, used.tolist(), low.tolist(), high.tolist(), strict=True))


def oracle(world: Drawn) -> tuple[Fraction, Fraction]:
    """The least and greatest slope of the lines that keep each event in the window that it truly is in, by brute force.

    A slope is extreme where a line goes through two of the points; a stamp stands for up to a unit later.
    """
    host = np.array([((g - world.offset) / (1 + world.slope)).__floor__() for g in world.guest.tolist()], np.int64)
    spans = world.thread
    at = np.searchsorted(spans.lo, host, side="right") - 1
    points = [(int(spans.lo[i]), g + 1 - int(spans.lo[i]), 1) for i, g in zip(at, world.guest.tolist(), strict=True)]
    points += [
        (int(spans.hi[i]) + 1, g - int(spans.hi[i]) - 1, -1) for i, g in zip(at, world.guest.tolist(), strict=True)
    ]
    slopes = []
    for (x1, y1, _), (x2, y2, _) in combinations(sorted(set(points)), 2):
        if x1 == x2:
            continue
        slope = Fraction(y2 - y1, x2 - x1)
        value = y1 - slope * x1
        if all(side * (value + slope * x - y) <= 0 for x, y, side in points):
            slopes.append(slope)
    return min(slopes), max(slopes)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_the_rates_are_those_of_the_slow_oracle_or_wider(seed: int) -> None:
    world = drawn(seed, windows=60, events=70)
    found = find_pieces(world.guest, world.thread, Scale())
    if len(found) != 1 or (found[0].first, found[0].last) != (0, len(world.guest)):
        return
    least, most = oracle(world)
    lo, hi = found[0].polygon.slopes
    assert lo <= max(least, -1000 * PPM)
    assert hi >= min(most, 1000 * PPM)


def test_a_jump_makes_two_pieces_and_no_event_of_the_overlap_bounds_them() -> None:
    world = drawn(5, windows=500, events=900)
    guest = world.guest.copy()
    guest[450:] += 37_000
    left, right = find_pieces(guest, world.thread, Scale())
    assert left.sure_last <= 450 <= right.sure_first
    assert left.last >= 450 >= right.first
    assert world.polygon_holds(left)
    assert replace(world, offset=world.offset + 37_000).polygon_holds(right)


def test_pieces_of_one_rate_share_it() -> None:
    world = drawn(5, windows=500, events=900)
    guest = world.guest.copy()
    guest[450:] += 37_000
    alone = find_pieces(guest, world.thread, Scale(), constant=False)
    left, right = find_pieces(guest, world.thread, Scale())
    assert left.rates() == right.rates()
    assert left.rates()[0] <= 1 + world.slope <= left.rates()[1]
    assert all(left.rates()[1] - left.rates()[0] <= p.rates()[1] - p.rates()[0] for p in alone)


def test_events_after_a_jump_out_of_sight_are_a_piece_of_their_own() -> None:
    world = drawn(8, windows=500, events=900)
    guest = world.guest.copy()
    guest[500:] += 10**10
    left, right = find_pieces(guest, world.thread, Scale())
    assert (left.last, right.first) == (500, 500)
    assert replace(world, offset=world.offset + 10**10).polygon_holds(right)


def test_a_rate_that_changes_is_followed() -> None:
    world = drawn(3, windows=3000, events=6000, slope=-300 * PPM)
    turn = int(world.guest[3000])
    guest = np.array([g + max(0, (g - turn) * 600 // 1_000_000) for g in world.guest.tolist()], np.int64)
    pieces = find_pieces(guest, world.thread, Scale(), constant=False)
    assert len(pieces) >= 2
    assert pieces[0].rates()[0] <= 1 - 300 * PPM <= pieces[0].rates()[1]
    assert pieces[-1].rates()[0] <= 1 + 299 * PPM <= pieces[-1].rates()[1] + PPM


@pytest.mark.parametrize("seed", range(4))
def test_another_thread_holds_nothing(seed: int) -> None:
    world, other = drawn(seed), drawn(seed + 100)
    assert find_pieces(world.guest, other.thread, Scale()) == []


def test_a_guest_that_beats_as_its_host_has_rivals() -> None:
    lo = np.arange(0, 400 * 10_000, 10_000)
    world = thread(lo, lo + 4000)
    guest = np.repeat(lo, 2) + np.tile([1500, 2500], 400)
    found = find_pieces(guest[200:-200], world, Scale())
    assert not any(p.is_unique for p in found)


def test_what_is_known_of_another_cpu_is_tried_first() -> None:
    world = drawn(4, windows=40, events=40)
    assert find_pieces(world.guest, world.thread, Scale()) == []
    at = int(world.guest[20]) - world.offset
    value = world.offset + (world.slope * at).__floor__()
    known = Lines(at, Polygon.box(0, (value - 500, value + 500), (30 * PPM, 50 * PPM)))
    (piece,) = find_pieces(world.guest, world.thread, Scale(), known=[known])
    assert world.polygon_holds(piece)


def test_sharing_rates_tells_rivals_apart() -> None:
    box = Polygon.box(0, (0, 10), (10 * PPM, 20 * PPM))
    steep = Polygon.box(0, (50, 60), (200 * PPM, 300 * PPM))
    sure = Piece(0, 10, 0, 10, Scale(), 0, Polygon.box(0, (0, 9), (250 * PPM, 400 * PPM)))
    doubted = Piece(
        10, 20, 10, 20, Scale(), 0, box, is_unique=False, rivals=(Piece(10, 20, 10, 20, Scale(), 0, steep),)
    )
    first, second = sharing_rates([sure, doubted])
    assert first.polygon.slopes == (250 * PPM, 400 * PPM)
    assert second.is_unique
    assert second.rivals == ()
    assert second.polygon.slopes == (250 * PPM, 300 * PPM)
    # found among too many to tell: nothing makes it sure
    many = replace(doubted, rivals=())
    assert not sharing_rates([sure, many])[1].is_unique


@given(
    st.lists(st.tuples(st.integers(-60, 60), st.integers(-60, 60)), max_size=5),
    st.lists(st.tuples(st.integers(-60, 60), st.integers(-60, 60)), max_size=5),
    st.integers(-(10**13), 10**13),
)
def test_bounds_are_outward_and_near(over: list[tuple[int, int]], under: list[tuple[int, int]], x: int) -> None:
    box = Polygon.box(4, (-90, 90), (Fraction(-1, 1000), Fraction(1, 900)))
    polygon = box.clip([*(below(*p) for p in over), *(above(*p) for p in under)])
    if polygon is None:
        return
    low, high = bounds(by_guest(polygon), np.array([x]))
    true = [(Fraction(a, d) + Fraction(b, d) * x) / (1 + Fraction(b, d)) for a, b, d in polygon.corners]
    assert min(true) - 5 <= low[0] <= min(true)
    assert max(true) <= high[0] <= max(true) + 5
