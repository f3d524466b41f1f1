"""Instants that two clocks of one host were read at: what ties a counter to the wall, and one host to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from counterpoint.clocks.counter import MASK, to_signed

SLEW_PPM = 1000
"""How far the counter and CLOCK_REALTIME may part away from a pair: NTP slews by 500 ppm either way."""


@dataclass(frozen=True, slots=True)
class ClockPair:
    """One instant: the host's counter at ``counter`` (u64 ticks), CLOCK_REALTIME at ``realtime_ns`` (i64 since 1970).

    KVM_GET_CLOCK returns both of one reading while the master clock is in use: its ``host_tsc`` and ``realtime``
    (Documentation/virt/kvm/api.rst 4.29; get_kvmclock in arch/x86/kvm/x86.c). ``bound_ns``: by how much the two
    readings may be apart (0: one reading). ``source`` says who read them.
    """

    counter: int
    realtime_ns: int
    bound_ns: int = 0
    source: str = "kvm_get_clock"

    def __post_init__(self) -> None:
        """Refuse what is no counter, no time and no bound (ValueError)."""
        if not 0 <= self.counter < 1 << 64 or not -(1 << 63) <= self.realtime_ns < 1 << 63 or self.bound_ns < 0:
            raise ValueError(f"counter {self.counter}, realtime_ns {self.realtime_ns}, bound_ns {self.bound_ns}")


@dataclass(frozen=True, slots=True)
class Reading:
    """A counter at an instant by its pairs: ``value`` (ns, or ticks), by at most ``bound`` of the same unit off."""

    value: int
    bound: int


class PairedClock:
    """A host's counter and CLOCK_REALTIME by its pairs; straight between two, and beside one at its rate."""

    def __init__(self, pairs: Sequence[ClockPair], ns_per_tick: Fraction | None) -> None:
        """``ns_per_tick``: what else is known of the rate. ValueError where the pairs are no clock, or do not tell."""
        if not pairs:
            raise ValueError("there are no clock pairs")
        base = pairs[0].counter
        self.pairs = sorted(pairs, key=lambda p: to_signed(p.counter - base))
        ends = self.pairs[0], self.pairs[-1]
        ticks, ns = to_signed(ends[1].counter - ends[0].counter), ends[1].realtime_ns - ends[0].realtime_ns
        if ns_per_tick is None:
            if ticks <= 0 or ns <= 0:
                raise ValueError("one clock pair does not tell how long a tick is")
            ns_per_tick = Fraction(ns, ticks)
        self.ns_per_tick = ns_per_tick
        for one, next_ in zip(self.pairs, self.pairs[1:], strict=False):
            passed = to_signed(next_.counter - one.counter) * ns_per_tick
            apart = abs(next_.realtime_ns - one.realtime_ns - passed)
            if apart > passed * SLEW_PPM / 1_000_000 + one.bound_ns + next_.bound_ns + 1:
                raise ValueError(
                    f"between counter {one.counter} and {next_.counter} CLOCK_REALTIME was set, by some {int(apart)} ns"
                )

    def realtime(self, counter: int) -> Reading:
        """CLOCK_REALTIME in ns at a counter value."""
        near = min(self.pairs, key=lambda p: abs(to_signed(counter - p.counter)))
        passed = to_signed(counter - near.counter) * self.ns_per_tick
        bound = near.bound_ns + abs(passed) * SLEW_PPM / 1_000_000 + 1
        return Reading(near.realtime_ns + int(passed // 1), int(bound) + 1)

    def counter(self, realtime_ns: int) -> Reading:
        """The counter, u64, at a CLOCK_REALTIME."""
        near = min(self.pairs, key=lambda p: abs(realtime_ns - p.realtime_ns))
        passed = (realtime_ns - near.realtime_ns) / self.ns_per_tick
        bound = near.bound_ns / self.ns_per_tick + abs(passed) * SLEW_PPM / 1_000_000 + 1
        return Reading((near.counter + int(passed // 1)) & MASK, int(bound) + 1)
