"""The timeline as CTF 1.8: a folder with a trace of each machine, all stamped in host time, and the proof as JSON.

A trace a machine, for that is how Trace Compass tells machines apart: by the uuid of the trace's clock. That all these
clocks are one is what ``absolute`` says (CTF 1.8.3, 8: "a global reference across different clock UUID").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from uuid import UUID

import numpy as np
import numpy.typing as npt

from counterpoint._version import __version__
from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.clocks.wall import Wall
from counterpoint.errors import UsageError
from counterpoint.outputs.ctf_metadata import Clock, Kind, metadata
from counterpoint.outputs.ctf_packets import PacketWriter
from counterpoint.outputs.ctf_rows import TASK_BYTES, Heads, event_bytes, valid_utf8
from counterpoint.outputs.dat_pages import Counted
from counterpoint.outputs.dat_tables import MAX_PID
from counterpoint.outputs.files import replacing_folder
from counterpoint.outputs.report import sync_report, width_ns
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.timeline.details import widths_to_ns
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.recording import Recording

BLOCK = 1 << 16
"""Events built at once: bounds the memory of their columns."""

PROOF = "proof.json"
METADATA = "metadata"
MAX_EPOCHS = 16
"""Epochs of a vCPU that the environment tells of; the JSON has all."""

_STREAM = re.compile(r"stream\d+_\d+")


def write_ctf(
    result: SyncResult, path: Path, *, overwrite: bool, progress: Callable[[str], None] | None = None
) -> list[str]:
    """Write the timeline of ``result`` into the folder ``path``; returns what readers must know, in sentences.

    UsageError where ``path`` exists and ``overwrite`` is False, or is a folder of other things.
    """
    timeline = result.timeline
    with replacing_folder(path, overwrite=overwrite, is_ours=is_traces) as folder:
        (folder / PROOF).write_text(json.dumps(sync_report(result), indent=2) + "\n", encoding="utf-8")
        return write_traces(timeline, folder, path, environments(result), wall_of(result), progress)


def is_traces(folder: Path) -> bool:
    """Whether a folder holds nothing but traces as they are written here, and their proof."""
    children = {child.name: child for child in folder.iterdir()}
    if not children:
        return True
    proof = children.pop(PROOF, None)
    return proof is not None and all(
        child.is_dir() and all(f.name == METADATA or _STREAM.fullmatch(f.name) for f in child.iterdir())
        for child in children.values()
    )


def write_traces(
    timeline: Timeline,
    folder: Path,
    path: Path,
    said: list[dict[str, str | int]] | None = None,
    wall: Wall | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Write a trace of each machine into ``folder``, which will be ``path``; returns notes as ``write_ctf``.

    ``said``: of each machine, what its environment says beside the usual. ``wall``: the host's wall time.
    """
    say = Counted(progress, path)
    say.expect(len(timeline), "events")
    axis = Axis.of(timeline, wall)
    names: set[str] = set()
    for index, machine in enumerate(timeline.machines):
        name = folder_name(machine.name, index, names)
        (folder / name).mkdir()
        _Trace(timeline, index, axis, folder / name, said[index] if said else {}, say).write()
    return axis.notes


def folder_name(machine: str, index: int, taken: set[str]) -> str:
    """A machine's folder: its name as far as a file may have it, and as no other's; it is put into ``taken``."""
    name = quote(machine, safe=" ")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if not name or len(name) > 200 or name in (PROOF, *taken):
        name = f"machine%{index}"
    taken.add(name)
    return name


# -- time


@dataclass(frozen=True, slots=True)
class Axis:
    """How host stamps become a trace's: ns from ``origin``, in host units; ``offset_ns`` lies between 1970 and that.

    ``uuid`` names this timeline: the machines' clocks are made of it.
    """

    timeline: Timeline
    origin: int
    offset_ns: int
    description: str
    notes: list[str]
    uuid: UUID

    @classmethod
    def of(cls, timeline: Timeline, wall: Wall | None) -> Axis:
        """The axis of a timeline: from the host clock's own 0 where its stamps let it."""
        host, rate = timeline.machines[0], timeline.rate
        stamps = timeline.host_ticks
        first, last = (int(stamps[0]), int(stamps[-1])) if len(stamps) else (0, 0)
        # readers count ns since 1970 in signed 64 bits
        far = last < first or (rate.to_ns(last) if rate else last) >= 1 << 62
        origin = first if far else 0
        unit = "ns" if rate else "ticks, each shown as 1 ns, for their length is not known,"
        said = [f"{unit} of the trace clock {host.recording.clock} of {host.name}, on which all machines are placed"]
        notes, offset = [], 0
        if origin:
            said.append(f"counted from its stamp {origin}")
        time = wall.at((stamps[:1], stamps[:1], stamps[:1])) if wall is not None and len(stamps) else None
        if wall is not None and time is not None and bool(time.known[0]) and rate is not None:
            offset = max(int(time.ns[0]) - rate.to_ns(0 if origin else first), 0)
            bound = f"within {int(time.latest[0] - time.earliest[0])} ns " if wall.is_bounded else ""
            said.append(f"since 1970 {bound}at the first event, by {wall.source}")
        else:
            said.append("not since 1970: the wall time is not known, dates that a reader shows mean nothing")
            notes.append("the wall time is not known: readers show the host clock's 0 as 1 January 1970")
        seed = f"{host.name} {host.recording.clock} {first} {last} {len(timeline)} {host.recording.options.trace_id}"
        uuid = UUID(bytes=sha256(seed.encode("utf-8", "replace")).digest()[:16], version=4)
        return cls(timeline, origin, offset, "; ".join(said), notes, uuid)

    def ns(self, stamps: U64) -> U64:
        """The trace's stamps u64[n] of host stamps u64[n] in the order of time."""
        ticks = stamps - np.uint64(self.origin)
        rate = self.timeline.rate
        return ticks if rate is None else rate.array_to_ns(ticks).view(np.uint64)

    def name(self, machine: Machine, index: int) -> UUID:
        """The uuid by which a reader knows this machine."""
        seed = self.uuid.bytes + f"{index} {machine.name}".encode("utf-8", "replace")
        return UUID(bytes=sha256(seed).digest()[:16], version=4)


