"""The bounds of a clock that may be slewed at any time, about a line: each event bounds it around itself.

What an event says rests on which window it lies in. That is taken from the bounds that others have set, never from its
own: they start from one place where what is allowed was searched for a clock that may run anyhow, and go on from event
to event, both ways. An event that two windows may hold says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.feasible import Interval, IntervalSet, TooManyError, narrow
from counterpoint.proof.fit import Thread
from counterpoint.proof.windows import FOREVER

PLACES = 16
"""Places tried to begin at."""

AROUND = 256
"""Events about such a place that are asked."""

REACH = 8
"""How many times the usual gap, and the usual window, is searched on both sides of the line."""


@dataclass(frozen=True, slots=True)
class Cone:
    """The clock's distance from the line, by host time: i64[n] each, in the guest's units.

    ``when``: levelled host times of events that bound it, in order; there it is in [``low``, ``high``].
    """

    when: I64
    low: I64
    high: I64


@dataclass(frozen=True, slots=True)
class _Placed:
    """Events where the line puts them: the window each is in, and the edges of those beside it."""

    when: I64
    low: I64
    high: I64
    least: I64
    most: I64

    def of(self, rows: Bools) -> _Placed:
        return _Placed(*(column[rows] for column in (self.when, self.low, self.high, self.least, self.most)))


def cone(events: Sequence[tuple[I64, Thread]], spread: Fraction, thin: int, thick: int) -> Cone | None:
    """Bound a clock by the ``events`` of CPUs that have it: levelled host times i64[n], in any order, by a line.

    With each CPU's go the windows of its thread, levelled; the first CPU must have an event. ``spread``: how much
    faster or slower than the line the clock may run, at any time. An instant lies less than ``thin`` units before and
    ``thick`` after its levelled stamp. None: nothing bounds it.
    """
    start = _start(np.sort(events[0][0]), events[0][1], spread, thin + thick + 1)
    if start is None:
        return None
    at, first = start
    placed = _merged([_placed(np.sort(when), thread, spread, thin, thick) for when, thread in events])
    while len(placed.when):
        sure = _sure(placed, at, first, spread)
        if sure.all():
            break
        placed = placed.of(sure)
    anchor = np.searchsorted(placed.when, at)
    when = np.insert(placed.when, anchor, at)
    low, high = np.insert(placed.low, anchor, first[0]), np.insert(placed.high, anchor, first[1])
    step = _steps(when, spread)
    above = np.minimum(_least(high, step), _least(high[::-1], -step[::-1])[::-1])
    under = -np.minimum(_least(-low, step), _least(-low[::-1], -step[::-1])[::-1])
    # what is empty rests on something that is not so
    return Cone(when, under, above) if (under <= above).all() else None


def _merged(parts: Sequence[_Placed]) -> _Placed:
    order = np.argsort(np.concatenate([p.when for p in parts]), kind="stable")
    names = ("when", "low", "high", "least", "most")
    return _Placed(*(np.concatenate([getattr(p, name) for p in parts])[order] for name in names))


def _placed(when: I64, thread: Thread, spread: Fraction, thin: int, thick: int) -> _Placed:
    """What each event says of the clock, if it lies in the window that the line puts it in."""
    lo, hi = thread.lo, thread.hi
    span = np.searchsorted(lo, when, side="right") - 1
    keep = (when <= hi[span]) & (lo[span] > -FOREVER) & (hi[span] < FOREVER)
    when, span = when[keep], span[keep]
    begin, end = lo[span], hi[span]
    # the instant is anywhere in the window: the clock moves meanwhile
    length = np.ceil((end - begin) * float(spread)).astype(np.int64) + 1
    before = np.where(span > 0, hi[np.maximum(span - 1, 0)], -FOREVER)
    after = np.where(span + 1 < len(lo), lo[np.minimum(span + 1, len(lo) - 1)], FOREVER)
    return _Placed(
        when, when - end - thick - length, when - begin + 1 + thin + length, when - after + thin, when - before - thick
    )


def _sure(placed: _Placed, at: int, first: Interval, spread: Fraction) -> Bools:
    """Which events can be in no other window, by what those between the beginning and each of them say."""
    step = _steps(np.append(placed.when, at), spread)
    step, zero = step[:-1], int(step[-1])
    later = placed.when >= at
    out = np.zeros(len(placed.when), np.bool_)
    for side, sign in ((later, 1), (~later, -1)):
        mine = np.flatnonzero(side)[::sign]
        away = np.concatenate([[0], sign * (step[mine] - zero)])
        high = _least(np.concatenate([[first[1]], placed.high[mine]]), away)
        low = -_least(np.concatenate([[-first[0]], -placed.low[mine]]), away)
        # without its own word, and as far as the clock may have moved since the event before
        moved = np.diff(away) + _ROUNDING
        out[mine] = (high[:-1] + moved < placed.most[mine]) & (low[:-1] - moved > placed.least[mine])
    return out


_ROUNDING = 2


def _steps(when: I64, spread: Fraction) -> I64:
    """How far the clock may move from the first of ``when`` on, i64[n], to less than a unit."""
    # a float will do: a recording of days has 2**48 units, which ``spread`` makes small
    out: I64 = np.floor((when - when[0]) * float(spread)).astype(np.int64)
    return out


def _least(limit: I64, step: I64) -> I64:
    """The least that any of ``limit`` up to each makes of it, as it opens by ``step``."""
    opened: I64 = np.minimum.accumulate(limit - step) + step
    # its own word is exact
    return np.minimum(opened + _ROUNDING, limit)


def _start(when: I64, thread: Thread, spread: Fraction, thickness: int) -> tuple[int, Interval] | None:
    """A place, and all that the clock may be there: where the events about one allow least."""
    gaps, windows = thread.gap_hi - thread.gap_lo, (thread.hi - thread.lo)[1:-1]
    usual = max((int(np.median(part)) for part in (gaps, windows) if len(part)), default=0)
    reach = REACH * usual + thickness
    best: tuple[int, Interval] | None = None
    for place in np.unique(np.linspace(0, len(when) - 1, PLACES + 2).astype(np.int64)[1:-1]).tolist():
        at = int(when[place])
        near = when[max(0, place - AROUND // 2) : place + AROUND // 2]
        slack = np.ceil(np.abs(near - at) * float(spread)).astype(np.int64) + thickness + 1
        try:
            found = narrow(IntervalSet.of(-reach, reach), near, thread.gap_lo, thread.gap_hi, slack)
        except TooManyError:
            continue
        if len(found):
            here = int(found.lo[0]), int(found.hi[-1])
            if best is None or here[1] - here[0] < best[1][1] - best[1][0]:
                best = at, here
    return best
