"""Two hosts on one axis: by the counter of a guest that went from one to the other, bounded by causality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np

from counterpoint.clocks.counter import MASK, U64, add, relative, to_signed
from counterpoint.clocks.machines import MachineClock
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.scaling import TSC_TOLERANCE_PPM, Scale
from counterpoint.clocks.wall import Wall
from counterpoint.proof.epochs import MIN_BETWEEN
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
STOOD_TWICE = "the guest's counter stood still or kept time while it was moved, there and back, and was not set ahead"
SET_AHEAD = (
    "the guest's counter was set ahead as it moved there or back: only the vCPUs' exits before and entries after bound"
    " where this host's events are"
)
UNSEEN = (
    "neither host saw the guest's events about the move: its counter may have been set in them, and only the vCPUs'"
    " last exit bounds where this host's events are"
)


@dataclass(frozen=True, slots=True)
class Join:
    """How the clock of a further host relates to the first one's.

    Its stamp ``at`` is put at ``stamp`` of the first host; it is there between ``earliest`` and ``latest`` (None: that
    side is open). From there on ``scale`` first-host units pass per unit, which may be off by ``rate_ppm``.
    ``not_before``: the first host's last event of a vCPU that moved, which by causality comes before ``at`` (None: no
    guest is proved to have moved); ``not_after``: what bounds it on the other side as those came back that had moved.
    ``guests``: those. ``source`` and ``assumption`` say what it rests on, ``notes`` what was not used.
    """

    host: str
    source: str
    verdict: Verdict
    at: int
    stamp: int
    earliest: int
    latest: int | None
    not_before: int | None
    scale: Scale
    rate_ppm: int
    guests: tuple[str, ...]
    assumption: str
    notes: tuple[str, ...] = ()
    not_after: int | None = None

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
        # in whole millionths first: the product may not pass 63 bits
        spread = (np.abs(relative(first, self.stamp)) // 1_000_000 + 1) * self.rate_ppm
        low = first - spread.view(np.uint64) - np.uint64(to_signed(self.stamp - self.earliest))
        if self.latest is None:
            return low, None
        return low, first + spread.view(np.uint64) + np.uint64(to_signed(self.latest - self.stamp))


@dataclass(frozen=True, slots=True)
class HostPairs:
    """Pairs of counters and CLOCK_REALTIME, by recording, and by how much the hosts' may differ (None: not said)."""

    pairs: Mapping[str, Sequence[ClockPair]]
    within_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of a sync: the ``first`` one's name, their recordings and threads by name, and those joined so far."""

    first: str
    recordings: Mapping[str, Recording]
    pools: Mapping[str, ThreadPool]
    joins: Mapping[str, Join]

    def name(self, epoch: EpochProof) -> str:
        """The host that an epoch is on."""
        return self.first if epoch.host is None else epoch.host

    def is_known(self, name: str) -> bool:
        """Whether a host is the first or joined to it."""
        return name == self.first or name in self.joins

    def on_first(self, name: str, stamp: int) -> tuple[int, int, int | None]:
        """A host's stamp as the first one's: the earliest, the one in use, and the latest (None: open)."""
        if name == self.first:
            return stamp, stamp, stamp
        one = np.array([stamp], np.uint64)
        low, high = self.joins[name].bound(one)
        return int(low[0]), int(self.joins[name].to_first(one)[0]), None if high is None else int(high[0])


@dataclass(frozen=True, slots=True)
class _Move:
    """One vCPU that went from one host to the next: its maps, its last exit there and its first entry here.

    ``is_seen``: all but a few of its events between are on one of the two.
    """

    guest: str
    before: EpochProof
    after: EpochProof
    left: str
    reached: str
    leave: int
    enter: int
    is_seen: bool

    @property
    def rate(self) -> Fraction:
        """Units of the host that it left per unit of the one that it reached."""
        return as_fraction(self.after.scale) / as_fraction(self.before.scale)

    def back(self, stamp: int) -> tuple[int, int, int]:
        """A stamp of the host that it reached as one of the host that it left, by the guest's counter."""
        return _by_guest(self.after, self.before, stamp)

    def ahead(self, stamp: int) -> tuple[int, int, int]:
        """The reverse."""
        return _by_guest(self.before, self.after, stamp)


def _by_guest(one: EpochProof, other: EpochProof, stamp: int) -> tuple[int, int, int]:
    """What the guest's counter was at one host's ``stamp``, at the other's: (earliest, in use, latest)."""
    here, there = one.as_epoch(), other.as_epoch()
    at = np.array([stamp], np.uint64)
    least, greatest = here.bound_guest(at)
    used = there.to_host(here.to_guest(at))
    return int(there.bound(least)[0][0]), int(used[0]), int(there.bound(greatest)[1][0])


