"""A timeline and the trace.dat file made of it, compared event for event: by our reader, and by trace-cmd."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from counterpoint.clocks.counter import relative
from counterpoint.outputs.text import EventText
from counterpoint.timeline.merge import Timeline
from counterpoint.traces.recording import Recording
from helpers import need_tool

_LINE = re.compile(r"(.*?)-(\d+) +\[(\d+)\] *([\d.]+): (\S+?): ")
_EDGES = ("kvm_entry", "kvm_exit")
_LOST = re.compile(r".*?CPU:\d+ \[(\d+ )?EVENTS DROPPED\]")


def in_order(read: Recording, base: int) -> np.ndarray:
    """The rows of a written file in the order of its stamps."""
    return np.argsort(relative(read.stamp, base), kind="stable")


def check_same_events(timeline: Timeline, path: Path, moved: frozenset[str] = frozenset()) -> Recording:
    """Every event of the timeline is in the file, and no other: machine, CPU, stamp, task, name and payload.

    ``moved``: names of events whose payload is not looked at, since a pointer to a string moved.
    """
    read = Recording.open(path)
    assert read.warnings == []
    rows = in_order(read, timeline.base)
    names = ["", *(m.name for m in timeline.machines[1:])]
    streams = [(names.index(s.buffer), s.cpu) for s in read.streams]
    of = np.array(streams, np.int64).reshape(-1, 2)[read.stream_of[rows]]
    assert np.array_equal(read.stamp[rows], timeline.host_ticks)
    assert np.array_equal(of[:, 0], timeline.machine)
    assert np.array_equal(of[:, 1], timeline.cpu)
    assert np.array_equal(read.pid[rows], timeline.pid)
    for index, machine in enumerate(timeline.machines):
        mine = timeline.machine == index
        source, at = machine.recording, timeline.row[mine]
        same = np.ones(len(at), np.bool_)
        pairs = np.unique(np.stack([source.event_id[at], read.event_id[rows[mine]]]), axis=1)
        for own, written in pairs.T.tolist():
            assert source.event_name(own) == read.event_name(written)
            same &= (source.event_id[at] != own) | (source.event_name(own) not in moved)
        before, after = source.payloads(at[same]), read.payloads(rows[mine][same])
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one.place, other.place)
            assert np.array_equal(_without_id(one.rows), _without_id(other.rows))
    return read


def check_same_texts(timeline: Timeline, read: Recording) -> None:
    """Every event is shown as it was by the symbols and strings of its own machine."""
    rows = in_order(read, timeline.base)
    shown = EventText(read)
    for index, machine in enumerate(timeline.machines):
        mine = timeline.machine == index
        at, to = timeline.row[mine], rows[mine]
        source = EventText(machine.recording)
        for kind in np.unique(machine.recording.event_id[at]).tolist():
            here = machine.recording.event_id[at] == kind
            written = int(read.event_id[to[here][0]])
            assert shown.render(written, to[here]) == source.render(kind, at[here])


def _without_id(rows: np.ndarray) -> np.ndarray:
    """Payloads but for common_type."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)[:, 2:]


