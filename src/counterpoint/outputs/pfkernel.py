"""The scheduler's events of a machine in Perfetto's own ftrace packets, machine by machine.

A reader makes its tables ``sched``, ``thread_state``, ``thread``, ``cpu``, ``ftrace_event`` and ``machine`` of them,
and its views of CPUs and threads. They are FtraceEventBundle messages (protos/perfetto/trace/ftrace): a CPU, and its
events with all their fields.

Each machine but the first has a ``machine_id``, by which a reader keeps the tids and CPUs of machines apart. Stamps are
those of the timeline on every machine: there is no RemoteClockSync, and without one a reader takes them as they are.
Threads have no process: a recording of the scheduler does not say which they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.outputs.pftrace import PerfettoWriter, Text, clean
from counterpoint.outputs.protorows import Part, chosen, delimited, integer, message, text, varint

_VARINT_BYTES: Final = 10


class _TracePacket:
    FTRACE_EVENTS = 1
    SYSTEM_INFO = 45


class _FtraceEventBundle:
    CPU = 1
    EVENT = 2
    LOST_EVENTS = 3


class _FtraceEvent:
    TIMESTAMP = 1
    PID = 2
    SCHED_SWITCH = 4
    SCHED_WAKEUP = 17
    SCHED_WAKING = 20
    SCHED_WAKEUP_NEW = 114


class _SchedSwitchFtraceEvent:
    PREV_COMM = 1
    PREV_PID = 2
    PREV_PRIO = 3
    PREV_STATE = 4
    NEXT_COMM = 5
    NEXT_PID = 6
    NEXT_PRIO = 7


class _SchedWakingFtraceEvent:
    """Also of sched_wakeup and sched_wakeup_new."""

    COMM = 1
    PID = 2
    PRIO = 3
    SUCCESS = 4
    TARGET_CPU = 5


class _SystemInfo:
    UTSNAME = 1
    NUM_CPUS = 8
    MACHINE_NAME = 17


class _Utsname:
    SYSNAME = 1
    RELEASE = 3
    MACHINE = 4


WAKEUPS: Final = {
    "sched_waking": _FtraceEvent.SCHED_WAKING,
    "sched_wakeup": _FtraceEvent.SCHED_WAKEUP,
    "sched_wakeup_new": _FtraceEvent.SCHED_WAKEUP_NEW,
}
"""The events that ``KernelWriter.wakeups`` takes, by name."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """A column of tasks: event i has ``pids[index[i]]``, and so on; None: not recorded."""

    index: I64
    pids: Sequence[int]
    comms: Sequence[str] | None
    prios: Sequence[int] | None


class KernelWriter:
    """Writes one machine's scheduling events into a trace. The first machine of a trace is the trace's own."""

    def __init__(self, trace: PerfettoWriter, name: Text, *, uname: str = "", cpus: int = 0) -> None:
        """Describe the machine; ``uname``: system, node, release and machine, as far as they are known."""
        self._trace = trace
        self._machine = trace.machine()
        words = uname.split()
        names = [] if len(words) < 4 else [
            text(_Utsname.SYSNAME, clean(words[0])),
            text(_Utsname.RELEASE, clean(words[2])),
            text(_Utsname.MACHINE, clean(words[-1])),
        ]  # fmt: skip
        info = [message(_SystemInfo.UTSNAME, *names)] if names else []
        info += [integer(_SystemInfo.NUM_CPUS, cpus)] if cpus else []
        info.append(text(_SystemInfo.MACHINE_NAME, clean(name)))
        trace.packet(self._machine, message(_TracePacket.SYSTEM_INFO, *info))

    def switches(
        self,
        cpu: int,
        ts_ns: I64,
        pid: I64,
        prev: Tasks,
        prev_state: I64 | None,
        following: Tasks,
        *,
        lost: bool = False,
    ) -> None:
        """Add sched_switch events (n,) of one CPU. ``pid``: the task that each was recorded in."""
        event = _SchedSwitchFtraceEvent
        state = [] if prev_state is None else [integer(event.PREV_STATE, prev_state)]
        fields = [
            _task(prev, event.PREV_COMM, event.PREV_PID, event.PREV_PRIO),
            *state,
            _task(following, event.NEXT_COMM, event.NEXT_PID, event.NEXT_PRIO),
        ]
        self._events(cpu, ts_ns, pid, message(_FtraceEvent.SCHED_SWITCH, *fields), lost)

    def wakeups(
        self, name: str, cpu: int, ts_ns: I64, pid: I64, task: Tasks, target_cpu: I64 | None, *, lost: bool = False
    ) -> None:
        """Add events (n,) of one of the kinds ``WAKEUPS``, of the CPU that they were recorded on."""
        event = _SchedWakingFtraceEvent
        target = [] if target_cpu is None else [integer(event.TARGET_CPU, target_cpu)]
        fields = [_task(task, event.COMM, event.PID, event.PRIO), *target]
        self._events(cpu, ts_ns, pid, message(WAKEUPS[name], *fields), lost)

    def _events(self, cpu: int, ts_ns: I64, pid: I64, event: Part, lost: bool) -> None:
        head = [integer(_FtraceEventBundle.CPU, cpu)]
        head += [integer(_FtraceEventBundle.LOST_EVENTS, 1)] if lost else []
        row = message(
            _FtraceEventBundle.EVENT, integer(_FtraceEvent.TIMESTAMP, ts_ns), integer(_FtraceEvent.PID, pid), event
        )
        self._trace.rows_in_packets(self._machine, _TracePacket.FTRACE_EVENTS, head, row)


def _task(tasks: Tasks, comm: int, pid: int, prio: int) -> Part:
    """The fields of each event's task, of one length where that can be: numbers are filled up, as varints may be."""
    heads = [b""] * len(tasks.pids)
    if tasks.comms is not None:
        heads = [delimited(comm, clean(name)) for name in tasks.comms]
    numbers = [[(pid, value) for value in tasks.pids]]
    numbers += [] if tasks.prios is None else [[(prio, value) for value in tasks.prios]]
    rows = list(zip(*numbers, strict=True))
    sizes = [len(head) + sum(len(varint(v)) for _, v in row) for head, row in zip(heads, rows, strict=True)]
    width = max(sizes, default=0)
    pieces = []
    for head, row, size in zip(heads, rows, sizes, strict=True):
        spare, piece = width - size, head
        for number, value in row:
            digits = varint(value)
            more = min(spare, _VARINT_BYTES - len(digits))
            spare -= more
            piece += varint(number << 3) + varint(value, len(digits) + more)
        pieces.append(piece)
    return chosen(pieces, np.asarray(tasks.index))
