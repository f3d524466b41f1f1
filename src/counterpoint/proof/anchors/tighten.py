"""All anchors of an epoch of a vCPU, held against the interval that the run windows left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from counterpoint.clocks.counter import I64, Bools, relative, to_signed
from counterpoint.proof.anchors import arm_switch, arm_timer, x86_tsc
from counterpoint.proof.anchors.arm_guest import GuestTimers
from counterpoint.proof.anchors.arm_host import HostTimers
from counterpoint.proof.anchors.arm_timer import Gathered
from counterpoint.proof.anchors.model import Found, Tightened, combine
from counterpoint.proof.anchors.mono import clock_of
from counterpoint.proof.feasible import Interval
from counterpoint.proof.windows import HostActivity, RunWindows
from counterpoint.traces.recording import Recording


@dataclass(frozen=True, slots=True)
class Bounded:
    """An epoch of a vCPU as windows left it: thread ``tid`` runs ``guest_cpu`` at an offset in ``windows`` (closed).

    ``rows`` i64[n]: guest rows that surely belong to it; anchors outside their span are not looked at.
    """

    tid: int
    guest_cpu: int
    windows: Interval
    rows: I64


class Anchors:
    """Finds the anchors of a guest's vCPUs; what both recordings hold is decoded once.

    ``windows``: the run windows of a thread of the host, in its own clock, where they are known already.
    ``trust_boot``: see ``MonoClock.is_mono_raw``.
    """

    def __init__(
        self,
        host: Recording,
        guest: Recording,
        *,
        windows: Callable[[int], RunWindows] | None = None,
        trust_boot: bool = True,
    ) -> None:
        """Take the recordings; nothing is decoded yet."""
        self.host, self.guest = host, guest
        self._clocks = clock_of(host), clock_of(guest)
        self._given = windows
        self._trust_boot = trust_boot

    @cached_property
    def _windows(self) -> Callable[[int], RunWindows]:
        return self._given or HostActivity(self.host).windows

    @cached_property
    def _timers(self) -> tuple[HostTimers, GuestTimers] | None:
        """Both sides of the virtual timer; None where a recording holds nothing of it."""
        if not self._clocks[1].is_usable:
            return None
        host, guest = arm_timer.timers(*self._clocks, trust_boot=self._trust_boot)
        return (host, guest) if host.is_usable and guest.is_usable else None

    def tighten(self, epochs: Sequence[Bounded]) -> list[Tightened]:
        """Cut what windows left of each epoch of the guest's vCPUs by the anchors in it."""
        gathered = [self._gather(epoch) for epoch in epochs]
        out = []
        for index, epoch in enumerate(epochs):
            own = gathered[index]
            found: list[Found | None] = []
            if own is not None and self._timers is not None:
                others = [other for at, other in enumerate(gathered) if at != index and other is not None]
                found += arm_timer.find(*self._timers, own, others)
            span = self._span(epoch)
            if span is not None:
                found += x86_tsc.find(self.host, self.guest, epoch.tid, epoch.windows, span)
                found.append(self._switch(epoch))
            out.append(combine(epoch.windows, (kind for kind in found if kind is not None)))
        return out

    def _switch(self, epoch: Bounded) -> Found | None:
        windows = self._windows_of(epoch.tid)
        if windows is None:
            return None
        return arm_switch.find(self.host, self.guest, windows, epoch.rows, epoch.windows)

    def _windows_of(self, tid: int) -> RunWindows | None:
        try:
            return self._windows(tid)
        except KeyError:
            return None

    def _gather(self, epoch: Bounded) -> Gathered | None:
        span = self._span(epoch)
        if span is None or self._timers is None:
            return None
        return arm_timer.gather(*self._timers, epoch.tid, epoch.guest_cpu, epoch.windows, span)

    def _span(self, epoch: Bounded) -> Interval | None:
        """Where the epoch's first and last event that was seen lie in host time, at all offsets that windows allow.

        What the host did not see may be of another offset's time.
        """
        if not len(epoch.rows) or epoch.windows[0] > epoch.windows[1]:
            return None
        when = relative(self.guest.stamp[epoch.rows], self.guest.base)
        windows = self._windows_of(epoch.tid)
        if windows is not None:
            when = when[self._is_seen(when, windows, epoch.windows)]
        if not len(when):
            return None
        begin = int(when.min()) + self.guest.base - epoch.windows[0]
        end = int(when.max()) + self.guest.base - epoch.windows[1]
        return begin, end

    def _is_seen(self, when: I64, windows: RunWindows, allowed: Interval) -> Bools:
        """Whether the host saw what the thread did at ``when`` i64[n] (from the guest's base), by the middle offset."""
        at = when - to_signed(sum(allowed) // 2 - self.guest.base + windows.base)
        span = np.searchsorted(windows.lo, at, side="right") - 1
        seen: Bools = windows.is_run[span] | (at > windows.hi[span])
        return seen


def tighten(
    host: Recording,
    guest: Recording,
    tid: int,
    guest_cpu: int,
    windows: Interval,
    rows: I64,
    *,
    trust_boot: bool = True,
) -> Tightened:
    """``Anchors.tighten`` for one epoch of one vCPU alone."""
    return Anchors(host, guest, trust_boot=trust_boot).tighten([Bounded(tid, guest_cpu, windows, rows)])[0]
