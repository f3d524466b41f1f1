"""A guest that went from one host to another: which of its events belong to which host, found by proof.

Nothing marks the move in a guest's recording: its counter may even go on as if it had never stopped. What the first
host's windows hold beyond doubt ends before it, what a further host's hold begins after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.proof.windows import RunWindows
from counterpoint.traces.recording import Recording

PARTS = (1, 2, 4, 8)
"""A stretch on one host is sought in the whole of what is left, in its halves, its quarters, and so on."""

LINE_PARTS = (1, 2)
"""Where a line is fitted, which seeks its own places."""

PROBES = 6
"""Halvings by which the end of a stretch is sought."""

MAX_AGAIN = 4
"""How often more of the events are sought on one host."""

MIN_EVIDENCE = 150
"""Bits of evidence for an epoch beside a refuted claim: what a search of all offsets typically needs."""

SLACK = 2
"""Host units by which rounding may put an event past a window's edge."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a guest's events, to be proved alone. ``final`` False: only whether they can be is asked.

    ``arrived``: on a further host. ``guest_rate``: the rate of the guest's counter, as an earlier host tells it.
    """

    tracks: list[Track]
    final: bool
    arrived: bool = False
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
    """Events ``first`` to ``last`` (exclusive) of a track, which host number ``host`` holds beyond doubt."""

    host: int
    first: int
    last: int


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
    """Prove a guest on several hosts, in their order: its CPUs' proofs.

    ``whole`` are the proofs of all its ``tracks`` on the first host, which are returned as they are where no further
    host holds any of its events. ``names`` and ``pools`` are the hosts'. ``rate_after``: the rate of the guest's
    counter by a proof on the first host. ``by_lines``: on which hosts its rate is fitted.
    """
    stays: dict[int, list[_Stay]] = {}
    searches: dict[int, _Search] = {}
    rate: Rate | None = None
    for track, proof in zip(tracks, whole, strict=True):
        search = searches[track.cpu] = _Search(track, names, pools, prove, rate, by_lines)
        stays[track.cpu], first = search.stays(proof)
        if first is not None and rate is None:
            rate = rate_after(first)
    left = {t.cpu: _goes_on(guest, t, stays[t.cpu], searches[t.cpu]) for t in tracks}
    if not any(left.values()) and not any(stay.host for found in stays.values() for stay in found):
        return tuple(_not_beyond(guest, t, p, stays[t.cpu]) for t, p in zip(tracks, whole, strict=True))
    proofs: dict[tuple[int, int], VcpuProof] = {}
    for number in range(len(names)):
        parts = [t.part(s.first, s.last) for t in tracks for s in stays[t.cpu] if s.host == number]
        if parts:
            proofs |= {
                (number, p.guest_cpu): p for p in prove(number, Part(parts, True, number > 0, rate if number else None))
            }
    ends = [s.host for found in stays.values() for s in found]
    out = []
    for track, alone in zip(tracks, whole, strict=True):
        found = stays[track.cpu]
        stayed = len(found) == 1 and not found[0].host and not left[track.cpu] and not max(ends)
        if not found or (not found[0].host and (stayed or found[0].last == len(track.rows))):
            out.append(_not_beyond(guest, track, alone, found))
            continue
        mine = [proofs[s.host, track.cpu] for s in found]
        unseen = left[track.cpu]
        out.append(_joined(guest, track, found, mine, names, (min(ends), max(ends)), unseen=unseen))
    return tuple(out)


def _not_beyond(guest: Recording, track: Track, alone: VcpuProof, found: list[_Stay]) -> VcpuProof:
    """A proof on the first host; where many events follow the last that it holds, these may be on another."""
    if not found or len(track.rows) - found[-1].last < MIN_BETWEEN:
        return alone
    epoch = alone.epochs[-1]
    sure = epoch.guest_sure[0], int(guest.stamp[track.rows[found[-1].last - 1]])
    note = f"{len(track.rows) - found[-1].last} events follow the last that its host saw: they may be on another host"
    return replace(alone, epochs=(*alone.epochs[:-1], replace(epoch, guest_sure=sure)), notes=(*alone.notes, note))


def _goes_on(guest: Recording, track: Track, found: list[_Stay], search: _Search) -> bool:
    """Whether many events follow the last that its last host holds, although that host's recording goes on."""
    if not found or len(track.rows) - found[-1].last < MIN_BETWEEN:
        return False
    epoch = search.last[found[-1].host].epochs[-1].as_epoch()
    host = search.pools[found[-1].host].host
    stamps = epoch.to_host(guest.stamp[track.rows[found[-1].last :]])
    ends = [int(host.stamp[s.last - 1]) for s in host.streams if s.last > s.first]
    end = max(to_signed(e - host.base) for e in ends)
    return int((relative(stamps, host.base) <= end).sum()) >= MIN_BETWEEN


