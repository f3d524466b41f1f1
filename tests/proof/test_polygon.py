"""The polygon of lines against a slow oracle: candidate lines through pairs of points, in fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from counterpoint.proof.polygon import Polygon, above, below

SMALL = st.integers(-60, 60)
POINTS = st.lists(st.tuples(SMALL, SMALL), max_size=6)
SLOPES = (Fraction(-3), Fraction(5, 2))
VALUES = (-90, 90)


def start() -> Polygon:
    return Polygon.box(4, VALUES, SLOPES)


def feasible(a, b, over, under):
    return (
        VALUES[0] <= a + 4 * b <= VALUES[1]
        and SLOPES[0] <= b <= SLOPES[1]
        and all(a + b * x <= y for x, y in over)
        and all(a + b * x >= y for x, y in under)
    )


def corners(over, under):
    """All feasible crossings of two limits: the corners of the true polygon, in fractions."""
    limits = [(1, x, y) for x, y in [*over, *under, (4, VALUES[0]), (4, VALUES[1])]]
    limits += [(0, 1, s) for s in SLOPES]
    out = set()
    for (p1, q1, r1), (p2, q2, r2) in combinations(limits, 2):
        det = Fraction(p1 * q2 - p2 * q1)
        if det:
            a, b = (r1 * q2 - r2 * q1) / det, (p1 * r2 - p2 * r1) / det
            if feasible(a, b, over, under):
                out.add((a, b))
    return out


@given(POINTS, POINTS, SMALL)
def test_it_is_what_the_points_leave(over, under, at):
    found = start().clip([*(below(x, y) for x, y in over), *(above(x, y) for x, y in under)])
    true = corners(over, under)

    assert (found is None) == (not true)
    if found is None:
        return
    assert {(Fraction(a, d), Fraction(b, d)) for a, b, d in found.corners} <= true
    values = [a + b * at for a, b in true]
    assert found.values(at) == (min(values).__floor__(), max(values).__ceil__())
    slopes = [b for _, b in true]
    assert found.slopes == (min(slopes), max(slopes))


@given(POINTS, POINTS, st.fractions(-4, 4, max_denominator=50))
def test_the_intercepts_of_a_slope(over, under, slope):
    found = start().clip([*(below(x, y) for x, y in over), *(above(x, y) for x, y in under)])
    if found is None:
        return
    inside = found.intercepts(slope)

    lo, hi = found.slopes
    assert (inside is not None) == (lo <= slope <= hi)
    if inside is not None:
        low = max([Fraction(VALUES[0]) - 4 * slope, *(y - slope * x for x, y in under)])
        high = min([Fraction(VALUES[1]) - 4 * slope, *(y - slope * x for x, y in over)])
        assert inside == (low, high)


@given(POINTS, POINTS)
def test_the_order_of_the_points_does_not_matter(over, under):
    planes = [*(below(x, y) for x, y in over), *(above(x, y) for x, y in under)]
    one, other = start().clip(planes), start().clip(reversed(planes))

    assert (one is None) == (other is None)
    if one and other:
        assert [one.values(x) for x in (-9, 0, 7)] == [other.values(x) for x in (-9, 0, 7)]
