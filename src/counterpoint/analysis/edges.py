"""What a host's events say of when its vCPU threads change what they do: one column of edges for each thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.exits import ExitNames
from counterpoint.analysis.placed import Placed
from counterpoint.clocks.counter import I64, Bools, relative
from counterpoint.clocks.rate import Rate
from counterpoint.proof.windows import HostActivity
from counterpoint.timeline.merge import Machine
from counterpoint.traces.formats import EventFormat

FOREVER = np.int64(1 << 62)
"""Stands for an open end."""

NOT_RUNNABLE = 0xFF
"""The bits of sched_switch's prev_state that say why a thread sleeps; none: it was preempted (TASK_STATE_MAX beside
them, include/trace/events/sched.h)."""


class Edge(IntEnum):
    """What an event says of the thread."""

    ENTRY = 0
    """kvm_entry: it goes into guest mode."""
    EXIT = 1
    """kvm_exit."""
    TO_USER = 2
    """kvm_userspace_exit: KVM_RUN returns to the VMM."""
    HALT = 3
    """KVM begins to wait for something to do, by what kvm_vcpu_wakeup says later."""
    WOKEN = 4
    """kvm_vcpu_wakeup: it has something to do."""
    TO = 5
    """sched_switch to it."""
    PREEMPTED = 6
    """sched_switch away from it, though it could run."""
    SLEEPS = 7
    """sched_switch away from it, until something wakes it."""
    WAKING = 8
    """sched_waking (or sched_wakeup): it may run again."""


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges of one thread in their order.

    ``kind`` u8[n], ``when`` i64[n] (from the timeline's base), ``row`` i64[n] of the event (-1: an edge of none), and
    ``cpu`` i64[n]: where the thread was, or is to run (-1: not known).

    ``broken`` bool[n]: an event of the thread whose place is not known lies before it.
    """

    kind: npt.NDArray[np.uint8]
    when: I64
    row: I64
    cpu: I64
    broken: Bools


