"""Each kvm_exit of a machine's threads, with the kvm_entry after it where the host saw that nothing lay between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, distinct, relative
from counterpoint.proof.windows import HostActivity
from counterpoint.timeline.merge import Machine


@dataclass(frozen=True, slots=True)
class ExitSpans:
    """``exit_row`` i64[n]: the kvm_exit events of a recording that are on the timeline, in the order of the rows.

    ``entry_row`` i64[n]: the kvm_entry of the same thread that ended its handling, on the timeline too; -1: not seen.
    """

    exit_row: I64
    entry_row: I64


def exit_spans(machine: Machine, activity: HostActivity | None = None) -> ExitSpans:
    """The exits of all threads of ``machine``; ``activity``: of its recording, where there is one already."""
    recording = machine.recording
    activity = activity or HostActivity(recording)
    exits = recording.rows(recording.format_named("kvm", "kvm_exit"))
    entries = recording.rows(recording.format_named("kvm", "kvm_entry"))
    row = np.r_[exits, entries]
    is_exit = np.repeat(np.array([True, False]), [len(exits), len(entries)])
    tid, stamp = recording.pid[row].astype(np.int64), relative(recording.stamp[row], recording.base)
    order = np.lexsort((row, stamp, tid))
    row, is_exit, tid, stamp = row[order], is_exit[order], tid[order], stamp[order]
    at = np.flatnonzero(is_exit[:-1] & ~is_exit[1:] & (tid[:-1] == tid[1:]))
    seen = np.zeros(len(at), np.bool_)
    threads, starts = distinct(tid[at])
    for thread, begin, end in zip(threads.tolist(), starts.tolist(), [*starts[1:].tolist(), len(at)], strict=True):
        windows, mine = activity.windows(thread), at[begin:end]
        # between the two the thread is seen outside guest mode: no run window and nothing unknown
        before = np.searchsorted(windows.lo, stamp[mine], side="right") - 1
        after = np.minimum(before + 1, len(windows.lo) - 1)
        seen[begin:end] = (before >= 0) & (windows.hi[before] <= stamp[mine]) & (windows.lo[after] >= stamp[mine + 1])
    back = np.full(len(recording), -1, np.int64)
    back[row[at[seen]]] = row[at[seen] + 1]
    exits = exits[machine.placed[exits]]
    entry = back[exits]
    return ExitSpans(exits, np.where((entry >= 0) & machine.placed[entry], entry, -1))