def report(path: Path, *flags: str) -> list[str]:
    """The lines that trace-cmd prints of events and losses; it complains of nothing."""
    command = [need_tool("trace-cmd"), "report", "-t", "--raw-ts", "-N", *flags, "-i", str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    return [line for line in done.stdout.decode("utf-8", "replace").splitlines() if not line.startswith("cpus=")]


def check_trace_cmd(timeline: Timeline, path: Path) -> None:
    """trace-cmd prints as many events and marks of losses, in the same order."""
    names = ["", *(m.name for m in timeline.machines[1:])]
    found, lost = [], []
    before = ""
    for line in report(path):
        if mark := _LOST.match(line):
            lost.append(int(mark[1] or -1))
            # the name of the buffer stands here, and not before the event
            before = line.partition("CPU:")[0]
        else:
            event = _LINE.match(line)
            assert event is not None, line
            buffer = next((n for n in names[1:] if f"{before}{event[1]}".lstrip().startswith(f"{n}: ")), "")
            before = ""
            stamp = int(event[4].replace(".", ""))
            found.append((names.index(buffer), int(event[3]), int(event[2]), stamp, event[5]))
    recordings = [m.recording for m in timeline.machines]
    kinds = [
        recordings[m].event_name(i) for m, i in zip(timeline.machine.tolist(), timeline.event_id.tolist(), strict=True)
    ]
    columns = (timeline.machine, timeline.cpu, timeline.pid, timeline.host_ticks)
    assert found == list(zip(*(c.tolist() for c in columns), kinds, strict=True))
    assert sorted(lost) == sorted(loss.count for loss in timeline.losses() if loss.at < len(timeline))


def _lines(command: list[str]) -> Iterator[str]:
    """The lines that a program prints, as they come; it fails not."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as run:
        assert run.stdout is not None
        yield from run.stdout
    assert run.returncode == 0


def inside_windows(files: dict[str, Path], vcpus: dict[tuple[str, int], tuple[str, int]]) -> dict[str, list[int]]:
    """By what trace-cmd shows of several files: how many guest events lie inside, outside, and where nobody knows.

    ``vcpus``: (guest, CPU) to (its parent, thread). Nothing is known before a thread's first and behind its last
    kvm_entry or kvm_exit, and between two that events were lost between, on any CPU of the parent.
    """
    command = [need_tool("trace-cmd"), "report", "-t", "-N"]
    for path in files.values():
        command += ["-i", str(path)]
    of_file = {path.name: name for name, path in files.items()}
    edges_of: dict[tuple[str, int], list[tuple[int, bool]]] = {host: [] for host in vcpus.values()}
    stamps_of: dict[tuple[str, int], list[int]] = {vcpu: [] for vcpu in vcpus}
    lost: dict[str, list[tuple[int, int]]] = {name: [] for name in files}
    last: dict[tuple[str, int], int] = {}
    lost_on: tuple[str, int] | None = None
    for line in _lines(command):
        if _LOST.match(line):
            before = line.partition("CPU:")[0].strip(" :")
            lost_on = of_file[before], int(line.partition("CPU:")[2].split()[0])
            continue
        event = _LINE.match(line)
        if event is None:
            assert "cpus=" in line or not line.strip(), line
            continue
        first = event[1].split(":")[0].strip()
        machine = lost_on[0] if lost_on is not None else of_file[first]
        cpu, stamp = int(event[3]), int(event[4].replace(".", ""))
        if lost_on is not None:
            lost[machine].append((last.get((machine, cpu), 0), stamp))
            lost_on = None
        last[machine, cpu] = stamp
        if (machine, cpu) in stamps_of:
            stamps_of[machine, cpu].append(stamp)
        if event[5] in _EDGES and (machine, int(event[2])) in edges_of:
            edges_of[machine, int(event[2])].append((stamp, event[5] == "kvm_entry"))
    out = {guest: [0, 0, 0] for guest, _ in vcpus}
    for (guest, cpu), (parent, tid) in vcpus.items():
        edges = edges_of[parent, tid]
        stamps = np.array([s for s, _ in edges], np.int64)
        starts = np.array([is_entry for _, is_entry in edges], np.bool_)
        events = np.array(stamps_of[guest, cpu], np.int64)
        if not len(stamps):
            out[guest][2] += len(events)
            continue
        # an event at the very stamp of an edge lies on either side of it
        found = [np.searchsorted(stamps, events, side=side) for side in ("left", "right")]
        known = (found[1] > 0) & (found[0] < len(stamps))
        inside = np.zeros(len(events), np.bool_)
        for at in found:
            at = np.clip(at, 1, len(stamps) - 1)
            inside |= starts[at - 1]
        at = np.clip(found[1], 1, len(stamps) - 1)
        for begin, end in lost[parent]:
            known &= (stamps[at] < begin) | (stamps[at - 1] > end)
        out[guest][0] += int((inside & known).sum())
        out[guest][1] += int((~inside & known).sum())
        out[guest][2] += int((~known).sum())
    return out
