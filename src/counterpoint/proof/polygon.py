"""The set of lines that pass between given points: a convex polygon in (intercept, slope), in exact integers.

A line is ``y = a + b * x``. A point it may not pass above (below) is a half-plane of (a, b); what many points leave is
a polygon. Its vertices are kept as the crossings of two of the given points' own half-planes, so that the integers stay
small; nothing is rounded until a bound is asked for, and then outward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

HalfPlane = tuple[int, int, int]
"""(p, q, r): p * a + q * b <= r."""

_Vertex = tuple[int, int, int]
"""(A, B, D): a = A / D, b = B / D, D > 0."""


def below(x: int, y: int) -> HalfPlane:
    """The lines that do not pass above the point (x, y)."""
    return 1, x, y


def above(x: int, y: int) -> HalfPlane:
    """The lines that do not pass below the point (x, y)."""
    return -1, -x, -y


@dataclass(frozen=True, slots=True)
class Polygon:
    """A non-empty convex set of lines: ``corners[i]`` is where edge ``edges[i]`` begins, in cyclic order."""

    corners: tuple[_Vertex, ...]
    edges: tuple[HalfPlane, ...]

    @classmethod
    def box(cls, x: int, values: tuple[int, int], slopes: tuple[Fraction, Fraction]) -> Polygon:
        """The lines with a value in ``values`` at ``x`` and a slope in ``slopes`` (closed intervals)."""
        lo, hi = slopes
        edges = (
            below(x, values[1]),
            (0, hi.denominator, hi.numerator),
            above(x, values[0]),
            (0, -lo.denominator, -lo.numerator),
        )
        return cls(tuple(_crossing(edges[i - 1], edges[i]) for i in range(4)), edges)

    def clip(self, planes: Iterable[HalfPlane]) -> Polygon | None:
        """What lies in all of ``planes`` too; None where nothing does."""
        out = self
        for plane in planes:
            cut = out._cut(plane)
            if cut is None:
                return None
            out = cut
        return out

    def sloping(self, lo: Fraction, hi: Fraction) -> Polygon | None:
        """Its lines with a slope from ``lo`` to ``hi``; None where there is none."""
        return self.clip([(0, hi.denominator, hi.numerator), (0, -lo.denominator, -lo.numerator)])

    def meets(self, other: Polygon) -> Polygon | None:
        """The lines that both hold; None where there is none."""
        return self.clip(other.edges)

    def holds(self, other: Polygon) -> bool:
        """Whether all of the other's lines are among its own."""
        return all(p * a + q * b <= r * d for a, b, d in other.corners for p, q, r in self.edges)

    def moved(self, by: int) -> Polygon:
        """The same lines over ``x - by`` instead of x."""
        corners = tuple((a + b * by, b, d) for a, b, d in self.corners)
        return Polygon(corners, tuple((p, q - p * by, r) for p, q, r in self.edges))

    def raised(self, by: int) -> Polygon:
        """The lines ``by`` above these."""
        corners = tuple((a + by * d, b, d) for a, b, d in self.corners)
        return Polygon(corners, tuple((p, q, r + p * by) for p, q, r in self.edges))

    def _cut(self, plane: HalfPlane) -> Polygon | None:
        p, q, r = plane
        side = [p * a + q * b - r * d for a, b, d in self.corners]
        if max(side) <= 0:
            return self
        if min(side) > 0:
            return None
        corners: list[_Vertex] = []
        edges: list[HalfPlane] = []
        for index, here in enumerate(side):
            following = side[(index + 1) % len(side)]
            edge = self.edges[index]
            if here <= 0:
                corners.append(self.corners[index])
                edges.append(edge if here < 0 or following <= 0 else plane)
            if here < 0 < following:
                corners.append(_crossing(edge, plane))
                edges.append(plane)
            elif following < 0 < here:
                corners.append(_crossing(edge, plane))
                edges.append(edge)
        return Polygon(tuple(corners), tuple(edges))

    def values(self, x: int) -> tuple[int, int]:
        """The least (rounded down) and the greatest (rounded up) value of its lines at ``x``."""
        return (
            min((a + b * x) // d for a, b, d in self.corners),
            max(-((-a - b * x) // d) for a, b, d in self.corners),
        )

    @property
    def slopes(self) -> tuple[Fraction, Fraction]:
        """The least and the greatest slope."""
        all_slopes = [Fraction(b, d) for _, b, d in self.corners]
        return min(all_slopes), max(all_slopes)

    def intercepts(self, slope: Fraction) -> tuple[Fraction, Fraction] | None:
        """The least and the greatest intercept of its lines of this slope; None where it has none."""
        lo, hi = self.slopes
        if not lo <= slope <= hi:
            return None
        lows = [(r - q * slope) / p for p, q, r in self.edges if p < 0]
        highs = [(r - q * slope) / p for p, q, r in self.edges if p > 0]
        # a polygon that is a point or a stretch may lack an edge on one side
        low, high = max(lows, default=None), min(highs, default=None)
        if low is None or high is None:
            some = [Fraction(a, d) for a, b, d in self.corners if Fraction(b, d) == slope]
            return (min(some), max(some)) if some else None
        return low, high


def _crossing(one: HalfPlane, other: HalfPlane) -> _Vertex:
    p1, q1, r1 = one
    p2, q2, r2 = other
    det = p1 * q2 - p2 * q1
    a, b = r1 * q2 - r2 * q1, p1 * r2 - p2 * r1
    return (a, b, det) if det > 0 else (-a, -b, -det)
