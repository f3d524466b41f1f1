"""Copies of the recordings that trace-cmd and KernelShark show in sync, with the options that make them do so.

The host's copy says who its guests' CPUs are (GUEST). A guest's has TIME_SHIFT where that puts each of its events where
the timeline has it; else its events are stamped in host time, and those that are on no timeline are left out. All have
the host's factors from ticks to ns (TSC2NSEC) and its shift of all stamps (DATE, OFFSET): a guest's own would tear them
apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from counterpoint.dat_layout import Option
from counterpoint.errors import UsageError
from counterpoint.outputs.dat_pages import Counted, MachinePages, page_size_of
from counterpoint.outputs.dat_shift import time_shift_of
from counterpoint.outputs.files import replacing
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.container import SECTION_OPTIONS
from counterpoint.traces.options import GuestOption, TimeShift
from counterpoint.traces.write import BufferPages, Compression, TraceFile
from counterpoint.traces.write_copy import can_copy, copy_with_options
from counterpoint.traces.write_options import (
    RawOption,
    guest_option,
    time_shift_option,
    trace_id_option,
    tsc2nsec_option,
)

_ANEW = frozenset({Option.TRACEID, Option.TIME_SHIFT, Option.GUEST, Option.TSC2NSEC, Option.DATE, Option.OFFSET})
"""Options that a copy does not take from its own recording."""

_OF_THE_FILE = SECTION_OPTIONS | {
    Option.BUFFER, Option.BUFFER_TEXT, Option.TRACECLOCK, Option.CPUCOUNT, Option.BTF_FILE, Option.MODULES_FILE,
}  # fmt: skip
"""Options that a file written anew gets by itself, or that point to what it has not."""

_COMPRESSIONS: dict[str, Compression] = {"zlib": "zlib", "zstd": "zstd"}


@dataclass(frozen=True, slots=True)
class Attached:
    """One file: ``corrected`` says why its stamps are host time ("": they are as recorded, with TIME_SHIFT)."""

    path: Path
    machine: str
    corrected: str
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Its keys in the report."""
        return {
            "file": str(self.path),
            "machine": self.machine,
            "options": list(self.options),
            "corrected": self.corrected or None,
            "notes": list(self.notes),
        }


def paths_in(folder: Path, names: Mapping[str, Path]) -> dict[str, Path]:
    """The copy's path in ``folder`` for each machine: under its file's own name, where no two share one."""
    files = [path.name for path in names.values()]
    return {
        name: folder / (path.name if files.count(path.name) == 1 else f"{name.replace('/', '-')}.dat")
        for name, path in names.items()
    }


def attach(
    result: SyncResult, folder: Path, *, overwrite: bool, progress: Callable[[str], None] | None = None
) -> list[Attached]:
    """Write a copy of every recording into ``folder``, the guests' first.

    UsageError where one exists and ``overwrite`` is False, or would replace a recording.
    """
    machines = result.timeline.machines
    paths = paths_in(folder, {m.name: m.recording.path for m in machines})
    check_free(paths.values(), [m.recording.path for m in machines], overwrite=overwrite)
    ids = _trace_ids(machines)
    proofs = {guest.name: guest for guest in result.guests}
    host = machines[0]
    out = []
    for machine in (*machines[1:], host):
        guests = [proof for proof in result.guests if proof.parent == machine.name]
        shift: TimeShift | str | None = None
        if machine is not host:
            shift = _shift(machine, host, proofs.get(machine.name), ids[host.name])
        say = Counted(progress, paths[machine.name])
        out.append(_write(machine, host, shift, guests, ids, paths[machine.name], overwrite, say))
    return out


