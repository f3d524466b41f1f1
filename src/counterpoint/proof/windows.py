"""Run windows: when a host thread may have been in guest mode, from the host's kvm events.

A guest's instruction runs only between a ``kvm_entry`` and the next ``kvm_exit`` of its vCPU's thread. The
entry's stamp is taken before, the exit's after the guest runs, so a window is never too narrow. Where the
host did not see, nothing can be said: those spans are *unknown* and allow everything.

Where a recording has neither event but ``sched_switch``, a thread's spans on a CPU are its windows: from the switch to
it, stamped before the thread runs, to the switch away, stamped while it still does (kernel/sched/core.c, __schedule).
They hold all that its vCPU did, and are as much wider as the thread does more than run the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, distinct, relative
from counterpoint.traces.recording import Recording

FOREVER = np.int64(1 << 62)
"""Stands for an open end, in host units relative to the base."""

_ENTRY, _EXIT = 0, 1

Spans = tuple[I64, I64]


class WindowKind(StrEnum):
    """What the windows are made of: guest mode itself, or the thread's time on a CPU."""

    KVM = "kvm"
    SCHED_SWITCH = "sched_switch"

    @property
    def edge_events(self) -> tuple[str, str]:
        """The names of the host events that begin and end a window."""
        return ("kvm_entry", "kvm_exit") if self is WindowKind.KVM else ("sched_switch", "sched_switch")


@dataclass(frozen=True, slots=True)
class RunWindows:
    """One host thread's time, cut in spans, in host trace-clock units relative to ``base``.

    ``lo``, ``hi`` i64[k]: closed spans where the thread may be in guest mode, in order; they may touch but do
    not overlap. ``is_run`` bool[k]: a run window; the others are unknown (the first and the last always).
    ``entry_row``, ``exit_row`` i64[k]: the host rows that bound a run window (-1 elsewhere). Between two spans
    lies a gap: the host saw the thread outside guest mode. ``kind``: the events that the windows are made of.
    """

    tid: int
    base: int
    lo: I64
    hi: I64
    is_run: npt.NDArray[np.bool_]
    entry_row: I64
    exit_row: I64
    kind: WindowKind = WindowKind.KVM

    @property
    def count(self) -> int:
        """Number of run windows."""
        return int(self.is_run.sum())

    @property
    def first(self) -> int:
        """The thread's first kvm event (or switch)."""
        return int(self.hi[0])

    @property
    def last(self) -> int:
        """The thread's last kvm event (or switch)."""
        return int(self.lo[-1])

    def allowed(self) -> tuple[I64, I64]:
        """The spans with touching ones joined: (lo, hi) i64 with a stamp between any two."""
        starts = np.flatnonzero(np.r_[True, self.lo[1:] > self.hi[:-1] + 1])
        return self.lo[starts], self.hi[np.r_[starts[1:] - 1, len(self.hi) - 1]]


