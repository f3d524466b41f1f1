"""What a guest's own recording tells of its time, as ``stats --json`` has it: steal, wakeups, timers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from counterpoint.analysis.guest_symbols import GuestSymbols
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import State, VcpuStates
from counterpoint.analysis.steal import accounted, time_in
from counterpoint.analysis.timer_lateness import expiries
from counterpoint.analysis.wakeups import wakeups
from counterpoint.clocks.counter import I64, Bools
from counterpoint.outputs.stats_measure import Json, Measure, spread_ns

LISTED = 20
"""Of tasks and of timers' functions: so many are listed."""

Choose = Callable[[I64], Bools]


class GuestSide:
    """One guest."""

    def __init__(
        self,
        placed: Placed,
        width: I64,
        measure: Measure,
        states: list[VcpuStates],
        within: Choose,
        notes: list[str],
    ) -> None:
        """``width`` i64: of its events' bounds; ``within``: which times are asked for.

        ``notes`` takes what is not known.
        """
        self._placed = placed
        self._width = width
        self._measure = measure
        self._states = states
        self._cpus = [v.guest_cpu for v in states if v.guest_cpu is not None]
        self._within = within
        self._notes = notes
        self._name = placed.machine.name

    def steal(self, lo: int, hi: int, waiting: int) -> Json:
        """What the host took between two times, and what the guest accounted to its tasks meanwhile."""
        found = accounted(self._placed)
        if found is None or not len(found):
            self._notes.append(
                f"what {self._name} believed of stolen time: only sched:sched_stat_runtime would tell, which it did not"
                " record"
            )
            return {"host_waiting": waiting, "by_guest": None}
        stays, took, said, told = 0, 0, 0, np.zeros(len(State), np.int64)
        for vcpu in self._states:
            if not len(vcpu):
                continue
            first, last = max(lo, int(vcpu.begin[0])), min(hi, vcpu.end)
            mine = (found.cpu == vcpu.guest_cpu) & (found.begin >= first) & (found.end <= last)
            begin, end = found.begin[mine], found.end[mine]
            stays += len(begin)
            took += int((end - begin).sum())
            said += int(found.accounted_ns[mine].sum())
            told += time_in(vcpu, begin, end)
        return {
            "host_waiting": waiting,
            "by_guest": {
                "stays": stays,
                "took": self._measure.one(took),
                "accounted": said,
                "host_states": {s.name.lower(): self._measure.one(int(told[s])) for s in State},
            },
        }

    def wakeups(self, chosen: Choose) -> Json | None:
        """From sched_waking to sched_switch, of the tasks that ``chosen`` picks by their ids."""
        found = wakeups(self._placed)
        if found is None:
            self._notes.append(f"wakeups: {self._name} recorded no sched:sched_waking, or no sched:sched_switch")
            return None
        keep = self._within(found.woken) & np.isin(found.cpu, self._cpus) & chosen(found.pid)
        took = np.maximum(found.ran - found.woken, 0)[keep]
        # on one CPU both ends are by one map
        other = np.flatnonzero(keep & (found.waker != found.cpu))
        bounds = self._width[found.waking[other]], self._width[found.switch[other]]
        sure = (bounds[0] >= 0) & (bounds[1] >= 0)
        pids, at = np.unique(found.pid[keep], return_inverse=True)
        rows = self._measure.spread(took, at, max(len(pids), 1))
        comm = self._placed.recording.comm
        listed = [{"pid": pid, "task": comm(pid), **row} for pid, row in zip(pids.tolist(), rows, strict=False)]
        listed.sort(key=lambda row: (-row["total"], row["pid"]))
        return {
            "all": self._measure.spread(took)[0],
            "tasks": len(listed),
            "by_task": listed[:LISTED],
            "between_cpus": len(other),
            "bound": self._measure.one(int((bounds[0] + bounds[1])[sure].max(initial=0))),
            "unbounded": int((~sure).sum()),
        }

    def timers(self) -> Json | None:
        """How late high-resolution timers expired."""
        found = expiries(self._placed)
        if found is None:
            self._notes.append(f"timers: {self._name} recorded no timer:hrtimer_start, or no hrtimer_expire_entry")
            return None
        keep = self._within(found.when) & np.isin(found.cpu, self._cpus)
        late = found.late_ns[keep]
        index, names = GuestSymbols(self._placed.recording).of(found.function[keep].view(np.uint64))
        named = (index >= 0) & (found.function[keep] != 0)
        rows = spread_ns(late, np.where(named, index, len(names)), len(names) + 1)
        listed = [{"function": name, **row} for name, row in zip([*names, None], rows, strict=True) if row["count"]]
        listed.sort(key=lambda row: -row["total"])
        return {"all": spread_ns(late)[0], "early": int((late < 0).sum()), "by_function": listed[:LISTED]}
