"""From the world's hidden time to counters and trace clocks, exactly.

Hidden time is i64, in units of a host tick or of a binary fraction of it. The arithmetic is KVM's and the timekeeper's:
kvm_read_l1_tsc, kvm_calc_nested_tsc_offset and kvm_calc_nested_tsc_multiplier (arch/x86/kvm/x86.c), timekeeping_get_ns
(kernel/time/timekeeping.c); the clocks' factors are ``clocks.arch_counter``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.arch_counter import NS_PER_SEC
from counterpoint.clocks.counter import I64, MASK, U64, to_signed

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def scaled(values: U64, ratio: int, frac_bits: int) -> U64:
    """``(values * ratio) >> frac_bits`` modulo 2**64, with a 128-bit product (mul_u64_u64_shr); 0 < frac_bits < 64."""
    if ratio == 1 << frac_bits:
        return values
    a, b = values >> _HALF, values & _LOW
    c, d = np.uint64(ratio >> 32), np.uint64(ratio & 0xFFFFFFFF)
    bd = b * d
    cross = (bd >> _HALF) + (a * d & _LOW) + (b * c & _LOW)
    high = a * c + (a * d >> _HALF) + (b * c >> _HALF) + (cross >> _HALF)
    low = (cross << _HALF) | (bd & _LOW)
    out: U64 = (high << np.uint64(64 - frac_bits)) | (low >> np.uint64(frac_bits))
    return out


def kvm_ratio(guest_khz: int, host_khz: int, frac_bits: int) -> int:
    """The ratio that KVM sets (set_tsc_khz): none (1 << frac_bits) where the rates are within 250 ppm."""
    if not guest_khz or abs(guest_khz - host_khz) * 1_000_000 <= 250 * host_khz:
        return 1 << frac_bits
    return (guest_khz << frac_bits) // host_khz


def combined(l1_ratio: int, l1_offset: int, l12_ratio: int, l12_offset: int, frac_bits: int) -> tuple[int, int]:
    """(ratio, offset) from the host to L2, as KVM computes them; offsets signed."""
    if l12_ratio == 1 << frac_bits:
        return l1_ratio, to_signed(l1_offset + l12_offset)
    size = (abs(to_signed(l1_offset)) * l12_ratio >> frac_bits) & MASK
    return (l1_ratio * l12_ratio >> frac_bits) & MASK, to_signed((size if l1_offset >= 0 else -size) + l12_offset)


@dataclass(frozen=True, slots=True)
class HostCounter:
    """A host's counter: ``start + ((t * mult) >> shift)``, modulo 2**64."""

    start: int
    mult: int
    shift: int

    def at(self, t: I64) -> U64:
        """The counter u64[n] at hidden times i64[n]."""
        return ((t * self.mult) >> self.shift).view(np.uint64) + np.uint64(self.start & MASK)

    def at_one(self, t: int) -> int:
        """The counter at one hidden time, not reduced modulo 2**64."""
        return self.start + (t * self.mult >> self.shift)


@dataclass(frozen=True, slots=True)
class Setting:
    """A vCPU's counter from hidden time ``since`` on: ``((host * ratio) >> frac_bits) + offset`` of host ``host``."""

    since: int
    host: int
    ratio: int
    offset: int


@dataclass(frozen=True)
class GuestCounter:
    """One vCPU's counter: its settings by ``since``, the first from the beginning."""

    hosts: tuple[HostCounter, ...]
    frac_bits: int
    settings: tuple[Setting, ...]

    def epoch(self, t: I64) -> I64:
        """Which setting holds at hidden times i64[n]."""
        since = np.array([s.since for s in self.settings[1:]], np.int64)
        return np.searchsorted(since, t, side="right")

    def at(self, t: I64) -> U64:
        """The counter u64[n] at hidden times i64[n]."""
        out = np.zeros(len(t), np.uint64)
        epoch = self.epoch(t)
        for index, setting in enumerate(self.settings):
            mine = epoch == index if len(self.settings) > 1 else slice(None)
            host = self.hosts[setting.host].at(t[mine])
            out[mine] = scaled(host, setting.ratio, self.frac_bits) + np.uint64(setting.offset & MASK)
        return out


