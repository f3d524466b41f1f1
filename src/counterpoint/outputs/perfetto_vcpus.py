"""What each vCPU was doing at every instant, as one track, and how often it left guest mode, as a counter.

The track has two rows. The upper says what the vCPU's thread did: ``guest mode``; the reason of an exit while KVM
handles it; ``VMM: reason`` while the VMM does; ``halted``, ``halt polling``, ``blocked``; ``waiting`` with the task
that runs instead; ``unknown`` where the host did not see. What the host's own host took away has that machine's name
before it. The lower row says what the guest ran in guest mode, by its own recording: a task, a softirq, a handler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from counterpoint.analysis.contexts import Context, softirq_name
from counterpoint.analysis.states import State, VcpuStates, vcpu_states
from counterpoint.clocks.counter import I64, add
from counterpoint.clocks.rate import Rate
from counterpoint.outputs.perfetto_events import fields_of
from counterpoint.outputs.perfetto_lanes import BLOCK, Lane
from counterpoint.outputs.pftrace import PerfettoWriter
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.distinct import distinct_rows
from counterpoint.traces.formats import EventFormat

BINS = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
"""How long a bin of the counter may be, in ns."""
MIN_IN_BIN = 20
"""The shortest bin that has so many exits on average is taken."""
MAX_BINS = 1 << 20

_LAST = 1 << 20
"""The rank of counters among a machine's tracks."""


