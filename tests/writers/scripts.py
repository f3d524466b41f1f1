"""Recordings of a few lines of text: "CPU STAMP EVENT PID FIELD=VALUE..."."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from counterpoint.analysis.placed import Placed
from counterpoint.timeline.merge import Machine
from counterpoint.traces.recording import Recording
from writers.events import Event, FieldSpec
from writers.tracedat import Buffer, TraceFile


def kind(number: int, name: str, *fields: str, text: str = '""') -> Event:
    """An event "system:name" with fields "type name"; "text name" is a string, "mask name" an array of longs."""
    specs = []
    for each in fields:
        type_, field = each.rsplit(" ", 1)
        dynamic = {"text": "char", "mask": "unsigned long"}.get(type_)
        specs.append(FieldSpec(dynamic, field, dynamic="data_loc") if dynamic else FieldSpec(type_, field))
    system, _, short = name.partition(":")
    return Event(number, system, short, specs, text)


def scripted(
    path: Path,
    events: Mapping[str, Event],
    *script: str,
    lost: Mapping[tuple[int, int], int] | None = None,
    cpus: int = 2,
) -> Recording:
    """The recording of a script; ``lost``: (CPU, stamp) of the event before which so many were lost."""
    file = TraceFile(events=list(events.values()), clock="mono", cpu_count=cpus)
    rows: dict[int, list[tuple[int, bytes]]] = {cpu: [] for cpu in range(cpus)}
    for line in script:
        cpu, stamp, name, pid, *fields = line.split()
        values: dict[str, object] = {}
        for key, value in (each.split("=") for each in fields):
            integer = value.lstrip("-").isdigit()
            values[key] = [int(v) for v in value.split(",")] if "," in value else int(value) if integer else value
        rows[int(cpu)].append((int(stamp), file.payload(events[name], int(pid), **values)))
    buffer = Buffer()
    for cpu, mine in rows.items():
        mine.sort(key=lambda row: row[0])
        missed = {[s for s, _ in mine].index(at): n for (number, at), n in (lost or {}).items() if number == cpu}
        buffer.cpus[cpu] = file.stream(mine, missed=missed)
    file.buffers = [buffer]
    return Recording.open(file.write(path))


def placed(recording: Recording) -> Placed:
    """All of a recording, by its own clock."""
    all_of_it = np.ones(len(recording), np.bool_)
    return Placed(Machine(recording.name, recording, None, recording.stamp, all_of_it, all_of_it), 0)
