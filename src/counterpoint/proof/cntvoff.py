"""arm64's CNTVOFF in ticks of the counter, exactly: guest CNTVCT = host counter - CNTVOFF, so CNTVOFF = -offset.

Stamps of ``mono_raw`` or ``local`` on both sides lie on one lattice (``clocks.arch_counter``): each is a whole number
of ticks plus one integer that its machine's K decides. A guest event that must lie in a span of host time therefore
bounds CNTVOFF plus the difference of those two integers, in whole ticks; with both K known, CNTVOFF itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.arch_counter import Lattice
from counterpoint.clocks.counter import I64, MASK, U64, Bools, to_signed
from counterpoint.proof.feasible import Interval
from counterpoint.proof.fit import Thread
from counterpoint.proof.windows import FOREVER


@dataclass(frozen=True, slots=True)
class Spans:
    """Guest stamps u64[n], and the host stamps ``lo``, ``hi`` u64[n] that each event lies between.

    ``lo_known``, ``hi_known`` bool[n]: where such a stamp is known at all.
    """

    guest: U64
    lo: U64
    hi: U64
    lo_known: Bools
    hi_known: Bools

    @classmethod
    def at(cls, guest: U64, offset: int, thread: Thread) -> Spans:
        """The spans of ``thread`` that an offset (guest stamp minus host stamp) puts the events u64[n] in.

        ValueError where it puts one into a gap.
        """
        base = thread.windows.base
        host = (guest - np.uint64((offset + base) & MASK)).view(np.int64)
        span = np.searchsorted(thread.lo, host, side="right") - 1
        lo, hi = thread.lo[span], thread.hi[span]
        if (host > hi).any():
            raise ValueError(f"offset {offset} puts {int((host > hi).sum())} events into gaps")
        first = np.uint64(base)
        return cls(guest, lo.view(np.uint64) + first, hi.view(np.uint64) + first, lo > -FOREVER, hi < FOREVER)

    def take(self, chosen: Bools) -> Spans:
        """Those of the events ``chosen`` bool[n]."""
        return Spans(self.guest[chosen], self.lo[chosen], self.hi[chosen], self.lo_known[chosen], self.hi_known[chosen])


@dataclass(frozen=True, slots=True)
class TickCheck:
    """How events fare at a CNTVOFF: ``inside`` + ``violations`` + ``unknown`` = all.

    ``unknown`` events have no span, or are inside at one of the K allowed and outside at another: ``doubtful`` of them.
    ``first`` is the position of the first violation (-1: none).
    """

    inside: int
    violations: int
    unknown: int
    first: int
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class CounterPair:
    """A host's and a guest's stamps of one counter frequency.

    ``host_whole``, ``guest_whole``: lattice index minus ticks as closed intervals (``Lattice.whole``); None: K unknown.
    """

    host: Lattice
    guest: Lattice
    host_whole: Interval | None = None
    guest_whole: Interval | None = None

    def __post_init__(self) -> None:
        """Refuse lattices of different factors (ValueError): no single CNTVOFF relates their stamps."""
        if self.host.scale != self.guest.scale:
            raise ValueError(f"the host's counter has {self.host.scale}, the guest's {self.guest.scale}")

    @property
    def _shift(self) -> Interval | None:
        """CNTVOFF minus the distance of the indices."""
        if self.host_whole is None or self.guest_whole is None:
            return None
        return self.guest_whole[0] - self.host_whole[1], self.guest_whole[1] - self.host_whole[0]

    def index_range(self, spans: Spans) -> Interval | None:
        """Host index minus guest index, as the closed interval that all events allow; None where a side is open.

        An empty interval (first above second) where no CNTVOFF suits all.
        """
        if not spans.lo_known.any() or not spans.hi_known.any():
            return None
        low, high = self._distances(spans)
        return int(low[spans.lo_known].max()), int(high[spans.hi_known].min())

    def index_range_of(self, offsets: Interval) -> Interval:
        """The same from a closed interval of offsets (guest stamp minus host stamp, ns), as windows or anchors give it.

        Each of two stamps is cut off to whole ns, so their difference is off by less than one.
        """
        mult, shift = self.host.scale.mult, self.host.scale.shift
        low = -((-(self.guest.k_lo - self.host.k_hi - ((offsets[1] + 1) << shift))) // mult)
        high = (self.guest.k_hi - self.host.k_lo - ((offsets[0] - 1) << shift)) // mult
        return low, high

    def cntvoff(self, index: Interval) -> Interval | None:
        """CNTVOFF in ticks, a closed interval of signed numbers, from ``index_range``; None where a K is not known."""
        shift = self._shift
        return None if shift is None else _signed((index[0] + shift[0], index[1] + shift[1]))

    def offsets_of(self, cntvoff: int) -> Interval | None:
        """The trace clocks' offsets in ns, a closed interval, at a CNTVOFF in ticks; None where a K is not known."""
        shift = self._shift
        if shift is None:
            return None
        mult, bits = self.host.scale.mult, self.host.scale.shift
        least, most = _signed((cntvoff - shift[1], cntvoff - shift[0]))
        low = ((-most * mult + self.guest.k_lo - self.host.k_hi) >> bits) - 1
        high = -(-(-least * mult + self.guest.k_hi - self.host.k_lo) >> bits) + 1
        return low, high

    def check(self, spans: Spans, cntvoff: int) -> TickCheck | None:
        """Hold a claimed CNTVOFF in ticks against the events; None where a K is not known."""
        shift = self._shift
        if shift is None:
            return None
        low, high = self._distances(spans)
        least, most = _signed((cntvoff - shift[1], cntvoff - shift[0]))
        known = spans.lo_known & spans.hi_known
        bad = (spans.lo_known & (low > most)) | (spans.hi_known & (high < least))
        good = known & (low <= least) & (high >= most)
        wrong = np.flatnonzero(bad)
        inside, violations = int(good.sum()), len(wrong)
        doubtful = int((known & ~bad & ~good).sum())
        first = int(wrong[0]) if violations else -1
        return TickCheck(inside, violations, len(low) - inside - violations, first, doubtful)

    def host_stamps(self, guest: U64, cntvoff: int) -> U64:
        """Where a CNTVOFF in ticks puts guest stamps u64[n], at the middle of the K allowed; both K must be known."""
        shift = self._shift
        if shift is None:
            raise ValueError("a K is not known")
        index = self.guest.index(guest) + np.uint64((cntvoff - sum(shift) // 2) & MASK)
        return self.host.scale.to_ns(index, self.host.k_lo)

    def _distances(self, spans: Spans) -> tuple[I64, I64]:
        """The least and the greatest host index minus guest index that each event's span allows."""
        guest = self.guest.index(spans.guest)
        low = (self.host.index(spans.lo) - guest).view(np.int64)
        high = (self.host.index(spans.hi) - guest).view(np.int64)
        return low, high


def _signed(interval: Interval) -> Interval:
    """The same modulo 2**64, with a signed number of 64 bits as its lower end."""
    low = to_signed(interval[0])
    return low, low + interval[1] - interval[0]


def change(before: Interval, after: Interval) -> Interval:
    """CNTVOFF of a later epoch minus that of an earlier one, from their ``index_range``: no K is needed."""
    return _signed((after[0] - before[1], after[1] - before[0]))
