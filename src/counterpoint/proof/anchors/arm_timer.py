"""arm64's virtual timer: one compare value, CVAL, that the guest writes and its host reads, as a mark on both clocks.

``arm_guest`` says when the guest's clock shows that the counter reaches CVAL, ``arm_host`` when the host's does. With
the counter's frequency known CVAL is a ruler: every pair bounds one number a side, however far apart the CVALs. Else
only pairs of one CVAL are compared. What they count of CLOCK_MONOTONIC ``mono.MonoClock`` takes to the trace clocks.

Three kinds, each to stand or fall alone: a vCPU's own timer; the same while KVM emulates it (``arm_host``); and the
timers of the VM's other vCPUs in the same stretch of time, as KVM has one offset for all of them (timer_data.voffset
in arch/arm64/include/asm/kvm_host.h since 6.4, before that update_vtimer_cntvoff, which writes all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.arch_counter import Lattice
from counterpoint.clocks.counter import I64, Bools, relative
from counterpoint.proof.anchors.arm_guest import GuestTimers
from counterpoint.proof.anchors.arm_host import BACKGROUND, HostTimers
from counterpoint.proof.anchors.marks import Marks, Saved, joined
from counterpoint.proof.anchors.model import Anchor, Found, Side
from counterpoint.proof.anchors.mono import MonoClock
from counterpoint.proof.feasible import Interval
from counterpoint.traces.recording import Recording

KIND, EMULATED, SHARED = "virtual timer", "emulated virtual timer", "virtual timers of the VM"

_GUEST_CODE = {
    "hrtimer_rearm": "the guest programs its timer only after hrtimer_rearm and before the CPU's next event",
    "": "the guest programs its timer for what expires next, after a timer interrupt's last event and before the next",
}
_HOST_CODE = {
    "hrtimer_start": f"KVM reads the counter between kvm_get_timer_map and hrtimer_start of {BACKGROUND}, and no other"
    " timer or WFIT ends the wait earlier",
    "kvm_timer_update_irq": "KVM compares the counter with CVAL between kvm_get_timer_map and kvm_timer_update_irq",
    "kvm_timer_emulate": "KVM compares the counter with the CVAL that it saved before it writes kvm_timer_emulate",
}
_ONE = "KVM gives all vCPUs of a VM one offset"
_BOOT = "CLOCK_MONOTONIC and mono_raw have not parted since boot on {}"
_SLEW = "CLOCK_MONOTONIC is slewed by no more than 500 ppm on {}"


def timers(host: MonoClock, guest: MonoClock, *, trust_boot: bool) -> tuple[HostTimers, GuestTimers]:
    """Both sides, in ticks where both clocks can be counted in ticks of one frequency, else in ns."""
    scale = guest.lattice.scale if guest.lattice else None
    # a host with kvm events alone says nothing of its CLOCK_MONOTONIC, nor needs it
    first, second = host.ticks if host.is_usable else host.stamp_ticks, guest.ticks
    if first is None or second is None or first.lattice is None or first.lattice.scale != scale:
        first, second = host.ns, guest.ns
    return HostTimers(host, first, trust_boot=trust_boot), GuestTimers(guest, second, trust_boot=trust_boot)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The marks of one epoch of one vCPU, in ``span`` of host time (from the base).

    ``host``: its thread's, of its own timer and where that is emulated; ``programmed``: those of the guest's CPU.
    """

    span: Interval
    host: Marks
    emulated: Marks
    programmed: Marks


