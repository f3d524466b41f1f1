"""What a claim is: one source's word for the offset of one vCPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from counterpoint.clocks.counter import U64, Bools, relative
from counterpoint.clocks.scaling import Scale


@dataclass(frozen=True, slots=True)
class Held:
    """Spans of host time in which a source saw its value hold, in order.

    From ``begin`` u64[n] to before ``end`` u64[n].
    """

    begin: U64
    end: U64

    def __len__(self) -> int:
        """How many spans."""
        return len(self.begin)

    def holds(self, early: U64, late: U64) -> Bools:
        """Which host stamps, known to lie from ``early`` to ``late`` u64[n], are in one of the spans for sure."""
        if not len(self):
            return np.zeros(len(early), np.bool_)
        base = int(self.begin[0])
        begin, end = relative(self.begin, base), relative(self.end, base)
        first, last = relative(early, base), relative(late, base)
        at = np.searchsorted(begin, first, side="right") - 1
        out: Bools = (at >= 0) & (first <= last) & (last < end[at])
        return out


@dataclass(frozen=True, slots=True)
class Claim:
    """``source`` says that ``guest = host + offset`` for a vCPU, in the unit of the two trace clocks.

    The vCPU is named by ``guest_cpu`` or by the host thread ``tid``. It speaks of ``host_from`` <= host stamp
    < ``host_to`` (None: open), or within that only of the spans ``held``. ``ratio`` / 2**``frac_bits`` other than 1 / 1
    is a scaled counter: ``offset`` is what is added to the scaled host value. ``guest_at`` is the guest stamp at which
    the source measured, where it says. A source that looks now and then saw its value from ``first_seen`` to
    ``last_seen`` (host stamps; None: it watched, or that side is open): beyond these, up to ``host_from`` and
    ``host_to``, another value of it may have held as well.
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
    held: Held | None = field(default=None, compare=False, repr=False)
    first_seen: int | None = None
    last_seen: int | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether nobody says when exactly it began or ended."""
        return self.first_seen is not None or self.last_seen is not None

    @property
    def scale(self) -> Scale:
        """The claim's word for the rate: scale 1 where the guest's counter runs as the host's."""
        return Scale() if self.ratio == 1 << self.frac_bits else Scale(self.ratio, self.frac_bits)


@dataclass(frozen=True, slots=True)
class CounterClaim:
    """``source`` says that a vCPU's CNTVOFF is ``cntvoff`` ticks, a signed number of 64 bits: arm64's word for it.

    ``guest CNTVCT = host counter - cntvoff``. The vCPU and the span are named as in ``Claim``.
    """

    source: str
    cntvoff: int
    guest_cpu: int | None = None
    tid: int | None = None
    host_from: int | None = None
    host_to: int | None = None
    detail: str = ""
    held: Held | None = field(default=None, compare=False, repr=False)
