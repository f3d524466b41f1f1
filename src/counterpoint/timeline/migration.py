"""A guest that went from one host to another: which of its events belong to which host, found by proof.

Nothing marks the move in a guest's recording: its counter may even go on as if it had never stopped. What the first
host's windows hold beyond doubt ends before it, what a further host's hold begins after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import I64, Bools, relative, to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.proof.epochs import MIN_BETWEEN, MIN_CHUNK
from counterpoint.proof.fit import fit
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.tracks import Track
from counterpoint.proof.verdicts import ClaimProof, EpochProof, Unplaced, VcpuProof, Verdict
from counterpoint.proof.windows import RunWindows
from counterpoint.traces.recording import Recording

PARTS = (1, 2, 4, 8)
"""A stretch on one host is sought in the whole of what is left, in its halves, its quarters, and so on."""

LINE_PARTS = (1, 2)
"""Where a line is fitted, which seeks its own places."""

PROBES = 6
"""Halvings by which the end of a stretch is sought."""

MAX_STAYS = 8
"""How many stretches are sought: a guest may come back, and an offset that changed makes two of one stay."""

MIN_EVIDENCE = 150
"""Bits of evidence for an epoch beside a refuted claim: what a search of all offsets typically needs."""

SLACK = 2
"""Host units by which rounding may put an event past a window's edge."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a guest's events, to be proved alone. ``final`` False: only whether they can be is asked.

    ``arrived``: after a move; ``returned``: to the first host. ``guest_rate``: the rate of the guest's counter, as an
    earlier host tells it.
    """

    tracks: list[Track]
    final: bool
    arrived: bool = False
    returned: bool = False
    guest_rate: Rate | None = None

    def claims(self, writes: list[Claim], pool: ThreadPool) -> list[Claim]:
        """What ``writes``, the offsets that were written on the host, say of these events.

        A vCPU that arrives is set up before it is entered for the first time: what held until then was no event's.
        """
        if not self.arrived:
            return writes
        out: list[Claim] = []
        for claim in writes:
            windows = pool.thread(claim.tid).real if claim.tid in pool.tids else None
            if windows is None or claim.tid is None:
                continue

            def early(stamp: int | None, windows: RunWindows = windows) -> bool:
                return stamp is not None and to_signed(stamp - windows.base) <= windows.first

            if not early(claim.host_to):
                out.append(replace(claim, host_from=None) if early(claim.host_from) else claim)
        return out


Prove = Callable[[int, Part], tuple[VcpuProof, ...]]
"""Proves a part of the guest against the host of that number."""


@dataclass(frozen=True, slots=True)
class _Stay:
    """Events ``first`` to ``last`` (exclusive) of a track, which host number ``host`` holds beyond doubt.

    ``proof`` is that of events ``reach``, of which the host saw nothing before and after those. ``visit``: how often
    the guest CPU had been on that host before; 0 of the first host is where it began.
    """

    host: int
    first: int
    last: int
    proof: VcpuProof
    reach: tuple[int, int]
    visit: int = 0

    @property
    def group(self) -> tuple[int, int]:
        """The stays of the guest's CPUs that are proved together."""
        return self.host, self.visit


