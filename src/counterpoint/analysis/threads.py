"""What a vCPU's thread was doing at every instant, by its own host's recording.

Two things are followed through the thread's events: where it is in KVM (guest mode, an exit, the VMM), and whether it
is on a CPU, may run, or sleeps. An event that does not fit what came before says that events are missing: what lies
between the two is unknown. So is what a loss of events may hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.edges import FOREVER, Edge, Edges, HostEdges
from counterpoint.analysis.exits import is_halt
from counterpoint.analysis.steps import combine, held, last_set, merged, step_at, within
from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.windows import overlaps


class State(IntEnum):
    """What a vCPU does; each instant has one."""

    UNKNOWN = 0
    """The host did not see: before the thread's first event and after its last, events lost or missing."""
    GUEST = 1
    """In guest mode: from kvm_entry to kvm_exit."""
    KERNEL = 2
    """On a CPU in the host's kernel, handling the exit."""
    USER = 3
    """On a CPU in the VMM: from kvm_userspace_exit to the next kvm_entry, KVM_RUN's way in included."""
    OUTSIDE = 4
    """Not in guest mode; what else is not recorded (no kvm_userspace_exit, or no sched_switch)."""
    POLLING = 5
    """On a CPU in kvm_vcpu_halt before it sleeps, by what kvm_vcpu_wakeup says."""
    HALTED = 6
    """Asleep, since the guest has nothing to do; until something wakes it, or runs it where no waking was recorded."""
    BLOCKED = 7
    """Asleep for another reason: in the VMM, or in the kernel for a page or a lock."""
    WAITING = 8
    """It could run and another thread does: preempted, or woken and not yet on a CPU."""


_ON, _READY, _ASLEEP = 0, 1, 2
_IN_GUEST, _IN_EXIT, _IN_USER = 0, 1, 2

# what each edge sets, and what has to hold before it: -1 nothing
_SCHED = {
    Edge.ENTRY: _ON, Edge.EXIT: _ON, Edge.TO_USER: _ON, Edge.WOKEN: _ON, Edge.TO: _ON, Edge.PREEMPTED: _READY,
    Edge.SLEEPS: _ASLEEP,
}  # fmt: skip
_KVM = {Edge.ENTRY: _IN_GUEST, Edge.EXIT: _IN_EXIT, Edge.TO_USER: _IN_USER}


def _table(values: dict[Edge, int]) -> I64:
    return np.array([values.get(edge, -1) for edge in Edge], np.int64)


@dataclass(frozen=True, slots=True)
class Steps:
    """A thread's states in order: each holds from its ``begin`` i64[n] to the next one's, the last to ``end``.

    ``state`` u8[n]; ``cause`` i64[n]: the row of the kvm_exit or kvm_userspace_exit that began it (-1: none); ``cpu``
    i64[n]: where the thread is, or waits to be (-1: not known); ``by`` i64[n]: the thread that runs on that CPU while
    this one waits (-1: not known).
    """

    begin: I64
    end: int
    state: npt.NDArray[np.uint8]
    cause: I64
    cpu: I64
    by: I64

    def take(self, at: I64, begin: I64) -> Steps:
        """The steps ``at`` i64[k] beginning at ``begin`` i64[k], with equal neighbours joined."""
        state, cause, cpu, by = self.state[at], self.cause[at], self.cpu[at], self.by[at]
        fresh = np.ones(len(at), np.bool_)
        fresh[1:] = np.any([each[1:] != each[:-1] for each in (state, cause, cpu, by)], axis=0)
        return Steps(begin[fresh], self.end, state[fresh], cause[fresh], cpu[fresh], by[fresh])


def thread_steps(host: HostEdges, tid: int) -> Steps:
    """The states of thread ``tid`` over the span of its host's recording."""
    first, last = host.span
    edges, sched, kvm = _followed(host.edges_of(tid))
    state, cause = _states(host, edges, sched, kvm)
    fits = _fits(host, edges, sched, kvm)
    # before the first edge and after the last nothing is known
    begin = np.r_[np.int64(first), np.maximum(edges.when, first)]
    whole = Steps(
        begin,
        last,
        np.r_[np.uint8(State.UNKNOWN), state],
        np.r_[np.int64(-1), cause],
        np.r_[np.int64(-1), _where(edges, sched)],
        np.full(len(begin), -1, np.int64),
    )
    if len(edges.when):
        whole.state[-1], whole.cause[-1], whole.cpu[-1] = State.UNKNOWN, -1, -1
    lo, hi = _dark(host, whole, np.r_[True, fits[1:], True] if len(fits) else np.ones(1, np.bool_))
    return _waited_for(host, _without(whole, lo, hi))


