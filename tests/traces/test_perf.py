"""perf.data: every sample of a tracepoint is read as perf script reads it, and what was lost is known."""

from __future__ import annotations

import dataclasses
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from counterpoint.errors import BadFileError
from counterpoint.outputs.text import EventText
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from helpers import need_tool
from writers.perfdata import CALLCHAIN, ID, IDENTIFIER, USUAL, PerfData
from writers.worlds import tiny_pair

REAL = Path(__file__).parents[1] / "data" / "perf" / "host.data"


def first_of_pair(path: Path, **options: object) -> tuple[Recording, Recording]:
    files = tiny_pair(arch="arm64", vcpus=2, windows=150, guest_events=400, **options)[:2]  # type: ignore[arg-type]
    host, guest = (Recording.open(f.write(path / f"{n}.dat")) for f, n in zip(files, ("host", "guest"), strict=True))
    return host, guest


def same(one: Recording, other: Recording) -> None:
    assert [(s.cpu, s.first, s.last) for s in one.streams if s.last > s.first] == [
        (s.cpu, s.first, s.last) for s in other.streams
    ]
    for name in ("stamp", "event_id", "pid"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    rows = range(0, len(one), 7)
    assert all(other.payload(r).startswith(one.payload(r)) for r in rows)
    assert one.losses.row.tolist() == other.losses.row.tolist()
    assert (one.clock, one.cpus, one.cmdlines) == (other.clock, other.cpus, other.cmdlines)


@pytest.mark.parametrize("kind", [USUAL, USUAL | CALLCHAIN | ID, USUAL & ~IDENTIFIER | ID])
def test_what_is_written_is_read(tmp_path, kind):
    for first in first_of_pair(tmp_path, lost=5):
        same(first, Recording.open(PerfData(first, sample_type=kind).write(tmp_path / "p.data")))


def test_a_proof_is_the_same(tmp_path):
    pair = first_of_pair(tmp_path, lost=5)
    again = [PerfData(one).write(tmp_path / f"{one.name}.data") for one in pair]

    ours, theirs = (sync(*files, use_claims=False).guests[0].vcpus for files in (again, pair))

    assert [v.verdict.value for v in ours] == ["derived", "derived"]
    assert [(v.host_tid, v.epochs[0].feasible) for v in ours] == [(v.host_tid, v.epochs[0].feasible) for v in theirs]


def test_what_was_lost_at_the_end_is_unknown(tmp_path):
    host, _ = first_of_pair(tmp_path)

    found = Recording.open(PerfData(host, lost_at_end=3).write(tmp_path / "p.data"))

    assert found.losses.row.tolist() == [s.last for s in found.streams]
    assert (found.losses.count == -1).all()
    assert "3 lost events are marked nowhere" in found.warnings[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"period": 4}, "only some events were recorded"),
        ({"freq": True}, "only some events were recorded"),
        ({"sample_type": USUAL & ~(1 << 7)}, "without its time, CPU or raw data"),
        ({"sample_type": USUAL | 1 << 4}, "hold counters"),
        ({"records": [struct.pack("<I2H", 81, 0, 16) + bytes(8)]}, "compressed"),
    ],
)
def test_what_nothing_can_be_proved_by_is_refused(tmp_path, change, sentence):
    host, _ = first_of_pair(tmp_path)
    path = dataclasses.replace(PerfData(host), **change).write(tmp_path / "p.data")

    with pytest.raises(BadFileError, match=sentence):
        Recording.open(path)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"2ELIFREP", "big-endian"),
        (b"PERFILE2", "ends inside its header"),
        (b"PERFILE2" + struct.pack("<Q", 16) + bytes(40), "written to a pipe"),
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(200), "not ended properly"),
    ],
)
def test_heads(tmp_path, head, sentence):
    path = tmp_path / "p.data"
    path.write_bytes(head)

    with pytest.raises(BadFileError, match=sentence):
        Recording.open(path)


def test_no_byte_of_a_file_can_do_harm(tmp_path):
    rng = np.random.default_rng(5)
    whole = REAL.read_bytes()
    path = tmp_path / "p.data"
    for number in range(90):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:
            # the header, the events, the records
            at = int(rng.integers((0, 104, 800)[number % 3], (104, 900, 46_000)[number % 3]))
            data[at : at + 4] = rng.bytes(4) if number % 2 else b"\xff" * 4
        path.write_bytes(bytes(data))
        try:
            found = Recording.open(path)
        except BadFileError:
            continue
        assert found.cmdlines is not None
        assert len(found) <= 430


def test_real_events_as_perf_script_shows_them():
    perf = need_tool("perf")
    out = subprocess.run(
        [perf, "script", "-i", REAL, "--ns", "-F", "tid,cpu,time,event,trace", "--show-lost-events"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    theirs, lost = [], 0
    for line in out.splitlines():
        if found := re.fullmatch(r"\s*(\d+) \[(\d+)\] (\d+)\.(\d{9}):\s+\w+:(\w+): (.*)", line):
            theirs.append((int(found[3] + found[4]), int(found[2]), int(found[1]), found[5], found[6].rstrip()))
        elif found := re.search(r"PERF_RECORD_LOST lost (\d+)", line):
            lost += int(found[1])
    recording = Recording.open(REAL)
    cpus = np.array([s.cpu for s in recording.streams])[recording.stream_of]
    texts, ours = EventText(recording), []
    for event, known in recording.formats.items():
        rows = recording.rows(event)
        columns = (recording.stamp[rows].tolist(), cpus[rows].tolist(), recording.pid[rows].tolist())
        shown = [text.rstrip() for text in texts.render(event, rows)]
        ours += list(zip(*columns, [known.name] * len(rows), shown, strict=True))

    assert len(ours) == len(theirs) == 430
    assert sorted(ours) == sorted(theirs)
    assert lost == recording.losses.total > 0
    assert recording.clock == "mono_raw"
    assert recording.options.uname.endswith("x86_64")
