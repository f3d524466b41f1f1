"""Latencies of a guest's tasks, found in its own recording: from what was due, or woken, to the task on its CPU."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed, Rows
from counterpoint.analysis.timer_lateness import Expiries, expiries
from counterpoint.analysis.wakeups import ASLEEP, TO, WAKING, Switching, switching, wakeups
from counterpoint.clocks.counter import I64, MASK, Bools
from counterpoint.clocks.rate import Rate
from counterpoint.errors import UsageError
from counterpoint.timeline.merge import Machine
from counterpoint.traces.printing import Symbols
from counterpoint.traces.recording import Recording

_LCB_F_SPIN = 1

Kind = Literal["wakeup", "timer", "between", "interrupt", "sample"]


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
        self.placed = Placed(machine, base)
        self.recording: Recording = machine.recording
        self._rate = rate
        self._symbols = Symbols(machine.recording.kallsyms, machine.recording.printk_formats)

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

    def wakeups(self) -> Latencies:
        """Each waking of a task that was asleep, to the switch to it, as ``wakeups.wakeups`` has them."""
        found = wakeups(self.placed)
        if found is None:
            return Latencies("wakeup", *[np.zeros(0, np.int64)] * 10)
        timer, due, earlier = self._due(found.waking)
        begin = np.where(timer >= 0, np.minimum(due, found.woken), found.woken)
        end = np.maximum(found.ran, begin)
        return Latencies(
            "wakeup", begin, found.woken, end, found.pid, found.waker, found.cpu, timer, found.waking, found.switch,
            earlier,
        )  # fmt: skip

    def _due(self, rows: I64) -> tuple[I64, I64, I64]:
        """Of events that an hrtimer's function made: its hrtimer_expire_entry (-1: none), when that was due, how vague.

        The kernel's own tick is none: whom that wakes did not wait for it.
        """
        timer, due, earlier = np.full(len(rows), -1, np.int64), np.zeros_like(rows), np.zeros_like(rows)
        known, when, vague = self._expired
        entered = self.placed.of("timer", "hrtimer_expire_entry")
        left = self.placed.of("timer", "hrtimer_expire_exit")
        if known is None or entered is None or not len(rows) or not len(known):
            return timer, due, earlier
        edges = np.concatenate([entered.row, left.row if left else rows[:0]])
        order = np.argsort(edges, kind="stable")
        edges, begins = edges[order], order < len(entered)
        # rows of one stream lie together, in their order
        last = np.searchsorted(edges, rows) - 1
        inside = (last >= 0) & begins[last]
        inside &= self.recording.stream_of[edges[last]] == self.recording.stream_of[rows]
        by_row = np.argsort(known.row)
        at = np.minimum(np.searchsorted(known.row[by_row], edges[last]), len(by_row) - 1)
        at = by_row[at]
        inside &= (known.row[at] == edges[last]) & ~self._ticks(known.function)[at]
        found, at = np.flatnonzero(inside), at[inside]
        timer[found], due[found], earlier[found] = known.row[at], when[at], vague[at]
        return timer, due, earlier

    @cached_property
    def _expired(self) -> tuple[Expiries | None, I64, I64]:
        """The expiries of timers, when each was due at the earliest, and by how much earlier that may have been.

        The kernel reads ``now`` once for all timers that have expired, and stamps their entries after that
        (hrtimer_interrupt and __hrtimer_run_queues, kernel/time/hrtimer.c): before the first of them, and after the
        event before it.
        """
        none = np.zeros(0, np.int64)
        entered = self.placed.of("timer", "hrtimer_expire_entry", ("now",))
        known = expiries(self.placed)
        if known is None or entered is None or self._rate is None:
            return None, none, none
        late = known.late_ns + known.slack_ns
        known = known.take(late >= 0)
        first = _first_of_its_reading(self.recording, entered, known.row)
        due = self.placed.when(first) - self._rate.from_ns(late[late >= 0])[0].astype(np.int64)
        before = np.maximum(first - 1, 0)
        same = self.recording.stream_of[before] == self.recording.stream_of[first]
        same &= self.placed.machine.placed[before]
        return known, due, np.where(same, self.placed.when(first) - self.placed.when(before), 0)

    def timers(self) -> Latencies:
        """Each hrtimer, from when it was due to its hrtimer_expire_entry."""
        known, due, vague = self._expired
        if known is None:
            return Latencies("timer", *[np.zeros(0, np.int64)] * 10)
        end = np.maximum(known.when, due)
        pid = self.recording.pid[known.row].astype(np.int64)
        return Latencies("timer", due, end, end, pid, known.cpu, known.cpu, known.row, known.row, known.row, vague)

    def samples(self, pattern: str, field: str) -> Latencies:
        """Events called so, whose integer ``field`` holds the ns that they tell of: timerlat's and osnoise's samples.

        UsageError where none of them has such a field.
        """
        if self._rate is None:
            return Latencies("sample", *[np.zeros(0, np.int64)] * 10)
        rows, took = [], []
        for event_id in np.unique(self.recording.event_id[self.rows_named(pattern)]).tolist():
            event = self.recording.formats[event_id]
            known = event.field(field)
            if known is not None and known.kind == "int" and not known.dynamic:
                mine = self.recording.rows(event)
                mine = mine[self.placed.machine.placed[mine]]
                rows.append(mine)
                took.append(self.recording.column(event, field, mine).astype(np.int64))
        if not rows:
            raise UsageError(f"{pattern} of {self.recording.path} has no integer field {field}")
        row, ns = np.concatenate(rows), np.concatenate(took)
        row, ns = row[ns >= 0], ns[ns >= 0]
        end, cpu, none = self.placed.when(row), self.placed.cpu(row), np.full(len(row), -1, np.int64)
        begin = end - self._rate.from_ns(ns)[0].astype(np.int64)
        pid = self.recording.pid[row].astype(np.int64)
        return Latencies("sample", begin, end, end, pid, cpu, cpu, none, row, row, np.zeros_like(none))

    def between(self, begins: I64, ends: I64) -> Latencies:
        """From each event of a task among the rows ``begins`` to its next among ``ends``.

        None where one of ``begins`` comes again before that, or events were lost between.
        """
        row = np.concatenate([begins, ends])
        opens = np.arange(len(row)) < len(begins)
        on = self.placed.machine.placed[row]
        row, opens = row[on], opens[on]
        pid, when = self.recording.pid[row].astype(np.int64), self.placed.when(row)
        order = np.lexsort((row, when, pid))
        row, opens, pid, when = row[order], opens[order], pid[order], when[order]
        at = np.flatnonzero(opens[:-1] & ~opens[1:] & (pid[:-1] == pid[1:])) if len(row) else row
        at = at[~self.placed.lost_within(when[at], when[at + 1])]
        first, last = row[at], row[at + 1]
        none = np.full(len(at), -1, np.int64)
        begin, end = self.placed.when(first), self.placed.when(last)
        return Latencies(
            "between",
            begin,
            begin,
            end,
            pid[at],
            self.placed.cpu(first),
            self.placed.cpu(last),
            none,
            first,
            last,
            np.zeros_like(none),
        )

    def spins(self, cpu: int) -> tuple[I64, I64]:
        """(from, to) i64: when a CPU waited for a lock without sleeping, by lock:contention_begin with LCB_F_SPIN and
        contention_end (include/trace/events/lock.h); none where that was not recorded.
        """
        begun = self.placed.of("lock", "contention_begin", ("flags",))
        ended = self.placed.of("lock", "contention_end")
        if begun is None or ended is None:
            none = np.zeros(0, np.int64)
            return none, none
        begun = begun.take((begun["flags"] & _LCB_F_SPIN != 0) & (begun.cpu == cpu))
        ended = ended.take(ended.cpu == cpu)
        row, when = np.r_[begun.row, ended.row], np.r_[begun.when, ended.when]
        opens = np.arange(len(row)) < len(begun)
        order = np.argsort(row, kind="stable")
        when, opens = when[order], opens[order]
        at = np.flatnonzero(opens[:-1] & ~opens[1:]) if len(row) else row
        return when[at], when[at + 1]

    def where(self, pid: int, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(from, to, CPU): where a task ran or waited to run between two of its own events; CPU -1: it slept."""
        times, kinds, cpus = self._of_task(pid)
        lo, hi = np.searchsorted(times, [begin, end], side="right").tolist()
        out: list[tuple[int, int, int]] = []
        cuts = [begin, *times[lo:hi].tolist(), end]
        # it runs at its own event, and what it does next each switch tells
        doing = [TO, *kinds[lo:hi].tolist()]
        after = np.r_[cpus[lo:], -1]
        for n, kind in enumerate(doing):
            if kind == ASLEEP:
                cpu = -1
            elif kind == WAKING and n and out and out[-1][2] >= 0:
                cpu = out[-1][2]
            else:
                # it is on, or waits for, the CPU that its next switch is on
                later = kinds[lo + n :]
                switch = np.flatnonzero(later != WAKING)
                cpu = int(after[n + switch[0]]) if len(switch) else int(cpus[-1]) if len(cpus) else -1
            out.append((cuts[n], cuts[n + 1], cpu))
        return out

    def _of_task(self, pid: int) -> tuple[I64, I64, I64]:
        """(when, kind, CPU) of a task's wakings and switches, in order."""
        known = self._switching
        if known is None:
            none = np.zeros(0, np.int64)
            return none, none, none
        mine = slice(*np.searchsorted(known.pid, [pid, pid + 1]).tolist())
        return known.when[mine], known.kind[mine], known.cpu[mine]

    @cached_property
    def _switching(self) -> Switching | None:
        return switching(self.placed)

    def _ticks(self, function: I64) -> Bools:
        """Which functions i64[n] are the kernel's own tick."""
        functions, at = np.unique(function, return_inverse=True)
        symbols = [self._symbols.table.find(int(f) & MASK) for f in functions.tolist()]
        return np.array([s is not None and s[0].startswith("tick_") for s in symbols] or [False], np.bool_)[at]


def _first_of_its_reading(recording: Recording, entered: Rows, row: I64) -> I64:
    """The first hrtimer_expire_entry that was made by the same reading of ``now`` as each of ``row`` i64[n]."""
    order = np.argsort(entered.row)
    entry, now = entered.row[order], entered["now"][order]
    stream = recording.stream_of[entry]
    fresh = np.r_[True, (now[1:] != now[:-1]) | (stream[1:] != stream[:-1])] if len(entry) else np.zeros(0, np.bool_)
    first = entry[np.maximum.accumulate(np.where(fresh, np.arange(len(entry)), 0))]
    return first[np.searchsorted(entry, row)]
