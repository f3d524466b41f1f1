"""ftrace's own text: ``trace`` and ``trace_pipe`` of tracefs, and what ``trace-cmd report`` prints of one recording.

    comm-pid  [cpu] flags  seconds.microseconds: event: fields      (kernel/trace/trace_output.c: trace_print_context)
    comm-pid  [cpu]        ticks: event:   fields                   (x86-tsc and other counters)

What a stamp stands for: the kernel rounds to the nearest microsecond (ns2usecs() in kernel/trace/trace.c), and so does
trace-cmd but for a libtraceevent of 2019, which cut off (print_event_time()). Nine digits (``report -t``) and ticks are
whole. No text names its clock: a file ``trace_clock`` beside it may, as in tracefs, else it has to be said.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from counterpoint.clocks.counter import I64, U64
from counterpoint.errors import BadFileError
from counterpoint.traces.container import MAX_CPUS
from counterpoint.traces.contents import Contents, Losses, Stream
from counterpoint.traces.making import Kind, make_payloads
from counterpoint.traces.options import selected_clock
from counterpoint.traces.text_fields import fields_of, system_of

UNKNOWN_NS, UNKNOWN_TICKS = "unknown", "unknown counter"
"""Clocks of stamps in ns, and in ticks, that nobody named."""

ROUNDED, ROUNDED_OR_CUT = (500, 499), (500, 999)
"""By how much a true stamp may lie before and after one of whole microseconds, in ns: the kernel's, and any tool's."""

MAX_KINDS = 1 << 14

_EVENT = re.compile(
    rb"""^[ ]*(?P<comm>[^\n]{0,40}?)-(?P<pid>\d{1,10})[ ]+
    (?:\([ \d-]{1,12}\)[ ]+)?                                   # the thread group, with option record-tgid
    (?:\[(?P<cpu>\d{1,5})\]|(?P<short>\d{1,5}))[ ]*             # short: trace-cmd report -l
    (?:[^\s\d][^\s:]{0,9}[ ]+)?                                 # latency flags
    (?P<whole>\d{1,20})(?:\.(?P<part>\d{6}|\d{9}))?:[ ]+
    (?:\(\+\d+\)[ ]+)?                                          # report --ts-diff
    (?:(?P<name>[A-Za-z_][\w.-]{0,120}):[ ]*)?(?P<text>[^\n]*)$
    |^[ ]*CPU:(?P<lost>\d{1,5})[ ]\[(?:LOST[ ])?(?:(?P<count>\d{1,18})[ ])?EVENTS(?:[ ]DROPPED)?\]
    |^\#[ ]entries-in-buffer/entries-written:[ ](?P<kept>\d{1,20})/(?P<written>\d{1,20})
    |^(?P<other>[ ]*[^\s\#][^\n]*)$""",
    re.MULTILINE | re.VERBOSE,
)
_EXPECTED = re.compile(rb"cpus=\d|version = |CPU \d+ is empty| *=> | *<[\w ]+>$|\s*$")
"""Lines that are no events, and need not be: trace-cmd's head, stack traces."""
_EDGE = re.compile(rb"kvm_entry|kvm_exit|sched_switch|^ *CPU:\d")
"""What a line that cannot be read must not have, or something is missing there."""


def fits(_: Path, head: bytes) -> bool:
    """Whether the first bytes of a file are such text."""
    if b"\0" in head:
        return False
    return head.startswith(b"# tracer:") or any(m["pid"] is not None for m in _EVENT.finditer(head))


@dataclass(slots=True)
class _Lines:
    """The events' lines, in file order: columns of numbers and of places in the file."""

    cpu: array[int] = field(default_factory=lambda: array("i"))
    pid: array[int] = field(default_factory=lambda: array("i"))
    whole: array[int] = field(default_factory=lambda: array("Q"))
    part: array[int] = field(default_factory=lambda: array("q"))
    kind: array[int] = field(default_factory=lambda: array("H"))
    begin: array[int] = field(default_factory=lambda: array("q"))
    end: array[int] = field(default_factory=lambda: array("q"))
    names: dict[bytes, int] = field(default_factory=dict)
    comms: dict[int, bytes] = field(default_factory=dict)
    lost: list[tuple[int, int, int]] = field(default_factory=list)
    digits: set[int] = field(default_factory=set)
    overwritten: bool = False
    unread: int = 0
    prefixed: bool = True


def read(path: str) -> Contents:
    """Read the text at ``path``; BadFileError where it cannot be."""
    try:
        raw = Path(path).read_bytes()
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    lines = _lines(path, raw)
    warnings = []
    if lines.unread:
        warnings.append(f"{path}: {lines.unread} lines are no events that are understood, and left out")
    cpu = np.array(lines.cpu, np.int64)
    order = np.argsort(cpu, kind="stable")
    stamp, clock, rounding = _stamps(path, raw, lines)
    kinds = _kinds(raw, lines, order)
    pid = np.array(lines.pid, np.int32)[order]
    made = make_payloads(kinds, pid, np.frombuffer(raw, np.uint8))
    numbers, first = np.unique(cpu[order], return_index=True)
    ends = np.append(first, len(cpu))
    streams = tuple(Stream("", int(c), int(a), int(b)) for c, a, b in zip(numbers, ends[:-1], ends[1:], strict=True))
    return Contents(
        path=path,
        format="ftrace text",
        clock=clock,
        cpus=max(s.cpu + 1 for s in streams),
        data=made.data,
        stamp=stamp[order],
        offset=made.offset,
        length=made.length,
        streams=streams,
        losses=_losses(lines, streams, order),
        format_texts=made.format_texts,
        comms=lambda: {p: c.decode("utf-8", "replace") for p, c in lines.comms.items() if p and c != b"<...>"},
        warnings=warnings,
        rounding=rounding,
        has_fields=False,
    )


def _lines(path: str, raw: bytes) -> _Lines:
    """Find the events. A line is looked at once, and kept as numbers."""
    out = _Lines()
    for match in _EVENT.finditer(raw):
        pid = match["pid"]
        if pid is None:
            _other(out, match)
            continue
        number, cpu, whole = int(pid), int(match["cpu"] or match["short"]), int(match["whole"])
        part = match["part"]
        if number >= 1 << 31 or cpu >= MAX_CPUS or whole >= (1 << 64 if part is None else 1 << 33):
            out.unread += 1
            out.lost.append((len(out.pid), -1, -1))
            continue
        name = match["name"] or (b"function" if b" <-" in match["text"] else b"text")
        kind = out.names.setdefault(name, len(out.names))
        if kind >= MAX_KINDS:
            raise BadFileError(f"more than {MAX_KINDS} names of events: is this ftrace's text?", path, match.start())
        comm = match["comm"]
        out.prefixed &= b": " in comm
        if number not in out.comms:
            out.comms[number] = comm.rsplit(b": ", 1)[-1].strip()
        out.pid.append(number)
        out.cpu.append(cpu)
        out.whole.append(whole)
        out.part.append(-1 if part is None else int(part))
        if part is not None:
            out.digits.add(len(part))
        out.kind.append(kind)
        begin, end = match.span("text")
        out.begin.append(begin)
        out.end.append(end)
    if not out.pid:
        raise BadFileError("no event is in it", path)
    if out.prefixed:
        raise BadFileError("its lines are of several machines: make a report of each recording alone", path)
    return out


def _other(out: _Lines, match: re.Match[bytes]) -> None:
    if match["lost"] is not None:
        out.lost.append((len(out.pid), int(match["lost"]), int(match["count"] or -1)))
    elif match["kept"] is not None:
        out.overwritten = match["kept"] != match["written"]
    elif not _EXPECTED.match(match["other"]):
        out.unread += 1
        if _EDGE.search(match["other"]):
            # of whichever CPU: a window may begin or end there
            out.lost.append((len(out.pid), -1, -1))


def _stamps(path: str, raw: bytes, lines: _Lines) -> tuple[U64, str, tuple[int, int]]:
    """The stamps in file order, their clock, and by how much the true ones may lie before and after them."""
    whole, part = np.array(lines.whole, np.uint64), np.array(lines.part, np.int64)
    clock = _clock_beside(path)
    if not lines.digits:
        return whole, clock or UNKNOWN_TICKS, (0, 0)
    if len(lines.digits) > 1:
        raise BadFileError("some of its stamps have six digits, some nine", path)
    unit = np.uint64(1000 if lines.digits == {6} else 1)
    # before the first second trace-cmd leaves the point out
    early = part < 0
    if (whole[early] >= np.uint64(10**9)).any():
        raise BadFileError("some of its stamps have a point, and others cannot be meant to be less than a second", path)
    stamp = np.where(early, whole * unit, whole * np.uint64(10**9) + part.clip(0).astype(np.uint64) * unit)
    rounding = (0, 0) if unit == 1 else ROUNDED if raw.startswith(b"# tracer:") else ROUNDED_OR_CUT
    return stamp, clock or UNKNOWN_NS, rounding


def _clock_beside(path: str) -> str:
    """What a file ``trace_clock`` in the same folder says; "" where there is none."""
    try:
        with Path(path).absolute().with_name("trace_clock").open("rb") as file:
            text = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""
    return selected_clock(text) if "[" in text else ""


def _kinds(raw: bytes, lines: _Lines, order: I64) -> list[Kind]:
    """The events by name, with what can be read of their fields; rows as ``order`` puts them."""
    kind = np.array(lines.kind, np.int64)[order]
    begin, end = np.array(lines.begin, np.int64)[order], np.array(lines.end, np.int64)[order]
    by_kind = np.argsort(kind, kind="stable")
    edges = np.searchsorted(kind[by_kind], np.arange(len(lines.names) + 1))
    out = []
    for number, name in enumerate(lines.names):
        rows = by_kind[edges[number] : edges[number + 1]]
        spans = list(zip(begin[rows].tolist(), end[rows].tolist(), strict=True))
        shown = name.decode()
        integers, texts = fields_of(shown, raw, spans)
        out.append(Kind(system_of(shown), shown, rows, (begin[rows], (end - begin)[rows]), integers, texts))
    return out


def _losses(lines: _Lines, streams: tuple[Stream, ...], order: I64) -> Losses:
    """Where events were lost: as marked, and where the ring was overwritten what came before each CPU's first."""
    found = [(i, s.first, -1) for i, s in enumerate(streams)] if lines.overwritten else []
    number = {s.cpu: i for i, s in enumerate(streams)}
    for before, cpu, count in lines.lost:
        for one in (number[cpu],) if cpu in number else range(len(streams)) if cpu < 0 else ():
            stream = streams[one]
            # the rows of a stream are in file order
            row = stream.first + int(np.searchsorted(order[stream.first : stream.last], before))
            found.append((one, row, count))
    columns = np.array(sorted(set(found)), np.int64).reshape(-1, 3)
    return Losses(columns[:, 0], columns[:, 1], columns[:, 2])
