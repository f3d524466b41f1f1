"""What one source said of one vCPU's offset, and whether the sources agree.

KVM's sign on x86: guest = host + offset, in ticks of the host's counter scaled by ratio / 2**frac_bits; on arm64 the
offset is the negative of CNTVOFF (and ``level`` "physical": of what is subtracted from CNTPCT).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

from counterpoint.live.kvm import Clock
from counterpoint.live.missing import Missing
from counterpoint.live.ptp import HostPair
from counterpoint.live.vms import Vcpu, Vm

L1, ACTIVE, PHYSICAL = "L1", "active", "physical"


@dataclass(frozen=True)
class Reading:
    """The offset lies in the closed interval [``low``, ``high``] (equal: exact), says ``source``.

    ``level``: "L1" is that of the VM itself, "active" what was in use, which may be that of the VM's own guest.
    ``host_counter``: the host's counter when it was read or, of an event, when it happened; ``realtime_ns`` likewise.
    ``cost_ns``: what reading took. ``stood_ns``: for how long at most the vCPU stood still for it.
    """

    source: str
    level: str
    low: int
    high: int
    host_counter: int | None
    realtime_ns: int
    cost_ns: int = 0
    stood_ns: int = 0
    ratio: int | None = None
    frac_bits: int | None = None
    brackets: int = 0
    """How many readings between two of the host's counter the interval comes from."""
    note: str = ""

    @property
    def exact(self) -> bool:
        """The offset is known to the tick."""
        return self.low == self.high


@dataclass
class VcpuOffsets:
    """All that was read of one vCPU."""

    vm: Vm
    vcpu: Vcpu
    readings: list[Reading] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def conflicts(self) -> list[tuple[Reading, Reading]]:
        """Pairs of readings that cannot both hold: of one level, with nothing in common."""
        return [
            (one, other)
            for one, other in combinations(self.readings, 2)
            if one.level == other.level != ACTIVE and (one.high < other.low or other.high < one.low)
        ]

    def agree(self) -> bool | None:
        """Whether the readings of L1 agree; None where there are fewer than two."""
        if self.conflicts():
            return False
        return True if sum(reading.level == L1 for reading in self.readings) > 1 else None

    def best(self) -> Reading | None:
        """The narrowest reading of L1's offset."""
        return min((r for r in self.readings if r.level == L1), key=lambda r: r.high - r.low, default=None)


@dataclass
class HostOffsets:
    """All VMs of this host; what was missing for all of them; and pairs of this machine's own, where it is a guest."""

    vcpus: list[VcpuOffsets]
    vms: list[Vm]
    missing: list[Missing] = field(default_factory=list)
    clocks: dict[tuple[int, int], Clock] = field(default_factory=dict)
    """Of a VM (pid, descriptor): what KVM_GET_CLOCK returned."""
    pairs: list[HostPair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
