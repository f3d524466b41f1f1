"""What is known of arm64's counter behind a pair of recordings: its frequency, and K of each machine's clock.

The frequency shows in the stamps (``clocks.arch_counter``), or is given. A guest's K follows from its recording where
anchors of the virtual timer bound it (``anchors.model.Found.guest_whole``): CVAL is in ticks of the guest's counter.
Nothing that a host's kernel records is in ticks of the host's own: its K must be given, unless it is a guest itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from counterpoint.clocks.arch_counter import NS_PER_SEC, Clock, Lattice, lattice_of
from counterpoint.clocks.counter import I64, distinct, relative
from counterpoint.errors import UsageError
from counterpoint.proof.cntvoff import CounterPair
from counterpoint.proof.feasible import Interval
from counterpoint.proof.lattices import lattice_of_recording
from counterpoint.traces.arch import is_arm64
from counterpoint.traces.recording import Recording

CLOCKS: tuple[Clock, ...] = ("mono_raw", "local")
"""Clocks that show the counter exactly: ``(ticks * mult + K) >> shift``."""

NO_COUNTER = "the stamps are not those of arm64's counter on both sides (record both in mono_raw)"

GIVEN, BY_STAMPS, BY_RECORDING = "given", "lattice", "recording"

MIN_CVALS = 16
"""Compare values of one timer that are needed to tell the counter's frequency from a multiple of it."""

TELLS_APART = 4
"""The frequency that suits the compare values is the one they stray from by so many times less than from any other."""


@dataclass(frozen=True, slots=True)
class KnownK:
    """K of a machine's clock, in units of 2**-shift ns, as a closed interval; ``source``: "given" or "recording"."""

    lo: int
    hi: int
    source: str


@dataclass(frozen=True, slots=True)
class CounterInfo:
    """What is known of the counter of a guest and its host.

    ``hz`` is its frequency (None: not known), by ``source``: "given" or "lattice"; ``others`` are the frequencies that
    it may have instead, if it only ever steps by several ticks. ``reason`` says why CNTVOFF cannot be told in ticks
    ("": it can). ``lattices``: the host's and the guest's. Where the host's K is not known: ``agreed`` is, by source of
    claims, the host's index less the guest's at tick 0 of each that all it says agrees to; ``host_k_by_claims`` what it
    makes of K.
    """

    hz: int | None = None
    source: str = ""
    others: tuple[int, ...] = ()
    lattices: tuple[Lattice, Lattice] | None = None
    host_k: KnownK | None = None
    guest_k: KnownK | None = None
    reason: str = ""
    agreed: tuple[tuple[str, Interval], ...] = ()
    host_k_by_claims: tuple[tuple[str, Interval], ...] = ()

    @property
    def pair(self) -> CounterPair | None:
        """The arithmetic of both lattices; None where the frequency is not known."""
        if self.lattices is None:
            return None
        host, guest = self.lattices
        return CounterPair(host, guest, _whole(host, self.host_k), _whole(guest, self.guest_k))