def _moves(proofs: Mapping[str, Sequence[VcpuProof]], hosts: Hosts) -> list[_Move]:
    """All that guests are proved to have made."""
    out = []
    for guest, vcpus in proofs.items():
        for vcpu in vcpus:
            known = [(index, e) for index, e in enumerate(vcpu.epochs) if e.offset is not None and is_plain(e)]
            for (index, before), (following, after) in pairwise(known):
                left, reached = hosts.name(before), hosts.name(after)
                if left == reached:
                    continue
                tids = vcpu.host_tid if before.host is None else before.host_tid, after.host_tid
                leave = _stamp(hosts.pools[left], tids[0], first=False)
                enter = _stamp(hosts.pools[reached], tids[1], first=True)
                between = sum(len(u.rows) for u in vcpu.unplaced if u.hosts == (before.host, after.host))
                seen = following == index + 1 and between < MIN_BETWEEN
                out.append(_Move(guest, before, after, left, reached, leave, enter, seen))
    return out


def by_counter(host: str, proofs: Mapping[str, Sequence[VcpuProof]], hosts: Hosts) -> Join | None:
    """Relate further ``host`` to the first by the guests' counters; None where none is proved to have come to it.

    ``proofs``: of each guest's CPUs.
    """
    moves = _moves(proofs, hosts)
    arrivals = [m for m in moves if m.reached == host and hosts.is_known(m.left)]
    returns = [m for m in moves if m.left == host and hosts.is_known(m.reached)]
    if not arrivals:
        return None
    base = arrivals[0].enter
    if returns:
        # later visits would tell less
        end = min(to_signed(m.leave - base) for m in returns)
        arrivals = [m for m in arrivals if to_signed(m.enter - base) < end] or arrivals
    at = min((m.enter for m in arrivals), key=lambda stamp: to_signed(stamp - base))
    zero = hosts.on_first(arrivals[0].left, arrivals[0].leave)[1]

    def of(stamp: int) -> int:
        return to_signed(stamp - zero)

    scale, ppm = _rate(arrivals[0], hosts), _ppm(host, hosts)
    not_before = max(of(hosts.on_first(m.left, m.leave)[0]) for m in arrivals)
    # each vCPU's counter stood for a while of its own: the latest place bounds all
    earliest, used = not_before, not_before
    notes: list[str] = []
    seen = [(m.left, *m.back(at)) for m in arrivals if m.is_seen]
    if seen:
        earliest = max(of(hosts.on_first(left, early)[0]) for left, early, _, _ in seen)
        used = max(of(hosts.on_first(left, place)[1]) for left, _, place, _ in seen)
        if used < not_before:
            notes.append(
                f"the guest's counter would put this host's first entry {not_before - used} units before the last exit"
                " on the host before: it was set back, and the move is put right behind that exit"
            )
        earliest, used = max(earliest, not_before), max(used, not_before)
    else:
        notes.append(UNSEEN)
    not_after, latest = None, None
    for move in returns:
        for stamp, is_causal in ((move.enter, True), (move.ahead(move.leave)[2], False)):
            on_first = hosts.on_first(move.reached, stamp)[2]
            if on_first is not None and (is_causal or move.is_seen):
                passed = to_signed(move.leave - at)
                most = of(on_first) - scale.apply_signed_relative(np.array([passed]), 0).item() + _spread(passed, ppm)
                latest = most if latest is None else min(latest, most)
                not_after = most if is_causal and (not_after is None or most < not_after) else not_after
    if latest is not None and latest < earliest:
        notes.append(SET_AHEAD)
        earliest, latest = not_before, not_after
    if latest is not None:
        used = min(max(used, earliest), max(latest, earliest))
    return Join(
        host,
        BY_COUNTER,
        Verdict.DERIVED,
        at,
        (zero + used) & MASK,
        (zero + earliest) & MASK,
        None if latest is None else (zero + max(latest, earliest)) & MASK,
        (zero + not_before) & MASK,
        scale,
        ppm,
        tuple(dict.fromkeys(m.guest for m in arrivals)),
        STOOD if latest is None else STOOD_TWICE,
        tuple(notes),
        None if not_after is None else (zero + not_after) & MASK,
    )


def _rate(move: _Move, hosts: Hosts) -> Scale:
    """First-host units per unit of the host that was reached."""
    rate = move.rate if move.left == hosts.first else move.rate * as_fraction(hosts.joins[move.left].scale)
    return Scale() if rate == 1 else scale_of(rate)


