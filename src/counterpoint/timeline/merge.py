"""All recordings in one order, in host time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.clocks.rate import Rate
from counterpoint.traces.recording import Recording

if TYPE_CHECKING:
    import pyarrow

    from counterpoint.timeline.details import Details


@dataclass(frozen=True, slots=True)
class Machine:
    """A recording on the timeline. ``host_stamp`` u64[n]: its events in host trace-clock values.

    ``placed`` bool[n]: False for events whose clock map is not known; they are not on the timeline. ``proved`` bool[n]:
    events of which it is proved, to within the bounds of all levels, that they lie where they are placed.
    """

    name: str
    recording: Recording
    parent: str | None
    host_stamp: U64
    placed: npt.NDArray[np.bool_]
    proved: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Loss:
    """Events lost before position ``at`` of the timeline: ``count`` of them (-1: not counted) on ``cpu``."""

    at: int
    machine: int
    cpu: int
    count: int


class Timeline:
    """The merged order: position i holds row ``row[i]`` of machine ``machine[i]``.

    Sorted by host stamp, stable; ties the host first, then guests as given, each by buffer and CPU. ``machine``
    u16[n], ``row`` i64[n], ``host_ticks`` u64[n] (the host's trace-clock values, whatever their unit).
    """

    def __init__(
        self, machines: Sequence[Machine], rate: Rate | None, details: Callable[[], Sequence[Details]] | None = None
    ) -> None:
        """Merge ``machines``, the host first. ``rate`` turns host values to ns (None: not known).

        ``details`` are asked for what else is known of each machine's events (None: nothing is).
        """
        self.machines = tuple(machines)
        self.rate = rate
        self._details = details
        self.base = machines[0].recording.base
        rows = [np.flatnonzero(m.placed) for m in machines]
        stamp = np.concatenate([m.host_stamp[r] for m, r in zip(machines, rows, strict=True)])
        order = np.argsort(relative(stamp, self.base), kind="stable")
        self.host_ticks: U64 = stamp[order]
        index = np.repeat(np.arange(len(machines), dtype=np.uint16), [len(r) for r in rows])
        self.machine: npt.NDArray[np.uint16] = index[order]
        self.row: I64 = np.concatenate(rows)[order]

    def __len__(self) -> int:
        """Number of events."""
        return len(self.row)

    @property
    def unplaced(self) -> int:
        """Events left out because no clock map is known for them."""
        return sum(int((~m.placed).sum()) for m in self.machines)

    @property
    def unproved(self) -> int:
        """Events on it whose place is not proved: their map is in doubt, or they lie beyond what the host saw of it."""
        return sum(int((m.placed & ~m.proved).sum()) for m in self.machines)

    @property
    def has_ns(self) -> bool:
        """Whether ``ts_ns`` is in nanoseconds; else it counts the host clock's ticks."""
        return self.rate is not None

    @cached_property
    def ts_ns(self) -> I64:
        """Host time in ns i64[n]; ticks where the rate is not known (``has_ns``)."""
        if self.rate is None:
            return self.host_ticks.view(np.int64)
        return self.rate.array_to_ns(self.host_ticks)

    def _gather(self, columns: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        out = np.empty(len(self), columns[0].dtype)
        for index, column in enumerate(columns):
            mine = self.machine == index
            out[mine] = column[self.row[mine]]
        return out

    @cached_property
    def cpu(self) -> npt.NDArray[np.uint16]:
        """CPU number u16[n], of the event's own machine."""
        columns = []
        for m in self.machines:
            cpus = np.array([s.cpu for s in m.recording.streams] or [0], np.uint16)
            columns.append(cpus[m.recording.stream_of])
        return self._gather(columns).astype(np.uint16, copy=False)

    @cached_property
    def pid(self) -> npt.NDArray[np.int32]:
        """Thread id i32[n], of the event's own machine."""
        return self._gather([m.recording.pid for m in self.machines]).astype(np.int32, copy=False)

    @cached_property
    def event_id(self) -> npt.NDArray[np.uint16]:
        """Event id u16[n], of the event's own machine's formats."""
        return self._gather([m.recording.event_id for m in self.machines]).astype(np.uint16, copy=False)

    def losses(self) -> list[Loss]:
        """The lost-event marks of all machines, in timeline order."""
        out = []
        for index, machine in enumerate(self.machines):
            losses = machine.recording.losses
            if not len(losses.row):
                continue
            mine = np.flatnonzero(self.machine == index)
            at_row = np.full(len(machine.recording) + 1, len(self), np.int64)
            at_row[self.row[mine]] = mine
            for stream, row, count in zip(
                losses.stream.tolist(), losses.row.tolist(), losses.count.tolist(), strict=True
            ):
                of = machine.recording.streams[stream]
                # after its CPU's last event, row is another CPU's
                at = int(at_row[row]) if row < of.last else int(at_row[row - 1]) + 1 if row > of.first else 0
                out.append(Loss(min(at, len(self)), index, of.cpu, count))
        return sorted(out, key=lambda loss: (loss.at, loss.machine, loss.cpu))

    @cached_property
    def details(self) -> Sequence[Details] | None:
        """The bounds of each machine's events and whose its threads are; None where nothing was proved."""
        return self._details() if self._details is not None else None

    def to_arrow(self, *, fields: bool = True) -> pyarrow.Table:
        """All events as a ``pyarrow.Table``, a row an event: see ``arrow_batches``, which takes less memory."""
        return self.arrow_batches(fields=fields).read_all()

    def arrow_batches(self, *, fields: bool = True) -> pyarrow.RecordBatchReader:
        """All events in order as a ``pyarrow.RecordBatchReader``, to be read once; docs/parquet.md has the columns.

        ``fields``: with the events' own fields, as a struct of typed columns. UsageError where pyarrow is missing.
        """
        from counterpoint.timeline.arrow import ArrowEvents

        return ArrowEvents(self, fields=fields).reader()

    def blocks(self, size: int = 1 << 16) -> Iterator[slice]:
        """Slices of at most ``size`` events that cover the timeline in order."""
        for begin in range(0, len(self), size):
            yield slice(begin, min(begin + size, len(self)))
