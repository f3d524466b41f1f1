"""How a feasible interval became so narrow: what each event of an epoch left of it, in the order of their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, relative, to_signed
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.timeline.proving import GuestProof


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The interval of offsets around the one in use, [offset + lo, offset + hi], as events are added.

    ``count`` i64[n]: after so many events beyond doubt; ``row`` i64[n]: the guest's row of the event that narrowed it;
    ``lo``, ``hi`` i64[n]: what is left then, in guest units; ``OPEN`` where nothing bounds a side yet. ``events``: how
    many there are in all.
    """

    count: I64
    row: I64
    lo: I64
    hi: I64
    events: int


OPEN = 1 << 61
"""Further from the offset than any bound."""


def narrowing(guest: GuestProof, vcpu: VcpuProof, epoch: EpochProof) -> Narrowing | str:
    """What each event left of an epoch's interval; in words why that cannot be said.

    Each event lies between two gaps, in which its vCPU was outside guest mode: it leaves the offsets that keep it there
    (``proof.feasible``). That is of the windows alone: anchors may narrow the interval further.
    """
    if epoch.offset is None:
        return "no offset is known"
    if epoch.fitted is not None:
        return "a line is fitted, and its bound changes over time"
    if epoch.host is not None or epoch.host_tid is not None:
        return "it was on another host"
    tid = vcpu.host_tid
    if guest.pool is None or tid is None or tid not in guest.pool.tids:
        return "no thread's windows are known"
    thread = guest.pool.at_scale(epoch.scale).thread(tid)
    recording = guest.recording
    rows = epoch.rows[epoch.is_sure(recording.stamp[epoch.rows])]
    if not len(rows) or not len(thread.gap_lo):
        return "no event beyond doubt bounds it"
    base = int(recording.stamp[rows[len(rows) // 2]])
    host = relative(recording.stamp[rows], base) - to_signed(epoch.offset - base + thread.windows.base)
    after = np.searchsorted(thread.gap_lo, host, side="left")
    far = np.int64(OPEN)
    hi = np.where(after > 0, host - np.r_[thread.gap_hi, far][after - 1], far)
    lo = np.where(after < len(thread.gap_lo), host - np.r_[thread.gap_lo, far][after], -far)
    # an event that is outside of every window bounds nothing: it is a violation
    good = (hi >= 0) & (lo <= 0)
    rows, lo, hi = rows[good], np.maximum.accumulate(lo[good]), np.minimum.accumulate(hi[good])
    if not len(rows):
        return "no event beyond doubt bounds it"
    fresh = np.flatnonzero(np.r_[True, (lo[1:] != lo[:-1]) | (hi[1:] != hi[:-1])])
    return Narrowing(fresh + 1, rows[fresh], lo[fresh], hi[fresh], len(rows))