def divide(
    guest: Recording,
    tracks: list[Track],
    whole: tuple[VcpuProof, ...],
    names: Sequence[str],
    pools: Sequence[ThreadPool],
    prove: Prove,
    rate_after: Callable[[VcpuProof], Rate | None],
    by_lines: Sequence[bool],
) -> tuple[VcpuProof, ...]:
    """Prove a guest on several hosts: its CPUs' proofs.

    ``whole`` are the proofs of all its ``tracks`` on the first host, which are returned as they are where no further
    host holds any of its events. ``names`` and ``pools`` are the hosts'. ``rate_after``: the rate of the guest's
    counter by a proof on the first host. ``by_lines``: on which hosts its rate is fitted.
    """
    stays: dict[int, list[_Stay]] = {}
    rate: Rate | None = None
    for track, proof in zip(tracks, whole, strict=True):
        stays[track.cpu] = found = _Search(track, pools, prove, rate, by_lines).stays(proof)
        if rate is None and found and not found[0].host:
            rate = rate_after(found[0].proof)
    left = {t.cpu: _goes_on(guest, t, stays[t.cpu], pools) for t in tracks}
    every = [stay for found in stays.values() for stay in found]
    if not any(left.values()) and not any(any(stay.group) for stay in every):
        return tuple(_not_beyond(guest, t, p, stays[t.cpu], pools) for t, p in zip(tracks, whole, strict=True))
    proofs: dict[tuple[int, int, int], VcpuProof] = {}
    for host, visit in sorted({stay.group for stay in every}):
        parts = [t.part(s.first, s.last) for t in tracks for s in stays[t.cpu] if s.group == (host, visit)]
        arrived = bool(host or visit)
        part = Part(parts, True, arrived, returned=not host and arrived, guest_rate=rate if arrived else None)
        proofs |= {(host, visit, p.guest_cpu): p for p in prove(host, part)}
    starts = {found[0].host for found in stays.values() if found}
    final = _final(tracks, stays)
    out = []
    for track, alone in zip(tracks, whole, strict=True):
        found = stays[track.cpu]
        stayed = len(found) == 1 and not found[0].host and not left[track.cpu] and final == (0, 0)
        if not found or (not found[0].host and len(found) == 1 and (stayed or found[0].last == len(track.rows))):
            out.append(_not_beyond(guest, track, alone, found, pools))
            continue
        mine = [proofs[*s.group, track.cpu] for s in found]
        # a CPU that was seen last elsewhere than the others is missing there
        behind = left[track.cpu] or found[-1].group != final
        joined = _joined(guest, track, found, mine, names, pools, is_first=starts == {0}, is_last=not behind)
        if all(stay.host for stay in found):
            joined = replace(joined, claims=(*_unheard(alone, names[0]), *joined.claims))
        out.append(joined)
    return tuple(out)


def goes_on_elsewhere(vcpus: Sequence[VcpuProof], guest: Recording, pool: ThreadPool) -> bool:
    """Whether a guest may have gone on in other threads of its host: another VMM took it over, or restored it.

    A thread runs a vCPU only from then on, or no more; many of the guest's events lie beyond, and there are threads
    that are nobody's.
    """
    matched = {v.host_tid for v in vcpus}
    if not set(pool.tids) - matched:
        return False
    begin, end = _recorded(pool.host)
    for vcpu in vcpus:
        if vcpu.host_tid is None:
            continue
        windows = pool.thread(vcpu.host_tid).real
        for epoch in vcpu.epochs[:1] + vcpu.epochs[-1:]:
            if epoch.offset is None or epoch.unknown < MIN_BETWEEN:
                continue
            stamps = relative(epoch.as_epoch().to_host(guest.stamp[epoch.rows]), windows.base)
            unseen = (stamps > windows.last + SLACK) | (stamps < windows.first - SLACK)
            if int((unseen & (stamps >= begin) & (stamps <= end)).sum()) >= MIN_BETWEEN:
                return True
    return False


def is_elsewhere(vcpus: Sequence[VcpuProof]) -> bool:
    """Whether an epoch of a vCPU is proved in another thread than the vCPU's own."""
    return any(
        epoch.verdict.is_sound and epoch.host_tid is not None and epoch.host_tid != vcpu.host_tid
        for vcpu in vcpus
        for epoch in vcpu.epochs
    )


def _unheard(alone: VcpuProof, first: str) -> Iterator[ClaimProof]:
    """The claims about a CPU on the first host, where it never was while it was recorded."""
    reason = f"it speaks of {first}, which no event of this CPU was on"
    for proof in alone.claims:
        unknown = proof.inside + proof.violations + proof.unknown
        yield ClaimProof(proof.claim, Verdict.UNBOUNDED, 0, 0, unknown, reason=reason)


def _final(tracks: list[Track], stays: dict[int, list[_Stay]]) -> tuple[int, int]:
    """Where the guest was last: the group of the stay whose last event is the latest."""
    ends = [(t.base + int(t.guest[s[-1].last - 1]), s[-1].group) for t in tracks if (s := stays[t.cpu])]
    return max(((to_signed(stamp - ends[0][0]), group) for stamp, group in ends), default=(0, (0, 0)))[1]


