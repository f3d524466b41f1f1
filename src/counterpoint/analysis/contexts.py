"""What runs on a guest's CPUs: the task, a softirq or an interrupt handler, by the guest's own recording."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.steps import held
from counterpoint.clocks.counter import I64, relative
from counterpoint.timeline.merge import Machine


class Context(IntEnum):
    """What a guest's CPU runs; of a VMM, that it is in a system call."""

    UNKNOWN = 0
    IDLE = 1
    TASK = 2
    SOFTIRQ = 3
    IRQ = 4
    SYSCALL = 5


_SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


def softirq_name(vector: int) -> str:
    """What the kernel calls a softirq (include/linux/interrupt.h); "" for a vector that it does not have."""
    return _SOFTIRQS[vector] if 0 <= vector < len(_SOFTIRQS) else ""


@dataclass(frozen=True, slots=True)
class ContextSteps:
    """What one guest CPU runs, in steps as of ``steps``: ``context`` u8[n], and ``what`` i64[n].

    That is the thread's id; while a softirq or an interrupt is handled, its vector or number. ``row`` i64[n]: of the
    event that began it.
    """

    begin: I64
    context: npt.NDArray[np.uint8]
    what: I64
    row: I64


_FORGET, _NONE, _FIRST = 0, 1, 2
"""What a column holds: nothing is known, nothing is handled, and numbers from 0 on as ``_FIRST`` and more."""


def context_steps(machine: Machine, cpu: int, base: int) -> ContextSteps:
    """What runs on ``cpu`` of a machine by its sched_switch and irq events; times count from ``base``.

    Between the last event before a loss and the first after it nothing is known, nor after the machine's last event.
    """
    recording = machine.recording
    here = np.array([s.cpu == cpu for s in recording.streams] or [False], np.bool_)
    rows: list[I64] = []
    columns: tuple[list[I64], ...] = ([], [], [])  # task, softirq, irq

    def add(found: I64, *values: I64 | int) -> None:
        keep = here[recording.stream_of[found]] & machine.placed[found]
        rows.append(found[keep])
        for column, value in zip(columns, values, strict=True):
            column.append(value[keep] if isinstance(value, np.ndarray) else np.full(int(keep.sum()), value, np.int64))

    # each event tells whose time it is (common_pid); the first of a stream, and after a loss, is asked
    starts = [s.first for s, mine in zip(recording.streams, here, strict=False) if mine and s.last > s.first]
    lost = recording.losses.row[here[recording.losses.stream]]
    first = np.array([s.first for s in recording.streams] or [0], np.int64)
    before = lost[lost > first[recording.losses.stream[here[recording.losses.stream]]]] - 1
    after = np.unique(np.r_[np.array(starts, np.int64), lost[lost < len(recording)]])
    # (without its switches nobody knows for how long)
    switched = len(recording.rows(recording.format_named("sched", "sched_switch"))) > 0
    add(after, recording.pid[after].astype(np.int64) + _FIRST if switched else _FORGET, -1, -1)
    for (system, name), field, at in (
        (("sched", "sched_switch"), "next_pid", 0),
        (("irq", "softirq_entry"), "vec", 1),
        (("irq", "softirq_exit"), None, 1),
        (("irq", "irq_handler_entry"), "irq", 2),
        (("irq", "irq_handler_exit"), None, 2),
    ):
        event = recording.format_named(system, name)
        known = event and field and event.field(field)
        if event is None or (field and (not known or known.kind != "int")):
            continue
        found = recording.rows(event)
        number = recording.column(event, field, found).astype(np.int64) + _FIRST if field else _NONE
        add(found, *(number if n == at else -1 for n in range(3)))
    add(before, _FORGET, _FORGET, _FORGET)
    row = np.concatenate(rows)
    when = relative(machine.host_stamp[row], base)
    order = np.lexsort((np.repeat(np.arange(len(rows)), [len(r) for r in rows]), row, when))
    task, softirq, irq = (held(np.concatenate(column)[order]) - _FIRST for column in columns)
    context = np.select(
        [irq >= 0, softirq >= 0, task == 0, task > 0], [Context.IRQ, Context.SOFTIRQ, Context.IDLE, Context.TASK], 0
    ).astype(np.uint8)
    what = np.select([irq >= 0, softirq >= 0, task >= 0], [irq, softirq, task], -1)
    if not len(row):
        return ContextSteps(when, context, what, row)
    # after its last event nothing is known of it
    end = relative(machine.host_stamp[machine.placed], base).max()
    none = np.int64(-1)
    return ContextSteps(
        np.r_[when[order], end], np.r_[context, np.uint8(0)], np.r_[what, none], np.r_[row[order], none]
    )  # fmt: skip
