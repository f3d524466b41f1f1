"""Clocks that do not run at one rate: the lines that keep every guest event inside the run windows.

``guest = a + b * host`` with both unknown. A guest event in a run window says that the line passes below one point (the
window's beginning, the event) and above another (its end, the event); the lines that do so for all events are a
polygon, found in exact integers. Where no line holds all events there are several *pieces*, each with its own.

Host time is *levelled* first: scaled by a rate near the true one, so that what is sought is nearly constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.feasible import Interval
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM
from counterpoint.proof.polygon import Polygon

FRAC_BITS = 48
"""Fixed point of a fitted rate: 4e-15, below a unit over three days of nanoseconds."""

RATE_ERROR = Fraction(1, 1000)
"""How far the rates of two clocks may be from what is known of them: NTP slews each by at most 500 ppm."""

SLACK = 2
"""What float arithmetic on a line's values may be off: see ``bounds``."""


class Lines(NamedTuple):
    """Lines over levelled host time relative to ``origin``."""

    origin: int
    polygon: Polygon

    def ahead(self, guest: int) -> Interval:
        """How far ahead of its levelled host time a guest stamp is, by its lines: rounded outward."""
        lines = by_guest(self.polygon)
        at = guest - self.origin
        return min((a + b * at) // d for a, b, d in lines), max(-((-a - b * at) // d) for a, b, d in lines)


@dataclass(frozen=True, slots=True)
class Piece:
    """Events ``first`` to ``last`` (exclusive) that one line holds, and the lines that do.

    ``polygon`` is over levelled host time relative to ``origin``: the lines' values are ``guest - levelled host``,
    slopes are relative to ``scale``. The events from ``sure_first`` to ``sure_last`` made it. ``needed``: the bits of
    evidence that finding it asks for; ``is_unique``: no other line fits its events about as well, such as ``rivals``.
    ``joint``: those of the lines that the guest's other CPUs allow as well, where one clock is behind them.
    """

    first: int
    last: int
    sure_first: int
    sure_last: int
    scale: Scale
    origin: int
    polygon: Polygon
    needed: int = EVIDENCE_FOR_CLAIM
    is_unique: bool = True
    rivals: tuple[Piece, ...] = ()
    joint: Polygon | None = None

    @property
    def lines(self) -> Lines:
        """Its lines, without the level."""
        return Lines(self.origin, self.polygon)

    @property
    def best(self) -> Lines:
        """What is known best: the joint lines, where there are any."""
        return Lines(self.origin, self.joint or self.polygon)

    def rates(self) -> tuple[Fraction, Fraction]:
        """The least and the greatest rate, in guest units per host unit."""
        lo, hi = self.polygon.slopes
        rate = as_fraction(self.scale)
        return rate * (1 + lo), rate * (1 + hi)


def as_fraction(scale: Scale) -> Fraction:
    """Guest units per host unit."""
    return Fraction(scale.ratio, 1 << scale.frac_bits)


def scale_of(rate: Fraction) -> Scale:
    """The scale nearest to ``rate`` (guest units per host unit)."""
    return Scale(max(1, round(rate * (1 << FRAC_BITS))), FRAC_BITS)


_ALine = tuple[int, int, int]
"""(A, B, D): the value A / D + B / D * x, with D > 0."""


def by_guest(polygon: Polygon) -> list[_ALine]:
    """The corners' lines as functions of guest time relative to the origin, which is host time and value."""
    return [(a, b, d + b) for a, b, d in polygon.corners]


def bounds(lines: Iterable[_ALine], x: I64) -> tuple[I64, I64]:
    """The least and the greatest value of the ``lines`` at ``x`` i64[n], rounded outward.

    A float will do for a slope's part of it: with slopes below 1/8, and x below 2**53, its error is below a unit.
    """
    lows, highs = [], []
    for a, b, d in lines:
        whole, rest = divmod(a, d)
        value = np.floor(x * (b / d)).astype(np.int64) + np.int64(whole)
        lows.append(value - SLACK)
        highs.append(value + (SLACK + (rest > 0)))
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def edges_of(scale: Scale, rough: int) -> tuple[int, int]:
    """How far an instant may lie before and after its stamp at ``scale``, in its units: (thin, thick)."""
    if scale.is_identity:
        return rough, 1 + rough
    return 1 + rough, -(-scale.ratio >> scale.frac_bits) + 1 + rough


class Line(NamedTuple):
    """One line: ``guest = scaled host + offset``, both relative to their bases."""

    scale: Scale
    offset: int


def in_use(lines: Lines, level: Scale, slope: Fraction | None = None) -> Line:
    """The line to use: of rate 1 where that is among them, else the middle of their rates; the middle offset.

    ``level``: the scale of the host time that they are over. ``slope``: another slope of theirs.
    """
    rate = as_fraction(level)
    low_slope, high_slope = lines.polygon.slopes
    if slope is None:
        lo, hi = rate * (1 + low_slope), rate * (1 + high_slope)
        scale = Scale() if lo <= 1 <= hi else scale_of((lo + hi) / 2)
    else:
        scale = scale_of(rate * (1 + slope))
    slope = as_fraction(scale) / rate - 1
    found = lines.polygon.intercepts(min(max(slope, low_slope), high_slope))
    low, high = found if found is not None else (Fraction(0), Fraction(0))
    # guest = levelled + value; levelled = host * rate, so at the origin:
    host = Fraction(lines.origin) / rate
    offset = lines.origin + (low + high) / 2 - host * as_fraction(scale)
    # rounded down, so that a line that two CPUs share stays one, whatever they count from
    return Line(scale, offset.__floor__())


def value_bounds(lines: Lines, level: Scale, line: Line, base: int, host: I64, rough: int) -> tuple[I64, I64]:
    """How far a true guest stamp may be from the line's at the host instants ``base + host`` i64[n]: (lo, hi) i64[n].

    The truth is one of ``lines``, over host time at ``level``. Rounded outward, with room for the instant being
    anywhere in the host's unit, for the stamps being rounded down, and ``rough``.
    """
    rate = as_fraction(level)
    used = line.scale.apply_signed_relative(host, base) + line.offset
    lows, highs = [], []
    for at, mapped in zip(host.tolist(), used.tolist(), strict=True):
        ends = []
        for x in (at * rate, (at + 1) * rate):
            ends += [Fraction(a, d) + Fraction(b, d) * (x - lines.origin) + x for a, b, d in lines.polygon.corners]
        lows.append(min(ends).__floor__() - 1 - rough - mapped)
        highs.append(max(ends).__ceil__() + rough - mapped)
    return np.array(lows, np.int64), np.array(highs, np.int64)


def sharing_rates(found: list[Piece]) -> list[Piece]:
    """The pieces, all of one rate, with the lines of the rates that all allow; rivals of other rates are none."""
    rates = [p.rates() for p in found if p.is_unique]
    lo, hi = max((r[0] for r in rates), default=Fraction(0)), min((r[1] for r in rates), default=Fraction(0))
    if hi <= 0 or hi < lo:
        return found
    out = []
    for piece in found:
        rate = as_fraction(piece.scale)
        left = []
        for one in (piece, *piece.rivals):
            polygon = one.polygon.sloping(lo / rate - 1, hi / rate - 1)
            if polygon is not None:
                left.append(replace(one, polygon=polygon, needed=piece.needed, rivals=()))
        # it was told from chance when the others were counted as rivals
        alone = len(left) == 1 and (piece.is_unique or bool(piece.rivals))
        out.append(replace(left[0], is_unique=alone, rivals=tuple(left[1:])) if left else piece)
    return out
