"""A trace.dat of this machine, version 6, as trace-cmd writes it: its head from tracefs, its data from files.

Version 6 is one linear sequence (trace-cmd.dat.v6(5)), so a head can be written before the first event, and the pages
of the ring buffer stand in it as the kernel gave them. ``counterpoint.traces.write`` writes the same from columns.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from counterpoint._version import __version__
from counterpoint.dat_layout import MAGIC, Option
from counterpoint.errors import UsageError

MAX_TEXT = 32 << 20
"""A longer /proc/kallsyms, printk_formats or list of command lines is cut at its last whole line."""

PathText = Union[str, "os.PathLike[str]"]

_ORDER = "<" if sys.byteorder == "little" else ">"
_AFTER_MAGIC = len(MAGIC) + len("6\0")
_SOURCE = {"kallsyms": Path("/proc/kallsyms")}


def pack(codes: str, *values: int) -> bytes:
    """Numbers in this machine's byte order, without padding."""
    return struct.pack(_ORDER + codes, *values)


def _sized(code: str, data: bytes) -> bytes:
    return pack(code, len(data)) + data


# -- the head --------------------------------------------------------------------------------------------------------


def chosen(folder: PathText, events: Iterable[str]) -> list[tuple[str, str]]:
    """The (system, event) pairs below ``folder``/events that ``events`` name: SYSTEM or SYSTEM:EVENT, * as in a shell.

    In the order of their names. What names nothing adds nothing.
    """
    found: set[tuple[str, str]] = set()
    root = Path(folder) / "events"
    for text in events:
        system, _, event = text.partition(":")
        for path in root.glob(f"{_plain(system)}/{_plain(event or '*')}/format"):
            found.add((path.parent.parent.name, path.parent.name))
    return sorted(pair for pair in found if pair[0] != "ftrace")


def _plain(pattern: str) -> str:
    # names of events are C identifiers: what is none, but for the signs of a pattern, matches nothing
    return pattern if re.fullmatch(r"[\w*?\[\]-]+", pattern) else "\1"


def head_of(
    folder: PathText, events: Sequence[str] = ("*",), *, page_size: int | None = None, kallsyms: bool = True
) -> bytes:
    """A file's head: all that stands before the command lines (``cmdlines_of``), which are known only at the end.

    ``folder`` is tracefs itself or an instance in it; ``events`` as of ``chosen``. ``page_size``: of a sub-buffer,
    where it is not the one in header_page. UsageError where tracefs cannot be read.
    """
    root = top_of(folder)
    own = Path(folder) / "events"
    try:
        page = _bytes((own if (own / "header_page").exists() else root / "events") / "header_page")
        event = _bytes(root / "events" / "header_event")
    except OSError as err:
        raise UsageError(f"{err.filename}: {err.strerror}: no head of a recording can be made without it") from None
    ftrace = ((p.parent.name, p.name) for p in sorted((root / "events" / "ftrace").glob("*")))
    formats = [*_formats(root, ftrace), *_formats(root, chosen(root, events))]
    symbols = _kallsyms() if kallsyms else b""
    return head_from(page, event, formats, symbols, _whole_lines(root / "printk_formats"), page_size=page_size)


def head_from(
    page: bytes, event: bytes, formats: Iterable[tuple[str, bytes]], symbols: bytes, printk: bytes, *,
    page_size: int | None = None,
) -> bytes:  # fmt: skip
    """The same of texts: header_page, header_event, (system, format) of each event, kallsyms, printk_formats."""
    words = re.search(rb"local_t commit;\s*offset:\d+;\s*size:(\d+);", page)
    long_size = int(words[1]) if words else struct.calcsize("l")
    out = [
        MAGIC, b"6\0", bytes((sys.byteorder == "big", long_size)), pack("I", page_size or page_size_of(page)),
        b"header_page\0", _sized("Q", page), b"header_event\0", _sized("Q", event),
    ]  # fmt: skip
    by_system: dict[str, list[bytes]] = {}
    for system, text in formats:
        by_system.setdefault(system, []).append(text)
    ftrace = by_system.pop("ftrace", [])
    out += [pack("I", len(ftrace)), *(_sized("Q", text) for text in ftrace)]
    out.append(pack("I", len(by_system)))
    for system, texts in by_system.items():
        out += [system.encode() + b"\0", pack("I", len(texts)), *(_sized("Q", text) for text in texts)]
    return b"".join([*out, _sized("I", symbols), _sized("I", printk)])


def top_of(folder: PathText) -> Path:
    """Tracefs itself, of a folder that may be an instance in it."""
    path = Path(folder)
    return path.parent.parent if path.parent.name == "instances" else path


def page_size_of(header_page: bytes) -> int:
    """The size of a sub-buffer, as events/header_page says: where its data begins, and how long it is."""
    found = re.search(rb"char data;\s*offset:(\d+);\s*size:(\d+);", header_page)
    return int(found[1]) + int(found[2]) if found else os.sysconf("SC_PAGE_SIZE")


