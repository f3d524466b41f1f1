"""Instants that two clocks of one host were read at: what ties a counter to the wall, and one host to another."""

from __future__ import annotations

from dataclasses import dataclass


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