def _not_beyond(
    guest: Recording, track: Track, alone: VcpuProof, found: list[_Stay], pools: Sequence[ThreadPool]
) -> VcpuProof:
    """A proof on the first host; what follows the last that this saw of the vCPU may be on another, and is on none."""
    if not found or found[-1].last == len(track.rows) or alone.host_tid is None:
        return alone
    windows = pools[0].thread(alone.host_tid).real
    epoch = alone.epochs[-1]
    if epoch.offset is None:
        return alone
    stamps = epoch.as_epoch().to_host(guest.stamp[track.rows[found[-1].last :]])
    beyond = np.flatnonzero(relative(stamps, windows.base) > windows.last + SLACK)
    rows = track.rows[found[-1].last + int(beyond[0]) :] if len(beyond) else track.rows[:0]
    kept = epoch.rows[~np.isin(epoch.rows, rows)]
    if not len(rows) or not len(kept):
        return alone
    note = f"{len(rows)} events follow the last that its host saw: they may be on another host, and are on no timeline"
    gone = len(epoch.rows) - len(kept)
    return replace(
        alone,
        epochs=(*alone.epochs[:-1], replace(epoch, rows=kept, unknown=epoch.unknown - gone)),
        unplaced=(_unplaced(guest, rows, (None,)),),
        notes=(*alone.notes, note),
    )


def _goes_on(guest: Recording, track: Track, found: list[_Stay], pools: Sequence[ThreadPool]) -> bool:
    """Whether many events follow the last that its last host holds, although that host's recording goes on."""
    if not found or len(track.rows) - found[-1].last < MIN_BETWEEN:
        return False
    epoch = found[-1].proof.epochs[-1].as_epoch()
    host = pools[found[-1].host].host
    stamps = epoch.to_host(guest.stamp[track.rows[found[-1].last :]])
    return int((relative(stamps, host.base) <= _recorded(host)[1]).sum()) >= MIN_BETWEEN