def _followed(edges: Edges) -> tuple[Edges, I64, I64]:
    """The edges that change something, and after each of them where the thread is: on a CPU or not, and in KVM."""
    sched = _table(_SCHED)[edges.kind]
    waking = edges.kind == Edge.WAKING
    # one that is not asleep is not woken: it is about to sleep, and will not
    before = held(np.where(waking, -1, sched))
    woken = waking & (before == _ASLEEP)
    sched = np.where(woken, _READY, sched)
    # a second one of the same sleep changes nothing
    repeated = np.zeros(len(woken), np.bool_)
    at = last_set(sched)
    repeated[1:] = woken[1:] & (at[:-1] >= 0) & (edges.kind[at[:-1]] == Edge.WAKING)
    keep = ~waking | (woken & ~repeated)
    # when KVM began to wait is worked out, not recorded: it tells something within an exit alone
    kvm = held(_table(_KVM)[edges.kind])
    keep &= (edges.kind != Edge.HALT) | ((kvm == _IN_EXIT) & (held(sched) == _ON))
    kept = Edges(edges.kind[keep], edges.when[keep], edges.row[keep], edges.cpu[keep], edges.broken[keep])
    return kept, held(sched[keep]), held(_table(_KVM)[kept.kind])


def _where(edges: Edges, sched: I64) -> I64:
    """The CPU of each step: where the thread runs, was preempted or is to wake up; none while it sleeps."""
    known = np.where(edges.cpu >= 0, edges.cpu, -1)
    return np.where(sched == _ASLEEP, -1, held(known))


def _states(host: HostEdges, edges: Edges, sched: I64, kvm: I64) -> tuple[npt.NDArray[np.uint8], I64]:
    """State and cause after each edge."""
    exits = np.where(np.isin(edges.kind, (Edge.EXIT, Edge.TO_USER)), edges.row, -1)
    cause = np.where(kvm == _IN_GUEST, -1, held(exits))
    polls = np.where(edges.kind == Edge.HALT, 1, np.where(edges.kind == Edge.WAKING, -1, 0))
    polling = held(polls) == 1
    out = np.full(len(edges.kind), State.UNKNOWN, np.uint8)
    if host.switches is None:
        # nothing tells whether it sleeps
        out[kvm == _IN_GUEST] = State.GUEST
        out[(kvm == _IN_EXIT) | (kvm == _IN_USER)] = State.OUTSIDE
        return out, cause
    on = sched == _ON
    out[on & (kvm == _IN_GUEST)] = State.GUEST
    out[on & (kvm == _IN_EXIT)] = State.KERNEL if host.knows_user else State.OUTSIDE
    out[on & (kvm == _IN_USER)] = State.USER
    out[on & (kvm == _IN_EXIT) & polling] = State.POLLING
    out[sched == _READY] = State.WAITING
    out[sched == _ASLEEP] = State.BLOCKED
    out[(sched == _ASLEEP) & (kvm == _IN_EXIT) & _halting(host, edges, cause)] = State.HALTED
    return out, cause


def _halting(host: HostEdges, edges: Edges, cause: I64) -> Bools:
    """Whether what is handled is a halt: by its name, or since kvm_vcpu_wakeup ended it."""
    _, at = np.unique(cause, return_inverse=True)
    woken = np.zeros(int(at.max(initial=-1)) + 1, np.bool_)
    woken[at[edges.kind == Edge.WOKEN]] = True
    return is_halt(*host.names.of(cause)) | woken[at]


def _fits(host: HostEdges, edges: Edges, sched: I64, kvm: I64) -> Bools:
    """Whether each edge can follow the one before it."""
    n = len(edges.kind)
    kind = edges.kind
    was_sched, was_kvm = np.r_[np.int64(-1), sched[:-1]][:n], np.r_[np.int64(-1), kvm[:-1]][:n]
    fits = ~edges.broken
    if host.switches is not None:
        at_once = np.r_[np.int64(-1), _where(edges, sched)[:-1]][:n]
        runs = (kind <= Edge.TO_USER) | (kind == Edge.WOKEN) | (kind == Edge.PREEMPTED) | (kind == Edge.SLEEPS)
        fits &= ~runs | (was_sched == -1) | ((was_sched == _ON) & (edges.cpu == at_once))
        fits &= (kind != Edge.TO) | (was_sched != _ON)
        # who sleeps is woken before it runs
        if host.wakings is not None:
            fits &= (kind != Edge.TO) | (was_sched != _ASLEEP)
    # an entry and its exit are on one CPU
    cpu = held(edges.cpu)
    same = edges.cpu == np.r_[np.int64(-1), cpu[:-1]][:n]
    fits &= (kind != Edge.EXIT) | (was_kvm == -1) | ((was_kvm == _IN_GUEST) & same)
    fits &= (kind != Edge.ENTRY) | (was_kvm != _IN_GUEST)
    fits &= (kind != Edge.TO_USER) | (was_kvm == -1) | (was_kvm == _IN_EXIT)
    away = (kind == Edge.PREEMPTED) | (kind == Edge.SLEEPS) | (kind == Edge.WOKEN)
    fits &= ~away | (was_kvm != _IN_GUEST)
    return fits


