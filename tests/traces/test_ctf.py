"""CTF read through babeltrace2: our own, and traces in the shape of LTTng's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from counterpoint.clocks.counter import relative
from counterpoint.clocks.rate import Rate
from counterpoint.commands.main import main
from counterpoint.errors import BadFileError
from counterpoint.outputs.ctf import write_ctf, write_traces
from counterpoint.outputs.ctf_packets import PacketWriter
from counterpoint.outputs.text import TimelineText
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.sync import sync
from counterpoint.traces import babeltrace, ctf
from counterpoint.traces.lttng_names import kernel_event, kernel_field
from counterpoint.traces.recording import Recording
from outputs.ctf_reader import need_babeltrace
from writers.events import Event as Kind
from writers.events import FieldSpec
from writers.tracedat import Buffer, TraceFile

pytestmark = pytest.mark.peer

DATA = Path(__file__).parent.parent / "data" / "x86-agent"


def timeline_of(*recordings: Recording) -> Timeline:
    everything = [np.ones(len(r), np.bool_) for r in recordings]
    machines = [Machine(r.name, r, None, r.stamp, yes, yes) for r, yes in zip(recordings, everything, strict=True)]
    return Timeline(machines, Rate.ns())


def written(recording: Recording, folder: Path) -> Path:
    """A CTF trace of a recording, in its own time."""
    folder.mkdir()
    write_traces(timeline_of(recording), folder, folder)
    return folder / recording.name


LTTNG = [
    (r"kvm:kvm_(\w+)", r"kvm_x86_\1"),
    (r"timer:hrtimer_(\w+)", r"timer_hrtimer_\1"),
    (r"irq:softirq_(\w+)", r"irq_softirq_\1"),
    (r"(?:sched|irq|timer):(\w+)", r"\1"),
]
"""Names of events here, and LTTng's."""


def lttng_shaped(trace: Path, *, with_tid: bool) -> Path:
    """The metadata of a trace as LTTng would have written it."""
    text = (trace / "metadata").read_text()
    head, *events = re.split(r"(?=^event \{)", text, flags=re.MULTILINE)
    head = head.replace('tracer_name = "perf"', 'tracer_name = "lttng-modules"').replace("written_by", "was_written_by")
    head = head.replace("host_time", "monotonic").replace(" _stamp;", " _x;").replace(" _procname[", " _y[")
    head = head if with_tid else head.replace("s32 _tid;", "s32 _z;")
    for number, event in enumerate(events):
        for ours, theirs in LTTNG:
            event = re.sub(rf'name = "{ours}";', f'name = "{theirs}";', event)
        if '"sched_' in event:
            event = re.sub(r"(_|_prev_|_next_)pid;", r"\1tid;", event)
        events[number] = event
    (trace / "metadata").write_text("".join([head, *events]))
    return trace


def test_our_own_is_the_recording_that_it_was_made_of(tmp_path):
    need_babeltrace()
    files = [DATA / "host.dat", DATA / "guest.dat"]
    result = sync(*files, use_claims=False)
    write_ctf(result, tmp_path / "out", overwrite=False)

    again = sync(tmp_path / "out" / "host", tmp_path / "out" / "guest")

    for was, now in zip(
        (result.host, result.guests[0].recording), (again.host, again.guests[0].recording), strict=True
    ):
        assert (now.format, now.clock, now.cpus) == ("CTF", was.clock, was.cpus)
        assert now.stamp.tolist() == was.stamp.tolist()
        assert now.pid.tolist() == was.pid.tolist()
        every = np.arange(0, len(was), 83)
        shown = [TimelineText(timeline_of(one)).records(every, fields=True) for one in (was, now)]
        for before, after in zip(*shown, strict=True):
            assert [before[key] for key in ("event", "task", "fields")] == [
                after[key] for key in ("event", "task", "fields")
            ]
    for was, now in zip(result.guests[0].vcpus, again.guests[0].vcpus, strict=True):
        assert (was.host_tid, was.verdict) == (now.host_tid, now.verdict)
        assert [(e.feasible, e.inside, e.unknown) for e in was.epochs] == [
            (e.feasible, e.inside, e.unknown) for e in now.epochs
        ]


