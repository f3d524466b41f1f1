"""What a claim is: one source's word for the offset of one vCPU."""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.clocks.scaling import Scale


@dataclass(frozen=True, slots=True)
class Claim:
    """``source`` says that ``guest = host + offset`` for a vCPU, in the unit of the two trace clocks.

    The vCPU is named by ``guest_cpu`` or by the host thread ``tid``. It speaks of ``host_from`` <= host stamp
    < ``host_to`` (None: open). ``ratio`` / 2**``frac_bits`` other than 1 / 1 is a scaled counter: ``offset`` is what is
    added to the scaled host value. ``guest_at`` is the guest stamp at which the source measured, where it says.
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
    guest_at: int | None = None

    @property
    def scale(self) -> Scale:
        """The claim's word for the rate: scale 1 where the guest's counter runs as the host's."""
        return Scale() if self.ratio == 1 << self.frac_bits else Scale(self.ratio, self.frac_bits)
