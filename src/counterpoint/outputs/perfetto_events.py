"""Events as instants with their own fields as typed annotations, each on its CPU's track."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.outputs.perfetto_lanes import BLOCK, Lane
from counterpoint.outputs.pftrace import Addresses, Annotations, Interned, PerfettoWriter, Values
from counterpoint.traces.columns import EventBatch
from counterpoint.traces.formats import EventFormat, Field, named_fields

MAX_ANNOTATIONS = 64
"""Fields of one event that are shown."""


def write_instants(trace: PerfettoWriter, lane: Lane) -> None:
    """All events not shown yet, kind by kind."""
    recording = lane.machine.recording
    track_of = np.zeros(len(recording.streams), np.int64)
    for cpu, streams in lane.by_cpu().items():
        if any(lane.as_instant[recording.streams[n].first : recording.streams[n].last].any() for n in streams):
            track_of[streams] = trace.track(f"CPU {cpu} events", lane.group)
    pids, number = _numbered(recording.pid)
    tasks = trace.intern([lane.task(pid) for pid in pids])
    for event_id in recording.counts_by_id():
        rows = recording.rows(event_id)
        rows = rows[lane.as_instant[rows]]
        event = recording.formats.get(event_id)
        for part, flows in lane.flows.split(rows):
            for at in range(0, len(part), BLOCK):
                block = part[at : at + BLOCK]
                fields = fields_of(lane, event, block) if event else []
                trace.instants(
                    track_of[recording.stream_of[block]],
                    lane.ts_ns[block],
                    np.zeros(len(block), np.int64),
                    [recording.event_name(event_id)],
                    [("task", Interned(tasks[number[block]])), *fields],
                    category=event.system if event else "",
                    flows=flows.part(slice(at, at + BLOCK)) if flows else None,
                )


def _numbered(pid: np.typing.NDArray[np.int32]) -> tuple[list[int], I64]:
    """The distinct pids, and which of them each event has i64[n]."""
    if len(pid) and 0 <= int(pid.min()) <= int(pid.max()) < 1 << 23:
        used = np.flatnonzero(np.bincount(pid))
        number = np.zeros(int(used[-1]) + 1, np.int64)
        number[used] = np.arange(len(used))
        return used.tolist(), number[pid]
    distinct, index = np.unique(pid, return_inverse=True)
    return distinct.tolist(), index


def fields_of(lane: Lane, event: EventFormat, rows: I64) -> Annotations:
    """The event's own fields at ``rows`` as annotation columns."""
    batch = lane.machine.recording.batch(event, rows)
    return [(name, _values(batch, field)) for name, field in list(named_fields(event))[:MAX_ANNOTATIONS]]


def _values(batch: EventBatch, field: Field) -> Values:
    if field.kind == "int" and not field.dynamic:
        column = batch.integers(field)
        if column.dtype == np.uint64 and ("*" in field.declaration or bool((column >> np.uint64(63)).any())):
            return Addresses(column.astype(np.uint64, copy=False))
        return column
    if field.kind == "string":
        return batch.distinct_text(field)
    elements, index = batch.distinct_elements(field)
    return list(map(str, elements)), index
