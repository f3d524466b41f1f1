"""Our own corner of tracefs: an instance and dynamic events that exist only as long as somebody uses them.

All names carry this process's id and the time it was started, so that what a killed process left behind is known for
what it is: the next run removes it (``sweep``), and ``doctor`` names it. The top-level buffer is never touched.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from counterpoint.errors import UsageError
from counterpoint.live.libc import MACHINE
from counterpoint.live.pages import Format, events_of, lost_before, parse_format

ROOTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_PREFIX = "counterpoint"
_OURS = re.compile(rf"{_PREFIX}_(\d+)_(\d+)")
_NUMBERS = itertools.count()


def find_root() -> Path | None:
    """Where tracefs is mounted, if it is and may be read."""
    for root in ROOTS:
        with suppress(OSError):
            if (root / "instances").is_dir():
                return root
    return None


def require_root() -> Path:
    """``find_root``, or UsageError with what to do."""
    root = find_root()
    if root is not None:
        return root
    if os.geteuid():
        raise UsageError("tracefs cannot be read: run as root")
    raise UsageError(f"tracefs is not mounted: mount -t tracefs nodev {ROOTS[0]}")


def started(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot (field 22 of /proc/PID/stat); None: none runs."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        # (one that has ended stays a zombie until its parent looks)
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def own_name() -> str:
    """A name for something that this process makes, another each time."""
    return f"{_PREFIX}_{os.getpid()}_{started(os.getpid())}_{next(_NUMBERS)}"


def exact_clock(root: Path) -> tuple[str, str]:
    """The trace clock that is the counter itself, or else the best there is; and what is to be said of it ("")."""
    clocks = (root / "trace_clock").read_text().replace("[", "").replace("]", "").split()
    clock = next((name for name in ("x86-tsc", "mono_raw") if name in clocks), "global")
    if clock == "global":
        return clock, (
            "this kernel has neither x86-tsc nor mono_raw: its clock global is no line of the counter for long, and"
            " offsets are bounded, never exact"
        )
    if clock == "mono_raw" and MACHINE == "x86_64":
        return clock, "this kernel has no x86-tsc: mono_raw is the TSC through the kernel's own (mult, shift)"
    return clock, ""


@dataclass(frozen=True)
class Leftover:
    """What a dead process of ours left behind: an instance's folder, or the line of a dynamic event."""

    kind: str
    name: str
    cure: str


def leftovers(root: Path) -> list[Leftover]:
    """All of them."""
    out = []
    for line in _dynamic_events(root):
        match = re.match(r"(\w+):(\w+)/(\w+)\s", line)
        if match and _is_dead(match[2]):
            name = f"{match[2]}/{match[3]}"
            out.append(Leftover("dynamic event", name, f"echo -:{name} >> {root}/dynamic_events"))
    with suppress(OSError):
        for name in os.listdir(root / "instances"):
            if _is_dead(name):
                # the instance before the event: one that is enabled cannot be removed
                out.insert(0, Leftover("instance", name, f"rmdir {root}/instances/{name}"))
    return out


def sweep(root: Path) -> list[Leftover]:
    """Remove what dead processes of ours left behind; what was removed."""
    out = []
    for left in leftovers(root):
        with suppress(OSError):
            if left.kind == "instance":
                _remove_instance(root / "instances" / left.name)
            else:
                _write(root / "dynamic_events", f"-:{left.name}", append=True)
            out.append(left)
    return out


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and its kin wait until the block ends: what is made is known, what is removed is gone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_dead(name: str) -> bool:
    match = _OURS.match(name)
    return bool(match) and started(int(match[1])) != int(match[2])  # type: ignore[index]


def _dynamic_events(root: Path) -> list[str]:
    with suppress(OSError):
        return (root / "dynamic_events").read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _write(path: Path, text: str, *, append: bool = False) -> None:
    # one write(2), without creating: what the kernel refuses is refused at once
    descriptor = os.open(path, os.O_WRONLY | (os.O_APPEND if append else 0))
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _remove_instance(folder: Path) -> None:
    with uninterrupted():
        with suppress(OSError):
            _write(folder / "events" / "enable", "0")
        with suppress(FileNotFoundError):
            folder.rmdir()


def _remove_event(root: Path, group: str, name: str) -> None:
    with uninterrupted(), suppress(FileNotFoundError):
        _write(root / "dynamic_events", f"-:{group}/{name}", append=True)


