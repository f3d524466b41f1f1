"""The events of one machine that are on the timeline, by kind, as integer columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, Bools, relative
from counterpoint.timeline.merge import Machine

_HARDIRQ, _NMI = 0x08, 0x40
"""Of common_flags (include/linux/trace_events.h)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Events of one kind in the order of their times, as columns i64[n].

    ``row``, ``when`` (from the timeline's base), ``cpu``, ``pid``, and the ``fields`` asked for: unsigned ones as their
    two's complement.
    """

    row: I64
    when: I64
    cpu: I64
    pid: I64
    fields: dict[str, I64]

    def __len__(self) -> int:
        """Number of events."""
        return len(self.row)

    def __getitem__(self, name: str) -> I64:
        """A field."""
        return self.fields[name]

    def take(self, at: npt.NDArray[np.integer] | Bools) -> Rows:
        """The events at the places ``at``."""
        fields = {name: column[at] for name, column in self.fields.items()}
        return Rows(self.row[at], self.when[at], self.cpu[at], self.pid[at], fields)


class Placed:
    """The events of ``machine`` that are on the timeline; times count from ``base``."""

    def __init__(self, machine: Machine, base: int) -> None:
        """Nothing is read yet."""
        self.machine = machine
        self.recording = machine.recording
        self.base = base
        self._cpus = np.array([s.cpu for s in self.recording.streams] or [0], np.int64)

    def when(self, rows: I64) -> I64:
        """The times i64[n] of the events at ``rows``."""
        return relative(self.machine.host_stamp[rows], self.base)

    def cpu(self, rows: I64) -> I64:
        """The CPUs i64[n] of the events at ``rows``."""
        return self._cpus[self.recording.stream_of[rows]]

    def is_listed(self, system: str, name: str) -> bool:
        """Whether the recording was to hold such events; it may be that none happened."""
        return self.recording.format_named(system, name) is not None

    def of(self, system: str, name: str, fields: Sequence[str] = (), *, proved: bool = False) -> Rows | None:
        """The events ``system:name``; None where the recording has none of that kind with these integer fields.

        ``proved``: those alone whose place on the timeline is proved.
        """
        event = self.recording.format_named(system, name)
        if event is None or any((f := event.field(n)) is None or f.kind != "int" or f.dynamic for n in fields):
            return None
        row = self.recording.rows(event)
        row = row[(self.machine.proved if proved else self.machine.placed)[row]]
        when = self.when(row)
        order = np.lexsort((row, when))
        row, when = row[order], when[order]
        columns = {name: self.recording.column(event, name, row).astype(np.int64) for name in fields}
        return Rows(row, when, self.cpu(row), self.recording.pid[row].astype(np.int64), columns)

    def in_interrupt(self, cpu: int) -> Rows:
        """The events of ``cpu`` that hard interrupts' handlers made, of those whose place on the timeline is proved."""
        recording = self.recording
        some = next((e for e in recording.formats.values() if e.field("common_flags") is not None), None)
        row = np.flatnonzero(self.machine.proved & (self._cpus[recording.stream_of] == cpu))
        flags = np.zeros(len(row), np.int64) if some is None else recording.column(some, "common_flags", row)
        row = row[(flags & (_HARDIRQ | _NMI)) == _HARDIRQ]
        when = self.when(row)
        order = np.lexsort((row, when))
        row = row[order]
        return Rows(row, when[order], self.cpu(row), recording.pid[row].astype(np.int64), {})

    @cached_property
    def _lost(self) -> tuple[I64, I64]:
        """Spans (from, to) of time in which events of some CPU were lost, in order of their ends."""
        recording, losses = self.recording, self.recording.losses
        first = np.array([s.first for s in recording.streams], np.int64)[losses.stream]
        last = np.array([s.last for s in recording.streams], np.int64)[losses.stream]
        placed = self.machine.placed
        lo, hi = np.full(len(first), -(1 << 62)), np.full(len(first), 1 << 62)
        some = np.flatnonzero(losses.row > first)
        some = some[placed[losses.row[some] - 1]]
        lo[some] = self.when(losses.row[some] - 1)
        some = np.flatnonzero(losses.row < last)
        some = some[placed[losses.row[some]]]
        hi[some] = self.when(losses.row[some])
        order = np.argsort(hi, kind="stable")
        lo, hi = lo[order], hi[order]
        # the earliest beginning of all that end at the same time or later
        return np.minimum.accumulate(lo[::-1])[::-1], hi

    def lost_within(self, begin: I64, end: I64) -> Bools:
        """Whether events of any CPU may be missing from each of the spans [begin, end] i64[n]."""
        lo, hi = self._lost
        if not len(lo):
            return np.zeros(len(begin), np.bool_)
        at = np.searchsorted(hi, begin, side="right")
        found: Bools = (at < len(hi)) & (lo[np.minimum(at, len(hi) - 1)] < end)
        return found


def first_since(request_key: I64, requested: I64, delivery_key: I64, delivered: I64) -> tuple[I64, I64]:
    """Which request each delivery answers, where requests of one key that come before a delivery become one.

    The keys i64[n], i64[m] and times i64[n], i64[m]. Returns for each delivery the place i64[m] of the earliest request
    of its key after the delivery of that key before it, and the place i64[m] of that delivery; -1, -1: there is no such
    request. A pending interrupt is a bit: what is requested while it is set is answered by the same delivery. Before
    the first delivery of a key nothing says since when it was pending: it has none. At one time a request comes first.
    """
    n, m = len(requested), len(delivered)
    answers, before = np.full(m, -1, np.int64), np.full(m, -1, np.int64)
    if not n or not m:
        return answers, before
    key = np.r_[request_key, delivery_key]
    is_delivery = np.repeat(np.array([False, True]), [n, m])
    order = np.lexsort((is_delivery, np.r_[requested, delivered], key))
    key, is_delivery = key[order], is_delivery[order]
    at = np.flatnonzero(is_delivery)
    # what follows the delivery before is the first request, and of the same key
    previous = np.r_[-1, at[:-1]]
    good = (previous >= 0) & (at - previous > 1)
    good &= key[at] == key[previous]
    at, previous = at[good], previous[good]
    answers[order[at] - n] = order[previous + 1]
    before[order[at] - n] = order[previous] - n
    return answers, before
