"""The timeline as a Perfetto trace, read back by Perfetto's own trace processor, event for event."""

from __future__ import annotations

import re
from collections import Counter, defaultdict, namedtuple
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from counterpoint.analysis.states import State, vcpu_states
from counterpoint.clocks.counter import add
from counterpoint.errors import BadFileError, UsageError
from counterpoint.outputs import perfetto_vcpus
from counterpoint.outputs.perfetto import write_perfetto
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.sync import sync
from counterpoint.traces.formats import named_fields
from outputs import trace_processor

HARDIRQ = 8
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
        "select p.name, t.name, ts, dur, depth, s.name from slice s"
        " join track t on t.id = s.track_id join track p on p.id = t.parent_id"
    ),
    "flows": (
        "select a.ts, a.name, b.ts, b.name, ta.name, tb.name from flow join slice a on a.id = slice_out"
        " join slice b on b.id = slice_in join track ta on ta.id = a.track_id join track tb on tb.id = b.track_id"
    ),
    "counters": (
        "select p.name, t.name, ts, cast(value as int) from counter c join track t on t.id = c.track_id"
        " join track p on p.id = t.parent_id order by 1, 2, 3"
    ),
    "tracks": "select t.name, p.name from track t left join track p on p.id = t.parent_id",
}


Event = namedtuple("Event", "ns kind name fields")


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
        self._events = []
        names = [m.name for m in self.result.timeline.machines]
        parents = [m.parent for m in self.result.timeline.machines]
        self.groups = [
            f"machine {n}: {name}" if parent is None and name == "host"
            else f"machine {n}: {name} ({'host' if parent is None else f'guest of {parent}'})"
            for n, (name, parent) in enumerate(zip(names, parents, strict=True))
        ]  # fmt: skip
        self.data = (folder / "out.pftrace").read_bytes()
        page = (DATA.parent.parent / "docs" / "perfetto.md").read_text()
        self.page = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
        rows = trace_processor.run(self.data, *QUERIES.values(), *self.page)
        self.rows = dict(zip((*QUERIES, *self.page), rows, strict=True))

    def ns(self, machine):
        return self.rate.array_to_ns(machine.host_stamp)

    def events(self):
        """(group, track, event) of each track event, by Perfetto's protobufs, with its names resolved."""
        if not self._events:
            self._events.extend(self._read())
        return self._events

    def _read(self):
        tracks, names = {}, defaultdict(dict)
        for packet in Trace.FromString(self.data).packet:
            for field, entries in packet.interned_data.ListFields():
                for entry in entries:
                    text = entry.str.decode() if field.name.endswith("values") else entry.name
                    names[field.name][entry.iid] = text
            if packet.HasField("track_descriptor"):
                tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("track_event"):
                event = packet.track_event
                fields = {
                    names["debug_annotation_names"][a.name_iid]: values_of(a, names["debug_annotation_string_values"])
                    for a in event.debug_annotations
                }
                track = tracks[event.track_uuid]
                shown = Event(packet.timestamp, event.type, names["event_names"].get(event.name_iid, ""), fields)
                yield tracks[track.parent_uuid].name, track.name, shown


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
            expected = [(a[0], b[0] - a[0], a[1]) for a, b in pairwise(mine)]
            # the last one ends with the trace
            assert sorted(read.pop((number, cpu)))[:-1] == expected
    assert not read


def values_of(one, texts):
    """The value of an annotation as the recording has it."""
    kind = one.WhichOneof("value")
    return texts[one.string_value_iid] if kind == "string_value_iid" else getattr(one, kind)


def test_every_other_event_is_shown_once_with_its_fields(written):
    """As an instant on its CPU's track, or as the slice of guest mode or of an exit that it begins."""
    shown, begun = defaultdict(list), defaultdict(list)
    for group, track, event in written.events():
        if event.kind == TrackEvent.TYPE_INSTANT and event.name != "Counterpoint: proof":
            shown[group, track, event.ns, event.name].append(event.fields)
        elif event.kind == TrackEvent.TYPE_SLICE_BEGIN and event.fields:
            begun[event.ns].append(event.fields)
    for number, group in enumerate(written.groups):
        for ns, cpu, name, pid, own in recorded(written, number, None):
            own = {key: str(value) if isinstance(value, list) else value for key, value in own.items()}
            instants = shown[group, f"CPU {cpu} events", ns, name]
            task = f" [{pid}]"
            found = [one for one in instants if own == {k: v for k, v in one.items() if k != "task"}]
            found = [one for one in found if one["task"].endswith(task)]
            if found or name not in ("kvm_entry", "kvm_exit"):
                instants.remove(found[0])
            else:
                begun[ns].remove(own)
    assert not any(shown.values()) and not any(begun.values())
    entries = sum(event.name in ("kvm_entry", "kvm_exit") for *_, event in written.events())
    assert entries < 0.1 * sum(1 for _ in recorded(written, 0, ("kvm_entry", "kvm_exit")))


