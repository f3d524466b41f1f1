"""trace.dat files of version 6 and 7, as trace-cmd writes them."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from writers.events import PRINT, Event
from writers.ringbuffer import pack_stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x17\x08\x44tracing"
DONE, DATE, CPUSTAT, BUFFER, TRACECLOCK, UNAME, OFFSET, CPUCOUNT, VERSION = 0, 1, 2, 3, 4, 5, 7, 8, 9
TRACEID, TIME_SHIFT, GUEST, TSC2NSEC, STRINGS = 11, 12, 13, 14, 15
HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES = 16, 17, 18, 19, 20, 21
COMPRESSED = 1
PAGES_IN_CHUNK = 10
CLOCKS = ("local", "global", "counter", "uptime", "perf", "mono", "mono_raw", "boot", "tai", "x86-tsc")
HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
    "\tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n"
    "\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)

Option = tuple[int, bytes]


@dataclass
class Buffer:
    """A trace instance ("" is the top one): its pages per CPU; clock and page size are the file's if None."""

    name: str = ""
    clock: str | None = None
    cpus: dict[int, list[bytes]] = field(default_factory=dict)
    page_size: int | None = None


@dataclass
class TimeShift:
    """A guest file's claim: per CPU ``(time, offset to add, scaling, fraction bits)`` samples."""

    peer: int
    flags: int = 0
    per_cpu: list[list[tuple[int, int, int, int]]] = field(default_factory=list)
    with_frac: bool = True


@dataclass
class GuestOption:
    """A host file's entry for one guest: ``(guest CPU, host thread)`` pairs."""

    name: str
    trace_id: int
    cpus: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class _Out:
    data: bytearray = field(default_factory=bytearray)
    marks: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, name: str, data: bytes) -> int:
        """Append ``data`` and return where it starts."""
        start = len(self.data)
        self.data += data
        if data:
            self.marks.append((name, start, len(self.data)))
        return start

    def align(self, size: int) -> int:
        self.add("padding", bytes(-len(self.data) % size))
        return len(self.data)


