"""Which host thread runs which guest CPU: by hint where there is one, and by proof always.

A wrong (thread, guest CPU) pair leaves no feasible offset after a handful of events, so names are not needed. Hints
(the GUEST option, the vCPU id that events carry) decide only between threads that causality allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, distinct, relative
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.epochs import MIN_CHUNK, Stretch, find_stretches
from counterpoint.proof.feasible import IntervalSet, TooManyError, narrow
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, RIVAL_SHARE, Thread, check, overlap_range
from counterpoint.proof.levels import only
from counterpoint.proof.lines import Lines, Piece
from counterpoint.proof.nesting import Clock, GuestHost
from counterpoint.proof.pieces import find_pieces
from counterpoint.proof.relation import Relation
from counterpoint.proof.tracks import Track
from counterpoint.proof.windows import HostActivity, RunWindows, WindowKind, widened
from counterpoint.traces.recording import Recording

SAMPLE = 4096
"""Events used to exclude a pair: none may be feasible with fewer than with all."""

NO_THREAD = "no thread's run windows can hold its events: do the recordings overlap in time, and is this its host?"

MIN_COVERED = 2
"""Where the offset changed, a thread matches when stretches cover more than 1/MIN_COVERED of the events."""


LOOKS = 3
"""Stretches of a track that are searched for a line in the windows of an unlikely thread."""

MAX_PIECEWISE = 16
"""Threads that are searched for several offsets where any thread of the host may be a vCPU's: the busiest ones."""

