"""A recording: one machine's trace, its events as columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.dat_layout import Option
from counterpoint.errors import BadFileError
from counterpoint.traces import compression
from counterpoint.traces.columns import EventBatch, int_column
from counterpoint.traces.container import (
    MAX_STREAMS,
    MAX_SUB_BUFFER,
    BufferData,
    Container,
    CpuData,
    open_container,
)
from counterpoint.traces.cursor import Cursor
from counterpoint.traces.formats import EventFormat, Field, FormatTable, parse_field
from counterpoint.traces.options import Options, decode_options
from counterpoint.traces.ring import Scan, scan_pages, unaligned
from counterpoint.traces.write_pages import Batch, gathered

MIN_INFLATED, MAX_RATIO = 1 << 28, 128
"""Ring-buffer data that a file may inflate to: ``MAX_RATIO`` times its size (5 to 20 are usual), or that many bytes."""

_COMMON_TYPE = Field("common_type", "unsigned short common_type", 0, 2, False, "int", 2)
_COMMON_PID = Field("common_pid", "int common_pid", 4, 4, True, "int", 4)


@dataclass(frozen=True, slots=True)
class Stream:
    """One CPU of one buffer: its events are rows ``first`` to ``last`` (exclusive) of the recording."""

    buffer: str
    cpu: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Lost events: ``count[i]`` i64 (-1: not counted) were lost on ``stream[i]`` just before row ``row[i]``."""

    stream: I64
    row: I64
    count: I64

    @property
    def total(self) -> int:
        """Events known to be lost; marks without a count add nothing."""
        return int(np.maximum(self.count, 0).sum())


