"""One stretch of guest events against one thread's run windows: which single offsets fit, and how well."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, MASK, to_signed
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.feasible import Interval, IntervalSet, TooManyError, narrow
from counterpoint.proof.windows import FOREVER, RunWindows

EVIDENCE_PER_TRIAL_BIT = 8
"""How many bits of evidence each bit of search needs before a fit counts as found.

The evidence of an offset is the sum over the run windows it hits of -log2(the chance that the window's burst of
guest events falls in some window at a random offset). Were windows independent, evidence = log2(offsets searched)
would make one chance fit likely. They are not: timers beat alike on both sides. On real recordings that do not
overlap, and on wrong threads, the best chance fits reach 2 to 4 bits a searched bit, true ones 14 and more.
"""

EVIDENCE_FOR_CLAIM = 32
"""Bits of evidence that a claimed offset needs: nothing was searched, so the bar is one number's."""

RIVAL_SHARE = 4
"""A second interval with more than 1/RIVAL_SHARE of the best one's evidence leaves the offset ambiguous."""

MIN_OVERLAP = 2
"""At least 1/MIN_OVERLAP of the events are assumed to lie between the thread's first and last kvm event."""

MAX_RATED = 256
"""More intervals than this are not told apart: they do not determine the offset."""


class Thread:
    """A host thread's windows, with what the search needs computed once.

    ``windows`` may be scaled: in the guest's units then, by ``scale``, with the scaled base; ``real`` are the host's.
    An offset is always ``guest - scaled host``, as in KVM's formula.
    """

    def __init__(self, windows: RunWindows, scale: Scale | None = None) -> None:
        """Scale the windows, join touching spans and find the gaps between them."""
        self.real = windows
        self.scale = Scale() if scale is None or scale.is_identity else scale
        self.windows = windows if self.scale.is_identity else _scaled(windows, self.scale)
        self.lo, self.hi = self.windows.allowed()
        self.gap_lo, self.gap_hi = self.hi[:-1], self.lo[1:]

    def at_scale(self, scale: Scale) -> Thread:
        """The same thread with its windows scaled by ``scale`` instead."""
        return Thread(self.real, scale)

    def value(self, stamp: int) -> int:
        """A host stamp as a number like those of ``windows``."""
        value = to_signed(stamp - self.real.base)
        if self.scale.is_identity:
            return value
        return int(self.scale.apply_signed_relative(np.array([value]), self.real.base)[0])

    def stamp(self, value: int) -> int:
        """The host stamp, u64, of a number like those of ``windows``: of an edge, exactly the edge's; else the
        first."""
        if self.scale.is_identity:
            return (value + self.real.base) & MASK
        for scaled, real in ((self.windows.lo, self.real.lo), (self.windows.hi, self.real.hi)):
            at = int(np.searchsorted(scaled, value))
            if at < len(scaled) and scaled[at] == value:
                return (int(real[at]) + self.real.base) & MASK
        first, _ = self.scale.inverse_signed_relative(np.array([value]), self.real.base)
        return (int(first[0]) + self.real.base) & MASK


