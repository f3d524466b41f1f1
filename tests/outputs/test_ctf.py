"""The timeline as CTF, read back by babeltrace2 and compared event for event."""

from __future__ import annotations

import errno
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.wall import Wall
from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs import ctf, ctf_packets, ctf_rows
from counterpoint.outputs.ctf import write_ctf, write_traces
from counterpoint.outputs.text import TimelineText
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.sync import sync
from counterpoint.traces.formats import EventFormat, named_fields
from counterpoint.traces.recording import Recording
from outputs.ctf_reader import Event, need_babeltrace, parsed, read, read_text
from writers.events import Event as Kind
from writers.events import FieldSpec
from writers.ringbuffer import UNKNOWN
from writers.tracedat import Buffer, TraceFile

pytestmark = pytest.mark.peer

DATA = Path(__file__).parent.parent / "data"


def pair(name: str = "x86-agent") -> tuple[Path, Path]:
    return DATA / name / "host.dat", DATA / name / "guest.dat"


@pytest.fixture(scope="module")
def result():
    return sync(*pair())


def alone(*recordings: Recording) -> Timeline:
    machines = []
    for n, recording in enumerate(recordings):
        everything = np.ones(len(recording), np.bool_)
        machines.append(Machine(f"m{n}", recording, None, recording.stamp, everything, everything))
    return Timeline(machines, Rate.ns())


def written(timeline: Timeline, folder: Path) -> Path:
    folder.mkdir()
    write_traces(timeline, folder, folder)
    return folder


def check_same_events(timeline: Timeline, events: Iterable[Event], every: int = 1, origin: int = 0) -> None:
    """All events in each CPU's order and in that of time; of every so many of a CPU their fields."""
    ticks = timeline.host_ticks - np.uint64(origin)
    ns = (ticks.view(np.int64) if timeline.rate is None else timeline.rate.array_to_ns(ticks)).tolist()
    streams: dict[tuple[str, int], list[Event]] = defaultdict(list)
    stamps = []
    for event in events:
        streams[event.machine, event.cpu].append(event)
        stamps.append(event.stamp)
    assert stamps == ns
    for index, machine in enumerate(timeline.machines):
        for cpu in sorted({s.cpu for s in machine.recording.streams}):
            at = np.flatnonzero((timeline.machine == index) & (timeline.cpu == cpu))
            rows = timeline.row[at]
            recording = machine.recording
            tasks = [recording.comm(pid)[:15] for pid in recording.pid[rows].tolist()]
            kinds = {n: f"{e.system}:{e.name}" for n in recording.counts_by_id() if (e := recording.formats.get(n))}
            mine = streams.pop((machine.name, cpu), [])
            assert [e.stamp for e in mine] == [ns[i] for i in at.tolist()]
            assert [e.name for e in mine] == [kinds[n] for n in recording.event_id[rows].tolist()]
            assert [tuple(e.context.values()) for e in mine] == list(
                zip(recording.pid[rows].tolist(), tasks, recording.stamp[rows].tolist(), machine.proved[rows].tolist(),
                    strict=True)
            )  # fmt: skip
            for record, event in zip(
                TimelineText(timeline).records(at[::every], fields=True), mine[::every], strict=True
            ):
                check_fields(recording.format_named(*event.name.split(":", 1)), record["fields"], event.fields)
    assert not streams


def check_fields(known: EventFormat | None, values: dict[str, Any], read_back: Any) -> None:
    """The fields of an event are those that ``show --fields`` has; bytes of unknown kind are integers."""
    fields = parsed(read_back) if isinstance(read_back, str) else read_back
    kinds = {name: field.kind for name, field in named_fields(known)} if known else {}
    values = {k: list(bytes.fromhex(v)) if kinds[k] == "bytes" else v for k, v in values.items()}
    lengths = {f"_{k}_length" for k, v in values.items() if isinstance(v, list)} - values.keys()
    assert {k: v for k, v in fields.items() if k not in lengths} == values


