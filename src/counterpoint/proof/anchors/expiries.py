"""What a guest programmed its timer for, on kernels whose trace does not name it (no ``hrtimer_rearm``, before 7.1).

At its end hrtimer_interrupt (kernel/time/hrtimer.c) sets the clock event for the earliest timer that is queued on its
CPU: after the last ``hrtimer_expire_exit`` or the ``hrtimer_start`` of the timer that goes on, before that CPU's next
event. Which timer was the earliest shows later: the first to expire there, if none was cancelled meanwhile; its
``hrtimer_start`` names its expiry. What was started, cancelled or expired before the vCPU was left may have changed it:
only those are known of which nothing else was recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.proof.anchors.mono import MonoClock
from counterpoint.proof.anchors.unseen import unbroken
from counterpoint.traces.recording import Recording

_START, _CANCEL, _ENTRY, _EXIT, _IRQ = range(5)
_NAMES = ("hrtimer_start", "hrtimer_cancel", "hrtimer_expire_entry", "hrtimer_expire_exit")
_HARDIRQ, _SOFTIRQ = 0x08, 0x10  # of common_flags (include/linux/trace_events.h)


@dataclass(frozen=True, slots=True)
class Programmed:
    """When a CPU may have programmed its timer: after each ``row`` i64[n], in order, before its next event.

    ``expires`` i64[n]: what for, in ns of CLOCK_MONOTONIC, where it is ``known`` bool[n].
    """

    row: I64
    expires: I64
    known: Bools


def are_in(guest: Recording) -> bool:
    """Whether the recording holds the events that tell it."""
    return all(len(guest.rows(guest.format_named("timer", _NAMES[kind]))) for kind in (_START, _ENTRY, _EXIT))


def programmed(clock: MonoClock, cpu: int) -> Programmed:
    """What guest CPU ``cpu`` programmed its timer for."""
    guest = clock.recording
    rows, kind, timer = _timer_events(guest, cpu)
    entries = np.flatnonzero(kind == _ENTRY)
    out = Programmed(rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_))
    if not len(entries):
        return out
    event = guest.format_named("timer", _NAMES[_ENTRY])
    assert event is not None
    entry_rows = rows[entries]
    now = guest.column(event, "now", entry_rows).astype(np.int64)
    flags = guest.column(event, "common_flags", entry_rows).astype(np.int64)
    hard = (flags & (_HARDIRQ | _SOFTIRQ)) == _HARDIRQ
    # the timers that one reading of ``now`` expires
    first = np.r_[True, (now[1:] != now[:-1]) | (hard[1:] != hard[:-1])]
    chain = np.cumsum(first) - 1
    last = np.r_[first[1:], True]
    after = _after(rows, kind, timer, entries[last])
    # each chain but the first, by what was programmed after the one before it
    before, begins = after[:-1], np.flatnonzero(first)[1:]
    whole = (before >= 0) & hard[np.flatnonzero(last)[:-1]] & hard[begins]
    place = np.maximum(before, 0)
    whole &= unbroken(guest, rows[place], entry_rows[begins])
    whole &= ~_cancelled(guest, rows[place], entry_rows[begins])
    expires, started, ok = _starts(clock, entry_rows, timer[entries])
    least = np.full(len(begins), np.iinfo(np.int64).max)
    mine = chain >= 1
    of = chain[mine] - 1
    queued = ok[mine] & (started[mine] <= rows[place][of])
    later = ok[mine] & (started[mine] > rows[place][of])
    doubt = np.zeros(len(begins), np.bool_)
    doubt[of[~(queued | later)]] = True
    np.minimum.at(least, of[queued], expires[mine][queued])
    whole &= ~doubt & (least < np.iinfo(np.int64).max)
    out.expires[before[whole]] = least[whole]
    out.known[before[whole]] = True
    return out


def _timer_events(guest: Recording, cpu: int) -> tuple[I64, I64, U64]:
    """Rows, kinds and timers of the hrtimer events on ``cpu``, in order, and of the interrupts that expire them.

    The last event of a stream is left out, as it has no next one.
    """
    rows, kinds, timers = list[I64](), list[I64](), list[U64]()
    for number, name in enumerate(_NAMES):
        event = guest.format_named("timer", name)
        found = guest.rows(event)
        rows.append(found)
        kinds.append(np.full(len(found), number))
        timers.append(guest.column(event, "hrtimer", found).astype(np.uint64) if event else np.zeros(0, np.uint64))
    event = guest.format_named("irq", "irq_handler_entry")
    if event is not None:
        found = guest.rows(event)
        irq = guest.column(event, "irq", found)
        before = np.isin(found + 1, rows[_ENTRY])
        found = found[np.isin(irq, irq[before])]
        rows.append(found)
        kinds.append(np.full(len(found), _IRQ))
        timers.append(np.zeros(len(found), np.uint64))
    row, kind, timer = np.concatenate(rows), np.concatenate(kinds), np.concatenate(timers)
    keep = np.zeros(len(row), np.bool_)
    for stream in guest.streams:
        keep |= (stream.cpu == cpu) & (row >= stream.first) & (row < stream.last - 1)
    row, kind, timer = row[keep], kind[keep], timer[keep]
    order = np.lexsort((row, relative(guest.stamp[row], guest.base)))
    return row[order], kind[order], timer[order]


def _after(rows: I64, kind: I64, timer: U64, entries: I64) -> I64:
    """The places i64[n] of the last event of the interrupts that expired ``entries`` last; -1 where they go on."""
    places = np.flatnonzero(kind == _EXIT)
    at: I64 = np.searchsorted(places, entries)
    ok = at < len(places)
    leave = places[np.minimum(at, len(places) - 1)] if len(places) else np.zeros(len(entries), np.int64)
    ok &= timer[leave] == timer[entries]
    following = np.minimum(leave + 1, len(rows) - 1)
    next_is = (following > leave) & (rows[following] == rows[leave] + 1)
    goes_on = next_is & (kind[following] == _START) & (timer[following] == timer[leave])
    end = np.where(goes_on, following, leave)
    after = np.minimum(end + 1, len(rows) - 1)
    # an expiry at once: hrtimer_interrupt found that it was late, and tried again
    again = (after > end) & (rows[after] == rows[end] + 1) & (kind[after] == _ENTRY)
    return np.where(ok & ~again, end, -1)


def _cancelled(guest: Recording, begin: I64, end: I64) -> Bools:
    """Whether any CPU cancelled a timer between the rows ``begin`` and ``end`` i64[n]."""
    rows = guest.rows(guest.format_named("timer", _NAMES[_CANCEL]))
    stamps = np.sort(relative(guest.stamp[rows], guest.base))
    first = np.searchsorted(stamps, relative(guest.stamp[begin], guest.base), side="left")
    last = np.searchsorted(stamps, relative(guest.stamp[end], guest.base), side="right")
    some: Bools = first != last
    return some


def _starts(clock: MonoClock, entries: I64, timers: U64) -> tuple[I64, I64, Bools]:
    """When the timers that the rows ``entries`` expire were to: (expires i64[n], row of its start i64[n], known).

    Known are those on CLOCK_MONOTONIC that were started last on the CPU where they expired.
    """
    guest = clock.recording
    event = guest.format_named("timer", _NAMES[_START])
    assert event is not None
    rows = guest.rows(event)
    count = len(rows)
    both = np.r_[rows, entries]
    timer = np.r_[guest.column(event, "hrtimer", rows).astype(np.uint64), timers]
    order = np.lexsort((both, relative(guest.stamp[both], guest.base), timer))
    place = np.arange(len(both))
    last = np.maximum.accumulate(np.where(order < count, place, -1))
    found = np.zeros(len(both), np.int64)
    ok = np.zeros(len(both), np.bool_)
    at = np.maximum(last, 0)
    found[order] = order[at]
    ok[order] = (last >= 0) & (timer[order[at]] == timer[order])
    start = np.where(ok[count:], rows[np.minimum(found[count:], count - 1)], entries)
    known = ok[count:] & clock.monotonic(entries) & unbroken(guest, start, entries)
    expires = guest.column(event, "expires", start).astype(np.int64)
    return expires, start, known
