"""trace.dat to columns: the container's pieces put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64
from counterpoint.dat_layout import Option
from counterpoint.errors import BadFileError
from counterpoint.traces import compression
from counterpoint.traces.container import (
    MAX_STREAMS,
    MAX_SUB_BUFFER,
    BufferData,
    Container,
    CpuData,
    open_container,
)
from counterpoint.traces.contents import Contents, Losses, Stream
from counterpoint.traces.cursor import Cursor
from counterpoint.traces.formats import parse_field
from counterpoint.traces.options import decode_options
from counterpoint.traces.ring import Scan, scan_pages, unaligned

MIN_INFLATED, MAX_RATIO = 1 << 28, 128
"""Ring-buffer data that a file may inflate to: ``MAX_RATIO`` times its size (5 to 20 are usual), or that many bytes."""


def read(path: str) -> Contents:
    """Read the trace.dat file at ``path``; BadFileError where it cannot be."""
    container = open_container(path)
    warnings = container.warnings
    options = decode_options(container)
    warnings += _unmarked_losses(container.path, options.cpu_stats)
    reader = Reader(container)
    data, scan, streams, losses = reader.load()
    clock = options.clock or next((b.clock for b in container.buffers if b.clock), "") or "local"
    return Contents(
        path=container.path,
        format="trace.dat",
        # a pseudo clock: x86-tsc stamps with the factors to ns beside them
        clock="x86-tsc" if clock == "tsc2nsec" else clock,
        cpus=max([options.cpu_count or 0, container.cpus_in_header, *(s.cpu + 1 for s in streams)]),
        data=data,
        stamp=scan.stamp,
        offset=scan.offset,
        length=scan.length,
        streams=streams,
        losses=losses,
        format_texts=list(format_texts(container)),
        comms=lambda: saved_comms(container),
        big_endian=container.big_endian,
        long_size=reader.long_size,
        options=options,
        warnings=warnings,
        sub_buffer_first_row=scan.page_row[:-1],
        kallsyms=lambda: container.piece(Option.KALLSYMS)[4:],
        printk=lambda: container.piece(Option.PRINTK)[4:],
        container=container,
        sub_buffer_size=max(map(reader.sub_buffer_size, container.buffers), default=container.page_size),
    )


def saved_comms(container: Container) -> dict[int, str]:
    """Command names by pid, as trace.dat has them; none where it has no such piece."""
    piece = container.piece(Option.CMDLINES)
    out = {}
    for line in piece[8:].split(b"\n"):
        pid, _, comm = line.partition(b" ")
        if pid.isdigit() and len(pid) <= 10:
            out[int(pid)] = comm.split(b"\0", 1)[0].decode("utf-8", "replace")
    return out


class Reader:
    """Reads the ring-buffer data of one file."""

    def __init__(self, container: Container) -> None:
        """Look at the page header, for the sizes that are the recorded kernel's."""
        self._container = container
        self._header_fields = _header_page(container)
        self.long_size = self._kernel_long_size()
        self._compressed = any(b.compressed for b in container.buffers)
        whole = len(container.mapped)
        self._budget = max(MIN_INFLATED, MAX_RATIO * whole) if self._compressed else whole
        self._overlapping: list[int] = []

    def _kernel_long_size(self) -> int:
        """Size of the kernel's long: that of the page header's commit word, else the file's."""
        size = self._header_fields.get("commit", (0, 0))[1]
        return size if size in (4, 8) else self._container.long_size

    def sub_buffer_size(self, buffer: BufferData) -> int:
        """Version 6 files do not name the sub-buffer size; the page header's data field does."""
        offset, size = self._header_fields.get("data", (0, 0))
        whole = offset + size
        if (
            self._container.version == 6
            and self._container.page_size < whole <= MAX_SUB_BUFFER
            and whole & (whole - 1) == 0
        ):
            return whole
        return buffer.sub_buffer_size

    def load(self) -> tuple[npt.NDArray[np.uint8], Scan, tuple[Stream, ...], Losses]:
        """All CPUs of all buffers: the bytes, their records, the streams and what they lost."""
        container = self._container
        compressed = self._compressed
        parts: list[npt.NDArray[np.uint8]] = []
        at = 0
        pages: list[I64] = []
        ends: list[I64] = []
        spans: list[tuple[str, int, int]] = []  # buffer, cpu, pages
        for buffer in container.buffers:
            size = self.sub_buffer_size(buffer)
            for cpu in buffer.cpus:
                if compressed:
                    part = self.cpu_bytes(buffer, cpu)
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
            self._container.warnings.append(
                f"{container.path}, byte {self._overlapping[0]}: the data of {len(self._overlapping)} CPUs is left out,"
                " it overlaps that of others"
            )
        data = np.concatenate(parts) if parts else container.mapped
        first = np.concatenate(pages) if pages else np.zeros(0, np.int64)
        last = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        if any(b.recovered for b in container.buffers) and not compressed:
            spans = _cut_recovered(data, first, container.big_endian)
        scan = scan_pages(data, first, last, long_size=self.long_size, big_endian=container.big_endian)
        damaged = np.flatnonzero(scan.damaged)
        if len(damaged):
            where = int(first[damaged[0]])
            place = f"inflated byte {where}" if compressed else f"byte {where}"
            self._container.warnings.append(
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
            self._container.warnings.append(
                f"{self._container.path}, byte {size}: the file ends inside {what} ({missing} bytes missing)"
            )
        begin, end = min(begin, size), min(end, size)
        if end - begin > self._budget:
            self._overlapping.append(cpu.offset)
            return begin, begin
        self._budget -= end - begin
        return begin, end

    def cpu_bytes(self, buffer: BufferData, cpu: CpuData) -> npt.NDArray[np.uint8]:
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
                        container.path,
                        offset,
                    )
                self._budget -= plain
                chunk = container.mapped[offset : offset + packed].tobytes()
                if len(chunk) < packed:
                    continue  # the walk itself says that the file ends here
                try:
                    parts.append(compression.inflate(container.compression, chunk, plain))
                except ValueError as err:
                    raise BadFileError(f"the data of CPU {cpu.cpu}: {err}", container.path, offset) from None
        except BadFileError as err:
            self._container.warnings.append(str(err))
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


def format_texts(container: Container) -> Iterable[tuple[str, bytes]]:
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