class Instance:
    """An instance of our own: buffers, clock and enabled events that nobody else sees."""

    def __init__(self, root: Path, folder: Path, clock: str, buffer_kb: int) -> None:
        """Use ``instance()``."""
        self.root = root
        self.folder = folder
        self.clock = clock
        self._pipes: list[int] = []
        self._formats: dict[int, tuple[str, Format]] = {}
        self.page_size = self._page_size()
        self._pages = max(2, buffer_kb * 1024 // self.page_size)

    def _page_size(self) -> int:
        with suppress(OSError, ValueError):
            # (since Linux 6.8: f9b94daa542a "ring-buffer: Set new size of the ring buffer sub page")
            return int((self.folder / "buffer_subbuf_size_kb").read_text()) * 1024
        return os.sysconf("SC_PAGE_SIZE")

    def enable(self, system: str, name: str, filter_: str = "") -> None:
        """Record an event, or only those that ``filter_`` lets through. OSError where the kernel refuses."""
        event = self.folder / "events" / system / name
        read = parse_format((event / "format").read_text(encoding="utf-8", errors="replace"))
        self._formats[read.number] = (name, read)
        if filter_:
            _write(event / "filter", filter_)
        _write(event / "enable", "1")

    def filter(self, system: str, name: str, text: str) -> None:
        """Change an event's filter ("" for none)."""
        _write(self.folder / "events" / system / name / "filter", text or "0")

    def write(self, name: str, text: str) -> None:
        """Write to a file of its folder, such as tracing_on. OSError where the kernel refuses."""
        _write(self.folder / name, text)

    def disable(self, system: str, name: str) -> None:
        """Record an event no more."""
        _write(self.folder / "events" / system / name / "enable", "0")

    def read(self) -> tuple[list[tuple[int, str, dict[str, int]]], bool]:
        """(stamp, event, fields by name) of what was recorded since the last call, in order; and if some was lost.

        At most what the buffers hold at once: where events come faster than they are read, the rest is the next call's.
        """
        if not self._pipes:
            pattern = sorted((self.folder / "per_cpu").glob("cpu*/trace_pipe_raw"))
            self._pipes = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in pattern]
        out, lost = [], False
        for pipe in self._pipes:
            for _ in range(self._pages):
                try:
                    page = os.read(pipe, self.page_size)
                except BlockingIOError:
                    break
                if not page:
                    break
                lost = lost or lost_before(page)
                for stamp, payload in events_of(page):
                    known = self._formats.get(int.from_bytes(payload[:2], "little"))
                    if known:
                        out.append((stamp, known[0], known[1].decode(payload)))
        out.sort(key=lambda event: event[0])
        return out, lost

    def close(self) -> None:
        """Close its buffers: one that is open cannot be removed."""
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = []


@contextmanager
def instance(root: Path, buffer_kb: int = 256, clock: str | None = None) -> Iterator[Instance]:
    """An instance in ``clock`` (None: the exact one), gone when the block ends. UsageError where none can be made."""
    folder = root / "instances" / own_name()
    with ExitStack() as stack:
        with uninterrupted():
            try:
                folder.mkdir()
            except OSError as err:
                raise UsageError(f"no tracefs instance can be made in {root}/instances: {err.strerror}") from None
            stack.callback(_remove_instance, folder)
        clock = clock or exact_clock(root)[0]
        try:
            _write(folder / "trace_clock", clock)
        except OSError:
            raise UsageError(
                f"this kernel has no trace clock {clock!r}: {root}/trace_clock lists those it has"
            ) from None
        try:
            _write(folder / "buffer_size_kb", str(buffer_kb))
        except OSError as err:
            raise UsageError(f"no buffers of {buffer_kb} KB for each CPU can be had: {err.strerror}") from None
        made = Instance(root, folder, clock, buffer_kb)
        stack.callback(made.close)
        yield made


@contextmanager
def dynamic_event(root: Path, name: str, kind: str, place_and_arguments: str) -> Iterator[tuple[str, str]]:
    """A dynamic event (group, name), gone when the block ends; not enabled. OSError where the kernel refuses it.

    ``kind`` is p, f or t, ``place_and_arguments`` what follows the name (Documentation/trace/fprobetrace.rst).
    """
    group = own_name()
    with ExitStack() as stack:
        with uninterrupted():
            _write(root / "dynamic_events", f"{kind}:{group}/{name} {place_and_arguments}", append=True)
            stack.callback(_remove_event, root, group, name)
        yield group, name


def last_error(root: Path) -> str:
    """What tracefs said of the last definition that it refused ("" where it says nothing)."""
    with suppress(OSError):
        lines = (root / "error_log").read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if "error:" in line]
        return said[-1].partition("error:")[2].strip() if said else ""
    return ""