class Recording:
    """The events of one machine, stream by stream, in the order they were recorded.

    Columns over all n events (``len(recording)``): ``stamp`` u64 raw trace-clock values (ticks of ``x86-tsc``,
    ns of the other clocks), ``event_id`` u16, ``pid`` i32, ``stream_of`` u16 index into ``streams``. Other
    fields are decoded when asked for (``column``, ``batch``). Raises BadFileError from ``open``.
    """

    def __init__(self, container: Container) -> None:
        """Scan the ring-buffer data of ``container``; use ``Recording.open``."""
        self._container = container
        self.path = Path(container.path)
        self.name = self.path.stem
        self.warnings = container.warnings
        self.options: Options = decode_options(container)
        self.warnings += _unmarked_losses(container.path, self.options.cpu_stats)
        self._header_fields = _header_page(container)
        self.long_size = self._kernel_long_size()
        self._data: npt.NDArray[np.uint8]
        self._data, scan, self.streams, self.losses = self._load()
        self.stamp: U64 = scan.stamp
        self._offset: I64 = scan.offset
        self._length = scan.length
        self.sub_buffer_first_row: I64 = scan.page_row[:-1]
        lengths = np.array([s.last - s.first for s in self.streams], np.int64)
        self.stream_of = np.repeat(np.arange(len(self.streams), dtype=np.uint16), lengths)
        some = next(iter(self.formats.values()), None)
        common = {f.name: f for f in some.common} if some else {}
        type_field = common.get("common_type", _COMMON_TYPE)
        pid_field = common.get("common_pid", _COMMON_PID)
        self.event_id = self._ints(type_field, self._offset, self._length).astype(np.uint16, copy=False)
        self.pid = self._ints(pid_field, self._offset, self._length).astype(np.int32, copy=False)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Recording:
        """Read the trace.dat file at ``path``; BadFileError where it cannot be."""
        return cls(open_container(path))

    @cached_property
    def base(self) -> int:
        """What signed distances between its stamps are counted from: the lowest stamp."""
        return int(self.stamp.min()) if len(self.stamp) else 0

    @cached_property
    def lost_after(self) -> I64:
        """After which stamps, counted from the base, events of some CPU were lost: i64, in order.

        What was lost before a CPU's first event has no such stamp: see ``unseen_until``.
        """
        first = np.array([s.first for s in self.streams], np.int64)
        row = self.losses.row[self.losses.row > first[self.losses.stream]]
        return np.sort(relative(self.stamp[row - 1], self.base))

    @cached_property
    def unseen_until(self) -> int:
        """Until which stamp, counted from the base, some CPU's events may all be missing; 2**62 where one has none."""
        if len({s.cpu for s in self.streams if s.last > s.first}) < self.cpus:
            return 1 << 62
        first = np.array([s.first for s in self.streams], np.int64)
        row = self.losses.row[self.losses.row == first[self.losses.stream]]
        return int(relative(self.stamp[row], self.base).max(initial=0))

    def __len__(self) -> int:
        """Number of events."""
        return len(self.stamp)

    def __repr__(self) -> str:
        """Name, clock and size."""
        return f"<Recording {self.name!r} {self.clock} {len(self)} events>"

    # -- what the file is

    @property
    def container(self) -> Container:
        """The file it was read from."""
        return self._container

    @property
    def version(self) -> int:
        """The trace.dat version, 6 or 7."""
        return self._container.version

    @property
    def compression(self) -> str:
        """The name of the file's compression ("none" for version 6)."""
        return self._container.compression

    @property
    def big_endian(self) -> bool:
        """Byte order of the recorded machine."""
        return self._container.big_endian

    @property
    def option_names(self) -> list[str]:
        """The names of the file's options, in file order."""
        return [option.name for option in self._container.options]

    @property
    def buffers(self) -> list[BufferData]:
        """The file's buffers: the top one first, then instances."""
        return self._container.buffers

    @cached_property
    def sub_buffer_size(self) -> int:
        """Bytes of a sub-buffer, the largest of all buffers."""
        return max((self._sub_buffer_size(b) for b in self.buffers), default=self._container.page_size)

    @cached_property
    def clock(self) -> str:
        """The trace clock of the stamps: the option's, else the top buffer's, else "local" (ftrace's default)."""
        clock = self.options.clock or next((b.clock for b in self.buffers if b.clock), "") or "local"
        # a pseudo clock: x86-tsc stamps with the factors to ns beside them
        return "x86-tsc" if clock == "tsc2nsec" else clock

    @property
    def unit(self) -> str:
        """Unit of the stamps: "ticks" of the counter for ``x86-tsc`` and other raw counters, else "ns"."""
        return "ticks" if self.clock in ("x86-tsc", "ppc-tb", "counter") else "ns"

    @cached_property
    def cpus(self) -> int:
        """CPUs of the recorded machine: the most that any part of the file speaks of."""
        seen = [s.cpu + 1 for s in self.streams]
        return max([self.options.cpu_count or 0, self._container.cpus_in_header, *seen])

    # -- events

    @cached_property
    def formats(self) -> FormatTable:
        """The file's event formats by event id."""
        return FormatTable(_format_texts(self._container), self.long_size)

    def format_named(self, system: str, name: str) -> EventFormat | None:
        """Return the format of event ``system:name``, or None."""
        return self.formats.named(system, name)

    @cached_property
    def _rows_by_id(self) -> tuple[I64, I64]:
        order = np.argsort(self.event_id, kind="stable")
        return order, np.searchsorted(self.event_id[order], np.arange(0x10001))

    def rows(self, event: EventFormat | int | None) -> I64:
        """Rows i64 of all events of one kind, in row order; none where the file has no such event."""
        if event is None:
            return np.zeros(0, np.int64)
        event_id = event if isinstance(event, int) else event.id
        order, starts = self._rows_by_id
        return order[starts[event_id] : starts[event_id + 1]]

    def counts_by_id(self) -> dict[int, int]:
        """Number of events by event id, those that occur."""
        counts = np.bincount(self.event_id, minlength=1)
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}

    def event_name(self, event_id: int) -> str:
        """The event's name, or ``[UNKNOWN EVENT id]`` where the file has no format for it."""
        known = self.formats.get(event_id)
        return known.name if known else f"[UNKNOWN EVENT {event_id}]"

    def column(self, event: EventFormat, field: str, rows: I64) -> npt.NDArray[np.integer]:
        """Decode an integer field of ``event`` at ``rows``; KeyError where it has no such integer field.

        The dtype is the field's own size and sign. A record too short for the field gives 0.
        """
        found = event.field(field)
        if found is None or found.kind != "int":
            raise KeyError(f"{event.system}:{event.name} has no integer field {field!r}")
        return self._ints(found, self._offset[rows], self._length[rows])

    def batch(self, event: EventFormat, rows: I64) -> EventBatch:
        """Columns of the events at ``rows``, all of the kind ``event``."""
        return EventBatch(self._data, event, self._offset[rows], self._length[rows], self.big_endian)

    def payload(self, row: int) -> bytes:
        """The bytes of one record."""
        start = int(self._offset[row])
        return self._data[start : start + int(self._length[row])].tobytes()

    def payloads(self, rows: I64) -> list[Batch]:
        """The bytes of the records at ``rows`` i64[n], by length: places among ``rows``, and a copy of the payloads."""
        return gathered(self._data, self._offset[rows], self._length[rows])

    # -- names

    @cached_property
    def cmdlines(self) -> dict[int, str]:
        """Command names by pid, as saved with the recording."""
        piece = self._container.piece(Option.CMDLINES)
        out = {}
        for line in piece[8:].split(b"\n"):
            pid, _, comm = line.partition(b" ")
            if pid.isdigit() and len(pid) <= 10:
                out[int(pid)] = comm.split(b"\0", 1)[0].decode("utf-8", "replace")
        return out

    def comm(self, pid: int) -> str:
        """The command name of ``pid``: "<idle>" for 0, "<...>" where the file does not say."""
        return "<idle>" if pid == 0 else self.cmdlines.get(pid, "<...>")

    def kallsyms(self) -> bytes:
        """The text of /proc/kallsyms as recorded (b"" where it was not)."""
        return self._container.piece(Option.KALLSYMS)[4:]

    def printk_formats(self) -> bytes:
        """The text of printk_formats as recorded."""
        return self._container.piece(Option.PRINTK)[4:]

    # -- loading

    def _ints(self, field: Field, offset: I64, length: npt.NDArray[np.int32]) -> npt.NDArray[np.integer]:
        return int_column(self._data, field, offset, length, self.big_endian)

    def _kernel_long_size(self) -> int:
        """Size of the kernel's long: that of the page header's commit word, else the file's."""
        size = self._header_fields.get("commit", (0, 0))[1]
        return size if size in (4, 8) else self._container.long_size

    def _sub_buffer_size(self, buffer: BufferData) -> int:
        """Version 6 files do not name the sub-buffer size; the page header's data field does."""
        offset, size = self._header_fields.get("data", (0, 0))
        whole = offset + size
        if self.version == 6 and self._container.page_size < whole <= MAX_SUB_BUFFER and whole & (whole - 1) == 0:
            return whole
        return buffer.sub_buffer_size

    def _load(self) -> tuple[npt.NDArray[np.uint8], Scan, tuple[Stream, ...], Losses]:
        container = self._container
        compressed = any(b.compressed for b in container.buffers)
        parts: list[npt.NDArray[np.uint8]] = []
        at = 0
        whole = len(container.mapped)
        self._budget = max(MIN_INFLATED, MAX_RATIO * whole) if compressed else whole
        self._overlapping: list[int] = []
        pages: list[I64] = []
        ends: list[I64] = []
        spans: list[tuple[str, int, int]] = []  # buffer, cpu, pages
        for buffer in container.buffers:
            size = self._sub_buffer_size(buffer)
            for cpu in buffer.cpus:
                if compressed:
                    part = self._cpu_bytes(buffer, cpu)
                    parts.append(part)
                    begin, end = at, at + len(part)
                    at = end
                else:
                    begin, end = self._cpu_span(buffer, cpu)
                first = np.arange(begin, end, size, dtype=np.int64)
                last = np.minimum(first + size, end)
                pages.append(first)
                ends.append(last)
                spans.append((buffer.name, cpu.cpu, len(first)))
        if self._overlapping:
            self.warnings.append(
                f"{container.path}, byte {self._overlapping[0]}: the data of {len(self._overlapping)} CPUs is left out,"
                " it overlaps that of others"
            )
        data = np.concatenate(parts) if parts else container.mapped
        first = np.concatenate(pages) if pages else np.zeros(0, np.int64)
        last = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        if any(b.recovered for b in container.buffers) and not compressed:
            spans = _cut_recovered(data, first, self.big_endian)
        scan = scan_pages(data, first, last, long_size=self.long_size, big_endian=self.big_endian)
        damaged = np.flatnonzero(scan.damaged)
        if len(damaged):
            where = int(first[damaged[0]])
            place = f"inflated byte {where}" if compressed else f"byte {where}"
            self.warnings.append(
                f"{container.path}, {place}: {len(damaged)} sub-buffers are cut short or damaged"
                " (read up to the damage)"
            )
        streams, page_at = [], 0
        missed_stream, missed_row = [], []
        missed_count = []
        for index, (name, cpu_number, count) in enumerate(spans):
            rows = scan.page_row[page_at], scan.page_row[page_at + count]
            streams.append(Stream(name, cpu_number, int(rows[0]), int(rows[1])))
            lost = page_at + np.flatnonzero(scan.missed[page_at : page_at + count])
            missed_stream.append(np.full(len(lost), index, np.int64))
            missed_row.append(scan.page_row[lost])
            missed_count.append(scan.missed[lost])
            page_at += count
        losses = Losses(_join(missed_stream), _join(missed_row), _join(missed_count))
        return data, scan, tuple(streams), losses

    def _cpu_span(self, buffer: BufferData, cpu: CpuData) -> tuple[int, int]:
        """The bytes of the file that hold a plain CPU's data; says so where the file ends early."""
        begin, end, size = cpu.offset, cpu.offset + cpu.size, len(self._container.mapped)
        what = f"the data of CPU {cpu.cpu}{f' of buffer {buffer.name!r}' if buffer.name else ''}"
        if cpu.size and end > size:
            missing = end - max(size, begin)
            self.warnings.append(
                f"{self._container.path}, byte {size}: the file ends inside {what} ({missing} bytes missing)"
            )
        begin, end = min(begin, size), min(end, size)
        if end - begin > self._budget:
            self._overlapping.append(cpu.offset)
            return begin, begin
        self._budget -= end - begin
        return begin, end

    def _cpu_bytes(self, buffer: BufferData, cpu: CpuData) -> npt.NDArray[np.uint8]:
        """One CPU's data, inflated; up to the first chunk that cannot be."""
        container = self._container
        if not buffer.compressed:
            begin, end = self._cpu_span(buffer, cpu)
            return container.mapped[begin:end]
        if cpu.size == 0 and not buffer.recovered:
            return np.zeros(0, np.uint8)
        parts = []
        try:
            for offset, packed, plain in container.chunks(buffer, cpu):
                if plain > self._budget:
                    raise BadFileError(
                        f"the data of CPU {cpu.cpu} claims to hold {plain} bytes more, too many for such a file",
                        self.path,
                        offset,
                    )
                self._budget -= plain
                chunk = container.mapped[offset : offset + packed].tobytes()
                if len(chunk) < packed:
                    continue  # the walk itself says that the file ends here
                try:
                    parts.append(compression.inflate(container.compression, chunk, plain))
                except ValueError as err:
                    raise BadFileError(f"the data of CPU {cpu.cpu}: {err}", self.path, offset) from None
        except BadFileError as err:
            self.warnings.append(str(err))
        return np.frombuffer(b"".join(parts), np.uint8)


