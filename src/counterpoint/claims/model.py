"""What a claim is: one source's word for the offset of one vCPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """``source`` says that ``guest = host + offset`` for a vCPU, in the unit of the two trace clocks.

    The vCPU is named by ``guest_cpu`` or by the host thread ``tid``. It speaks of ``host_from`` <= host stamp
    < ``host_to`` (None: open). ``ratio`` / 2**``frac_bits`` other than 1 / 1 is a scaled counter.
    """

    source: str
    offset: int
    guest_cpu: int | None = None
    tid: int | None = None
    host_from: int | None = None
    host_to: int | None = None
    ratio: int = 1
    frac_bits: int = 0
    detail: str = ""

    @property
    def is_scaled(self) -> bool:
        """Whether the claim says that the guest's counter runs at another rate."""
        return self.ratio != 1 << self.frac_bits
