"""The search for lines, by branch and bound: cells of slopes, each with the offsets that one of its lines may have.

A line is taken as ``offset + slope * (guest - centre)``, what a guest stamp is ahead of its host's. For all slopes of a
cell at once an event is somewhere within what the cell's width moves it by; an offset that puts it into a gap
nevertheless is no line's of the cell. Cells are halved until no event moves by more than a part of a gap. What is left
holds every line that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.proof.feasible import Interval, IntervalSet, TooManyError, narrow

MAX_CELLS = 512
"""More cells than this are not halved."""

MAX_INTERVALS = 1024
"""Nor are they where more intervals than this are left, and halving them has made them more."""

FEW = 16
"""So few intervals are looked at: do they touch?"""

FAR_EVENTS = 256
"""Events that a cell's width moves by more than a part of a gap: only long gaps speak of them, so few are asked."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Lines whose slope is within ``half`` of ``slope`` and whose offset, at the centre, is in ``offsets``."""

    slope: Fraction
    half: Fraction
    offsets: IntervalSet


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cells that touch: all their lines have an offset in ``offsets`` and a slope in ``slopes`` (closed)."""

    offsets: Interval
    slopes: tuple[Fraction, Fraction]


def search_cells(
    events: I64,
    centre: int,
    gaps: tuple[I64, I64],
    within: Interval,
    slopes: tuple[Fraction, Fraction],
    reach: int,
    thickness: int,
) -> list[Cell]:
    """The cells that may hold a line for all ``events`` i64[n], guest stamps: of one width, by slope.

    ``within``: the offsets to search, at guest stamp ``centre``; ``slopes``: the least and the greatest. ``gaps``:
    i64[k] begins and ends of the open intervals of host time in which no event can be; an event may lie ``thickness``
    units off its place. In the cells that are returned no event moves by more than ``reach``, or they all touch, or
    there are too many of them to halve.
    """
    away = events - centre
    order = np.argsort(np.abs(away), kind="stable")
    events, away = events[order], away[order]
    distance = np.abs(away)
    half = (slopes[1] - slopes[0]) / 2
    cells = [Cell((slopes[0] + slopes[1]) / 2, half, IntervalSet.of(*within))]
    before = 0
    while True:
        # a float will do: its error is far below a unit, and one is added
        slack = np.ceil(distance * float(half)).astype(np.int64) + thickness + 1
        near = int(np.searchsorted(slack, reach + thickness + 1, side="right"))
        far = np.arange(near, len(events))[:: max(1, (len(events) - near) // FAR_EVENTS)]
        left: list[Cell] = []
        for cell in cells:
            placed = events - np.rint(away * float(cell.slope)).astype(np.int64)
            offsets = cell.offsets
            for some in (slice(0, near), far):
                try:
                    offsets = narrow(offsets, placed[some], *gaps, slack[some])
                except TooManyError:
                    continue
            if len(offsets):
                left.append(Cell(cell.slope, half, offsets))
        count = sum(len(cell.offsets) for cell in left)
        many = 2 * len(left) > MAX_CELLS or (count > MAX_INTERVALS and 0 < before < count)
        before = count
        if near == len(events) or many or not left:
            return left
        if count <= FEW and len(clusters(left)) == 1:
            return left
        half /= 2
        cells = [Cell(c.slope + side * half, half, c.offsets) for c in left for side in (-1, 1)]


def clusters(cells: Sequence[Cell]) -> list[Cluster]:
    """What ``cells`` (of one width, in the order of their slopes) hang together in."""
    done: list[Cluster] = []
    reaching: list[Cluster] = []
    top: Fraction | None = None
    for cell in cells:
        low, high = cell.slope - cell.half, cell.slope + cell.half
        if low != top:
            done, reaching = done + reaching, []
        fresh: list[Cluster] = []
        for lo, hi in cell.offsets.intervals():
            touching = [c for c in (*reaching, *fresh) if c.offsets[0] <= hi and lo <= c.offsets[1]]
            reaching, fresh = ([c for c in some if c not in touching] for some in (reaching, fresh))
            lows, highs = zip((lo, hi), *(c.offsets for c in touching), strict=True)
            fresh.append(Cluster((min(lows), max(highs)), (min([low, *(c.slopes[0] for c in touching)]), high)))
        done, reaching, top = done + reaching, fresh, high
    return done + reaching