class HostActivity:
    """Everything about vCPU threads that a host recording's kvm events tell, or its switches where it has none."""

    def __init__(self, host: Recording) -> None:
        """Gather the events of ``host`` that begin and end windows; windows are built per thread when asked for."""
        self.host = host
        self.base = host.base
        self.kind = WindowKind.KVM
        rows, kind, pid = self._kvm_edges()
        if not len(rows) and self._switches is not None:
            self.kind = WindowKind.SCHED_SWITCH
            rows, kind, pid = self._switch_edges()
        stamp = relative(host.stamp[rows], self.base)
        order = np.lexsort((rows, stamp, pid))
        self._rows, self._kind, self._stamp = rows[order], kind[order], stamp[order]
        self._cpu = self._cpu_of_row(self._rows)
        self.tids, starts = distinct(pid[order])
        self._starts = np.append(starts, len(rows))

    def _kvm_edges(self) -> tuple[I64, npt.NDArray[np.int8], I64]:
        """The rows of kvm_entry and kvm_exit, which of the two each is, and its thread."""
        entries = self.host.rows(self.host.format_named("kvm", "kvm_entry"))
        exits = self.host.rows(self.host.format_named("kvm", "kvm_exit"))
        rows = np.concatenate([entries, exits])
        kind = np.repeat(np.array([_ENTRY, _EXIT], np.int8), [len(entries), len(exits)])
        return rows, kind, self.host.pid[rows].astype(np.int64)

    def _switch_edges(self) -> tuple[I64, npt.NDArray[np.int8], I64]:
        """The same of the switches to and away from each thread that was ever switched to; idle (0) is none."""
        assert self._switches is not None
        rows = self.host.rows(self.host.format_named("sched", "sched_switch"))
        _, _, prev, following = self._switches
        to, away = following > 0, (prev > 0) & np.isin(prev, following)
        kind = np.repeat(np.array([_ENTRY, _EXIT], np.int8), [int(to.sum()), int(away.sum())])
        return np.concatenate([rows[to], rows[away]]), kind, np.concatenate([following[to], prev[away]])

    @cached_property
    def edges(self) -> dict[int, int]:
        """How many events each thread's windows are made of."""
        return dict(zip(self.tids.tolist(), np.diff(self._starts).tolist(), strict=True))

    def _cpu_of_row(self, rows: I64) -> I64:
        cpus = np.array([s.cpu for s in self.host.streams], np.int64)
        return cpus[self.host.stream_of[rows]] if len(rows) else np.zeros(0, np.int64)

    @cached_property
    def lost_spans(self) -> tuple[I64, I64, I64]:
        """(cpu, from, to): spans in which a CPU's events were lost, stamps relative to the base."""
        host, losses = self.host, self.host.losses
        cpu, begin, end = self._broken_chains() if self.kind is WindowKind.SCHED_SWITCH else ([], [], [])
        for stream_index, row in zip(losses.stream.tolist(), losses.row.tolist(), strict=True):
            stream = host.streams[stream_index]
            cpu.append(stream.cpu)
            begin.append(self._relative(row - 1) if row > stream.first else -int(FOREVER))
            end.append(self._relative(row) if row < stream.last else int(FOREVER))
        return np.array(cpu, np.int64), np.array(begin, np.int64), np.array(end, np.int64)

    def _broken_chains(self) -> tuple[list[int], list[int], list[int]]:
        """(cpu, from, to): where a CPU's switch is from another thread than the one before was to.

        Switches are missing there that no mark speaks of: filtered away, or dropped.
        """
        assert self._switches is not None
        stamp, cpu, prev, following = self._switches
        stream = self.host.stream_of[self.host.rows(self.host.format_named("sched", "sched_switch"))]
        order = np.lexsort((np.arange(len(stamp)), stream))
        left, right = order[:-1], order[1:]
        broken = (stream[left] == stream[right]) & (following[left] != prev[right])
        left, right = left[broken], right[broken]
        return cpu[left].tolist(), stamp[left].tolist(), stamp[right].tolist()

    def _relative(self, row: int) -> int:
        return int(relative(self.host.stamp[row : row + 1], self.base)[0])

    @cached_property
    def silent_cpus(self) -> tuple[int, ...]:
        """CPUs of the host with no event at all in the recording."""
        seen = {s.cpu for s in self.host.streams if s.last > s.first}
        return tuple(cpu for cpu in range(self.host.cpus) if cpu not in seen)

    @cached_property
    def silent_cpus_were_traced(self) -> bool:
        """Whether silent CPUs may be taken as traced and idle.

        With only kvm events recorded a CPU that ran no vCPU is silent. Where other events were recorded too, a
        CPU that ran at all would show them: a silent one was most likely not traced, and is not trusted.
        """
        return all(
            (known := self.host.formats.get(i)) is not None and known.system == "kvm" for i in self.host.counts_by_id()
        )

    def windows(self, tid: int) -> RunWindows:
        """Build the run windows of thread ``tid``; KeyError where it has none of the events they are made of."""
        at = int(np.searchsorted(self.tids, tid))
        if at >= len(self.tids) or self.tids[at] != tid:
            raise KeyError(f"thread {tid} has no {' or '.join(dict.fromkeys(self.kind.edge_events))}")
        part = slice(int(self._starts[at]), int(self._starts[at + 1]))
        if (np.abs(self._stamp[part]) >= FOREVER).any():
            # stamps of CPUs that are this far apart have no common order
            return self._all_unknown(tid, np.int64(0))
        return _build(
            tid,
            self.base,
            self._stamp[part],
            self._kind[part],
            self._cpu[part],
            self._rows[part],
            self.lost_spans,
            self._on_silent_cpus(tid),
            None if self._switches is None else partial(self._away, tid),
            self.kind,
        )

    def _all_unknown(self, tid: int, at: np.int64) -> RunWindows:
        """Windows that allow everything; the two open spans meet ``at`` a stamp."""
        none = np.full(2, -1, np.int64)
        lo, hi = np.array([-FOREVER, at]), np.array([at, FOREVER])
        return RunWindows(tid, self.base, lo, hi, np.zeros(2, np.bool_), none, none, self.kind)

    def entries(self, tid: int) -> I64:
        """The rows i64 of the events that begin windows of ``tid``, in the order of their stamps."""
        at = int(np.searchsorted(self.tids, tid))
        part = slice(int(self._starts[at]), int(self._starts[at + 1]))
        rows: I64 = self._rows[part][self._kind[part] == _ENTRY]
        return rows

    def cpus_of(self, tid: int) -> list[int]:
        """The CPUs that ``tid`` has such events on."""
        at = int(np.searchsorted(self.tids, tid))
        return [int(c) for c in np.unique(self._cpu[int(self._starts[at]) : int(self._starts[at + 1])])]

    def on_cpu(self, tid: int, cpu: int) -> RunWindows | None:
        """What one CPU alone says of thread ``tid``, in that CPU's own clock.

        Before the thread's first event there and after its last it was not in guest mode on this CPU, nor where
        there is none (None); but for a first that is an exit and a last that is an entry. The CPUs' stamps need not
        have a common order.
        """
        at = int(np.searchsorted(self.tids, tid))
        part = slice(int(self._starts[at]), int(self._starts[at + 1]))
        mine = np.flatnonzero(self._cpu[part] == cpu) + part.start
        if not len(mine):
            return None
        lost_cpu, lost_from, lost_to = self.lost_spans
        here = lost_cpu == cpu
        streams = self.host.stream_of[self._rows[mine]]
        if ((np.diff(self._rows[mine]) < 0) & (streams[1:] == streams[:-1])).any():
            # its clock stepped back: which exit is of which entry cannot be told by stamps
            return self._all_unknown(tid, self._stamp[mine[-1]])
        built = _build(
            tid,
            self.base,
            self._stamp[mine],
            self._kind[mine],
            self._cpu[mine],
            self._rows[mine],
            (lost_cpu[here], lost_from[here], lost_to[here]),
            None,
            None,
            self.kind,
        )
        # the open ends stay only where the thread was in guest mode as far as this CPU knows
        lo, hi = built.lo.copy(), built.hi.copy()
        if self._kind[mine[0]] == _ENTRY:
            lo[0] = hi[0]
        if self._kind[mine[-1]] == _EXIT:
            hi[-1] = lo[-1]
        return replace(built, lo=lo, hi=hi)

    @cached_property
    def _switches(self) -> tuple[I64, I64, I64, I64] | None:
        """sched_switch events: (stamp, cpu, prev_pid, next_pid), or None where they were not recorded."""
        event = self.host.format_named("sched", "sched_switch")
        rows = self.host.rows(event)
        if event is None or not len(rows):
            return None
        try:
            prev = self.host.column(event, "prev_pid", rows).astype(np.int64)
            following = self.host.column(event, "next_pid", rows).astype(np.int64)
        except KeyError:
            return None
        return relative(self.host.stamp[rows], self.base), self._cpu_of_row(rows), prev, following

    def _away(self, tid: int, cpu: int | None) -> Spans:
        """When ``tid`` may have been on ``cpu`` (None: on one that was not traced) without being seen there.

        From each switch away from it to the next switch to it on another CPU. This holds while no switch is lost
        but on ``cpu`` itself.
        """
        assert self._switches is not None
        stamp, where, prev, following = self._switches
        out, back = stamp[prev == tid], stamp[(following == tid) & (where != (-1 if cpu is None else cpu))]
        out, back = np.sort(out), np.append(np.sort(back), FOREVER)
        until = back[np.searchsorted(back, out)]
        # several switches away before one back: the first begins the span
        fresh = np.r_[True, until[1:] != until[:-1]] if len(out) else np.zeros(0, np.bool_)
        return out[fresh], until[fresh]

    def _on_silent_cpus(self, tid: int) -> Spans | None:
        """Spans in which ``tid`` may have run on a CPU that was not traced; None: nowhere."""
        if not self.silent_cpus or self.silent_cpus_were_traced:
            return None
        if self._switches is None:
            return np.array([-FOREVER]), np.array([FOREVER])
        return self._away(tid, None)


