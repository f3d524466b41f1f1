"""The anchors of a hypervisor's own clock: what they leave of its guest's offset.

A nested guest's windows are cut to when its hypervisor's CPU ran, by the interval that windows alone proved of that
CPU's offset. Where anchors narrow that interval the cut is sharper, and so is what it leaves.
"""

from __future__ import annotations

from counterpoint.clocks.counter import relative, to_signed
from counterpoint.proof.anchors.model import Anchor, Found, Side, Tightened, combine
from counterpoint.proof.feasible import IntervalSet, TooManyError, narrow
from counterpoint.proof.fit import Thread
from counterpoint.proof.ticks import sure_rows
from counterpoint.proof.verdicts import EpochProof
from counterpoint.traces.recording import Recording

KIND = "hypervisor's anchors"


def tighten_by(guest: Recording, epoch: EpochProof, thread: Thread, hypervisor: str) -> Tightened:
    """Cut an epoch's interval by ``thread``, its windows cut by what anchors leave of the hypervisor's clock.

    The epoch has an interval, and its clock runs as its host's does.
    """
    assert epoch.feasible is not None
    stamps = guest.stamp[sure_rows(guest, epoch)]
    low, high = epoch.feasible
    away = to_signed(low - guest.base + thread.windows.base)
    within = IntervalSet.of(away, away + high - low)
    try:
        left = narrow(within, relative(stamps, guest.base), thread.gap_lo, thread.gap_hi)
    except TooManyError:
        return combine(epoch.feasible, [])
    assumption = f"what the anchors of {hypervisor}'s own clock assume"
    ends = left if len(left) else within
    lo, hi = int(ends.lo[0]), int(ends.hi[-1])
    least = Anchor(KIND, Side.LOW, low + lo - away, assumption)
    most = Anchor(KIND, Side.HIGH, low + hi - away, assumption)
    return combine(epoch.feasible, [Found(KIND, least, most, pairs=len(stamps), at_odds=not len(left))])
