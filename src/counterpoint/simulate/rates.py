"""How the clocks of one machine run: their factors, drift, NTP's changes and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from counterpoint.clocks.arch_counter import factors
from counterpoint.simulate.counters import (
    GuestCounter,
    NsClock,
    kvm_ratio,
)
from counterpoint.simulate.plan import Plan


class MachineRates:
    """The rates of one machine's clocks: how far its idea of its counter is off, and when NTP changes its mind."""

    def __init__(
        self,
        plan: Plan,
        span: tuple[int, int],
        hz: int,
        *,
        drift: float = 0.0,
        steps: int = 0,
        stands: Sequence[tuple[int, int]] = (),
    ) -> None:
        """``drift`` in ppm; ``steps``: how often mono and boot step; ``stands``: when the machine does not run."""
        rng, options = plan.rng, plan.options
        self.options, self.hz, self.drift = options, hz, drift
        self.begin_ns = int(rng.integers(10**11, 10**14))
        self.frac = rng.random()

        def running(t: int) -> int:
            return next((go for stop, go in stands if stop <= t < go), t)

        times = np.sort(rng.integers(span[1] // 20 + 1, span[1], options.slews)).tolist()
        self.slews = [(0, 0.0)] + [(running(t), float(rng.uniform(-60, 60))) for t in times]
        when = rng.integers(span[1] // 5 + 1, span[1] * 4 // 5, steps).tolist()
        self.steps = [(running(t), int(rng.choice([1, 1, -1])) * int(10 ** rng.uniform(4, 8))) for t in when]

    def clock(self, name: str, counter_at: Callable[[int], int]) -> NsClock | None:
        """The clock ``name`` over a counter; None for the counter itself."""
        if name == "x86-tsc":
            return None
        mult, shift = factors(self.hz, "local" if name == "local" else "mono_raw")
        adjusted = name in ("mono", "boot")
        # arm64's other clocks have factors that follow from the frequency alone; x86 kernels measure theirs
        drift = self.drift if adjusted or self.options.arch == "x86" else 0.0
        rates = {0: (mult + round(mult * drift / 1e6), 0)}
        if adjusted:
            for t, ppm in self.slews:
                rates[t] = mult + round(mult * (drift + ppm) / 1e6), 0
            for t, step in self.steps:
                last = max(since for since in rates if since <= t)
                rates[t] = rates[last][0], step
        listed = [(t, *rates[t]) for t in sorted(rates)]
        return NsClock.build(counter_at, self.begin_ns, int(self.frac * (1 << shift)), listed, shift)


def counter_of(counter: GuestCounter) -> Callable[[int], int]:
    """A counter as a function of one hidden time."""
    return lambda t: int(counter.at(np.array([t], np.int64))[0])


def host_hz(plan: Plan, number: int) -> int:
    """How fast a host's counter runs."""
    counter = plan.hosts[number]
    return plan.options.host_khz * 1000 * (counter.mult << plan.fine) >> counter.shift


def guest_hz(plan: Plan) -> int:
    """How fast a guest's counter runs, and so what its kernel takes for its frequency."""
    options = plan.options
    scaled = kvm_ratio(options.guest_khz, options.host_khz, options.frac) != 1 << options.frac
    return (options.guest_khz if scaled else options.host_khz) * 1000
