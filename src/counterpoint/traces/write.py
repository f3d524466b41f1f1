"""A trace.dat file, version 6 or 7, as trace-cmd writes it: what ``container`` reads.

Version 7: sections, found through a chain of option sections; any of them, and the ring-buffer data, may be compressed.
Version 6: one linear sequence, not compressed. CPUs are written one after the other as they come, so that only one
needs to be in memory.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from counterpoint.dat_layout import MAGIC, Option
from counterpoint.traces.write_options import RawOption, clock_option, file_text, pack

Compression = Literal["none", "zlib", "zstd"]

COMPRESSED = 1
CHUNK_PAGES = 10
"""Pages compressed at a time, as trace-cmd does."""

_SECTION = "HHIQ"
_HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    "\tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n"
    "\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)


@dataclass(frozen=True, slots=True)
class CpuPages:
    """One CPU's ring-buffer pages, u8[pages * page_size]."""

    cpu: int
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BufferPages:
    """A buffer beside the top one (a tracing instance): its name, and the pages of its CPUs as they come."""

    name: str
    data: Iterable[CpuPages]


@dataclass
class TraceFile:
    """What a trace.dat file holds besides its events.

    ``formats``: (system, format text) of every event, those of system "ftrace" in a section of their own. ``options``
    stand between TRACECLOCK, which follows from ``clock``, and what the version asks for.
    """

    clock: str
    cpus: int
    formats: Sequence[tuple[str, str]]
    cmdlines: Mapping[int, str] = field(default_factory=dict)
    options: Sequence[RawOption] = ()
    kallsyms: bytes = b""
    printk: bytes = b""
    version: Literal[6, 7] = 7
    compression: Compression = "none"
    page_size: int = 4096
    long_size: int = 8
    big_endian: bool = False

    def write(self, file: BinaryIO, data: Iterable[CpuPages], instances: Sequence[BufferPages] = ()) -> None:
        """Write to ``file``, open for writing and seeking at its beginning; CPUs in ascending order, each at most once.

        ``instances``: the buffers beside the top one, whose data is ``data``. ValueError where version 6 is to be
        compressed, or a CPU is out of order.
        """
        if self.version == 6 and self.compression != "none":
            raise ValueError("version 6 of trace.dat has no compression")
        self._put(file, MAGIC + f"{self.version}\0".encode() + bytes([self.big_endian, self.long_size]))
        self._put(file, self._pack("I", self.page_size))
        if self.version == 6:
            self._write_v6(file, data, instances)
        else:
            self._write_v7(file, data, instances)

    # -- the parts both versions have

    def _pack(self, codes: str, *values: int) -> bytes:
        return pack(codes, *values, big_endian=self.big_endian)

    def _put(self, file: BinaryIO, data: bytes) -> int:
        at = file.tell()
        file.write(data)
        return at

    def _patch(self, file: BinaryIO, at: int, data: bytes) -> None:
        end = file.tell()
        file.seek(at)
        file.write(data)
        file.seek(end)

    def _align(self, file: BinaryIO) -> int:
        file.write(bytes(-file.tell() % self.page_size))
        return file.tell()

    def _pieces(self) -> list[tuple[Option, str, bytes]]:
        """(section, its title, its content) in the order of the file."""
        texts: dict[str, list[bytes]] = {}
        for system, text in self.formats:
            texts.setdefault(system, []).append(text.encode("utf-8", "surrogateescape"))
        ftrace = texts.pop("ftrace", [])
        systems = self._pack("I", len(texts))
        for system in texts:
            systems += system.encode() + b"\0" + self._texts(texts[system])
        header = b"header_page\0" + self._sized("Q", self._header_page().encode())
        header += b"header_event\0" + self._sized("Q", _HEADER_EVENT.encode())
        return [
            (Option.HEADER_INFO, "headers", header),
            (Option.FTRACE_EVENTS, "ftrace events", self._texts(ftrace)),
            (Option.EVENT_FORMATS, "events format", systems),
            (Option.KALLSYMS, "kallsyms", self._sized("I", self.kallsyms)),
            (Option.PRINTK, "printk", self._sized("I", self.printk)),
        ]

    def _texts(self, texts: Sequence[bytes]) -> bytes:
        return self._pack("I", len(texts)) + b"".join(self._sized("Q", text) for text in texts)

    def _sized(self, code: str, data: bytes) -> bytes:
        return self._pack(code, len(data)) + data

    def _header_page(self) -> str:
        start = 8 + self.long_size
        return (
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
            f"\tfield: local_t commit;\toffset:8;\tsize:{self.long_size};\tsigned:1;\n"
            "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
            f"\tfield: char data;\toffset:{start};\tsize:{self.page_size - start};\tsigned:1;\n"
        )

    def _cmdlines(self) -> bytes:
        return self._sized("Q", "".join(f"{pid} {comm}\n" for pid, comm in self.cmdlines.items()).encode())

    def _option(self, option: RawOption) -> bytes:
        return self._pack("HI", option[0], len(option[1])) + option[1]

    def _all_options(self) -> list[RawOption]:
        return [clock_option(self.clock), *self.options]

    # -- version 6

    def _write_v6(self, file: BinaryIO, data: Iterable[CpuPages], instances: Sequence[BufferPages]) -> None:
        for _, _, content in self._pieces():
            self._put(file, content)
        self._put(file, self._cmdlines() + self._pack("I", self.cpus) + b"options  \0")
        for option in self._all_options():
            self._put(file, self._option(option))
        links = [
            self._put(file, self._option((Option.BUFFER, bytes(8) + file_text(one.name)))) + 6 for one in instances
        ]
        self._put(file, self._pack("H", Option.DONE))
        self._flyrecord(file, data)
        for link, one in zip(links, instances, strict=True):
            self._patch(file, link, self._pack("Q", file.tell()))
            self._flyrecord(file, one.data)

    def _flyrecord(self, file: BinaryIO, data: Iterable[CpuPages]) -> None:
        """Write a buffer of version 6: the table of its CPUs, and their pages."""
        self._put(file, b"flyrecord\0")
        table = self._put(file, bytes(16 * self.cpus))
        self._put(file, self._sized("Q", f"[{self.clock}]".encode()))
        places = {}
        last = -1
        for pages in data:
            last = self._in_order(last, pages.cpu)
            places[pages.cpu] = self._align(file), len(pages.data)
            file.write(pages.data.data)
        end = self._align(file)
        entries = [places.get(cpu, (end, 0)) for cpu in range(self.cpus)]
        self._patch(file, table, b"".join(self._pack("QQ", *entry) for entry in entries))

    def _in_order(self, last: int, cpu: int) -> int:
        if not last < cpu < self.cpus:
            raise ValueError(f"CPU {cpu} after CPU {last}, of {self.cpus}")
        return cpu

    # -- version 7

    def _write_v7(self, file: BinaryIO, data: Iterable[CpuPages], instances: Sequence[BufferPages]) -> None:
        self._put(file, f"{self.compression}\0{_library_version(self.compression)}\0".encode())
        link = self._put(file, bytes(8))
        strings = _Strings()
        options: list[RawOption] = []
        for section, title, content in self._pieces():
            options.append((section, self._pack("Q", self._section(file, section, strings.add(title), content))))
        options += self._all_options()
        at = self._section(file, Option.CMDLINES, strings.add("command lines"), self._cmdlines())
        options.append((Option.CMDLINES, self._pack("Q", at)))
        options.append((Option.CPUCOUNT, self._pack("I", self.cpus)))
        link = self._option_section(file, strings, link, options)
        buffers = [BufferPages("", data), *instances]
        self._option_section(file, strings, link, [(Option.BUFFER, self._buffer(file, strings, b)) for b in buffers])
        string = strings.add("strings")
        self._section(file, Option.STRINGS, string, strings.text)

    def _section(self, file: BinaryIO, section: Option, string: int, content: bytes) -> int:
        flags = 0
        if self.compression != "none":
            flags, content = COMPRESSED, self._compressed(content)
        return self._put(file, self._pack(_SECTION, section, flags, string, len(content)) + content)

    def _option_section(self, file: BinaryIO, strings: _Strings, link: int, options: Sequence[RawOption]) -> int:
        """Write a section of options that ``link`` is to point to; return where the next link is."""
        content = b"".join(self._option(option) for option in [*options, (Option.DONE, bytes(8))])
        head = self._pack(_SECTION, Option.DONE, 0, strings.add("options"), len(content))
        at = self._put(file, head + content)
        self._patch(file, link, self._pack("Q", at))
        return file.tell() - 8

    def _buffer(self, file: BinaryIO, strings: _Strings, buffer: BufferPages) -> bytes:
        """Write a buffer's data; return the option that tells of it."""
        flags = 0 if self.compression == "none" else COMPRESSED
        start = self._put(
            file, self._pack(_SECTION, Option.BUFFER, flags, strings.add(f"buffer flyrecord {buffer.name}"), 0)
        )
        entries = []
        last = -1
        for pages in buffer.data:
            last = self._in_order(last, pages.cpu)
            if not len(pages.data):
                continue  # trace-cmd leaves out CPUs without data
            at = self._align(file)
            if flags:
                self._chunks(file, pages.data)
            else:
                file.write(pages.data.data)
            entries.append(self._pack("IQQ", pages.cpu, at, file.tell() - at))
        self._patch(file, start + 8, self._pack("Q", file.tell() - start - 16))
        head = self._pack("Q", start) + file_text(buffer.name) + self.clock.encode() + b"\0"
        return head + self._pack("II", self.page_size, len(entries)) + b"".join(entries)

    def _chunks(self, file: BinaryIO, data: npt.NDArray[np.uint8]) -> None:
        size = CHUNK_PAGES * self.page_size
        file.write(self._pack("I", -(-len(data) // size)))
        view = data.data
        for begin in range(0, len(data), size):
            file.write(self._compressed(view[begin : begin + size]))

    def _compressed(self, data: bytes | memoryview) -> bytes:
        packed = _COMPRESS[self.compression](data)
        return self._pack("II", len(packed), len(data)) + packed


@dataclass
class _Strings:
    """Titles of sections: an id is an offset into the strings section."""

    text: bytes = b""

    def add(self, title: str) -> int:
        at = len(self.text)
        self.text += file_text(title)
        return at


def _zstd_module() -> Any:  # noqa: ANN401 (two modules of one shape)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _zstd(data: bytes | memoryview) -> bytes:
    return bytes(_zstd_module().compress(data))


_COMPRESS: dict[str, Callable[[bytes | memoryview], bytes]] = {"zlib": zlib.compress, "zstd": _zstd}


def _library_version(compression: Compression) -> str:
    """What the file says of the compressing library."""
    if compression == "zstd":
        return str(_zstd_module().zstd_version)
    return zlib.ZLIB_VERSION if compression == "zlib" else ""