class _Search:
    """Seeks the stays of one guest CPU."""

    def __init__(
        self,
        track: Track,
        names: Sequence[str],
        pools: Sequence[ThreadPool],
        prove: Prove,
        rate: Rate | None,
        by_lines: Sequence[bool],
    ) -> None:
        self.track = track
        self.names = names
        self.pools = pools
        self._prove = prove
        self._rate = rate
        self._by_lines = by_lines
        self.last: dict[int, VcpuProof] = {}

    def stays(self, whole: VcpuProof) -> tuple[list[_Stay], VcpuProof | None]:
        """The stays in order, and the proof of that on the first host; ``whole``: that of all events there."""
        found: list[_Stay] = []
        on_first: VcpuProof | None = None
        begin, count = 0, len(self.track.guest)
        for number in range(len(self.names)):
            first_here = begin
            # an offset that changed there puts what follows out of sight: it is sought again in the rest
            for again in range(1 if self._by_lines[number] else MAX_AGAIN):
                if count - begin < MIN_BETWEEN:
                    break
                if number == 0 and not again and _is_plain(whole):
                    first, last, proof = 0, count, whole
                else:
                    grown = self._grown(number, begin, count)
                    if grown is None:
                        break
                    first, last, proof = grown
                held = np.flatnonzero(self._held(number, proof, first, last))
                if not len(held):
                    break
                self.last[number] = proof
                if number == 0:
                    on_first = proof
                first, last = first + int(held[0]), first + int(held[-1]) + 1
                if again:
                    found[-1] = replace(found[-1], last=last)
                else:
                    found.append(_Stay(number, first, last))
                begin = last
            if begin > first_here and count - begin < MIN_BETWEEN:
                break
        return found, on_first

    def _proof(self, number: int, first: int, last: int) -> VcpuProof | None:
        """The proof of events first..last alone, None where it leaves a doubt."""
        rate = self._rate if number else None
        cut = self.track.part(first, last)
        (proof,) = self._prove(number, Part([cut], False, number > 0, rate))
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

    def _grown(self, number: int, begin: int, end: int) -> tuple[int, int, VcpuProof] | None:
        """The longest stretch found between begin and end that the host proves."""
        seed = self._seed(number, begin, end)
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
            longer = self._proof(number, first, middle)
            good, bad, proof = (middle, bad, longer) if longer else (good, middle, proof)
        last = good
        stays = len(held) and int(held[0]) < MIN_BETWEEN
        good, bad = first, begin - 1
        for _ in range(PROBES if stays else 0):
            middle = begin if bad < begin else (good + bad) // 2
            if middle >= good:
                break
            longer = self._proof(number, middle, last)
            good, bad, proof = (middle, bad, longer) if longer else (good, middle, proof)
        return good, last, proof

    def _seed(self, number: int, begin: int, end: int) -> tuple[int, int, VcpuProof] | None:
        # the first host was asked for all
        tried = LINE_PARTS if self._by_lines[number] else PARTS
        for parts in tried[number == 0 and (begin, end) == (0, len(self.track.guest)) :]:
            edges = np.linspace(begin, end, parts + 1).astype(np.int64).tolist()
            pieces = list(pairwise(edges))
            for first, last in pieces if parts < max(PARTS) else (pieces[0], pieces[-1]):
                if last - first < (MIN_BETWEEN if parts == 1 else MIN_CHUNK):
                    continue
                proof = self._proof(number, first, last)
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
    ends: tuple[int, int],
    *,
    unseen: bool,
) -> VcpuProof:
    """The proofs of one guest CPU's stays as one, with the events between them.

    ``ends``: the guest's first and last host. ``unseen``: its last events are where the last host saw no such thing.
    """
    epochs: list[EpochProof] = []
    notes: list[str] = []
    # an event between two stays, or before and after all, may be on either host or on one where nothing is proved
    begins = [0 if found[0].host == ends[0] else found[0].first, *(_border(track, *both) for both in pairwise(found))]
    begins.append(len(track.rows) if found[-1].host == ends[1] else found[-1].last)
    if found[0].host and found[0].first >= MIN_BETWEEN:
        begins[0] = found[0].first
    if len(track.rows) - found[-1].last >= MIN_BETWEEN and unseen:
        begins[-1] = found[-1].last
    for stay, proof, first, last in zip(found, proofs, begins, begins[1:], strict=False):
        mine = list(proof.epochs)
        before, after = track.rows[first : stay.first], track.rows[stay.last : last]
        # beyond doubt is what the host's windows hold
        if first or len(before) or stay.host:
            mine[0] = _opened_at(guest, mine[0])
        if last < len(track.rows) or len(after):
            mine[-1] = _closed_at(guest, mine[-1])
        mine[0] = _with(mine[0], before, mine[0].rows, between=stay is not found[0])
        mine[-1] = _with(mine[-1], mine[-1].rows, after, between=stay is not found[-1])
        if stay.host:
            mine = [replace(e, host=names[stay.host], host_tid=proof.host_tid) for e in mine]
        epochs += mine
        notes += proof.notes
    for left, right in pairwise(found):
        if right.first > left.last:
            notes.append(
                f"{right.first - left.last} events may be on {names[left.host]} or on {names[right.host]}: neither"
                " saw them"
            )
    if begins[0]:
        epochs.insert(0, _nowhere(guest, track.rows[: begins[0]], None))
        notes.append(_UNPROVED.format(begins[0], "before its first", names[found[0].host]))
    if begins[-1] < len(track.rows):
        epochs.append(_nowhere(guest, track.rows[begins[-1] :], names[ends[1]]))
        notes.append(_UNPROVED.format(len(track.rows) - begins[-1], "after its last", names[found[-1].host]))
    late = tuple(
        replace(m, host=names[s.host] if s.host else None)
        for s, p in zip(found, proofs, strict=True)
        for m in p.mis_stamped
    )
    claims = tuple(c for p in proofs for c in p.claims)
    tid, matched_by = None if found[0].host else proofs[0].host_tid, proofs[0].matched_by
    return VcpuProof(track.cpu, tid, matched_by, tuple(epochs), claims, late, tuple(dict.fromkeys(notes)))


