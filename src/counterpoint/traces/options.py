"""The options of a trace.dat file that bear on time and identity, decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from counterpoint.dat_layout import Option
from counterpoint.errors import BadFileError
from counterpoint.traces.container import MAX_CPUS, Container
from counterpoint.traces.cursor import Cursor

INTERPOLATE = 1
"""TIME_SHIFT flag: the offset is to be interpolated between samples (the "ptp" protocol's)."""

MAX_VCPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class TimeSample:
    """One sample of a TIME_SHIFT: at guest stamp ``time``, ``offset`` is to be added to reach host time.

    ``scaling`` / 2**``frac`` is the ratio the recorder stored; trace-cmd stores an unscaled guest as 1, 0.
    """

    time: int
    offset: int
    scaling: int
    frac: int


@dataclass(frozen=True, slots=True)
class TimeShift:
    """The TIME_SHIFT option of a guest's file: ``cpus[c]`` holds guest CPU c's samples, by time."""

    peer_trace_id: int
    flags: int
    cpus: tuple[tuple[TimeSample, ...], ...]
    has_frac: bool


@dataclass(frozen=True, slots=True)
class GuestOption:
    """A GUEST option of a host's file: ``vcpus`` pairs guest CPU with host thread (-1: not known)."""

    name: str
    trace_id: int
    vcpus: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Tsc2Nsec:
    """ns = (ticks * mult) >> shift; ``offset`` is stored by trace-cmd as 0 and not used by its reader."""

    mult: int
    shift: int
    offset: int


@dataclass(slots=True)
class Options:
    """What the options say; a field keeps its default where the file has none."""

    clock: str = ""
    trace_id: int | None = None
    date_offset_us: int | None = None
    ts_offset: int | None = None
    cpu_count: int | None = None
    uname: str = ""
    recorder: str = ""
    time_shift: TimeShift | None = None
    guests: list[GuestOption] = field(default_factory=list)
    tsc2nsec: Tsc2Nsec | None = None
    cpu_stats: list[str] = field(default_factory=list)


def decode_options(container: Container) -> Options:
    """Decode all options of a file; one that cannot be read adds a warning and is left out."""
    out = Options()
    for raw in container.options:
        cursor = Cursor(raw.data, container.path, big_endian=container.big_endian, base=raw.offset)
        try:
            _decode(raw.id, cursor, out)
        except (BadFileError, ValueError) as err:
            container.warnings.append(
                str(err)
                if isinstance(err, BadFileError)
                else f"{container.path}, byte {raw.offset}: option {raw.name} is not understood ({err})"
            )
    return out


def selected_clock(text: str) -> str:
    """Return the clock in brackets of a ``trace_clock`` file's text, "local" where none is marked."""
    match = re.search(r"\[([^\]]+)\]", text)
    return match[1] if match else text.strip() or "local"


def _text(cursor: Cursor) -> str:
    return bytes(cursor.data).split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _decode(option: int, cursor: Cursor, out: Options) -> None:
    match option:
        case Option.TRACECLOCK:
            out.clock = selected_clock(_text(cursor))
        case Option.TRACEID:
            out.trace_id = cursor.uint(8, "the trace id")
        case Option.DATE:
            out.date_offset_us = int(_text(cursor), 0)
        case Option.OFFSET:
            out.ts_offset = int(_text(cursor), 0)
        case Option.CPUCOUNT:
            count = cursor.uint(4, "the CPU count")
            if count > MAX_CPUS:
                raise cursor.error(f"{count} CPUs are more than {MAX_CPUS}")
            out.cpu_count = count
        case Option.UNAME:
            out.uname = _text(cursor)
        case Option.VERSION:
            out.recorder = _text(cursor)
        case Option.CPUSTAT:
            out.cpu_stats.append(_text(cursor))
        case Option.TIME_SHIFT:
            out.time_shift = _time_shift(cursor)
        case Option.GUEST:
            out.guests.append(_guest(cursor))
        case Option.TSC2NSEC:
            mult, shift = cursor.uint(4, "TSC2NSEC"), cursor.uint(4, "TSC2NSEC")
            if not mult or shift > 63:
                raise cursor.error(f"TSC2NSEC has mult {mult}, shift {shift}")
            out.tsc2nsec = Tsc2Nsec(mult, shift, cursor.uint(8, "TSC2NSEC"))
        case _:
            pass


def _time_shift(cursor: Cursor) -> TimeShift:
    """Layout: trace-cmd, lib/trace-cmd/trace-timesync.c; the fraction block is written since 2.9.x."""
    peer = cursor.uint(8, "TIME_SHIFT")
    flags = cursor.uint(4, "TIME_SHIFT")
    cpus = cursor.uint(4, "TIME_SHIFT")
    if cpus > cursor.left // 4:
        raise cursor.error(f"TIME_SHIFT claims {cpus} CPUs, it has room for {cursor.left // 4}")
    columns = []
    for _ in range(cpus):
        count = cursor.uint(4, "TIME_SHIFT")
        if count > cursor.left // 24:
            raise cursor.error(f"TIME_SHIFT claims {count} samples, it has room for {cursor.left // 24}")
        times = [cursor.uint(8, "TIME_SHIFT") for _ in range(count)]
        offsets = [cursor.sint(8, "TIME_SHIFT") for _ in range(count)]
        scalings = [cursor.uint(8, "TIME_SHIFT") for _ in range(count)]
        columns.append((times, offsets, scalings))
    has_frac = cursor.left >= 8
    shift = []
    for times, offsets, scalings in columns:
        fracs = [cursor.uint(8, "TIME_SHIFT") if cursor.left >= 8 else 0 for _ in times]
        if any(frac > 63 for frac in fracs):
            raise cursor.error(f"TIME_SHIFT has a fraction of {max(fracs)} bits")
        samples: list[TimeSample] = []
        for row in sorted(zip(times, offsets, scalings, fracs, strict=True)):
            if not samples or samples[-1].time != row[0]:
                samples.append(TimeSample(*row))
        shift.append(tuple(samples))
    return TimeShift(peer, flags, tuple(shift), has_frac)


def _guest(cursor: Cursor) -> GuestOption:
    name = cursor.string("GUEST")
    trace_id = cursor.uint(8, "GUEST")
    count = cursor.uint(4, "GUEST")
    if count > min(MAX_VCPUS, cursor.left // 8):
        raise cursor.error(f"GUEST claims {count} CPUs, it has room for {cursor.left // 8}")
    vcpus = tuple((cursor.uint(4, "GUEST"), cursor.sint(4, "GUEST")) for _ in range(count))
    return GuestOption(name, trace_id, vcpus)
