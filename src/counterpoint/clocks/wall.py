"""A host's wall time: its CLOCK_REALTIME by its trace clock, from instants at which both were read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, add, relative, to_signed
from counterpoint.clocks.cpu_clock import Span
from counterpoint.clocks.machines import MachineClock
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate

NTP_PPM = 500
"""By how much NTP slews a clock at most (MAXFREQ in include/linux/timex.h)."""

MEASURED_PPM = 1000
"""How true a rate is taken to be that was measured by a clock which NTP may have slewed, against wall time."""

SLEWED_ALIKE = ("mono", "boot", "tai")
"""Trace clocks that NTP slews with CLOCK_REALTIME: the difference is constant until one is set."""

_MOST_PPM = 100_000
"""Pairs that are less true than a tenth of the time between them tell no rate."""

_MOST = 1 << 61
_ROUNDING = 2


@dataclass(frozen=True, slots=True)
class WallTimes:
    """Times of CLOCK_REALTIME in ns since 1970, i64[n] each, with bounds; ``known`` bool[n]: where there is one."""

    ns: I64
    earliest: I64
    latest: I64
    known: Bools


@dataclass(frozen=True, slots=True)
class Wall:
    """The wall time of host stamps, by ``pairs`` of a stamp (``counter``) and a time, in the order of the stamps.

    Assumed: between and beyond the pairs nobody set the clock, and NTP slewed it by no more than ``ppm`` against
    ``rate``. ``is_bounded``: the pairs say how true they are. ValueError for pairs that are none in order, or beyond
    some 70 years of 1970.
    """

    pairs: tuple[ClockPair, ...]
    rate: Rate
    ppm: int
    is_bounded: bool = True

    def __post_init__(self) -> None:
        """Refuse pairs that cannot be used."""
        if not self.pairs or any(abs(p.realtime_ns) > _MOST or p.bound_ns > _MOST for p in self.pairs):
            raise ValueError("a wall time is not within 70 years of 1970")
        if any(not 0 < to_signed(b.counter - a.counter) < _MOST for a, b in pairwise(self.pairs)):
            raise ValueError("two wall times are of one stamp, or too far apart")

    @classmethod
    def of(cls, host: MachineClock, pairs: tuple[ClockPair, ...]) -> Wall | None:
        """The wall time of a host: by the pairs, else by its recording's DATE; None where nothing is known of it.

        None too where a tick's length is not known and a single pair, or pairs too rough for it, do not tell it.
        ValueError as above.
        """
        if pairs:
            ordered = sorted(pairs, key=lambda p: to_signed(p.counter - pairs[0].counter))
            rate, apart = host.rate, 0
            if rate is None and len(ordered) > 1:
                first, last = ordered[0], ordered[-1]
                ticks, ns = to_signed(last.counter - first.counter), last.realtime_ns - first.realtime_ns
                rate = Rate.of_ratio(ns, ticks, "realtime")
                apart = -(-(first.bound_ns + last.bound_ns) * 1_000_000 // max(ns, 1))
            if apart > _MOST_PPM:
                return None
            return None if rate is None else cls(tuple(ordered), rate, _ppm(host, rate) + apart)
        if host.unit != "ns" or host.date_us is None or host.span is None:
            return None
        stamp = host.span[0]
        time = stamp + host.date_us * 1000
        if abs(time) > _MOST:
            return None
        # trace-cmd measured it before the recording began (get_date_to_ts), and does not say how well
        date = ClockPair(stamp, time, 1000, "date")
        return cls((date,), Rate.ns(), _ppm(host, Rate.ns()), is_bounded=False)

    @property
    def source(self) -> str:
        """Who read both clocks."""
        return ", ".join(dict.fromkeys(pair.source for pair in self.pairs))

    @property
    def was_set(self) -> tuple[ClockPair, ClockPair] | None:
        """The first two pairs that no slewing explains: somebody set the clock between them."""
        for one, other in pairwise(self.pairs):
            passed = self.rate.to_ns(to_signed(other.counter - one.counter))
            off = abs(other.realtime_ns - one.realtime_ns - passed)
            if off > self._slack(passed) + one.bound_ns + other.bound_ns + _ROUNDING:
                return one, other
        return None

    def at(self, host: Span) -> WallTimes:
        """Wall times of host stamps within ``host``."""
        lo, at, hi = host
        earliest, _, below = self._bounds(lo)
        _, latest, above = self._bounds(hi)
        early, late, known = self._bounds(at)
        return WallTimes(early + (late - early) // 2, earliest, latest, known & below & above)

    def stamps(self, lo: I64, hi: I64) -> tuple[Span, Bools]:
        """Host stamps at wall times from ``lo`` to ``hi`` i64[n] in ns, and which are known.

        ValueError where the clock was set between the pairs: a time may have been twice, or never.
        """
        if self.was_set is not None:
            raise ValueError("the host's wall clock was set between two of the pairs")
        early, _, below = self._stamp_bounds(lo)
        _, late, above = self._stamp_bounds(hi)
        middle = early + ((late - early) >> np.uint64(1))
        return (early, middle, late), below & above

    def _bounds(self, stamps: U64) -> tuple[I64, I64, Bools]:
        """The earliest and the latest wall time of each stamp: what the pairs on both sides allow."""
        zero = self.pairs[0].counter
        when = relative(stamps, zero)
        of = np.array([to_signed(p.counter - zero) for p in self.pairs], np.int64)
        time, apart = (np.array([getattr(p, n) for p in self.pairs], np.int64) for n in ("realtime_ns", "bound_ns"))
        after = np.searchsorted(of, when)
        low, high, known = [], [], np.ones(len(stamps), np.bool_)
        for index in (np.maximum(after - 1, 0), np.minimum(after, len(of) - 1)):
            passed, fits = self._ns(when - of[index])
            known &= fits
            slack = self._slack(passed) + apart[index] + _ROUNDING
            low.append(time[index] + passed - slack)
            high.append(time[index] + passed + slack)
        return *_both(low, high), known

    def _stamp_bounds(self, ns: I64) -> tuple[U64, U64, Bools]:
        """The earliest and the latest stamp of each wall time."""
        zero = self.pairs[0].counter
        of = np.array([to_signed(p.counter - zero) for p in self.pairs], np.int64)
        time, apart = (np.array([getattr(p, n) for p in self.pairs], np.int64) for n in ("realtime_ns", "bound_ns"))
        known = np.abs(ns) <= _MOST
        ns = np.where(known, ns, 0)
        after = np.searchsorted(time, ns)
        low, high = [], []
        for index in (np.maximum(after - 1, 0), np.minimum(after, len(of) - 1)):
            passed = ns - time[index]
            slack = self._slack(passed) + np.abs(passed) // 1_000_000 + apart[index] + _ROUNDING
            first, fits = self._units(passed - slack)
            last, also = self._units(passed + slack)
            known &= fits & also
            low.append(of[index] + first - 1)
            high.append(of[index] + last + 1)
        early, late = _both(low, high)
        return add(early.view(np.uint64), zero), add(late.view(np.uint64), zero), known

    def _slack(self, ns: I64 | int) -> I64:
        """By how much wall time may differ from the rate's after so many ns."""
        slack: I64 = (np.abs(ns) // 1_000_000 + 1) * self.ppm if self.ppm else np.abs(ns) * 0
        return slack

    def _ns(self, units: I64) -> tuple[I64, Bools]:
        """Ns of a number of units of either sign, and which of them are few enough."""
        fits = np.abs(units) < (_MOST << self.rate.shift) // self.rate.mult
        size = self.rate.array_to_ns(np.where(fits, np.abs(units), 0).view(np.uint64))
        return np.where(units < 0, -size, size), fits

    def _units(self, ns: I64) -> tuple[I64, Bools]:
        """Units of a number of ns of either sign."""
        fits = np.abs(ns) < min(_MOST, (_MOST * self.rate.mult) >> self.rate.shift)
        units = self.rate.from_ns(np.where(fits, np.abs(ns), 0))[0].view(np.int64)
        return np.where(ns < 0, -units, units), fits


def _ppm(host: MachineClock, rate: Rate) -> int:
    if host.unit == "ns":
        return 0 if host.clock in SLEWED_ALIKE else NTP_PPM
    return NTP_PPM if rate.source == "tsc2nsec" else MEASURED_PPM


def _both(low: list[I64], high: list[I64]) -> tuple[I64, I64]:
    """What both of two bounds allow; where that is nothing, all that either does."""
    least, most = np.maximum(*low), np.minimum(*high)
    meet = least <= most
    return np.where(meet, least, np.minimum(*low)), np.where(meet, most, np.maximum(*high))
