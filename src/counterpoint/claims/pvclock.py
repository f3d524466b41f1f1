"""How kvm-clock runs, by the host's ``kvm:kvm_pvclock_update`` events (arch/x86/kvm/trace.h).

A guest's kvm-clock is ``system_time + (((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32)`` of its own
TSC, a shift to the right where tsc_shift is negative (pvclock_scale_delta, arch/x86/include/asm/pvclock.h), by what KVM
told its CPU last (kvm_guest_time_update, arch/x86/kvm/x86.c). Its trace clock ``local`` is kvm-clock less a constant of
its boot (kvm_sched_clock_read, arch/x86/kernel/kvmclock.c). Where KVM does not say that TSCs are stable it is more than
that: no CPU's clock is let fall behind what another has shown (pvclock_clocksource_read, arch/x86/kernel/pvclock.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.traces.recording import Recording

SOURCE = "kvm_pvclock_update"

TSC_STABLE = 1
"""PVCLOCK_TSC_STABLE_BIT: one pair of TSC and ns for all CPUs of the guest (masterclock)."""


@dataclass(frozen=True, slots=True, order=True)
class PvRate:
    """ns of kvm-clock per tick of the guest's TSC: ``(mul << shift) / 2**32``; ``mul`` u32 above 0, ``shift`` s8."""

    mul: int
    shift: int

    @property
    def rate(self) -> Fraction:
        """As a number."""
        return Fraction(self.mul) * Fraction(2) ** (self.shift - 32)


def rates_of(host: Recording) -> list[PvRate]:
    """The rates of the kvm-clocks that KVM told the guests of ``host`` of, while TSCs were stable; in order."""
    event = host.format_named("kvm", SOURCE)
    rows = host.rows(event)
    if event is None or not len(rows):
        return []
    try:
        mul: I64 = host.column(event, "tsc_to_system_mul", rows).astype(np.int64)
        shift: I64 = host.column(event, "tsc_shift", rows).astype(np.int64)
        flags: I64 = host.column(event, "flags", rows).astype(np.int64)
    except KeyError:
        return []
    sound = (flags & TSC_STABLE != 0) & (mul > 0) & (np.abs(shift) < 32)
    pairs = np.unique(np.stack([mul[sound], shift[sound]], axis=1), axis=0)
    return [PvRate(m, s) for m, s in pairs.tolist()]