class _Search:
    """Seeks the stays of one guest CPU."""

    def __init__(
        self, track: Track, pools: Sequence[ThreadPool], prove: Prove, rate: Rate | None, by_lines: Sequence[bool]
    ) -> None:
        self.track = track
        self.pools = pools
        self._prove = prove
        self._rate = rate
        self._by_lines = by_lines

    def stays(self, whole: VcpuProof) -> list[_Stay]:
        """The stays in order; ``whole``: the proof of all events on the first host."""
        found: list[_Stay] = []
        if _is_plain(whole):
            stay = self._stay(0, (0, len(self.track.guest)), whole)
            found += [stay] if stay else []
        asked: set[tuple[int, int, int]] = set()
        for _ in range(MAX_STAYS):
            stay = self._another(found, asked)
            if stay is None:
                break
            found = sorted([*found, stay], key=lambda s: s.first)
        out: list[_Stay] = []
        for stay in found:
            if out and (both := self._one(out[-1], stay)):
                out[-1] = both
            else:
                before = sum(s.host == stay.host for s in out)
                out.append(replace(stay, visit=max(before, bool(out) - stay.host)))
        return out

    def _one(self, left: _Stay, right: _Stay) -> _Stay | None:
        """Two stays as one, of several offsets; None where something else lies between them."""
        if (left.host, left.proof.host_tid) != (right.host, right.proof.host_tid):
            return None
        first, last = left.reach[0], right.reach[1]
        proof = self._proof(left.host, first, last, back=left.visit > 0 and not left.host)
        if proof is None or proof.host_tid != left.proof.host_tid:
            return None
        return replace(left, last=right.last, proof=proof, reach=(first, last))

    def _another(self, found: list[_Stay], asked: set[tuple[int, int, int]]) -> _Stay | None:
        """One more stay, in what those that were ``found`` leave; ``asked``: what was tried in vain."""
        for left, right in zip([None, *found], [*found, None], strict=True):
            begin, end = left.last if left else 0, right.first if right else len(self.track.guest)
            if left is None and right and not right.host and self._is_early(right):
                continue
            beside = {s.host for s in (left, right) if s}
            # whoever comes after the last host first, and those before it last; a line found all of its own thread
            after = left.host if left else 0
            order = [*range(after, len(self.pools)), *range(after)]
            for number in sorted(order, key=lambda n: n in beside and self._by_lines[n]):
                if end - begin < MIN_BETWEEN or (number, begin, end) in asked:
                    continue
                asked.add((number, begin, end))
                if number in beside and self._by_lines[number] and end - begin < 2 * MIN_CHUNK:
                    continue
                back = not number and any(s.host for s in found if s.first < begin)
                grown = self._grown(number, begin, end, back=back)
                stay = self._stay(number, *grown) if grown else None
                if stay:
                    return stay
        return None

    def _is_early(self, stay: _Stay) -> bool:
        """Whether all but a few events before a stay would lie before its host's recording."""
        host = self.pools[stay.host].host
        guest = self.track.guest[: stay.first].view(np.uint64) + np.uint64(self.track.base)
        stamps = stay.proof.epochs[0].as_epoch().to_host(guest)
        return int((relative(stamps, host.base) >= _recorded(host)[0]).sum()) < MIN_BETWEEN

    def _stay(self, number: int, reach: tuple[int, int], proof: VcpuProof) -> _Stay | None:
        """The events of ``reach`` that the host saw; None: none of them."""
        held = np.flatnonzero(self._held(number, proof, *reach))
        if not len(held):
            return None
        return _Stay(number, reach[0] + int(held[0]), reach[0] + int(held[-1]) + 1, proof, reach)

    def _proof(self, number: int, first: int, last: int, *, back: bool) -> VcpuProof | None:
        """The proof of events first..last alone, None where it leaves a doubt."""
        cut = self.track.part(first, last)
        arrived = bool(number) or back
        part = Part([cut], False, arrived, returned=back, guest_rate=self._rate if arrived else None)
        (proof,) = self._prove(number, part)
        return proof if _is_plain(proof) or self._is_between_few(number, cut, proof) else None

    def _is_between_few(self, number: int, cut: Track, proof: VcpuProof) -> bool:
        """Whether several offsets fit, but each with evidence: it is the host, whichever of them is right."""
        if proof.host_tid is None or len(proof.epochs) != 1:
            return False
        epoch = proof.epochs[0]
        if epoch.verdict is not Verdict.AMBIGUOUS or epoch.violations or len(epoch.candidates) < 2:
            return False
        found = fit(cut.guest, self.pools[number].at_scale(epoch.scale).thread(proof.host_tid))
        return bool(found.candidates) and not found.weak

    def _grown(self, number: int, begin: int, end: int, *, back: bool) -> tuple[tuple[int, int], VcpuProof] | None:
        """The longest stretch found between begin and end that the host proves."""
        seed = self._seed(number, begin, end, back=back)
        if seed is None:
            return None
        first, last, proof = seed
        # the end first: with it, more events speak for the beginning
        held = np.flatnonzero(self._held(number, proof, first, last))
        # where the host holds none of the last events the guest had left it
        stays = len(held) and last - first - int(held[-1]) <= MIN_BETWEEN
        good, bad = last, end + 1
        for _ in range(PROBES if stays else 0):
            middle = end if bad > end else (good + bad) // 2
            if middle <= good:
                break
            longer = self._proof(number, first, middle, back=back)
            good, bad, proof = (middle, bad, longer) if longer else (good, middle, proof)
        last = good
        stays = len(held) and int(held[0]) < MIN_BETWEEN
        good, bad = first, begin - 1
        for _ in range(PROBES if stays else 0):
            middle = begin if bad < begin else (good + bad) // 2
            if middle >= good:
                break
            longer = self._proof(number, middle, last, back=back)
            good, bad, proof = (middle, bad, longer) if longer else (good, middle, proof)
        return (good, last), proof

    def _seed(self, number: int, begin: int, end: int, *, back: bool) -> tuple[int, int, VcpuProof] | None:
        # the first host was asked for all
        tried = LINE_PARTS if self._by_lines[number] else PARTS
        for parts in tried[number == 0 and (begin, end) == (0, len(self.track.guest)) :]:
            edges = np.linspace(begin, end, parts + 1).astype(np.int64).tolist()
            pieces = list(pairwise(edges))
            for first, last in pieces if parts < max(PARTS) else (pieces[0], pieces[-1]):
                if last - first < (MIN_BETWEEN if parts == 1 else MIN_CHUNK):
                    continue
                proof = self._proof(number, first, last, back=back)
                if proof is not None:
                    return first, last, proof
        return None

    def _held(self, number: int, proof: VcpuProof, first: int, last: int) -> Bools:
        """Which of the events first..last the proof puts into run windows."""
        assert proof.host_tid is not None
        pool = self.pools[number]
        windows = pool.thread(proof.host_tid).real
        stamps = np.zeros(len(self.track.rows), np.uint64)
        known = np.zeros(len(stamps), np.bool_)
        order = np.argsort(self.track.rows)
        for epoch in proof.epochs:
            places = order[np.searchsorted(self.track.rows, epoch.rows, sorter=order)]
            guest = self.track.guest[places].view(np.uint64) + np.uint64(self.track.base)
            stamps[places] = epoch.as_epoch().to_host(guest)
            known[places] = True
        host = relative(stamps, windows.base)
        lo, hi = windows.lo[windows.is_run], windows.hi[windows.is_run]
        span = np.searchsorted(lo, host + SLACK, side="right") - 1
        out: Bools = known & (span >= 0) & (host - SLACK <= hi[np.maximum(span, 0)])
        return out[first:last]