def gather(
    host: HostTimers, guest: GuestTimers, tid: int, cpu: int, windows: Interval, span: Interval
) -> Gathered | None:
    """The virtual timer's marks of an epoch; None where the recordings hold none.

    ``windows``: the offsets (trace-clock units) that the run windows allow. ``span``: host stamps that surely belong to
    the epoch.
    """
    if not host.is_usable or not guest.is_usable:
        return None
    begin, end = span[0] - host.host.base, span[1] - host.host.base
    parts, emulated = [host.armed(tid)], []
    if host.domain.lattice is not None:
        # one side of a mark alone is of use where CVAL is a ruler
        parts.append(host.compared(tid))
        emulated.append(host.emulated(tid))
    saved = host.saved(tid)
    keep = (saved.when >= begin) & (saved.when <= end)
    programmed = guest.marks(cpu, Saved(saved.cval[keep], saved.when[keep]), windows, host.host.base)
    return Gathered((begin, end), joined(parts).between(begin, end), joined(emulated).between(begin, end), programmed)


def find(host: HostTimers, guest: GuestTimers, own: Gathered, others: Sequence[Gathered]) -> tuple[Found, ...]:
    """The virtual timer's anchors of the epoch whose marks are ``own``, kind by kind.

    ``others``: what was gathered of other epochs and vCPUs of the guest. All its CPUs turn the counter that they see
    into stamps by one K, so every CVAL that any of them programmed bounds it.
    """
    frame = _Frame.of(host, guest)
    if frame.lattices is None:
        found = [frame.by_pairs(own.host, own.programmed)]
        return tuple(kind for kind in found if kind is not None)
    programmed = joined([own.programmed, *(other.programmed for other in others)])
    beside = [o for o in others if o.span[0] <= own.span[1] and own.span[0] <= o.span[1]]
    theirs = joined([part for other in beside for part in (other.host, other.emulated)])
    parts = ((KIND, own.host), (EMULATED, own.emulated), (SHARED, theirs))
    kinds = (frame.by_ruler(kind, marks, programmed) for kind, marks in parts)
    return tuple(kind for kind in kinds if kind is not None)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Two machines' domains put together: how their numbers become an offset of the two trace clocks."""

    host: HostTimers
    guest: GuestTimers
    lattices: tuple[Lattice, Lattice] | None

    @classmethod
    def of(cls, host: HostTimers, guest: GuestTimers) -> _Frame:
        first, second = host.domain.lattice, guest.domain.lattice
        return cls(host, guest, (first, second) if first is not None and second is not None else None)

    def offsets(self, number: int) -> Interval:
        """The trace clocks' offsets at a guest minus host ``number``, both from their bases: a closed interval."""
        number += self.guest.domain.base - self.host.domain.base
        if self.lattices is None:
            return number - 1, number + 1
        host, guest = self.lattices
        mult, shift = host.scale.mult, host.scale.shift
        # each stamp is cut off to ns: their difference is off by less than one either way
        low = (number * mult + guest.k_lo - host.k_hi >> shift) - 1
        high = -(-(number * mult + guest.k_hi - host.k_lo) >> shift) + 1
        return low, high

    def by_ruler(self, kind: str, host: Marks, guest: Marks) -> Found | None:
        """The best anchors of the ``host``'s marks and the ``guest``'s, with CVAL as the ruler."""
        if not len(host) or not len(guest):
            return None
        zero = int(host.cval[0])
        ruler_host, ruler_guest = relative(host.cval, zero), relative(guest.cval, zero)
        a_lo, a_hi = host.lo - ruler_host, host.hi - ruler_host
        b_lo, b_hi = guest.lo - ruler_guest, guest.hi - ruler_guest
        low = _best(b_lo, guest.lo_known, a_hi, host.hi_known)
        high = _best(-b_hi, guest.hi_known, -a_lo, host.lo_known)
        origin = self.guest.domain.base - zero
        whole = _all_of(b_lo, guest.lo_known, b_hi, guest.hi_known)
        its = _all_of(a_lo, host.lo_known, a_hi, host.hi_known)
        return Found(
            kind,
            None if low is None else self._anchor(kind, Side.LOW, low, host, guest),
            None if high is None else self._anchor(kind, Side.HIGH, (-high[0], *high[1:]), host, guest),
            len(host) + len(guest),
            guest_whole=None if whole is None else (whole[0] + origin, whole[1] + origin),
            at_odds=any(part is not None and part[0] > part[1] for part in (whole, its)),
            family=KIND,
        )

    def by_pairs(self, host: Marks, guest: Marks) -> Found | None:
        """Anchors of marks with one CVAL, where the counter's frequency is not known."""
        order = np.argsort(guest.cval, kind="stable")
        at = np.searchsorted(guest.cval[order], host.cval)
        ok = at < len(order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else at
        if len(order):
            ok &= guest.cval[at] == host.cval
        host, guest = host.take(ok), guest.take(at[ok])
        low = _best_pair(guest.lo - host.hi, guest.lo_known & host.hi_known)
        high = _best_pair(host.lo - guest.hi, guest.hi_known & host.lo_known)
        if low is None and high is None:
            return None
        return Found(
            KIND,
            None if low is None else self._anchor(KIND, Side.LOW, low, host, guest),
            None if high is None else self._anchor(KIND, Side.HIGH, (-high[0], *high[1:]), host, guest),
            len(host),
        )

    def _anchor(self, kind: str, side: Side, best: tuple[int, int, int], host: Marks, guest: Marks) -> Anchor:
        number, guest_at, host_at = best
        guest_row, host_row = int(guest.row[guest_at]), int(host.row[host_at])
        return Anchor(
            kind,
            side,
            self.offsets(number)[0 if side is Side.LOW else 1],
            self._assumption(kind, guest_row, host_row),
            guest_row,
            int(self.guest.guest.stamp[guest_row]),
            host_row,
            int(self.host.host.stamp[host_row]),
        )

    def _assumption(self, kind: str, guest_row: int, host_row: int) -> str:
        """What is assumed of the code, and of the two machines' CLOCK_MONOTONIC."""
        host, guest = self.host.host, self.guest.guest
        guest_event, host_event = (
            recording.event_name(int(recording.event_id[row]))
            for recording, row in ((guest, guest_row), (host, host_row))
        )
        text = [_ONE] if kind == SHARED else []
        text += [_GUEST_CODE.get(guest_event, _GUEST_CODE[""]), _HOST_CODE[host_event]]
        sides: list[tuple[HostTimers | GuestTimers, str]] = [(self.guest, "the guest")]
        if host_event == "hrtimer_start":
            sides.insert(0, (self.host, "the host"))
        for side, name in sides:
            if side.clock.ticks is None:
                text.append(_SLEW.format(name))
            elif side.domain.mono is not None and side.trust_boot and side.clock.is_mono_raw:
                text.append(_BOOT.format(name))
        return "; ".join(text)


def _name(recording: Recording, row: int) -> str:
    return recording.event_name(int(recording.event_id[row]))


def _best(guest: I64, guest_ok: Bools, host: I64, host_ok: Bools) -> tuple[int, int, int] | None:
    """The greatest ``guest`` minus the least ``host`` of those that hold, and where they are; None: there is none."""
    if not guest_ok.any() or not host_ok.any():
        return None
    least = np.iinfo(np.int64).min
    first = int(np.where(guest_ok, guest, least).argmax())
    second = int(np.where(host_ok, host, np.iinfo(np.int64).max).argmin())
    return int(guest[first]) - int(host[second]), first, second


def _all_of(lo: I64, lo_ok: Bools, hi: I64, hi_ok: Bools) -> Interval | None:
    """The interval that all that hold leave; None where a side is open."""
    return (int(lo[lo_ok].max()), int(hi[hi_ok].min())) if lo_ok.any() and hi_ok.any() else None


def _best_pair(bound: I64, ok: Bools) -> tuple[int, int, int] | None:
    """The greatest ``bound`` of the pairs that hold, and which it is, twice; None: none holds."""
    if not ok.any():
        return None
    at = int(np.where(ok, bound, np.iinfo(np.int64).min).argmax())
    return int(bound[at]), at, at
