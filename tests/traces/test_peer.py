"""Event for event against trace-cmd: names, CPUs, stamps, tasks, raw fields and rendered text.

Of each recording the first ``LINES`` lines of the report are compared (most end before that), all of them
where COUNTERPOINT_FULL is set. The text is rendered in the dialect of libtraceevent 1.7, which is what
Debian 12 has; stamps are the recorded ones, without trace-cmd's corrections.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest

from counterpoint.outputs.text import TimelineText
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.traces.printing import V1_7
from counterpoint.traces.recording import Recording
from helpers import full_size_recordings, need_tool
from writers.worlds import tiny_pair

LINES = sys.maxsize if os.environ.get("COUNTERPOINT_FULL") == "1" else 300_000
EQUAL_SHARE = 0.99

UNEQUAL: dict[str, dict[str, tuple[int, str]]] = {}
"""Per recording (folder/stem) and event: how many lines of its text differ, and why. None do."""

ORDER = {
    "x86-guest-wrmsr/guest": "the guest's TSC stepped back while it recorded. trace-cmd takes the earliest head of"
    " the CPUs' streams as they are, so what follows a step back comes late; the timeline sorts by stamp."
}
"""Recordings whose merged order differs from trace-cmd's, and why: each CPU's lines are compared by themselves."""

CORRECTIONS = {"TIME_SHIFT", "OFFSET", "DATE", "TSC2NSEC"}
_HEAD = re.compile(r" *(.*?)-(\d+) +\[(\d+)\] *([\d.]+): (.*?): ")
_LOSS = re.compile(r"CPU:(\d+) \[(?:(\d+) )?EVENTS DROPPED\]$")
_SECONDS = re.compile(r"\] *(\d+)\.(\d{9}):")


@contextmanager
def report(path: Path, *options: str) -> Iterator[Iterator[str]]:
    """The lines of ``trace-cmd report``; skips the test where it cannot open the file."""
    command = [need_tool("trace-cmd"), "report", "-t", "-N", *options, "-i", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", bufsize=1 << 20
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = (line[:-1] for line in process.stdout)
        # "cpus=N", and before it what trace-cmd notices about the file
        if not any(line.startswith("cpus=") for line in lines):
            pytest.skip(f"trace-cmd does not open it: {process.stderr.read().strip()}")
        try:
            yield lines
        finally:
            process.kill()


def raw_stamps(recording: Recording) -> list[str]:
    """The option for uncorrected stamps, where the file asks for corrections."""
    return ["--raw-ts"] if CORRECTIONS & set(recording.option_names) else []


def our_lines(recording: Recording, *, raw: bool, plain_stamps: bool) -> Iterator[str]:
    """The recording as ``show`` prints it; ``plain_stamps``: ns as integers, as trace-cmd shows uncorrected ones."""
    everything = np.ones(len(recording), np.bool_)
    timeline = Timeline([Machine(recording.name, recording, None, recording.stamp, everything, everything)], None)
    for text in TimelineText(timeline, raw=raw, dialect=V1_7).lines():
        line = text
        if plain_stamps and recording.unit == "ns":
            line = _SECONDS.sub(lambda m: f"]{int(m[1] + m[2]):12d}:", line, count=1)
        yield from line.split("\n")


def by_cpu(lines: list[str]) -> list[str]:
    """``lines`` CPU by CPU, in the order of their stamps: what remains when the order between CPUs is unknown."""
    keyed = []
    for line in lines:
        head = _HEAD.match(line)
        assert head is not None, line
        keyed.append(((int(head[3]), int(head[4].replace(".", ""))), line))
    return [line for _, line in sorted(keyed, key=lambda pair: pair[0])]


def unequal(theirs: Iterator[str], ours: Iterator[str], name: str) -> tuple[int, Counter[str], list[str]]:
    """Compare line by line: (lines, differing lines by event, the first few as an explanation)."""
    if name in ORDER:
        theirs, ours = iter(by_cpu(list(theirs))), iter(by_cpu(list(ours)))
    total, differing, shown = 0, Counter[str](), []
    for total, (a, b) in enumerate(zip_longest(theirs, ours, fillvalue="(no line)"), 1):  # noqa: B007
        if a != b:
            head = _HEAD.match(a)
            differing[head[5] if head else a[:40]] += 1
            if len(shown) < 10:
                shown.append(f"- {a}\n+ {b}")
    return total, differing, shown


class Seen:
    """What a report's lines say of each event, noted CPU by CPU while they pass."""

    def __init__(self) -> None:
        self.lines = 0
        self.stamps: dict[int, array[int]] = {}
        self.pids: dict[int, array[int]] = {}
        self.names: dict[int, list[str]] = {}
        self.losses: dict[int, list[tuple[int, int]]] = {}
        self.comms: dict[int, str] = {}

    def passing(self, lines: Iterator[str]) -> Iterator[str]:
        kept: dict[str, str] = {}
        for line in lines:
            self.lines += 1
            head = _HEAD.match(line)
            if head is not None:
                cpu, pid = int(head[3]), int(head[2])
                self.stamps.setdefault(cpu, array("Q")).append(int(head[4].replace(".", "")))
                self.pids.setdefault(cpu, array("i")).append(pid)
                self.names.setdefault(cpu, []).append(kept.setdefault(head[5], head[5]))
                assert self.comms.setdefault(pid, head[1]) == head[1]
            elif lost := _LOSS.match(line):
                cpu = int(lost[1])
                self.losses.setdefault(cpu, []).append((len(self.stamps.get(cpu, ())), int(lost[2] or -1)))
            yield line

    def check(self, recording: Recording) -> None:
        """Hold the columns of ``recording`` against what was seen, each CPU in the order of recording."""
        complete = self.lines < LINES
        if complete:
            assert sum(map(len, self.stamps.values())) == len(recording)
            assert {s.cpu for s in recording.streams if s.last > s.first} == self.stamps.keys()
        by_id = {i: recording.event_name(i) for i in np.unique(recording.event_id).tolist()}
        for index, stream in enumerate(recording.streams):
            stamps = self.stamps.get(stream.cpu, array("Q"))
            rows = slice(stream.first, stream.first + len(stamps))
            assert rows.stop <= stream.last
            assert np.array_equal(recording.stamp[rows], np.frombuffer(stamps, np.uint64) if stamps else [])
            assert recording.pid[rows].tolist() == self.pids.get(stream.cpu, array("i")).tolist()
            assert [by_id[i] for i in recording.event_id[rows].tolist()] == self.names.get(stream.cpu, [])
            losses = recording.losses
            mine = np.flatnonzero(losses.stream == index).tolist()
            marks = [(int(losses.row[i]) - stream.first, int(losses.count[i])) for i in mine]
            assert [m for m in marks if complete or m[0] < len(stamps)] == self.losses.get(stream.cpu, [])
        assert {pid: recording.comm(pid) for pid in self.comms} == self.comms


