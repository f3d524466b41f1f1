"""A recording: one machine's trace, its events as columns."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.errors import UsageError
from counterpoint.traces.columns import EventBatch, int_column
from counterpoint.traces.container import BufferData, Container
from counterpoint.traces.contents import Contents
from counterpoint.traces.formats import EventFormat, Field, FormatTable
from counterpoint.traces.opening import read_contents
from counterpoint.traces.options import Options
from counterpoint.traces.write_pages import Batch, gathered

_COMMON_TYPE = Field("common_type", "unsigned short common_type", 0, 2, False, "int", 2)
_COMMON_PID = Field("common_pid", "int common_pid", 4, 4, True, "int", 4)


class Recording:
    """The events of one machine, stream by stream, in the order they were recorded.

    Columns over all n events (``len(recording)``): ``stamp`` u64 raw trace-clock values (ticks of ``x86-tsc``,
    ns of the other clocks), ``event_id`` u16, ``pid`` i32, ``stream_of`` u16 index into ``streams``. Other
    fields are decoded when asked for (``column``, ``batch``). Raises BadFileError from ``open``.
    """

    def __init__(self, contents: Contents) -> None:
        """Take what a reader found; use ``Recording.open``."""
        self._contents = contents
        self.path = Path(contents.path)
        self.name = self.path.stem
        self.warnings = contents.warnings
        self.options: Options = contents.options
        self.streams, self.losses = contents.streams, contents.losses
        self.stamp: U64 = contents.stamp
        self.sub_buffer_first_row: I64 = contents.sub_buffer_first_row
        self._data, self._offset, self._length = contents.data, contents.offset, contents.length
        lengths = np.array([s.last - s.first for s in self.streams], np.int64)
        self.stream_of = np.repeat(np.arange(len(self.streams), dtype=np.uint16), lengths)
        some = next(iter(self.formats.values()), None)
        common = {f.name: f for f in some.common if f.kind == "int"} if some else {}
        type_field = common.get("common_type", _COMMON_TYPE)
        pid_field = common.get("common_pid", _COMMON_PID)
        self.event_id = self._ints(type_field, self._offset, self._length).astype(np.uint16, copy=False)
        self.pid = self._ints(pid_field, self._offset, self._length).astype(np.int32, copy=False)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Recording:
        """Read the recording at ``path``, in any format of ``opening.FORMATS``; BadFileError where it cannot be."""
        return cls(read_contents(path))

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
    def format(self) -> str:
        """The name of the format it was read from, such as "trace.dat"."""
        return self._contents.format

    @property
    def container(self) -> Container:
        """The trace.dat file it was read from; UsageError where it was read from something else."""
        if self._contents.container is None:
            raise UsageError(f"{self.path} is {self.format}, and this is only possible with trace.dat files")
        return self._contents.container

    @property
    def is_dat(self) -> bool:
        """Whether it was read from a trace.dat file."""
        return self._contents.container is not None

    @property
    def version(self) -> int | None:
        """The version of trace.dat, 6 or 7; None for other formats."""
        return self.container.version if self.is_dat else None

    @property
    def compression(self) -> str:
        """The name of a trace.dat file's compression; "none" for version 6 and other formats."""
        return self.container.compression if self.is_dat else "none"

    @property
    def option_names(self) -> list[str]:
        """The names of a trace.dat file's options, in file order."""
        return [option.name for option in self.container.options] if self.is_dat else []

    @property
    def buffers(self) -> list[BufferData]:
        """A trace.dat file's buffers: the top one first, then instances."""
        return self.container.buffers if self.is_dat else []

    @property
    def long_size(self) -> int:
        """Bytes of a long of the recorded kernel."""
        return self._contents.long_size

    @property
    def big_endian(self) -> bool:
        """Byte order of the recorded machine."""
        return self._contents.big_endian

    @property
    def sub_buffer_size(self) -> int:
        """Bytes of a sub-buffer, the largest of all buffers."""
        return self._contents.sub_buffer_size

    @cached_property
    def clock(self) -> str:
        """The trace clock of the stamps: the option's, else the top buffer's, else "local" (ftrace's default)."""
        return self._contents.clock

    @property
    def unit(self) -> str:
        """Unit of the stamps: "ticks" of the counter for ``x86-tsc`` and other raw counters, else "ns"."""
        return "ticks" if self.clock in ("x86-tsc", "ppc-tb", "counter", "unknown counter") else "ns"

    def in_clock(self, clock: str) -> Recording:
        """The same recording, of whose unnamed clock it is said what it is; UsageError where the file names another."""
        if self.clock not in ("unknown", "unknown counter", clock):
            raise UsageError(f"{self.path} says itself that its clock is {self.clock}, and not {clock}")
        said = Recording(replace(self._contents, clock=clock))
        if said.unit != self.unit and self.clock != clock:
            raise UsageError(f"{self.path} has stamps in {self.unit}, and {clock} counts {said.unit}")
        return said

    @property
    def rounding(self) -> tuple[int, int]:
        """By how many units a true stamp may lie before and after ``stamp``: (0, 0) where stamps are whole."""
        return self._contents.rounding

    @property
    def has_fields(self) -> bool:
        """Whether events have all their fields, and not only what could be read of how they were printed."""
        return self._contents.has_fields

    @property
    def cpus(self) -> int:
        """CPUs of the recorded machine: the most that any part of the file speaks of."""
        return self._contents.cpus

    # -- events

    @cached_property
    def formats(self) -> FormatTable:
        """The file's event formats by event id."""
        return FormatTable(self._contents.format_texts, self.long_size)

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
        return self._contents.comms()

    def comm(self, pid: int) -> str:
        """The command name of ``pid``: "<idle>" for 0, "<...>" where the file does not say."""
        return "<idle>" if pid == 0 else self.cmdlines.get(pid, "<...>")

    def kallsyms(self) -> bytes:
        """The text of /proc/kallsyms as recorded (b"" where it was not)."""
        return self._contents.kallsyms()

    def printk_formats(self) -> bytes:
        """The text of printk_formats as recorded."""
        return self._contents.printk()

    def _ints(self, field: Field, offset: I64, length: npt.NDArray[np.int32]) -> npt.NDArray[np.integer]:
        return int_column(self._data, field, offset, length, self.big_endian)
