"""Where one offset does not fit all events: the epochs, found from the events alone.

A stretch of events with one offset is found in a seed (a chunk of the events that fits exactly one interval) and
extended both ways as far as some offset still fits. Where two stretches overlap, the change lies somewhere in the
overlap: only events outside it may bound either offset, since an event of one epoch can fall into a window of the
other by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.feasible import Interval, IntervalSet, narrow
from counterpoint.proof.fit import (
    EVIDENCE_FOR_CLAIM,
    EVIDENCE_PER_TRIAL_BIT,
    Fit,
    Thread,
    check,
    fit,
    overlap_range,
)

MIN_CHUNK = 32
"""The shortest stretch that is searched as a seed."""

MAX_DEPTH = 5
"""Halvings tried before the first seed is found."""

MAX_END_DEPTH = 3
"""Halvings tried before the first and after the last stretch: most recordings do not end together."""

MIN_BETWEEN = 12
"""The shortest stretch that is searched between two known ones."""

MAX_ROUNDS = 4
"""How often the gaps between the stretches found so far are searched."""

EVIDENCE_BETWEEN = 3
"""Bits of evidence per bit of search between two known stretches: something did run there."""

EVIDENCE_OF_ABSENCE = 80
"""Bits of evidence that windows without events give before an epoch is doubted."""

UNLIKE = 4
"""And they must be this many times as many in a row as elsewhere: guests are silent at times."""


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


class _Limits(NamedTuple):
    """What is known of a hole between stretches: host times it begins and ends at (None: open on that side)."""

    begin: int | None = None
    end: int | None = None

    def offsets(self, events: I64, thread: Thread) -> Interval:
        """The offsets (low, high) to search for ``events`` of the hole."""
        low, high = overlap_range(events, thread)
        if self.begin is not None:
            high = min(high, int(events.min()) - self.begin)
        if self.end is not None:
            low = max(low, int(events.max()) - self.end)
        return low, high


def find_stretches(
    guest: I64, thread: Thread, start: Fit | None = None, survivors: IntervalSet | None = None
) -> list[Stretch]:
    """Find the stretches of ``guest`` i64[n] (a guest CPU's stamps in recorded order), in order.

    One stretch over all events where one offset fits (or too little is there to tell); none where nothing fits
    anywhere. Events between two stretches fit neither. ``start``: a fit over all events that is known already;
    ``survivors``: the offsets that some of the events left of all (see ``fit``).
    """
    count = len(guest)
    whole = fit(guest, thread, survivors=survivors) if start is None else start
    alone = [Stretch(0, count, 0, count, whole)] if whole.candidates else []
    has_evidence = bool(whole.candidates) and not whole.weak
    if has_evidence:
        # an offset that changed by more than the recording's length puts the events after it where nothing was seen
        middle = (whole.candidates[0].lo + whole.candidates[0].hi) // 2
        spans = _seen_pieces(guest, thread, middle, 0, count)
        if [span[:2] for span in spans] == [(0, count)]:
            return alone
    elif whole.candidates and count < 2 * MIN_CHUNK:
        return alone
    else:
        spans = _seeds(guest, thread, 0, count)
        if not spans:
            return alone
    known = len(spans)
    if has_evidence:
        found = [Stretch(first, last, first, last, whole) for first, last, _ in spans]
    else:
        found = _settle(guest, thread, spans)
    searched: set[tuple[int, int]] = set()
    for _ in range(MAX_ROUNDS):
        fresh = _search_holes(guest, thread, found, searched)
        if not fresh:
            break
        spans += fresh
        found = _settle(guest, thread, spans)
    if has_evidence and len(spans) == known:
        return alone
    return _grow(guest, thread, _join(guest, thread, found)) or alone


def _search_holes(guest: I64, thread: Thread, found: list[Stretch], searched: set[tuple[int, int]]) -> list[_Span]:
    """Search what the stretches leave: before the first, between any two, after the last; each hole once."""
    fresh: list[_Span] = []
    for left, right in zip([None, *found], [*found, None], strict=True):
        begin, end = left.last if left else 0, right.first if right else len(guest)
        if (begin, end) in searched or end <= begin:
            continue
        searched.add((begin, end))
        if left and right:
            within = _between(guest, left, right)
            if within is not None:
                fresh += _seeds(guest, thread, begin, end, within)
        elif end - begin >= MIN_CHUNK and left:
            limits = _Limits(begin=int(guest[left.sure_last - 1]) - left.fit.candidates[0].hi)
            fresh += _seeds(guest, thread, begin, end, None, limits)
        elif end - begin >= MIN_CHUNK and right:
            limits = _Limits(end=int(guest[right.sure_first]) - right.fit.candidates[0].lo)
            fresh += _seeds(guest, thread, begin, end, None, limits)
    return fresh


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


def _seeds(
    guest: I64,
    thread: Thread,
    begin: int,
    end: int,
    within: Interval | None = None,
    limits: _Limits | None = None,
) -> list[_Span]:
    """Stretches of events begin..end, each grown from a chunk that fits exactly one interval."""
    found: list[_Span] = []
    if within is None:
        per_trial, smallest = EVIDENCE_PER_TRIAL_BIT, MIN_CHUNK
        size, most = ((end - begin) // 2, MAX_DEPTH) if limits is None else (end - begin, MAX_END_DEPTH)
    else:
        per_trial, smallest, size, most = EVIDENCE_BETWEEN, MIN_BETWEEN, end - begin, 64
    depth = 0
    reached: list[tuple[int, int]] = []
    while size >= smallest and (found or depth < most):
        for first in range(begin, end - size + 1, size):
            last = first + size
            if any(first < b and a < last for a, b in reached):
                continue
            events = guest[first:last]
            searched = (limits or _Limits()).offsets(events, thread) if within is None else within
            seed = fit(events, thread, searched, per_trial, is_bounded=within is not None)
            if seed.is_unique:
                reach, pieces = _extend(guest, thread, seed.interval_set, first, last)
                reached.append(reach)
                found += [_Span(a, b, within) for a, b, _ in pieces]
        size, depth = size // 2, depth + 1
    return found


def _extend(
    guest: I64, thread: Thread, offsets: IntervalSet, first: int, last: int
) -> tuple[tuple[int, int], list[_Span]]:
    """Extend a seed both ways as far as one of its offsets fits; also what of that the host saw."""
    back, _ = _reach(offsets, guest[:first][::-1], thread)
    ahead, left = _reach(offsets, guest[last:], thread)
    offset = (int(left.lo[0]) + int(left.hi[0])) // 2
    reach = first - back, last + ahead
    return reach, _seen_pieces(guest, thread, offset, *reach)


def _seen_pieces(guest: I64, thread: Thread, offset: int, first: int, last: int) -> list[_Span]:
    """Events first..last without the runs that ``offset`` puts before the first or after the last kvm event.

    Runs of fewer than MIN_BETWEEN events stay; so do the others where only a few events are beside them.
    """
    edges = _runs(_out_of_sight(guest[first:last] - offset, thread)) + first
    begins, ends = [first, *edges[:, 1].tolist()], [*edges[:, 0].tolist(), last]
    return [
        _Span(a, b, None)
        for a, b in zip(begins, ends, strict=True)
        if b > a and (b - a == last - first or check(guest[a:b], offset, thread).evidence >= EVIDENCE_FOR_CLAIM)
    ]


def _out_of_sight(host: I64, thread: Thread) -> Bools:
    """Which host times lie before the thread's first or after its last kvm event."""
    return (host < thread.windows.first) | (host > thread.windows.last)


def _runs(unseen: Bools) -> I64:
    """The runs (first, last), i64[k, 2], of at least MIN_BETWEEN events that are all ``unseen``."""
    marked = np.r_[False, unseen, False]
    edges = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2)
    return edges[edges[:, 1] - edges[:, 0] >= MIN_BETWEEN]


