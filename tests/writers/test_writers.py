"""The writers against trace-cmd: what they write, it opens and shows."""

from __future__ import annotations

import re
import subprocess
import zlib
from itertools import pairwise
from pathlib import Path

import pytest

from helpers import need_tool
from writers.events import HRTIMER_EXPIRE_ENTRY, MARK, SCHED_SWITCH, SCHED_WAKING, Event, FieldSpec
from writers.ringbuffer import UNKNOWN, AbsoluteTime, Data, Discarded, Padding, Page, TimeExtend
from writers.tracedat import Buffer, GuestOption, TimeShift, TraceFile
from writers.worlds import OffsetChange, tiny_pair

ALL = Event(
    2002,
    "marks",
    "all_kinds",
    [
        FieldSpec("u8", "a"),
        FieldSpec("s16", "b"),
        FieldSpec("unsigned long", "c"),
        FieldSpec("s64", "d"),
        FieldSpec("u16", "e", 3),
        FieldSpec("char", "f", dynamic="data_loc"),
        FieldSpec("char", "g", dynamic="rel_loc"),
        FieldSpec("u32", "h", dynamic="data_loc"),
    ],
    '"a=%u b=%d c=%lu d=%lld f=%s g=%s h=%s", REC->a, REC->b, REC->c, REC->d, __get_str(f), '
    "__get_rel_str(g), __print_array(__get_dynamic_array(h), __get_dynamic_array_len(h) / 4, 4)",
)


