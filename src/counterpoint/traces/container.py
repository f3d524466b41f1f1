"""The container of a trace.dat file, versions 6 and 7: where each piece lies, and nothing of what it means.

Layout: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5), and trace-cmd's lib/trace-cmd/trace-input.c for what the
pages leave open. Version 6 is one linear sequence; version 7 is a chain of option sections that point to
all others. A truncated file is read as far as it goes: what is missing is said in ``warnings``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike, fspath

import numpy as np
import numpy.typing as npt

from counterpoint.dat_layout import MAGIC, Option
from counterpoint.errors import BadFileError
from counterpoint.traces import compression
from counterpoint.traces.cursor import Cursor

MAX_CPUS = 1 << 16
MAX_STREAMS = 1 << 16  # CPUs of all buffers together
MIN_SUB_BUFFER = 1 << 10
MAX_SUB_BUFFER = 1 << 20  # a sub-buffer's write index has 20 bits (ring_buffer.c RB_WRITE_MASK)
MAX_SECTION = 64 << 20  # what a compressed section may hold: the largest, kallsyms, has some 20 MB
MAX_OPTION_SECTIONS = 4096
MAX_EVENT_FORMATS = 1 << 16
SECTION_HEADER_SIZE = 16


SECTION_OPTIONS = frozenset(
    {
        Option.HEADER_INFO,
        Option.FTRACE_EVENTS,
        Option.EVENT_FORMATS,
        Option.KALLSYMS,
        Option.PRINTK,
        Option.CMDLINES,
    }
)


@dataclass(frozen=True, slots=True)
class RawOption:
    """One option as it stands in the file, at byte ``offset``."""

    id: int
    data: bytes
    offset: int

    @property
    def name(self) -> str:
        """The option's name, or its number where it is not known."""
        try:
            return Option(self.id).name
        except ValueError:
            return str(self.id)


@dataclass(frozen=True, slots=True)
class CpuData:
    """Where one CPU's ring-buffer data lies in the file (``size`` bytes, compressed or not)."""

    cpu: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class BufferData:
    """One trace buffer: the top one (``name`` "") or an instance. ``clock`` "" means the file's."""

    name: str
    clock: str
    sub_buffer_size: int
    compressed: bool
    cpus: tuple[CpuData, ...]
    recovered: bool = False
    """Found without the list of CPUs: one stream of plain data may hold several CPUs' pages."""


@dataclass(slots=True)
class Container:
    """The pieces of one file. ``mapped`` is the whole file."""

    path: str
    mapped: npt.NDArray[np.uint8]
    version: int = 0
    big_endian: bool = False
    long_size: int = 8
    page_size: int = 4096
    compression: str = "none"
    options: list[RawOption] = field(default_factory=list)
    buffers: list[BufferData] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cpus_in_header: int = 0
    has_latency_text: bool = False
    _pieces: dict[Option, tuple[int, int, bool]] = field(default_factory=dict)

    def piece(self, section: Option) -> bytes:
        """Return the inflated bytes of a section (b"" where the file has none or it is cut off)."""
        if section not in self._pieces:
            return b""
        offset, size, compressed = self._pieces[section]
        try:
            return self._block(offset, size, f"section {section.name}", compressed)
        except BadFileError as err:
            self.warnings.append(str(err))
            del self._pieces[section]  # said once
            return b""

    def cursor(self, offset: int, size: int | None = None) -> Cursor:
        """Return a cursor over ``size`` bytes (None: to the end of the file) from ``offset``."""
        end = len(self.mapped) if size is None else min(offset + size, len(self.mapped))
        if offset > len(self.mapped):
            raise BadFileError(f"the file ends before byte {offset}, which it points to", self.path, offset)
        return Cursor(self.mapped[offset:end].data, self.path, big_endian=self.big_endian, base=offset)

    def _block(self, offset: int, size: int, what: str, compressed: bool) -> bytes:
        cursor = self.cursor(offset, size)
        if not compressed:
            return cursor.take(size, what)
        packed = cursor.uint(4, what)
        plain = cursor.uint(4, what)
        if plain > MAX_SECTION:
            raise BadFileError(f"{what} claims to hold {plain} bytes: refused", self.path, offset)
        data = cursor.take(packed, what)
        try:
            return compression.inflate(self.compression, data, plain)
        except ValueError as err:
            raise BadFileError(f"{what}: {err}", self.path, offset) from None

    def chunks(self, buffer: BufferData, cpu: CpuData) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, compressed size, size) of each chunk of a compressed CPU's data, bounds checked."""
        # trace-cmd 3.1 leaves the count itself out of the size: the chunks tell where they end
        cursor = self.cursor(cpu.offset)
        what = f"the data of CPU {cpu.cpu}{f' of buffer {buffer.name!r}' if buffer.name else ''}"
        count = cursor.uint(4, what)
        for _ in range(count):
            packed = cursor.uint(4, what)
            plain = cursor.uint(4, what)
            yield cpu.offset + cursor.pos, packed, plain
            cursor.take(packed, what)