class VcpuTracks:
    """Writes the tracks of all vCPUs of a timeline."""

    def __init__(self, trace: PerfettoWriter, result: SyncResult, lanes: Mapping[str, Lane], shift: int) -> None:
        """``lanes``: the machines on the trace by name; ``shift``: what was taken from every ns."""
        self._trace = trace
        self._timeline = result.timeline
        self._rate = result.timeline.rate or Rate.ns()
        self._lanes = lanes
        self._shift = shift
        self._states: dict[str, list[VcpuStates]] = {}
        for vcpu in vcpu_states(result):
            group = vcpu.guest if vcpu.guest in lanes else vcpu.host
            self._states.setdefault(group or vcpu.host, []).append(vcpu)

    def write(self, lane: Lane) -> None:
        """The tracks in the group of ``lane``: of its vCPUs, and of threads that run a guest that is not recorded."""
        mine = self._states.pop(lane.machine.name, [])
        for vcpu in sorted(mine, key=lambda v: (v.guest_cpu is None, v.guest_cpu or 0, v.host, v.tid)):
            if len(vcpu) and (vcpu.state != State.UNKNOWN).any():
                self._one(lane, vcpu)

    def _one(self, lane: Lane, vcpu: VcpuStates) -> None:
        host = self._lanes[vcpu.host]
        who = f"thread {vcpu.tid}" if vcpu.guest is None else f"vCPU {vcpu.guest_cpu}"
        whose = "runs a guest that is not recorded" if vcpu.guest is None else f"thread {vcpu.tid} of {vcpu.host}"
        track = self._trace.track(
            f"{who} ({whose})",
            lane.group,
            description="above: what the thread did; below: what the guest ran in guest mode",
        )
        edges = self._ns(np.r_[vcpu.begin, np.int64(vcpu.end)])
        begin, end = edges[:-1], edges[1:]
        guest = vcpu.state == State.GUEST
        # one slice for each time in guest mode, whatever the guest ran in it
        fresh = np.r_[True, ~(guest[1:] & guest[:-1])]
        first = np.flatnonzero(fresh)
        outer_end = end[np.r_[first[1:] - 1, len(begin) - 1]]
        whole = outer_end > begin[first]
        first, outer_end = first[whole], outer_end[whole]
        inner = np.flatnonzero(guest & (vcpu.context != Context.UNKNOWN) & (end > begin))
        self._trace.slice_ends(track, outer_end)
        self._trace.slice_ends(track, end[inner])
        self._guest_mode(track, host, vcpu, first[guest[first]], begin)
        self._others(track, host, vcpu, first[~guest[first]], begin)
        self._ran(track, vcpu, inner, begin)
        self._exits(lane, host, vcpu)

    def _ns(self, when: I64) -> I64:
        stamps = add(when.view(np.uint64), self._timeline.base)
        return np.maximum(self._rate.array_to_ns(stamps) - self._shift, 0)

    def _guest_mode(self, track: int, host: Lane, vcpu: VcpuStates, at: I64, begin: I64) -> None:
        """Times in guest mode; those that begin at a kvm_entry of the thread have its fields."""
        recording = host.machine.recording
        event = recording.format_named("kvm", "kvm_entry")
        rows = np.full(len(at), -1, np.int64)
        entries = recording.rows(event)
        entries = entries[(recording.pid[entries] == vcpu.tid) & host.machine.placed[entries]]
        if len(entries):
            when = vcpu.hosts[self._number(vcpu.host)].when(entries)
            order = np.argsort(when, kind="stable")
            entries, when = entries[order], when[order]
            place = np.minimum(np.searchsorted(when, vcpu.begin[at]), len(when) - 1)
            rows = np.where(when[place] == vcpu.begin[at], entries[place], -1)
        self._begins(track, host, at, rows, begin, (np.zeros(len(at), np.int64), ["guest mode"]), event)

    def _number(self, name: str) -> int:
        return next(n for n, m in enumerate(self._timeline.machines) if m.name == name)

    def _others(self, track: int, host: Lane, vcpu: VcpuStates, at: I64, begin: I64) -> None:
        """Other states; those that begin at the thread's kvm_exit have its fields."""
        named = self._names(vcpu, at)
        event = host.machine.recording.format_named("kvm", "kvm_exit")
        cause = np.where(vcpu.machine[at] == self._number(vcpu.host), vcpu.cause[at], -1)
        exits = np.zeros(len(at), np.bool_)
        if event is not None:
            known = np.flatnonzero(cause >= 0)
            exits[known] = host.machine.recording.event_id[cause[known]] == event.id
            exits[known] &= vcpu.hosts[self._number(vcpu.host)].when(cause[known]) == vcpu.begin[at[known]]
        self._begins(track, host, at, np.where(exits, cause, -1), begin, named, event)

    def _begins(
        self, track: int, host: Lane, at: I64, rows: I64, begin: I64, named: tuple[I64, list[str]],
        event: EventFormat | None,
    ) -> None:  # fmt: skip
        """Slices that begin at steps ``at`` i64[n]; with the fields of the events ``rows`` (-1: of none)."""
        index, names = named
        of_event = np.flatnonzero(rows >= 0)
        for number in range(0, len(of_event), BLOCK):
            part = of_event[number : number + BLOCK]
            fields = fields_of(host, event, rows[part]) if event else []
            self._trace.slice_begins(track, begin[at[part]], index[part], names, fields, category="kvm")
        host.as_instant[rows[of_event]] = False
        rest = np.flatnonzero(rows < 0)
        self._trace.slice_begins(track, begin[at[rest]], index[rest], names, category="kvm")

    def _names(self, vcpu: VcpuStates, at: I64) -> tuple[I64, list[str]]:
        """The names of states other than guest mode: an index i64[n] into them."""
        cause, causes = vcpu.causes()
        columns = np.stack(
            [vcpu.state[at].astype(np.int64), vcpu.machine[at].astype(np.int64), cause[at], vcpu.by[at]], axis=1
        )
        first, index = distinct_rows(columns.view(np.uint64))
        names = []
        for state, number, why, by in columns[first].tolist():
            machine = self._timeline.machines[number]
            reason = causes[why] if why >= 0 else ""
            task = self._task(machine.name, by) if by >= 0 else ""
            name = _state_name(State(state), reason, task)
            names.append(name if machine.name == vcpu.host else f"{machine.name}: {name}")
        return index, names

    def _ran(self, track: int, vcpu: VcpuStates, at: I64, begin: I64) -> None:
        """What the guest ran in guest mode."""
        columns = np.stack([vcpu.context[at].astype(np.int64), vcpu.what[at]], axis=1)
        first, index = distinct_rows(columns.view(np.uint64))
        names = []
        for context, what in columns[first].tolist():
            if context == Context.TASK:
                names.append(self._task(vcpu.guest or "", what))
            elif context == Context.SOFTIRQ:
                names.append(f"softirq {softirq_name(what) or what}")
            else:
                names.append("idle" if context == Context.IDLE else f"irq {what}")
        self._trace.slice_begins(track, begin[at], index, names, category="guest")

    def _task(self, machine: str, tid: int) -> str:
        if tid == 0:
            return "idle"
        return self._lanes[machine].task(tid) if machine in self._lanes else f"[{tid}]"

    def _exits(self, lane: Lane, host: Lane, vcpu: VcpuStates) -> None:
        """How many kvm_exit events a second, bin by bin, from the first one's bin to the last one's."""
        recording = host.machine.recording
        rows = recording.rows(recording.format_named("kvm", "kvm_exit"))
        ns = host.ts_ns[rows[(recording.pid[rows] == vcpu.tid) & host.machine.placed[rows]]]
        if not self._timeline.has_ns or not len(ns):
            return
        low, high = int(ns.min()), int(ns.max())
        size = next((size for size in BINS if len(ns) * size >= MIN_IN_BIN * (high - low)), BINS[-1])
        bins = high // size - low // size + 1
        if bins > MAX_BINS:
            return
        counts = np.bincount(ns // size - low // size, minlength=bins)
        rates = np.r_[counts * (1_000_000_000 // size), 0]
        begins = (low // size + np.arange(bins + 1)) * size
        # a value holds until the next: those that do not change need not be said again
        changed = np.r_[True, rates[1:] != rates[:-1]]
        who = f"thread {vcpu.tid}" if vcpu.guest is None else f"vCPU {vcpu.guest_cpu}"
        track = self._trace.counter_track(
            f"{who} exits a second",
            lane.group,
            unit="1/s",
            order=_LAST,
            description=f"kvm_exit events in bins of {size // 1_000_000} ms; lost ones are not counted",
        )
        self._trace.counter(track, begins[changed], rates[changed])


def _state_name(state: State, reason: str, task: str) -> str:
    match state:
        case State.KERNEL:
            return reason or "in KVM"
        case State.USER:
            return f"VMM: {reason}" if reason else "VMM"
        case State.OUTSIDE:
            return f"outside: {reason}" if reason else "outside guest mode"
        case State.WAITING:
            return f"waiting: {task} runs" if task else "waiting"
        case State.BLOCKED:
            return f"blocked: {reason}" if reason else "blocked"
        case State.POLLING:
            return "halt polling"
        case State.GUEST:
            return "guest mode"
        case _:
            return state.name.lower()