def _scaled(windows: RunWindows, scale: Scale) -> RunWindows:
    return replace(
        windows,
        base=scale.apply_int(windows.base & MASK),
        lo=scale.apply_signed_relative(windows.lo, windows.base),
        hi=scale.apply_signed_relative(windows.hi, windows.base),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One interval of feasible offsets, and how its middle fares: events in windows, bits of evidence."""

    lo: int
    hi: int
    inside: int
    evidence: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of a search: ``candidates`` that hold up, best first; ``weak`` where chance may have made them.

    No candidates: no single offset fits (or, with ``many``, far too many do). ``needed``: the bits of evidence
    that the width of the search asks for.
    """

    candidates: tuple[Candidate, ...] = ()
    needed: int = 0
    weak: bool = False
    many: bool = False

    @property
    def is_unique(self) -> bool:
        """Exactly one interval, with evidence."""
        return len(self.candidates) == 1 and not self.weak

    @property
    def interval_set(self) -> IntervalSet:
        """The candidates' intervals."""
        pairs = sorted((c.lo, c.hi) for c in self.candidates)
        return IntervalSet(np.array([lo for lo, _ in pairs], np.int64), np.array([hi for _, hi in pairs], np.int64))


@dataclass(frozen=True, slots=True)
class Check:
    """How events fare at one offset. ``violating`` bool[n]; ``feasible`` the interval around the offset.

    ``low_event``, ``high_event``: positions of the events that bound it (-1: open on that side).
    """

    inside: int
    unknown: int
    evidence: int
    violating: npt.NDArray[np.bool_]
    feasible: Interval | None
    low_event: int
    high_event: int

    @property
    def violations(self) -> int:
        """Events in a gap."""
        return int(self.violating.sum())


def check(guest: I64, offset: int, thread: Thread) -> Check:
    """Put the events ``guest`` i64[n] at ``offset`` and say where they fall. O(n log windows)."""
    # what is too far off to be counted from the base is as far off as can be
    far = (1 << 63) - 1
    if len(guest) and max(abs(int(guest.min()) - offset), abs(int(guest.max()) - offset)) > far:
        host = np.array([min(max(g - offset, -far), far) for g in guest.tolist()], np.int64)
    else:
        host = guest - offset
    host = np.clip(host, -FOREVER, FOREVER)
    span = np.searchsorted(thread.lo, host, side="right") - 1
    allowed = host <= thread.hi[span]
    windows = thread.windows
    at = np.searchsorted(windows.lo, host, side="right") - 1
    in_run = allowed & windows.is_run[at] & (host <= windows.hi[at])
    # a stamp on the edge of two touching spans lies in both
    before = np.maximum(at - 1, 0)
    edge = allowed & ~in_run & windows.is_run[before] & (host <= windows.hi[before])
    evidence = _evidence(np.r_[at[in_run], before[edge]], np.r_[host[in_run], host[edge]], windows)
    inside = int(in_run.sum() + edge.sum())
    violating = ~allowed
    feasible: Interval | None = None
    low_event = high_event = -1
    if len(guest) and allowed.all():
        lows, highs = guest - thread.hi[span], guest - thread.lo[span]
        low_event, high_event = int(lows.argmax()), int(highs.argmin())
        feasible = int(lows[low_event]), int(highs[high_event])
    return Check(inside, int(allowed.sum()) - inside, evidence, violating, feasible, low_event, high_event)


def _evidence(window: I64, host: I64, windows: RunWindows) -> int:
    """Bits of evidence of the events at ``host``, each in run window ``window``: see EVIDENCE_PER_TRIAL_BIT."""
    if not len(window):
        return 0
    order = np.lexsort((host, window))
    window, host = window[order], host[order]
    first = np.flatnonzero(np.r_[True, window[1:] != window[:-1]])
    burst = host[np.r_[first[1:] - 1, len(host) - 1]] - host[first]
    length = np.sort((windows.hi - windows.lo)[windows.is_run])
    total = max(windows.last - windows.first, 1)
    # the room a burst has in all windows that are long enough for it
    tail = np.r_[np.cumsum(length[::-1])[::-1], 0]
    at = np.searchsorted(length, burst, side="left")
    room = np.clip(tail[at] - burst * (len(length) - at), 1, total)
    return int(-np.log2(room / total).sum())


def overlap_range(guest: I64, thread: Thread) -> Interval:
    """The offsets that can put 1/MIN_OVERLAP of the events between the thread's first and last kvm event."""
    count = len(guest)
    need = max(1, -(-count // MIN_OVERLAP))
    low = int(np.partition(guest, need - 1)[need - 1]) - thread.windows.last
    high = int(np.partition(guest, count - need)[count - need]) - thread.windows.first
    return low, high


def fit(
    guest: I64,
    thread: Thread,
    within: Interval | None = None,
    per_trial: int = EVIDENCE_PER_TRIAL_BIT,
    *,
    is_bounded: bool = True,
    survivors: IntervalSet | None = None,
    trials: int = 1,
) -> Fit:
    """Find the single offsets that put no event of ``guest`` i64[n] into a gap of ``thread``.

    Searched is the interval ``within``, or all offsets of ``overlap_range``. ``is_bounded``: no offset outside
    ``within`` is possible; else an interval that ends only where the search does is weak. ``survivors``: what some of
    the events left of just these offsets, so that the others need not look at the rest again. ``trials``: how many such
    searches are made, at other rates.
    """
    if not len(guest):
        return Fit()
    if within is None:
        within, is_bounded = overlap_range(guest, thread), False
    lo, hi = within
    try:
        found = IntervalSet.of(lo, hi) if survivors is None else survivors
        found = narrow(found, guest, thread.gap_lo, thread.gap_hi)
    except TooManyError:
        return Fit(many=True)
    if len(found) > MAX_RATED:
        return Fit(many=True)
    rated = []
    for low, high in found.intervals():
        outcome = check(guest, (low + high) // 2, thread)
        rated.append(Candidate(low, high, outcome.inside, outcome.evidence))
    rated.sort(key=lambda c: -c.evidence)
    if not rated:
        return Fit()
    best = rated[0]
    needed = per_trial * ((hi - lo + 1) * trials // (best.hi - best.lo + 1)).bit_length()
    if best.evidence < needed or (not is_bounded and (best.lo == lo or best.hi == hi)):
        return Fit(tuple(rated), needed, weak=True)
    return Fit(tuple(c for c in rated if c.evidence * RIVAL_SHARE > best.evidence), needed)