def unexplained(guest: I64, thread: Thread, offset: int, first: int, last: int) -> list[tuple[int, int]]:
    """Runs (first, last) of events that ``offset`` puts outside the host's view although nothing speaks for it.

    The counter's own order forbids it (they were recorded after others, and stepped back), or the vCPU ran on in
    many windows which these events would leave without a single one.
    """
    windows = thread.windows
    host = guest[first:last] - offset
    unseen = _out_of_sight(host, thread)
    edges = _runs(unseen)
    if not len(edges) or unseen.all():
        return []
    lo, hi = windows.lo[windows.is_run], windows.hi[windows.is_run]
    seen = np.sort(host[~unseen])
    hits = np.searchsorted(seen, hi, side="right") > np.searchsorted(seen, lo, side="left")
    busy = (hi >= seen[0]) & (lo <= seen[-1])
    rate = (int(hits[busy].sum()) + 1) / (int(busy.sum()) + 2)
    out = []
    for a, b in edges.tolist():
        early = int(host[a]) < windows.first
        if a > 0 if early else b < len(host):
            doubt = True
        elif early:
            # as many events as are out of sight may be in it by chance
            near = lo < host[min(2 * b, len(host)) - 1]
            doubt = b < len(host) and _is_silent(hits[lo <= seen[-1]], near[lo <= seen[-1]], rate)
        else:
            near = hi > host[max(2 * a - b, 0)]
            doubt = a > 0 and _is_silent(hits[hi >= seen[0]], near[hi >= seen[0]], rate)
        if doubt:
            out.append((first + a, first + b))
    return out


