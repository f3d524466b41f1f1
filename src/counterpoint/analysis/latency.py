"""Latencies of a guest's tasks, found in its own recording: from what was due, or woken, to the task on its CPU."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.steps import held
from counterpoint.clocks.counter import I64, MASK, Bools, relative
from counterpoint.clocks.rate import Rate
from counterpoint.errors import UsageError
from counterpoint.timeline.merge import Machine
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.printing import Symbols
from counterpoint.traces.recording import Recording

_NOT_RUNNABLE = 0xFF
"""See ``edges``: the bits of prev_state that say why a thread sleeps."""

_LCB_F_SPIN = 1

_WAKE, _TO, _READY, _ASLEEP = 0, 1, 2, 3


Kind = Literal["wakeup", "timer", "between"]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies of one guest. Times i64[n] are counted from ``Timeline.base``, in the first host's units.

    ``kind`` "wakeup": from ``begin``, when a timer was due that woke the task ``pid`` (``timer`` -1: none is known;
    when it was woken), over ``woken``, its sched_waking on CPU ``waker``, to ``end``, the sched_switch to it on CPU
    ``cpu``. "timer": from when a timer was due to its hrtimer_expire_entry on ``cpu``; ``pid`` is the task that it
    interrupts. "between": from an event of ``pid`` to its next of another kind. ``timer``, ``first``, ``last``: the
    rows of the timer's hrtimer_expire_entry, of the event that ``woken`` is of, and of the one at ``end``. ``earlier``:
    by so much a timer may have been due before ``begin``, for its ``now`` was read before it was stamped.
    """

    kind: Kind
    begin: I64
    woken: I64
    end: I64
    pid: I64
    waker: I64
    cpu: I64
    timer: I64
    first: I64
    last: I64
    earlier: I64

    def __len__(self) -> int:
        """Number of latencies."""
        return len(self.begin)

    @property
    def took(self) -> I64:
        """From begin to end i64[n]."""
        return self.end - self.begin

    def take(self, at: npt.NDArray[np.integer] | Bools) -> Latencies:
        """Those at the places ``at``."""
        columns = [getattr(self, field.name)[at] for field in fields(self)[1:]]
        return Latencies(self.kind, *columns)