def wall_of(result: SyncResult) -> Wall | None:
    """The host's wall time, where it is known and was not set meanwhile."""
    try:
        wall = Wall.of(result.maps.host, result.maps.pairs)
    except ValueError:
        return None
    return None if wall is None or wall.was_set else wall


# -- a machine


@dataclass
class _Trace:
    """The trace of one machine of a timeline, in a folder of its own."""

    timeline: Timeline
    index: int
    axis: Axis
    folder: Path
    said: dict[str, str | int]
    say: Callable[[int], None]

    @property
    def machine(self) -> Machine:
        return self.timeline.machines[self.index]

    @cached_property
    def kinds(self) -> list[Kind]:
        """The kinds of events that are in it, numbered by their ids."""
        recording = self.machine.recording
        out = []
        for event_id in np.flatnonzero(np.bincount(recording.event_id[self.machine.placed], minlength=1)).tolist():
            event = recording.formats.get(event_id)
            name = f"{event.system}:{event.name}" if event else recording.event_name(event_id)
            out.append(Kind(event_id, name, event))
        return out

    @cached_property
    def tasks(self) -> _Tasks:
        return _Tasks.of(self.machine.recording)

    def write(self) -> None:
        recording = self.machine.recording
        uuid = self.axis.name(self.machine, self.index)
        clock = Clock(uuid, self.axis.description, self.axis.offset_ns, max(int(self.said.get("bound_ns", 1)), 1))
        env: dict[str, str | int] = {
            "hostname": self.machine.name,
            "domain": "kernel",
            "sysname": "Linux",
            "tracer_name": "perf",
            "written_by": f"counterpoint {__version__}",
            "trace_clock": recording.clock,
            **_kernel(recording),
            "counts_lost_as_1": "where the kernel did not count lost events, events_discarded counts 1",
            **self.said,
        }
        with (self.folder / METADATA).open("x", encoding="utf-8") as text:
            for piece in metadata(uuid, clock, env, self.kinds, big_endian=recording.big_endian):
                text.write(piece)
        lossy = set(recording.losses.stream.tolist())
        for number, stream in enumerate(recording.streams):
            if stream.last > stream.first or number in lossy:
                with self._file(number, stream.cpu) as file:
                    self._stream(number, PacketWriter(file, uuid, number, stream.cpu, recording.big_endian))
        if not len(recording) and not lossy:
            # a trace without any stream is none to readers
            with self._file(0, 0) as file:
                PacketWriter(file, uuid, 0, 0, recording.big_endian).close()

    def _file(self, number: int, cpu: int) -> BinaryIO:
        return (self.folder / f"stream{number}_{cpu}").open("xb")

    def _stream(self, number: int, out: PacketWriter) -> None:
        machine = self.machine
        stream = machine.recording.streams[number]
        recorded = stream.first + np.flatnonzero(machine.placed[stream.first : stream.last])
        rows, place = recorded, None
        away = relative(machine.host_stamp[rows], self.timeline.base)
        if (away[1:] < away[:-1]).any():
            order = np.argsort(away, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            rows = rows[order]
        lost, behind = _losses(machine.recording, number, recorded, place)
        for begin in range(0, len(rows), BLOCK):
            end = min(begin + BLOCK, len(rows))
            self._block(rows[begin:end], {at - begin: n for at, n in lost.items() if begin <= at < end}, out)
            self.say(end - begin)
        out.close(behind)

    def _block(self, rows: I64, lost: dict[int, int], out: PacketWriter) -> None:
        machine, recording = self.machine, self.machine.recording
        tid = recording.pid[rows]
        time = self.axis.ns(machine.host_stamp[rows])
        heads = Heads(
            recording.event_id[rows], time, tid, self.tasks.names(tid), recording.stamp[rows], machine.proved[rows]
        )
        try:
            data, starts = event_bytes(recording, rows, heads)
        except OverflowError:
            half = len(rows) // 2
            if not half:
                raise UsageError(f"{machine.name}: the fields of an event overlap: they are too many bytes") from None
            self._block(rows[:half], {at: n for at, n in lost.items() if at < half}, out)
            self._block(rows[half:], {at - half: n for at, n in lost.items() if at >= half}, out)
            return
        out.events(data, starts, time, lost)


def _losses(recording: Recording, stream: int, rows: I64, place: I64 | None) -> tuple[dict[int, int], int]:
    """How many events were lost before which of a stream's events, and behind the last.

    ``rows`` i64[n] are those in the order of recording, ``place`` i64[n] where each now stands (None: there).
    """
    losses = recording.losses
    mine = np.flatnonzero(losses.stream == stream)
    lost: dict[int, int] = {}
    behind = 0
    for at, count in zip(np.searchsorted(rows, losses.row[mine]).tolist(), losses.count[mine].tolist(), strict=True):
        if at == len(rows):
            behind += max(count, 1)
            continue
        to = at if place is None else int(place[at])
        lost[to] = lost.get(to, 0) + max(count, 1)
    return lost, behind


@dataclass(frozen=True, slots=True)
class _Tasks:
    """The names ``texts`` V16[k] of a machine's tasks ``tids`` i32[k], in order, or with ``lut`` by their ids."""

    tids: npt.NDArray[np.int32]
    texts: npt.NDArray[np.void]
    lut: npt.NDArray[np.int32] | None

    @classmethod
    def of(cls, recording: Recording) -> _Tasks:
        pid = recording.pid
        lut = None
        if len(pid) and int(pid.min()) >= 0 and int(pid.max()) < MAX_PID:
            there = np.zeros(int(pid.max()) + 1, np.bool_)
            there[pid] = True
            tids = np.flatnonzero(there).astype(np.int32)
            lut = np.cumsum(there, dtype=np.int32) - 1
        else:
            tids = np.unique(pid)
        names = [_cut(recording.comm(tid)).ljust(TASK_BYTES, b"\0") for tid in tids.tolist()]
        return cls(tids, np.frombuffer(b"".join(names), f"V{TASK_BYTES}"), lut)

    def names(self, tid: npt.NDArray[np.int32]) -> npt.NDArray[np.void]:
        return self.texts[self.lut[tid] if self.lut is not None else np.searchsorted(self.tids, tid)]


def _cut(name: str) -> bytes:
    """A task's name, no longer than the kernel's own."""
    return valid_utf8(name.encode("utf-8", "replace")[: TASK_BYTES - 1])


# -- what the environment says


def _kernel(recording: Recording) -> dict[str, str | int]:
    """What is known of the kernel and of its counter."""
    said: dict[str, str | int] = {}
    uname = recording.options.uname.split()
    if len(uname) > 3:
        said |= {"kernel_release": uname[2], "machine": uname[-1]}
    if (scale := recording.options.tsc2nsec) is not None:
        said |= {"tsc2nsec_mult": scale.mult, "tsc2nsec_shift": scale.shift}
    return said


def environments(result: SyncResult) -> list[dict[str, str | int]]:
    """Of each machine of the timeline, what its trace's environment says of the proof."""
    guests = {g.name: g for g in result.guests}
    joins = {h.name: h.join for h in result.hosts}
    out = []
    timeline = result.timeline
    for machine, details in zip(timeline.machines, timeline.details or (), strict=True):
        said: dict[str, str | int] = {"role": "host"}
        if machine.name in guests:
            guest = guests[machine.name]
            said = {"role": "guest", "parent": guest.parent, "verdict": guest.verdict.value}
            if timeline.rate is not None and len(details.width):
                said["bound_ns"] = int(widths_to_ns(details.width.max(keepdims=True), timeline.rate)[0])
            for vcpu in guest.vcpus:
                said |= dict(_vcpu(result, vcpu))
        elif machine.name in joins:
            join = joins[machine.name]
            said["join"] = "none" if join is None else f"{join.verdict.value} by {join.source}"
        unplaced = int((~machine.placed).sum())
        said |= {"events_left_out": unplaced} if unplaced else {}
        out.append(said)
    return out


def _vcpu(result: SyncResult, vcpu: VcpuProof) -> Iterator[tuple[str, str]]:
    for number, epoch in enumerate(vcpu.epochs[:MAX_EPOCHS]):
        key = f"proof_cpu{vcpu.guest_cpu}" + (f"_{number + 1}" if len(vcpu.epochs) > 1 else "")
        yield key, _epoch(result, vcpu, epoch)


def _epoch(result: SyncResult, vcpu: VcpuProof, epoch: EpochProof) -> str:
    parts = [epoch.verdict.value]
    if epoch.offset is not None:
        parts.append(f"offset {epoch.offset} by {epoch.source}")
    width = width_ns(epoch, result.rate_on(epoch.host))
    parts.append("bound not known" if width is None else f"bound {width} ns")
    parts.append(f"{epoch.inside} of {epoch.inside + epoch.violations} inside")
    parts.append(f"{epoch.unknown} unknown")
    parts.append(f"thread {epoch.host_tid if epoch.host is not None else vcpu.host_tid}")
    return ", ".join(parts)
