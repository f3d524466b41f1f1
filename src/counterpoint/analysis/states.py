"""What each vCPU was doing at every instant: by its host, by its host's host where that took it away, and in the guest.

    for vcpu in vcpu_states(result):
        print(vcpu.guest, vcpu.guest_cpu, vcpu.residency())

The states of a vCPU are exhaustive and disjoint, to the unit of the first host's clock: they cover its host's recording
from the first event on the timeline to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.contexts import Context, context_steps
from counterpoint.analysis.edges import Edge, HostEdges
from counterpoint.analysis.steps import combine
from counterpoint.analysis.threads import State, Steps, thread_steps
from counterpoint.clocks.counter import I64
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult

__all__ = ["State", "VcpuStates", "vcpu_states"]

_RUNS = (State.GUEST, State.KERNEL, State.USER, State.OUTSIDE, State.POLLING)
"""States in which a thread is on a CPU of its machine, which may be a vCPU itself."""


@dataclass(frozen=True)
class VcpuStates:
    """The states of one vCPU's thread ``tid`` of ``host``; ``guest`` is None where it is not known whose vCPU it is.

    Each holds from ``begin`` i64[n] (times counted from ``Timeline.base``, in order) to the next one's, the last to
    ``end``. ``state`` u8[n]: a ``State``. ``machine`` u16[n]: whose recording tells it, as an index into
    ``Timeline.machines``; where that is the host's host, the host's own vCPU was in that state. ``cause`` i64[n]: the
    row there of the kvm_exit or kvm_userspace_exit that began it, -1: none. ``cpu`` i64[n]: the CPU there that it is
    on, or waits for, -1: none. ``by`` i64[n]: the thread there that runs while this one waits, -1: not known.

    In guest mode: ``context`` u8[n], a ``contexts.Context``, and ``what`` i64[n], the guest's thread, softirq or
    interrupt (-1 elsewhere, and where the guest's own recording does not tell). In the VMM: ``Context.SYSCALL`` and the
    number of the system call that it is in, where the host recorded them.
    """

    host: str
    tid: int
    guest: str | None
    guest_cpu: int | None
    begin: I64
    end: int
    state: npt.NDArray[np.uint8]
    machine: npt.NDArray[np.uint16]
    cause: I64
    cpu: I64
    by: I64
    context: npt.NDArray[np.uint8]
    what: I64
    hosts: tuple[HostEdges, ...]
    """By index into ``Timeline.machines``: what names the causes."""

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.begin)

    @cached_property
    def ends(self) -> I64:
        """Where each state ends i64[n]."""
        return np.r_[self.begin[1:], np.int64(self.end)] if len(self.begin) else self.begin

    def residency(self) -> dict[State, int]:
        """How long each state held in all, in the first host's units: together the whole span."""
        took = np.zeros(len(State), np.int64)
        np.add.at(took, self.state, self.ends - self.begin)
        return {state: int(took[state]) for state in State}

    def woken_by(self) -> I64:
        """What ended each sleep: the row i64[n] of the sched_waking of a halted or blocked thread; -1: unknown."""
        number = next(n for n, host in enumerate(self.hosts) if host.machine.name == self.host)
        edges = self.hosts[number].edges_of(self.tid)
        waking = edges.kind == Edge.WAKING
        when, row = edges.when[waking], edges.row[waking]
        at = np.searchsorted(when, self.ends)
        there = at < len(when)
        asleep = np.isin(self.state, (State.HALTED, State.BLOCKED)) & (self.machine == number) & there
        at = np.where(asleep, at, 0)
        return np.where(asleep & (when[at] == self.ends), row[at], -1) if len(when) else np.full(len(self), -1)

    def causes(self) -> tuple[I64, list[str]]:
        """The names of what began each state, such as "hlt" or "MMIO": an index i64[n] (-1: none) into the names."""
        index = np.full(len(self), -1, np.int64)
        names: dict[str, int] = {}
        for number in np.unique(self.machine).tolist():
            mine = np.flatnonzero(self.machine == number)
            at, found = self.hosts[number].names.of(self.cause[mine])
            numbers = np.array([names.setdefault(name, len(names)) for name in found] + [-1], np.int64)
            index[mine] = numbers[at]
        return index, list(names)


def vcpu_states(result: SyncResult) -> list[VcpuStates]:
    """The states of every vCPU thread of every host, further host and guest with guests, in the machines' order."""
    return list(_all(result))


def _all(result: SyncResult) -> Iterator[VcpuStates]:
    timeline = result.timeline
    hosts = tuple(HostEdges(machine, timeline.base, timeline.rate) for machine in timeline.machines)
    parents = {h.name for h in result.hosts} | {g.parent for g in result.guests}
    by_name = {machine.name: machine for machine in timeline.machines}
    of_guest: dict[str, list[VcpuStates]] = {}
    # parents lie before their guests
    for number, host in enumerate(hosts):
        machine = host.machine
        if machine.name not in parents or not machine.placed.any():
            continue
        vcpus = vcpus_by_thread(result, machine.name)
        for tid in host.tids:
            guest, cpu = vcpus.get(tid, (None, None))
            whole = _alone(hosts, number, tid, thread_steps(host, tid), guest, cpu)
            whole = _in_calls(whole, host)
            for above in of_guest.get(machine.name, []):
                whole = _under(whole, above, number)
            if guest is not None and cpu is not None:
                whole = _within(whole, by_name[guest], cpu, timeline.base)
                of_guest.setdefault(guest, []).append(whole)
            yield whole


def _alone(
    hosts: tuple[HostEdges, ...], number: int, tid: int, steps: Steps, guest: str | None, cpu: int | None
) -> VcpuStates:
    n = len(steps.begin)
    machine, context, what = np.full(n, number, np.uint16), np.zeros(n, np.uint8), np.full(n, -1, np.int64)
    return VcpuStates(
        hosts[number].machine.name, tid, guest, cpu, steps.begin, steps.end, steps.state, machine, steps.cause,
        steps.cpu, steps.by, context, what, hosts,
    )  # fmt: skip


def _with(of: VcpuStates, begin: I64, columns: dict[str, Any]) -> VcpuStates:
    """``of`` with other steps, those that do not differ joined."""
    fresh = np.ones(len(begin), np.bool_)
    fresh[1:] = np.any([column[1:] != column[:-1] for column in columns.values()], axis=0)
    return replace(of, begin=begin[fresh], **{name: column[fresh] for name, column in columns.items()})


_COLUMNS = ("state", "machine", "cause", "cpu", "by", "context", "what")


def _under(of: VcpuStates, above: VcpuStates, number: int) -> VcpuStates:
    """``of``, doing what ``above`` does where its thread runs on the CPU that is, and that is not in guest mode."""
    begin, mine, theirs = combine(of.begin, above.begin)
    keep = (mine >= 0) & (begin < of.end)
    begin, mine, theirs = begin[keep], mine[keep], theirs[keep]
    seen = (theirs >= 0) & (begin < above.end)
    # where no switches were recorded, a thread outside guest mode may be anywhere, or asleep
    runs = _RUNS if of.hosts[number].switches is not None else (State.GUEST,)
    here = np.isin(of.state[mine], runs) & (of.machine[mine] == number) & (of.cpu[mine] == above.guest_cpu)
    taken = here & seen & (above.state[theirs] != State.GUEST)
    columns = {name: np.where(taken, getattr(above, name)[theirs], getattr(of, name)[mine]) for name in _COLUMNS}
    return _with(of, begin, columns)


def _in_calls(of: VcpuStates, host: HostEdges) -> VcpuStates:
    """``of`` with its time in the VMM cut by the system calls that it makes."""
    when, number = host.calls(of.tid)
    leave = host.recording.format_named("kvm", "kvm_userspace_exit")
    if not len(when) or leave is None:
        return of
    in_vmm = (of.cause >= 0) & (host.recording.event_id[of.cause] == leave.id)
    begin, mine, theirs = combine(of.begin, when)
    keep = (mine >= 0) & (begin < of.end)
    begin, mine, theirs = begin[keep], mine[keep], theirs[keep]
    known = in_vmm[mine] & (theirs >= 0) & (number[theirs] >= 0)
    columns = {name: getattr(of, name)[mine] for name in _COLUMNS}
    columns["context"] = np.where(known, np.uint8(Context.SYSCALL), columns["context"])
    columns["what"] = np.where(known, number[theirs], columns["what"])
    return _with(of, begin, columns)


def _within(of: VcpuStates, guest: Machine, cpu: int, base: int) -> VcpuStates:
    """``of`` with its time in guest mode cut by what the guest ran there."""
    steps = context_steps(guest, cpu, base)
    in_guest = of.state == State.GUEST
    if not len(steps.begin) or not in_guest.any():
        return of
    begin, mine, theirs = combine(of.begin, steps.begin)
    keep = (mine >= 0) & (begin < of.end)
    begin, mine, theirs = begin[keep], mine[keep], theirs[keep]
    known = in_guest[mine] & (theirs >= 0)
    columns = {name: getattr(of, name)[mine] for name in _COLUMNS}
    columns["context"] = np.where(known, steps.context[theirs], columns["context"])
    columns["what"] = np.where(known, steps.what[theirs], columns["what"])
    return _with(of, begin, columns)
