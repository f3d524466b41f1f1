"""Which of a thread's run windows ran its own guest and which a guest of that guest, by the nested switches of x86.

A hypervisor's vCPU thread runs its guest L1 or, for L1, the nested L2; only the host switches between the two, between
an exit and the next entry. ``kvm_nested_vmenter`` (``kvm_nested_vmrun`` in older kernels) comes before L2 is entered,
``kvm_nested_vmexit`` after each exit from L2, ``kvm_nested_vmexit_inject`` when the exit is handed to L1, which then
runs on (arch/x86/kvm/vmx/nested.c: nested_vmx_enter_non_root_mode, nested_vmx_reflect_vmexit, nested_vmx_vmexit, and
svm/nested.c). An entry may fail after its event, and some exits to L1 have none (nested_vmx_vmexit with reason -1): so
a window's side is known only where the events before and after it agree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from counterpoint.clocks.counter import I64, Bools, relative
from counterpoint.proof.windows import RunWindows
from counterpoint.traces.recording import Recording

_ENTER, _EXIT, _TO_L1, _NONE = range(4)

_EVENTS = (
    ("kvm_nested_vmenter", _ENTER),
    ("kvm_nested_vmrun", _ENTER),
    ("kvm_nested_vmexit", _EXIT),
    ("kvm_nested_vmexit_inject", _TO_L1),
)


def sides(windows: RunWindows, host: Recording) -> tuple[Bools, Bools]:
    """Which of the spans surely ran the thread's own guest, and which surely a nested one: bool[k], bool[k]."""
    own, nested = np.zeros(len(windows.lo), np.bool_), np.zeros(len(windows.lo), np.bool_)
    stamp, kind = _switches(windows, host)
    if not (kind == _ENTER).any():
        return own, nested
    kind, at = np.r_[_NONE, kind, _NONE], np.r_[windows.first, stamp, windows.last]
    following = np.searchsorted(stamp, windows.lo, side="right") + 1
    before, after = kind[following - 1], kind[following]
    known = windows.is_run & (at[following] >= windows.hi)
    # nothing unseen between the two switches: it may hide others
    unseen_lo, unseen_hi = windows.lo[~windows.is_run], windows.hi[~windows.is_run]
    begun = np.searchsorted(unseen_lo, at[following], side="left")
    ended = np.searchsorted(unseen_hi, at[following - 1], side="right")
    known &= begun <= ended
    leaves = (after == _EXIT) | (after == _TO_L1)
    nested[:] = known & ((before == _ENTER) | (before == _EXIT)) & leaves
    own[:] = known & ((before == _TO_L1) | (before == _NONE)) & ((after == _ENTER) | (after == _NONE))
    own &= (before != _NONE) | (after != _NONE)
    return own, nested


def _switches(windows: RunWindows, host: Recording) -> tuple[I64, I64]:
    """The thread's nested switches in order: stamps relative to the windows' base, kinds."""
    rows, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for name, kind in _EVENTS:
        found = host.rows(host.format_named("kvm", name))
        found = found[host.pid[found] == windows.tid]
        rows.append(found)
        kinds.append(np.full(len(found), kind))
    row, kind_of = np.concatenate(rows), np.concatenate(kinds)
    stamp = relative(host.stamp[row], windows.base)
    order = np.lexsort((row, stamp))
    return stamp[order], kind_of[order]


def only(windows: RunWindows, host: Recording, *, nested: bool) -> RunWindows:
    """The windows in which the thread's own guest may have run, or with ``nested`` a guest of it."""
    own_sure, nested_sure = sides(windows, host)
    keep = ~(own_sure if nested else nested_sure)
    if keep.all():
        return windows
    return replace(
        windows,
        lo=windows.lo[keep],
        hi=windows.hi[keep],
        is_run=windows.is_run[keep],
        entry_row=windows.entry_row[keep],
        exit_row=windows.exit_row[keep],
    )