class Counters:
    """The counters behind all recordings of a run, and what is learned of them on the way."""

    def __init__(
        self,
        recordings: Mapping[str, Recording],
        frequency: int | None = None,
        given: Iterable[tuple[str, Interval]] = (),
    ) -> None:
        """Take the recordings by name, the frequency in Hz where it is given, and the K of machines by name."""
        if frequency is not None and not 0 < frequency <= NS_PER_SEC:
            raise UsageError(f"--frequency {frequency}: 1 to {NS_PER_SEC} Hz: ns do not tell shorter ticks apart")
        self._recordings, self._frequency = recordings, frequency
        self._given: dict[str, Interval] = {}
        for name, (lo, hi) in given:
            before = self._given.get(name, (lo, hi))
            self._given[name] = max(lo, before[0]), min(hi, before[1])
            if self._given[name][0] > self._given[name][1]:
                raise UsageError(f"--k {name}: two intervals of K are given that have nothing in common")
        self._learned: dict[str, Interval] = {}
        self._implied: dict[tuple[str, str], tuple[Interval, str]] = {}
        self._asked: set[str] = set()
        self.warnings: list[str] = []

    def info(self, host: str, guest: str) -> CounterInfo | None:
        """What is known of a guest's and its host's counter; None where their stamps do not show arm64's."""
        first, second = self._recordings[host], self._recordings[guest]
        if first.clock != second.clock or first.clock not in CLOCKS or not is_arm64(first):
            return None
        self._asked |= {host, guest}
        info = self._lattices(host, guest)
        return self._with_k(info, host, guest) if info.lattices is not None else info

    def with_guest(self, info: CounterInfo, host: str, guest: str, whole: Interval) -> CounterInfo:
        """The same where anchors tell that index minus ticks of the guest lies in ``whole``."""
        # the anchors count in what the stamps alone show
        own = lattice_of_recording(self._recordings[guest])
        if info.lattices is None or own is None or own.scale != info.lattices[1].scale or whole[0] > whole[1]:
            return info
        told, said = own.k_of(whole), self._given.get(guest)
        if said is not None and (said[0] > told[1] or said[1] < told[0]):
            text = f"K of {guest} is given as {_text(said)}, but its timers tell that it is {_text(told)}"
            return replace(info, guest_k=None, reason=text)
        return self._with_k(info, host, guest, told)

    def learn(self, host: str, guest: str, info: CounterInfo) -> CounterInfo:
        """Keep what a guest's proof told: of its own K, for its guests; of its host's, by what claims make of it.

        A host's guests must agree on that; a warning says where they do not.
        """
        if info.guest_k is not None and info.guest_k.source == BY_RECORDING:
            self._learned[guest] = info.guest_k.lo, info.guest_k.hi
        pair = info.pair
        if pair is None or pair.guest_whole is None or info.host_k is not None:
            return info
        out = []
        for source, (lo, hi) in info.agreed:
            found = pair.host.k_of((lo + pair.guest_whole[0], hi + pair.guest_whole[1]))
            before, other = self._implied.get((host, source), (found, guest))
            both = max(found[0], before[0]), min(found[1], before[1])
            if both[0] > both[1]:
                self.warnings.append(
                    f"{source} of {host} cannot be right of both {other} and {guest}: what it says of the one makes"
                    f" {host}'s K {_text(before)}, what it says of the other {_text(found)}"
                )
                both = found
            self._implied[host, source] = both, guest
            out.append((source, both))
        return replace(info, host_k_by_claims=tuple(out))

    def unused(self) -> list[str]:
        """A warning for what was given of machines whose stamps do not show a counter."""
        flags = [f"--k {name}" for name in self._given if name not in self._asked]
        flags += [] if self._frequency is None or self._asked else ["--frequency"]
        return [f"{flag} is of no use: {NO_COUNTER}" for flag in flags]

    # -- the frequency

    def _at(self, hz: int, names: Sequence[str]) -> tuple[Lattice, Lattice] | None:
        """The lattices of both at one frequency, where both lie on it."""
        out = []
        for name in names:
            recording = self._recordings[name]
            own = lattice_of_recording(recording) if self._frequency is None else None
            clock = next(c for c in CLOCKS if c == recording.clock)
            out.append(own if own and own.scale.frequency == hz else lattice_of(recording.stamp, hz, clock))
        first, second = out
        return None if first is None or second is None else (first, second)

    def _lattices(self, host: str, guest: str) -> CounterInfo:
        names = host, guest
        if self._frequency is not None:
            both = self._at(self._frequency, names)
            if both is None:
                return CounterInfo(
                    reason=f"the stamps of {host} or {guest} are not those of a counter of {self._frequency} Hz"
                )
            return CounterInfo(self._frequency, GIVEN, lattices=both)
        found = [one for name in names if (one := lattice_of_recording(self._recordings[name])) is not None]
        if not found:
            return CounterInfo(
                reason=f"the counter's frequency does not show in the stamps of {host} and {guest}, as it does below"
                " 500 MHz, so that all is in ns (--frequency HZ says it)"
            )
        # the finer of two: stamps of few events may lie on a coarser one too
        for lattice in sorted(found, key=lambda one: -one.scale.frequency):
            hz = lattice.scale.frequency
            both = self._at(hz, names)
            if both is None:
                continue
            others = tuple(f for f in lattice.multiples if self._at(f, names) is not None)
            if NS_PER_SEC % hz == 0:
                others += (NS_PER_SEC,)
            told = by_compare_values(self._recordings[host], (hz, *others))
            if told is None:
                return CounterInfo(hz, BY_STAMPS, others, both)
            chosen = both if told == hz else self._at(told, names)
            if chosen is not None:
                return CounterInfo(told, BY_STAMPS, lattices=chosen)
        return CounterInfo(reason=f"the stamps of {host} and {guest} are of counters of different frequencies")

    # -- K

    def _k(self, name: str, told: Interval | None) -> KnownK | None:
        said = self._given.get(name)
        if said is None:
            return None if told is None else KnownK(*told, BY_RECORDING)
        if told is None:
            return KnownK(*said, GIVEN)
        return KnownK(max(said[0], told[0]), min(said[1], told[1]), GIVEN)

    def _with_k(self, info: CounterInfo, host: str, guest: str, told: Interval | None = None) -> CounterInfo:
        """Add what is known of both K; ``told``: by the guest's recording."""
        assert info.lattices is not None
        ks = self._k(host, self._learned.get(host)), self._k(guest, told)
        for name, lattice, k in zip((host, guest), info.lattices, ks, strict=True):
            if k is not None and lattice.whole((k.lo, k.hi)) is None:
                raise UsageError(
                    f"--k {name}={_text((k.lo, k.hi))}: no K in it suits the stamps of {name}, whose counter runs at"
                    f" {info.hz} Hz: modulo {lattice.scale.mult} it is {_text((lattice.k_lo, lattice.k_hi))}"
                )
        unknown = [name for name, k in zip((host, guest), ks, strict=True) if k is None]
        reason = ""
        if unknown:
            flags = " ".join(f"--k {name}=K" for name in unknown)
            reason = (
                f"K of {' and '.join(unknown)} is not known ({flags} says it): of CNTVOFF, its changes alone are known"
            )
        return replace(info, host_k=ks[0], guest_k=ks[1], reason=reason)


