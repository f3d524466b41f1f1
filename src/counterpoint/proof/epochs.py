"""Where one offset does not fit all events: the epochs, found from the events alone.

A stretch of events with one offset is found in a seed (a chunk of the events that fits exactly one interval) and
extended both ways as far as some offset still fits. Where two stretches overlap, the change lies somewhere in the
overlap: only events outside it may bound either offset, since an event of one epoch can fall into a window of the
other by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from counterpoint.proof.feasible import Interval, IntervalSet, narrow
from counterpoint.proof.fit import EVIDENCE_PER_TRIAL_BIT, Fit, Thread, fit
from counterpoint.traces.ring import I64

MIN_CHUNK = 32
"""The shortest stretch that is searched as a seed."""

MAX_DEPTH = 5
"""Halvings tried before the first seed is found."""

MIN_BETWEEN = 12
"""The shortest stretch that is searched between two known ones."""

MAX_ROUNDS = 4
"""How often the gaps between the stretches found so far are searched."""

EVIDENCE_BETWEEN = 3
"""Bits of evidence per bit of search between two known stretches: something did run there."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events ``first`` to ``last`` (exclusive) of a track, and the offsets that its sure events allow.

    The events from ``sure_first`` to ``sure_last`` belong to it beyond doubt; ``fit`` is over those alone.
    """

    first: int
    last: int
    sure_first: int
    sure_last: int
    fit: Fit

    @property
    def middle(self) -> int:
        """The middle of its best interval."""
        best = self.fit.candidates[0]
        return (best.lo + best.hi) // 2


class _Span(NamedTuple):
    """Events first..last that one offset within ``within`` (None: any) fits."""

    first: int
    last: int
    within: Interval | None


def find_stretches(guest: I64, thread: Thread) -> list[Stretch]:
    """Find the stretches of ``guest`` i64[n] (a guest CPU's stamps in recorded order), in order.

    One stretch over all events where one offset fits (or too little is there to tell); none where nothing fits
    anywhere. Events between two stretches fit neither.
    """
    count = len(guest)
    whole = fit(guest, thread)
    if whole.candidates:
        return [Stretch(0, count, 0, count, whole)]
    spans = _seeds(guest, thread, 0, count)
    found = _settle(guest, thread, spans)
    for _ in range(MAX_ROUNDS):
        fresh = []
        for left, right in zip(found, found[1:], strict=False):
            within = _between(guest, left, right)
            if within is not None:
                fresh += _seeds(guest, thread, left.last, right.first, within)
        if not fresh:
            break
        spans += fresh
        found = _settle(guest, thread, spans)
    return found


def _between(guest: I64, left: Stretch, right: Stretch) -> Interval | None:
    """The offsets that keep the events between two stretches between them in host time, too."""
    events = guest[left.last : right.first]
    if len(events) < MIN_BETWEEN:
        return None
    begin = int(guest[left.sure_last - 1]) - left.fit.candidates[0].hi
    end = int(guest[right.sure_first]) - right.fit.candidates[0].lo
    low, high = int(events.max()) - end, int(events.min()) - begin
    # stamps that step among them need several offsets: each keeps some of the events between
    return (low, high) if low <= high else (int(events.min()) - end, int(events.max()) - begin)


def _seeds(guest: I64, thread: Thread, begin: int, end: int, within: Interval | None = None) -> list[_Span]:
    """Stretches of events begin..end, each grown from a chunk that fits exactly one interval."""
    found: list[_Span] = []
    if within is None:
        per_trial, smallest, size = EVIDENCE_PER_TRIAL_BIT, MIN_CHUNK, (end - begin) // 2
    else:
        per_trial, smallest, size = EVIDENCE_BETWEEN, MIN_BETWEEN, end - begin
    depth = 0
    while size >= smallest and (found or within or depth < MAX_DEPTH):
        for first in range(begin, end - size + 1, size):
            last = first + size
            if any(first < b and a < last for a, b, _ in found):
                continue
            seed = fit(guest[first:last], thread, within, per_trial)
            if seed.is_unique:
                found.append(_Span(*_extend(guest, thread, seed.interval_set, first, last), within))
        size, depth = size // 2, depth + 1
    return found


def _extend(guest: I64, thread: Thread, offsets: IntervalSet, first: int, last: int) -> tuple[int, int]:
    """Extend a seed both ways as far as one of its offsets fits."""
    return first - _reach(offsets, guest[:first][::-1], thread), last + _reach(offsets, guest[last:], thread)


def _reach(offsets: IntervalSet, events: I64, thread: Thread) -> int:
    """How many of ``events``, from the first on, leave one of ``offsets``."""
    done, step = 0, 64
    while done < len(events):
        step = min(step, len(events) - done)
        left = narrow(offsets, events[done : done + step], thread.gap_lo, thread.gap_hi)
        if len(left):
            offsets, done, step = left, done + step, step * 2
        elif step == 1:
            break
        else:
            step = max(1, step // 4)
    return done


def _settle(guest: I64, thread: Thread, found: list[_Span]) -> list[Stretch]:
    """Order the stretches, keep from each the part no neighbour reaches, and fit that part afresh."""
    spans = sorted(found, key=lambda s: s[:2])
    # a stretch within another's reach is the same offset found twice
    spans = [
        span
        for index, span in enumerate(spans)
        if not any(
            other.first <= span.first and span.last <= other.last and (other[:2] != span[:2] or at < index)
            for at, other in enumerate(spans)
            if at != index
        )
    ]
    out: list[Stretch] = []
    for index, (first, last, within) in enumerate(spans):
        sure_first = max(first, spans[index - 1].last) if index else first
        sure_last = min(last, spans[index + 1].first) if index + 1 < len(spans) else last
        if sure_last <= sure_first:
            continue
        per_trial = EVIDENCE_PER_TRIAL_BIT if within is None else EVIDENCE_BETWEEN
        again = fit(guest[sure_first:sure_last], thread, within, per_trial)
        if again.candidates:
            out.append(Stretch(first, last, sure_first, sure_last, again))
    return out


def change_points(guest: I64, stretches: list[Stretch]) -> list[int]:
    """For each pair of neighbours, the position of the first event of the later one.

    Within the overlap the largest jump of the stamps is taken: a change comes with a stop or a step.
    """
    points = []
    for left, right in zip(stretches, stretches[1:], strict=False):
        begin, end = max(right.first, left.sure_last, 1), left.last
        if begin >= end:
            points.append(right.first)
            continue
        jumps = np.abs(np.diff(guest[begin - 1 : end + 1]))
        points.append(begin + int(jumps.argmax()))
    return points
