"""Cells never lose a line that there is, and clusters hold whole what hangs together."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.proof.cells import Cell, clusters, search_cells
from counterpoint.proof.feasible import IntervalSet

SLOPES = Fraction(-1, 100), Fraction(1, 100)


def windows(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.cumsum(rng.integers(5, 400, 2 * count))
    return edges[::2], edges[1::2]


def holds(lo: np.ndarray, hi: np.ndarray, events: list[int], centre: int, offset: int, slope: Fraction) -> bool:
    """Whether a line puts every event into a window, in fractions."""
    for event in events:
        host = event - offset - slope * (event - centre)
        if not any(a <= host <= b for a, b in zip(lo.tolist(), hi.tolist(), strict=True)):
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 40), st.integers(-90, 90), st.integers(-3000, 3000))
def test_every_line_that_holds_the_events_is_in_a_cell(seed: int, count: int, steps: int, offset: int) -> None:
    rng = np.random.default_rng(seed)
    lo, hi = windows(rng, 30)
    slope = Fraction(steps, 10_000)
    middle = int(lo[15])
    which = rng.integers(0, 30, count)
    host = rng.integers(lo[which], hi[which] + 1)
    centre = middle + offset
    # guest - offset - slope * (guest - centre) = host, to less than a unit
    events = np.array([round((h + offset - slope * centre) / (1 - slope)) for h in host.tolist()], np.int64)
    lo, hi = lo - 2, hi + 2
    assert holds(lo, hi, events.tolist(), centre, offset, slope)

    found = search_cells(events, centre, (hi[:-1], lo[1:]), (-5000, 5000), SLOPES, reach=4, thickness=0)

    assert any(c.slope - c.half <= slope <= c.slope + c.half and c.offsets.find(offset) is not None for c in found)
    assert any(c.offsets[0] <= offset <= c.offsets[1] and c.slopes[0] <= slope <= c.slopes[1] for c in clusters(found))


def test_nothing_is_left_where_no_line_holds() -> None:
    rng = np.random.default_rng(1)
    lo, hi = windows(rng, 40)
    events = np.sort(rng.integers(lo[0], hi[-1], 60))
    found = search_cells(events, int(events[30]), (hi[:-1], lo[1:]), (-2000, 2000), SLOPES, reach=4, thickness=0)
    assert found == []


def cell(slope: int, *intervals: tuple[int, int]) -> Cell:
    lo, hi = (np.array(ends, np.int64) for ends in zip(*intervals, strict=True))
    return Cell(Fraction(slope, 100), Fraction(1, 200), IntervalSet(lo, hi))


@pytest.mark.parametrize(
    ("cells", "hulls"),
    [
        ([cell(0, (0, 10)), cell(1, (5, 20))], [(0, 20)]),
        ([cell(0, (0, 10)), cell(1, (11, 20))], [(0, 10), (11, 20)]),
        ([cell(0, (0, 10)), cell(2, (5, 20))], [(0, 10), (5, 20)]),
        # two that one of the next cell joins
        ([cell(0, (0, 10), (20, 30)), cell(1, (8, 22))], [(0, 30)]),
        # one that two of the next cell go on from
        ([cell(0, (0, 30)), cell(1, (0, 3), (20, 25))], [(0, 30)]),
    ],
)
def test_what_touches_is_one(cells: list[Cell], hulls: list[tuple[int, int]]) -> None:
    assert sorted(c.offsets for c in clusters(cells)) == hulls