# what QEMU, Firecracker, crosvm, cloud-hypervisor and kvmtool call their vCPU threads
_VCPU_NAME = re.compile(r"CPU (\d{1,4})/KVM|(?:fc_|crosvm_|kvm-)?vcpu[ _-]?(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Match:
    """A guest CPU's thread (None: not found), who says so, and what was noticed."""

    tid: int | None
    matched_by: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Hints:
    """What is said about the matching: guest CPU to thread, by source."""

    given: dict[int, int] = field(default_factory=dict)
    guest_option: dict[int, int] = field(default_factory=dict)


class ThreadPool:
    """The vCPU threads of a host, their windows built once; scaled where the guest's counter runs at another rate."""

    def __init__(
        self,
        host: Recording,
        guest_host: GuestHost | None = None,
        scale: Scale | None = None,
        of: ThreadPool | None = None,
        slack: tuple[int, int] | None = None,
    ) -> None:
        """Find all threads with kvm events. ``guest_host``: what is known of a host that is a guest itself.

        ``of``: a pool of the same host, whose windows are taken. ``slack``: by how much stamps may be off.
        """
        self.host = host
        self.guest_host: GuestHost | None = of.guest_host if of else guest_host
        self.scale = scale or Scale()
        self._unscaled = of
        self._slack = slack
        self.activity: HostActivity = of.activity if of else HostActivity(host)
        self.vcpu_ids: dict[int, int] = of.vcpu_ids if of else vcpu_ids(host)
        self.named = _named(host) if self.activity.kind is WindowKind.SCHED_SWITCH else {}
        self._threads: dict[int, Thread] = {}
        self._stretches: dict[tuple[int, int], tuple[Track, list[Stretch]]] = {}
        self._survivors: dict[tuple[int, int], tuple[Track, IntervalSet]] = {}
        self._pieces: dict[tuple[int, int], tuple[Track, list[Piece]]] = {}

    @property
    def tids(self) -> list[int]:
        """All threads with windows: those with kvm_entry or kvm_exit, or all that ran where neither was recorded."""
        return [int(t) for t in self.activity.tids.tolist()]

    def thread(self, tid: int) -> Thread:
        """The thread's windows; KeyError where it has none."""
        if tid not in self._threads:
            if self._slack is not None:
                # which side a window of x86's nested guests is on, rounded stamps do not tell
                wide = widened(self.activity.windows(tid), *self._slack)
                self._threads[tid] = Thread(wide, self.scale)
            elif self._unscaled is not None:
                self._threads[tid] = self._unscaled.thread(tid).at_scale(self.scale)
            else:
                self._threads[tid] = Thread(self._windows(tid, nested=False), self.scale)
        return self._threads[tid]

    def at_scale(self, scale: Scale) -> ThreadPool:
        """The same threads with their windows scaled."""
        return self if scale == self.scale else ThreadPool(self.host, scale=scale, of=self)

    def widened(self, slack: tuple[int, int]) -> ThreadPool:
        """The same threads where the stamps are rounded, see ``relation.slack_of``."""
        return self if slack == (0, 0) else ThreadPool(self.host, of=self, slack=slack)

    def pieces(self, track: Track, tid: int, relation: Relation) -> list[Piece]:
        """``find_pieces`` of a track in a thread's windows, found once."""
        key = id(track), tid
        if key not in self._pieces:
            self._pieces[key] = track, self.search_pieces(track, tid, relation)
        return self._pieces[key][1]

    def search_pieces(
        self, track: Track, tid: int, relation: Relation, known: Sequence[Lines] = (), looks: int | None = None
    ) -> list[Piece]:
        """``find_pieces`` of a track in a thread's windows, with what is known of the clocks."""
        return find_pieces(
            track.guest,
            self.thread(tid),
            self.scale,
            relation.error,
            constant=not relation.slew_ppm,
            rough=relation.rough,
            known=known,
            late=track.late,
            looks=looks,
        )

    def may_hold(self, track: Track, tid: int, relation: Relation) -> bool:
        """Whether a look at a few stretches finds a line."""
        return bool(self.search_pieces(track, tid, relation, looks=LOOKS))

    def nested(self, tid: int) -> Thread:
        """The windows in which the thread may have run a guest of its guest."""
        return Thread(self._windows(tid, nested=True), self.scale)

    def _windows(self, tid: int, *, nested: bool) -> RunWindows:
        windows = only(self.activity.windows(tid), self.host, nested=nested)
        return (
            windows if self.guest_host is None else self.guest_host.windows(self.activity, tid, windows, nested=nested)
        )

    def in_clocks(self) -> list[ThreadPool]:
        """This pool, and one in the other clock that a nested guest's offsets may be relative to (see ``nesting``)."""
        other = self.guest_host.other_clock() if self.guest_host else None
        return [self] if other is None else [self, ThreadPool(self.host, other)]

    @cached_property
    def anchored(self) -> ThreadPool | None:
        """The pool of a host that is a guest itself, by what anchors left of its own offsets; None: nothing."""
        above = self.guest_host.anchored() if self.guest_host else None
        return None if above is None else ThreadPool(self.host, above)

    def note(self, tid: int) -> tuple[str, ...]:
        """What the offsets of the thread's guest are relative to, where that is not plain."""
        clock = self.guest_host.clock_of(self.activity, tid) if self.guest_host else Clock.SHARED
        if clock is Clock.SHARED or self.guest_host is None:
            return ()
        cpus = ", ".join(map(str, self.activity.cpus_of(tid)))
        apart = f"the clocks of {self.host.name}'s CPUs {cpus} differ, and its thread ran on them"
        if clock is Clock.OWN:
            return (f"{apart}: the offset is to the clock of the CPU that it was on",)
        constant, cpu = self.guest_host.constant, self.guest_host.reference_cpu
        return (f"{apart}: the offset is to the clock of {self.host.name}'s host plus {constant}, which CPU {cpu} has",)

    def through(self, tid: int, stamp: U64, host_stamp: U64, placed: Bools) -> tuple[U64, I64]:
        """Take times of this host at which thread ``tid`` ran its guest, u64[n] in their order, to the first host's.

        ``host_stamp`` u64, ``placed`` bool: this host's own events there. Returns the times, and the row i64[n] of the
        entry by whose clock each was taken; -1: it is not known.
        """
        delta = host_stamp - self.host.stamp
        entry = self.entered(tid, stamp, host_stamp, placed)
        known = (entry >= 0) & placed[entry]
        above = self._above
        if above.clock_of(self.activity, tid) is Clock.REFERENCE:
            delta += above.ahead
        # what has passed since the entry, where the two clocks do not run alike
        passed = (stamp - self.host.stamp[entry]).view(np.int64) * above.slower(host_stamp, placed)[entry]
        passed = np.where(known, np.rint(passed), 0).astype(np.int64)
        return np.where(known, stamp + delta[entry] + passed.view(np.uint64), stamp), np.where(known, entry, -1)

    def entered(self, tid: int, stamp: U64, host_stamp: U64, placed: Bools) -> I64:
        """The rows i64[n] of the entries after which thread ``tid`` ran its guest at ``stamp``; -1: not known.

        Parameters as of ``through``.
        """
        host_base = int(host_stamp[placed].min()) if placed.any() else 0
        when = relative(stamp, self.host.base)
        return self._above.entered(self.activity, tid, when, relative(host_stamp, host_base))

    @property
    def _above(self) -> GuestHost:
        return self.guest_host or GuestHost(self.host, (), self.nested)

    def stretches(self, track: Track, tid: int) -> list[Stretch]:
        """``find_stretches`` of a track in a thread's windows, found once."""
        key = id(track), tid
        if key not in self._stretches:
            _, survivors = self._survivors.get(key, (track, None))
            found = find_stretches(track.guest, self.thread(tid), survivors=survivors)
            # the track is kept, so that its id stays its own
            self._stretches[key] = track, found
        return self._stretches[key][1]

    def may_match(self, track: Track, tid: int) -> bool:
        """Whether one offset may put all of the track's events into a thread's windows (a sample decides)."""
        thread = self.thread(tid)
        events = track.guest[:: max(1, len(track.guest) // SAMPLE)]
        try:
            found = IntervalSet.of(*overlap_range(track.guest, thread))
            found = narrow(found, events, thread.gap_lo, thread.gap_hi)
        except TooManyError:
            return True
        self._survivors[id(track), tid] = track, found
        return len(found) > 0


def vcpu_ids(host: Recording) -> dict[int, int]:
    """vCPU id by thread: x86's kvm_entry has the field, arm64's kvm_get_timer_map is sent by the vCPU's thread."""
    for name in ("kvm_entry", "kvm_get_timer_map"):
        event = host.format_named("kvm", name)
        rows = host.rows(event)
        if event is None or not len(rows) or event.field("vcpu_id") is None:
            continue
        try:
            ids = host.column(event, "vcpu_id", rows).astype(np.int64)
        except KeyError:
            continue
        tids, first = distinct(host.pid[rows])
        return dict(zip(tids.tolist(), ids[first].tolist(), strict=True))
    return {}


def _named(host: Recording) -> dict[int, int]:
    """vCPU number by thread, as the threads are called."""
    found = {tid: _VCPU_NAME.fullmatch(comm) for tid, comm in host.cmdlines.items()}
    return {tid: int(name[1] or name[2]) for tid, name in found.items() if name}


def _covered(track: Track, tid: int, pool: ThreadPool) -> bool:
    """Whether stretches of one offset each, none of them weak, explain most of the events."""
    explained = sum(s.last - s.first for s in pool.stretches(track, tid) if not s.fit.weak)
    return explained * MIN_COVERED > len(track.guest)


def match(tracks: list[Track], pool: ThreadPool, hints: Hints, claimed: dict[int, list[int]]) -> dict[int, Match]:
    """Find the thread of each track; ``claimed`` holds offsets (absolute) that are claimed per guest CPU."""
    out: dict[int, Match] = {}
    left = {track.cpu: track for track in tracks}
    for cpu, tid in hints.given.items():
        if cpu in left:
            out[cpu] = Match(tid, "given")
            del left[cpu]
    taken = {m.tid for m in out.values()}
    free = [tid for tid in pool.tids if tid not in taken]
    options: dict[int, list[int]] = {}
    for cpu, track in left.items():
        options[cpu] = [
            tid
            for tid in free
            if any(_fits(track, pool.thread(tid), offset) for offset in claimed.get(cpu, ()))
            or pool.may_match(track, tid)
        ]
    settled: set[int] = set()
    for cpu, track in left.items():
        strong = [tid for tid in options[cpu] if _is_strong(track, tid, pool, claimed.get(cpu, ()))]
        if strong:
            options[cpu] = strong
            settled.update(strong if len(strong) == 1 else ())
            continue
        # no single offset speaks for a thread: one that changed may, and exclusion by single offsets proves nothing
        free_now = [tid for tid in free if tid not in settled]
        options[cpu] = _piecewise(cpu, track, free_now, pool, hints) or options[cpu]
    _eliminate(options, settled)
    for cpu, track in left.items():
        out[cpu] = _decide(cpu, track, options[cpu], pool, hints)
    return out


def match_lines(tracks: list[Track], pool: ThreadPool, hints: Hints, relation: Relation) -> dict[int, Match]:
    """Find the thread of each track where the rates differ: the one in whose windows lines hold most of its events."""
    out: dict[int, Match] = {}
    free = list(pool.tids)
    for cpu, tid in hints.given.items():
        out[cpu] = Match(tid, "given")
        if tid in free:
            free.remove(tid)
    for track in tracks:
        if track.cpu in out:
            continue
        hinted = hints.guest_option.get(track.cpu)
        order = _likelier_first(track.cpu, free, pool, hints)
        found = next((tid for tid in order[:MAX_PIECEWISE] if is_held(track, pool.pieces(track, tid, relation))), None)
        if found is None:
            # where any thread may be a vCPU's there are hundreds: each of the others gets a look
            rest = [tid for tid in order[MAX_PIECEWISE:] if pool.may_hold(track, tid, relation)]
            found = next((tid for tid in rest if is_held(track, pool.pieces(track, tid, relation))), None)
        if found is None:
            out[track.cpu] = Match(None, "causality", (NO_THREAD,))
            continue
        free.remove(found)
        notes: tuple[str, ...] = ()
        if hinted is not None and hinted > 0 and found != hinted:
            why = "has no kvm events" if hinted not in pool.tids else "is excluded by causality"
            notes = (f"the GUEST option names thread {hinted}, which {why}",)
        out[track.cpu] = Match(found, "guest-option" if found == hinted else "causality", notes)
    return out


def _likelier_first(cpu: int, tids: Sequence[int], pool: ThreadPool, hints: Hints) -> list[int]:
    """Threads in the order in which to try them: what is said of them, and then the busier ones."""
    hinted = hints.guest_option.get(cpu)
    order = sorted(tids, key=lambda tid: (tid != hinted, pool.vcpu_ids.get(tid) != cpu, tid))
    if pool.activity.kind is WindowKind.SCHED_SWITCH:
        edges = pool.activity.edges
        order.sort(key=lambda tid: (tid != hinted, pool.named.get(tid) != cpu, -edges[tid]))
    return order


def is_held(track: Track, pieces: Sequence[Piece]) -> bool:
    """Whether pieces hold most of the track's events."""
    return MIN_COVERED * sum(p.last - p.first for p in pieces) > len(track.guest)


def _is_strong(track: Track, tid: int, pool: ThreadPool, offsets: Sequence[int]) -> bool:
    """Whether one claimed offset fits all events, or any that are found most, with evidence."""
    thread = pool.thread(tid)
    for offset in offsets:
        outcome = check(track.guest, track.relative_offset(offset, thread.windows.base), thread)
        if not outcome.violations and outcome.evidence >= EVIDENCE_FOR_CLAIM:
            return True
    return _covered(track, tid, pool)


def _fits(track: Track, thread: Thread, offset: int) -> bool:
    outcome = check(track.guest, track.relative_offset(offset, thread.windows.base), thread)
    return not outcome.violations and outcome.inside > 0


def _piecewise(cpu: int, track: Track, free: list[int], pool: ThreadPool, hints: Hints) -> list[int]:
    """Threads whose windows explain most of the events with several offsets; the hinted ones are tried first."""
    if len(track.guest) < 2 * MIN_CHUNK:
        return []
    order = _likelier_first(cpu, free, pool, hints)
    if pool.activity.kind is WindowKind.SCHED_SWITCH:
        order = order[:MAX_PIECEWISE]
    for tid in order:
        if _covered(track, tid, pool):
            return [tid]
    return []


def _eliminate(options: dict[int, list[int]], settled: set[int]) -> None:
    """A thread that is one CPU's only choice, with evidence, is no other's."""
    changed = True
    while changed:
        changed = False
        for tids in options.values():
            if len(tids) != 1 or tids[0] not in settled:
                continue
            for others in options.values():
                if others is not tids and tids[0] in others and len(others) > 1:
                    others.remove(tids[0])
                    changed = True
                    if len(others) == 1:
                        settled.update(others)


def _bits(track: Track, tid: int, pool: ThreadPool) -> int | None:
    """The evidence of the best offset that was found; None where too many fit to tell."""
    return max((s.fit.candidates[0].evidence for s in pool.stretches(track, tid) if s.fit.candidates), default=None)


def _decide(cpu: int, track: Track, tids: list[int], pool: ThreadPool, hints: Hints) -> Match:
    hinted = hints.guest_option.get(cpu)
    if not tids:
        if hinted is not None and hinted in pool.tids:
            return Match(hinted, "guest-option", (f"no offset puts its events into the windows of thread {hinted}",))
        return Match(None, "causality", (NO_THREAD,))
    if hinted is not None and hinted in tids:
        return Match(hinted, "guest-option")
    strong = [tid for tid in tids if _covered(track, tid, pool)]
    notes: tuple[str, ...] = ()
    if hinted is not None and hinted > 0:
        if hinted in pool.tids and not strong:
            return Match(
                hinted, "guest-option", (f"no one offset puts its events into the windows of thread {hinted}",)
            )
        why = "has no kvm events" if hinted not in pool.tids else "is excluded by causality"
        notes = (f"the GUEST option names thread {hinted}, which {why}",)
    if len(tids) == 1:
        return Match(tids[0], "causality", notes)
    if len(strong) == 1:
        return Match(strong[0], "causality", notes)
    bits = {tid: found for tid in strong or tids if (found := _bits(track, tid, pool)) is not None}
    ranked = sorted(bits, key=lambda tid: -bits[tid])
    if len(bits) == len(strong or tids) and bits[ranked[0]] > RIVAL_SHARE * bits[ranked[1]]:
        return Match(ranked[0], "causality", notes)
    named = [tid for tid in (strong or tids) if pool.vcpu_ids.get(tid) == cpu]
    if len(named) == 1:
        return Match(named[0], "vcpu-id", notes)
    called = [tid for tid in tids if pool.named.get(tid) == cpu]
    # a name says which thread to report on, not which of two that fit
    if len(called) == 1 and not strong:
        return Match(called[0], "comm", notes)
    listed = ", ".join(map(str, tids[:8])) + (", ..." if len(tids) > 8 else "")
    return Match(None, "causality", (*notes, f"{len(tids)} threads can hold its events: {listed}"))
