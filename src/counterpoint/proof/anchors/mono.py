"""How far CLOCK_MONOTONIC is from a recording's trace clock: timers speak in the one, stamps are of the other.

``hrtimer_expire_entry`` carries the ``now`` that hrtimer_interrupt and hrtimer_run_softirq (kernel/time/hrtimer.c) read
before they run what has expired: after the event before it on that CPU, before its own stamp. So
``now - stamp <= mono - clock <= now - stamp of the event before``.

Where the counter's frequency shows in the stamps (``clocks.arch_counter``), all is counted in ticks. If every ``now``
lies on one lattice of the same factors, CLOCK_MONOTONIC was not slewed while the recording ran: the distance is one
number. Else it may move by ``SLEW_PPM``, and only readings nearby bound it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary, ref

import numpy as np

from counterpoint.clocks.arch_counter import Lattice, lattice_at, scale_of
from counterpoint.clocks.counter import I64, U64, Bools, distinct, relative
from counterpoint.proof.anchors.unseen import unbroken
from counterpoint.proof.lattices import lattice_of_recording
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.recording import Recording
from counterpoint.traces.symbols import Symbols

SLEW_PPM = 500
"""The most that NTP slews CLOCK_MONOTONIC (MAXFREQ in include/linux/timex.h)."""

MONOTONIC_TIMERS = (
    *("tick_nohz_handler", "tick_sched_timer", "kvm_bg_timer_expire", "kvm_hrtimer_expire"),
    *("apic_timer_fn", "watchdog_timer_fn", "dl_task_timer", "perf_mux_hrtimer_handler"),
)
"""Timer functions that the kernel only ever puts on CLOCK_MONOTONIC."""

CLOCK_MONOTONIC = 1

_BEFORE = (
    *(("irq", "irq_handler_entry"), ("irq_vectors", "local_timer_entry"), ("irq", "softirq_entry")),
    *(("timer", "hrtimer_start"), ("timer", "hrtimer_cancel"), ("timer", "hrtimer_expire_exit")),
)
# of these, none is written between the reading of ``now`` and the first timer that it expires

_BITS = 32  # of the fraction that a slope is counted in
_SPAN_BITS = 38
_FAR = np.int64((1 << 63) - 1)
_UNKNOWN_TICK_NS = 1000  # no longer than at 1 MHz
_SLEW_SLOPE = (SLEW_PPM << _BITS) // 1_000_000 + 1
_ROUNDING_SLOPE = 1 << _BITS - 23
_MIN_READINGS = 64
_MIN_TICK_NS = 16


@dataclass(frozen=True, slots=True)
class Domain:
    """The numbers that one machine's times are counted in: ticks of its ``lattice``, or ns where that is None.

    ``mono``: the lattice of its CLOCK_MONOTONIC; needed to count that in ticks. A tick is no longer than ``tick``.
    """

    base: int
    lattice: Lattice | None
    mono: Lattice | None
    tick: int

    def stamps(self, stamp: U64) -> I64:
        """Numbers i64[n] of stamps u64[n], from the base."""
        if self.lattice is None:
            return relative(stamp, self.base)
        return relative(self.lattice.index(stamp), self.base)

    def clock(self, ns: I64) -> I64:
        """Numbers i64[n] of CLOCK_MONOTONIC's i64[n] ns, from the same base: the first at or after each."""
        stamp = ns.view(np.uint64)
        return relative(stamp if self.mono is None else self.mono.index(stamp), self.base)


_CLOCKS: WeakKeyDictionary[Recording, MonoClock] = WeakKeyDictionary()


def clock_of(recording: Recording) -> MonoClock:
    """The recording's clock: one, as it may be host and guest, and what it decodes is kept."""
    return _CLOCKS.setdefault(recording, MonoClock(recording))


