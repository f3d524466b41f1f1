"""Where a proved epoch is known to hold: between which events, and at which host times at all.

An offset changes only while its vCPU is outside guest mode (KVM writes it on the vCPU's own thread, or loads it as that
thread enters), so a run window lies in one epoch. A clock whose rate is fitted may be set by its machine at any time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from counterpoint.claims import tsc_offset_events
from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import I64, U64, relative, to_signed
from counterpoint.clocks.cpu_clock import Reach
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.spans import Spans
from counterpoint.proof.fit import Thread
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.proof.windows import FOREVER, RunWindows, WindowKind
from counterpoint.traces.recording import Recording

MAX_SPANS = 1000
"""Spans of one kind that are kept; more are joined where the least lies between them: wider is no less true."""

_REFUTED = Verdict.REFUTED


def reaches_of(guest: Recording, vcpu: VcpuProof, thread: Thread, *, in_order: bool = True) -> tuple[Reach, ...] | None:
    """The reach of each epoch of ``vcpu``, all of them sound; None where the host saw no event of one of them.

    ``in_order``: the windows of ``thread`` are in one clock; else their order says nothing of when an epoch began.
    """
    windows = thread.real
    maps = [epoch.as_epoch() for epoch in vcpu.epochs]
    events = [_sure_events(guest, epoch, clock, windows) for epoch, clock in zip(vcpu.epochs, maps, strict=True)]
    if not all(len(stamps) for stamps in events):
        return None
    changes: list[int | None] = [None]
    for left, right in pairwise(range(len(maps))):
        two = maps[left], maps[right]
        changes.append(_announced(vcpu, (vcpu.epochs[left], vcpu.epochs[right]), (events[left], events[right])))
        both = _apart(two, (events[left], events[right]), windows, changes[-1])
        if both is None:
            return None
        events[left], events[right] = both
    seen = [(int(stamps[0]), int(stamps[-1])) for stamps in events]
    # of each epoch the spans before and after those of its own events
    before: list[_Side] = [_OPEN_BEGIN] * len(maps)
    after: list[_Side] = [_OPEN_END] * len(maps)
    if in_order:
        for left, right in pairwise(range(len(maps))):
            change = changes[right]
            last, first = (_bound(maps[i], seen[i][e], windows) for i, e in ((left, 1), (right, 0)))
            when = None if change is None else _relative(change, windows)
            fixed = vcpu.epochs[left].fitted is None and vcpu.epochs[right].fitted is None
            if fixed and windows.kind is WindowKind.KVM:
                after[left], before[right] = _between(windows, last, first, when)
            else:
                edges = (first[1], last[0]) if when is None else (when, when)
                after[left], before[right] = _Side(_NONE, _NONE, edges[0]), _Side(_NONE, _NONE, edges[1])
    out = []
    for index, ends in enumerate(seen):
        begin, end = before[index], after[index]
        lo, hi = np.r_[begin.lo, begin.own, end.lo], np.r_[begin.hi, end.own, end.hi]
        out.append(Reach(ends, Spans.joined(windows.base, lo, hi, MAX_SPANS), changes[index]))
    return tuple(out)


class _Side(NamedTuple):
    """What is on one side of an epoch's own events: spans, and where the span of its events ends on that side."""

    lo: I64
    hi: I64
    own: int


_NONE = np.zeros(0, np.int64)
_OPEN_BEGIN, _OPEN_END = _Side(_NONE, _NONE, -int(FOREVER)), _Side(_NONE, _NONE, int(FOREVER))


def _sure_events(guest: Recording, epoch: EpochProof, clock: Epoch, windows: RunWindows) -> U64:
    """The stamps of the epoch's sure events in run windows, in order."""
    stamps = guest.stamp[epoch.rows]
    host = relative(clock.to_host(stamps), windows.base)
    at = np.searchsorted(windows.lo, host, side="right") - 1
    stamps = stamps[windows.is_run[at] & (host <= windows.hi[at]) & epoch.is_sure(stamps)]
    return stamps[np.argsort(relative(stamps, int(stamps[0])), kind="stable")] if len(stamps) else stamps