def compare(path: Path, *, raw: bool) -> tuple[int, Counter[str], list[str]]:
    """Compare a file's events and its lines; see ``unequal`` for what is returned."""
    recording = Recording.open(path)
    plain = raw_stamps(recording)
    seen = Seen()
    with report(path, *plain, *(["-R"] if raw else [])) as lines:
        theirs = islice(lines, LINES)
        ours = our_lines(recording, raw=raw, plain_stamps=bool(plain))
        if len(recording) > LINES:
            ours = islice(ours, LINES)
        # the heads of both reports are the same: once is enough
        outcome = unequal(theirs if raw else seen.passing(theirs), ours, f"{path.parent.name}/{path.stem}")
    if not raw:
        seen.check(recording)
    return outcome


@pytest.mark.peer
@pytest.mark.recordings
@pytest.mark.parametrize("path", full_size_recordings())
def test_every_event_and_its_text(path):
    total, differing, shown = compare(path, raw=False)

    explained = UNEQUAL.get(f"{path.parent.name}/{path.stem}", {})
    assert dict(differing) == {event: count for event, (count, _) in explained.items()}, "\n".join(shown)
    assert sum(differing.values()) <= (1 - EQUAL_SHARE) * total


@pytest.mark.peer
@pytest.mark.recordings
@pytest.mark.parametrize("path", full_size_recordings())
def test_every_raw_field(path):
    _, differing, shown = compare(path, raw=True)

    assert not differing, "\n".join(shown)


@pytest.mark.peer
@pytest.mark.parametrize("raw", [False, True], ids=["text", "fields"])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_every_line_of_written_files(tmp_path, arch, version, big_endian, raw):
    for file in tiny_pair(arch=arch, version=version, big_endian=big_endian, lost=5, vcpus=2)[:2]:
        path = file.write(tmp_path / "t.dat")

        total, differing, shown = compare(path, raw=raw)

        assert total > 50
        assert not differing, "\n".join(shown)