@pytest.mark.parametrize("with_tid", [True, False], ids=["tid", "switches"])
def test_a_world_in_the_shape_of_lttngs_is_proved(tmp_path, capsys, with_tid):
    need_babeltrace()
    world = World(WorldOptions(clock="mono", events=3000, lose=3, drift_ppm=0.0))
    truth = world.write(tmp_path / "world")
    recordings = [Recording.open(tmp_path / "world" / f) for f in ("host.dat", "guest.dat")]
    host, guest = (lttng_shaped(written(r, tmp_path / f"ctf-{r.name}"), with_tid=with_tid) for r in recordings)

    assert main(["verify", str(host), str(guest), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["host"]["clock"] == "mono"
    [said] = report["guests"]
    assert [v["host_tid"] for v in said["vcpus"]] == [v["host_tid"] for v in truth["guests"][0]["vcpus"]]
    assert {v["verdict"] for v in said["vcpus"]} == {"derived"}
    result = sync(host, guest)
    assert len(result.host) == len(recordings[0])
    assert result.host.losses.row.tolist() == recordings[0].losses.row.tolist() != []
    placed = result.timeline.machines[1]
    checked = 0
    for vcpu in result.guests[0].vcpus:
        [epoch] = vcpu.epochs
        events = world.events("guest", vcpu.guest_cpu)
        early, late = epoch.as_epoch().bound(placed.recording.stamp[epoch.placed])
        at = epoch.placed - placed.recording.streams[vcpu.guest_cpu].first
        true = events.host_stamp[at]
        assert (relative(true, 0) - relative(early, 0) >= -2).all()
        assert (relative(late, 0) - relative(true, 0) >= -2).all()
        checked += len(at)
    assert checked > 500
    if not with_tid:
        # before a CPU's first switch, and behind a loss, what no switch tells is not known
        known = result.host.pid >= 0
        assert (result.host.pid[known] == recordings[0].pid[known]).mean() == 1
        assert known.mean() > 0.5


MARK = Kind(300, "a", "mark", [FieldSpec("u32", "n")])
HEAD = 84
"""Bytes of a packet before its events."""

Packets = list[tuple[list[int], int, int]]
"""Of each packet the stamps of its events, its end, and how many were lost until then."""


def channels(folder: Path, *streams: Packets, cpu: int = 0) -> Path:
    """A trace of marks on one CPU, in a stream a channel, as LTTng has them."""
    file = TraceFile(events=[MARK])
    stamps = sorted({t for stream in streams for part, _, _ in stream for t in part})
    file.buffers = [Buffer(cpus={0: file.stream([(t, file.payload(MARK, 7, n=t)) for t in stamps])})]
    trace = written(Recording.open(file.write(folder / "m.dat")), folder / "ctf")
    data = (trace / "stream0_0").read_bytes()
    (trace / "stream0_0").unlink()
    size = (len(data) - HEAD) // len(stamps)
    records = {t: data[HEAD + size * n : HEAD + size * (n + 1)] for n, t in enumerate(stamps)}
    for number, stream in enumerate(streams):
        with (trace / f"channel{number}_0").open("wb") as out:
            writer = PacketWriter(out, UUID(bytes=data[4:20]), number, cpu, big_endian=False)
            for part, end, lost in stream:
                writer._lost = lost
                writer._packet(np.frombuffer(b"".join(records[t] for t in part), np.uint8), part[0], end)
    return trace


def losses(recording: Recording) -> dict[int, int]:
    """Before which stamps events were lost, and how many."""
    rows = recording.losses.row.tolist()
    return dict(zip([int(recording.stamp[r]) for r in rows], recording.losses.count.tolist(), strict=True))


def test_what_lttng_lost_may_be_anywhere_in_the_packet_that_counts_it(tmp_path):
    need_babeltrace()
    trace = channels(tmp_path, [([10, 20], 22, 0), ([30, 40, 50], 55, 7), ([60, 70], 70, 7)])

    recording = Recording.open(lttng_shaped(trace, with_tid=True))

    assert recording.stamp.tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert losses(recording) == {30: 7, 40: -1, 50: -1, 60: -1}


def test_a_packet_that_is_missing_leaves_a_mark(tmp_path):
    need_babeltrace()
    trace = channels(tmp_path, [([10], 12, 0), ([20], 25, 0), ([30, 40], 41, 0)])
    data = (trace / "channel0_0").read_bytes()
    size = int.from_bytes(data[4 + 16 + 4 + 8 + 8 + 8 + 8 :][:8], "little") // 8
    (trace / "channel0_0").write_bytes(data[:size] + data[2 * size :])

    recording = Recording.open(lttng_shaped(trace, with_tid=True))

    assert recording.stamp.tolist() == [10, 30, 40]
    assert losses(recording) == {30: -1}


def test_channels_of_a_cpu_are_one_stream(tmp_path):
    need_babeltrace()
    trace = channels(tmp_path, [([10, 40], 41, 0), ([70], 70, 2)], [([20, 50, 60], 80, 0)], cpu=3)

    recording = Recording.open(lttng_shaped(trace, with_tid=True))

    assert [(s.cpu, s.first, s.last) for s in recording.streams] == [(3, 0, 6)]
    assert recording.stamp.tolist() == [10, 20, 40, 50, 60, 70]
    # what the first channel lost may lie on either side of the second one's events
    assert losses(recording) == {50: -1, 60: -1, 70: 2}


def test_traces_of_perf_keep_their_names(tmp_path):
    need_babeltrace()
    trace = channels(tmp_path, [([10, 20], 22, 0)])
    text = (trace / "metadata").read_text().replace("written_by", "was_written_by").replace(" _tid;", " _perf_tid;")
    (trace / "metadata").write_text(text)

    recording = Recording.open(trace)

    [event] = recording.formats.values()
    assert (event.system, event.name, recording.pid.tolist()) == ("a", "mark", [7, 7])
    assert recording.clock == "host_time"


TSDL = """/* CTF 1.8 */
trace { major = 1; minor = 8; byte_order = le; packet.header := struct {
    integer { size = 32; } magic; integer { size = 32; } stream_id; }; };
env { domain = "kernel"; tracer_name = "lttng-modules"; hostname = "h"; };
clock { name = "monotonic"; freq = FREQ; offset_s = 1600000000; offset = 5000; };
stream { id = 0; event.header := struct { integer { size = 64; map = clock.monotonic.value; } timestamp; }; };
event { id = 0; name = "odd thing"; stream_id = 0; fields := struct {
    struct { integer { size = 8; signed = 1; } _a; struct { integer { size = 16; base = 16; } _b; } _in; } _s;
    enum : integer { size = 8; } { "X" = 0, "Y" = 1 } _tag;
    variant <_tag> { integer { size = 8; } X; string Y; } _v;
    floating_point { exp_dig = 8; mant_dig = 24; align = 8; } _f;
    integer { size = 3; } _small; integer { size = 37; signed = 1; align = 1; } _wide;
    integer { size = 16; signed = 1; align = 8; } _list[2];
    integer { size = 8; } __q_length; string _q[__q_length]; string _text; integer { size = 8; } _s_a; }; };
"""


def test_fields_of_every_kind_and_those_that_are_left_out(tmp_path):
    need_babeltrace()
    trace = tmp_path / "odd.trace"
    trace.mkdir()
    (trace / "metadata").write_text(TSDL.replace("FREQ", "1000000000"))
    body = bytes([0xFF, 0x34, 0x12, 1]) + b"yes\0" + bytes(4) + (5 | ((1 << 37) - 2) << 3).to_bytes(5, "little")
    body += bytes([0xFE, 0xFF, 7, 0, 1]) + b"q\0" + b"\xff\x1bt\0" + b"\x09"
    (trace / "s").write_bytes(0xC1FC1FC1.to_bytes(4, "little") + bytes(4) + (77).to_bytes(8, "little") + body)

    recording = Recording.open(trace)

    [event] = recording.formats.values()
    [record] = TimelineText(timeline_of(recording)).records(np.array([0]), fields=True)
    assert (event.system, event.name, recording.clock, recording.stamp.tolist()) == ("lttng", "odd_thing", "mono", [77])
    assert record["fields"] == {
        "s_a": -1, "s_in_b": 0x1234, "tag": 1, "small": 5, "wide": -2, "list": [-2, 7], "text": "\ufffd\x1bt",
        "s_a_": 9,
    }  # fmt: skip
    assert record["text"].startswith("s_a=-1 s_in_b=0x1234 tag=1 small=5 wide=-2")
    assert recording.options.date_offset_us == 1600000000000005
    assert [w for w in recording.warnings if "1 kinds of events have fields that are left out" in w]


@pytest.mark.parametrize(
    ("hz", "name", "clock", "stamp"), [(10**7, "monotonic", "monotonic", 7700), (3 * 10**9, "tsc", "x86-tsc", 77)]
)
def test_other_clocks(tmp_path, hz, name, clock, stamp):
    need_babeltrace()
    (tmp_path / "metadata").write_text(
        TSDL.split("event { id")[0].replace("FREQ", str(hz)).replace("monotonic", name)
        + 'event { id = 0; name = "e"; stream_id = 0; fields := struct { integer { size = 8; } _a; }; };'
    )
    (tmp_path / "s").write_bytes(0xC1FC1FC1.to_bytes(4, "little") + bytes(4) + (77).to_bytes(8, "little") + b"a")

    recording = Recording.open(tmp_path)

    assert (recording.clock, recording.stamp.tolist()) == (clock, [stamp])


def test_what_cannot_be_read_is_said(tmp_path, capsys, monkeypatch):
    need_babeltrace()
    trace = tmp_path / "bad"
    trace.mkdir()

    def said(metadata: str, stream: bytes = b"") -> str:
        (trace / "metadata").write_text(metadata)
        (trace / "s").write_bytes(stream)
        assert main(["info", str(trace)]) == 2
        return capsys.readouterr().err

    good = TSDL.replace("FREQ", "1000000000")
    assert "babeltrace2 cannot read it" in said("/* CTF 1.8 */ trace { nonsense")
    assert "babeltrace2 cannot read" in said(good, bytes(44))
    packet = 0xC1FC1FC1.to_bytes(4, "little") + bytes(4)
    assert "it is a trace of ust, not of a kernel" in said(good.replace('"kernel"', '"ust"'), packet)
    assert "its streams have no clock" in said(
        good.replace("map = clock.monotonic.value;", "").replace("timestamp;", "other;"), packet
    )
    assert "a capture folder has a capture.json" in said("something else")
    monkeypatch.setattr(ctf, "MIN_BYTES", 0)
    monkeypatch.setattr(ctf, "MAX_RATIO", 0)
    recording = Recording.open(DATA / "guest.dat")
    with pytest.raises(BadFileError, match="too much room"):
        Recording.open(written(recording, tmp_path / "out"))


def test_a_stream_that_is_damaged_is_read_as_far_as_it_goes(tmp_path):
    need_babeltrace()
    trace = channels(tmp_path, [([10, 20], 22, 0), ([30, 40], 41, 0)], [([15, 50], 50, 0)])
    data = bytearray((trace / "channel0_0").read_bytes())
    size = (len(data) - 2 * HEAD) // 4
    # an event that no metadata tells of
    data[2 * HEAD + 3 * size : 2 * HEAD + 3 * size + 2] = b"\xff\xff"
    (trace / "channel0_0").write_bytes(data)

    recording = Recording.open(lttng_shaped(trace, with_tid=True))

    assert recording.stamp.tolist()[:3] == [10, 15, 20]
    assert recording.stamp.tolist()[-1] == 50
    assert any("cannot read 1 data streams to their end" in text for text in recording.warnings)
    assert len(recording.losses.row)


def test_without_babeltrace2_it_is_said_what_to_install(tmp_path, capsys, monkeypatch):
    (tmp_path / "metadata").write_text(TSDL)
    monkeypatch.setitem(sys.modules, "bt2", None)
    monkeypatch.setattr(babeltrace, "DEBIAN", tmp_path / "none")

    assert main(["info", str(tmp_path)]) == 2

    assert "install python3-bt2" in capsys.readouterr().err


def test_names_of_lttng():
    assert kernel_event("kvm_x86_exit") == ("kvm", "kvm_exit")
    assert kernel_event("kvm_userspace_exit") == ("kvm", "kvm_userspace_exit")
    assert kernel_event("timer_hrtimer_start") == ("timer", "hrtimer_start")
    assert kernel_event("syscall_entry_read") == ("syscalls", "sys_enter_read")
    assert kernel_event("lttng_statedump_start") == ("lttng", "lttng_statedump_start")
    assert kernel_field("sched", "prev_tid") == ("prev_pid", 0)
    assert kernel_field("sched", "prio") == ("prio", 100)
    assert kernel_field("irq", "tid") == ("tid", 0)
