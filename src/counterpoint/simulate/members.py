"""Hosts and guests of a world: machines with their clocks, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.clocks.counter import I64, U64
from counterpoint.simulate import truth
from counterpoint.simulate.counters import (
    GuestCounter,
    HostCounter,
    Setting,
)
from counterpoint.simulate.machines import Machine
from counterpoint.simulate.plan import (
    nested_counter,
)
from counterpoint.simulate.truth import Steps, TraceClock


@dataclass
class Host:
    """A host: its machine, and its trace clock."""

    machine: Machine
    clock: TraceClock

    def counter_truth(self) -> dict[str, Any]:
        """Its counter as a function of hidden time."""
        counter = self.clock.counter
        assert isinstance(counter, HostCounter)
        return {"counter": {"start": counter.start, "mult": counter.mult, "shift": counter.shift}}


@dataclass
class Guest:
    """A guest: its machine, its clocks, who runs it.

    ``tids``: of each vCPU, each time it comes to a host; ``counters``: of each; ``clocks``: of each, L2's of each L1
    CPU, which ``parent_cpu`` says. ``host_of``: the host it is on. ``parent`` None: the host.
    ``sched_clock_offset``: how far kvm-clock is ahead of its trace clock local, where that shows it. ``mono``: an L1's
    CLOCK_MONOTONIC.
    """

    machine: Machine
    parent: Guest | None
    tids: tuple[list[int], ...]
    counters: list[GuestCounter]
    clocks: list[TraceClock]
    host_of: Steps
    parent_cpu: list[Steps]
    arm64: bool
    given: tuple[int, int] | None = None
    sched_clock_offset: int = 0
    mono: TraceClock | None = None

    def parent_stamps(self, cpu: int, t: I64) -> U64:
        """The stamps of L1's CPU ``cpu``."""
        assert self.parent is not None
        return self.parent.machine.stamps(cpu, t)

    def claimed(self, cpu: int, epoch: int) -> tuple[int, int]:
        """The ratio and the offset from the parent's counter that hold in an epoch: what debugfs shows there."""
        if self.given is not None:
            return self.given
        setting = self.counters[cpu].settings[epoch]
        return setting.ratio, setting.offset

    def is_moved(self, cpu: int, epoch: int) -> bool:
        """Whether a vCPU is on the second host in an epoch."""
        return self.parent is None and self._settings(cpu)[epoch].host > 0

    def since(self, cpu: int) -> list[int]:
        """The hidden times at which a vCPU's epochs begin, the first from ever."""
        if self.parent is not None:
            return [0]
        return [setting.since for setting in self._settings(cpu)]

    def _settings(self, cpu: int) -> tuple[Setting, ...]:
        counter = self.clocks[cpu].counter
        assert isinstance(counter, GuestCounter)
        return counter.settings

    def epochs(
        self, cpu: int, hosts: Sequence[TraceClock], span: tuple[int, int], names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The epochs of a vCPU against its parent, as truth.json has them."""
        frac = self.counters[0].frac_bits
        if self.parent is not None:
            assert self.given is not None
            # one relation on every CPU of L1; KVM rounds the product of two ratios: only its own formula is exact
            setting = {"host": 0, "ratio": self.given[0], "frac_bits": frac, "offset": self.given[1]}
            parents = [self.parent.clocks[0]]
            return truth.epochs(parents, self.clocks[0], [0], [setting], span, names, self.arm64, rounded=True)
        settings = [
            {"host": s.host, "ratio": s.ratio, "frac_bits": frac, "offset": s.offset} for s in self._settings(cpu)
        ]
        return truth.epochs(hosts, self.clocks[cpu], self.since(cpu), settings, span, names, self.arm64)

    def more_truth(self) -> dict[str, Any]:
        """What truth.json says of the guest beyond its vCPUs' epochs."""
        out: dict[str, Any] = {"clock": self.clocks[0].truth()}
        if self.sched_clock_offset:
            out["kvm_sched_clock_offset"] = self.sched_clock_offset
        if self.parent is None:
            return out
        assert self.given is not None
        frac = self.counters[0].frac_bits
        out["l1_to_l2"] = {"ratio": self.given[0], "frac_bits": frac, "offset": self.given[1]}
        out["from_host_by_l1_cpu"] = [
            [{"ratio": s.ratio, "frac_bits": frac, "offset": s.offset} for s in nested_counter(c, *self.given).settings]
            for c in self.parent.counters
        ]
        return out
