"""What vCPUs spent their time on, as JSON: schema 1 of ``stats --json`` (docs/stats.md).

Times are ns of the first host's clock, or its ticks where their rate is not known. Keys may be added; none changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from counterpoint.analysis.contexts import Context
from counterpoint.analysis.halt_polls import Halts, halts
from counterpoint.analysis.handled import VcpuExits, vcpu_exits
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import State, VcpuStates, vcpu_states
from counterpoint.clocks.counter import I64, Bools, to_signed
from counterpoint.errors import UsageError
from counterpoint.outputs.stats_exits import by_level, by_reason, causes
from counterpoint.outputs.stats_guest import GuestSide
from counterpoint.outputs.stats_interrupts import Boundary
from counterpoint.outputs.stats_measure import Json, Measure, kinds, spread_ns
from counterpoint.timeline.sync import SyncResult

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Filters: guests by name, their CPUs, host stamps from and to, and the guests' tasks: names (* and ?), or ids."""

    guests: Sequence[str] = ()
    vcpus: Sequence[int] = ()
    begin: int | None = None
    end: int | None = None
    tasks: Sequence[str] = ()

    def holds(self, vcpu: VcpuStates | VcpuExits) -> bool:
        """Whether a vCPU is meant."""
        return (not self.guests or vcpu.guest in self.guests) and (not self.vcpus or vcpu.guest_cpu in self.vcpus)


def stats_report(result: SyncResult, wanted: Wanted | None = None) -> Json:
    """Everything that ``stats`` tells of a timeline; UsageError for a guest or a CPU that is not there."""
    return _Report(result, wanted or Wanted()).whole()