@dataclass
class TraceFile:
    """A trace.dat file. ``omit`` leaves out version 7 sections and options by id.

    ``short_sizes``: the sizes of compressed CPU data are 4 bytes short, as trace-cmd 3.1 wrote them.

    ``appended_options`` are options added when the options were already written: in version 6 they replace
    the end mark of the list, in version 7 they get an options section of their own.
    """

    version: Literal[6, 7] = 7
    big_endian: bool = False
    long_size: int = 8
    page_size: int = 4096
    compression: Literal["none", "zlib", "zstd"] = "none"
    clock: str = "x86-tsc"
    buffers: list[Buffer] = field(default_factory=lambda: [Buffer()])
    events: list[Event] = field(default_factory=list)
    ftrace_events: list[Event] = field(default_factory=lambda: [PRINT])
    cmdlines: dict[int, str] = field(default_factory=dict)
    kallsyms: str = ""
    printk: str = ""
    cpu_count: int | None = None
    trace_id: int | None = None
    date: int | None = None
    ts_offset: int | None = None
    cpustat: list[str] = field(default_factory=list)
    uname: str | None = "Linux host 6.1.0 x86_64"
    version_text: str | None = "3.1.6 not-a-git-repo"
    time_shift: TimeShift | None = None
    guests: list[GuestOption] = field(default_factory=list)
    tsc2nsec: tuple[int, int, int] | None = None
    extra_options: list[Option] = field(default_factory=list)
    appended_options: list[Option] = field(default_factory=list)
    omit: frozenset[int] = frozenset()
    short_sizes: bool = False

    def payload(self, event: Event, pid: int = 0, /, **values: Any) -> bytes:
        """Return a record of ``event`` in this file's byte order and long size."""
        return event.payload(pid, big_endian=self.big_endian, long_size=self.long_size, **values)

    def stream(self, records: Iterable[tuple[int, bytes]], **options: Any) -> list[bytes]:
        """Pack ``(timestamp, payload)`` records of one CPU into this file's pages (see ``pack_stream``)."""
        abi = {"size": self.page_size, "big_endian": self.big_endian, "long_size": self.long_size}
        return pack_stream(records, **(abi | options))

    def write(self, path: str | Path) -> Path:
        """Write the file and return its path."""
        path = Path(path)
        path.write_bytes(self.to_bytes())
        return path

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        return bytes(self._build().data)

    def sections(self) -> list[tuple[str, int, int]]:
        """Return ``(name, start, end)`` of every part of the file, in order and without gaps."""
        return self._build().marks

    @property
    def cpus(self) -> int:
        if self.cpu_count is not None:
            return self.cpu_count
        return max((cpu + 1 for buffer in self.buffers for cpu in buffer.cpus), default=1)

    def _build(self) -> _Out:
        return self._build_v6() if self.version == 6 else self._build_v7()

    def _pack(self, codes: str, *values: int) -> bytes:
        """Pack unsigned numbers (values wrap) in the file's byte order."""
        wrapped = [v % (1 << 8 * struct.calcsize("=" + c)) for c, v in zip(codes, values, strict=True)]
        return struct.pack((">" if self.big_endian else "<") + codes, *wrapped)

    def _sized(self, code: str, text: str) -> bytes:
        return self._pack(code, len(text.encode())) + text.encode()

    # ---- the parts both versions have

    def _initial(self) -> bytes:
        head = MAGIC + f"{self.version}\0".encode() + bytes([self.big_endian, self.long_size])
        return head + self._pack("I", self.page_size)

    def _metadata(self) -> list[tuple[int, str, bytes]]:
        """Return (option id, title, content) of the sections before the command lines, in file order."""
        names = sorted({event.system for event in self.events})
        systems = self._pack("I", len(names))
        for name in names:
            systems += name.encode() + b"\0" + self._formats([e for e in self.events if e.system == name])
        headers = b"header_page\0" + self._sized("Q", self._header_page())
        headers += b"header_event\0" + self._sized("Q", HEADER_EVENT)
        return [
            (HEADER_INFO, "headers", headers),
            (FTRACE_EVENTS, "ftrace events", self._formats(self.ftrace_events)),
            (EVENT_FORMATS, "events format", systems),
            (KALLSYMS, "kallsyms", self._sized("I", self.kallsyms)),
            (PRINTK, "printk", self._sized("I", self.printk)),
        ]

    def _header_page(self) -> str:
        size, start = self.long_size, 8 + self.long_size
        return (
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
            f"\tfield: local_t commit;\toffset:8;\tsize:{size};\tsigned:1;\n"
            "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
            f"\tfield: char data;\toffset:{start};\tsize:{self.page_size - start};\tsigned:1;\n"
        )

    def _formats(self, events: Sequence[Event]) -> bytes:
        texts = [self._sized("Q", event.format_text(self.long_size)) for event in events]
        return self._pack("I", len(texts)) + b"".join(texts)

    def _cmdlines(self) -> bytes:
        return self._sized("Q", "".join(f"{pid} {comm}\n" for pid, comm in self.cmdlines.items()))

    def _options(self) -> list[Option]:
        """Return the options that stand in the first list, in trace-cmd's order."""

        def text(value: str) -> bytes:
            return value.encode() + b"\0"

        names = [*CLOCKS, *({self.clock} - set(CLOCKS))]
        clocks = " ".join(f"[{name}]" if name == self.clock else name for name in names)
        options: list[Option] = []
        if self.date is not None:
            options.append((DATE, text(f"{self.date:#x}")))
        if self.ts_offset is not None:
            options.append((OFFSET, text(str(self.ts_offset))))
        options.append((TRACECLOCK, text(clocks + "\n")))
        if self.uname is not None:
            options.append((UNAME, text(self.uname)))
        if self.version_text is not None:
            options.append((VERSION, text(self.version_text)))
        if self.trace_id is not None:
            options.append((TRACEID, self._pack("Q", self.trace_id)))
        options += [(CPUSTAT, text(stat)) for stat in self.cpustat]
        for guest in self.guests:
            data = text(guest.name) + self._pack("QI", guest.trace_id, len(guest.cpus))
            options.append((GUEST, data + b"".join(self._pack("II", cpu, tid) for cpu, tid in guest.cpus)))
        if self.tsc2nsec is not None:
            options.append((TSC2NSEC, self._pack("IIQ", *self.tsc2nsec)))
        if self.time_shift is not None:
            options.append((TIME_SHIFT, self._time_shift(self.time_shift)))
        return [(id_, data) for id_, data in options if id_ not in self.omit] + self.extra_options

    def _time_shift(self, shift: TimeShift) -> bytes:
        data = self._pack("QII", shift.peer, shift.flags, len(shift.per_cpu))
        for samples in shift.per_cpu:
            data += self._pack("I", len(samples))
            for column in range(3):
                data += b"".join(self._pack("Q", sample[column]) for sample in samples)
        if shift.with_frac:
            data += b"".join(self._pack("Q", s[3]) for samples in shift.per_cpu for s in samples)
        return data

    def _option(self, option: Option) -> bytes:
        return self._pack("HI", option[0], len(option[1])) + option[1]

    # ---- version 6

    def _build_v6(self) -> _Out:
        out = _Out()
        out.add("initial", self._initial())
        for _, title, content in self._metadata():
            out.add(title, content)
        out.add("command lines", self._cmdlines())
        out.add("cpus", self._pack("I", self.cpus))
        out.add("options mark", b"options  \0")
        for option in self._options():
            out.add(f"option {option[0]}", self._option(option))
        instances = [buffer for buffer in self.buffers if buffer.name]
        places = {}
        for buffer in instances:
            option = BUFFER, bytes(8) + buffer.name.encode() + b"\0"
            places[buffer.name] = out.add("option 3", self._option(option)) + 6
        for option in self.appended_options:
            out.add(f"option {option[0]}", self._option(option))
        out.add("options end", self._pack("H", DONE))
        top = next((buffer for buffer in self.buffers if not buffer.name), Buffer())
        for buffer in (top, *instances):
            start = self._data_v6(out, buffer)
            if buffer.name:
                place = places[buffer.name]
                out.data[place : place + 8] = self._pack("Q", start)
        return out

    def _data_v6(self, out: _Out, buffer: Buffer) -> int:
        """Add a buffer: mark, table of CPUs, clock, data; return where the mark is."""
        title = f"buffer {buffer.name}".strip()
        start = out.add(f"{title} mark", b"flyrecord\0")
        table = out.add(f"{title} table", bytes(16 * self.cpus))
        out.add(f"{title} clock", self._sized("Q", f"[{buffer.clock or self.clock}]"))
        for cpu in range(self.cpus):
            pages = b"".join(buffer.cpus.get(cpu, []))
            at = out.align(buffer.page_size or self.page_size)
            out.add(f"{title} cpu {cpu}", pages)
            entry = table + 16 * cpu
            out.data[entry : entry + 16] = self._pack("QQ", at, len(pages))
        return start

    # ---- version 7

    def _build_v7(self) -> _Out:
        out, strings = _Out(), _Strings()
        version = {"none": "", "zlib": zlib.ZLIB_VERSION, "zstd": zstd.zstd_version}[self.compression]
        out.add("initial", self._initial())
        out.add("compression", f"{self.compression}\0{version}\0".encode())
        link = out.add("first options offset", bytes(8))
        options: list[Option] = []
        for id_, title, content in self._metadata():
            if id_ not in self.omit:
                at = self._section(out, id_, title, strings.add(title), content)
                options.append((id_, self._pack("Q", at)))
        options += self._options()
        if CMDLINES not in self.omit:
            title = "command lines"
            at = self._section(out, CMDLINES, title, strings.add(title), self._cmdlines())
            options.append((CMDLINES, self._pack("Q", at)))
        if CPUCOUNT not in self.omit:
            options.append((CPUCOUNT, self._pack("I", self.cpus)))
        link = self._option_section(out, strings, link, options)
        if self.appended_options:
            self._strings(out, strings)
            link = self._option_section(out, strings, link, self.appended_options)
            self._strings(out, strings)
        for buffer in self.buffers:
            option = BUFFER, self._data_v7(out, strings, buffer)
            link = self._option_section(out, strings, link, [option])
        self._strings(out, strings)
        return out

    def _section(self, out: _Out, id_: int, title: str, string: int, content: bytes) -> int:
        """Add a section, compressed if the file is; return where it is."""
        flags = 0
        if self.compression != "none":
            flags, content = COMPRESSED, self._compressed(content)
        start = out.add(f"{title} header", self._pack("HHIQ", id_, flags, string, len(content)))
        out.add(title, content)
        return start

    def _strings(self, out: _Out, strings: _Strings) -> None:
        string = strings.add("strings")
        self._section(out, STRINGS, "strings", string, strings.take())

    def _option_section(self, out: _Out, strings: _Strings, link: int, options: list[Option]) -> int:
        """Add a section of options that ``link`` points to; return where the next link is."""
        size = sum(6 + len(data) for _, data in options) + 14
        start = out.add("options header", self._pack("HHIQ", DONE, 0, strings.add("options"), size))
        out.data[link : link + 8] = self._pack("Q", start)
        for option in options:
            out.add(f"option {option[0]}", self._option(option))
        return out.add("option 0", self._option((DONE, bytes(8)))) + 6

    def _data_v7(self, out: _Out, strings: _Strings, buffer: Buffer) -> bytes:
        """Add a buffer's section; return the option that tells of it."""
        page_size = buffer.page_size or self.page_size
        title = f"buffer {buffer.name}".strip()
        string = strings.add(f"buffer flyrecord {buffer.name}")
        flags = 0 if self.compression == "none" else COMPRESSED
        start = out.add(f"{title} header", self._pack("HHIQ", BUFFER, flags, string, 0))
        entries = []
        for cpu, pages in sorted(buffer.cpus.items()):
            if pages:
                at = out.align(page_size)
                data = b"".join(pages) if self.compression == "none" else self._chunks(pages)
                out.add(f"{title} cpu {cpu}", data)
                short = 4 if self.short_sizes and flags else 0
                entries.append(self._pack("IQQ", cpu, at, len(data) - short))
        out.data[start + 8 : start + 16] = self._pack("Q", len(out.data) - start - 16)
        option = self._pack("Q", start) + f"{buffer.name}\0{buffer.clock or self.clock}\0".encode()
        return option + self._pack("II", page_size, len(entries)) + b"".join(entries)

    def _chunks(self, pages: list[bytes]) -> bytes:
        steps = range(0, len(pages), PAGES_IN_CHUNK)
        chunks = [self._compressed(b"".join(pages[i : i + PAGES_IN_CHUNK])) for i in steps]
        return self._pack("I", len(chunks)) + b"".join(chunks)

    def _compressed(self, data: bytes) -> bytes:
        packed = _COMPRESS[self.compression](data)
        return self._pack("II", len(packed), len(data)) + packed


def _zstd(data: bytes) -> bytes:
    # like trace-cmd's, the frame does not tell the size of what is in it
    return zstd.compress(data, options={zstd.CompressionParameter.content_size_flag: 0})


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"zlib": lambda data: zlib.compress(data, 9), "zstd": _zstd}


@dataclass
class _Strings:
    """Titles of sections: an id is an offset into all strings sections put together."""

    pending: bytes = b""
    taken: int = 0

    def add(self, text: str) -> int:
        at = self.taken + len(self.pending)
        self.pending += text.encode() + b"\0"
        return at

    def take(self) -> bytes:
        text, self.pending = self.pending, b""
        self.taken += len(text)
        return text
