"""Whole files: a recording written again is the same recording, to us and to trace-cmd."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from counterpoint.traces.dat import format_texts
from counterpoint.traces.options import GuestOption, TimeSample, TimeShift
from counterpoint.traces.recording import Recording
from counterpoint.traces.write import CpuPages, TraceFile
from counterpoint.traces.write_options import (
    guest_option,
    text_option,
    time_shift_option,
    trace_id_option,
    tsc2nsec_option,
)
from counterpoint.traces.write_pages import gathered, pack_pages
from helpers import need_tool
from writers.worlds import tiny_pair

DATA = Path(__file__).parent.parent / "data"
KINDS = [(6, "none"), (7, "none"), (7, "zlib"), (7, "zstd")]


def rewrite(recording: Recording, path: Path, **how) -> Path:
    """Write ``recording`` again, as ``how`` says."""
    abi = {"big_endian": recording.big_endian, "long_size": recording.long_size}
    formats = [(system, text.decode()) for system, text in format_texts(recording.container)]
    known = {option.id: option.data for option in recording.container.options}
    options = [(i, known[i]) for i in (5, 11, 12, 13, 14) if i in known]
    out = TraceFile(
        recording.clock, recording.cpus, formats, recording.cmdlines, options,
        kallsyms=recording.kallsyms(), printk=recording.printk_formats(), **abi, **how,
    )  # fmt: skip

    def cpus():
        for index, stream in enumerate(recording.streams):
            rows = slice(stream.first, stream.last)
            lost = np.flatnonzero(recording.losses.stream == index)
            pages = pack_pages(
                recording.stamp[rows],
                gathered(recording._data, recording._offset[rows], recording._length[rows]),
                lost_row=(recording.losses.row[lost] - stream.first).tolist(),
                lost_count=recording.losses.count[lost].tolist(),
                **abi,
            )
            yield CpuPages(stream.cpu, pages.data)

    with path.open("wb") as file:
        out.write(file, cpus())
    return path


def check_same(one: Recording, other: Recording) -> None:
    assert np.array_equal(one.stamp, other.stamp)
    assert np.array_equal(one.event_id, other.event_id)
    assert np.array_equal(one.pid, other.pid)
    assert one.streams == other.streams
    assert one.losses.row.tolist() == other.losses.row.tolist()
    assert one.losses.count.tolist() == other.losses.count.tolist()
    assert all(one.payload(row) == other.payload(row) for row in range(0, len(one), 97))
    assert one.cmdlines == other.cmdlines
    assert (one.clock, one.cpus, one.long_size) == (other.clock, other.cpus, other.long_size)
    assert one.kallsyms() == other.kallsyms()
    assert one.printk_formats() == other.printk_formats()
    assert one.options.guests == other.options.guests
    assert one.options.time_shift == other.options.time_shift
    assert one.options.trace_id == other.options.trace_id
    assert [f.name for f in one.formats.values()] == [f.name for f in other.formats.values()]
    assert other.warnings == []


@pytest.mark.parametrize(("version", "compression"), KINDS)
@pytest.mark.parametrize("name", ["x86-agent/host", "x86-agent/guest", "arm64-monoraw/guest"])
def test_a_real_recording_written_again(tmp_path, name, version, compression):
    first = Recording.open(DATA / f"{name}.dat")

    again = rewrite(first, tmp_path / "again.dat", version=version, compression=compression)

    check_same(first, Recording.open(again))


@pytest.mark.parametrize(("version", "compression"), KINDS)
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("long_size", [4, 8])
def test_a_written_recording_written_again(tmp_path, version, compression, big_endian, long_size):
    host = tiny_pair(lost=5, version=version, big_endian=big_endian, long_size=long_size)[0].write(tmp_path / "h.dat")
    first = Recording.open(host)

    again = rewrite(first, tmp_path / "again.dat", version=version, compression=compression)

    check_same(first, Recording.open(again))
    assert first.losses.total


@pytest.mark.peer
@pytest.mark.parametrize(("version", "compression"), [(6, "none"), (7, "none"), (7, "zstd")])  # Debian's has no zlib
def test_trace_cmd_reports_the_same(tmp_path, version, compression):
    def report(path: Path) -> list[str]:
        command = [need_tool("trace-cmd"), "report", "-t", "--raw-ts", "-i", str(path)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    source = DATA / "x86-agent" / "host.dat"
    again = rewrite(Recording.open(source), tmp_path / "again.dat", version=version, compression=compression)

    lines = report(again)
    assert len(lines) > 1000
    assert lines == report(source)


def test_options_are_read_back(tmp_path):
    guest = GuestOption("vm1", 0xB0, ((0, 100), (1, -1)))
    samples = (TimeSample(5, -(10**12), 1 << 47, 48), TimeSample(9, 10**12, 1, 0)), (TimeSample(7, 3, 1, 0),)
    shifts = [TimeShift(0xA0, 1, samples, True), TimeShift(0xA0, 0, ((TimeSample(1, 2, 3, 0),),), False)]
    for shift in shifts:
        options = [
            text_option(5, "Linux here 6.1 x86_64"),
            trace_id_option(0xF0F0),
            guest_option(guest),
            tsc2nsec_option(12345, 24),
            time_shift_option(shift),
        ]
        path = tmp_path / "t.dat"
        with path.open("wb") as file:
            TraceFile("x86-tsc", 2, [], options=options).write(file, [])

        found = Recording.open(path).options

        assert found.guests == [guest]
        assert found.time_shift == shift
        assert (found.uname, found.trace_id, found.clock) == ("Linux here 6.1 x86_64", 0xF0F0, "x86-tsc")
        assert found.tsc2nsec is not None and (found.tsc2nsec.mult, found.tsc2nsec.shift) == (12345, 24)


def test_what_cannot_be_written_is_refused(tmp_path):
    with (tmp_path / "t.dat").open("wb") as file:
        with pytest.raises(ValueError, match="no compression"):
            TraceFile("local", 1, [], version=6, compression="zstd").write(file, [])
        empty = np.zeros(0, np.uint8)
        with pytest.raises(ValueError, match="CPU 0 after CPU 1"):
            TraceFile("local", 2, []).write(file, [CpuPages(1, empty), CpuPages(0, empty)])
        with pytest.raises(ValueError, match="CPU 2"):
            TraceFile("local", 2, []).write(file, [CpuPages(2, empty)])