def _whole(lattice: Lattice, k: KnownK | None) -> Interval | None:
    return None if k is None else lattice.whole((k.lo, k.hi))


def _text(interval: Interval) -> str:
    return str(interval[0]) if interval[0] == interval[1] else f"{interval[0]}..{interval[1]}"


def by_compare_values(host: Recording, frequencies: Sequence[int]) -> int | None:
    """Which of several frequencies the compare values (CVAL) of the host's vCPUs advance at; None: they do not tell.

    ``kvm_timer_save_state`` shows timers about to expire, in ticks. Floats choose only, between numbers twice apart.
    """
    event = host.format_named("kvm", "kvm_timer_save_state")
    rows = host.rows(event)
    if event is None or not len(rows) or len(frequencies) < 2:
        return None
    try:
        ctl, index, cval = (host.column(event, name, rows) for name in ("ctl", "timer_idx", "cval"))
    except KeyError:
        return None
    live = ctl.astype(np.int64) & 1 > 0
    rows, index, cval = rows[live], index[live].astype(np.int64), cval[live].astype(np.uint64)
    timer: I64 = host.pid[rows].astype(np.int64) * 8 + index
    strays = np.zeros(len(frequencies))
    for one in distinct(timer)[0].tolist():
        mine = timer == one
        if mine.sum() < MIN_CVALS:
            continue
        when = relative(host.stamp[rows[mine]], host.base).astype(np.float64)
        ticks = relative(cval[mine], int(cval[mine][0])).astype(np.float64)
        for at, hz in enumerate(frequencies):
            low, high = np.percentile(ticks - when * (hz / 1e9), [25, 75])
            strays[at] += (high - low) / hz
    best = int(strays.argmin())
    others = np.delete(strays, best)
    return frequencies[best] if strays[best] * TELLS_APART < others.min() else None
