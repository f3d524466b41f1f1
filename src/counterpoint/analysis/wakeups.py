"""How long a guest's tasks waited for a CPU of the guest once they were woken, by the guest's own recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.analysis.edges import NOT_RUNNABLE
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.steps import held
from counterpoint.clocks.counter import I64

TO, READY, ASLEEP, WAKING = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Wakeups:
    """Each sleep of a task that a sched_waking ended, in order of the task.

    ``pid`` i64[n]; ``woken``, ``ran`` i64[n]: the times of the sched_waking and of the sched_switch to the task, from
    the timeline's base; ``waking``, ``switch`` i64[n]: their rows; ``waker``, ``cpu`` i64[n]: their CPUs.
    """

    pid: I64
    woken: I64
    ran: I64
    waking: I64
    switch: I64
    waker: I64
    cpu: I64

    def __len__(self) -> int:
        """Number of wakeups."""
        return len(self.pid)


@dataclass(frozen=True, slots=True)
class Switching:
    """The wakings of a machine's tasks and the switches to and from each, sorted by task and time: columns i64[n].

    ``kind``: ``TO``, ``READY`` (away from it, though it could run), ``ASLEEP`` (away, until it is woken), ``WAKING``.
    """

    pid: I64
    kind: I64
    row: I64
    when: I64
    cpu: I64


def switching(placed: Placed) -> Switching | None:
    """None where the machine recorded no sched_waking or no sched_switch."""
    switch = placed.of("sched", "sched_switch", ("prev_pid", "prev_state", "next_pid"))
    waking = placed.of("sched", "sched_waking", ("pid",))
    if switch is None or waking is None:
        return None
    away = np.where((switch["prev_state"] & NOT_RUNNABLE) != 0, ASLEEP, READY)
    parts = (
        (waking, waking["pid"], np.full(len(waking), WAKING)),
        (switch, switch["prev_pid"], away),
        (switch, switch["next_pid"], np.full(len(switch), TO)),
    )
    pid, kind = np.concatenate([p for _, p, _ in parts]), np.concatenate([k for _, _, k in parts])
    row, when, cpu = (np.concatenate([getattr(r, n) for r, _, _ in parts]) for n in ("row", "when", "cpu"))
    # the idle task is not woken
    order = np.lexsort((row, when, pid))
    order = order[pid[order] > 0]
    return Switching(pid[order], kind[order], row[order], when[order], cpu[order])


def wakeups(placed: Placed) -> Wakeups | None:
    """The wakeups of a machine's tasks; None where it recorded no sched_waking or no sched_switch.

    A wakeup counts where the task had gone to sleep by its last sched_switch, from the first sched_waking since to the
    next sched_switch to it, and no event of any CPU was lost between. Who is woken before it sleeps was not late.
    """
    found = switching(placed)
    if found is None:
        return None
    pid, kind, row, when, cpu = found.pid, found.kind, found.row, found.when, found.cpu
    if not len(pid):
        return Wakeups(*[np.zeros(0, np.int64)] * 7)
    first = np.r_[True, pid[1:] != pid[:-1]]
    # what the task was by its own switches; of a new task nothing is known
    was = held(np.where(kind == WAKING, np.where(first, READY, -1), kind))
    begins = (kind == WAKING) & (was == ASLEEP)
    begins[1:] &= ~((kind[:-1] == WAKING) & ~first[1:])
    switches = np.flatnonzero(kind != WAKING)
    at = np.flatnonzero(begins)
    following = np.searchsorted(switches, at)
    at, following = at[following < len(switches)], following[following < len(switches)]
    to = switches[following]
    good = (pid[to] == pid[at]) & (kind[to] == TO) & ~placed.lost_within(when[at], when[to])
    at, to = at[good], to[good]
    return Wakeups(pid[at], when[at], when[to], row[at], row[to], cpu[at], cpu[to])
