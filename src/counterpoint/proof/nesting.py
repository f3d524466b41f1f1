"""Nesting: a nested guest's run windows, cut to when its hypervisor's own CPU ran a nested guest.

L2 runs on a CPU of L1, and that CPU is a thread of L0. So an L2 event lies in a run window of L1's thread (in L1
time) *and* in a run window of the L0 thread that is the L1 CPU it was on. L0's windows are taken to L1 time by both
ends of the proved interval of that CPU's offset: widened by what is not known, they never exclude the truth.

Where L1's CPUs have different offsets, the stamps of L1's thread have no common order. Its windows are then found CPU
by CPU, each in that CPU's own clock, and put together in one of two ways. In each CPU's *own* clock: KVM adds L2's
offset to the TSC of the CPU that L2 is on (kvm_calc_nested_tsc_offset), so one offset holds in some window of some CPU,
and L2's stamps step as it moves. In a *reference* clock, the host's own plus one constant, which each CPU's stamps are
taken to by both ends of its proved interval: that holds where L1 makes up for the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, MASK, U64, Bools, relative, to_signed
from counterpoint.proof.fit import Thread
from counterpoint.proof.levels import only
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.proof.windows import FOREVER, HostActivity, RunWindows, Spans, in_order, overlaps
from counterpoint.traces.recording import Recording

_FAR = int(FOREVER) // 2
"""Clocks that are this far apart cannot be counted from one base: they are not compared."""


class Clock(StrEnum):
    """What the stamps of a nested guest's windows are: see the module."""

    SHARED = "shared"
    OWN = "own"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class _Cpu:
    """A CPU of a host that is a guest: its proof, and when it may have run nested guests, in two clocks.

    ``low``, ``high``: what its stamps are ahead of the reference clock, over all its epochs.
    """

    proof: VcpuProof
    own: Spans
    reference: Spans
    low: int
    high: int