def test_every_event_is_read_back_as_it_is_shown(result, tmp_path, monkeypatch):
    need_babeltrace()
    monkeypatch.setattr(ctf, "BLOCK", 3000)
    monkeypatch.setattr(ctf_packets, "PACKET_BYTES", 9000)

    notes = write_ctf(result, tmp_path / "out", overwrite=False)

    assert notes == ["the wall time is not known: readers show the host clock's 0 as 1 January 1970"]
    check_same_events(result.timeline, read_text(tmp_path / "out"), every=61)
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert [g["vcpus"][0]["verdict"] for g in proof["guests"]] == [result.guests[0].vcpus[0].verdict.value]


def test_every_event_of_an_arm64_guest(tmp_path):
    timeline = alone(Recording.open(pair("arm64-monoraw")[1]))

    check_same_events(timeline, read_text(written(timeline, tmp_path / "out")), every=61)


def test_the_environment_says_the_proof(result, tmp_path):
    bt2 = need_babeltrace()
    write_ctf(result, tmp_path / "out", overwrite=False)

    traces = {}
    for message in bt2.TraceCollectionMessageIterator(str(tmp_path / "out")):
        if type(message) is bt2._StreamBeginningMessageConst:
            stream = message.stream
            traces[str(stream.trace.environment["hostname"])] = stream.trace.environment, stream.cls.default_clock_class
    environment, clock = traces["guest"]
    assert set(traces) == {"host", "guest"}
    vcpu = result.guests[0].vcpus[0]
    assert str(environment["domain"]) == "kernel"
    assert str(environment["proof_cpu0"]) == (
        f"proved, offset {vcpu.epochs[0].offset} by time_shift, bound 2654 ns,"
        f" {vcpu.epochs[0].inside} of {vcpu.epochs[0].inside} inside, {vcpu.epochs[0].unknown} unknown, thread 191"
    )
    assert (clock.frequency, clock.precision, clock.origin_is_unix_epoch) == (10**9, 2654, True)
    assert "not since 1970" in clock.description
    # Trace Compass knows machines by them
    assert len({clock.uuid for _, clock in traces.values()}) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"nested": 1, "nested_events": True, "events": 500},
        {"start": (1 << 64) - 10**7, "events": 500},
        {"lose": 6, "uncounted": True, "lose_guest": 3, "cpus": 2, "events": 500},
        {"migrate": True, "events": 500, "pauses": 1},
    ],
    ids=["nested", "wraps", "lossy", "migrated"],
)
def test_worlds(options, tmp_path):
    need_babeltrace()
    World(WorldOptions(**options)).write(tmp_path / "world")
    files = [tmp_path / "world" / f for f in ("host.dat", "guest.dat", "l2.dat")]
    hosts = [p for p in [tmp_path / "world" / "host-b.dat"] if p.exists()]
    parents = {"l2": "guest"} if files[2].exists() else {}
    result = sync(*(f for f in files if f.exists()), parents=parents, hosts=hosts)
    timeline = result.timeline

    write_ctf(result, tmp_path / "out", overwrite=False)

    events, lost = read(tmp_path / "out")
    origin = int(timeline.host_ticks[0]) if "start" in options else 0
    check_same_events(timeline, events, every=11, origin=origin)
    assert sum(one.count for one in lost) == sum(max(m.count, 1) for m in timeline.losses())
    assert (options.get("lose", 0) > 0) == bool(lost)


ODD = [
    Kind(300, "a", "one", [FieldSpec("u64", "now"), FieldSpec("s8", "small"), FieldSpec("char", "name", 8),
                           FieldSpec("u32", "many", 3), FieldSpec("char", "text", None, "data_loc")]),
    Kind(301, "a", 'two"\\', [FieldSpec("s64", "int"), FieldSpec("u16", "event"), FieldSpec("u32", "_x"),
                              FieldSpec("s16", "many", 2), FieldSpec("s16", "list", None, "data_loc")]),
    Kind(302, "b", "one", [FieldSpec("s32", "now"), FieldSpec("u32", "list_length"),
                           FieldSpec("char", "text", None, "rel_loc"), FieldSpec("u8", "list", None, "data_loc")]),
]  # fmt: skip
VALUES = [
    {"now": (1 << 64) - 1, "small": -128, "name": b"ab\0junk", "many": [0, 1, (1 << 32) - 1], "text": b"\xff\xc3\xa9!"},
    {"int": -(1 << 63), "event": 65535, "_x": 0xDEADBEEF, "many": [-1, -(1 << 15)], "list": [-1, 32767, 0]},
    {"now": -(1 << 31), "list_length": 7, "text": b"\x1b[31m" + b"x" * 300, "list": []},
]


