"""arm64's counter behind a trace clock in ns: exact ticks of stamps, and from stamps alone the lattice they lie on.

The kernel turns counter ticks into the ns of ``mono_raw`` (kernel/time/timekeeping.c) and of ``local``
(kernel/time/sched_clock.c) as ``ns = (ticks * mult + K) >> shift``. (mult, shift) follow from the counter's frequency
alone; K is one constant: for mono_raw per boot, for local until sched_clock re-bases (within the hour). So each stamp
names one tick, and the stamps of a counter below 1 GHz lie on a lattice that tells the frequency, and K modulo mult.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from counterpoint.clocks.counter import I64, U64, distinct

NS_PER_SEC = 1_000_000_000
COUNTER_BITS = 56
"""The bits that the architecture promises; up to 64 the factors are the same for all frequencies above 1 MHz."""

WELL_KNOWN_HZ = (
    *(1_000_000, 1_920_000, 2_000_000, 4_000_000, 5_000_000, 6_000_000, 6_250_000, 8_000_000, 10_000_000),
    *(12_000_000, 12_500_000, 13_000_000, 16_000_000, 16_666_666, 18_432_000, 19_200_000, 20_000_000),
    *(24_000_000, 24_576_000, 25_000_000, 26_000_000, 27_000_000, 30_000_000, 31_250_000, 32_000_000),
    *(33_000_000, 33_333_333, 38_400_000, 40_000_000, 48_000_000, 50_000_000, 52_000_000, 54_000_000),
    *(60_000_000, 62_500_000, 64_000_000, 65_000_000, 66_666_666, 75_000_000, 80_000_000, 83_333_333),
    *(96_000_000, 100_000_000, 120_000_000, 121_875_000, 122_880_000, 125_000_000),
    *(150_000_000, 156_250_000, 160_000_000, 166_666_666, 192_000_000, 200_000_000, 240_000_000),
    *(250_000_000, 300_000_000, 333_333_333, 400_000_000, 500_000_000),
)
"""CNTFRQs in use, tried before any other: they need no search. 1 GHz and above leave no lattice in ns."""

BITS_NEEDED = 40
"""Bits of evidence against chance that a lattice needs beyond those that the search took."""

_SEARCH_BITS = 29  # log2 of the frequencies below 500 MHz
_QUICK = 64  # stamps that a candidate is held against first
_SHORT_NS = 4_000  # distances that the search for an unknown frequency begins with
_SHORT_COUNT = 384
_GRID_HZ = 12_500

Clock = Literal["mono_raw", "local"]


def calc_mult_shift(from_hz: int, to_hz: int, max_seconds: int) -> tuple[int, int]:
    """The kernel's clocks_calc_mult_shift (kernel/time/clocksource.c); ValueError for frequencies not above 0."""
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"no factors from {from_hz} Hz to {to_hz} Hz")
    room = 32 - min(32, ((max_seconds * from_hz) >> 32).bit_length())
    for shift in range(32, 0, -1):
        mult = ((to_hz << shift) + from_hz // 2) // from_hz
        if not mult >> room:
            return mult, shift
    return mult, 0


def factors(frequency: int, clock: Clock = "mono_raw", bits: int = COUNTER_BITS) -> tuple[int, int]:
    """(mult, shift) that a kernel whose counter runs at ``frequency`` Hz uses for ``clock``; ValueError for 0 and less.

    mono_raw: __clocksource_update_freq_scale (kernel/time/clocksource.c), halved while an adjustment by 11 % could
    overflow, for a counter of ``bits`` bits. local: sched_clock_register (kernel/time/sched_clock.c).
    """
    if clock == "local":
        return calc_mult_shift(frequency, NS_PER_SEC, 3600)
    mult, shift = calc_mult_shift(frequency, NS_PER_SEC, max(1, min(600, ((1 << bits) - 1) // max(1, frequency))))
    while mult + mult * 11 // 100 >= 1 << 32:
        mult, shift = mult >> 1, shift - 1
    return mult, shift


@dataclass(frozen=True, slots=True)
class NsScale:
    """``ns = (ticks * mult + K) >> shift`` for a counter of ``frequency`` Hz, at most 1 GHz: a tick is 1 ns or longer.

    K is given in units of 2**-shift ns, as any integer.
    """

    frequency: int
    mult: int
    shift: int

    def __post_init__(self) -> None:
        """Refuse what the exact arithmetic does not cover (ValueError)."""
        if not 0 <= self.shift <= 31 or not 1 << self.shift <= self.mult < 1 << 32:
            raise ValueError(f"mult {self.mult}, shift {self.shift}: a tick is not between 1 ns and 2^32 units")

    def to_ns(self, ticks: U64, k: int) -> U64:
        """Stamps u64[n] of ``ticks`` u64[n], exactly; ticks and result modulo 2**64."""
        whole, rest = divmod(k, self.mult)
        index = ticks + np.uint64(whole % (1 << 64))
        mult, low = np.uint64(self.mult), index & np.uint64(0xFFFFFFFF)
        high = (index >> np.uint64(32)) * mult << np.uint64(32 - self.shift)
        return high + ((low * mult + np.uint64(rest)) >> np.uint64(self.shift))

    def to_ticks(self, ns: U64, k: int) -> U64:
        """Ticks u64[n] of stamps u64[n]: the first tick at or after each, so the very tick of a real stamp."""
        whole, rest = divmod(k, self.mult)
        mult = np.uint64(self.mult)
        # ns * 2^shift - rest, rounded up, in two parts that each fit 64 bits
        part = ((ns % mult) << np.uint64(self.shift)) + np.uint64(self.mult - 1 - rest)
        index = ((ns // mult) << np.uint64(self.shift)) + part // mult
        return index - np.uint64(whole % (1 << 64))

    def ns_of(self, ticks: int, k: int) -> int:
        """``to_ns`` of one integer of any size and sign."""
        return (ticks * self.mult + k) >> self.shift

    def ticks_of(self, ns: int, k: int) -> int:
        """``to_ticks`` of one integer of any size and sign."""
        return -((k - (ns << self.shift)) // self.mult)


@cache
def scale_of(frequency: int, clock: Clock = "mono_raw", bits: int = COUNTER_BITS) -> NsScale | None:
    """``factors`` for the exact arithmetic above; None above 1 GHz, where a tick is shorter than 1 ns."""
    return NsScale(frequency, *factors(frequency, clock, bits)) if 0 < frequency <= NS_PER_SEC else None


def k_of_timekeeper(scale: NsScale, cycle_last: int, seconds: int, shifted_ns: int) -> int:
    """K from a snapshot of the kernel's timekeeper, as the vDSO's data page shows it (include/vdso/datapage.h).

    ``cycle_last`` ticks were ``seconds`` and ``shifted_ns`` / 2**shift ns of CLOCK_MONOTONIC_RAW.
    """
    return ((seconds * NS_PER_SEC) << scale.shift) + shifted_ns - cycle_last * scale.mult


@dataclass(frozen=True, slots=True)
class Lattice:
    """The stamps that a counter can give: ``scale`` and all that is known of K.

    K modulo mult lies in the closed interval [``k_lo``, ``k_hi``], 0 <= k_lo < mult, k_hi < k_lo + mult. ``multiples``
    are well-known frequencies whose lattices hold the stamps too: one of them is the counter's if it only ever steps
    by several ticks.
    """

    scale: NsScale
    k_lo: int
    k_hi: int
    multiples: tuple[int, ...] = ()

    def index(self, ns: U64) -> U64:
        """Which point of the lattice each stamp u64[n] is: ticks plus one unknown integer, the same for all stamps."""
        return self.scale.to_ticks(ns, self.k_lo)

    def holds(self, ns: U64) -> bool:
        """Whether all stamps u64[n] lie on the lattice, for every K that it allows."""
        at = self.index(ns)
        return bool((self.scale.to_ns(at, self.k_lo) == ns).all() and (self.scale.to_ns(at, self.k_hi) == ns).all())

    def whole(self, k: tuple[int, int]) -> tuple[int, int] | None:
        """``index`` minus ticks, as a closed interval of integers, for a K in the closed interval ``k``.

        None where no such K suits the stamps.
        """
        mult = self.scale.mult
        lo, hi = -((self.k_hi - k[0]) // mult), (k[1] - self.k_lo) // mult
        return (lo, hi) if lo <= hi else None

    def k_of(self, whole: tuple[int, int]) -> tuple[int, int]:
        """The other way: the closed interval of K for ``index`` minus ticks in the closed interval ``whole``."""
        mult = self.scale.mult
        return whole[0] * mult + self.k_lo, whole[1] * mult + self.k_hi


def lattice_at(stamps: U64, scale: NsScale) -> tuple[tuple[int, int], int] | None:
    """K modulo mult as a closed interval for which all ``stamps`` u64[n] are of ``scale``, and the distinct residues.

    The stamp ns allows the K with ``ns * 2**shift <= K < (ns + 1) * 2**shift`` modulo mult; None where no K suits all,
    or more than one interval does.
    """
    mult, length = scale.mult, 1 << scale.shift
    if not len(stamps) or mult <= length:
        return None
    starts = ((stamps % np.uint64(mult)) << np.uint64(scale.shift)) % np.uint64(mult)
    residues = np.sort(starts)
    residues = residues[np.r_[True, residues[1:] != residues[:-1]]].astype(np.int64)
    # K suits all if no residue lies in the mult - length values after it
    nexts = np.r_[residues[1:], residues[0] + mult]
    wide = np.flatnonzero(nexts - residues > mult - length)
    if len(wide) != 1:
        return None
    at = int(wide[0])
    return (int(residues[at]), int(nexts[at]) - 1 - (mult - length)), len(residues)


def lattice_of(stamps: U64, frequency: int, clock: Clock = "mono_raw") -> Lattice | None:
    """The lattice of ``stamps`` u64[n], whose counter is known to run at ``frequency`` Hz.

    None where they do not lie on it, or do not tell K modulo mult; and above 1 GHz. Of a counter of exactly 1 ns a tick
    every stamp is a tick, and K modulo mult changes none.
    """
    scale = scale_of(frequency, clock)
    if scale is None:
        return None
    if scale.mult == 1 << scale.shift:
        return Lattice(scale, 0, scale.mult - 1)
    found = lattice_at(stamps, scale)
    return None if found is None else Lattice(scale, *found[0])


def find_lattice(stamps: U64, clock: Clock = "mono_raw") -> Lattice | None:
    """The coarsest lattice that all ``stamps`` u64[n] lie on, of a counter of 1 MHz to 500 MHz; None: there is none.

    None too where there are too few stamps to tell it from chance. Well-known frequencies come first; then any whole
    number of Hz that the stamps' own distances suggest.
    """
    unique = distinct(stamps)[0].astype(np.uint64, copy=False)
    fitting = [found for hz in WELL_KNOWN_HZ if (found := _held(unique, hz, clock, len(WELL_KNOWN_HZ).bit_length()))]
    if not fitting:
        fitting = [found for hz in _suggested(unique, clock) if (found := _held(unique, hz, clock, _SEARCH_BITS))][:1]
    if not fitting:
        return None
    best, *others = sorted(fitting, key=lambda lattice: lattice.scale.frequency)
    # two lattices that are no multiples of each other cannot both be the counter's: the stamps do not tell
    base = best.scale.frequency
    if any(_off_multiple(other.scale.frequency, base) for other in others):
        return None
    return Lattice(best.scale, best.k_lo, best.k_hi, tuple(other.scale.frequency for other in others))


def _off_multiple(frequency: int, base: int) -> bool:
    times = (frequency + base // 2) // base
    return abs(frequency - times * base) * 1_000_000 > frequency


def _held(unique: U64, frequency: int, clock: Clock, searched_bits: int) -> Lattice | None:
    """The lattice of ``frequency`` if all stamps lie on it, and not by chance."""
    scale = scale_of(frequency, clock)
    if scale is None or scale.mult <= 1 << scale.shift:
        return None
    if lattice_at(unique[:: max(1, len(unique) // _QUICK)], scale) is None:
        return None
    found = lattice_at(unique, scale)
    if found is None:
        return None
    # chance that n random stamps all fall in one arc of 1 / tick of the circle: below n * tick^-(n - 1)
    bits = (len(unique) - 1) * float(np.log2(scale.mult / (1 << scale.shift))) - float(np.log2(len(unique)))
    if bits < BITS_NEEDED + searched_bits:
        return None
    return Lattice(scale, *found[0])


def _suggested(unique: U64, clock: Clock) -> Iterator[int]:
    """Frequencies in Hz that the distances between stamps may be whole ticks of, the lowest first.

    Floats choose only: whatever comes out is held against every stamp in integers.
    """
    steps = np.diff(unique).view(np.int64)
    near = steps[(steps > 0) & (steps <= _SHORT_NS)][:_SHORT_COUNT]
    if len(near) < 2 * _SHORT_COUNT // 8:
        return
    # the mean cosine of each distance's phase at every frequency of the grid
    period = NS_PER_SEC // _GRID_HZ
    score = np.fft.rfft(np.bincount(near, minlength=period)).real[:-1] / len(near)
    score[: 1_000_000 // _GRID_HZ] = 0
    peak = np.r_[False, (score[1:-1] >= score[:-2]) & (score[1:-1] >= score[2:]), False]
    peaks = np.flatnonzero(peak & (score > 0.9 * score.max()) & (score > 0.3))[:8]
    for at in peaks.tolist():
        yield from _refined(unique, float(at * _GRID_HZ), clock)


def _refined(unique: U64, hz: float, clock: Clock) -> Iterator[int]:
    """Sharpen a frequency by ever longer distances; then the whole numbers of Hz next to it."""
    base = unique[0]
    away = (unique - base).view(np.int64)[1:]
    tick, error, reach = 1e9 / hz, 1e9 / hz * _GRID_HZ / hz, float(_SHORT_NS)
    lo, hi = tick - error, tick + error
    end = float(away[-1]) if len(away) else 0.0
    while True:
        steps = _distances(unique, reach)
        count = np.rint(steps / tick)
        # a distance whose number of ticks is in doubt says nothing
        sure = (count > 0) & (count * error < tick / 4)
        if not sure.any():
            return
        lo = max(lo, ((steps[sure] - 1) / count[sure]).max())
        hi = min(hi, ((steps[sure] + 1) / count[sure]).min())
        if lo > hi:
            return
        tick, error = (lo + hi) / 2, max((hi - lo) / 2, 1e-12 * (lo + hi))
        if reach >= end:
            break
        reach = min(end, reach * 4)
    # the factors' own rounding moves the tick by up to half of 1 / mult
    scale = scale_of(max(1_000_000, min(500_000_000, round(1e9 / tick))), clock)
    slack = error / tick + (1.0 / scale.mult if scale else 0.0)
    middle = 1e9 / tick
    first, last = int(np.floor(middle * (1 - slack))), int(np.ceil(middle * (1 + slack)))
    yield from sorted(range(first, min(last, first + 64) + 1), key=lambda value: abs(value - middle))


def _distances(unique: U64, reach: float) -> I64:
    """Distances i64 of up to ``reach`` ns: from stamps spread over the recording to the last one in reach."""
    pick = np.arange(0, len(unique), max(1, len(unique) // 2048))
    last = np.searchsorted(unique, unique[pick] + np.uint64(reach), side="right") - 1
    steps = (unique[last] - unique[pick]).view(np.int64)
    return steps[steps > 0]