def _build(
    tid: int,
    base: int,
    stamp: I64,
    kind: npt.NDArray[np.int8],
    cpu: I64,
    rows: I64,
    lost: tuple[I64, I64, I64],
    silent: Spans | None,
    away: Callable[[int], Spans] | None,
    made_of: WindowKind,
) -> RunWindows:
    """Cut one thread's time into spans between its consecutive events."""
    begin, end = stamp[:-1], stamp[1:]
    entered, left = kind[:-1] == _ENTRY, kind[1:] == _EXIT
    run = entered & left
    # an entry and its exit are on one CPU: a thread in guest mode does not move
    run &= cpu[:-1] == cpu[1:]
    gap = ~entered & ~left
    spans_lo: list[I64] = [np.array([-FOREVER]), begin[run], begin[~run & ~gap], stamp[-1:]]
    spans_hi: list[I64] = [stamp[:1], end[run], end[~run & ~gap], np.array([FOREVER])]
    is_run = [np.zeros(len(part), np.bool_) for part in spans_lo]
    is_run[1][:] = True
    entry_rows = [np.full(len(part), -1, np.int64) for part in spans_lo]
    exit_rows = [part.copy() for part in entry_rows]
    entry_rows[1], exit_rows[1] = rows[:-1][run], rows[1:][run]

    holes = _holes((begin[gap], end[gap]), (cpu[:-1][gap], cpu[1:][gap]), lost, silent, away)
    for lo, hi in holes:
        spans_lo.append(lo)
        spans_hi.append(hi)
        is_run.append(np.zeros(len(lo), np.bool_))
        entry_rows.append(np.full(len(lo), -1, np.int64))
        exit_rows.append(np.full(len(lo), -1, np.int64))
    if len(lost[0]):
        _split_at_losses(spans_lo, spans_hi, is_run, entry_rows, exit_rows, cpu[:-1][run], lost)
    lo, hi, run_or_not = np.concatenate(spans_lo), np.concatenate(spans_hi), np.concatenate(is_run)
    entry, leave = np.concatenate(entry_rows), np.concatenate(exit_rows)
    return in_order(tid, base, lo, hi, run_or_not, entry, leave, made_of)