def _ppm(host: str, hosts: Hosts) -> int:
    slews = {c: SLEW_PPM.get(c, 0) for c in (hosts.recordings[hosts.first].clock, hosts.recordings[host].clock)}
    return TSC_TOLERANCE_PPM + sum(slews.values())


def _spread(passed: int, ppm: int) -> int:
    return (abs(passed) // 1_000_000 + 1) * ppm


def _stamp(pool: ThreadPool, tid: int | None, *, first: bool) -> int:
    """The host stamp of the first or the last event that bounds a thread's windows."""
    assert tid is not None
    windows = pool.thread(tid).real
    return (windows.base + (windows.first if first else windows.last)) & MASK


def by_pairs(host: str, join: Join | None, hosts: Hosts, readings: HostPairs) -> tuple[Join | None, str]:
    """``join`` bounded by what both hosts' clock pairs say, where they have any and causality allows it.

    Without one the pairs alone join the host; where they do not, why is said ("": there are none).
    """

    def unused(why: str, verdict: str = "not used") -> tuple[Join | None, str]:
        said = f"the clock pairs are {verdict}: {why}"
        return (None, said) if join is None else (replace(join, notes=(*join.notes, said)), "")

    pairs = [tuple(readings.pairs.get(name, ())) for name in (hosts.first, host)]
    if not pairs[0] or not pairs[1]:
        return join, ""
    recordings = hosts.recordings[hosts.first], hosts.recordings[host]
    walls = []
    for one, its in zip(recordings, pairs, strict=True):
        if one.clock not in COUNTERS:
            return unused(f"they are of the counter, and {one.name} is in {one.clock}")
        try:
            wall = Wall.of(MachineClock(one.name, one.clock, one.unit, rate_of(one)), its)
        except ValueError as err:
            return unused(str(err))
        if wall is None:
            pairs_say = "one pair" if len(its) == 1 else "pairs as rough as those"
            return unused(f"{pairs_say} of {one.name} do not tell how long a tick is")
        if wall.was_set is not None:
            counters = " and ".join(str(pair.counter) for pair in wall.was_set)
            return unused(f"CLOCK_REALTIME was set between {one.name}'s {counters}")
        walls.append(wall)
    here, there = walls
    place = _placed(here, there, [p.counter for p in pairs[1]] if join is None else [join.at], readings.within_ns or 0)
    if place is None:
        return unused("they are decades from the recordings")
    at, (early, used, late) = place
    verdict = Verdict.DERIVED if readings.within_ns is None else Verdict.PROVED
    assumption = AGREE if readings.within_ns is None else AGREE_WITHIN.format(readings.within_ns)
    if join is None:
        rate = _ns(there.rate) / _ns(here.rate)
        scale = Scale() if rate == 1 else scale_of(rate)
        ppm = here.ppm + there.ppm
        return Join(host, BY_PAIRS, verdict, at, used, early, late, None, scale, ppm, (), assumption), ""
    assert join.not_before is not None
    base = join.not_before
    least, middle, most = (to_signed(stamp - base) for stamp in (early, used, late))
    if most < 0:
        return unused(
            f"they put the first entry on {host} {-most} to {-least} ticks before the last exit on the host before",
            "refuted",
        )
    end = None if join.not_after is None else to_signed(join.not_after - base)
    if end is not None and least > end:
        return unused(
            f"they put what {host} recorded before a guest went back {least - end} ticks or more behind its return",
            "refuted",
        )
    notes = join.notes
    ahead = to_signed(join.earliest - base) - most
    if ahead > 0:
        notes = (*notes, f"by the clock pairs the guest's counter was set ahead by {ahead} ticks or more")
    least, most = max(least, 0), most if end is None else min(most, end)
    return (
        replace(
            join,
            source=BY_PAIRS,
            verdict=verdict,
            stamp=(base + min(max(middle, least), most)) & MASK,
            earliest=(base + least) & MASK,
            latest=(base + most) & MASK,
            assumption=assumption,
            notes=notes,
        ),
        "",
    )


def _ns(rate: Rate) -> Fraction:
    return Fraction(rate.mult, 1 << rate.shift)


def _placed(here: Wall, there: Wall, counters: list[int], within: int) -> tuple[int, tuple[int, int, int]] | None:
    """Of one host's ``counters`` that which pairs bound best on the other: (it, (earliest, middle, latest))."""
    stamps = np.array(counters, np.uint64)
    times = there.at((stamps, stamps, stamps))
    (early, used, late), known = here.stamps(times.earliest - within, times.latest + within)
    known &= times.known
    if not known.any():
        return None
    width = np.where(known, late - early, MASK)
    best = int(width.argmin())
    return counters[best], (int(early[best]), int(used[best]), int(late[best]))