def trace_cmd(*args: str | Path) -> str:
    done = subprocess.run(
        [need_tool("trace-cmd"), *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def report(path: Path, *args: str) -> str:
    return trace_cmd("report", "-t", "-N", *args, "-i", path)


def marks(text: str) -> list[tuple[int, int]]:
    """Return (timestamp, n) of the mark events a report shows."""
    found = re.findall(r"\]\s*([\d.]+): mark: +n=(\d+)", text)
    return [(int(ts.replace(".", "")), int(n)) for ts, n in found]


def simple(**kwargs) -> tuple[TraceFile, list[tuple[int, int]]]:
    """Return a file with marks on two CPUs, with gaps of every kind, and what its report must show."""
    file = TraceFile(events=[MARK, ALL, SCHED_SWITCH, SCHED_WAKING, HRTIMER_EXPIRE_ENTRY], **kwargs)
    gaps = [0, 1, 77, 2**27 - 1, 2**27, 2**40, 3] * 300
    stamps = [10**13 + sum(gaps[: i + 1]) for i in range(len(gaps))]
    rows = [[(ts + cpu, file.payload(MARK, 7, n=i)) for i, ts in enumerate(stamps)] for cpu in (0, 2)]
    file.buffers[0].cpus = {cpu: file.stream(row) for cpu, row in zip((0, 2), rows, strict=True)}
    file.cmdlines = {7: "worker"}
    return file, sorted((ts + cpu, i) for i, ts in enumerate(stamps) for cpu in (0, 2))


@pytest.mark.peer
@pytest.mark.parametrize("long_size", [8, 4])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("kind", ["6", "7 none", "7 zstd", "7 zstd short", "7 zlib"])
def test_trace_cmd_reads_every_kind_of_file(tmp_path, kind, big_endian, long_size):
    version, compression, short = [*kind.split(), "none", ""][:3]
    file, expected = simple(version=int(version), compression=compression, big_endian=big_endian, long_size=long_size)
    file.short_sizes = short == "short"
    path = file.write(tmp_path / "t.dat")
    if compression != "none" and compression not in trace_cmd("list", "-c"):
        with pytest.raises(AssertionError):  # built without this compression
            report(path)
        return
    text = report(path)
    assert sorted(marks(text)) == expected
    assert "worker-7" in text
    summary = trace_cmd("dump", "--summary", "-i", path)
    assert f"{long_size}\t[Bytes in a long]" in summary
    assert ("Big endian" in summary) == big_endian


@pytest.mark.peer
@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("page_size", [4096, 8192, 65536])
def test_trace_cmd_reads_every_page_size(tmp_path, version, page_size):
    file, expected = simple(version=version, page_size=page_size)
    assert sorted(marks(report(file.write(tmp_path / "t.dat")))) == expected


@pytest.mark.peer
@pytest.mark.parametrize("long_size", [8, 4])
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_kind_of_field(tmp_path, big_endian, long_size):
    file = TraceFile(events=[ALL, SCHED_WAKING], big_endian=big_endian, long_size=long_size)
    values = {"a": 255, "b": -2, "c": 2**32 - 1, "d": -(2**63), "e": [1, 2], "f": "x y", "g": "né", "h": [5]}
    records = [file.payload(ALL, 1, **values), file.payload(SCHED_WAKING, 1, comm="w", pid=9, target_cpu=2)]
    file.buffers[0].cpus[0] = file.stream(list(enumerate(records)))
    path = file.write(tmp_path / "t.dat")
    text = report(path)
    # libtraceevent 1.7 shows a negative s16 without its sign, and swaps no arrays
    number = "5" if not big_endian else r"\d+"
    assert re.search(rf"a=255 b=(-2|65534) c={2**32 - 1} d={-(2**63)} f=x y g=né h={number}\n", text)
    assert re.search(r"comm=w pid=9 prio=0 target_cpu=0*2", text)
    array = "00, 01, 00, 02, 00, 00" if big_endian else "01, 00, 02, 00, 00, 00"
    assert f"e=ARRAY[{array}]" in report(path, "-R")


@pytest.mark.peer
def test_every_kind_of_record(tmp_path):
    file = TraceFile(events=[MARK])
    body = [file.payload(MARK, 1, n=n) for n in range(6)]
    page = Page(
        2**59 + 10**12,
        [
            Data(0, body[0]),
            Data(5, body[1], long_form=True),
            Discarded(7, body[5]),
            Padding(16, delta=1),
            TimeExtend(2**30),
            Data(0, body[2]),
            AbsoluteTime(2**59 + 2 * 10**12),
            Data(0, body[3].ljust(200, b"\0")),
        ],
    )
    counted = Page(3 * 2**59, [Data(0, body[4])], missed=3)
    uncounted = Page(4 * 2**59, [Data(0, body[5])], missed=UNKNOWN)
    file.buffers[0].cpus[0] = [p.to_bytes() for p in (page, counted, uncounted)]
    text = report(file.write(tmp_path / "t.dat"))
    base = 2**59 + 10**12
    stamps = [base, base + 5, base + 5 + 7 + 1 + 2**30, 2**59 + 2 * 10**12, 3 * 2**59, 4 * 2**59]
    assert marks(text) == [(ts, n) for n, ts in enumerate(stamps)]
    assert "CPU:0 [3 EVENTS DROPPED]" in text
    assert "CPU:0 [EVENTS DROPPED]" in text


@pytest.mark.peer
def test_streams_with_lost_events_absolute_stamps_and_steps_back(tmp_path):
    file = TraceFile(events=[MARK], clock="mono_raw")
    events = [(10**9 + 10 * i, file.payload(MARK, 1, n=i)) for i in range(50)]
    events += [(10**9 - 1000 + 10 * i, file.payload(MARK, 1, n=50 + i)) for i in range(10)]
    pages = file.stream(events, missed={20: 5}, absolute=lambda i: i % 7 == 0)
    assert len(pages) == 2
    file.buffers[0].cpus[1] = pages
    text = report(file.write(tmp_path / "t.dat"))
    assert marks(text) == [(ts, i) for i, (ts, _) in enumerate(events)]
    assert "CPU:1 [5 EVENTS DROPPED]" in text
    file.buffers[0].cpus[1] = file.stream(events, backwards="late")
    late = marks(report(file.write(tmp_path / "late.dat")))
    assert late[50:] == [(10**9 + 490 + 10 * i, 50 + i) for i in range(10)]


@pytest.mark.peer
@pytest.mark.parametrize("version", [6, 7])
def test_options_and_instances(tmp_path, version):
    file, expected = simple(version=version, trace_id=0xABC, date=0x10, ts_offset=5, clock="tsc2nsec")
    file.cpustat = ["CPU: 0\nentries: 1"]
    file.guests = [GuestOption("vm", 0xDEF, [(0, 100), (1, 101)])]
    file.tsc2nsec = (1 << 20, 20, 0)
    shift = TimeShift(0x123, 0, [[(0, -1000, 1, 0), (2**62, -1000, 1, 0)]] * 3)
    file.time_shift = shift
    file.appended_options = [(11, (0xABD).to_bytes(8, "little"))]
    file.buffers.append(Buffer("inst", "mono", {1: file.stream([(10, file.payload(MARK, 3, n=9999))])}))
    path = file.write(tmp_path / "t.dat")
    dump = trace_cmd("dump", "--options", "-i", path)
    for word in ("0x123 [peer's trace id]", "0xABC", "0xABD", "0xDEF", "vm [Guest name]", "101", "TSC2NSEC"):
        assert word in dump, dump
    text = report(path)
    shown = marks(text)
    moved = 16_000 + 5 - 1000
    assert sorted(m for m in shown if m[1] != 9999) == [(ts + moved, n) for ts, n in expected]
    assert [n for _, n in shown].count(9999) == 1
    file.time_shift = TimeShift(0x123, 0, shift.per_cpu, with_frac=False)
    assert len(file.to_bytes()) <= path.stat().st_size


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_sections_cover_the_file(version, compression):
    file, _ = simple(version=version, compression=compression if version == 7 else "none")
    data, sections = file.to_bytes(), file.sections()
    assert sections[0][1] == 0
    assert sections[-1][2] == len(data)
    assert all(a[2] == b[1] and a[1] < a[2] for a, b in pairwise(sections))
    for name, start, end in sections:
        if " cpu " in name:
            assert start % file.page_size == 0
            if compression == "zlib" and version == 7:
                size = int.from_bytes(data[start + 8 : start + 12], "little")
                first = zlib.decompress(data[start + 12 : end])
                assert len(first) == size
                assert first.startswith(file.buffers[0].cpus[int(name[-1])][0])


@pytest.mark.peer
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_tiny_pair_is_what_its_truth_says(tmp_path, arch):
    change = OffsetChange(5_000_000, vcpu=None if arch == "arm64" else 1)
    world = {"seed": 3, "arch": arch, "host_cpus": 3, "vcpus": 2, "guest_events": 60, "change": change}
    world |= {"lost": 9, "double_exits": 0.1}
    host, guest, truth = tiny_pair(**world)
    text = report(host.write(tmp_path / "host.dat"))
    assert len(re.findall(r"EVENTS DROPPED", text)) == 1
    assert text.count("kvm_write_tsc_offset") == (arch == "x86")
    assert len(re.findall(r"kvm_exit:", text)) > len(re.findall(r"kvm_entry:", text)) - 9
    shown = report(guest.write(tmp_path / "guest.dat"), "--raw-ts")
    for vcpu, events in truth.guest_events.items():
        assert len(events) == 60
        for event in events:
            assert any(e.cpu == event.cpu and e.entry < event.host < e.exit for e in truth.windows[vcpu])
            assert event.guest == event.host + truth.offset(vcpu, event.host)
            assert f"{event.guest}:" in shown.replace(".", "")
        assert len({truth.offset(vcpu, e.host) for e in events}) == (2 if change.vcpu in (None, vcpu) else 1)
    assert tiny_pair(**world)[0].to_bytes() == host.to_bytes()