class _Report:
    def __init__(self, result: SyncResult, wanted: Wanted) -> None:
        self.result = result
        self.wanted = wanted
        timeline = self.timeline = result.timeline
        names = [g.name for g in result.guests]
        for name in wanted.guests:
            if name not in names:
                raise UsageError(f"no guest is called {name!r} (there are: {', '.join(names)})")
        self.measure = Measure(timeline.rate, timeline.base)
        self.placed = {m.name: Placed(m, timeline.base) for m in timeline.machines}
        self.width = {m.name: d.width for m, d in zip(timeline.machines, timeline.details or (), strict=True)}
        self.lo = -(1 << 62) if wanted.begin is None else to_signed(wanted.begin - timeline.base)
        self.hi = 1 << 62 if wanted.end is None else to_signed(wanted.end - timeline.base)
        self.halts: dict[str, Halts | None] = {}

    def within(self, when: I64) -> Bools:
        """Which of the times i64[n] are asked for."""
        found: Bools = (when >= self.lo) & (when <= self.hi)
        return found

    def are_tasks(self, guest: str | None, pids: I64) -> Bools:
        """Which threads i64[n] of a guest (-1: none) are asked for."""
        if not self.wanted.tasks:
            return np.ones(len(pids), np.bool_)
        known = [] if guest is None else np.unique(pids[pids >= 0]).tolist()
        names = {pid: self.placed[str(guest)].recording.comm(pid) for pid in known}
        meant = [p for p in known if any(t == str(p) or fnmatchcase(names[p], t) for t in self.wanted.tasks)]
        return np.isin(pids, meant)

    def whole(self) -> Json:
        states = [v for v in vcpu_states(self.result) if self.wanted.holds(v)]
        exits = [self._kept(v) for v in vcpu_exits(self.result) if self.wanted.holds(v)]
        if self.wanted.vcpus and not states:
            raise UsageError(f"no guest that is meant has a vCPU {', '.join(map(str, self.wanted.vcpus))}")
        boundary = Boundary(self.result, self.measure, self.placed, self.width, self.within)
        out: Json = {
            "schema": SCHEMA,
            "unit": "ns" if self.measure.rate else "ticks",
            "ns_source": self.measure.rate.source if self.measure.rate else None,
            "host": self.result.host_name,
            "filters": {
                "guests": list(self.wanted.guests), "vcpus": list(self.wanted.vcpus), "from": self.wanted.begin,
                "to": self.wanted.end, "tasks": list(self.wanted.tasks),
            },
            "guests": [],
            "not_found": [],
        }  # fmt: skip
        for guest in self.result.guests:
            mine = [v for v in states if v.guest == guest.name]
            if not mine and not self.wanted.guests and not self.wanted.vcpus:
                out["not_found"].append(guest.name)
            if mine:
                out["guests"].append(self._guest(guest.name, guest.parent, mine, exits, boundary))
        out["others"] = [self._vcpu(vcpu, exits) for vcpu in states if vcpu.guest is None]
        out["total"] = by_reason(self.measure, exits)
        return out

    def _kept(self, vcpu: VcpuExits) -> VcpuExits:
        """Without the exits that the filters leave out."""
        keep = self.within(vcpu.when)
        keep &= self.are_tasks(vcpu.guest, np.where(vcpu.context == Context.TASK, vcpu.what, -1))
        return vcpu if keep.all() else vcpu.take(keep)

    def _guest(
        self, name: str, parent: str, states: list[VcpuStates], exits: list[VcpuExits], boundary: Boundary
    ) -> Json:
        own = [e for e in exits if e.guest == name]
        notes: list[str] = []
        vcpus = [self._vcpu(v, exits) for v in states]
        side = GuestSide(self.placed[name], self.width[name], self.measure, states, self.within, notes)
        levels = by_level(self.measure, own)
        if levels is None and any(g.parent == name for g in self.result.guests):
            notes.append(f"levels of exits: {parent} recorded no event that tells when {name} ran its guest")
        halted = [v["halts"] for v in vcpus if v["halts"] is not None]
        if not halted:
            notes.append(f"halts: {parent} recorded no kvm:kvm_vcpu_wakeup")
        return {
            "name": name,
            "parent": parent,
            "took": sum(v["took"] for v in vcpus),
            "states": _sums(v["states"] for v in vcpus),
            "guest_mode": _sums(v["guest_mode"] for v in vcpus),
            "exits": by_reason(self.measure, own),
            "causes": causes(self.measure, self.placed[name], own),
            "levels": levels,
            "steal": side.steal(self.lo, self.hi, sum(v["states"]["waiting"] for v in vcpus)),
            "wakeups": side.wakeups(lambda pids: self.are_tasks(name, pids)),
            "timers": side.timers(),
            "interrupts": boundary.interrupts(name, states, notes),
            "ipis": boundary.ipis(name, states, notes),
            "halts": _sums({k: n for k, n in one.items() if k != "waited"} for one in halted) or None,
            "vcpus": vcpus,
            "not_known": notes,
        }

    def _vcpu(self, vcpu: VcpuStates, exits: list[VcpuExits]) -> Json:
        begin, end = np.maximum(vcpu.begin, self.lo), np.minimum(vcpu.ends, self.hi)
        keep = end > begin
        took = np.zeros(len(vcpu), np.int64)
        took[keep] = self.measure.at(end[keep]) - self.measure.at(begin[keep])
        in_state, in_context = np.zeros(len(State), np.int64), np.zeros(len(Context), np.int64)
        np.add.at(in_state, vcpu.state, took)
        in_guest = vcpu.state == State.GUEST
        np.add.at(in_context, vcpu.context[in_guest], took[in_guest])
        return {
            "guest_cpu": vcpu.guest_cpu,
            "host": vcpu.host,
            "host_tid": vcpu.tid,
            "task": self.placed[vcpu.host].recording.comm(vcpu.tid),
            "took": int(took.sum()),
            "states": {s.name.lower(): int(in_state[s]) for s in State},
            "guest_mode": {c.name.lower(): int(in_context[c]) for c in Context},
            "waited_for": self._waited_for(vcpu, took),
            "exits": by_reason(self.measure, [e for e in exits if (e.host, e.tid) == (vcpu.host, vcpu.tid)]),
            "halts": self._halts(vcpu),
        }

    def _waited_for(self, vcpu: VcpuStates, took: I64) -> list[Json]:
        """Who ran while the vCPU waited for a CPU, the longest first."""
        waits = np.flatnonzero((vcpu.state == State.WAITING) & (took > 0))
        pairs, at = kinds(np.stack([vcpu.machine[waits].astype(np.int64), vcpu.by[waits]]))
        sums = np.zeros(len(pairs), np.int64)
        np.add.at(sums, at, took[waits])
        out = []
        for index in np.argsort(-sums, kind="stable").tolist():
            machine, tid = self.timeline.machines[pairs[index][0]], pairs[index][1]
            known = {"tid": tid, "task": machine.recording.comm(tid)} if tid >= 0 else {"tid": None, "task": None}
            out.append({"machine": machine.name, **known, "took": int(sums[index])})
        return out

    def _halts(self, vcpu: VcpuStates) -> Json | None:
        if vcpu.host not in self.halts:
            self.halts[vcpu.host] = halts(self.placed[vcpu.host])
        found = self.halts[vcpu.host]
        if found is None:
            return None
        mine = (found.tid == vcpu.tid) & self.within(found.when)
        slept, poll = found.slept[mine], found.poll_ns[mine]
        return {
            "count": int(mine.sum()),
            "ended_polling": int((~slept).sum()),
            "slept_after_polling": int((slept & (poll > 0)).sum()),
            "slept_without": int((slept & (poll == 0)).sum()),
            "slept_unknown": int((slept & (poll < 0)).sum()),
            "waited": spread_ns(found.ns[mine])[0],
        }


def _sums(each: Iterable[dict[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for one in each:
        for name, value in one.items():
            out[name] = out.get(name, 0) + value
    return out
