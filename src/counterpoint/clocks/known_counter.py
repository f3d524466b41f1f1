"""arm64's counter behind a machine's trace clock, where K of the clock is known: counter values to stamps and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from counterpoint.clocks.arch_counter import NsScale, scale_of
from counterpoint.clocks.counter import U64, add

K_LIMIT = 1 << 127
"""Far more than any K: 64-bit ticks times a mult of 32 bits."""


@dataclass(frozen=True, slots=True)
class ArchCounter:
    """arm64's counter behind a trace clock in ns: stamps are ``(ticks * mult + K) >> shift``.

    ``frequency`` in Hz; K, as in clocks.arch_counter, lies from ``k`` to ``k_hi`` (None: it is ``k``); ``source`` says
    who tells it. ValueError for a frequency or a clock of which the factors are not known, and for what is no interval.
    """

    frequency: int
    k: int
    clock: Literal["mono_raw", "local"] = "mono_raw"
    k_hi: int | None = None
    source: str = "given"

    def __post_init__(self) -> None:
        """Refuse what has no factors."""
        if self.clock not in ("mono_raw", "local"):
            raise ValueError(f"the clock {self.clock} is not the counter times a constant, as mono_raw and local are")
        if scale_of(self.frequency, self.clock) is None:
            raise ValueError(f"{self.frequency} Hz is not from 1 Hz to 1 GHz")
        if not -K_LIMIT <= self.k <= self._most <= K_LIMIT:
            raise ValueError(f"K from {self.k} to {self.k_hi} is none")

    def explains(self, stamps: U64) -> bool:
        """Whether each of the stamps u64[n] is that of a tick, at ``k``."""
        scale = self._scale
        return bool((scale.to_ns(scale.to_ticks(stamps, self.k), self.k) == stamps).all())

    def stamps(self, ticks: U64) -> tuple[U64, U64]:
        """The least and the greatest trace-clock stamps u64[n] of counter values u64[n]."""
        return self._scale.to_ns(ticks, self.k), self._scale.to_ns(ticks, self._most)

    def ticks(self, early: U64, late: U64) -> tuple[U64, U64]:
        """The first and the last counter value u64[n] at stamps from ``early`` to ``late`` u64[n]."""
        return self._scale.to_ticks(early, self._most), add(self._scale.to_ticks(add(late, 1), self.k), -1)

    @property
    def _most(self) -> int:
        return self.k if self.k_hi is None else self.k_hi

    @property
    def _scale(self) -> NsScale:
        scale = scale_of(self.frequency, self.clock)
        assert scale is not None
        return scale
