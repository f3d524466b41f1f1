"""What is known of a world: its clocks as exact functions, every guest event's instant, and truth.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, MASK, U64, Bools, to_signed
from counterpoint.simulate.counters import GuestCounter, HostCounter, NsClock


@dataclass(frozen=True, slots=True)
class GuestCpuTruth:
    """Every event of one guest CPU, in the order of its file; n of them.

    ``stamp`` u64[n] as in the file; ``true_stamp`` u64[n] what the guest's clock said (``stamp`` is later where a
    page was stamped late); ``t`` i64[n] hidden time; ``host_stamp`` u64[n] the host's trace clock at that instant,
    that of the second host where ``host`` i64[n] is 1; ``parent_stamp`` u64[n] the parent's trace clock, on its CPU
    ``parent_cpu`` i64[n]; ``epoch`` i64[n] index into the truth's epochs.
    """

    stamp: U64
    true_stamp: U64
    t: I64
    host_stamp: U64
    host: I64
    parent_stamp: U64
    parent_cpu: I64
    epoch: I64

    @property
    def late(self) -> Bools:
        """Which events the file stamps late."""
        late: Bools = self.stamp != self.true_stamp
        return late


@dataclass(frozen=True, slots=True)
class Steps:
    """A value that changes: ``value`` i64[k] from hidden times ``since`` i64[k] on, the first from ever."""

    since: I64
    value: I64

    def at(self, t: I64) -> I64:
        """The value i64[n] at hidden times i64[n]."""
        return self.value[np.maximum(np.searchsorted(self.since, t, side="right") - 1, 0)]


@dataclass(frozen=True)
class TraceClock:
    """A trace clock: of a counter alone (``ns`` None), or in ns over it."""

    name: str
    counter: HostCounter | GuestCounter
    ns: NsClock | None

    def at(self, t: I64) -> U64:
        """Stamps u64[n] at hidden times i64[n]."""
        counter = self.counter.at(t)
        return counter if self.ns is None else self.ns.at(t, counter)

    def at_one(self, t: int) -> int:
        """The stamp at one hidden time."""
        return int(self.at(np.array([t], np.int64))[0])

    def breaks(self) -> list[int]:
        """Hidden times at which its rate changes, or it steps."""
        segments = [s.since for s in self.ns.segments[1:]] if self.ns else []
        settings = [s.since for s in self.counter.settings[1:]] if isinstance(self.counter, GuestCounter) else []
        return segments + settings

    def truth(self) -> dict[str, Any]:
        """The clock over its counter: ns + ((((counter - from_counter) >> pre_shift) * mult + frac) >> shift).

        Without pre_shift (kvm-clock's) the same is (counter * mult + k) >> shift while the counter does not pass 2**64.
        """
        out: dict[str, Any] = {"clock": self.name}
        if self.ns:
            out["segments"] = [
                {
                    "from_counter": s.counter & MASK,
                    "ns": s.ns,
                    "frac": s.frac,
                    "mult": s.mult,
                    "shift": s.shift,
                    **(
                        {"pre_shift": s.pre}
                        if s.pre
                        else {"k": (s.ns << s.shift) + s.frac - (s.counter & MASK) * s.mult}
                    ),
                }
                for s in self.ns.segments
            ]
        return out


def is_same_scale(host: TraceClock, guest: TraceClock) -> bool:
    """Whether both clocks are one (mult, shift) over the counter for ever: an offset relates them to within 1 ns."""
    if host.ns is None or guest.ns is None:
        return False
    factors = {(s.mult, s.shift, s.pre) for clock in (host, guest) for s in (clock.ns.segments if clock.ns else ())}
    return len(factors) == 1 and len(host.ns.segments) == len(guest.ns.segments) == 1


def epochs(
    hosts: Sequence[TraceClock],
    guest: TraceClock,
    since: Sequence[int],
    settings: Sequence[Mapping[str, int]],
    span: tuple[int, int],
    names: Sequence[str],
    arm64: bool,
    *,
    rounded: bool = False,
) -> list[dict[str, Any]]:
    """The epochs of one vCPU for truth.json, that begin at hidden times ``since``.

    ``rounded``: a ratio between the two is not that which the hardware uses, so that no formula of it is exact.

    ``settings``: host, ratio, frac_bits and offset of each; ``span``: hidden times between which lines are given.
    """
    out: list[dict[str, Any]] = []
    for index, setting in enumerate(settings):
        host = hosts[setting["host"]]
        begin = since[index] if index else None
        end = since[index + 1] if index + 1 < len(since) else None
        moved_in = index > 0 and settings[index - 1]["host"] != setting["host"]
        moved_out = end is not None and settings[index + 1]["host"] != setting["host"]
        epoch: dict[str, Any] = {
            "from_host": None if begin is None or moved_in else host.at_one(begin),
            "to_host": None if end is None or moved_out else host.at_one(end),
        }
        if setting["host"]:
            epoch["host"] = names[setting["host"]]
        one_rate = setting["ratio"] == 1 << setting["frac_bits"]
        if arm64:
            epoch["cntvoff"] = -setting["offset"] & MASK
        if host.ns is None and guest.ns is None and not (rounded and not one_rate):
            epoch |= {"unit": "ticks", "offset": to_signed(setting["offset"])}
            if not one_rate:
                epoch |= {"ratio": setting["ratio"], "frac_bits": setting["frac_bits"]}
        elif one_rate and is_same_scale(host, guest):
            epoch |= {"unit": "ns", "offset_range": _range(host, guest, setting["offset"])}
        else:
            points = _line(host, guest, span[0] if begin is None else begin, span[1] if end is None else end - 1)
            epoch |= {"unit": "line", "line": points}
        if guest.ns is not None:
            epoch["counter"] = {name: setting[name] for name in ("ratio", "frac_bits", "offset")}
        out.append(epoch)
    return out


def _range(host: TraceClock, guest: TraceClock, offset: int) -> list[int]:
    """Least and greatest difference of two clocks ``(counter * mult + K) >> shift``, counters ``offset`` apart."""
    assert host.ns is not None and guest.ns is not None
    (h,), (g,) = host.ns.segments, guest.ns.segments
    mine = (g.ns << g.shift) + g.frac + (to_signed(h.counter + offset - g.counter)) * g.mult
    theirs = (h.ns << h.shift) + h.frac
    floor, rest = divmod(mine - theirs, 1 << h.shift)
    return [floor, floor + (rest > 0)]


def _line(host: TraceClock, guest: TraceClock, begin: int, end: int) -> list[list[int]]:
    """Pairs of stamps of the same instants: the ends, and both sides of every change of rate between them."""
    inner = {t for b in (*host.breaks(), *guest.breaks()) for t in (b - 1, b) if begin < t < end}
    times = np.array(sorted({begin, max(begin, end)} | inner), np.int64)
    return [[int(a), int(b)] for a, b in zip(host.at(times), guest.at(times), strict=True)]


def of_cpu(
    events: tuple[I64, U64, U64],
    hosts: Sequence[TraceClock],
    host_of: Steps,
    parent_stamps: npt.NDArray[np.uint64] | None,
    parent_cpu: Steps,
    since: Sequence[int],
) -> GuestCpuTruth:
    """The truth of a guest CPU's ``events`` (t, true stamp, stamp); ``parent_stamps`` None: the parent is the host."""
    t, true_stamp, stamp = events
    host = host_of.at(t)
    host_stamp = hosts[0].at(t)
    if (host == 1).any():
        host_stamp = np.where(host == 1, hosts[1].at(t), host_stamp)
    epoch = np.searchsorted(np.array(since[1:], np.int64), t, side="right")
    return GuestCpuTruth(
        stamp, true_stamp, t, host_stamp, host, host_stamp if parent_stamps is None else parent_stamps,
        parent_cpu.at(t), epoch,
    )  # fmt: skip
