"""The timeline as a Perfetto trace, read back with Perfetto's own protobufs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from counterpoint.errors import UsageError
from counterpoint.outputs.perfetto import write_perfetto
from counterpoint.timeline.sync import sync

DATA = Path(__file__).parent.parent / "data"
HOST, GUEST = "machine 0: host", "machine 1: guest (guest of host)"


class Read:
    """A trace as this test looks at it: tracks by uuid, and events with names resolved."""

    def __init__(self, path: Path) -> None:
        trace = Trace()
        trace.ParseFromString(path.read_bytes())
        self.tracks = {}
        self.events = []
        names: dict[int, str] = {}
        for packet in trace.packet:
            for entry in packet.interned_data.event_names:
                names[entry.iid] = entry.name
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("track_event"):
                event = packet.track_event
                self.events.append((packet.timestamp, event.type, event.track_uuid, names.get(event.name_iid, "")))

    def name(self, uuid: int) -> str:
        track = self.tracks[uuid]
        own = track.name or track.process.process_name
        return f"{self.name(track.parent_uuid)}/{own}" if track.parent_uuid else own

    def on(self, track: str, kind: int) -> list[tuple[int, str]]:
        return [(ts, name) for ts, what, uuid, name in self.events if what == kind and self.name(uuid) == track]


@pytest.fixture(scope="module", params=["x86-agent", "arm64-monoraw"])
def pair(request, tmp_path_factory):
    folder = DATA / request.param
    result = sync(folder / "host.dat", folder / "guest.dat")
    path = tmp_path_factory.mktemp("pftrace") / "out.pftrace"
    write_perfetto(result, path, overwrite=False)
    return result, Read(path)


def test_machines_cpus_and_threads_have_tracks(pair):
    result, read = pair

    names = {read.name(uuid) for uuid in read.tracks if uuid}

    for cpu in (0, 1):
        assert f"{HOST}/CPU {cpu} events" in names
        assert f"{GUEST}/CPU {cpu} events" in names
    for vcpu in result.guests[0].vcpus:
        assert f"{HOST}/thread {vcpu.host_tid}: guest cpu {vcpu.guest_cpu}" in names
    assert "" not in names


def test_every_run_window_is_a_slice_with_its_stamps(pair):
    result, read = pair
    host = result.host
    for vcpu in result.guests[0].vcpus:
        entries = host.rows(host.format_named("kvm", "kvm_entry"))
        entries = entries[host.pid[entries] == vcpu.host_tid]
        expected = result.rate.array_to_ns(np.sort(host.stamp[entries])).tolist()

        begins = [
            ts
            for ts, _ in read.on(
                f"{HOST}/thread {vcpu.host_tid}: guest cpu {vcpu.guest_cpu}", TrackEvent.TYPE_SLICE_BEGIN
            )
        ]
        ends = [
            ts
            for ts, _ in read.on(
                f"{HOST}/thread {vcpu.host_tid}: guest cpu {vcpu.guest_cpu}", TrackEvent.TYPE_SLICE_END
            )
        ]

        assert len(begins) == len(ends) > 100
        # an entry at the end of the recording, whose exit was not recorded, is no window
        assert set(begins) <= set(expected) and len(expected) - len(begins) <= 1


def test_all_other_events_are_instants_in_host_time(pair):
    result, read = pair
    timeline = result.timeline
    shown = [(ts, name) for ts, kind, _, name in read.events if kind == TrackEvent.TYPE_INSTANT]
    as_slices = {"sched_switch", "sched_waking", "sched_wakeup", "sched_wakeup_new", "kvm_entry", "kvm_exit"}
    expected: Counter[tuple[int, str]] = Counter()
    for index, machine in enumerate(timeline.machines):
        mine = timeline.machine == index
        for ts, event_id in zip(timeline.ts_ns[mine].tolist(), timeline.event_id[mine].tolist(), strict=True):
            name = machine.recording.event_name(event_id)
            if name not in as_slices:
                expected[ts, name] += 1

    seen = Counter(item for item in shown if item[1] not in (*as_slices, "Counterpoint: proof"))

    assert seen == expected
    # entries and exits that bound no window are instants, too
    assert sum(name in ("kvm_entry", "kvm_exit") for _, name in shown) <= 4


def test_guest_events_lie_in_their_threads_slices(pair):
    result, read = pair
    for vcpu in result.guests[0].vcpus:
        lane = f"{HOST}/thread {vcpu.host_tid}: guest cpu {vcpu.guest_cpu}"
        begin = np.array([ts for ts, _ in read.on(lane, TrackEvent.TYPE_SLICE_BEGIN)])
        end = np.array([ts for ts, _ in read.on(lane, TrackEvent.TYPE_SLICE_END)])
        events = np.array([ts for ts, _ in read.on(f"{GUEST}/CPU {vcpu.guest_cpu} events", TrackEvent.TYPE_INSTANT)])
        events = events[(events >= begin[0]) & (events <= end[-1])]

        at = np.searchsorted(begin, events, side="right") - 1

        assert (events <= end[at] + 1).all()


def test_the_proof_is_in_the_trace(pair):
    _, read = pair

    assert len(read.on("Counterpoint: proof", TrackEvent.TYPE_INSTANT)) == 1


def test_an_existing_file_is_kept(tmp_path):
    folder = DATA / "x86-agent"
    path = tmp_path / "out.pftrace"
    path.write_bytes(b"mine")

    with pytest.raises(UsageError):
        write_perfetto(sync(folder / "host.dat", folder / "guest.dat"), path, overwrite=False)

    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out.pftrace"]