def _unmarked_losses(path: str, stats: Iterable[str]) -> list[str]:
    """Say which CPUs dropped events in a way that the pages do not show (per_cpu/cpuN/stats, trace.c)."""
    out = []
    for text in stats:
        numbers = dict(re.findall(r"^(CPU|commit overrun|dropped events): (\d{1,20})$", text, re.MULTILINE))
        lost = int(numbers.get("dropped events", 0)) + int(numbers.get("commit overrun", 0))
        if lost:
            out.append(
                f"{path}: CPU {numbers.get('CPU', '?')} dropped {lost} events without a mark (its buffer was full):"
                " what seems a gap may hide that a guest ran"
            )
    return out


def _join(parts: Sequence[npt.NDArray[np.int64]]) -> I64:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _cut_recovered(data: npt.NDArray[np.uint8], pages: I64, big_endian: bool) -> list[tuple[str, int, int]]:
    """Cut a stream of unknown CPUs where the sub-buffers' stamps step back: (buffer, cpu, pages)."""
    pages = pages[pages + 8 <= len(data)]
    stamps = unaligned(data, ">u8" if big_endian else "<u8")[pages]
    steps = np.flatnonzero(stamps[1:] < stamps[:-1])[: MAX_STREAMS - 1] + 1
    cuts = [0, *steps.tolist(), len(pages)]
    return [("", cpu, cuts[cpu + 1] - cuts[cpu]) for cpu in range(len(cuts) - 1)]