def _is_plain(proof: VcpuProof) -> bool:
    """Whether the events alone leave no doubt, whatever is claimed."""
    return proof.host_tid is not None and all(is_plain(e) for e in proof.epochs)


def is_plain(epoch: EpochProof) -> bool:
    """Whether an epoch's map may be used: it is sound, or only a claim beside it is refuted."""
    if epoch.offset is None or epoch.feasible is None or epoch.violations or not epoch.inside:
        return False
    if epoch.verdict is Verdict.REFUTED:
        return len(epoch.candidates) <= 1 and epoch.evidence >= MIN_EVIDENCE
    return epoch.verdict.is_sound


def _joined(
    guest: Recording,
    track: Track,
    found: list[_Stay],
    proofs: list[VcpuProof],
    names: Sequence[str],
    pools: Sequence[ThreadPool],
    *,
    is_first: bool,
    is_last: bool,
) -> VcpuProof:
    """The proofs of one guest CPU's stays as one; what no host saw between them is on none.

    ``is_first``: nothing was on another host before the first; ``is_last``: nor after the last.
    """
    epochs: list[EpochProof] = []
    notes: list[str] = []
    unplaced: list[Unplaced] = []
    hosts = [names[s.host] if s.group != (0, 0) else None for s in found]
    for stay, proof, host in zip(found, proofs, hosts, strict=True):
        mine = list(proof.epochs)
        before = after = track.rows[:0]
        if stay is found[0] and not stay.host and is_first:
            before = track.rows[stay.reach[0] : stay.first]
        if stay is found[-1] and is_last:
            after = track.rows[stay.last : stay.reach[1]]
        # beyond doubt is what the host's windows hold
        if epochs or stay.first or stay.host:
            mine[0] = _opened_at(guest, mine[0])
        if stay is not found[-1] or stay.last < len(track.rows):
            mine[-1] = _closed_at(guest, mine[-1])
        mine[0] = _with(mine[0], before, mine[0].rows)
        mine[-1] = _with(mine[-1], mine[-1].rows, after)
        if host is not None:
            mine = [replace(e, host=host, host_tid=proof.host_tid) for e in mine]
        epochs += mine
        notes += proof.notes
        if stay is found[-1]:
            break
        following = found[found.index(stay) + 1]
        rows = track.rows[stay.last : following.first]
        if not len(rows):
            continue
        other = names[following.host]
        either = " or on ".join(dict.fromkeys((host or names[0], other)))
        notes.append(
            f"{len(rows)} events may be on {either}: by what is known neither saw them run, and they are on no timeline"
        )
        if _unexplained(guest, rows, stay, following, pools) < MIN_BETWEEN:
            unplaced.append(_unplaced(guest, rows, (host, other)))
        else:
            epochs.append(_nowhere(guest, rows, host))
    lead = track.rows[: found[0].reach[0] if not found[0].host and is_first else found[0].first]
    trail = track.rows[found[-1].reach[1] if is_last else found[-1].last :]
    for rows, host, side in ((lead, hosts[0], "before the first"), (trail, hosts[-1], "after the last")):
        if not len(rows):
            continue
        notes.append(_UNPROVED.format(len(rows), side, host or names[0]))
        if len(rows) < MIN_BETWEEN and (is_last or rows is lead):
            unplaced.append(_unplaced(guest, rows, (host,)))
        elif rows is lead:
            epochs.insert(0, _nowhere(guest, rows, None))
        else:
            epochs.append(_nowhere(guest, rows, names[-1]))
    late = tuple(replace(m, host=host) for host, p in zip(hosts, proofs, strict=True) for m in p.mis_stamped)
    claims = tuple(c for p in proofs for c in p.claims)
    tid, matched_by = None if hosts[0] else proofs[0].host_tid, proofs[0].matched_by
    said = tuple(dict.fromkeys(notes))
    return VcpuProof(track.cpu, tid, matched_by, tuple(epochs), claims, late, said, tuple(unplaced))