class HostEdges(Placed):
    """The edges of all vCPU threads of one machine, and what its recording can tell at all."""

    def __init__(self, machine: Machine, base: int, rate: Rate | None) -> None:
        """Times are counted from ``base``, in units of the first host's clock, of this ``rate``."""
        super().__init__(machine, base)
        self.names = ExitNames(machine.recording)
        self._rate = rate

    @cached_property
    def span(self) -> tuple[int, int]:
        """The first and the last time of the machine's events on the timeline; (0, 0): none is on it."""
        placed = np.flatnonzero(self.machine.placed)
        if not len(placed):
            return 0, 0
        when = self.when(placed)
        return int(when.min()), int(when.max())

    @cached_property
    def lost(self) -> tuple[I64, I64, I64]:
        """(cpu, from, to): spans in which a CPU's events were lost."""
        recording, losses = self.recording, self.recording.losses
        first = np.array([s.first for s in recording.streams], np.int64)[losses.stream]
        last = np.array([s.last for s in recording.streams], np.int64)[losses.stream]
        after_some, before_some = losses.row > first, losses.row < last
        before, after = losses.row[after_some] - 1, losses.row[before_some]
        lo = np.full(len(first), -FOREVER)
        hi = np.full(len(first), FOREVER)
        lo[after_some] = np.where(self.machine.placed[before], self.when(before), -FOREVER)
        hi[before_some] = np.where(self.machine.placed[after], self.when(after), FOREVER)
        return self._cpus[losses.stream], lo, hi

    @cached_property
    def switches(self) -> tuple[I64, I64, I64, I64, I64] | None:
        """sched_switch: (row, cpu, prev_pid, next_pid, prev_state); None where it was not recorded."""
        event = self.recording.format_named("sched", "sched_switch")
        rows = self.recording.rows(event)
        if event is None or not len(rows):
            return None
        try:
            prev, following, state = (
                self.recording.column(event, name, rows).astype(np.int64)
                for name in ("prev_pid", "next_pid", "prev_state")
            )
        except KeyError:
            return None
        return rows, self.cpu(rows), prev, following, state

    @cached_property
    def wakings(self) -> tuple[I64, I64, I64] | None:
        """sched_waking, else sched_wakeup: (row, pid, target_cpu); None where neither was recorded."""
        for name in ("sched_waking", "sched_wakeup"):
            event = self.recording.format_named("sched", name)
            rows = self.recording.rows(event)
            if event is None or not len(rows):
                continue
            try:
                pid, cpu = (
                    self.recording.column(event, field, rows).astype(np.int64) for field in ("pid", "target_cpu")
                )
            except KeyError:
                continue
            return rows, pid, cpu
        return None

    @cached_property
    def knows_user(self) -> bool:
        """Whether the recording tells the VMM's own time from the kernel's.

        A file lists the formats of the events that were recorded: kvm_userspace_exit may be among them and none have
        happened.
        """
        return self.recording.format_named("kvm", "kvm_userspace_exit") is not None

    @cached_property
    def untraced(self) -> bool:
        """Whether the machine has CPUs that were not traced, by all that can be told."""
        if len({s.cpu for s in self.recording.streams if s.last > s.first}) == self.recording.cpus:
            return False
        return not HostActivity(self.recording).silent_cpus_were_traced

    @cached_property
    def _all(self) -> Edges:
        """The edges of all threads, and as ``row`` of those of no event -1; the threads are in ``_tid``."""
        kinds: list[tuple[Edge, I64, I64, I64, I64]] = []  # kind, tid, when, row, cpu
        for kind, name in ((Edge.ENTRY, "kvm_entry"), (Edge.EXIT, "kvm_exit"), (Edge.TO_USER, "kvm_userspace_exit")):
            self._add(kinds, kind, self.recording.rows(self.recording.format_named("kvm", name)))
        self._halts(kinds)
        if self.switches is not None:
            row, cpu, prev, following, state = self.switches
            sleeps = (state & NOT_RUNNABLE) != 0
            for kind, tid, these in (
                (Edge.TO, following, following > 0),
                (Edge.PREEMPTED, prev, (prev > 0) & ~sleeps),
                (Edge.SLEEPS, prev, (prev > 0) & sleeps),
            ):
                kinds.append((kind, tid[these], self.when(row[these]), row[these], cpu[these]))
            if self.wakings is not None:
                row, tid, cpu = self.wakings
                kinds.append((Edge.WAKING, tid, self.when(row), row, cpu))
        of = np.repeat(np.array([k[0] for k in kinds], np.uint8), [len(k[1]) for k in kinds])
        tid, when, row, cpu = (np.concatenate([k[n] for k in kinds]) for n in range(1, 5))
        vcpu = np.isin(tid, np.unique(tid[of <= Edge.EXIT]))
        of, tid, when, row, cpu = of[vcpu], tid[vcpu], when[vcpu], row[vcpu], cpu[vcpu]
        order = np.lexsort((row, when, tid))
        self._tid = tid[order]
        return Edges(of[order], when[order], row[order], cpu[order], np.zeros(len(order), np.bool_))

    def _add(self, kinds: list[tuple[Edge, I64, I64, I64, I64]], kind: Edge, rows: I64) -> None:
        kinds.append((kind, self.recording.pid[rows].astype(np.int64), self.when(rows), rows, self.cpu(rows)))

    def _halts(self, kinds: list[tuple[Edge, I64, I64, I64, I64]]) -> None:
        """kvm_vcpu_wakeup tells how long KVM waited, polling first (kvm_vcpu_halt in virt/kvm/kvm_main.c)."""
        event = self.recording.format_named("kvm", "kvm_vcpu_wakeup")
        rows = self.recording.rows(event)
        self._add(kinds, Edge.WOKEN, rows)
        if event is None or self._rate is None or not _has_int(event, "ns"):
            return
        ns = self.recording.column(event, "ns", rows).astype(np.int64)
        sane = (ns >= 0) & (ns < 1 << 50)
        rows, waited = rows[sane], self._rate.from_ns(ns[sane])[0].astype(np.int64)
        none = np.full(len(rows), -1, np.int64)
        kinds.append((Edge.HALT, self.recording.pid[rows].astype(np.int64), self.when(rows) - waited, none, none))

    @cached_property
    def _calls(self) -> tuple[I64, I64, I64]:
        """(thread, when, number) of system calls and of their ends (-1), sorted by thread and time."""
        tids, whens, numbers = ([np.zeros(0, np.int64)] for _ in range(3))
        for event in self.recording.formats.values():
            if event.system not in ("raw_syscalls", "syscalls") or not event.name.startswith(("sys_enter", "sys_exit")):
                continue
            rows = self.recording.rows(event)
            rows = rows[self.machine.placed[rows]]
            field = "id" if event.system == "raw_syscalls" else "__syscall_nr"
            if not len(rows) or not _has_int(event, field):
                continue
            tids.append(self.recording.pid[rows].astype(np.int64))
            whens.append(self.when(rows))
            number = self.recording.column(event, field, rows).astype(np.int64)
            numbers.append(number if event.name.startswith("sys_enter") else np.full(len(rows), -1, np.int64))
        tid, when, number = (np.concatenate(parts) for parts in (tids, whens, numbers))
        order = np.lexsort((when, tid))
        return tid[order], when[order], number[order]

    def calls(self, tid: int) -> tuple[I64, I64]:
        """(when, number) of a thread's system calls, in order; number -1 where it returns from one."""
        of, when, number = self._calls
        part = slice(*np.searchsorted(of, [tid, tid + 1]).tolist())
        return when[part], number[part]

    @cached_property
    def tids(self) -> list[int]:
        """The threads with kvm_entry or kvm_exit."""
        self._all  # noqa: B018
        return [int(t) for t in np.unique(self._tid).tolist()]

    def edges_of(self, tid: int) -> Edges:
        """The edges of one thread that are on the timeline."""
        whole = self._all
        part = slice(*np.searchsorted(self._tid, [tid, tid + 1]).tolist())
        kind, when, row, cpu = whole.kind[part], whole.when[part], whole.row[part], whole.cpu[part]
        broken = np.zeros(len(kind), np.bool_)
        placed = np.where(row >= 0, self.machine.placed[row], True)
        if not placed.all():
            # by the machine's own clock: an event lies before it whose place on the timeline is not known
            events = np.flatnonzero(row >= 0)
            events = events[np.argsort(relative(self.recording.stamp[row[events]], self.recording.base), kind="stable")]
            broken[events[1:]] = ~placed[events[:-1]]
            kind, when, row, cpu, broken = kind[placed], when[placed], row[placed], cpu[placed], broken[placed]
        return Edges(kind, when, row, cpu, broken)


def _has_int(event: EventFormat, name: str) -> bool:
    field = event.field(name)
    return field is not None and field.kind == "int"