def map_file(path: str) -> npt.NDArray[np.uint8]:
    """The bytes of a file, mapped; BadFileError where there are none."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (memmap takes the open file)
            size = file.seek(0, 2)
            if size == 0:
                raise BadFileError("the file is empty", path, 0)
            file.seek(0)
            return np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None


def open_container(path: str | PathLike[str]) -> Container:
    """Map ``path`` and find its pieces; BadFileError where it is no readable trace.dat file."""
    name = fspath(path)
    container = Container(name, map_file(name))
    cursor = Cursor(container.mapped.data, name)
    if bytes(container.mapped[: len(MAGIC)]) != MAGIC:
        raise BadFileError("not a trace.dat file (it does not begin with the magic 17 08 44 'tracing')", name, 0)
    cursor.pos = len(MAGIC)
    version = cursor.string("the version", 16)
    if version not in ("6", "7"):
        raise BadFileError(f"trace.dat version {version!r} is not known (6 and 7 are)", name, len(MAGIC))
    container.version = int(version)
    endian = cursor.uint(1, "the byte order")
    if endian > 1:
        raise BadFileError(f"byte order {endian} is neither 0 (little) nor 1 (big)", name, cursor.pos - 1)
    container.big_endian = cursor.big_endian = endian == 1
    container.long_size = cursor.uint(1, "the size of a long")
    if container.long_size not in (4, 8):
        raise BadFileError(f"a long of {container.long_size} bytes is neither 4 nor 8", name, cursor.pos - 1)
    container.page_size = cursor.uint(4, "the page size")
    if not MIN_SUB_BUFFER <= container.page_size <= MAX_SUB_BUFFER:
        raise BadFileError(
            f"page size {container.page_size} is not in {MIN_SUB_BUFFER}..{MAX_SUB_BUFFER}", name, cursor.pos - 4
        )
    if container.version == 7:
        _read_v7(container, cursor)
    else:
        _read_v6(container, cursor)
    return container


def _options(cursor: Cursor, out: Container, ends_at_zero: bool) -> int:
    """Read option records; return the next section's offset (version 7's DONE), or 0."""
    while cursor.left >= 2:
        option_id = cursor.uint(2, "an option's id")
        if option_id == Option.DONE and ends_at_zero:
            return 0
        size = cursor.uint(4, "an option's size")
        offset = cursor.base + cursor.pos
        data = cursor.take(size, f"option {option_id}")
        if option_id == Option.DONE:
            return int.from_bytes(data[:8], "big" if out.big_endian else "little")
        out.options.append(RawOption(option_id, data, offset))
    return 0


def _read_v7(out: Container, cursor: Cursor) -> None:
    out.compression = cursor.string("the compression's name", 64)
    cursor.string("the compression's version", 64)
    next_offset = cursor.uint(8, "the offset of the options")
    if not compression.is_known(out.compression):
        raise BadFileError(f"compression {out.compression!r} is not known (none, zlib, zstd are)", out.path)
    seen: set[int] = set()
    lowest = 0
    while next_offset:
        if next_offset in seen or len(seen) >= MAX_OPTION_SECTIONS:
            out.warnings.append(f"{out.path}, byte {next_offset}: the option sections run in a circle; stopped")
            break
        seen.add(next_offset)
        try:
            section_id, compressed, size, body = _section(out, next_offset)
            if section_id != Option.DONE:
                raise BadFileError(
                    f"an options section was expected, section {section_id} is there", out.path, next_offset
                )
            data = out._block(body, size, "the options", compressed)
            lowest = body + size
            options = Cursor(data, out.path, big_endian=out.big_endian, base=body)
            next_offset = _options(options, out, ends_at_zero=False)
        except BadFileError as err:
            if not out.options and lowest == 0:
                raise
            out.warnings.append(str(err))
            break
    for option in out.options:
        where = Cursor(option.data, out.path, big_endian=out.big_endian, base=option.offset)
        try:
            if option.id in SECTION_OPTIONS:
                _add_piece(out, Option(option.id), where.uint(8, f"option {option.name}"))
            elif option.id == Option.BUFFER:
                out.buffers.append(_buffer_v7(out, where))
            elif option.id == Option.BUFFER_TEXT:
                out.has_latency_text = True
        except BadFileError as err:
            out.warnings.append(str(err))
    if not out.buffers and lowest and not out.has_latency_text:
        _recover_buffer(out, lowest)


def _section(out: Container, offset: int) -> tuple[int, bool, int, int]:
    """Read a version 7 section header: (id, compressed, size of the body, offset of the body)."""
    cursor = out.cursor(offset, SECTION_HEADER_SIZE)
    section_id = cursor.uint(2, "a section header")
    flags = cursor.uint(2, "a section header")
    cursor.uint(4, "a section header")
    size = cursor.uint(8, "a section header")
    return section_id, bool(flags & 1), size, offset + SECTION_HEADER_SIZE


def _add_piece(out: Container, section: Option, offset: int) -> None:
    section_id, compressed, size, body = _section(out, offset)
    if section_id != section:
        raise BadFileError(f"section {section.name} was expected, {section_id} is there", out.path, offset)
    out._pieces[section] = (body, size, compressed)


def _room_for(out: Container, cursor: Cursor, name: str, cpus: int) -> None:
    """Refuse a buffer's CPUs where a file claims more of them than any machine has."""
    if sum(len(b.cpus) for b in out.buffers) + cpus > MAX_STREAMS:
        raise cursor.error(f"buffer {name!r} and those before it claim more than {MAX_STREAMS} CPUs")


