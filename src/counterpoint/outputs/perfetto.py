"""The timeline as a Perfetto trace: a group of tracks per machine, in tree order, beside the scheduler's own views.

In a guest's group each of its vCPUs has a track of what it was doing at every instant, and a counter of its exits; the
scheduler's events are in Perfetto's own packets; all others are instants with their fields, on a track of their CPU.
Arrows lead from an interrupt's injection to the first event of its handler. docs/perfetto.md tells it to users.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from counterpoint.clocks.rate import Rate
from counterpoint.outputs.perfetto_events import write_instants
from counterpoint.outputs.perfetto_facts import describe, facts_of
from counterpoint.outputs.perfetto_flows import find_flows
from counterpoint.outputs.perfetto_lanes import Lane
from counterpoint.outputs.perfetto_sched import write_sched
from counterpoint.outputs.perfetto_vcpus import VcpuTracks
from counterpoint.outputs.pftrace import PerfettoWriter
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult


def write_perfetto(result: SyncResult, path: Path, *, overwrite: bool) -> None:
    """Write the timeline of ``result`` to ``path``; UsageError where it exists and ``overwrite`` is False."""
    rate = result.timeline.rate or Rate.ns()
    # Perfetto's stamps are signed: a counter past 2**63 is shown from the first event on
    ns = result.timeline.ts_ns
    shift = int(ns[0]) if len(ns) and int(ns.min()) < 0 else 0
    with PerfettoWriter(path, overwrite=overwrite) as trace:
        lanes: dict[str, Lane] = {}
        for machine in _shown(result):
            group = trace.track(_label(result, machine, len(lanes)), description=describe(result, machine))
            stamps = np.maximum(rate.array_to_ns(machine.host_stamp) - shift, 0)
            lanes[machine.name] = Lane(machine, group, stamps, machine.placed.copy())
        begin = max(int(ns[0]) - shift, 0) if len(ns) else 0
        trace.facts(
            "Counterpoint: proof",
            facts_of(result),
            begin,
            parent=next(iter(lanes.values())).group if lanes else None,
            description="how the clocks were related",
        )
        find_flows(result, lanes)
        vcpus = VcpuTracks(trace, result, lanes, shift)
        for lane in lanes.values():
            write_sched(trace, lane)
        for lane in lanes.values():
            vcpus.write(lane)
        for lane in lanes.values():
            write_instants(trace, lane)


def _shown(result: SyncResult) -> Iterator[Machine]:
    """The machines in tree order; not a further host that nothing relates to the first."""
    children: dict[str | None, list[Machine]] = {}
    for machine in result.timeline.machines:
        children.setdefault(machine.parent, []).append(machine)

    def tree(parent: str | None) -> Iterator[Machine]:
        for machine in children.get(parent, []):
            yield machine
            yield from tree(machine.name)

    hosts = {h.name for h in result.hosts}
    return (m for m in tree(None) if m.placed.any() or m.name not in hosts)


def _label(result: SyncResult, machine: Machine, number: int) -> str:
    """A name that says whose machine it is. Groups at the top are shown by name: numbers keep them in tree order."""
    digits = len(str(max(len(result.timeline.machines) - 1, 0)))
    role = "host" if machine.parent is None else f"guest of {machine.parent}"
    named = machine.name if machine.name == role else f"{machine.name} ({role})"
    return f"machine {number:0{digits}}: {named}"
