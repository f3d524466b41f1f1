"""The timeline as a Perfetto trace, read back by Perfetto's own trace processor, event for event."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from counterpoint.outputs.perfetto import write_perfetto
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from counterpoint.traces.formats import named_fields
from outputs import trace_processor

DATA = Path(__file__).parent.parent / "data"
SCHED = ("sched_switch", "sched_waking", "sched_wakeup", "sched_wakeup_new")
QUERIES = {
    "errors": "select name, value from stats where severity in ('error', 'data_loss') and value <> 0",
    "machines": "select raw_id, sysname, release, arch from machine order by id",
    "ftrace": (
        "select f.id, ifnull(c.machine_id, 0), f.ts, c.cpu, f.name, t.tid, a.key, ifnull(a.int_value, a.string_value)"
        " from ftrace_event f join cpu c using (ucpu) join thread t using (utid) join args a using (arg_set_id)"
    ),
    "sched": (
        "select ifnull(c.machine_id, 0), c.cpu, s.ts, s.dur, t.tid, t.name from sched s join cpu c using (ucpu)"
        " join thread t using (utid)"
    ),
    "slices": (
        "select s.id, p.name, t.name, ts, dur, depth, s.name, ifnull(s.category, '') from slice s"
        " join track t on t.id = s.track_id join track p on p.id = t.parent_id"
    ),
    "args": (
        "select s.id, substr(key, 7), ifnull(ifnull(a.string_value, a.int_value), a.display_value) from slice s"
        " join args a using (arg_set_id) where key like 'debug.%'"
    ),
    "flows": (
        "select a.ts, a.name, b.ts, b.name, ta.name, tb.name from flow join slice a on a.id = slice_out"
        " join slice b on b.id = slice_in join track ta on ta.id = a.track_id join track tb on tb.id = b.track_id"
    ),
    "counters": (
        "select p.name, t.name, ts, cast(value as int) from counter c join counter_track t on t.id = c.track_id"
        " join track p on p.id = t.parent_id order by 1, 2, 3"
    ),
    "tracks": "select t.name, p.name from track t left join track p on p.id = t.parent_id",
}


def world(folder, **options):
    World(WorldOptions(**options)).write(folder)
    return sync(*sorted(folder.glob("*.dat"), key=lambda p: ("host", "guest", "l2").index(p.stem)))


class Written:
    """A timeline, and what the trace processor has of it."""

    def __init__(self, name, folder):
        trace_processor.need()
        if name == "nested":
            self.result = world(folder / "world", seed=3, events=3000, nested=1)
        else:
            self.result = sync(DATA / name / "host.dat", DATA / name / "guest.dat")
        write_perfetto(self.result, folder / "out.pftrace", overwrite=False)
        self.rate = self.result.rate
        names = [m.name for m in self.result.timeline.machines]
        parents = [m.parent for m in self.result.timeline.machines]
        self.groups = [
            f"machine {n}: {name}" if parent is None and name == "host"
            else f"machine {n}: {name} ({'host' if parent is None else f'guest of {parent}'})"
            for n, (name, parent) in enumerate(zip(names, parents, strict=True))
        ]  # fmt: skip
        rows = trace_processor.run((folder / "out.pftrace").read_bytes(), *QUERIES.values())
        self.rows = dict(zip(QUERIES, rows, strict=True))

    def ns(self, machine):
        return self.rate.array_to_ns(machine.host_stamp)


@pytest.fixture(scope="module", params=["x86-agent", "arm64-monoraw", "nested"])
def written(request, tmp_path_factory):
    return Written(request.param, tmp_path_factory.mktemp("pftrace"))


def recorded(written, number, names):
    """(ns, cpu, event, pid, fields) of each event of these names on the timeline; None: of all others but SCHED."""
    machine = written.result.timeline.machines[number]
    recording, ns = machine.recording, written.ns(machine)
    cpu_of = [s.cpu for s in recording.streams]
    for event_id in recording.counts_by_id():
        event = recording.formats[event_id]
        if (event.name in SCHED) if names is None else (event.name not in names):
            continue
        rows = recording.rows(event)
        rows = rows[machine.placed[rows]]
        columns = {name: recording.batch(event, rows).values(one) for name, one in named_fields(event)}
        for i, row in enumerate(rows.tolist()):
            fields = {name: column[i] for name, column in columns.items()}
            yield int(ns[row]), cpu_of[recording.stream_of[row]], event.name, int(recording.pid[row]), fields


def test_nothing_is_wrong_with_the_trace(written):
    assert written.rows["errors"] == []


def test_each_machine_is_one_of_perfettos(written):
    machines = [
        (number, *((uname[0], uname[2], uname[-1]) if (uname := m.recording.options.uname.split()) else (None,) * 3))
        for number, m in enumerate(written.result.timeline.machines)
    ]
    assert written.rows["machines"] == machines


def test_scheduling_events_are_in_ftrace_event_with_all_their_fields(written):
    found = defaultdict(list)
    for *event, key, value in written.rows["ftrace"]:
        found[tuple(event)].append((key, value))
    read = Counter((*event[1:], tuple(sorted(fields))) for event, fields in found.items())
    expected = Counter(
        (number, ns, cpu, name, pid, tuple(sorted((k, v) for k, v in fields.items() if k != "success")))
        for number in range(len(written.groups))
        for ns, cpu, name, pid, fields in recorded(written, number, SCHED)
    )
    assert sum(expected.values()) > 200
    assert read == expected
    order = defaultdict(list)
    for event in sorted(found):
        order[event[1], event[3]].append(event[2])
    assert all(stamps == sorted(stamps) for stamps in order.values())


def test_the_running_tasks_are_those_of_the_switches(written):
    read = defaultdict(list)
    for machine, cpu, ts, dur, tid, _ in written.rows["sched"]:
        read[machine, cpu].append((ts, dur, tid))
    for number in range(len(written.groups)):
        switches = defaultdict(list)
        for ns, cpu, _, _, fields in sorted(recorded(written, number, ("sched_switch",)), key=lambda e: e[:2]):
            switches[cpu].append((ns, fields["next_pid"]))
        for cpu, mine in switches.items():
            expected = [(a[0], b[0] - a[0], a[1]) for a, b in itertools.pairwise(mine)]
            # the last one ends with the trace
            assert sorted(read.pop((number, cpu)))[:-1] == expected
    assert not read


def test_every_other_event_is_shown_once_with_its_fields(written):
    fields = defaultdict(dict)
    for slice_id, key, value in written.rows["args"]:
        fields[slice_id][key] = value
    instants, begins = defaultdict(list), defaultdict(list)
    for slice_id, group, track, ts, dur, _, name, category in written.rows["slices"]:
        if category == "kvm" and (dur != 0 or track.startswith(("vCPU", "thread"))):
            if fields[slice_id]:
                begins[ts].append(fields[slice_id])
        elif category != "guest" and name != "Counterpoint: proof":
            instants[group, track, ts, name].append(fields[slice_id])
    for number, group in enumerate(written.groups):
        for ns, cpu, name, pid, own in recorded(written, number, None):
            own = {key: str(value) if isinstance(value, list) else value for key, value in own.items()}
            own = {
                key: value - 2**64 if isinstance(value, int) and value >= 2**63 else value for key, value in own.items()
            }
            key = group, f"CPU {cpu} events", ns, name
            shown = instants[key] if instants[key] else begins[ns] if name in ("kvm_entry", "kvm_exit") else []
            match = [one for one in shown if {k: v for k, v in one.items() if k != "task"} == own]
            assert match, (key, own, shown)
            if shown is instants[key]:
                assert match[0]["task"].endswith(f" [{pid}]")
            shown.remove(match[0])
    assert not any(instants.values()) and not any(begins.values())