def _buffer_v7(out: Container, cursor: Cursor) -> BufferData:
    section = cursor.uint(8, "a buffer's offset")
    name = cursor.string("a buffer's name")
    clock = cursor.string("a buffer's clock")
    sub_buffer = cursor.uint(4, "a buffer's page size")
    count = cursor.uint(4, "a buffer's CPU count")
    if not MIN_SUB_BUFFER <= sub_buffer <= MAX_SUB_BUFFER:
        raise cursor.error(f"a sub-buffer of {sub_buffer} bytes is not in {MIN_SUB_BUFFER}..{MAX_SUB_BUFFER}")
    if count > min(MAX_CPUS, cursor.left // 20):
        raise cursor.error(f"buffer {name!r} claims {count} CPUs, the option has room for {cursor.left // 20}")
    cpus = []
    for _ in range(count):
        cpu = cursor.uint(4, "a CPU of a buffer")
        if cpu >= MAX_CPUS:
            raise cursor.error(f"buffer {name!r} claims a CPU {cpu}, more than {MAX_CPUS} are not read")
        offset = cursor.uint(8, "a CPU of a buffer")
        cpus.append(CpuData(cpu, offset, cursor.uint(8, "a CPU of a buffer")))
    _room_for(out, cursor, name, count)
    _, compressed, _, _ = _section(out, section)
    return BufferData(name, clock, sub_buffer, compressed, tuple(cpus))


def _recover_buffer(out: Container, offset: int) -> None:
    """Find the data of a version 7 file whose last options are cut off.

    The recorder writes the top buffer's section right behind the first options; each CPU's data begins at a
    page boundary, in CPU order. Compressed data tells its own length; plain data does not, and is taken as
    one stream that ``recording`` cuts where the sub-buffers' stamps step back.
    """
    try:
        section_id, compressed, size, body = _section(out, offset)
    except BadFileError:
        return
    if section_id != Option.BUFFER:
        return
    page = out.page_size
    start = -(-body // page) * page
    end = min(len(out.mapped), body + size if size else len(out.mapped))
    cpus: list[CpuData] = []
    if not compressed:
        if end > start:
            cpus.append(CpuData(0, start, end - start))
    else:
        while start < end and len(cpus) < MAX_CPUS:
            cpu = CpuData(len(cpus), start, 0)
            cpus.append(cpu)
            last = start
            try:
                for chunk, packed, _ in out.chunks(BufferData("", "", page, True, ()), cpu):
                    last = chunk + packed
            except BadFileError:
                break
            if last == start:
                break
            start = -(-last // page) * page
    if cpus:
        out.buffers.append(BufferData("", "", page, compressed, tuple(cpus), recovered=True))
        out.warnings.append(
            f"{out.path}, byte {offset}: the list of CPUs is cut off; data found behind the options is taken as"
            f" CPU 0 and on, in order"
        )


def _read_v6(out: Container, cursor: Cursor) -> None:
    start = cursor.pos
    try:
        _v6_pieces(out, cursor)
    except BadFileError as err:
        if Option.EVENT_FORMATS not in out._pieces:
            raise
        out.warnings.append(str(err))
        return
    if cursor.pos == start:  # pragma: no cover (a guard: pieces always advance)
        raise cursor.error("nothing was read")


def read_tables(path: str, mapped: npt.NDArray[np.uint8], begin: int, size: int) -> Container:
    """Find the tables of events in perf.data, which are those of a version 6 file and end where its CPUs would begin.

    Layout: tools/perf/util/trace-event-info.c and trace-event-read.c. BadFileError where they are not so.
    """
    out = Container(path, mapped)
    end = min(begin + size, len(mapped))
    cursor = Cursor(mapped[:end].data, path)
    cursor.pos = begin
    if cursor.take(len(MAGIC), "the event formats") != MAGIC:
        raise BadFileError("the event formats do not begin with the magic 17 08 44 'tracing'", path, begin)
    version = cursor.string("the version of the event formats", 16)
    out.big_endian = cursor.big_endian = cursor.uint(1, "the byte order") == 1
    out.long_size = cursor.uint(1, "the size of a long")
    cursor.uint(4, "the page size")
    if out.long_size not in (4, 8):
        raise BadFileError(f"a long of {out.long_size} bytes is neither 4 nor 8", path, cursor.pos)
    _v6_tables(out, cursor, with_comms=version not in ("0.4", "0.5"))
    return out


def _v6_pieces(out: Container, cursor: Cursor) -> None:
    """Walk the linear sequence of version 6."""
    _v6_tables(out, cursor, with_comms=True)
    cpus = cursor.uint(4, "the number of CPUs")
    if cpus > MAX_CPUS:
        raise cursor.error(f"{cpus} CPUs are more than {MAX_CPUS}")
    out.cpus_in_header = cpus
    kind = cursor.take(10, "the kind of the data")
    if kind.startswith(b"options"):
        _options(cursor, out, ends_at_zero=True)
        kind = cursor.take(10, "the kind of the data")
    for option in out.options:
        if option.id == Option.CPUCOUNT and len(option.data) >= 4:
            cpus = min(int.from_bytes(option.data[:4], "big" if out.big_endian else "little"), MAX_CPUS)
    if kind.startswith(b"latency"):
        out.has_latency_text = True
        return
    if not kind.startswith(b"flyrecord"):
        raise cursor.error(f"'flyrecord' was expected, {kind!r} is there")
    out.buffers.append(_buffer_v6(out, cursor, "", cpus))
    for option in out.options:
        if option.id != Option.BUFFER:
            continue
        where = Cursor(option.data, out.path, big_endian=out.big_endian, base=option.offset)
        try:
            offset = where.uint(8, "a buffer's offset")
            name = where.string("a buffer's name")
            if offset == 0:
                continue
            instance = out.cursor(offset)
            if not instance.take(10, "a buffer").startswith(b"flyrecord"):
                raise instance.error("'flyrecord' was expected")
            out.buffers.append(_buffer_v6(out, instance, name, cpus))
        except BadFileError as err:
            out.warnings.append(str(err))


def _v6_tables(out: Container, cursor: Cursor, *, with_comms: bool) -> None:
    """The pieces before the CPUs."""

    def piece(section: Option, skip: int) -> None:
        begin = cursor.pos
        cursor.pos = skip
        out._pieces[section] = (begin, skip - begin, False)

    def skip_sized(at: int, size_bytes: int, what: str) -> int:
        cursor.pos = at
        size = cursor.uint(size_bytes, what)
        if size > cursor.left:
            raise cursor.error(f"the file ends inside {what} ({size} bytes wanted, {cursor.left} there)")
        return cursor.pos + size

    begin = at = cursor.pos
    for label in (b"header_page\0", b"header_event\0"):
        cursor.pos = at
        if cursor.take(len(label), "the header") != label:
            raise cursor.error(f"{label[:-1].decode()!r} was expected")
        at = skip_sized(cursor.pos, 8, label[:-1].decode())
    cursor.pos = begin
    piece(Option.HEADER_INFO, at)

    begin = cursor.pos
    count = cursor.uint(4, "the number of ftrace events")
    for _ in range(min(count, MAX_EVENT_FORMATS)):
        cursor.pos = skip_sized(cursor.pos, 8, "an ftrace event's format")
    end, cursor.pos = cursor.pos, begin
    piece(Option.FTRACE_EVENTS, end)

    begin = cursor.pos
    systems = cursor.uint(4, "the number of event systems")
    for _ in range(min(systems, MAX_EVENT_FORMATS)):
        cursor.string("a system's name")
        count = cursor.uint(4, "a system's number of events")
        for _ in range(min(count, MAX_EVENT_FORMATS)):
            cursor.pos = skip_sized(cursor.pos, 8, "an event's format")
    end, cursor.pos = cursor.pos, begin
    piece(Option.EVENT_FORMATS, end)

    comms = ((Option.CMDLINES, 8),) if with_comms else ()
    for section, size_bytes in ((Option.KALLSYMS, 4), (Option.PRINTK, 4), *comms):
        begin = cursor.pos
        end = skip_sized(begin, size_bytes, f"section {section.name}")
        cursor.pos = begin
        piece(section, end)


def _buffer_v6(out: Container, cursor: Cursor, name: str, cpus: int) -> BufferData:
    if cpus > cursor.left // 16:
        out.warnings.append(str(cursor.error(f"{cpus} CPUs are claimed, the file has room for {cursor.left // 16}")))
        cpus = cursor.left // 16
    _room_for(out, cursor, name, cpus)
    table = []
    for cpu in range(cpus):
        offset = cursor.uint(8, "a CPU's offset")
        table.append(CpuData(cpu, offset, cursor.uint(8, "a CPU's size")))
    return BufferData(name, "", out.page_size, False, tuple(table))