def in_order(
    tid: int,
    base: int,
    all_lo: I64,
    all_hi: I64,
    is_run: npt.NDArray[np.bool_],
    entry: I64,
    leave: I64,
    made_of: WindowKind,
) -> RunWindows:
    """Windows of spans in any order that may overlap: each is trimmed to begin where those before it end."""
    order = np.lexsort((all_hi, all_lo))
    lo, hi, is_run_sorted = all_lo[order], all_hi[order], is_run[order]
    entry, leave = entry[order], leave[order]
    # holes of several CPUs may overlap each other
    reach = np.maximum.accumulate(hi)
    lo = np.r_[lo[:1], np.maximum(lo[1:], reach[:-1])]
    keep = hi >= lo
    keep[1:] &= is_run_sorted[1:] | (hi[1:] > reach[:-1])
    return RunWindows(tid, base, lo[keep], hi[keep], is_run_sorted[keep], entry[keep], leave[keep], made_of)


def widened(windows: RunWindows, before: int, after: int) -> RunWindows:
    """Every span begun ``before`` units earlier and ended ``after`` later; what then overlaps has no gap between."""
    lo = np.where(windows.lo <= -FOREVER, windows.lo, windows.lo - before)
    hi = np.where(windows.hi >= FOREVER, windows.hi, windows.hi + after)
    rows = windows.entry_row, windows.exit_row
    return in_order(windows.tid, windows.base, lo, hi, windows.is_run, *rows, windows.kind)


