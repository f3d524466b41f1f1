"""Options of a trace.dat file to bytes: the inverse of ``options``.

Layouts: trace-cmd, lib/trace-cmd/trace-output.c and trace-timesync.c; see ``options`` for what reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from counterpoint.dat_layout import Option
from counterpoint.traces.options import GuestOption, TimeShift

RawOption = tuple[int, bytes]
"""An option's id and data."""

CLOCKS = ("local", "global", "counter", "uptime", "perf", "mono", "mono_raw", "boot", "tai")


def pack(codes: str, *values: int, big_endian: bool = False) -> bytes:
    """Pack numbers (``struct`` codes without an order; values wrap) in the file's byte order."""
    wrapped = [value % (1 << 8 * struct.calcsize("=" + code)) for code, value in zip(codes, values, strict=True)]
    return struct.pack((">" if big_endian else "<") + codes.upper(), *wrapped)


def file_text(text: str) -> bytes:
    """Text as it stands in a file, ended by a zero; what was not UTF-8 in the name of a file stays as it was."""
    return text.encode("utf-8", "surrogateescape") + b"\0"


def text_option(option: Option, text: str) -> RawOption:
    """An option whose data is text, such as UNAME."""
    return option, file_text(text)


def clock_option(clock: str, others: Iterable[str] = CLOCKS) -> RawOption:
    """TRACECLOCK: the text of tracing/trace_clock, with ``clock`` selected."""
    names = [*(name for name in others if name != clock), clock]
    return text_option(Option.TRACECLOCK, " ".join(f"[{n}]" if n == clock else n for n in names) + "\n")


def trace_id_option(trace_id: int, *, big_endian: bool = False) -> RawOption:
    """TRACEID."""
    return Option.TRACEID, pack("Q", trace_id, big_endian=big_endian)


def guest_option(guest: GuestOption, *, big_endian: bool = False) -> RawOption:
    """GUEST: in a host's file, who ran a guest's CPUs."""
    data = file_text(guest.name) + pack("QI", guest.trace_id, len(guest.vcpus), big_endian=big_endian)
    return Option.GUEST, data + b"".join(pack("II", cpu, tid, big_endian=big_endian) for cpu, tid in guest.vcpus)


def tsc2nsec_option(mult: int, shift: int, *, big_endian: bool = False) -> RawOption:
    """TSC2NSEC: the perf page's factors; trace-cmd stores an offset of 0."""
    return Option.TSC2NSEC, pack("IIQ", mult, shift, 0, big_endian=big_endian)


def time_shift_option(shift: TimeShift, *, big_endian: bool = False) -> RawOption:
    """TIME_SHIFT: in a guest's file, what to add to its stamps; the block of fractions where ``has_frac``."""
    data = pack("QII", shift.peer_trace_id, shift.flags, len(shift.cpus), big_endian=big_endian)
    for samples in shift.cpus:
        data += pack("I", len(samples), big_endian=big_endian)
        for column in ("time", "offset", "scaling"):
            data += b"".join(pack("Q", getattr(sample, column), big_endian=big_endian) for sample in samples)
    if shift.has_frac:
        data += b"".join(pack("Q", s.frac, big_endian=big_endian) for samples in shift.cpus for s in samples)
    return Option.TIME_SHIFT, data