def _is_silent(hits: Bools, near: Bools, rate: float) -> bool:
    """Whether a row of ``near`` windows without an event is too long for chance, and unlike any other row.

    ``hits`` bool[n]: which windows have events; ``rate``: how many of them usually do.
    """
    edges = np.flatnonzero(np.r_[True, hits, True])
    length = np.diff(edges) - 1
    middle = np.minimum((edges[1:] + edges[:-1]) // 2, len(hits) - 1)
    longest = int(np.where(near[middle], length, 0).argmax()) if len(hits) else 0
    others = int(np.delete(length, longest).max(initial=1))
    bits = -int(length[longest]) * math.log2(1 - rate)
    return bool(
        len(hits) and near[middle[longest]] and bits > EVIDENCE_OF_ABSENCE and length[longest] > UNLIKE * others
    )


def _reach(offsets: IntervalSet, events: I64, thread: Thread) -> tuple[int, IntervalSet]:
    """How many of ``events``, from the first on, leave one of ``offsets``; and which they leave."""
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
    return done, offsets


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


def _join(guest: I64, thread: Thread, found: list[Stretch]) -> list[Stretch]:
    """Join neighbours that one offset explains, with all that lies between them."""
    out = found[:1]
    for right in found[1:]:
        left = out[-1]
        if left.fit.is_unique and right.fit.is_unique:
            events = guest[left.sure_first : right.sure_last]
            again = fit(events, thread, _hull(left.fit))
            if again.is_unique:
                best = again.candidates[0]
                own = check(guest[right.sure_first : right.sure_last], (best.lo + best.hi) // 2, thread)
                if 2 * own.inside >= right.fit.candidates[0].inside:
                    out[-1] = Stretch(left.first, right.last, left.sure_first, right.sure_last, again)
                    continue
        out.append(right)
    return out


def _hull(found: Fit) -> Interval:
    return min(c.lo for c in found.candidates), max(c.hi for c in found.candidates)


def _grow(guest: I64, thread: Thread, found: list[Stretch]) -> list[Stretch]:
    """Let stretches reach over the events beside them that no other explains, as far as their offsets allow."""
    out = list(found)
    for index, (left, right) in enumerate(zip(out, found[1:], strict=False)):
        hole = guest[left.last : right.first]
        if not len(hole):
            continue
        ahead, _ = _reach(left.fit.interval_set, hole, thread)
        back, _ = _reach(right.fit.interval_set, hole[ahead:][::-1], thread)
        out[index] = replace(out[index], last=left.last + ahead)
        out[index + 1] = replace(right, first=right.first - back)
    return out


class Reach(Protocol):
    """Events ``first`` to ``last`` that one map holds, of which those up to ``sure_last`` are surely of it."""

    @property
    def first(self) -> int:
        """The first of them."""

    @property
    def last(self) -> int:
        """The one after the last."""

    @property
    def sure_last(self) -> int:
        """The one after the last sure one."""


def change_points(guest: I64, stretches: Sequence[Reach]) -> list[int]:
    """For each pair of neighbours, the position of the first event of the later one.

    Within the overlap the largest jump of the stamps is taken: a change comes with a stop or a step.
    """
    points = []
    for left, right in pairwise(stretches):
        begin, end = max(right.first, left.sure_last, 1), left.last
        if begin >= end:
            points.append(right.first)
            continue
        jumps = np.abs(np.diff(guest[begin - 1 : end + 1]))
        points.append(begin + int(jumps.argmax()))
    return points
