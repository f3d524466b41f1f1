"""Two hosts on one axis: by the counter of a guest that went from one to the other, bounded by causality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np

from counterpoint.clocks.counter import MASK, U64, add, relative, to_signed
from counterpoint.clocks.pairs import ClockPair, PairedClock
from counterpoint.clocks.scaling import TSC_TOLERANCE_PPM, Scale
from counterpoint.proof.lines import as_fraction, scale_of
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.relation import COUNTERS, SLEW_PPM
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.timeline.migration import is_plain
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

BY_COUNTER = "guest-counter"
BY_PAIRS = "clock-pairs"

AGREE = "CLOCK_REALTIME of the two hosts agrees: how well NTP keeps them together is not said, and not in the bound"
AGREE_WITHIN = "CLOCK_REALTIME of the two hosts agrees within {} ns, as was said"

STOOD = (
    "the guest's counter stood still or kept time while it was moved, and was not set ahead: what is on this host is"
    " where it is put, or later"
)


@dataclass(frozen=True, slots=True)
class Join:
    """How the clock of a further host relates to the first one's.

    Its stamp ``at`` is put at ``stamp`` of the first host; it is there between ``earliest`` and ``latest`` (None: that
    side is open). From there on ``scale`` first-host units pass per unit, which may be off by ``rate_ppm``.
    ``not_before``: the first host's last event of a vCPU that moved, which by causality comes before ``at``.
    ``guests``: those that moved. ``source`` and ``assumption`` say what it rests on, ``notes`` what was not used.
    """

    host: str
    source: str
    verdict: Verdict
    at: int
    stamp: int
    earliest: int
    latest: int | None
    not_before: int
    scale: Scale
    rate_ppm: int
    guests: tuple[str, ...]
    assumption: str
    notes: tuple[str, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Both clocks are taken to run alike: ``offset`` relates them."""
        return self.scale.is_identity

    @property
    def offset(self) -> int:
        """First-host stamp less this host's, signed, at ``at``."""
        return to_signed(self.stamp - self.at)

    def to_first(self, stamps: U64) -> U64:
        """This host's stamps u64[n] as the first host's, within 2**62 of ``at``."""
        passed = self.scale.apply_signed_relative(relative(stamps, self.at), 0)
        return add(passed.view(np.uint64), self.stamp)

    def bound(self, stamps: U64) -> tuple[U64, U64 | None]:
        """The earliest and the latest first-host stamps u64[n] (None: open) of this host's stamps u64[n]."""
        first = self.to_first(stamps)
        passed = np.abs(relative(first, self.stamp))
        # in whole millionths first: the product may not pass 63 bits
        spread = (passed // 1_000_000 + 1) * self.rate_ppm
        low = first - spread.view(np.uint64) - np.uint64(to_signed(self.stamp - self.earliest))
        if self.latest is None:
            return low, None
        return low, first + spread.view(np.uint64) + np.uint64(to_signed(self.latest - self.stamp))


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one vCPU that went from one host to the next says: stamps of the former for one of the latter."""

    at: int
    stamp: int
    early: int
    late: int
    rate: Fraction


def by_counter(
    host: str,
    proofs: Mapping[str, Sequence[VcpuProof]],
    recordings: Mapping[str | None, Recording],
    pools: Mapping[str | None, ThreadPool],
    joins: Mapping[str, Join],
) -> Join | None:
    """Relate further ``host`` to the first by the guests' counters; None where none is proved to have come to it.

    ``proofs``: of each guest's CPUs. ``recordings`` and ``pools``: of the hosts, the first by None. ``joins``: of the
    hosts before this one.
    """
    moves: list[tuple[str, VcpuProof, EpochProof, EpochProof]] = []
    for guest, vcpus in proofs.items():
        for vcpu in vcpus:
            for before, after in pairwise(e for e in vcpu.epochs if e.offset is not None):
                usable = is_plain(before) and is_plain(after) and (before.host is None or before.host in joins)
                if after.host == host and before.host != host and usable:
                    moves.append((guest, vcpu, before, after))
    if not moves:
        return None
    mine = pools[host]
    firsts = [_stamp(mine, after.host_tid, first=True) for _, _, _, after in moves]
    base = firsts[0]
    at = min(firsts, key=lambda stamp: to_signed(stamp - base))
    hops, leaves = [], []
    for _, vcpu, before, after in moves:
        hop = _hop(at, before, after)
        tid = before.host_tid if before.host is not None else vcpu.host_tid
        leave = _stamp(pools[before.host], tid, first=False)
        if before.host is not None:
            hop, leave = _through(hop, joins[before.host]), _one(joins[before.host].to_first, leave)
        hops.append(hop)
        leaves.append(leave)
    base = leaves[0]
    not_before = max(leaves, key=lambda stamp: to_signed(stamp - base))

    def of(stamp: int) -> int:
        return to_signed(stamp - base)

    # each vCPU's counter stood for a while of its own: the latest place bounds all
    earliest = max(of(h.early) for h in hops)
    latest = min(of(h.late) for h in hops)
    used = max(of(h.stamp) for h in hops)
    if earliest <= latest:
        used = min(max(used, earliest), latest)
    notes: tuple[str, ...] = ()
    if used < of(not_before):
        notes = (
            f"the guest's counter would put this host's first entry {of(not_before) - used} units before the last exit"
            " on the host before: it was set back, and the move is put right behind that exit",
        )
        used = of(not_before)
    slews = {c: SLEW_PPM.get(c, 0) for c in (recordings[None].clock, recordings[host].clock)}
    return Join(
        host,
        BY_COUNTER,
        Verdict.DERIVED,
        at,
        (base + used) & MASK,
        (base + max(earliest, of(not_before))) & MASK,
        None,
        not_before,
        scale_of(hops[0].rate) if hops[0].rate != 1 else Scale(),
        TSC_TOLERANCE_PPM + sum(slews.values()),
        tuple(dict.fromkeys(guest for guest, _, _, _ in moves)),
        STOOD,
        notes,
    )


def _hop(at: int, before: EpochProof, after: EpochProof) -> _Hop:
    old, new = before.as_epoch(), after.as_epoch()
    stamp = np.array([at], np.uint64)
    least, greatest = new.bound_guest(stamp)
    early, late = old.bound(least)[0], old.bound(greatest)[1]
    used = old.to_host(new.to_guest(stamp))
    rate = as_fraction(new.scale) / as_fraction(old.scale)
    return _Hop(at, int(used[0]), int(early[0]), int(late[0]), rate)


def _through(hop: _Hop, join: Join) -> _Hop:
    """A hop to a further host's clock taken to the first one's."""
    early = int(join.bound(np.array([hop.early], np.uint64))[0][0])
    late = _one(join.to_first, hop.late)
    return replace(
        hop, stamp=_one(join.to_first, hop.stamp), early=early, late=late, rate=hop.rate * as_fraction(join.scale)
    )


def _one(change: Callable[[U64], U64], stamp: int) -> int:
    return int(change(np.array([stamp], np.uint64))[0])


def _stamp(pool: ThreadPool, tid: int | None, *, first: bool) -> int:
    """The host stamp of the first or the last event that bounds a thread's windows."""
    assert tid is not None
    windows = pool.thread(tid).real
    return (windows.base + (windows.first if first else windows.last)) & MASK


@dataclass(frozen=True, slots=True)
class Wall:
    """Pairs of counters and CLOCK_REALTIME, by recording, and by how much the hosts' may differ (None: not said)."""

    pairs: Mapping[str, Sequence[ClockPair]]
    within_ns: int | None = None


def by_pairs(join: Join, first: tuple[str, Recording], further: Recording, wall: Wall) -> Join:
    """``join`` bounded by what both hosts' clock pairs say, where they have any and causality allows it."""
    name, recording = first
    pairs = wall.pairs.get(name, ()), wall.pairs.get(join.host, ())
    if not pairs[0] or not pairs[1]:
        return join

    def unused(why: str, verdict: str = "not used") -> Join:
        return replace(join, notes=(*join.notes, f"the clock pairs are {verdict}: {why}"))

    for one in (recording, further):
        if one.clock not in COUNTERS:
            return unused(f"they are of the counter, and {one.name} is recorded in {one.clock}")
    try:
        clocks = [PairedClock(p, _ns_per_tick(r)) for p, r in zip(pairs, (recording, further), strict=True)]
    except ValueError as err:
        return unused(str(err))
    wall_time = clocks[1].realtime(join.at)
    found = clocks[0].counter(wall_time.value)
    spread = int((wall_time.bound + (wall.within_ns or 0)) / clocks[0].ns_per_tick) + found.bound + 1
    middle = to_signed(found.value - join.not_before)
    if middle + spread < 0:
        return unused(
            f"they put the first entry on {join.host} {-middle - spread} to {-middle + spread} ticks before the last"
            " exit on the host before",
            "refuted",
        )
    notes = join.notes
    ahead = to_signed(join.earliest - join.not_before) - (middle + spread)
    if ahead > 0:
        notes = (*notes, f"by the clock pairs the guest's counter was set ahead by {ahead} ticks or more")
    return replace(
        join,
        source=BY_PAIRS,
        verdict=Verdict.DERIVED if wall.within_ns is None else Verdict.PROVED,
        stamp=(join.not_before + max(middle, 0)) & MASK,
        earliest=(join.not_before + max(middle - spread, 0)) & MASK,
        latest=(join.not_before + middle + spread) & MASK,
        assumption=AGREE if wall.within_ns is None else AGREE_WITHIN.format(wall.within_ns),
        notes=notes,
    )


def _ns_per_tick(recording: Recording) -> Fraction | None:
    rate = rate_of(recording)
    return Fraction(rate.mult, 1 << rate.shift) if rate else None
