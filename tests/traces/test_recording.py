"""Recordings of every kind that trace-cmd writes, to columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from counterpoint.errors import BadFileError
from counterpoint.traces.options import GuestOption as Guest
from counterpoint.traces.options import TimeSample, Tsc2Nsec
from counterpoint.traces.recording import Recording
from writers.events import MARK, SCHED_SWITCH, Event, FieldSpec
from writers.ringbuffer import UNKNOWN, Data, Page
from writers.tracedat import BUFFER, CPUCOUNT, GUEST, Buffer, GuestOption, TimeShift, TraceFile

KINDS = [(6, "none"), (7, "none"), (7, "zlib"), (7, "zstd")]
ABI = [(big_endian, long_size) for big_endian in (False, True) for long_size in (4, 8)]


def open_file(file: TraceFile, tmp_path, name: str = "t.dat") -> Recording:
    return Recording.open(file.write(tmp_path / name))


def marks(file: TraceFile, count: int, *, first: int = 0, start: int = 10**12, step: int = 10, **options: Any):
    """Pages of one CPU: marks ``first`` and on, ``step`` apart."""
    rows = [(start + step * i, file.payload(MARK, 7, n=first + i)) for i in range(count)]
    return file.stream(rows, **options)


def numbers(recording: Recording) -> list[tuple[int, int, int]]:
    """(cpu, stamp, n) of all marks, in row order."""
    event = recording.format_named("marks", "mark")
    assert event is not None
    rows = recording.rows(event)
    cpus = [recording.streams[s].cpu for s in recording.stream_of[rows].tolist()]
    return list(zip(cpus, recording.stamp[rows].tolist(), recording.column(event, "n", rows).tolist(), strict=True))


class TestKindsOfFile:
    @pytest.mark.parametrize("abi", ABI)
    @pytest.mark.parametrize("kind", KINDS)
    def test_same_events_from_each(self, tmp_path, kind, abi):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=abi[0], long_size=abi[1], events=[MARK])
        file.buffers[0].cpus = {0: marks(file, 700), 2: marks(file, 50, first=1000, step=2**28)}
        file.cmdlines = {7: "worker", 8: "two words"}

        recording = open_file(file, tmp_path)

        assert (recording.version, recording.compression) == kind
        assert (recording.big_endian, recording.long_size) == abi
        expected = [(0, 10**12 + 10 * i, i) for i in range(700)]
        expected += [(2, 10**12 + 2**28 * i, 1000 + i) for i in range(50)]
        assert numbers(recording) == expected
        assert set(recording.pid.tolist()) == {7}
        assert [recording.comm(pid) for pid in (0, 7, 8, 9)] == ["<idle>", "worker", "two words", "<...>"]
        assert recording.warnings == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("size", [4096, 8192, 16384, 65536])
    def test_every_sub_buffer_size(self, tmp_path, kind, size):
        file = TraceFile(version=kind[0], compression=kind[1], page_size=size, events=[MARK])
        file.buffers[0].cpus = {0: marks(file, 9000)}

        recording = open_file(file, tmp_path)

        assert [n for _, _, n in numbers(recording)] == list(range(9000))
        assert len(recording.sub_buffer_first_row) == len(file.buffers[0].cpus[0])

    @pytest.mark.parametrize("size", [8192, 65536])
    def test_version_6_tells_large_sub_buffers_by_its_page_header(self, tmp_path, size):
        file = TraceFile(version=6, page_size=size, events=[MARK])
        file.buffers[0].cpus = {0: marks(file, 9000)}
        data = bytearray(file.to_bytes())
        data[14:18] = (4096).to_bytes(4, "little")  # the header names the machine's pages
        path = tmp_path / "t.dat"
        path.write_bytes(data)

        assert [n for _, _, n in numbers(Recording.open(path))] == list(range(9000))

    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_sizes_without_the_count_of_chunks(self, tmp_path, compression):
        file = TraceFile(compression=compression, short_sizes=True, events=[MARK])
        file.buffers[0].cpus = {cpu: marks(file, 5000, first=5000 * cpu) for cpu in range(3)}

        assert [n for _, _, n in numbers(open_file(file, tmp_path))] == list(range(15000))

    @pytest.mark.parametrize("kind", KINDS)
    def test_several_buffers(self, tmp_path, kind):
        file = TraceFile(version=kind[0], compression=kind[1], events=[MARK], cpu_count=2)
        top = Buffer("", None, {0: marks(file, 3)})
        one = Buffer("one", "mono", {0: marks(file, 2, first=10), 1: marks(file, 1, first=20)})
        file.buffers = [top, one, Buffer("two", "x86-tsc", {1: marks(file, 1, first=30)})]

        recording = open_file(file, tmp_path)

        assert [b.name for b in recording.buffers] == ["", "one", "two"]
        assert [n for _, _, n in numbers(recording)] == [0, 1, 2, 10, 11, 20, 30]
        filled = [(s.buffer, s.cpu, s.last - s.first) for s in recording.streams if s.last > s.first]
        assert filled == [("", 0, 3), ("one", 0, 2), ("one", 1, 1), ("two", 1, 1)]
        assert recording.warnings == []

    def test_buffers_of_several_sub_buffer_sizes(self, tmp_path):
        file = TraceFile(events=[MARK])
        large = Buffer("large", None, {0: marks(file, 5000, first=100, size=16384)}, page_size=16384)
        file.buffers = [Buffer("", None, {0: marks(file, 100)}), large]

        assert [n for _, _, n in numbers(open_file(file, tmp_path))] == list(range(5100))

    @pytest.mark.parametrize("kind", KINDS)
    def test_cpus_without_data(self, tmp_path, kind):
        file = TraceFile(version=kind[0], compression=kind[1], events=[MARK], cpu_count=8)
        file.buffers[0].cpus = {3: marks(file, 4), 5: []}

        recording = open_file(file, tmp_path)

        assert recording.cpus == 8
        assert numbers(recording) == [(3, 10**12 + 10 * i, i) for i in range(4)]
        assert recording.warnings == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_events_at_all(self, tmp_path, kind):
        recording = open_file(TraceFile(version=kind[0], compression=kind[1], events=[MARK]), tmp_path)

        assert len(recording) == 0
        assert recording.counts_by_id() == {}
        assert recording.warnings == []

    def test_events_without_a_format(self, tmp_path):
        file = TraceFile(events=[SCHED_SWITCH])
        file.buffers[0].cpus = {0: marks(file, 2)}

        recording = open_file(file, tmp_path)

        assert recording.counts_by_id() == {MARK.id: 2}
        assert recording.event_name(MARK.id) == f"[UNKNOWN EVENT {MARK.id}]"

    @pytest.mark.parametrize("kind", KINDS)
    def test_losses(self, tmp_path, kind):
        file = TraceFile(version=kind[0], compression=kind[1], events=[MARK])
        file.buffers[0].cpus = {0: marks(file, 9, missed={4: 17}), 1: marks(file, 9, missed={2: UNKNOWN, 5: 3})}

        losses = open_file(file, tmp_path).losses

        assert losses.stream.tolist() == [0, 1, 1]
        assert losses.row.tolist() == [4, 11, 14]
        assert losses.count.tolist() == [17, -1, 3]
        assert losses.total == 20

    def test_names_symbols_and_strings(self, tmp_path):
        file = TraceFile(events=[MARK], compression="zstd", kallsyms="ff00 T start\n", printk='0xff01 : "text"\n')

        recording = open_file(file, tmp_path)

        assert recording.kallsyms() == b"ff00 T start\n"
        assert recording.printk_formats() == b'0xff01 : "text"\n'

    def test_command_names_of_any_kind(self, tmp_path):
        file = TraceFile(events=[MARK], cmdlines={1: "", 2: " lead", 3: "a\0b", 2**31 - 1: "x" * 300})

        cmdlines = open_file(file, tmp_path).cmdlines

        assert cmdlines == {1: "", 2: " lead", 3: "a", 2**31 - 1: "x" * 300}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("big_endian", [False, True])
class TestOptions:
    def test_clock_and_identity(self, tmp_path, kind, big_endian):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian, clock="mono_raw")
        file = replace(file, trace_id=2**64 - 3, cpu_count=5, uname="Linux vm 6.1", version_text="3.2")

        recording = open_file(file, tmp_path)

        options = recording.options
        assert (recording.clock, recording.unit) == ("mono_raw", "ns")
        assert (options.trace_id, recording.cpus) == (2**64 - 3, 5)
        assert (options.uname, options.recorder) == ("Linux vm 6.1", "3.2")

    def test_corrections_of_stamps(self, tmp_path, kind, big_endian):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian, clock="tsc2nsec")
        file = replace(file, date=0x5D4C, ts_offset=-12345, tsc2nsec=(1 << 31, 31, 0))

        recording = open_file(file, tmp_path)

        options = recording.options
        assert (options.date_offset_us, options.ts_offset) == (0x5D4C, -12345)
        assert options.tsc2nsec == Tsc2Nsec(1 << 31, 31, 0)
        assert (recording.clock, recording.unit) == ("x86-tsc", "ticks")

    @pytest.mark.parametrize("with_frac", [False, True])
    def test_time_shift(self, tmp_path, kind, big_endian, with_frac):
        samples = [[(10, -(2**63), 3, 5), (20, 2**63 - 1, 2**63, 40)], [], [(7, -1, 1, 0)]]
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian)
        file.time_shift = TimeShift(0xFEED, 1, samples, with_frac)

        shift = open_file(file, tmp_path).options.time_shift

        assert shift is not None
        assert (shift.peer_trace_id, shift.flags, shift.has_frac) == (0xFEED, 1, with_frac)
        expected = [[(t, o, s, f if with_frac else 0) for t, o, s, f in cpu] for cpu in samples]
        assert [[(s.time, s.offset, s.scaling, s.frac) for s in cpu] for cpu in shift.cpus] == expected

    def test_guests(self, tmp_path, kind, big_endian):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian)
        file.guests = [GuestOption("vm one", 0xA, [(0, 100), (1, -1)]), GuestOption("two", 2**64 - 1, [])]

        options = open_file(file, tmp_path).options

        assert options.guests == [Guest("vm one", 0xA, ((0, 100), (1, -1))), Guest("two", 2**64 - 1, ())]

    def test_options_appended_after_the_recording(self, tmp_path, kind, big_endian):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian, events=[MARK])
        file.buffers[0].cpus = {0: marks(file, 5)}
        file.appended_options = [(11, (77).to_bytes(8, "big" if big_endian else "little")), (999, b"unknown")]

        recording = open_file(file, tmp_path)

        assert recording.options.trace_id == 77
        assert recording.option_names.count("TRACEID") == 1
        assert "999" in recording.option_names
        assert len(recording) == 5
        assert recording.warnings == []

    def test_buffer_of_an_instance(self, tmp_path, kind, big_endian):
        file = TraceFile(version=kind[0], compression=kind[1], big_endian=big_endian, clock="global")
        file.buffers.append(Buffer("inst", "mono"))

        recording = open_file(file, tmp_path)

        assert [b.name for b in recording.buffers] == ["", "inst"]
        assert recording.option_names.count("BUFFER") == (2 if kind[0] == 7 else 1)


class TestOddOptions:
    def test_samples_are_sorted_and_equal_times_dropped(self, tmp_path):
        file = TraceFile(time_shift=TimeShift(1, 0, [[(30, 3, 1, 0), (10, 1, 1, 0), (30, 4, 1, 0)]]))

        shift = open_file(file, tmp_path).options.time_shift

        assert shift is not None
        assert shift.cpus == ((TimeSample(10, 1, 1, 0), TimeSample(30, 3, 1, 0)),)

    @pytest.mark.parametrize(
        ("text", "clock"), [("local [mono]\n", "mono"), ("mono_raw\n", "mono_raw"), ("", "local"), ("[]", "[]")]
    )
    def test_selected_clock(self, tmp_path, text, clock):
        file = TraceFile(omit=frozenset({4}), extra_options=[(4, text.encode() + b"\0")])

        assert open_file(file, tmp_path).options.clock == clock

    def test_without_a_clock_the_buffer_tells(self, tmp_path):
        file = TraceFile(omit=frozenset({4}), clock="mono")

        assert open_file(file, tmp_path).clock == "mono"

    @pytest.mark.parametrize(
        "option",
        [
            (1, b"no number\0"),
            (1, b"9" * 5000),
            (7, b""),
            (11, b"abc"),
            (12, b"\0" * 12),
            (12, b"\0" * 12 + b"\xff" * 4),
            (12, b"\0" * 12 + b"\1\0\0\0" + b"\xff" * 4 + bytes(24)),
            (GUEST, b"name without an end"),
            (GUEST, b"vm\0" + bytes(8) + b"\xff" * 4),
            (14, bytes(16)),
            (14, b"\1\0\0\0\x40\0\0\0" + bytes(8)),
            (CPUCOUNT, b"\xff" * 4),
            (BUFFER, b"abc"),
            (BUFFER, b"\xff" * 8 + b"name\0clock\0" + bytes(8)),
        ],
    )
    def test_one_that_cannot_be_read_is_said_and_left_out(self, tmp_path, option):
        file = TraceFile(events=[MARK], extra_options=[option])
        file.buffers[0].cpus = {0: marks(file, 5)}

        recording = open_file(file, tmp_path)

        assert len(recording) == 5
        assert len(recording.warnings) == 1
        assert recording.warnings[0].startswith(f"{recording.path}, byte ")
        assert recording.options.cpu_count in (None, 1)


KINDS_OF_FIELD = Event(
    2002,
    "marks",
    "kinds",
    [
        FieldSpec("u8", "u8"),
        FieldSpec("s8", "s8"),
        FieldSpec("unsigned short", "u16"),
        FieldSpec("s16", "s16"),
        FieldSpec("unsigned int", "u32"),
        FieldSpec("int", "s32"),
        FieldSpec("u64", "u64"),
        FieldSpec("s64", "s64"),
        FieldSpec("unsigned long", "ul"),
        FieldSpec("long", "sl"),
        FieldSpec("void *", "ptr"),
        FieldSpec("char", "comm", 16),
        FieldSpec("u16", "words", 3),
        FieldSpec("s64", "deltas", 2),
        FieldSpec("unsigned long", "args", 6),
        FieldSpec("char", "name", dynamic="data_loc"),
        FieldSpec("char", "other", dynamic="rel_loc"),
        FieldSpec("s32", "list", dynamic="data_loc"),
        FieldSpec("u8", "blob", dynamic="rel_loc"),
        FieldSpec("unsigned long", "mask", dynamic="data_loc"),
        FieldSpec("char", "tail", 0),
    ],
)
VALUES: dict[str, Any] = {
    "u8": [0, 255],
    "s8": [-128, 127],
    "u16": [65535, 1],
    "s16": [-(2**15), 2**15 - 1],
    "u32": [2**32 - 1, 5],
    "s32": [-(2**31), 2**31 - 1],
    "u64": [2**64 - 1, 2**63],
    "s64": [-(2**63), 2**63 - 1],
    "comm": ["sixteen chars ok", "é"],
    "words": [[1, 2, 65535], [0, 0, 9]],
    "deltas": [[-1, 2**63 - 1], [-(2**63), 0]],
    "name": ["", "a name"],
    "other": ["x" * 300, "other"],
    "list": [[], [-1, 2**31 - 1, 7]],
    "blob": [[], [0, 255, 10]],
    "mask": [[3], [1, 2]],
}


@pytest.mark.parametrize("abi", ABI)
class TestColumns:
    @pytest.fixture
    def batch(self, tmp_path, abi):
        top = 2 ** (8 * abi[1])
        values = VALUES | {"ul": [top - 1, 0], "sl": [-top // 2, top // 2 - 1], "ptr": [top - 2, 1]}
        values |= {"args": [[top - 1, 0, 1, 2, 3, 4], [0] * 6]}
        file = TraceFile(big_endian=abi[0], long_size=abi[1], events=[KINDS_OF_FIELD])
        rows = [{name: column[i] for name, column in values.items()} for i in range(2)]
        records = [(i, file.payload(KINDS_OF_FIELD, -3, **row)) for i, row in enumerate(rows)]
        file.buffers[0].cpus = {0: file.stream(records)}
        recording = open_file(file, tmp_path)
        event = recording.format_named("marks", "kinds")
        assert event is not None
        return recording, event, values

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            pair.split()
            for pair in (
                "u8 u1",
                "s8 i1",
                "u16 u2",
                "s16 i2",
                "u32 u4",
                "s32 i4",
                "u64 u8",
                "s64 i8",
                "ul ul",
                "sl il",
                "ptr ul",
            )
        ],
    )
    def test_integers(self, batch, abi, name, dtype):
        recording, event, values = batch

        column = recording.column(event, name, recording.rows(event))

        assert column.tolist() == values[name]
        assert column.dtype == np.dtype(dtype.replace("l", str(abi[1])))
        assert recording.batch(event, recording.rows(event)).ints(name) == values[name]

    def test_common_fields(self, batch):
        recording, event, _ = batch

        assert recording.pid.tolist() == [-3, -3]
        assert recording.column(event, "common_pid", recording.rows(event)).tolist() == [-3, -3]
        assert recording.event_id.tolist() == [event.id] * 2

    @pytest.mark.parametrize("name", ["comm", "name", "other"])
    def test_strings(self, batch, name):
        recording, event, values = batch

        assert recording.batch(event, recording.rows(event)).text(name) == values[name]

    @pytest.mark.parametrize("name", ["words", "deltas", "args", "list", "blob", "mask"])
    def test_arrays(self, batch, name):
        recording, event, values = batch

        assert recording.batch(event, recording.rows(event)).array(name) == values[name]

    @pytest.mark.parametrize("name", ["comm", "name", "words", "nothing"])
    def test_no_integer_column_of_other_fields(self, batch, name):
        recording, event, _ = batch

        with pytest.raises(KeyError):
            recording.column(event, name, recording.rows(event))

    def test_open_end(self, tmp_path, abi):
        event = Event(2003, "marks", "open", [FieldSpec("int", "n"), FieldSpec("char", "buf", 0)])
        file = TraceFile(big_endian=abi[0], long_size=abi[1], events=[event])
        texts = ["", "text", "x" * 1000]
        file.buffers[0].cpus = {0: file.stream([(i, file.payload(event, 1, buf=t)) for i, t in enumerate(texts)])}

        recording = open_file(file, tmp_path)

        found = recording.format_named("marks", "open")
        assert found is not None
        assert recording.batch(found, recording.rows(found)).text("buf") == texts

    @pytest.mark.parametrize("length", [8, 12, 20])
    def test_records_too_short_for_their_fields_give_nothing_of_their_neighbours(self, tmp_path, abi, length):
        file = TraceFile(big_endian=abi[0], long_size=abi[1], events=[KINDS_OF_FIELD])
        ones = dict.fromkeys(("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "ul"), 1)
        body = file.payload(KINDS_OF_FIELD, 5, name="abc", list=[1, 2], **ones)
        page = Page(1, [Data(0, body[:length]), Data(0, b"\xff" * 64)]).to_bytes(*abi)
        file.buffers[0].cpus = {0: [page]}

        recording = open_file(file, tmp_path)

        event = recording.format_named("marks", "kinds")
        assert event is not None
        batch = recording.batch(event, recording.rows(event))
        assert recording.column(event, "s64", recording.rows(event)).tolist() == [0]
        assert (batch.text("name"), batch.array("list"), batch.text("comm")) == ([""], [[]], [""])

    def test_locators_that_point_out_of_the_record(self, tmp_path, abi):
        event = Event(2004, "marks", "loc", [FieldSpec("char", "s", dynamic="data_loc"), FieldSpec("u32", "a", 2)])
        file = TraceFile(big_endian=abi[0], long_size=abi[1], events=[event])
        body = bytearray(file.payload(event, 5))
        order = "big" if abi[0] else "little"
        records = []
        for locator in (0xFFFF << 16 | 8, 4 << 16 | 0xFFFF, 0xFFFF << 16 | 0xFFFF, 0):
            body[8:12] = locator.to_bytes(4, order)
            records.append((0, bytes(body)))
        file.buffers[0].cpus = {0: file.stream(records)}

        recording = open_file(file, tmp_path)

        found = recording.format_named("marks", "loc")
        assert found is not None
        raw = recording.batch(found, recording.rows(found)).raw("s")
        assert [len(part) for part in raw] == [len(body) + -len(body) % 4 - 8, 0, 0, 0]


class TestWhatIsNotARecording:
    def test_says_file_and_byte(self, tmp_path):
        path = tmp_path / "t.dat"
        path.write_bytes(b"\x17\x08\x44tracing5\0" + bytes(100))

        with pytest.raises(BadFileError, match=r"t\.dat, byte 10: trace\.dat version '5' is not known"):
            Recording.open(path)


def test_losses_that_no_page_marks_are_said(tmp_path):
    stats = ["CPU: 0\nentries: 7\noverrun: 3\ncommit overrun: 0\ndropped events: 0\n",
             "CPU: 1\nentries: 7\noverrun: 0\ncommit overrun: 2\ndropped events: 40\n"]  # fmt: skip
    TraceFile(cpustat=stats).write(tmp_path / "t.dat")

    warnings = Recording.open(tmp_path / "t.dat").warnings

    assert [w for w in warnings if "without a mark" in w] == [
        f"{tmp_path}/t.dat: CPU 1 dropped 42 events without a mark (its buffer was full): what seems a gap may hide"
        " that a guest ran"
    ]