def _dark(host: HostEdges, steps: Steps, fits: Bools) -> tuple[I64, I64]:
    """The spans of the steps that are unknown: what does not fit, and what may be hidden by a loss.

    ``fits`` bool[n]: whether what ends each step can follow it.
    """
    begin, end = steps.begin, np.r_[steps.begin[1:], np.int64(steps.end)]
    lost_cpu, lost_from, lost_to = host.lost
    spans = []
    # in guest mode, and on a CPU at all, a thread stays on it: what other CPUs lost hides nothing
    bound = (steps.state == State.GUEST) | (
        np.isin(steps.state, (State.KERNEL, State.USER, State.OUTSIDE, State.POLLING)) & (host.switches is not None)
    )
    first = np.full(len(begin), FOREVER)
    for cpu in np.unique(lost_cpu).tolist():
        lo, hi = lost_from[lost_cpu == cpu], lost_to[lost_cpu == cpu]
        here = np.flatnonzero(bound & (steps.cpu == cpu) & fits)
        spans.append(overlaps(begin[here], end[here], lo, hi))
        # asleep or waiting, it may have run wherever events were lost; and what does not fit fits up to the loss
        loose = np.flatnonzero(~bound | ((steps.cpu == cpu) & ~fits))
        begun, _ = overlaps(begin[loose], end[loose], lo, hi)
        np.minimum.at(first, loose[step_at(begin[loose], begun)], begun)
    # nor where CPUs were not traced at all
    if host.untraced:
        first[~bound] = begin[~bound]
    first = np.where(~fits & (first == FOREVER), begin, first)
    spans.append((np.minimum(first, end), end))
    return merged(*(np.concatenate(part) for part in zip(*spans, strict=True)))


def _without(steps: Steps, lo: I64, hi: I64) -> Steps:
    """The steps with the spans [lo, hi) unknown, within what was recorded."""
    begin, at, _ = combine(steps.begin, np.sort(np.r_[lo, hi]))
    keep = (at >= 0) & (begin < steps.end)
    begin, at = begin[keep], at[keep]
    dark = within(lo, hi, begin)
    state = np.where(dark, np.uint8(State.UNKNOWN), steps.state[at])
    cause, cpu = np.where(dark, -1, steps.cause[at]), np.where(dark, -1, steps.cpu[at])
    out = Steps(begin, steps.end, state, cause, cpu, np.full(len(begin), -1, np.int64))
    return out.take(np.arange(len(begin)), begin)


def _waited_for(host: HostEdges, steps: Steps) -> Steps:
    """The steps with those of waiting cut by who runs meanwhile on the CPU that is waited for."""
    waits = steps.state == State.WAITING
    if host.switches is None or not waits.any():
        return steps
    end = np.r_[steps.begin[1:], np.int64(steps.end)]
    row, cpu, _, following, _ = host.switches
    running: dict[int, tuple[I64, I64]] = {}
    cuts = []
    for number in np.unique(steps.cpu[waits]).tolist():
        here = np.flatnonzero((cpu == number) & host.machine.placed[row])
        when = host.when(row[here])
        order = np.argsort(when, kind="stable")
        running[number] = when[order], following[here[order]]
        mine = np.flatnonzero(waits & (steps.cpu == number))
        cuts.append(overlaps(steps.begin[mine], end[mine], when, when)[0])
    begin, at, _ = combine(steps.begin, np.unique(np.concatenate(cuts)))
    by = np.full(len(begin), -1, np.int64)
    for number, (when, runs) in running.items():
        mine = np.flatnonzero((steps.state[at] == State.WAITING) & (steps.cpu[at] == number))
        last = step_at(when, begin[mine])
        by[mine[last >= 0]] = runs[last[last >= 0]]
    cut = Steps(begin, steps.end, steps.state[at], steps.cause[at], steps.cpu[at], by)
    return cut.take(np.arange(len(begin)), begin)