_UNPROVED = "{} events {} that {} saw run may be on another host: no thread is proved to have run them"


def _unexplained(guest: Recording, rows: I64, left: _Stay, right: _Stay, pools: Sequence[ThreadPool]) -> int:
    """How many events between two stays are no such as either host may have failed to see.

    They would lie, by each one's map, where that host was recorded and lost nothing.
    """
    seen = np.ones(len(rows), np.bool_)
    for stay, epoch in ((left, left.proof.epochs[-1]), (right, right.proof.epochs[0])):
        assert stay.proof.host_tid is not None
        activity = pools[stay.host].activity
        if activity.silent_cpus and not activity.silent_cpus_were_traced:
            return 0
        stamps = relative(epoch.as_epoch().to_host(guest.stamp[rows]), activity.base)
        begin, end = _recorded(activity.host)
        seen &= (stamps >= begin) & (stamps <= end)
        windows = pools[stay.host].thread(stay.proof.host_tid).real
        hidden = ~windows.is_run
        hidden[[0, -1]] = False
        _, lost_from, lost_to = activity.lost_spans
        for lo, hi in ((windows.lo[hidden], windows.hi[hidden]), (lost_from, lost_to)):
            for first, last in zip(lo.tolist(), hi.tolist(), strict=True):
                seen &= (stamps < first) | (stamps > last)
    return int(seen.sum())


def _recorded(host: Recording) -> tuple[int, int]:
    """The first and the last stamp of a host's recording, from its base."""
    firsts, lasts = zip(*((s.first, s.last - 1) for s in host.streams if s.last > s.first), strict=True)
    first, last = (relative(host.stamp[list(rows)], host.base) for rows in (firsts, lasts))
    return int(first.min()), int(last.max())


def _unplaced(guest: Recording, rows: I64, hosts: tuple[str | None, ...]) -> Unplaced:
    return Unplaced(rows, int(guest.stamp[rows[0]]), int(guest.stamp[rows[-1]]), hosts)


def _with(epoch: EpochProof, first: I64, then: I64) -> EpochProof:
    """The epoch with rows that it was not proved by."""
    rows = np.concatenate([first, then])
    return replace(epoch, rows=rows, unknown=epoch.unknown + len(rows) - len(epoch.rows))


def _nowhere(guest: Recording, rows: I64, host: str | None) -> EpochProof:
    """Events that no host is proved to have run."""
    begin, end = int(guest.stamp[rows[0]]), int(guest.stamp[rows[-1]])
    return EpochProof(
        rows=rows, guest_from=begin, guest_to=end, host_from=None, host_to=None, offset=None, source="",
        verdict=Verdict.UNBOUNDED, feasible=None, candidates=(), inside=0, violations=0, unknown=len(rows), evidence=0,
        host=host,
    )  # fmt: skip


def _opened_at(guest: Recording, epoch: EpochProof) -> EpochProof:
    """The first epoch on a further host: it begins with its first event."""
    stamp = guest.stamp[epoch.rows[:1]]
    host = int(epoch.as_epoch().to_host(stamp)[0]) if epoch.offset is not None else None
    sure = int(stamp[0]) if epoch.guest_sure[0] is None else epoch.guest_sure[0], epoch.guest_sure[1]
    return replace(epoch, guest_from=int(stamp[0]), host_from=host, guest_sure=sure)


def _closed_at(guest: Recording, epoch: EpochProof) -> EpochProof:
    """The last epoch on a host that the guest left: it ends with its last event."""
    stamp = guest.stamp[epoch.rows[-1:]]
    host = int(epoch.as_epoch().to_host(stamp)[0]) if epoch.offset is not None else None
    sure = epoch.guest_sure[0], int(stamp[0]) if epoch.guest_sure[1] is None else epoch.guest_sure[1]
    return replace(epoch, guest_to=int(stamp[0]), host_to=host, guest_sure=sure)
