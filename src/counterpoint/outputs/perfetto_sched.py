"""The scheduling events of a recording, for Perfetto's own tables and views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.outputs.perfetto_lanes import BLOCK, Lane
from counterpoint.outputs.pfkernel import WAKEUPS, KernelWriter, Tasks
from counterpoint.outputs.pftrace import PerfettoWriter
from counterpoint.traces.columns import EventBatch
from counterpoint.traces.distinct import distinct_rows
from counterpoint.traces.formats import EventFormat

MAX_CPU = 1023
"""The greatest number of a CPU that Perfetto's trace processor takes (ftrace_tokenizer.cc, kMaxCpuCount)."""


def write_sched(trace: PerfettoWriter, lane: Lane) -> None:
    """Write the machine, and its sched_switch and wakeup events, which are not shown otherwise then."""
    recording = lane.machine.recording
    kernel = KernelWriter(trace, lane.machine.name, uname=recording.options.uname, cpus=recording.cpus)
    for name in ("sched_switch", *WAKEUPS):
        event = recording.format_named("sched", name)
        if event is None or not _is_known(event, ("prev_pid", "next_pid") if name == "sched_switch" else ("pid",)):
            continue
        for cpu, rows, lost in _by_stream(lane, event):
            batch = recording.batch(event, rows)
            stamps, pid = lane.ts_ns[rows], recording.pid[rows].astype(np.int64)
            if name == "sched_switch":
                prev, following = _tasks(batch, event, "prev_"), _tasks(batch, event, "next_")
                _note(lane, following, stamps)
                kernel.switches(cpu, stamps, pid, prev, _ints(batch, event, "prev_state"), following, lost=lost)
            else:
                task = _tasks(batch, event, "")
                _note(lane, task, stamps)
                kernel.wakeups(name, cpu, stamps, pid, task, _ints(batch, event, "target_cpu"), lost=lost)
            lane.as_instant[rows] = False


def _is_known(event: EventFormat, names: tuple[str, ...]) -> bool:
    return all((field := event.field(name)) is not None and _is_int(event, field.name) for name in names)


def _is_int(event: EventFormat, name: str) -> bool:
    field = event.field(name)
    return field is not None and field.kind == "int" and not field.dynamic and field.size <= 8


def _by_stream(lane: Lane, event: EventFormat) -> Iterator[tuple[int, I64, bool]]:
    """(CPU, rows, whether events of it were lost) of the events on the timeline, in blocks."""
    recording = lane.machine.recording
    rows = recording.rows(event)
    rows = rows[lane.as_instant[rows]]
    lossy = set(recording.losses.stream.tolist())
    edges = np.searchsorted(rows, [stream.first for stream in recording.streams] + [len(recording)])
    for number, stream in enumerate(recording.streams):
        if stream.cpu > MAX_CPU:
            continue
        for at in range(int(edges[number]), int(edges[number + 1]), BLOCK):
            yield stream.cpu, rows[at : min(at + BLOCK, int(edges[number + 1]))], number in lossy


def _ints(batch: EventBatch, event: EventFormat, name: str) -> I64 | None:
    return batch.ints_array(name).astype(np.int64) if _is_int(event, name) else None


def _tasks(batch: EventBatch, event: EventFormat, prefix: str) -> Tasks:
    """The distinct (comm, pid, prio) of the fields that begin with ``prefix``."""
    pid, prio = _ints(batch, event, f"{prefix}pid"), _ints(batch, event, f"{prefix}prio")
    assert pid is not None
    comm = event.field(f"{prefix}comm")
    texts, text = batch.distinct_text(comm) if comm is not None and comm.kind == "string" else (None, None)
    columns = [column for column in (pid, prio, text) if column is not None]
    first, index = distinct_rows(np.stack(columns, axis=1).view(np.uint64))
    return Tasks(
        index,
        pid[first].tolist(),
        None if texts is None or text is None else [texts[i] for i in text[first].tolist()],
        None if prio is None else prio[first].tolist(),
    )


def _note(lane: Lane, tasks: Tasks, stamps: I64) -> None:
    """Remember the threads' names, the latest of each."""
    if tasks.comms is None:
        return
    last = np.zeros(len(tasks.pids), np.int64)
    np.maximum.at(last, tasks.index, stamps)
    for pid, comm, when in zip(tasks.pids, tasks.comms, last.tolist(), strict=True):
        if pid and comm and when >= lane.comms.get(pid, (-1, ""))[0]:
            lane.comms[pid] = when, comm
