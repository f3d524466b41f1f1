"""The timeline as a Perfetto trace: a group of tracks per machine, in tree order.

Host: a track per CPU with the running task as slices, a track per vCPU thread with its run windows. Guests: a track per
CPU with the running task. All other events are instants with their fields, on a track beside their CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.clocks.rate import Rate
from counterpoint.outputs.perfetto_lanes import BLOCK, Lane
from counterpoint.outputs.perfetto_sched import write_sched
from counterpoint.outputs.pftrace import Addresses, Annotations, Names, PerfettoWriter, Values
from counterpoint.outputs.report import width_ns
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.windows import WindowKind
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.columns import EventBatch
from counterpoint.traces.formats import EventFormat, Field

MAX_ANNOTATIONS = 64
"""Fields of one event that are shown."""


def write_perfetto(result: SyncResult, path: Path, *, overwrite: bool) -> None:
    """Write the timeline of ``result`` to ``path``; UsageError where it exists and ``overwrite`` is False."""
    timeline = result.timeline
    rate = timeline.rate or Rate.ns()
    # Perfetto's stamps are signed: a counter past 2**63 is shown from the first event on
    ns = timeline.ts_ns
    shift = int(ns[0]) if len(ns) and int(ns.min()) < 0 else 0
    with PerfettoWriter(path, overwrite=overwrite) as trace:
        begin = max(int(ns[0]) - shift, 0) if len(ns) else 0
        trace.facts("Counterpoint: proof", _facts(result), begin, description="how the clocks were related")
        children: dict[str | None, list[Machine]] = {}
        for machine in timeline.machines:
            children.setdefault(machine.parent, []).append(machine)
        lanes: list[Lane] = []
        for machine in _tree(children, None):
            if not machine.placed.any() and any(h.name == machine.name for h in result.hosts):
                continue
            group = trace.track(_label(result, machine, len(lanes)), description=_describe(result, machine))
            stamps = rate.array_to_ns(machine.host_stamp) - shift
            lanes.append(Lane(machine, group, np.maximum(stamps, 0), machine.placed.copy()))
        pools: dict[str, ThreadPool] = {}
        for lane in lanes:
            write_sched(trace, lane)
            further = next((h.name for h in result.hosts if h.name == lane.machine.name), None)
            if further or any(g.parent == lane.machine.name for g in result.guests):
                pools[lane.machine.name] = ThreadPool(lane.machine.recording)
                _windows(trace, lane, pools[lane.machine.name], result)
            _instants(trace, lane)


def _label(result: SyncResult, machine: Machine, number: int) -> str:
    """A name that says whose machine it is. Groups at the top are shown by name: numbers keep them in tree order."""
    digits = len(str(max(len(result.timeline.machines) - 1, 0)))
    role = "host" if machine.parent is None else f"guest of {machine.parent}"
    named = machine.name if machine.name == role else f"{machine.name} ({role})"
    return f"machine {number:0{digits}}: {named}"


def _tree(children: dict[str | None, list[Machine]], parent: str | None) -> Iterator[Machine]:
    for machine in children.get(parent, []):
        yield machine
        yield from _tree(children, machine.name)


def _facts(result: SyncResult) -> dict[str, int | bool | str]:
    out: dict[str, int | bool | str] = {"sound": result.is_sound, "host_clock": result.host.clock}
    timeline = result.timeline
    out["timestamps"] = f"ns by {timeline.rate.source}" if timeline.rate else "ticks of the host's counter"
    if timeline.unplaced:
        out["events_left_out"] = timeline.unplaced
    for host in result.hosts:
        if host.join is not None:
            interval = f"[{host.join.earliest}, {'open' if host.join.latest is None else host.join.latest}]"
            out[f"{host.name}/join"] = f"{host.join.at} is {host.join.stamp} in {interval} by {host.join.source}"
            out[f"{host.name}/assumption"] = host.join.assumption
    for guest in result.guests:
        for vcpu in guest.vcpus:
            for index, epoch in enumerate(vcpu.epochs):
                key = f"{guest.name}/cpu{vcpu.guest_cpu}/epoch{index}"
                out[f"{key}/verdict"] = epoch.verdict.value
                out[f"{key}/offset"] = f"{epoch.offset} {guest.recording.unit} by {epoch.source or 'nobody'}"
                out[f"{key}/feasible"] = str(list(epoch.feasible) if epoch.feasible else None)
                out[f"{key}/bound_ns"] = str(width_ns(epoch, result.rate_on(epoch.host)))
                out[f"{key}/events"] = f"{epoch.inside} inside, {epoch.violations} outside, {epoch.unknown} unknown"
                for side, witness in (("low", epoch.low), ("high", epoch.high)):
                    if witness is not None:
                        out[f"{key}/witness_{side}"] = (
                            f"{witness.guest_event} at guest stamp {witness.guest_stamp} in host window"
                            f" [{witness.host_from}, {witness.host_to}]"
                        )
    return out


def _describe(result: SyncResult, machine: Machine) -> str:
    for guest in result.guests:
        if guest.name == machine.name:
            return "; ".join(
                f"cpu {v.guest_cpu}: {v.verdict.value}, thread {v.host_tid} of {guest.parent}" for v in guest.vcpus
            )
    for host in result.hosts:
        if host.name == machine.name and host.join is not None:
            return f"clock {machine.recording.clock}; put beside {result.host_name} by {host.join.source}"
    return f"clock {machine.recording.clock}; all stamps are this machine's"


def _windows(trace: PerfettoWriter, lane: Lane, pool: ThreadPool, result: SyncResult) -> None:
    """A track per vCPU thread: a slice for each run window, with the fields of the exit that ended it."""
    recording = lane.machine.recording
    runs = {tid: f"{guest} cpu {cpu}" for tid, (guest, cpu) in vcpus_by_thread(result, lane.machine.name).items()}
    event = recording.format_named("kvm", "kvm_exit")
    for tid in pool.tids:
        windows = pool.activity.windows(tid)
        shown = windows.is_run & (windows.entry_row >= 0) & (windows.exit_row >= 0)
        # a window cut at a loss shares its rows with its other part: show it once
        entry, at = np.unique(windows.entry_row[shown], return_index=True)
        leave = windows.exit_row[shown][at]
        placed = lane.machine.placed[entry] & lane.machine.placed[leave]
        entry, leave = entry[placed], leave[placed]
        if not len(entry):
            continue
        name = f"thread {tid}: {runs.get(tid, 'another VM')}"
        if windows.kind is WindowKind.SCHED_SWITCH:
            continue  # the CPUs' tracks show when threads ran
        track = trace.track(name, lane.group, description="in guest mode from kvm_entry to kvm_exit")
        begin = lane.ts_ns[entry]
        fields = _annotations(lane, event, leave) if event is not None else []
        trace.slices(
            track, begin, np.maximum(lane.ts_ns[leave], begin), np.zeros(len(entry), np.int64), ["guest mode"], fields,
            category="kvm",
        )  # fmt: skip
        lane.as_instant[entry] = lane.as_instant[leave] = False


def _instants(trace: PerfettoWriter, lane: Lane) -> None:
    """All events not shown yet, kind by kind, each on its CPU's track of events."""
    recording = lane.machine.recording
    track_of = np.zeros(len(recording.streams), np.int64)
    for cpu, streams in lane.by_cpu().items():
        if any(lane.as_instant[recording.streams[n].first : recording.streams[n].last].any() for n in streams):
            track_of[streams] = trace.track(f"CPU {cpu} events", lane.group)
    for event_id in recording.counts_by_id():
        rows = recording.rows(event_id)
        rows = rows[lane.as_instant[rows]]
        event = recording.formats.get(event_id)
        system = event.system if event else ""
        for at in range(0, len(rows), BLOCK):
            block = rows[at : at + BLOCK]
            fields = _annotations(lane, event, block) if event else []
            pids, index = np.unique(recording.pid[block], return_inverse=True)
            tasks: Names = [f"{recording.comm(p)} [{p}]" for p in pids.tolist()]
            trace.instants(
                track_of[recording.stream_of[block]],
                lane.ts_ns[block],
                np.zeros(len(block), np.int64),
                [recording.event_name(event_id)],
                [("task", (tasks, index)), *fields],
                category=system,
            )


def _annotations(lane: Lane, event: EventFormat, rows: I64) -> Annotations:
    """The event's own fields as annotation columns."""
    batch = lane.machine.recording.batch(event, rows)
    return [(field.name, _values(batch, field)) for field in event.fields[:MAX_ANNOTATIONS] if field.name]


def _values(batch: EventBatch, field: Field) -> Values:

    if field.kind == "int" and not field.dynamic:
        column = batch.ints_array(field.name)
        if column.dtype == np.uint64 and ("*" in field.declaration or bool((column >> np.uint64(63)).any())):
            return Addresses(column.astype(np.uint64, copy=False))
        return column
    texts = batch.text(field.name) if field.kind == "string" else list(map(str, batch.array(field.name)))
    distinct: dict[str, int] = {}
    index = np.array([distinct.setdefault(text, len(distinct)) for text in texts], np.int64)
    return list(distinct), index