@pytest.mark.parametrize("big_endian", [False, True])
def test_hostile_texts_and_the_edges_of_integers(tmp_path, big_endian):
    need_babeltrace()
    file = TraceFile(events=ODD, cmdlines={7: "we\tird'\";\x1b", 8: "a" * 40}, big_endian=big_endian)
    records = [(1000 + 10 * n, file.payload(ODD[n % 3], 7 + n % 2, **VALUES[n % 3])) for n in range(30)]
    # of a kind that no format tells of
    unknown = bytearray(file.payload(ODD[2], 7, **VALUES[2]))
    unknown[0:2] = (999).to_bytes(2, "big" if big_endian else "little")
    file.buffers = [Buffer(cpus={0: file.stream([*records, (2000, bytes(unknown))]), 3: file.stream([])})]
    timeline = alone(Recording.open(file.write(tmp_path / "odd.dat")))

    events, _ = read(written(timeline, tmp_path / "out"))

    assert len(events) == 31
    one, two, three = events[:3]
    assert one.fields == {
        "now": (1 << 64) - 1, "small": -128, "name": "ab", "many": [0, 1, (1 << 32) - 1], "text": "?é!",
    }  # fmt: skip
    assert (two.name, two.context["procname"]) == ('a:two"\\', "a" * 15)
    assert two.fields == {
        "int": -(1 << 63), "event": 65535, "_x": 0xDEADBEEF, "many": [-1, -(1 << 15)],
        "_list_length": 3, "list": [-1, 32767, 0],
    }  # fmt: skip
    assert (three.fields["list_length"], three.fields["_list_length"], three.fields["list"]) == (7, 0, [])
    assert three.fields["text"] == "\x1b[31m" + "x" * 300
    assert three.context["procname"] == "we\tird'\";\x1b"
    assert [e.stamp for e in events] == timeline.host_ticks.tolist()
    assert events[30].fields["data"][:2] == list(unknown[:2])


def test_losses_lie_between_the_events_around_them(tmp_path):
    need_babeltrace()
    file = TraceFile(events=ODD[2:])
    record = file.payload(ODD[2], 7, **VALUES[2])
    missed = {0: 4, 3: 5, 6: UNKNOWN}
    file.buffers = [Buffer(cpus={2: file.stream([(1000 + 10 * n, record) for n in range(9)], missed=missed)})]
    timeline = alone(Recording.open(file.write(tmp_path / "lossy.dat")))

    events, lost = read(written(timeline, tmp_path / "out"))

    assert len(events) == 9
    assert [(one.cpu, one.begin, one.end, one.count) for one in lost] == [
        (2, 1000, 1000, 4), (2, 1020, 1030, 5), (2, 1050, 1060, 1),
    ]  # fmt: skip


def test_recordings_without_events(tmp_path):
    need_babeltrace()
    file = TraceFile(events=ODD, buffers=[Buffer(cpus={0: b""})])
    timeline = alone(Recording.open(file.write(tmp_path / "empty.dat")))

    assert read(written(timeline, tmp_path / "out")) == ([], [])


def test_records_that_end_early_have_zeros(tmp_path):
    need_babeltrace()
    kind = Kind(300, "a", "one", [FieldSpec("u32", "here"), FieldSpec("u32", "gone"), FieldSpec("char", "name", 8)])
    file = TraceFile(events=[kind])
    whole = file.payload(kind, 7, here=5, gone=6, name=b"abcdefg")
    file.buffers = [Buffer(cpus={0: file.stream([(1, whole), (2, whole[:12]), (3, whole[:20])])})]
    timeline = alone(Recording.open(file.write(tmp_path / "short.dat")))

    events, _ = read(written(timeline, tmp_path / "out"))

    assert [tuple(e.fields.values()) for e in events] == [(5, 6, "abcdefg"), (5, 0, ""), (5, 6, "abcd")]