def test_what_is_shown_is_what_a_reader_finds(written):
    """The trace processor's slices are those of the packets: none lost, none crossed."""
    begins = Counter(
        (group, track, event.ns, event.name)
        for group, track, event in written.events()
        if event.kind in (TrackEvent.TYPE_INSTANT, TrackEvent.TYPE_SLICE_BEGIN)
    )
    assert Counter((group, track, ts, name) for group, track, ts, _, _, name in written.rows["slices"]) == begins


def vcpu_track(vcpu):
    if vcpu.guest is None:
        return f"thread {vcpu.tid} (runs a guest that is not recorded)"
    return f"vCPU {vcpu.guest_cpu} (thread {vcpu.tid} of {vcpu.host})"


def test_a_vcpus_track_covers_every_instant_with_its_states(written):
    timeline = written.result.timeline
    tracks = defaultdict(list)
    for _, track, ts, dur, depth, name in written.rows["slices"]:
        if track.startswith(("vCPU", "thread")):
            tracks[track, depth].append((ts, dur, name))
    total = Counter()
    for vcpu in vcpu_states(written.result):
        stamps = add(np.r_[vcpu.begin, vcpu.end].astype(np.int64).view(np.uint64), timeline.base)
        ns = written.rate.array_to_ns(stamps).tolist()
        above = sorted(tracks.pop((vcpu_track(vcpu), 0)))
        assert (above[0][0], above[-1][0] + above[-1][1]) == (ns[0], ns[-1])
        assert all(a[0] + a[1] == b[0] for a, b in pairwise(above))
        took, found = Counter(), Counter()
        for state, begin, end in zip(vcpu.state.tolist(), ns[:-1], ns[1:], strict=True):
            kind = {State.GUEST: "guest mode", State.UNKNOWN: "unknown", State.HALTED: "halted"}.get(state, "other")
            took[kind] += end - begin
        for _, dur, name in above:
            found[name if name in took else "other"] += dur
        assert found == took
        total += took
        inside = np.array([(ts, ts + dur) for ts, dur, name in above if name == "guest mode"]).reshape(-1, 2)
        below = np.array([(ts, ts + dur) for ts, dur, _ in tracks.pop((vcpu_track(vcpu), 1), [])]).reshape(-1, 2)
        at = np.searchsorted(inside[:, 0], below[:, 0], side="right") - 1
        assert (at >= 0).all() and (below[:, 1] <= inside[at, 1]).all()
    assert total["guest mode"] > 0
    assert not tracks


def is_handler(name, fields, of):
    return name == "irq_handler_entry" and fields["name"] == of


def handled(written):
    """(ns, event, ns, event) of injections and handlers by a plain reading of the rules, one event after the other."""
    host, guest = written.result.timeline.machines
    ns, guest_ns = written.ns(host), written.ns(guest)
    values = {}
    for machine in (host, guest):
        for event_id in machine.recording.counts_by_id():
            event = machine.recording.formats[event_id]
            rows = machine.recording.rows(event)
            batch = machine.recording.batch(event, rows)
            known = {f.name: batch.values(f) for f in (*event.fields, *event.common)}
            for i, row in enumerate(rows.tolist()):
                values[machine.name, row] = event.name, {name: column[i] for name, column in known.items()}
    accepted = {v["vec"] for (_, _), (name, v) in values.items() if name == "kvm_apic_accept_irq"}
    for tid, (_, cpu) in vcpus_by_thread(written.result, "host").items():
        rows = np.flatnonzero(host.recording.pid == tid)
        rows = rows[np.lexsort((rows, ns[rows]))].tolist()
        on_cpu = np.array([s.cpu for s in guest.recording.streams])[guest.recording.stream_of] == cpu
        events = sorted((guest_ns[row], row) for row in np.flatnonzero(on_cpu & guest.placed))
        updates = (values["host", row] for row in rows)
        cause, stream = [], None
        levels = {fields["irq"]: None for name, fields in updates if name == "kvm_timer_update_irq"}
        for at, row in enumerate(rows):
            name, fields = values["host", row]
            if name == "kvm_inj_virq":
                cause.append((row, not fields["soft"] and fields["vector"] in accepted, None))
            elif name == "kvm_timer_update_irq":
                if fields["level"]:
                    cause.append((row, all(level == 0 for level in levels.values()), "arch_timer"))
                levels[fields["irq"]] = fields["level"]
            elif name == "kvm_entry":
                leave = next((r for r in rows[at:] if values["host", r][0] == "kvm_exit"), None)
                moved = {host.recording.stream_of[r] for r in (row, leave, *(c[0] for c in cause)) if r is not None}
                if len(cause) == 1 and cause[0][1] and leave is not None and moved == {stream}:
                    inside = [r for t, r in events if ns[row] <= t <= ns[leave]]
                    if cause[0][2]:
                        inside = [r for r in inside if is_handler(*values["guest", r], cause[0][2])]
                    if inside and guest.proved[inside[0]]:
                        what, fields = values["guest", inside[0]]
                        if fields["common_flags"] & HARDIRQ or cause[0][2]:
                            yield int(ns[cause[0][0]]), values["host", cause[0][0]][0], int(guest_ns[inside[0]]), what
                cause, stream = [], host.recording.stream_of[row]