class GuestHost:
    """A host that is a guest itself: when its CPUs ran guests of their own, and how their clocks lie to each other."""

    def __init__(
        self,
        recording: Recording,
        vcpus: Sequence[VcpuProof],
        nested: Callable[[int], Thread],
        clock: Clock = Clock.OWN,
    ) -> None:
        """Take the proofs of the CPUs of ``recording``, and for their threads when they may have run nested guests.

        ``clock``: how to put windows together where the CPUs' clocks differ. Of each CPU's offset the interval that
        windows proved is taken; ``anchored`` has what anchors left of it.
        """
        self.recording = recording
        self.clock = clock
        self._nested = nested
        self._anchored = tuple(vcpus) if any(e.by_windows for v in vcpus for e in v.epochs) else ()
        vcpus = [_by_windows(v) for v in vcpus]
        known = [v for v in vcpus if v.host_tid is not None and _is_bounded(v)]
        self.reference_cpu = known[0].guest_cpu if known else 0
        self.constant = _middle_ahead(known[0].epochs[0]) if known else 0
        self._cpus: dict[int, _Cpu] = {}
        for vcpu in known:
            assert vcpu.host_tid is not None
            thread = nested(vcpu.host_tid)
            own = guest_mode(vcpu, thread, recording.base)
            assert own is not None
            reference = self._in_reference(thread, known[0].epochs[0])
            ahead = [_ahead(epoch, self.constant) for epoch in vcpu.epochs]
            low, high = min(a for a, _ in ahead), max(b for _, b in ahead)
            if max(-low, high) >= _FAR:
                continue
            self._cpus[vcpu.guest_cpu] = _Cpu(vcpu, own, reference, low, high)

    def _in_reference(self, thread: Thread, epoch: EpochProof) -> Spans:
        """The thread's spans in the reference clock, which is that of ``epoch`` where that is scaled."""
        shift = to_signed(self.constant + thread.windows.base - self.recording.base)
        lo, hi = _moved((thread.lo, thread.hi), shift, shift)
        if epoch.fitted is not None or epoch.scale.is_identity:
            return lo, hi
        clock, base = epoch.as_epoch(), thread.windows.base
        begin, end = (relative(clock.to_guest(_absolute(s, base)), self.recording.base) for s in (thread.lo, thread.hi))
        return np.where(thread.lo <= -FOREVER, lo, begin), np.where(thread.hi >= FOREVER, hi, end)

    def differs(self, cpus: Sequence[int]) -> bool:
        """Whether the clocks of these CPUs surely differ, or one of them changed; False where one is not known."""
        if any(cpu not in self._cpus for cpu in cpus):
            return False
        mine = [self._cpus[cpu] for cpu in cpus]
        if any(e.fitted is not None for c in mine for e in c.proof.epochs):
            return any(_are_apart(one.proof, other.proof) for one, other in pairwise(mine))
        if len(mine) > 1 and any(len(c.proof.epochs) > 1 for c in mine):
            return True
        return bool(mine) and max(c.low for c in mine) > min(c.high for c in mine)

    def other_clock(self) -> GuestHost | None:
        """The same with windows in the reference clock, where that makes a difference."""
        if self.clock is not Clock.OWN or not self.differs(list(self._cpus)):
            return None
        out = object.__new__(GuestHost)
        out.__dict__ = self.__dict__ | {"clock": Clock.REFERENCE}
        return out

    def anchored(self) -> GuestHost | None:
        """The same by what anchors left of the CPUs' offsets; None where there are none."""
        if not self._anchored:
            return None
        # an interval is all that is taken of a proof
        narrowed = [replace(v, epochs=tuple(replace(e, by_windows=None) for e in v.epochs)) for v in self._anchored]
        return GuestHost(self.recording, narrowed, self._nested, self.clock)

    def clock_of(self, activity: HostActivity, tid: int) -> Clock:
        """Which clock the windows of thread ``tid`` are in."""
        return self.clock if self.differs(activity.cpus_of(tid)) else Clock.SHARED

    @cached_property
    def ahead(self) -> U64:
        """What each event's stamp is ahead of the reference clock by the maps in use: u64[n], modulo 2**64."""
        out = np.zeros(len(self.recording), np.uint64)
        for cpu in self._cpus.values():
            for epoch in cpu.proof.epochs:
                out[epoch.rows] = ((epoch.offset or 0) - self.constant) & MASK
        return out

    def windows(self, activity: HostActivity, tid: int, windows: RunWindows, *, nested: bool = False) -> RunWindows:
        """The windows of ``tid``, cut to when the CPU of each may have run a nested guest.

        ``windows`` are those in one clock, taken where that does; ``nested``: see ``levels.only``.
        """
        clock = self.clock_of(activity, tid)
        modes = {n: c.reference if clock is Clock.REFERENCE else c.own for n, c in self._cpus.items()}
        if clock is Clock.SHARED:
            return within(windows, self.recording, modes)
        pieces, unseen = self._pieces(activity, tid, clock, nested=nested)
        windows = within(_together(pieces), self.recording, modes)
        # where the thread may have been on one CPU unseen, another's windows stay what they are
        beside = _beside(windows, *unseen)
        return _together([windows, _unknown(tid, activity, *beside)])

    def _pieces(
        self, activity: HostActivity, tid: int, clock: Clock, *, nested: bool
    ) -> tuple[list[RunWindows], Spans]:
        """The windows of all CPUs in one clock, and what no CPU saw: when the thread may have been on any."""
        pieces: list[RunWindows] = []
        first, last = [], []
        early, late = [], []
        lost_cpu, lost_from, lost_to = activity.lost_spans
        for number, cpu in self._cpus.items():
            found = _only(activity.on_cpu(tid, number), activity.host, nested=nested)
            begin, end = (found.first, found.last) if found else (int(FOREVER), -int(FOREVER))
            # what was lost here before the thread was first seen and after it was last may have been all of a stay
            here = (lost_cpu == number) & ((lost_to < begin) | (lost_from > end))
            pieces.append(self._taken(_unknown(tid, activity, lost_from[here], lost_to[here]), cpu, clock))
            before, after = self._ahead_beyond(cpu, found)
            early.append(before[1])
            late.append(after[0])
            if found is None:
                continue
            pieces.append(self._taken(found, cpu, clock))
            first.append(found.first - before[0])
            last.append(found.last - after[1])
        start, stop = min(first), max(last)
        if clock is Clock.OWN:
            # in its own clock each CPU's stamps are ahead by as much
            start += max(early)
            stop += min(late)
        silent = bool(activity.silent_cpus) and not activity.silent_cpus_were_traced
        # a CPU whose clock is not known cannot say when it lost events
        silent |= not np.isin(lost_cpu, list(self._cpus)).all()
        unseen = np.array([-FOREVER, stop]), np.array([start, FOREVER])
        if silent:
            unseen = np.array([-FOREVER, start, stop]), np.array([start, stop, FOREVER])
        return pieces, unseen

    def _taken(self, windows: RunWindows, cpu: _Cpu, clock: Clock) -> RunWindows:
        """One CPU's windows in the ``clock`` asked for: widened by what is not known of the difference."""
        if clock is Clock.OWN:
            return windows
        low, high = np.full(len(windows.lo), cpu.low), np.full(len(windows.lo), cpu.high)
        run = np.flatnonzero(windows.is_run)
        entry, leave = (self._ahead_at(cpu, rows[run]) for rows in (windows.entry_row, windows.exit_row))
        high[run], low[run] = entry[1], leave[0]
        lo = np.where(windows.lo <= -FOREVER, windows.lo, windows.lo - high)
        hi = np.where(windows.hi >= FOREVER, windows.hi, windows.hi - low)
        return replace(windows, lo=lo, hi=hi)

    def _ahead_beyond(self, cpu: _Cpu, windows: RunWindows | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """What the CPU's clock may be ahead of the reference before its first of ``windows`` ends, and after its last.

        (low, high) of each; of all its epochs where there is no window.
        """
        rows = windows.entry_row[windows.is_run] if windows else np.zeros(0, np.int64)
        if not len(rows):
            return (cpu.low, cpu.high), (cpu.low, cpu.high)
        sides = []
        for mine in (
            [e for e in cpu.proof.epochs if len(e.rows) and e.rows[0] <= rows[0]] or cpu.proof.epochs[:1],
            [e for e in cpu.proof.epochs if len(e.rows) and e.rows[-1] >= rows[-1]] or cpu.proof.epochs[-1:],
        ):
            ahead = [_ahead(epoch, self.constant) for epoch in mine]
            sides.append((min(low for low, _ in ahead), max(high for _, high in ahead)))
        return sides[0], sides[1]

    def _ahead_at(self, cpu: _Cpu, rows: I64) -> tuple[I64, I64]:
        """What the CPU's clock is ahead of the reference at ``rows``: (low, high) i64[n], of all epochs in doubt."""
        low, high = np.full(len(rows), cpu.low), np.full(len(rows), cpu.high)
        for epoch in cpu.proof.epochs:
            sure = np.isin(rows, epoch.rows) & epoch.is_sure(self.recording.stamp[rows])
            low[sure], high[sure] = _ahead(epoch, self.constant)
        return low, high

    # -- where events lie

    def slower(self, host_stamp: U64, placed: Bools) -> npt.NDArray[np.float64]:
        """How much more the first host's clock moves than this one's, per unit of it, about each event: f64[n].

        0 where both run alike. ``host_stamp`` u64, ``placed`` bool: the recording's own events in the first host's
        time.
        """
        out = np.zeros(len(self.recording))
        for cpu in self._cpus.values():
            for epoch in cpu.proof.epochs:
                rows = epoch.rows[placed[epoch.rows]]
                if epoch.scale.is_identity or len(rows) < 2:
                    continue
                own = relative(self.recording.stamp[rows[[0, -1]]], int(self.recording.stamp[rows[0]]))
                there = relative(host_stamp[rows[[0, -1]]], int(host_stamp[rows[0]]))
                out[epoch.rows] = there[1] / own[1] - 1 if own[1] else 0
        return out

    def entered(self, activity: HostActivity, tid: int, when: I64, host_stamp: I64) -> I64:
        """The row of the event that began the window that holds each of ``when`` i64[n]; -1: not known.

        ``when``: times in the clock of the windows of thread ``tid``, relative to the recording's base, in the order in
        which they happened. ``host_stamp`` i64[rows]: the recording's own events in host time, relative to any base.
        """
        rows = activity.entries(tid)
        clock = self.clock_of(activity, tid)
        stamp = relative(self.recording.stamp, self.recording.base)
        if clock is Clock.SHARED:
            return _last_before(stamp[rows], rows, when)
        if clock is Clock.REFERENCE:
            return _last_before(stamp[rows] - relative(self.ahead[rows], 0), rows, when)
        return self._by_cpu(activity, tid, when, host_stamp, stamp)

    def _by_cpu(self, activity: HostActivity, tid: int, when: I64, host_stamp: I64, stamp: I64) -> I64:
        """The entry by each CPU's own clock; where several CPUs can hold an event, the order of all decides, or none.

        A guest CPU's events follow each other in host time too: an event lies between those around it that only one CPU
        can hold.
        """
        cpu_of = np.array([s.cpu for s in self.recording.streams], np.int64)[self.recording.stream_of]
        entries = activity.entries(tid)
        options, times = [], []
        for number, cpu in self._cpus.items():
            found = _only(activity.on_cpu(tid, number), activity.host, nested=False)
            mine = entries[cpu_of[entries] == number]
            if found is None or not len(mine):
                continue
            found = within(found, self.recording, {number: cpu.own})
            row = _last_before(stamp[mine], mine, when)
            at = np.searchsorted(found.lo, when, side="right") - 1
            holds = (at >= 0) & (row >= 0)
            holds &= when <= found.hi[np.maximum(at, 0)]
            options.append(np.where(holds, row, -1))
            times.append(np.where(holds, when + host_stamp[row] - stamp[row], 0))
        if not options:
            return np.full(len(when), -1, np.int64)
        choice, time = np.array(options), np.array(times)
        count = (choice >= 0).sum(axis=0)
        for _ in range(2):
            sure = count == 1
            alone = np.where(sure, np.where(choice >= 0, time, 0).sum(axis=0), 0)
            after = np.maximum.accumulate(np.where(sure, alone, -FOREVER))
            before = np.minimum.accumulate(np.where(sure, alone, FOREVER)[::-1])[::-1]
            fits = (choice >= 0) & (time >= after) & (time <= before)
            choice = np.where(sure | fits, choice, -1)
            count = (choice >= 0).sum(axis=0)
        out: I64 = np.where(count == 1, choice.max(axis=0), -1)
        return out


def _last_before(stamp: I64, rows: I64, when: I64) -> I64:
    """Of events at ``stamp`` with these ``rows``, that of the last at or before ``when`` i64[n], else the first's."""
    if not len(rows):
        return np.full(len(when), -1, np.int64)
    order = np.argsort(stamp, kind="stable")
    return rows[order][np.maximum(np.searchsorted(stamp[order], when, side="right") - 1, 0)]


def _only(windows: RunWindows | None, host: Recording, *, nested: bool) -> RunWindows | None:
    return None if windows is None else only(windows, host, nested=nested)


def _unknown(tid: int, activity: HostActivity, lo: I64, hi: I64) -> RunWindows:
    none = np.full(len(lo), -1, np.int64)
    return RunWindows(tid, activity.base, lo, hi, np.zeros(len(lo), np.bool_), none, none, activity.kind)


def _together(pieces: Sequence[RunWindows]) -> RunWindows:
    """Windows of one thread, of spans that may overlap, in one order."""
    return in_order(
        pieces[0].tid,
        pieces[0].base,
        np.concatenate([p.lo for p in pieces]),
        np.concatenate([p.hi for p in pieces]),
        np.concatenate([p.is_run for p in pieces]),
        np.concatenate([p.entry_row for p in pieces]),
        np.concatenate([p.exit_row for p in pieces]),
        pieces[0].kind,
    )


def _beside(windows: RunWindows, lo: I64, hi: I64) -> Spans:
    """The parts of the spans [lo, hi] that are in no run window."""
    runs = windows.lo[windows.is_run], windows.hi[windows.is_run]
    return overlaps(np.r_[-FOREVER, runs[1]], np.r_[runs[0], FOREVER], lo, hi)


def _ahead(epoch: EpochProof, constant: int) -> tuple[int, int]:
    """What an epoch's clock is ahead of the reference clock: (low, high)."""
    assert epoch.feasible is not None
    low, high = epoch.feasible
    if epoch.fitted is not None:
        # a line's offset says little by itself: how far it is ahead where its events are
        host = np.array([epoch.fitted.band.host[0], epoch.fitted.band.host[-1]], np.uint64)
        least, greatest = epoch.as_epoch().bound_guest(host)
        begin = to_signed(int(least[0]) - int(host[0]) - constant)
        ends = [
            begin + to_signed(int(g) - int(h) - int(least[0]) + int(host[0]))
            for g, h in zip([*least, *greatest], [*host, *host], strict=True)
        ]
        return min(ends), max(ends)
    begin = to_signed(low - constant)
    return begin, begin + high - low


def _by_windows(vcpu: VcpuProof) -> VcpuProof:
    return replace(vcpu, epochs=tuple(replace(e, feasible=e.by_windows or e.feasible) for e in vcpu.epochs))


def _is_bounded(vcpu: VcpuProof) -> bool:
    # a claim that is refuted beside a map that holds does not undo the map
    return all(e.is_known and e.feasible is not None and not len(e.doubted) for e in vcpu.epochs)


def _middle_ahead(epoch: EpochProof) -> int:
    """About how far the epoch's clock is ahead of the host's."""
    if epoch.fitted is None:
        return epoch.offset or 0
    host = epoch.fitted.band.host[0]
    return to_signed(int(epoch.as_epoch().to_guest(np.array([host], np.uint64))[0]) - host)


def _are_apart(one: VcpuProof, other: VcpuProof) -> bool:
    """Whether two CPUs' clocks surely differ at a time at which lines were fitted to both."""
    for left in one.epochs:
        for right in other.epochs:
            if left.fitted is None or right.fitted is None:
                continue
            band, against = left.fitted.band, right.fitted.band
            begin = max(band.host[0], band.host[0] + to_signed(against.host[0] - band.host[0]))
            end = min(band.host[-1], band.host[-1] + to_signed(against.host[-1] - band.host[-1]))
            if begin >= end:
                continue
            host = np.array([begin & MASK, (begin + end) // 2 & MASK, end & MASK], np.uint64)
            low, high = left.as_epoch().bound_guest(host)
            least, greatest = right.as_epoch().bound_guest(host)
            if ((low - greatest).view(np.int64) > 0).any() or ((least - high).view(np.int64) > 0).any():
                return True
    return False


def _absolute(stamps: I64, base: int) -> U64:
    """Stamps u64[n] of numbers relative to ``base``."""
    return stamps.view(np.uint64) + np.uint64(base & MASK)


def _moved(spans: Spans, low: int, high: int) -> Spans:
    """Spans moved by what is between ``low`` and ``high``; open ends stay open."""
    lo, hi = spans
    return np.where(lo <= -FOREVER, lo, lo + low), np.where(hi >= FOREVER, hi, hi + high)


def guest_mode(vcpu: VcpuProof, thread: Thread, base: int) -> Spans | None:
    """When a guest CPU may have run nested guests, in the guest's own time relative to ``base``: (lo, hi) i64.

    ``thread`` are the windows of its host thread. None where the proof does not bound all of its epochs.
    """
    if not _is_bounded(vcpu):
        return None
    parts = [_image(vcpu.epochs, index, thread, base) for index in range(len(vcpu.epochs))]
    return _joined(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def _image(epochs: tuple[EpochProof, ...], index: int, thread: Thread, base: int) -> Spans:
    """The spans of one epoch: all between the last sure event of the one before and the first of the one after."""
    host_base = thread.windows.base
    lo, hi = thread.lo, thread.hi
    keep = np.ones(len(lo), np.bool_)
    if index > 0:
        keep &= hi >= _edge(epochs[index - 1], host_base, last=True)
    if index + 1 < len(epochs):
        keep &= lo <= _edge(epochs[index + 1], host_base, last=False)
    epoch = epochs[index]
    low, high = epoch.feasible or (0, 0)
    if epoch.fitted is None and epoch.scale.is_identity:
        shift = host_base - base
        return _moved((lo[keep], hi[keep]), to_signed(low + shift), to_signed(high + shift))
    edges = []
    for stamps, side in ((lo[keep], 0), (hi[keep], 1)):
        guest = epoch.as_epoch().bound_guest(_absolute(stamps, host_base))[side]
        edges.append(np.where(np.abs(stamps) >= FOREVER, stamps, relative(guest, base)))
    return edges[0], edges[1]


def _edge(epoch: EpochProof, host_base: int, *, last: bool) -> int:
    """The earliest host time at which an epoch may end (``last``), or the latest at which it may begin.

    That of its last sure event as late an offset as is possible puts it, or of its first as early an one does.
    """
    stamp = epoch.guest_sure[1 if last else 0]
    if stamp is None or epoch.feasible is None:
        return -int(FOREVER) if last else int(FOREVER)
    early, late = epoch.as_epoch().bound(np.array([stamp & MASK], np.uint64))
    return to_signed(int(early[0] if last else late[0]) - host_base)


def _joined(lo: I64, hi: I64) -> Spans:
    """The union of closed spans, disjoint and in order."""
    order = np.argsort(lo, kind="stable")
    lo, reach = lo[order], np.maximum.accumulate(hi[order])
    starts = np.flatnonzero(np.r_[True, lo[1:] > reach[:-1]])
    return lo[starts], reach[np.r_[starts[1:] - 1, len(reach) - 1]]


def within(windows: RunWindows, recording: Recording, modes: dict[int, Spans]) -> RunWindows:
    """Cut the run windows to the spans ``modes`` of the CPU that each was entered on; unknown spans stay."""
    if not modes:
        return windows
    cpus = np.array([s.cpu for s in recording.streams], np.int64)
    known = windows.entry_row >= 0
    cpu = np.full(len(windows.lo), -1, np.int64)
    cpu[known] = cpus[recording.stream_of[windows.entry_row[known]]]
    whole = ~(windows.is_run & np.isin(cpu, list(modes)))
    # which span each piece is of, and where it begins and ends
    source: list[I64] = [np.flatnonzero(whole)]
    starts, ends = [windows.lo[whole]], [windows.hi[whole]]
    for number, spans in modes.items():
        mine = np.flatnonzero(windows.is_run & (cpu == number))
        lo, hi = overlaps(windows.lo[mine], windows.hi[mine], *spans)
        source.append(mine[np.searchsorted(windows.lo[mine], lo, side="right") - 1])
        starts.append(lo)
        ends.append(hi)
    at, lo, hi = np.concatenate(source), np.concatenate(starts), np.concatenate(ends)
    order = np.lexsort((hi, lo))
    at = at[order]
    return replace(
        windows,
        lo=lo[order],
        hi=hi[order],
        is_run=windows.is_run[at],
        entry_row=windows.entry_row[at],
        exit_row=windows.exit_row[at],
    )
