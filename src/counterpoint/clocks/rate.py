"""Ticks to nanoseconds the way the kernel does it: ``ns = (ticks * mult) >> shift``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, U64

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

    def to_ns(self, value: int) -> int:
        """Nanoseconds of ``value`` units, rounded toward minus infinity; any integer."""
        return (value * self.mult) >> self.shift

    def array_to_ns(self, values: U64) -> I64:
        """Nanoseconds i64 of ``values`` u64, exactly as ``to_ns``; the result must stay below 2**63."""
        if self.mult == 1 and self.shift == 0:
            return values.view(np.int64)
        mult = np.uint64(self.mult)
        high = (values >> np.uint64(32)) * mult
        low = (values & _LOW) * mult
        return ((high << np.uint64(32 - self.shift)) + (low >> np.uint64(self.shift))).view(np.int64)

    @property
    def khz(self) -> int:
        """Units per millisecond, rounded."""
        return ((1_000_000 << self.shift) + self.mult // 2) // self.mult
