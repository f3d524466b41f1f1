"""Which events of a timeline are meant: by machine, CPU, task, event and time."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from counterpoint.clocks.counter import I64, MASK, U64, relative, to_signed
from counterpoint.errors import UsageError
from counterpoint.timeline.merge import Timeline


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters; all that are given must hold. ``cpus``: (machine or None, CPU). Stamps are host trace-clock values.

    ``tasks`` are command names (with * and ?) or thread ids; ``events`` are "name" or "system:name" patterns.
    """

    machines: Sequence[str] = ()
    cpus: Sequence[tuple[str | None, int]] = ()
    tasks: Sequence[str] = ()
    events: Sequence[str] = ()
    begin: int | None = None
    end: int | None = None


def select(timeline: Timeline, wanted: Selection) -> I64:
    """Positions i64 of the events that ``wanted`` names, in order; UsageError for a machine that is not there."""
    names = [m.name for m in timeline.machines]
    for name in [*wanted.machines, *(m for m, _ in wanted.cpus if m is not None)]:
        if name not in names:
            raise UsageError(f"no machine is called {name!r} (there are: {', '.join(names)})")
    first, last = 0, len(timeline)
    if wanted.begin is not None:
        first = _position(timeline, timeline.host_ticks, wanted.begin, "left")
    if wanted.end is not None:
        last = _position(timeline, timeline.host_ticks, wanted.end, "right")
    part = slice(first, max(first, last))
    keep = np.ones(part.stop - part.start, np.bool_)
    machine, row = timeline.machine[part], timeline.row[part]
    if wanted.machines:
        keep &= np.isin(machine, [names.index(n) for n in wanted.machines])
    for index, one in enumerate(timeline.machines):
        mine = np.flatnonzero(keep & (machine == index))
        if not len(mine):
            continue
        recording, rows = one.recording, row[mine]
        good = np.ones(len(mine), np.bool_)
        if wanted.cpus:
            listed = [cpu for name, cpu in wanted.cpus if name in (None, one.name)]
            cpus = np.array([s.cpu for s in recording.streams], np.int64)
            good &= np.isin(cpus[recording.stream_of[rows]], listed)
        if wanted.tasks:
            pids, inverse = np.unique(recording.pid[rows], return_inverse=True)
            fits = [_is_task(recording.comm(pid), pid, wanted.tasks) for pid in pids.tolist()]
            good &= np.array(fits, np.bool_)[inverse]
        if wanted.events:
            ids, inverse = np.unique(recording.event_id[rows], return_inverse=True)
            known = []
            for event_id in ids.tolist():
                event = recording.formats.get(event_id)
                full = f"{event.system}:{event.name}" if event else str(event_id)
                known.append(any(_is_event(full, pattern) for pattern in wanted.events))
            good &= np.array(known, np.bool_)[inverse]
        keep[mine[~good]] = False
    return first + np.flatnonzero(keep)


def _position(timeline: Timeline, stamps: U64, stamp: int, side: Literal["left", "right"]) -> int:
    """Where ``stamp`` stands among ``stamps``, which are in the timeline's order."""
    if len(stamps) and stamps[0] > stamps[-1]:
        # the counter ran over 2^64: what is nearer to the stamps below zero is meant
        base = timeline.base
        return int(np.searchsorted(relative(stamps, base), to_signed(stamp - base), side=side))
    return int(np.searchsorted(stamps, np.uint64(min(max(stamp, 0), MASK)), side=side))


def _is_task(comm: str, pid: int, wanted: Sequence[str]) -> bool:
    return any(text == str(pid) or fnmatch.fnmatchcase(comm, text) for text in wanted)


def _is_event(full: str, pattern: str) -> bool:
    if ":" in pattern:
        return fnmatch.fnmatchcase(full, pattern)
    return fnmatch.fnmatchcase(full.partition(":")[2], pattern)


def around(timeline: Timeline, positions: I64, stamp: int, count: int) -> I64:
    """The ``count`` positions before and after host stamp ``stamp``."""
    at = _position(timeline, timeline.host_ticks[positions], stamp, "left")
    return positions[max(0, at - count) : at + count]
