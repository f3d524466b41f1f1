"""Time taken from a guest, as its host saw it, beside what the guest accounted to its tasks.

A guest learns of it as steal time, where its kernel asks for it: it then does not account to a task what the host took
while that ran (update_rq_clock_task, kernel/sched/core.c). That shows in ``sched_stat_runtime``, which tells what was
accounted: between a switch to a task and the switch away from it the difference is what the guest believes the task did
not have, stolen or spent in interrupts. Where the recording has no such event nothing of the guest's belief is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import State, VcpuStates
from counterpoint.analysis.steps import step_at
from counterpoint.clocks.counter import I64


@dataclass(frozen=True, slots=True)
class Accounted:
    """Each stay of a task on a guest's CPU of which the guest accounted something.

    ``pid``, ``cpu`` i64[n]; ``begin``, ``end`` i64[n]: the switches to it and away, from the timeline's base;
    ``accounted_ns`` i64[n]: what the guest says it ran.
    """

    pid: I64
    cpu: I64
    begin: I64
    end: I64
    accounted_ns: I64

    def __len__(self) -> int:
        """Number of stays."""
        return len(self.pid)


def accounted(placed: Placed) -> Accounted | None:
    """What a guest accounted to its tasks, CPU by CPU; None where it did not record sched_switch or sched_stat_runtime.

    Stays across lost events are left out.
    """
    switch = placed.of("sched", "sched_switch", ("prev_pid", "next_pid"))
    runtime = placed.of("sched", "sched_stat_runtime", ("pid", "runtime"))
    if switch is None or runtime is None:
        return None
    columns: list[list[I64]] = [[], [], [], [], []]
    for cpu in np.unique(switch.cpu).tolist():
        here, told = switch.take(switch.cpu == cpu), runtime.take(runtime.cpu == cpu)
        begin, end, pid = here.when[:-1], here.when[1:], here["next_pid"][:-1]
        same = pid == here["prev_pid"][1:]
        at = step_at(here.when, told.when)
        mine = (at >= 0) & (at < len(begin))
        mine[mine] = pid[at[mine]] == told["pid"][mine]
        sums, count = np.zeros(len(begin), np.int64), np.zeros(len(begin), np.int64)
        np.add.at(sums, at[mine], told["runtime"][mine])
        np.add.at(count, at[mine], 1)
        good = same & (count > 0) & (pid > 0) & ~placed.lost_within(begin, end)
        for column, values in zip(columns, (pid, np.full(len(pid), cpu), begin, end, sums), strict=True):
            column.append(values[good])
    return Accounted(*(np.concatenate([np.zeros(0, np.int64), *column]) for column in columns))


def time_in(vcpu: VcpuStates, begin: I64, end: I64) -> I64:
    """How long a vCPU was in each state within the spans [begin, end) i64[n], apart and in order: i64[len(State)]."""
    out = np.zeros(len(State), np.int64)
    if not len(vcpu) or not len(begin):
        return out
    for state in State:
        held = np.where(vcpu.state == state, vcpu.ends - vcpu.begin, 0)
        before = np.r_[0, np.cumsum(held)]

        def up_to(when: I64, state: State = state, before: I64 = before) -> I64:
            at = np.searchsorted(vcpu.begin, when, side="right") - 1
            inside = np.clip(np.minimum(when, vcpu.end) - vcpu.begin[at], 0, None)
            return np.where(at < 0, 0, before[at] + np.where(vcpu.state[at] == state, inside, 0))

        out[state] = int((up_to(end) - up_to(begin)).sum())
    return out