def check_free(paths: Iterable[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """UsageError where a path is one of the ``inputs``, or exists and is not to be overwritten."""
    inputs = list(inputs)
    for path in paths:
        if not path.exists():
            continue
        if any(one.exists() and path.samefile(one) for one in inputs):
            raise UsageError(f"--attach {path.parent}: {path.name} there is one of the recordings: name another folder")
        if not overwrite:
            raise UsageError(f"--attach {path.parent}: {path} exists (--force overwrites it)")


def _trace_ids(machines: tuple[Machine, ...]) -> dict[str, int]:
    """A trace id for each machine: its recording's own, or one made of its stamps where it has none or another's."""
    out: dict[str, int] = {}
    for machine in machines:
        found = machine.recording.options.trace_id
        salt = machine.name.encode()
        while not found or found in out.values():
            salt = hashlib.blake2b(salt + machine.recording.stamp[:1024].tobytes(), digest_size=8).digest()
            found = int.from_bytes(salt, "little")
        out[machine.name] = found
    return out


def _shift(machine: Machine, host: Machine, proof: GuestProof | None, peer: int) -> TimeShift | str:
    """The option, or why the stamps have to be corrected."""
    recording = machine.recording
    if recording.clock != host.recording.clock:
        return f"its clock is {recording.clock}, the host's {host.recording.clock}"
    epochs = [e for v in proof.vcpus for e in v.epochs] if proof is not None else []
    if any(e.fitted for e in epochs):
        return "its clock follows a line that was fitted"
    if not all(e.scale.is_identity for e in epochs):
        return "its counter is scaled"
    return time_shift_of(machine, peer)


def _write(
    machine: Machine,
    host: Machine,
    shift: TimeShift | str | None,
    guests: list[GuestProof],
    ids: Mapping[str, int],
    path: Path,
    overwrite: bool,
    say: Counted,
) -> Attached:
    recording = machine.recording
    corrected = shift if isinstance(shift, str) else ""
    added = _added(machine, host, None if isinstance(shift, str) else shift, guests, ids)
    notes: list[str] = []
    container = recording.container
    with replacing(path, overwrite=overwrite) as file:
        if not corrected and can_copy(container):
            kept = [(o.id, o.data) for o in container.options if o.id not in _ANEW]
            say.expect(len(container.mapped), "bytes")
            copy_with_options(container, [*kept, *added], file, say)
        else:
            say.expect(int(machine.placed.sum()) if corrected else len(recording), "events")
            notes = _write_anew(machine, host if corrected else None, added, file, say)
    return Attached(path, machine.name, corrected, tuple(notes), tuple(Option(o[0]).name for o in added))


def _added(
    machine: Machine,
    host: Machine,
    shift: TimeShift | None,
    guests: list[GuestProof],
    ids: Mapping[str, int],
) -> list[RawOption]:
    """The options that are this copy's own."""
    big = machine.recording.big_endian
    of_host = host.recording.options
    added = [trace_id_option(ids[machine.name], big_endian=big)]
    added += [(o.id, o.data) for o in host.recording.container.options if o.id in (Option.DATE, Option.OFFSET)]
    if of_host.tsc2nsec is not None:
        added.append(tsc2nsec_option(of_host.tsc2nsec.mult, of_host.tsc2nsec.shift, big_endian=big))
    if shift is not None:
        added.append(time_shift_option(shift, big_endian=big))
    ours = {ids[guest.name] for guest in guests} | {guest.recording.options.trace_id for guest in guests}
    added += [guest_option(g, big_endian=big) for g in machine.recording.options.guests if g.trace_id not in ours]
    for guest in guests:
        tids = {v.guest_cpu: v.host_tid for v in guest.vcpus if v.host_tid is not None}
        # a reader takes numbers of CPUs below their count
        vcpus = tuple((cpu, tids.get(cpu, -1)) for cpu in range(max([guest.recording.cpus, *(c + 1 for c in tids)])))
        added.append(guest_option(GuestOption(guest.name, ids[guest.name], vcpus), big_endian=big))
    return added


def _write_anew(
    machine: Machine, host: Machine | None, added: list[RawOption], file: BinaryIO, say: Counted
) -> list[str]:
    """Write a machine's file from its events: in ``host``'s time, or as recorded (None)."""
    recording = machine.recording
    source = machine
    if host is None:
        everything = np.ones(len(recording), np.bool_)
        source = replace(machine, host_stamp=recording.stamp, placed=everything)
    base = host.recording.base if host is not None else None
    pages = MachinePages(source, base, page_size_of([recording]), say=say)
    kept = [(o.id, o.data) for o in recording.container.options if o.id not in _ANEW | _OF_THE_FILE]
    texts = [recording.formats.text(event_id) for event_id in recording.formats]
    out = TraceFile(
        (host or machine).recording.clock,
        recording.cpus,
        [(system, text.decode("utf-8", "surrogateescape")) for system, text in texts],
        recording.cmdlines,
        [*kept, *added],
        recording.kallsyms(),
        recording.printk_formats(),
        6 if recording.version == 6 else 7,
        _COMPRESSIONS.get(recording.compression, "none"),
        pages.page_size,
        recording.long_size,
        recording.big_endian,
    )
    instances = [BufferPages(name, pages.cpus(name)) for name in pages.buffers if name]
    out.write(file, pages.cpus(""), instances)
    return pages.notes()
