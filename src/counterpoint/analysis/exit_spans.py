"""Each kvm_exit of a machine's threads, with the kvm_entry after it where the host saw that nothing lay between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, relative
from counterpoint.proof.windows import HostActivity, WindowKind
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
    exits, entries = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for tid in activity.tids.tolist() if activity.kind is WindowKind.KVM else ():
        windows = activity.windows(tid)
        # what lies between two spans was seen: from the exit that ended the one to the entry that began the other
        after = np.r_[windows.entry_row[1:], -1]
        apart = np.r_[windows.lo[1:] > windows.hi[:-1], False]
        # the parts of a window that was cut at a loss have one entry and one exit
        apart &= relative(recording.stamp[after], windows.base) >= relative(
            recording.stamp[windows.exit_row], windows.base
        )
        run = windows.is_run & (windows.exit_row >= 0) & apart & (after >= 0)
        exits.append(windows.exit_row[run])
        entries.append(after[run])
    out = recording.rows(recording.format_named("kvm", "kvm_exit"))
    back = np.full(len(recording) + 1, -1, np.int64)
    back[np.concatenate(exits)] = np.concatenate(entries)
    out = out[machine.placed[out]]
    entry = back[out]
    return ExitSpans(out, np.where((entry >= 0) & machine.placed[entry], entry, -1))
