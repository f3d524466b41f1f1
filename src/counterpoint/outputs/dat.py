"""The timeline as one trace.dat file: the host in the top buffer, every other machine in a buffer of its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from counterpoint._version import __version__
from counterpoint.dat_layout import Option
from counterpoint.errors import UsageError
from counterpoint.outputs.dat_pages import Counted, MachinePages, page_size_of
from counterpoint.outputs.dat_tables import Tables
from counterpoint.outputs.files import replacing
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.traces.recording import Recording
from counterpoint.traces.write import BufferPages, Compression, TraceFile
from counterpoint.traces.write_options import RawOption, text_option, tsc2nsec_option


@dataclass(frozen=True, slots=True)
class DatFormat:
    """How trace.dat files are to be written: version 6 (never compressed) or 7."""

    version: int = 7
    compression: Compression = "zstd"


def write_dat(
    timeline: Timeline,
    path: Path,
    *,
    overwrite: bool,
    how: DatFormat | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Write the timeline to ``path``; returns what the file does not hold, or shows otherwise, in sentences.

    UsageError where the machines cannot be in one file, or ``path`` exists and ``overwrite`` is False.
    """
    how = how or DatFormat()
    machines = timeline.machines
    host = machines[0].recording
    _check_alike(machines)
    notes: list[str] = []
    with replacing(path, overwrite=overwrite) as file:
        tables = Tables(host)
        say = Counted(progress, path)
        say.expect(len(timeline), "events")
        page_size = page_size_of([m.recording for m in machines])
        parts = [
            MachinePages(m, timeline.base, page_size, tables.add(m.name, m.recording, np.flatnonzero(m.placed)), say)
            for m in machines
        ]
        out = TraceFile(
            host.clock,
            max(m.recording.cpus for m in machines),
            tables.formats,
            tables.cmdlines,
            _options(host),
            tables.kallsyms,
            tables.printk,
            6 if how.version == 6 else 7,
            "none" if how.version == 6 else how.compression,
            page_size,
            host.long_size,
            host.big_endian,
        )
        out.write(file, parts[0].cpus(""), _instances(parts))
        notes += tables.notes
        notes += [text for part in parts for text in part.notes()]
    return notes


def _check_alike(machines: tuple[Machine, ...]) -> None:
    """One file has one byte order and one size of a long."""
    host = machines[0]
    for machine in machines[1:]:
        one, other = machine.recording, host.recording
        if (one.big_endian, one.long_size) != (other.big_endian, other.long_size):
            raise UsageError(
                f"{machine.name} and {host.name} cannot be in one trace.dat: they differ in byte order or in the size"
                " of a long (--attach writes a file for each, .pftrace takes both)"
            )


def _options(host: Recording) -> list[RawOption]:
    options = [text_option(Option.VERSION, f"counterpoint {__version__}")]
    if host.options.uname:
        options.append(text_option(Option.UNAME, host.options.uname))
    if (scale := host.options.tsc2nsec) is not None:
        options.append(tsc2nsec_option(scale.mult, scale.shift, big_endian=host.big_endian))
    return options


def _instances(parts: list[MachinePages]) -> list[BufferPages]:
    """All buffers but the host's top one; instances of a machine have its name before theirs."""
    out: list[BufferPages] = []
    taken = {""}
    for index, part in enumerate(parts):
        for buffer in part.buffers:
            if not index and not buffer:
                continue
            name = ":".join(filter(None, [part.machine.name if index else "", buffer]))
            while name in taken:
                name += "'"
            taken.add(name)
            out.append(BufferPages(name, part.cpus(buffer)))
    return out