def _holes(
    gaps: Spans,
    cpus: tuple[I64, I64],
    lost: tuple[I64, I64, I64],
    silent: Spans | None,
    away: Callable[[int], Spans] | None,
) -> list[Spans]:
    """The parts of the ``gaps`` in which the thread may have been in guest mode unseen.

    That is where events were lost on a CPU that it may have been on. ``cpus``: those that it left guest mode on and
    enters it on next. ``away``: when it may have been on a CPU unseen, by its switches; None: they were not recorded.
    """
    gap_lo, gap_hi = gaps
    lost_cpu, lost_from, lost_to = lost
    numbers = distinct(lost_cpu)[0].tolist()
    touched = [_touched(gap_lo, gap_hi, lost_from[lost_cpu == n], lost_to[lost_cpu == n]) for n in numbers]
    losing = np.sum(touched, axis=0, dtype=np.int64) if touched else np.zeros(len(gap_lo), np.int64)
    holes: list[Spans] = []
    if silent is not None:
        # a switch that was lost may have taken the thread there
        holes.append((gap_lo[losing > 0], gap_hi[losing > 0]))
        holes.append(overlaps(gap_lo[losing == 0], gap_hi[losing == 0], *silent))
    for number, here in zip(numbers, touched, strict=True):
        span = lost_from[lost_cpu == number], lost_to[lost_cpu == number]
        may_be = (cpus[0] == number) | (cpus[1] == number)
        if away is None:
            may_be[:] = True
        # a switch away that another CPU lost is not known of
        may_be |= losing > here
        holes.append(overlaps(gap_lo[may_be], gap_hi[may_be], *span))
        if away is not None:
            holes.append(overlaps(*overlaps(gap_lo[~may_be], gap_hi[~may_be], *away(number)), *span))
    return holes


def _touched(lo: I64, hi: I64, hole_from: I64, hole_to: I64) -> npt.NDArray[np.bool_]:
    """Which of the disjoint sorted spans [lo, hi] any hole overlaps."""
    first = np.searchsorted(hi, hole_from, side="right")
    last = np.maximum(np.searchsorted(lo, hole_to, side="left"), first)
    depth = np.zeros(len(lo) + 1, np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, last, -1)
    return np.cumsum(depth[:-1]) > 0


def overlaps(lo: I64, hi: I64, hole_from: I64, hole_to: I64) -> Spans:
    """The parts of the disjoint sorted spans [lo, hi] that lie in any hole, as (lo, hi)."""
    first = np.searchsorted(hi, hole_from, side="right")
    last = np.searchsorted(lo, hole_to, side="left")
    count = np.maximum(last - first, 0)
    hole = np.repeat(np.arange(len(count)), count)
    span = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[hole]
    return np.maximum(lo[span], hole_from[hole]), np.minimum(hi[span], hole_to[hole])


def _split_at_losses(
    spans_lo: list[I64],
    spans_hi: list[I64],
    is_run: list[npt.NDArray[np.bool_]],
    entry_rows: list[I64],
    exit_rows: list[I64],
    cpu: I64,
    lost: tuple[I64, I64, I64],
) -> None:
    """Cut the run windows (list entry 1) at losses on their own CPU, which may hide an exit and the next entry.

    Before the loss no exit was seen, and an exit after it without an entry means that the guest ran up to it: only the
    span of the loss itself is unknown.
    """
    pieces: list[tuple[int, int, bool, int, int]] = []
    keep = np.ones(len(spans_lo[1]), np.bool_)
    losses = sorted(zip(*(part.tolist() for part in lost), strict=True), key=lambda loss: loss[1])
    hit: dict[int, list[tuple[int, int]]] = {}
    for number, begin, end in losses:
        for index in np.flatnonzero((cpu == number) & (spans_lo[1] < end) & (spans_hi[1] > begin)).tolist():
            hit.setdefault(index, []).append((begin, end))
    for index, cuts in hit.items():
        keep[index] = False
        entry, leave = int(entry_rows[1][index]), int(exit_rows[1][index])
        at, stop = int(spans_lo[1][index]), int(spans_hi[1][index])
        for begin, end in cuts:
            if begin > at:
                pieces.append((at, begin, True, entry, leave))
            # several buffers of one CPU may have lost events at the same time
            if end > at:
                pieces.append((max(at, begin), min(end, stop), False, -1, -1))
                at = min(end, stop)
        if at < stop:
            pieces.append((at, stop, True, entry, leave))
    is_run[1] = is_run[1][keep]
    is_run.append(np.array([piece[2] for piece in pieces], np.bool_))
    for at, column in ((0, spans_lo), (1, spans_hi), (3, entry_rows), (4, exit_rows)):
        column[1] = column[1][keep]
        column.append(np.array([piece[at] for piece in pieces], np.int64))