def test_blocks_of_too_many_bytes_are_split_and_overlapping_fields_refused(tmp_path, monkeypatch):
    need_babeltrace()
    monkeypatch.setattr(ctf_rows, "MAX_BYTES", 2000)
    file = TraceFile(events=ODD)
    records = [(1000 + 10 * n, file.payload(ODD[2], 7, **VALUES[2])) for n in range(30)]
    file.buffers = [Buffer(cpus={0: file.stream(records, missed={20: 3})})]
    timeline = alone(Recording.open(file.write(tmp_path / "long.dat")))

    events, lost = read(written(timeline, tmp_path / "out"))

    assert [e.stamp for e in events] == timeline.host_ticks.tolist()
    assert [(one.begin, one.end, one.count) for one in lost] == [(1190, 1200, 3)]
    monkeypatch.setattr(ctf_rows, "MAX_EVENT", 200)
    with pytest.raises(UsageError, match="bytes of fields, which overlap"):
        written(timeline, tmp_path / "refused")


def test_the_command_overwrites_nothing_that_was_not_meant(tmp_path, capsys):
    files = [str(p) for p in pair()]
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("kept")

    assert main(["sync", *files, "-o", f"{out}/"]) == 0
    assert main(["sync", *files, "-o", f"{out}/"]) == 2
    assert main(["sync", *files, "-o", f"{other}/", "--force"]) == 2
    assert main(["sync", *files, "-o", f"{tmp_path / 'x.dat'}/"]) == 2
    assert main(["sync", *files, "-o", f"{out}/", "--force"]) == 0

    said = capsys.readouterr().err
    assert "readers show the host clock's 0 as 1 January 1970" in said
    assert "holds other things" in said
    assert sorted(p.name for p in out.iterdir()) == ["guest", "host", "proof.json"]
    assert (other / "thesis.txt").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]


def test_a_full_disk_leaves_the_old_folder_and_says_which(result, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_ctf(result, out, overwrite=False)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ctf_packets.PacketWriter, "_packet", full)

    with pytest.raises(OSError, match="No space left") as caught:
        write_ctf(result, out, overwrite=True)
    assert caught.value.filename == str(out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_where_1970_is_known_readers_show_the_date(result, tmp_path):
    bt2 = need_babeltrace()
    timeline = result.timeline
    first = int(timeline.host_ticks[0])
    wall = Wall((ClockPair(first, 1_700_000_000_123_456_789, 900, "test"),), timeline.rate, 0)

    (tmp_path / "out").mkdir()
    assert write_traces(timeline, tmp_path / "out", tmp_path / "out", None, wall) == []

    message = next(
        m for m in bt2.TraceCollectionMessageIterator(str(tmp_path / "out")) if type(m) is bt2._EventMessageConst
    )
    assert abs(message.default_clock_snapshot.ns_from_origin - 1_700_000_000_123_456_789) <= 2
    assert message.default_clock_snapshot.value == timeline.ts_ns[0]
    assert "since 1970 within 18" in message.default_clock_snapshot.clock_class.description


def test_ticks_of_unknown_length_are_said_to_be_ticks(result, tmp_path):
    timeline = Timeline(result.timeline.machines[:1], None)

    events = list(read_text(written(timeline, tmp_path / "out")))

    assert [e.stamp for e in events] == timeline.host_ticks.tolist()
    assert "ticks, each shown as 1 ns" in (tmp_path / "out" / "host" / "metadata").read_text()


def test_names_of_machines_are_names_of_folders():
    taken: set[str] = set()
    names = [ctf.folder_name(n, i, taken) for i, n in enumerate(["a/b", "..", "proof.json", "x" * 300, "é", "a/b"])]

    assert names == ["a%2Fb", "%2E.", "machine%2", "machine%3", "%C3%A9", "machine%5"]
