"""Nesting: a nested guest's run windows, cut to when its hypervisor's own CPU was in guest mode.

L2 runs on a CPU of L1, and that CPU is a thread of L0. So an L2 event lies in a run window of L1's thread (in L1
time) *and* in a run window of the L0 thread that is the L1 CPU it was on. L0's windows are taken to L1 time by both
ends of the proved interval of that CPU's offset: widened by what is not known, they never exclude the truth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from counterpoint.clocks.counter import I64, to_signed
from counterpoint.proof.fit import Thread
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.proof.windows import FOREVER, RunWindows, Spans, overlaps
from counterpoint.traces.recording import Recording


def guest_mode(vcpu: VcpuProof, thread: Thread, base: int) -> Spans | None:
    """When a guest CPU may have been in guest mode, in the guest's own time relative to ``base``: (lo, hi) i64.

    ``thread`` are the windows of its host thread. None where the proof does not bound all of its epochs.
    """
    if not vcpu.is_sound or any(epoch.feasible is None for epoch in vcpu.epochs):
        return None
    parts = [_image(vcpu.epochs, index, thread, base) for index in range(len(vcpu.epochs))]
    return _joined(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def _image(epochs: tuple[EpochProof, ...], index: int, thread: Thread, base: int) -> Spans:
    """The spans of one epoch: those that begin before the next epoch may, and end after the one before it may."""
    host_base = thread.windows.base
    lo, hi = thread.lo, thread.hi
    keep = np.ones(len(lo), np.bool_)
    if index > 0 and (before := epochs[index - 1].host_to) is not None:
        keep &= hi >= to_signed(before - host_base)
    if index + 1 < len(epochs) and (after := epochs[index + 1].host_from) is not None:
        keep &= lo <= to_signed(after - host_base)
    lo, hi = lo[keep], hi[keep]
    low, high = epochs[index].feasible or (0, 0)
    shift = host_base - base
    # the open ends stay open
    return (
        np.where(lo <= -FOREVER, lo, lo + to_signed(low + shift)),
        np.where(hi >= FOREVER, hi, hi + to_signed(high + shift)),
    )


def _joined(lo: I64, hi: I64) -> Spans:
    """The union of closed spans, disjoint and in order."""
    order = np.argsort(lo, kind="stable")
    lo, reach = lo[order], np.maximum.accumulate(hi[order])
    starts = np.flatnonzero(np.r_[True, lo[1:] > reach[:-1]])
    return lo[starts], reach[np.r_[starts[1:] - 1, len(reach) - 1]]


def within(windows: RunWindows, recording: Recording, modes: dict[int, Spans]) -> RunWindows:
    """Cut the run windows to the spans ``modes`` of the CPU that each was entered on; unknown spans stay."""
    if not modes:
        return windows
    cpus = np.array([s.cpu for s in recording.streams], np.int64)
    known = windows.entry_row >= 0
    cpu = np.full(len(windows.lo), -1, np.int64)
    cpu[known] = cpus[recording.stream_of[windows.entry_row[known]]]
    whole = ~(windows.is_run & np.isin(cpu, list(modes)))
    # which span each piece is of, and where it begins and ends
    source: list[I64] = [np.flatnonzero(whole)]
    starts, ends = [windows.lo[whole]], [windows.hi[whole]]
    for number, spans in modes.items():
        mine = np.flatnonzero(windows.is_run & (cpu == number))
        lo, hi = overlaps(windows.lo[mine], windows.hi[mine], *spans)
        source.append(mine[np.searchsorted(windows.lo[mine], lo, side="right") - 1])
        starts.append(lo)
        ends.append(hi)
    at, lo, hi = np.concatenate(source), np.concatenate(starts), np.concatenate(ends)
    order = np.lexsort((hi, lo))
    at = at[order]
    return replace(
        windows,
        lo=lo[order],
        hi=hi[order],
        is_run=windows.is_run[at],
        entry_row=windows.entry_row[at],
        exit_row=windows.exit_row[at],
    )
