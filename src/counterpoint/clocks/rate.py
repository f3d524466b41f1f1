"""Ticks to nanoseconds and back the way the kernel does it: ``ns = (ticks * mult + base) >> shift``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, MASK, U64, Bools
from counterpoint.clocks.wide import multiples_within, shift_left

_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Rate:
    """How long a trace clock's unit is: ``(value * mult) >> shift`` ns; ``source`` says who says so.

    ``mult`` < 2**32, ``shift`` <= 32, as in the kernel's mul_u64_u32_shr (include/linux/math64.h). The unit of a
    clock that counts ns is ``Rate.ns()``.
    """

    mult: int
    shift: int
    source: str

    def __post_init__(self) -> None:
        """Refuse factors that the exact arithmetic below does not cover (ValueError)."""
        if not 0 < self.mult < 1 << 32 or not 0 <= self.shift <= 32:
            raise ValueError(f"mult {self.mult}, shift {self.shift} are outside 1..2^32-1, 0..32")

    @classmethod
    def ns(cls) -> Rate:
        """The rate of a clock that already counts nanoseconds."""
        return cls(1, 0, "clock")

    @classmethod
    def of_ratio(cls, ns: int, ticks: int, source: str) -> Rate | None:
        """The best (mult, shift) for ``ns`` nanoseconds per ``ticks``; None where that is no rate."""
        if ns <= 0 or ticks <= 0:
            return None
        for shift in range(32, -1, -1):
            mult = ((ns << shift) + ticks // 2) // ticks
            if 0 < mult < 1 << 32:
                return cls(mult, shift, source)
        return None

    def to_ns(self, value: int, base: int = 0) -> int:
        """Nanoseconds of ``value`` units, rounded toward minus infinity; any integer.

        ``base``, any integer in units of 2**-shift ns, is what the kernel's clock began with: ``xtime_nsec`` less
        ``cycle_last * mult`` (timekeeping_cycles_to_ns in kernel/time/timekeeping.c).
        """
        return (value * self.mult + base) >> self.shift

    def array_to_ns(self, values: U64, base: int = 0) -> I64:
        """Nanoseconds i64 of ``values`` u64, exactly as ``to_ns``; the result must lie within 2**63 of 0."""
        if self.mult == 1 and self.shift == 0 and base == 0:
            return values.view(np.int64)
        whole, rest = base >> self.shift, base & ((1 << self.shift) - 1)
        mult = np.uint64(self.mult)
        high = (values >> np.uint64(32)) * mult
        # at most (2^32-1)^2 + (2^32-1): no more than 64 bits
        low = (values & _LOW) * mult + np.uint64(rest)
        ns = (high << np.uint64(32 - self.shift)) + (low >> np.uint64(self.shift))
        return (ns + np.uint64(whole & MASK)).view(np.int64)

    def from_ns(self, ns: I64, base: int = 0) -> tuple[U64, U64]:
        """The closed intervals (lo, hi), u64[n] each, of what ``array_to_ns`` takes to each of ``ns`` i64[n].

        Where no value does, for a unit is longer than 1 ns, lo and hi are the neighbours between which it would lie;
        what lies outside 0..2**64-1 is cut to that. ValueError for a ``base`` of 2**120 or more.
        """
        if abs(base) >= 1 << 120:
            raise ValueError(f"base {base} is outside +-2^120")
        whole, rest = base >> self.shift, base & ((1 << self.shift) - 1)
        # ns - whole in 128 bits, two's complement
        low = ns.view(np.uint64) + np.uint64(-whole & MASK)
        high = (ns >> 63).view(np.uint64) + np.uint64(-whole >> 64 & MASK) + (low < (-whole & MASK))
        before, at_zero = high >> np.uint64(63) > 0, (high == 0) & (low == 0)
        upper, lower = shift_left(high, low, self.shift)
        product = lower - np.uint64(rest)
        first, last = multiples_within(upper - (product > lower), product, self.mult, self.shift)
        # no value's ns is as large as 2^96; at 0 the product is below 0
        ends: tuple[tuple[Bools, int, int], ...] = ((high >> np.uint64(32) > 0, MASK, MASK), (before, 0, 0))
        if rest:
            ends += ((at_zero, 0, ((1 << self.shift) - 1 - rest) // self.mult),)
        for where, least, greatest in ends:
            first[where], last[where] = least, greatest
        return first, last

    @property
    def khz(self) -> int:
        """Units per millisecond, rounded."""
        return ((1_000_000 << self.shift) + self.mult // 2) // self.mult
