"""The scheduling events of all machines, as Perfetto's own tables have them, against the recordings."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from counterpoint.outputs.perfetto import write_perfetto
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from outputs import trace_processor

DATA = Path(__file__).parent.parent / "data"
NAMES = ("sched_switch", "sched_waking", "sched_wakeup", "sched_wakeup_new")
NO_ERRORS = "select name, value from stats where severity in ('error', 'data_loss') and value <> 0"
EVENTS = (
    "select ifnull(c.machine_id, 0), f.ts, c.cpu, f.name, t.tid, a.key, ifnull(a.int_value, a.string_value)"
    " from ftrace_event f join cpu c using (ucpu) join thread t using (utid) join args a using (arg_set_id)"
    " order by f.id"
)


def recorded(result):
    """(machine, ns, cpu, event, pid, fields) of each scheduling event on the timeline."""
    out = []
    for number, machine in enumerate(result.timeline.machines):
        recording = machine.recording
        ns = result.rate.array_to_ns(machine.host_stamp)
        for name in NAMES:
            event = recording.format_named("sched", name)
            rows = recording.rows(event)
            rows = rows[machine.placed[rows]]
            if not len(rows):
                continue
            batch = recording.batch(event, rows)
            fields = {f.name: batch.values(f) for f in event.fields if f.name not in ("success",)}
            cpus = np.array([s.cpu for s in recording.streams])[recording.stream_of[rows]]
            for i, row in enumerate(rows.tolist()):
                values = tuple(sorted((key, column[i]) for key, column in fields.items()))
                out.append((number, int(ns[row]), int(cpus[i]), name, int(recording.pid[row]), values))
    return out


def read_back(rows):
    events = defaultdict(list)
    for number, (machine, ts, cpu, name, tid, key, value) in rows:
        events[number, machine, ts, cpu, name, tid].append((key, value))
    return [(*key[1:], tuple(sorted(fields))) for key, fields in events.items()]


def world(tmp_path, **options):
    World(WorldOptions(**options)).write(tmp_path / "world")
    return sync(*sorted((tmp_path / "world").glob("*.dat"), key=lambda p: ("host", "guest", "l2").index(p.stem)))


@pytest.fixture(params=["x86-agent", "arm64-monoraw", "nested"])
def written(request, tmp_path):
    trace_processor.need()
    if request.param == "nested":
        result = world(tmp_path, seed=3, events=4000, nested=1)
    else:
        result = sync(DATA / request.param / "host.dat", DATA / request.param / "guest.dat")
    path = tmp_path / "out.pftrace"
    write_perfetto(result, path, overwrite=False)
    return result, path.read_bytes()


def test_every_event_is_in_ftrace_event_with_all_its_fields(written):
    result, trace = written
    errors, rows, order = trace_processor.run(
        trace,
        NO_ERRORS,
        EVENTS.replace("select ", "select f.id, "),
        "select ifnull(c.machine_id, 0), c.cpu, f.ts from ftrace_event f join cpu c using (ucpu) order by f.id",
    )
    assert errors == []
    expected = recorded(result)
    assert len(expected) > 500
    found = read_back((row[0], row[1:]) for row in rows)
    assert Counter(found) == Counter(expected)
    for machine, cpu in {(m, c) for m, c, _ in order}:
        stamps = [ts for m, c, ts in order if (m, c) == (machine, cpu)]
        assert stamps == sorted(stamps)