class GuestTasks:
    """A guest's recording as its tasks see it."""

    def __init__(self, machine: Machine, base: int, rate: Rate | None) -> None:
        """Times count from ``base``; ``rate`` is that of the first host's clock."""
        self.machine = machine
        self.recording: Recording = machine.recording
        self._base = base
        self._rate = rate
        self._symbols = Symbols(machine.recording.kallsyms, machine.recording.printk_formats)
        self._cpus = np.array([s.cpu for s in self.recording.streams] or [0], np.int64)

    def when(self, rows: I64) -> I64:
        """The times i64[n] of events."""
        return relative(self.machine.host_stamp[rows], self._base)

    def cpu(self, rows: I64) -> I64:
        """Their CPUs i64[n]."""
        return self._cpus[self.recording.stream_of[rows]]

    def _rows(self, system: str, name: str, *needed: str) -> tuple[EventFormat | None, I64]:
        """The format and the rows on the timeline of an event that has these integer fields."""
        event = self.recording.format_named(system, name)
        if event is None or any((f := event.field(n)) is None or f.kind != "int" for n in needed):
            return None, np.zeros(0, np.int64)
        rows = self.recording.rows(event)
        return event, rows[self.machine.placed[rows]]

    def rows_named(self, pattern: str) -> I64:
        """The rows of events called so ([SYSTEM:]NAME, with * and ?); UsageError where the recording has none."""
        found = [
            self.recording.rows(event_id)
            for event_id in self.recording.counts_by_id()
            if (event := self.recording.formats.get(event_id)) is not None
            and fnmatch.fnmatchcase(f"{event.system}:{event.name}" if ":" in pattern else event.name, pattern)
        ]
        if not found:
            raise UsageError(f"{self.recording.path} has no event {pattern}")
        return np.concatenate(found)

    def _column(self, event: EventFormat | None, name: str, rows: I64) -> I64:
        if event is None:
            return np.zeros(0, np.int64)
        return self.recording.column(event, name, rows).astype(np.int64)

    @cached_property
    def lost_after(self) -> I64:
        """The times i64, in order, of the last events before losses of any CPU."""
        losses = self.recording.losses
        first = np.array([s.first for s in self.recording.streams], np.int64)[losses.stream]
        rows = losses.row[losses.row > first] - 1
        return np.sort(self.when(rows[self.machine.placed[rows]]))

    @cached_property
    def _switching(self) -> tuple[I64, I64, I64]:
        """(row, pid, kind) of the wakings of and switches to and from each task, sorted by task and time."""
        switch, rows = self._rows("sched", "sched_switch", "prev_pid", "prev_state", "next_pid")
        wake, woken = self._rows("sched", "sched_waking", "pid")
        prev, following = self._column(switch, "prev_pid", rows), self._column(switch, "next_pid", rows)
        asleep = (self._column(switch, "prev_state", rows) & _NOT_RUNNABLE) != 0
        pid = np.concatenate([self._column(wake, "pid", woken), following, prev])
        row = np.concatenate([woken, rows, rows])
        kind = np.concatenate([np.full(len(woken), _WAKE), np.full(len(rows), _TO), np.where(asleep, _ASLEEP, _READY)])
        # the idle task is not woken
        real = pid > 0
        pid, row, kind = pid[real], row[real], kind[real]
        when = self.when(row)
        order = np.lexsort((row, when, pid))
        return row[order], pid[order], kind[order]

    def wakeups(self) -> Latencies:
        """Each waking of a task that was asleep, to the next switch to it; none where events were lost between."""
        row, pid, kind = self._switching
        when = self.when(row)
        fresh = np.r_[True, pid[1:] != pid[:-1]] if len(pid) else np.zeros(0, np.bool_)
        # what it was before, by its own switches; of several wakings of one sleep the first counts
        state = held(np.where(kind == _WAKE, np.where(fresh, _READY, -1), kind))
        begins = (kind == _WAKE) & (state == _ASLEEP)
        begins[1:] &= ~((kind[:-1] == _WAKE) & (pid[1:] == pid[:-1]))
        at = np.flatnonzero(begins)
        # its next switch
        switches = np.flatnonzero(kind != _WAKE)
        to = switches[np.minimum(np.searchsorted(switches, at), len(switches) - 1)] if len(switches) else at
        good = (to > at) & (pid[to] == pid[at]) & (kind[to] == _TO)
        at, to = at[good], to[good]
        lost = np.searchsorted(self.lost_after, when[to]) > np.searchsorted(self.lost_after, when[at])
        at, to = at[~lost], to[~lost]
        timer, due, earlier = self._due(row[at])
        begin = np.where(timer >= 0, np.minimum(due, when[at]), when[at])
        end = np.maximum(when[to], begin)
        waker, cpu = self.cpu(row[at]), self.cpu(row[to])
        return Latencies("wakeup", begin, when[at], end, pid[at], waker, cpu, timer, row[at], row[to], earlier)

    def _due(self, rows: I64) -> tuple[I64, I64, I64]:
        """Of events that an hrtimer's function made: its hrtimer_expire_entry (-1: none), and ``_due_of`` that."""
        timer, due, earlier = (
            np.full(len(rows), -1, np.int64),
            np.zeros(len(rows), np.int64),
            np.zeros(len(rows), np.int64),
        )
        event, entered = self._rows("timer", "hrtimer_expire_entry", "hrtimer", "now")
        _, left = self._rows("timer", "hrtimer_expire_exit", "hrtimer")
        if event is None or not len(entered) or not len(rows) or self._rate is None:
            return timer, due, earlier
        edges = np.concatenate([entered, left])
        order = np.argsort(edges, kind="stable")
        edges, begins = edges[order], order < len(entered)
        # rows of one stream lie together, in their order
        last = np.searchsorted(edges, rows) - 1
        inside = (last >= 0) & begins[last]
        inside &= self.recording.stream_of[edges[last]] == self.recording.stream_of[rows]
        found = np.flatnonzero(inside)
        entry = edges[last[found]]
        known = ~self._ticks(event, entry)
        found, entry = found[known], entry[known]
        known, when, vague = self._due_of(event, np.sort(entered), entry)
        timer[found[known]] = entry[known]
        due[found], earlier[found] = when, vague
        return timer, due, earlier

    def _due_of(self, event: EventFormat, entered: I64, entry: I64) -> tuple[Bools, I64, I64]:
        """Of hrtimer_expire_entry events: whether it is known when they were due, when that was, and how vague it is.

        The kernel reads ``now`` once for all timers that have expired, and stamps their entries after that
        (hrtimer_interrupt and __hrtimer_run_queues, kernel/time/hrtimer.c): before the first of them, and after the
        event before it.
        """
        assert self._rate is not None
        expires, now = self._expires(event, entry), self._column(event, "now", entry)
        known = (expires >= 0) & (now >= expires)
        first = self._first_of_its_reading(event, entered, entry)
        late = self._rate.from_ns(np.where(known, now - expires, 0))[0].astype(np.int64)
        before = np.maximum(first - 1, 0)
        same = (self.recording.stream_of[before] == self.recording.stream_of[first]) & self.machine.placed[before]
        return known, self.when(first) - late, np.where(same, self.when(first) - self.when(before), 0)

    def timers(self) -> Latencies:
        """Each hrtimer, from when it was due to its hrtimer_expire_entry."""
        event, entered = self._rows("timer", "hrtimer_expire_entry", "hrtimer", "now")
        if event is None or self._rate is None or not len(entered):
            entered = entered[:0]
            return Latencies("timer", *[entered] * 10)
        known, due, vague = self._due_of(event, np.sort(entered), entered)
        entry, due, vague = entered[known], due[known], vague[known]
        cpu = self.cpu(entry)
        end = np.maximum(self.when(entry), due)
        return Latencies(
            "timer", due, end, end, self.recording.pid[entry].astype(np.int64), cpu, cpu, entry, entry, entry, vague
        )

    def between(self, begins: I64, ends: I64) -> Latencies:
        """From each event of a task among the rows ``begins`` to its next among ``ends``.

        None where one of ``begins`` comes again before that, or events were lost between.
        """
        row = np.concatenate([begins, ends])
        opens = np.arange(len(row)) < len(begins)
        on = self.machine.placed[row]
        row, opens = row[on], opens[on]
        pid, when = self.recording.pid[row].astype(np.int64), self.when(row)
        order = np.lexsort((row, when, pid))
        row, opens, pid, when = row[order], opens[order], pid[order], when[order]
        at = np.flatnonzero(opens[:-1] & ~opens[1:] & (pid[:-1] == pid[1:])) if len(row) else row
        lost = np.searchsorted(self.lost_after, when[at + 1]) > np.searchsorted(self.lost_after, when[at])
        at = at[~lost]
        first, last = row[at], row[at + 1]
        none = np.full(len(at), -1, np.int64)
        begin, end = self.when(first), self.when(last)
        return Latencies(
            "between",
            begin,
            begin,
            end,
            pid[at],
            self.cpu(first),
            self.cpu(last),
            none,
            first,
            last,
            np.zeros_like(none),
        )

    def spins(self, cpu: int) -> tuple[I64, I64]:
        """(from, to) i64: when a CPU waited for a lock without sleeping, by lock:contention_begin with LCB_F_SPIN and
        contention_end (include/trace/events/lock.h); none where that was not recorded.
        """
        begin, begun = self._rows("lock", "contention_begin", "flags")
        _, ended = self._rows("lock", "contention_end")
        begun = begun[self._column(begin, "flags", begun) & _LCB_F_SPIN != 0]
        row = np.concatenate([begun, ended])
        opens = np.arange(len(row)) < len(begun)
        here = self.cpu(row) == cpu
        row, opens = row[here], opens[here]
        order = np.argsort(row, kind="stable")
        row, opens = row[order], opens[order]
        at = np.flatnonzero(opens[:-1] & ~opens[1:]) if len(row) else row
        return self.when(row[at]), self.when(row[at + 1])

    def where(self, pid: int, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(from, to, CPU): where a task ran or waited to run between two of its own events; CPU -1: it slept."""
        times, kinds, cpus = self._of_task(pid)
        lo, hi = np.searchsorted(times, [begin, end], side="right").tolist()
        out: list[tuple[int, int, int]] = []
        cuts = [begin, *times[lo:hi].tolist(), end]
        # it runs at its own event, and what it does next each switch tells
        doing = [_TO, *kinds[lo:hi].tolist()]
        after = np.r_[cpus[lo:], -1]
        for n, kind in enumerate(doing):
            if kind == _ASLEEP:
                cpu = -1
            elif kind == _WAKE and n and out and out[-1][2] >= 0:
                cpu = out[-1][2]
            else:
                # it is on, or waits for, the CPU that its next switch is on
                later = kinds[lo + n :]
                switch = np.flatnonzero(later != _WAKE)
                cpu = int(after[n + switch[0]]) if len(switch) else int(cpus[-1]) if len(cpus) else -1
            out.append((cuts[n], cuts[n + 1], cpu))
        return out

    def _of_task(self, pid: int) -> tuple[I64, I64, I64]:
        """(when, kind, CPU) of a task's wakings and switches, in order."""
        row, tid, kind = self._switching
        mine = slice(*np.searchsorted(tid, [pid, pid + 1]).tolist())
        rows = row[mine]
        return self.when(rows), kind[mine], self.cpu(rows)

    def _first_of_its_reading(self, event: EventFormat, entered: I64, entry: I64) -> I64:
        """The first entry that was made by the same reading of ``now`` as each of ``entry``."""
        now, stream = self._column(event, "now", entered), self.recording.stream_of[entered]
        fresh = np.r_[True, (now[1:] != now[:-1]) | (stream[1:] != stream[:-1])]
        first = entered[np.maximum.accumulate(np.where(fresh, np.arange(len(entered)), 0))]
        return first[np.searchsorted(entered, entry)]

    def _expires(self, event: EventFormat, entry: I64) -> I64:
        """When the timers of these entries were to expire at the earliest, by their last hrtimer_start; -1: unknown."""
        start, started = self._rows("timer", "hrtimer_start", "hrtimer", "softexpires")
        if not len(started) or not len(entry):
            return np.full(len(entry), -1, np.int64)
        all_entries = np.unique(entry)
        row = np.concatenate([started, all_entries])
        address = np.concatenate([self._column(start, "hrtimer", started), self._column(event, "hrtimer", all_entries)])
        expires = self._column(start, "softexpires", started)
        number = np.concatenate([np.arange(len(started)), np.full(len(all_entries), -1)])
        order = np.lexsort((row, self.when(row), address))
        last = held(number[order])
        same = (last >= 0) & (address[order] == address[: len(started)][last])
        out = np.full(len(row), -1, np.int64)
        out[order] = np.where(same, expires[last], -1)
        return out[len(started) :][np.searchsorted(all_entries, entry)]

    def _ticks(self, event: EventFormat, entry: I64) -> Bools:
        """Which are the kernel's own tick: whom that wakes did not wait for it."""
        field = event.field("function")
        if field is None or field.kind != "int":
            return np.zeros(len(entry), np.bool_)
        functions, at = np.unique(self.recording.column(event, "function", entry), return_inverse=True)
        symbols = [self._symbols.table.find(int(f) & MASK) for f in functions.tolist()]
        return np.array([s is not None and s[0].startswith("tick_") for s in symbols] or [False], np.bool_)[at]