def _header_page(container: Container) -> dict[str, tuple[int, int]]:
    """(offset, size) of the fields of ``events/header_page``."""
    piece = container.piece(Option.HEADER_INFO)
    cursor = Cursor(piece, container.path, big_endian=container.big_endian)
    out: dict[str, tuple[int, int]] = {}
    try:
        if cursor.string("the page header", 64) != "header_page":
            return out
        text = cursor.take(cursor.uint(8, "the page header"), "the page header").decode("utf-8", "replace")
    except BadFileError:
        return out
    for line in text.splitlines():
        if found := parse_field(line, 8):
            out.setdefault(found.name, (found.offset, found.size))
    return out


def _format_texts(container: Container) -> Iterable[tuple[str, bytes]]:
    """(system, format text) of every event; what cannot be read ends the list with a warning."""
    for section in (Option.FTRACE_EVENTS, Option.EVENT_FORMATS):
        cursor = Cursor(container.piece(section), container.path, big_endian=container.big_endian)
        what = f"section {section.name}"
        if not cursor.left:
            continue
        try:
            systems = 1 if section == Option.FTRACE_EVENTS else cursor.uint(4, what)
            for _ in range(systems):
                system = "ftrace" if section == Option.FTRACE_EVENTS else cursor.string(what)
                for _ in range(cursor.uint(4, what)):
                    yield system, cursor.take(cursor.uint(8, what), what)
        except BadFileError as err:
            container.warnings.append(re.sub(r", byte \d+:", ":", str(err)))