def _apart(
    maps: tuple[Epoch, Epoch], events: tuple[U64, U64], windows: RunWindows, change: int | None
) -> tuple[U64, U64] | None:
    """Of two epochs' events those that are surely of the one and of the other; None where no event of one of them is.

    Events at a step may lie in windows by both maps. The last of the earlier epoch's that the later one's map puts into
    a gap is surely the earlier's, and so is what comes before it.
    """
    left, right = events
    (begin, end), (low, high) = (_bound(clock, int(left[-1]), windows) for clock in maps)
    # two maps that agree where they meet are one clock whose rate changed: either holds there
    if max(begin, low) <= min(end, high):
        return events
    lo, hi = windows.allowed()
    out = []
    for stamps, clock, is_left in ((left, maps[1], True), (right, maps[0], False)):
        early, late = (relative(bound, windows.base) for bound in clock.bound(stamps))
        if change is not None and is_left:
            early = np.maximum(early, _relative(change, windows))
        elif change is not None:
            late = np.minimum(late, _relative(change, windows))
        at = np.minimum(np.searchsorted(hi, early), len(lo) - 1)
        only = np.flatnonzero((lo[at] > late) | (early > late))
        if not len(only):
            return None
        out.append(stamps[: int(only[-1]) + 1] if is_left else stamps[int(only[0]) :])
    return out[0], out[1]


def _bound(clock: Epoch, stamp: int, windows: RunWindows) -> tuple[int, int]:
    early, late = clock.bound(np.array([stamp], np.uint64))
    return _relative(int(early[0]), windows), _relative(int(late[0]), windows)


def _announced(vcpu: VcpuProof, epochs: tuple[EpochProof, EpochProof], events: tuple[U64, U64]) -> int | None:
    """The host stamp at which KVM's own events say that one epoch followed another; None: they do not, or twice."""
    told = [c.claim for c in vcpu.claims if c.claim.source == tsc_offset_events.SOURCE and c.verdict is not _REFUTED]
    ends = {c.host_to for c in told if _is_by(c, epochs[0])} & {c.host_from for c in told if _is_by(c, epochs[1])}
    last = int(epochs[0].as_epoch().bound(events[0][-1:])[0][0])
    first = int(epochs[1].as_epoch().bound(events[1][:1])[1][0])
    between = [t for t in ends if t is not None and to_signed(t - last) >= 0 and to_signed(first - t) >= 0]
    return between[0] if len(between) == 1 else None


def _is_by(claim: Claim, epoch: EpochProof) -> bool:
    """Whether a claim is of the epoch's own offset, as far as that is known."""
    if claim.scale != epoch.scale or epoch.feasible is None or epoch.fitted is not None:
        return False
    return epoch.feasible[0] <= epoch.feasible[0] + to_signed(claim.offset - epoch.feasible[0]) <= epoch.feasible[1]


def _between(
    windows: RunWindows, last: tuple[int, int], first: tuple[int, int], change: int | None
) -> tuple[_Side, _Side]:
    """What follows the earlier of two epochs, and what precedes the later: the windows between them may be of either.

    ``last``, ``first``: the earliest and the latest host time of the earlier one's last event and of the later one's
    first; ``change``: when it was, where KVM says so.
    """
    last_at, first_at = _spans_at(windows, last), _spans_at(windows, first)
    after, before = slice(last_at[1] + 1, first_at[1]), slice(last_at[0] + 1, first_at[0])
    left = _Side(windows.lo[after], windows.hi[after], int(windows.hi[last_at[1]]))
    right = _Side(windows.lo[before], windows.hi[before], int(windows.lo[first_at[0]]))
    if change is None:
        return left, right
    early, late = left.lo <= change, right.hi >= change
    return (
        _Side(left.lo[early], np.minimum(left.hi[early], change), min(left.own, change)),
        _Side(np.maximum(right.lo[late], change), right.hi[late], max(right.own, change)),
    )


def _spans_at(windows: RunWindows, when: tuple[int, int]) -> tuple[int, int]:
    """The first and the last of the spans that an event may lie in."""
    return int(np.searchsorted(windows.hi, when[0])), int(np.searchsorted(windows.lo, when[1], side="right")) - 1


def _relative(stamp: int, windows: RunWindows) -> int:
    value = int(relative(np.array([stamp], np.uint64), windows.base)[0])
    return max(-int(FOREVER), min(int(FOREVER), value))
