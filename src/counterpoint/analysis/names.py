"""What a thread was called at a time: a recording keeps each thread's last name alone, its switches the one it had."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from counterpoint.analysis.steps import held
from counterpoint.clocks.counter import I64, relative
from counterpoint.timeline.merge import Machine


class NamesAt:
    """The names of one machine's threads, times counted from ``base``."""

    def __init__(self, machine: Machine, base: int) -> None:
        """Nothing is read yet."""
        self._recording = machine.recording
        self._machine = machine
        self._base = base
        self._said: dict[int, str] = {}
        self._event = self._recording.format_named("sched", "sched_switch")
        comm = self._event.field("next_comm") if self._event else None
        self._has_names = comm is not None and comm.kind == "string"

    @cached_property
    def _switches(self) -> tuple[I64, I64, I64]:
        """(thread, when, row) of the switches to threads, sorted so."""
        event = self._event
        none = np.zeros(0, np.int64)
        if event is None:
            return none, none, none
        rows = self._recording.rows(event)
        try:
            tid = self._recording.column(event, "next_pid", rows).astype(np.int64)
        except KeyError:
            return none, none, none
        when = relative(self._machine.host_stamp[rows], self._base)
        order = np.lexsort((when, tid))
        return tid[order], when[order], rows[order]

    def of(self, tid: int, when: int) -> str:
        """The name of ``tid`` at ``when``: by the last switch to it, else the first, else as the recording has it."""
        tids, times, rows = self._switches
        first, last = np.searchsorted(tids, [tid, tid + 1]).tolist()
        if tid == 0 or first == last or self._event is None or not self._has_names:
            return self._recording.comm(tid)
        at = max(int(np.searchsorted(times[first:last], when, side="right")) - 1, 0)
        row = int(rows[first + at])
        if row not in self._said:
            self._said[row] = self._recording.batch(self._event, np.array([row])).text("next_comm")[0]
        return self._said[row]

    def of_many(self, tids: I64, when: I64) -> tuple[I64, list[str]]:
        """``of`` for threads i64[n] at times i64[n] at once: an index i64[n] into names, some of which may be equal."""
        switched, times, rows = self._switches
        known = len(switched)
        if not known or self._event is None or not self._has_names:
            texts: list[str] = []
            said = np.zeros(0, np.int64)
        else:
            field = self._event.field("next_comm")
            assert field is not None
            texts, said = self._recording.batch(self._event, rows).distinct_text(field)
        threads = np.r_[switched, tids]
        order = np.lexsort((np.arange(len(threads)) >= known, np.r_[times, when], threads))
        last = np.empty(len(threads), np.int64)
        last[order] = held(np.where(order < known, order, -1))
        at = last[known:]
        if known:
            # one of another thread is none: then the first of this one
            at = np.where((at >= 0) & (switched[at] == tids), at, np.searchsorted(switched, tids))
            at = np.where(switched[np.minimum(at, known - 1)] == tids, np.minimum(at, known - 1), -1)
        others, number = np.unique(tids, return_inverse=True)
        index = number + len(texts)
        if texts:
            index = np.where((at >= 0) & (tids != 0), said[at], index)
        return index, [*texts, *(self._recording.comm(tid) for tid in others.tolist())]

    def switch_to(self, tid: int, when: int) -> int | None:
        """The row of the last switch to ``tid`` up to ``when``; None: there is none."""
        tids, times, rows = self._switches
        first, last = np.searchsorted(tids, [tid, tid + 1]).tolist()
        at = int(np.searchsorted(times[first:last], when, side="right")) - 1
        return int(rows[first + at]) if at >= 0 else None

    def all_of(self, tid: int) -> set[str]:
        """All the names that ``tid`` had."""
        tids, _, rows = self._switches
        first, last = np.searchsorted(tids, [tid, tid + 1]).tolist()
        names = {self._recording.comm(tid)}
        if tid and self._event is not None and self._has_names and first < last:
            names |= set(self._recording.batch(self._event, rows[first:last]).text("next_comm"))
        return names