def pvclock_scale(hz: int) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) that KVM gives a guest of ``hz`` (kvm_get_time_scale, arch/x86/kvm/x86.c).

    ``ns = ((ticks << tsc_shift) * tsc_to_system_mul) >> 32``, a shift to the right where tsc_shift is negative.
    """
    shift = 0
    while hz > 2 * NS_PER_SEC or hz >> 32:
        hz, shift = hz >> 1, shift - 1
    while hz <= NS_PER_SEC:
        hz, shift = hz << 1, shift + 1
    return (NS_PER_SEC << 32) // hz, shift


@dataclass(frozen=True, slots=True)
class Segment:
    """From hidden time ``since``: ``ns + ((((counter now - counter) >> pre) * mult + frac) >> shift)``."""

    since: int
    counter: int
    ns: int
    frac: int
    mult: int
    shift: int
    pre: int = 0


@dataclass(frozen=True)
class NsClock:
    """A clock in ns over a counter, in segments of one rate each."""

    segments: tuple[Segment, ...]

    @classmethod
    def kvm_clock(cls, counter_at: Callable[[int], int], begin_ns: int, updates: Sequence[int], hz: int) -> NsClock:
        """A guest's kvm-clock: at hidden times ``updates``, the first 0, KVM gives it a new pair of TSC and ns.

        pvclock_scale_delta, arch/x86/include/asm/pvclock.h; for guests above 1 GHz, whose tsc_shift is not positive.
        """
        mult, shift = pvclock_scale(hz)
        segments: list[Segment] = []
        for since in updates:
            counter = counter_at(since)
            if segments:
                last = segments[-1]
                begin_ns = last.ns + (((counter - last.counter) & MASK) >> -shift) * mult // (1 << 32)
            segments.append(Segment(since, counter, begin_ns, 0, mult, 32, -shift))
        return cls(tuple(segments))

    @classmethod
    def build(
        cls,
        counter_at: Callable[[int], int],
        begin_ns: int,
        frac: int,
        rates: Sequence[tuple[int, int, int]],
        shift: int,
    ) -> NsClock:
        """``rates``: (hidden time, mult from then on, ns that the clock steps by then), in order, the first at 0."""
        segments: list[Segment] = []
        for since, mult, step in rates:
            counter = counter_at(since)
            if segments:
                last = segments[-1]
                total = (last.ns << shift) + last.frac + ((counter - last.counter) & MASK) * last.mult
                begin_ns, frac = (total >> shift) + step, total & ((1 << shift) - 1)
            segments.append(Segment(since, counter, begin_ns, frac, mult, shift))
        return cls(tuple(segments))

    def at(self, t: I64, counter: U64) -> U64:
        """The clock u64[n] at hidden times i64[n], where the counter is u64[n]."""
        which = np.searchsorted(np.array([s.since for s in self.segments[1:]], np.int64), t, side="right")

        def column(values: Sequence[int]) -> U64:
            array = np.array([v & MASK for v in values], np.uint64)
            return array[which] if len(array) > 1 else array

        delta = (counter - column([s.counter for s in self.segments])) >> np.uint64(self.segments[0].pre)
        mult, frac = column([s.mult for s in self.segments]), column([s.frac for s in self.segments])
        shift = np.uint64(self.segments[0].shift)
        # the low product has at most 2^64 - 2^33, so the fraction below 2^32 fits
        high, low = (delta >> _HALF) * mult, (delta & _LOW) * mult + frac
        out: U64 = column([s.ns for s in self.segments]) + (high << (_HALF - shift)) + (low >> shift)
        return out