class MonoClock:
    """CLOCK_MONOTONIC of one recording against its stamps; ``is_usable`` where anything is known."""

    def __init__(self, recording: Recording) -> None:
        """Take the recording, which the caller keeps; nothing is decoded before it is asked for."""
        self._recording = ref(recording)

    @property
    def recording(self) -> Recording:
        """The recording; ReferenceError where nobody keeps it."""
        found = self._recording()
        if found is None:
            raise ReferenceError("the recording is gone")
        return found

    @cached_property
    def lattice(self) -> Lattice | None:
        """The lattice of the stamps."""
        return lattice_of_recording(self.recording)

    @cached_property
    def symbols(self) -> Symbols:
        """The kernel's names."""
        return Symbols(self.recording.kallsyms())

    def functions(self, event: EventFormat, rows: I64, names: Collection[str]) -> Bools:
        """Which ``rows`` of an ``event`` with a field ``function`` are of one of these."""
        function = self.recording.column(event, "function", rows).astype(np.uint64)
        known = [a for a in distinct(function)[0].tolist() if self.symbols.find(a) in {(name, a) for name in names}]
        return np.isin(function, np.array(known, np.uint64))

    @cached_property
    def _readings(self) -> tuple[I64, U64, U64]:
        """(now i64 ns, stamp before, stamp after): each ``now`` was read between two stamps."""
        r = self.recording
        none = np.zeros(0, np.int64)
        event = r.format_named("timer", "hrtimer_expire_entry")
        rows = r.rows(event)
        if event is None or not len(rows):
            return none, none.view(np.uint64), none.view(np.uint64)
        now = r.column(event, "now", rows).astype(np.int64)
        stream = r.stream_of[rows]
        # of the timers that one ``now`` expires only the first is near it: the one before was seen, and had another
        first = np.r_[False, (now[1:] != now[:-1]) & (stream[1:] == stream[:-1])]
        first[1:] &= unbroken(r, rows[:-1], rows[1:])
        keep = first & self.monotonic(rows)
        rows, now = rows[keep], now[keep]
        before = np.sort(np.concatenate([r.rows(r.format_named(*name)) for name in _BEFORE]))
        at = np.searchsorted(before, rows) - 1
        ok = at >= 0
        before_row = before[np.maximum(at, 0)] if len(before) else rows
        ok &= r.stream_of[before_row] == r.stream_of[rows]
        rows, now, before_row = rows[ok], now[ok], before_row[ok]
        return now, r.stamp[before_row], r.stamp[rows]

    def monotonic(self, rows: I64) -> Bools:
        """Which ``hrtimer_expire_entry`` rows are of timers on CLOCK_MONOTONIC for certain."""
        r = self.recording
        event = r.format_named("timer", "hrtimer_expire_entry")
        assert event is not None
        return self.functions(event, rows, MONOTONIC_TIMERS)

    @cached_property
    def ticks(self) -> Domain | None:
        """Times counted in ticks; None where stamps and CLOCK_MONOTONIC do not lie on lattices of one frequency.

        Where they do, CLOCK_MONOTONIC was not slewed: a slewed clock leaves its lattice at once.
        """
        if self.lattice is None:
            return None
        scale = scale_of(self.lattice.scale.frequency)
        now = distinct(self._readings[0])[0].view(np.uint64)
        found = None if scale is None or len(now) < _MIN_READINGS else lattice_at(now, scale)
        if scale is None or found is None:
            return None
        base = int(self.lattice.index(self.recording.stamp[:1])[0])
        return Domain(base, self.lattice, Lattice(scale, *found[0]), 1)

    @cached_property
    def stamp_ticks(self) -> Domain | None:
        """Times counted in ticks, with nothing said of CLOCK_MONOTONIC; None where the stamps lie on no lattice."""
        if self.lattice is None:
            return None
        return Domain(int(self.lattice.index(self.recording.stamp[:1])[0]), self.lattice, None, 1)

    @cached_property
    def ns(self) -> Domain:
        """Times counted in ns."""
        tick = -(-self.lattice.scale.mult >> self.lattice.scale.shift) if self.lattice else _UNKNOWN_TICK_NS
        return Domain(self.recording.base, None, None, tick)

    @property
    def is_usable(self) -> bool:
        """Whether CLOCK_MONOTONIC can be placed at all: a clock of the counter, and timers that expired."""
        return self.recording.clock in ("mono_raw", "local") and len(self._readings[0]) > 0

    def _samples(self, domain: Domain) -> tuple[I64, I64, I64, I64]:
        """Each reading as (stamp before, stamp after, lowest and highest distance) in numbers, by stamp after."""
        now, before, after = self._readings
        number, begin, end = domain.clock(now), domain.stamps(before), domain.stamps(after)
        # stamps and ``now`` in ns are cut off below: up to one more on each side
        cut = 0 if domain.mono is not None else 1
        order = np.argsort(end, kind="stable")
        return begin[order], end[order], (number - end - cut)[order], (number - begin + cut)[order]

    @cached_property
    def is_mono_raw(self) -> bool:
        """Whether CLOCK_MONOTONIC and the trace clock mono_raw seem never to have parted.

        Both begin at 0 at boot (timekeeping_init) on the same factors; only NTP parts them. They have not been parted
        where their lattices are within a ns of each other and the readings allow a distance of 0: a clock slewed at
        any time would be there by a rare chance only.
        """
        return self.recording.clock == "mono_raw" and self._at_boot is not None

    @cached_property
    def _at_boot(self) -> int | None:
        """The distance in ticks that puts CLOCK_MONOTONIC within a ns of mono_raw; None: the readings exclude it."""
        domain = self.ticks
        if domain is None or domain.lattice is None or domain.mono is None:
            return None
        unit, mult = 1 << domain.lattice.scale.shift, domain.lattice.scale.mult
        if mult < _MIN_TICK_NS * unit:
            return None
        lo, hi = self._constant
        # K of the one minus K of the other is distance * mult + the difference of their remainders
        for ticks in (-1, 0, 1):
            least = ticks * mult + domain.mono.k_lo - domain.lattice.k_hi
            most = ticks * mult + domain.mono.k_hi - domain.lattice.k_lo
            if -unit <= least and most <= unit and lo <= ticks <= hi:
                return ticks
        return None

    @cached_property
    def _constant(self) -> tuple[int, int]:
        """The distance in ticks, where it is one number: lowest and highest."""
        assert self.ticks is not None
        _, _, low, high = self._samples(self.ticks)
        return int(low.max()), int(high.min())

    def distance(self, domain: Domain, at: I64, *, trust_boot: bool) -> tuple[I64, I64]:
        """CLOCK_MONOTONIC minus the trace clock at the numbers ``at`` i64[n] of ``domain``: lowest and highest i64[n].

        ``trust_boot``: take ``is_mono_raw`` for a fact. Empty intervals (lowest above highest) where readings
        contradict each other.
        """
        if domain.mono is not None:
            lo, hi = self._constant
            if trust_boot and self.is_mono_raw and self._at_boot is not None:
                lo = hi = self._at_boot
            return np.full(len(at), lo, np.int64), np.full(len(at), hi, np.int64)
        begin, end, low, high = self._samples(domain)
        # the factors of two clocks that are not slewed differ by their rounding
        slope = _SLEW_SLOPE if self.ticks is None else _ROUNDING_SLOPE
        high = _reach(end, high, end - begin, at, slope)
        low = -_reach(end, -low, end - begin, at, slope)
        return low, high


def _reach(end: I64, bound: I64, length: I64, at: I64, slope: int) -> I64:
    """The least of ``bound`` + ``slope`` / 2**_BITS of the way from each span that ends at ``end`` to ``at``: i64[n].

    Rounded up. The way may begin anywhere in a span of ``length``.
    """
    # beyond this span the products would pass 2^63: cut the fraction instead
    spare = max(0, int(max(end[-1], at.max(initial=0)) - min(end[0], at.min(initial=0))).bit_length() - _SPAN_BITS)
    bits = _BITS - spare
    slope = (slope >> spare) + 1
    middle = int(bound[len(bound) // 2])
    near = np.abs(bound - middle) < 1 << 29 + spare
    end, length = end[near], length[near]
    own = ((bound[near] - middle) << bits) + slope * length
    forward = np.minimum.accumulate(own - slope * end)
    backward = np.minimum.accumulate((own + slope * end)[::-1])[::-1]
    after = np.searchsorted(end, at, side="right")
    left = np.where(after > 0, forward[np.maximum(after - 1, 0)] + slope * at, _FAR)
    right = np.where(after < len(end), backward[np.minimum(after, len(end) - 1)] - slope * at, _FAR)
    return middle + (np.minimum(left, right) >> bits) + 1