_UNPROVED = "{} events {} on {}: no thread of another host is proved to have run them"


def _border(track: Track, left: _Stay, right: _Stay) -> int:
    """Where the events of the later of two stays begin: behind the largest step between them, as a move may make."""
    steps = np.abs(np.diff(track.guest[left.last - 1 : right.first + 1]))
    return left.last + int(steps.argmax())


def _with(epoch: EpochProof, first: I64, then: I64, *, between: bool) -> EpochProof:
    """The epoch with rows that it was not proved by; those ``between`` two hosts may be of the other as well."""
    rows = np.concatenate([first, then])
    doubted = np.setdiff1d(rows, epoch.rows) if between else rows[:0]
    return replace(
        epoch,
        rows=rows,
        unknown=epoch.unknown + len(rows) - len(epoch.rows),
        doubted=np.concatenate([epoch.doubted, doubted]),
    )


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
    return replace(epoch, guest_from=int(stamp[0]), host_from=host, guest_sure=(int(stamp[0]), epoch.guest_sure[1]))


def _closed_at(guest: Recording, epoch: EpochProof) -> EpochProof:
    """The last epoch on a host that the guest left: it ends with its last event."""
    stamp = guest.stamp[epoch.rows[-1:]]
    host = int(epoch.as_epoch().to_host(stamp)[0]) if epoch.offset is not None else None
    return replace(epoch, guest_to=int(stamp[0]), host_to=host, guest_sure=(epoch.guest_sure[0], int(stamp[0])))
