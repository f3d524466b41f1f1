"""The lines of all CPUs of a guest: one clock, or at least one rate, is behind them.

Each CPU's pieces are found in its own events. A line that one CPU is on says where to look for another's: what may be
by chance where all lines are tried is evidence where one is. Pieces of one rate share what is known of it; pieces of
one clock share their lines, so that one line is in use for all CPUs and the guest's own order between them is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from counterpoint.clocks.counter import to_signed
from counterpoint.proof.fit import Thread
from counterpoint.proof.holding import BY_CAUSALITY
from counterpoint.proof.lines import Lines, Piece, sharing_rates
from counterpoint.proof.matching import Hints, Match, ThreadPool, is_held, match_lines
from counterpoint.proof.pieces import MIN_BETWEEN
from counterpoint.proof.polygon import Polygon
from counterpoint.proof.relation import Relation
from counterpoint.proof.tracks import Track


@dataclass(frozen=True, slots=True)
class CpuLines:
    """A guest CPU's thread, and the pieces of its events there (none: no thread, or no line)."""

    track: Track
    match: Match
    pieces: tuple[Piece, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Each piece's line is the only one, and few events are in none."""
        edges = [0, *(e for p in self.pieces for e in (p.first, p.last)), len(self.track.guest)]
        holes = [b - a for a, b in pairwise(edges)][::2]
        return bool(self.pieces) and all(p.is_unique for p in self.pieces) and max(holes) < MIN_BETWEEN


def machine_lines(
    tracks: Sequence[Track], pool: ThreadPool, hints: Hints, relation: Relation
) -> Mapping[int, CpuLines]:
    """Find the thread and the pieces of every track of a guest, by CPU."""
    found: dict[int, CpuLines] = {}
    for cpu, match in match_lines(list(tracks), pool, hints, relation).items():
        track = next((t for t in tracks if t.cpu == cpu), None)
        if track is not None:
            pieces = () if match.tid is None else tuple(pool.pieces(track, match.tid, relation))
            found[cpu] = CpuLines(track, match, pieces)
    for _ in found:
        better = {cpu: _helped(one, found, pool, relation) for cpu, one in found.items() if not one.is_whole}
        better = {cpu: one for cpu, one in better.items() if one is not found[cpu]}
        if not better:
            break
        for cpu, one in better.items():
            taken = {o.match.tid for c, o in found.items() if c != cpu}
            if one.match.tid not in taken:
                found[cpu] = one
    if not relation.slew_ppm:
        found = _of_one_rate(found)
    return _of_one_clock(found) if relation.is_shared else found


def peers_of(
    track: Track, lines: Mapping[int, CpuLines], pool: ThreadPool, relation: Relation
) -> list[tuple[Track, Thread]]:
    """The other CPUs of a guest whose events bound the clock of ``track`` as well, with their threads."""
    others = [one for one in lines.values() if one.track is not track and one.match.tid is not None and one.pieces]
    # stamps that step back occur twice: a stamp does not say which time is meant
    tracks = [track, *(one.track for one in others)]
    if not relation.is_shared or any((np.diff(t.guest) < 0).any() for t in tracks):
        return []
    return [(one.track, pool.thread(one.match.tid)) for one in others if one.match.tid is not None]


def _helped(one: CpuLines, found: Mapping[int, CpuLines], pool: ThreadPool, relation: Relation) -> CpuLines:
    """The CPU's lines, with the help of those that the others are on; the same where that is no help."""
    track = one.track
    known = [
        _raised(piece, to_signed(other.track.base - track.base))
        for other in found.values()
        if other is not one
        for piece in other.pieces
        if piece.is_unique
    ]
    if not known:
        return one
    taken = {o.match.tid for o in found.values()}
    tids = [one.match.tid] if one.match.tid is not None else [tid for tid in pool.tids if tid not in taken]
    for tid in tids:
        pieces = pool.search_pieces(track, tid, relation, known)
        if is_held(track, pieces) and _sure(pieces) > _sure(one.pieces):
            match = one.match if one.match.tid is not None else Match(tid, BY_CAUSALITY)
            return replace(one, match=match, pieces=tuple(pieces))
    return one


def _sure(pieces: Sequence[Piece]) -> int:
    """How many events lie in pieces whose line is the only one."""
    return sum(p.last - p.first for p in pieces if p.is_unique)


def _raised(piece: Piece, by: int) -> Lines:
    """The piece's lines for a track whose base is ``by`` units earlier."""
    return Lines(piece.origin, piece.polygon.raised(by))


def _of_one_rate(found: Mapping[int, CpuLines]) -> dict[int, CpuLines]:
    shared = iter(sharing_rates([p for one in found.values() for p in one.pieces]))
    return {cpu: replace(one, pieces=tuple(next(shared) for _ in one.pieces)) for cpu, one in found.items()}


def _of_one_clock(found: Mapping[int, CpuLines]) -> dict[int, CpuLines]:
    """Give pieces of several CPUs, of one time, the lines that they have in common."""
    groups: list[_Group] = []
    for cpu, one in found.items():
        for index, piece in enumerate(one.pieces):
            if not piece.is_unique:
                continue
            stamps = one.track.guest[piece.sure_first : piece.sure_last]
            span = int(stamps.min()), int(stamps.max())
            member = _Member(cpu, index, piece.origin, one.track.base, span)
            for group in groups:
                if group.takes(member, piece):
                    break
            else:
                groups.append(_Group([member], piece.polygon))
    joint = {(m.cpu, m.index): group.polygon_of(m) for group in groups if len(group.members) > 1 for m in group.members}
    return {
        cpu: replace(one, pieces=tuple(replace(p, joint=joint.get((cpu, index))) for index, p in enumerate(one.pieces)))
        for cpu, one in found.items()
    }


@dataclass(frozen=True, slots=True)
class _Member:
    """A piece of a group: whose it is, what its lines and stamps are counted from, its span of guest time."""

    cpu: int
    index: int
    origin: int
    base: int
    span: tuple[int, int]


@dataclass(slots=True)
class _Group:
    """Pieces of one clock and of one time, and the lines that they have in common, as the first of them counts."""

    members: list[_Member]
    polygon: Polygon

    def takes(self, member: _Member, piece: Piece) -> bool:
        """Take a piece of the same time, if some line is left then."""
        first = self.members[0]
        if any(m.cpu == member.cpu for m in self.members) or not all(_of_one_time(m, member) for m in self.members):
            return False
        by = to_signed(member.base - first.base)
        common = self.polygon.meets(piece.polygon.raised(by).moved(first.origin - member.origin))
        if common is None:
            return False
        self.members.append(member)
        self.polygon = common
        return True

    def polygon_of(self, member: _Member) -> Polygon:
        """The lines, as the member counts."""
        first = self.members[0]
        return self.polygon.raised(to_signed(first.base - member.base)).moved(member.origin - first.origin)


def _of_one_time(one: _Member, other: _Member) -> bool:
    """Whether the spans have half of the shorter one in common."""
    apart = to_signed(other.base - one.base)
    begin, end = other.span[0] + apart, other.span[1] + apart
    common = min(one.span[1], end) - max(one.span[0], begin)
    return 2 * common >= min(one.span[1] - one.span[0], end - begin)
