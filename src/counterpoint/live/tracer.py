"""This machine's own trace, page by page, as an agent sends it: its own tracefs instance, gone with ``close``."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from counterpoint.errors import UsageError
from counterpoint.live import libc, machine, tracefs
from counterpoint.live.stats import read_stats
from counterpoint.live.tracedat import chosen, cmdlines_of, head_of

MAX_PATTERNS = 256
MIN_BUFFER_KB, MAX_BUFFER_KB = 8, 1 << 20
_PATTERN = re.compile(r"[A-Za-z0-9_*?-]{1,100}(:[A-Za-z0-9_*?-]{1,100})?")
_CLOCK = re.compile(r"[a-z0-9_-]{1,30}")
_PIPE_BYTES = 256 << 10
_F_SETPIPE_SZ = 1031


class Tracer(Protocol):
    """What an agent records with."""

    page_size: int

    def describe(self) -> dict[str, Any]:
        """What this machine is and can do."""

    def begin(self, events: Sequence[str], clock: str, buffer_kb: int) -> int:
        """Record; how many events. UsageError where that cannot be."""

    def pipes(self) -> dict[int, int]:
        """Descriptors that become readable when a CPU has pages: {descriptor: CPU}."""

    def take(self, cpu: int, limit: int) -> bytes:
        """Whole pages of a CPU, about ``limit`` bytes at most, without waiting; b"": there are none."""

    def end(self) -> None:
        """Record no more; what was recorded can still be taken, also the pages that are not full."""

    def head(self) -> bytes:
        """A file's head, as tracedat.head_of."""

    def cmdlines(self) -> bytes:
        """The names of threads."""

    def clock_line(self) -> str:
        """The text of its trace_clock."""

    def stats(self) -> dict[int, str]:
        """per_cpu/cpuN/stats of each CPU."""

    def close(self) -> None:
        """Leave nothing behind; again is no error."""


def checked(events: object, clock: object, buffer_kb: object) -> tuple[list[str], str, int]:
    """What somebody asks to be recorded, if it is nothing but that. UsageError otherwise."""
    if not isinstance(events, list) or not 0 < len(events) <= MAX_PATTERNS:
        raise UsageError(f"events: a list of 1 to {MAX_PATTERNS} patterns is expected")
    for event in events:
        if not isinstance(event, str) or not _PATTERN.fullmatch(event):
            raise UsageError(f"events: {str(event)[:80]!r} is no SYSTEM or SYSTEM:EVENT")
    if not isinstance(clock, str) or not _CLOCK.fullmatch(clock):
        raise UsageError(f"clock: {str(clock)[:40]!r} is no name of a trace clock")
    if isinstance(buffer_kb, bool) or not isinstance(buffer_kb, int):
        raise UsageError("buffer_kb: a number is expected")
    if not MIN_BUFFER_KB <= buffer_kb <= MAX_BUFFER_KB:
        raise UsageError(f"buffer_kb: {MIN_BUFFER_KB} to {MAX_BUFFER_KB} KB for each CPU are possible")
    return events, clock, buffer_kb


class LocalTracer:
    """The running kernel."""

    def __init__(self, root: Path | None = None, max_buffer_kb: int = 1 << 16) -> None:
        """``root``: tracefs. Nothing is made yet."""
        self._root = tracefs.require_root() if root is None else root
        self._max_buffer_kb = max_buffer_kb
        self._stack = ExitStack()
        self._instance: tracefs.Instance | None = None
        self._sources: dict[int, int] = {}
        self._pairs: list[tuple[str, str]] = []
        self._out = self._in = -1
        self._ended = False
        self.page_size = os.sysconf("SC_PAGE_SIZE")

    def clocks(self) -> list[str]:
        """The trace clocks of this kernel."""
        return (self._root / "trace_clock").read_text().replace("[", "").replace("]", "").split()

    def _cpus(self) -> int:
        return max((int(path.name[3:]) for path in (self._root / "per_cpu").glob("cpu[0-9]*")), default=0) + 1

    def describe(self) -> dict[str, Any]:
        """As the protocol has it."""
        uname = os.uname()
        return {
            "system": uname.sysname, "node": uname.nodename, "release": uname.release, "machine": uname.machine,
            "cpus": self._cpus(), "clocks": self.clocks(), "mono_raw": machine.clock_line("mono_raw"),
            "max_buffer_kb": self._max_buffer_kb,
        }  # fmt: skip

    def begin(self, events: Sequence[str], clock: str, buffer_kb: int) -> int:
        """As the protocol has it."""
        if clock not in self.clocks():
            raise UsageError(f"this kernel has no trace clock {clock}: it has {', '.join(self.clocks())}")
        if buffer_kb > self._max_buffer_kb:
            raise UsageError(f"{buffer_kb} KB for each CPU: this agent gives {self._max_buffer_kb} at most")
        self._pairs = chosen(self._root, events)
        if not self._pairs:
            raise UsageError(f"this kernel has none of the events {', '.join(events)[:200]}")
        made = self._stack.enter_context(tracefs.instance(self._root, buffer_kb, clock))
        made.write("tracing_on", "0")
        count = 0
        for system, name in self._pairs:
            # (one that this kernel lists and refuses is not there for us)
            with suppress(OSError, ValueError):
                made.enable(system, name)
                count += 1
        if not count:
            raise UsageError(f"this kernel refuses the events {', '.join(events)[:200]}")
        self.page_size = made.page_size
        for path in sorted((made.folder / "per_cpu").glob("cpu[0-9]*")):
            source = os.open(path / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._stack.callback(os.close, source)
            self._sources[int(path.name[3:])] = source
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        self._stack.callback(os.close, self._out)
        self._stack.callback(os.close, self._in)
        with suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE_BYTES)
        made.write("tracing_on", "1")
        self._instance = made
        return count

    def pipes(self) -> dict[int, int]:
        """As the protocol has it."""
        return {source: cpu for cpu, source in self._sources.items()}

    def take(self, cpu: int, limit: int) -> bytes:
        """As the protocol has it. splice(2) takes only pages that are full; once ``end`` was called, read the rest."""
        out = bytearray()
        while len(out) < limit:
            part = self._spliced(self._sources[cpu], limit - len(out))
            if not part and self._ended:
                with suppress(BlockingIOError):
                    part = os.read(self._sources[cpu], self.page_size)
            if not part:
                break
            out += part
        return bytes(out)

    def _spliced(self, source: int, limit: int) -> bytes:
        try:
            count = libc.splice(source, self._in, min(limit, _PIPE_BYTES), libc.SPLICE_MOVE | libc.SPLICE_NONBLOCK)
        except BlockingIOError:
            return b""
        parts = []
        while count:
            part = os.read(self._out, count)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def end(self) -> None:
        """As the protocol has it."""
        if self._instance is not None:
            self._instance.write("tracing_on", "0")
        self._ended = True

    def head(self) -> bytes:
        """As the protocol has it."""
        folder = self._root if self._instance is None else self._instance.folder
        return head_of(folder, [":".join(pair) for pair in self._pairs], page_size=self.page_size)

    def cmdlines(self) -> bytes:
        """As the protocol has it."""
        return cmdlines_of(self._root, machine.thread_names())

    def clock_line(self) -> str:
        """As the protocol has it."""
        assert self._instance is not None
        return (self._instance.folder / "trace_clock").read_text()

    def stats(self) -> dict[int, str]:
        """As the protocol has it."""
        assert self._instance is not None
        return read_stats(self._instance.folder, sorted(self._sources))

    def close(self) -> None:
        """As the protocol has it."""
        self._sources = {}
        self._instance = None
        self._stack.close()