def _formats(root: Path, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    for system, event in pairs:
        # (an event that goes away with its module has no format any more)
        with suppress(OSError):
            yield system, _bytes(root / "events" / system / event / "format")


def _bytes(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return _read(file)


def _read(file: BinaryIO) -> bytes:
    # files of tracefs and /proc say no size: large reads, to the end
    parts, left = [], MAX_TEXT
    while left > 0:
        part = os.read(file.fileno(), min(left, 1 << 20))
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _whole_lines(path: Path) -> bytes:
    """A text file up to ``MAX_TEXT``; b"" where it cannot be read."""
    text = b""
    with suppress(OSError):
        text = _bytes(path)
    return text if len(text) < MAX_TEXT else text[: text.rfind(b"\n") + 1]


def _kallsyms() -> bytes:
    text = _whole_lines(_SOURCE["kallsyms"])
    # where addresses are hidden (kptr_restrict) all are 0, and no name is any good
    last = text[text.rfind(b"\n", 0, -1) + 1 :]
    return text if last.partition(b" ")[0].strip(b"0") else b""


def cmdlines_of(folder: PathText, more: Mapping[int, str] | None = None) -> bytes:
    """The names of threads: what the kernel saved, and ``more`` (thread: name) that it did not."""
    return cmdlines(_whole_lines(top_of(folder) / "saved_cmdlines"), more or {})


def cmdlines(text: bytes, more: Mapping[int, str]) -> bytes:
    """The same of the text of saved_cmdlines."""
    known = {line.split(b" ", 1)[0] for line in text.splitlines()}
    lines = [text if not text or text.endswith(b"\n") else text + b"\n"]
    for tid, name in more.items():
        number = b"%d" % tid
        if number not in known:
            lines.append(number + b" " + name.replace("\n", " ").encode() + b"\n")
    return b"".join(lines)


# -- options ---------------------------------------------------------------------------------------------------------


@dataclass
class Facts:
    """What a file's options say. ``clock``: the text of trace_clock. ``stats``: per_cpu/cpuN/stats by CPU."""

    clock: str
    cpus: int
    trace_id: int
    stats: Mapping[int, str]
    uname: str = ""
    tsc2nsec: tuple[int, int] | None = None
    """(mult, shift) of ns = ticks * mult >> shift."""

    def options(self) -> list[tuple[int, bytes]]:
        """As trace-cmd orders and fills them (trace-output.c, trace-record.c)."""
        uname = os.uname()
        said = self.uname or f"{uname.sysname} {uname.nodename} {uname.release} {uname.machine}"
        out = [
            (int(Option.TRACECLOCK), _text(self.clock)),
            (int(Option.UNAME), _text(said)),
            (int(Option.VERSION), _text(f"counterpoint {__version__}")),
            (int(Option.TRACEID), pack("Q", self.trace_id)),
        ]
        if self.tsc2nsec is not None:
            out.append((int(Option.TSC2NSEC), pack("IIQ", *self.tsc2nsec, 0)))
        out += [(int(Option.CPUSTAT), _text(f"CPU: {cpu}\n{text}")) for cpu, text in sorted(self.stats.items())]
        out.append((int(Option.CPUCOUNT), pack("I", self.cpus)))
        return out


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def guest_option(name: str, trace_id: int, threads: Mapping[int, int]) -> tuple[int, bytes]:
    """GUEST, in the host's file: which of its threads (by guest CPU, 0 to n - 1) run the guest of that TRACEID."""
    pairs = b"".join(pack("II", cpu, tid) for cpu, tid in sorted(threads.items()))
    return int(Option.GUEST), _text(name) + pack("QI", trace_id, len(threads)) + pairs


def new_trace_id() -> int:
    """A number that no other recording has."""
    return int.from_bytes(os.urandom(8), "little") or 1


# -- the file --------------------------------------------------------------------------------------------------------


def write_dat(
    path: PathText,
    head: bytes,
    cmdlines: bytes,
    options: Sequence[tuple[int, bytes]],
    cpu_files: Mapping[int, PathText],
    *,
    cpus: int | None = None,
) -> None:
    """Write ``path``, which must not exist: ``head``, then each CPU's pages, copied inside the kernel.

    ``head`` is of this machine's byte order (``head_of``). ``cpus``: how many there are, also those without a file. A
    file that ends in the middle of a page is taken up to it. OSError as of files.
    """
    count = max([cpus or 0, *(cpu + 1 for cpu in cpu_files)])
    (page,) = struct.unpack_from(_ORDER + "I", head, _AFTER_MAGIC + 2)
    clock = next((data for number, data in options if number == Option.TRACECLOCK), b"local\0")
    front = [head, _sized("Q", cmdlines), pack("I", count), b"options  \0"]
    front += [pack("HI", number, len(data)) + data for number, data in options]
    front.append(pack("H", Option.DONE) + b"flyrecord\0")
    begin = b"".join(front)
    selected = re.search(rb"\[[^\]]*\]", clock)
    # (the clock stands behind the table too, as trace-cmd has it since 2.6: tracecmd_write_cpu_data)
    tail = _sized("Q", selected[0] if selected else clock.rstrip(b"\0\n"))
    sizes = {}
    for cpu, name in cpu_files.items():
        size = os.stat(name).st_size
        sizes[cpu] = size - size % page
    at = -(-(len(begin) + 16 * count + len(tail)) // page) * page
    table = []
    for cpu in range(count):
        table.append(pack("QQ", at, sizes.get(cpu, 0)))
        at += sizes.get(cpu, 0)
    with open(path, "xb") as file:
        file.write(begin + b"".join(table) + tail)
        file.write(bytes(-file.tell() % page))
        file.flush()
        for cpu in range(count):
            if sizes.get(cpu):
                with open(cpu_files[cpu], "rb") as source:
                    _copy(source.fileno(), file.fileno(), sizes[cpu])


def _copy(source: int, target: int, size: int) -> None:
    done = 0
    while done < size:
        count = os.sendfile(target, source, done, size - done)
        if not count:
            raise OSError(0, "a file of pages became shorter while it was read")
        done += count