def test_arrows_lead_from_injections_to_their_handlers(written):
    found = sorted((a, name, b, what) for a, name, b, what, _, _ in written.rows["flows"])
    if len(written.groups) > 2:
        assert not found  # a world without injections
        return
    assert found == sorted(one for one in handled(written) if one[3] not in SCHED)
    assert len(found) > 30


def test_exits_a_second_are_counted_in_bins(written):
    counters = defaultdict(list)
    for _, track, ts, value in written.rows["counters"]:
        counters[track].append((ts, value))
    for number, machine in enumerate(written.result.timeline.machines):
        exits = defaultdict(list)
        for ns, _, _, pid, _ in recorded(written, number, ("kvm_exit",)):
            exits[pid].append(ns)
        for vcpu in vcpu_states(written.result):
            if vcpu.host != machine.name or not exits[vcpu.tid]:
                continue
            who = f"thread {vcpu.tid}" if vcpu.guest is None else f"vCPU {vcpu.guest_cpu}"
            steps = counters.pop(f"{who} exits a second")
            assert sum(v * (b[0] - a) for (a, v), b in pairwise(steps)) == len(exits[vcpu.tid]) * 10**9
            size = int(np.gcd.reduce([ts for ts, _ in steps]))
            counts = Counter(ns // size for ns in exits[vcpu.tid])
            for (a, v), (b, _) in pairwise(steps):
                assert {counts[n] * 10**9 // size for n in range(a // size, b // size)} == {v}
    assert not counters


def test_the_proof_is_in_the_trace_and_its_claims(written):
    proof = [event for *_, event in written.events() if event.name == "Counterpoint: proof"]
    assert len(proof) == 1
    facts = proof[0].fields
    for guest in written.result.guests:
        for vcpu in guest.vcpus:
            prefix = f"{guest.name}/cpu{vcpu.guest_cpu}"
            for index, epoch in enumerate(vcpu.epochs):
                assert facts[f"{prefix}/epoch{index}/verdict"] == epoch.verdict.value
                assert facts[f"{prefix}/epoch{index}/offset"].startswith(f"{epoch.offset} ")
                assert facts[f"{prefix}/epoch{index}/feasible"] == str(epoch.feasible and list(epoch.feasible))
                if epoch.low is None or epoch.high is None:
                    continue
                assert str(epoch.low.guest_stamp) in facts[f"{prefix}/epoch{index}/witness_low"]
                assert str(epoch.high.host_to) in facts[f"{prefix}/epoch{index}/witness_high"]
            for index, claim in enumerate(vcpu.claims):
                assert facts[f"{prefix}/claim{index}"].startswith(
                    f"offset {claim.claim.offset} by {claim.claim.source}"
                )


def test_the_pages_queries_find_something(written):
    assert len(written.page) == 6
    found = [bool(written.rows[query]) for query in written.page]
    if "x86-agent" in str(written.result.host.path):
        assert found == [True] * 6
    assert found[0] and found[1] and found[3] and found[5]


def test_lost_events_are_told(tmp_path):
    result = world(tmp_path / "world", seed=5, events=2000, lose=3)
    write_perfetto(result, tmp_path / "out.pftrace", overwrite=False)
    host = result.timeline.machines[0].recording
    lossy = {host.streams[n].cpu for n in host.losses.stream.tolist()}
    packets = Trace.FromString((tmp_path / "out.pftrace").read_bytes()).packet
    bundles = [p.ftrace_events for p in packets if p.HasField("ftrace_events") and not p.machine_id]
    assert lossy
    assert {bundle.cpu for bundle in bundles if bundle.lost_events} == lossy


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "out.pftrace"
    path.write_bytes(b"mine")
    result = sync(DATA / "x86-agent" / "host.dat", DATA / "x86-agent" / "guest.dat")
    with pytest.raises(UsageError):
        write_perfetto(result, path, overwrite=False)
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out.pftrace"]


def test_what_fails_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.pftrace"
    path.write_bytes(b"mine")
    result = sync(DATA / "x86-agent" / "host.dat", DATA / "x86-agent" / "guest.dat")
    monkeypatch.setattr(
        perfetto_vcpus.VcpuTracks, "write", lambda *_: (_ for _ in ()).throw(BadFileError("full", path))
    )
    with pytest.raises(BadFileError):
        write_perfetto(result, path, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out.pftrace"]
