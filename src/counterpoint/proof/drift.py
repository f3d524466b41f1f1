"""The proof of a guest CPU whose clock does not run at the host's rate: pieces, each with a line and its band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.band import BILLION, Band
from counterpoint.clocks.counter import I64, to_signed
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.cone import cone
from counterpoint.proof.epochs import change_points, unexplained
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, Candidate, Fit, Thread, check, fit
from counterpoint.proof.holding import BY_CAUSALITY, Claims, Part
from counterpoint.proof.lines import Line, Lines, Piece, as_fraction, edges_of, in_use, value_bounds
from counterpoint.proof.relation import Relation
from counterpoint.proof.tracks import Track
from counterpoint.proof.vcpu import VcpuProver
from counterpoint.proof.verdicts import ClaimProof, EpochProof, Fitted, MisStamped, VcpuProof, Verdict
from counterpoint.traces.recording import Recording

FAR = 2
"""A claim made where the band is this many times as wide as among the events is not proved by it."""

UNBOUNDED = 1 << 62
"""The width of a band that nothing bounds."""

SLOPES = 16
"""Slopes that are tried for a line that holds all events."""

SPANS = 48
"""A band is stated over this many spans of time."""


Peers = Sequence[tuple[Track, Thread]]
"""The other CPUs of a guest whose CPUs have one clock, and their threads."""


def prove_lines(
    guest: Recording,
    track: Track,
    thread: Thread,
    pieces: Sequence[Piece],
    relation: Relation,
    claims: list[Claim],
    matched_by: str,
    notes: tuple[str, ...],
    peers: Peers = (),
) -> VcpuProof:
    """Prove a guest CPU by the ``pieces`` (at least one) that were found in ``thread``'s windows."""
    cuts = _cuts(track, thread, pieces, relation)
    said, doubtful = list(notes), False
    epochs: list[EpochProof] = []
    lines: list[Line] = []
    in_doubt = [not piece.is_unique for piece in pieces]
    unseen: list[I64] = []
    if any(in_doubt):
        said.append("another line fits the events of an epoch about as well")
    for index, (piece, (begin, end)) in enumerate(zip(pieces, pairwise(cuts), strict=True)):
        first, last = begin.at, end.left
        line, source = _chosen(track, thread, piece, first, last, claims, relation)
        lines.append(line)
        scaled = thread.at_scale(line.scale)
        events = track.guest[first:last]
        outcome = check(events, line.offset, scaled)
        lo, hi = outcome.feasible or (line.offset, line.offset)
        found = Fit((Candidate(lo, hi, outcome.inside, outcome.evidence),))
        sure = max(first, piece.sure_first), max(min(last, piece.sure_last), max(first, piece.sure_first) + 1)
        part = Part(first, last, sure, found, line.offset, source)
        # the parts beside it only say that it is not the first or the last
        parts = [part] * len(pieces)
        epoch = VcpuProver(guest, track, scaled).epoch(index, parts, ())
        # events that may be of another epoch bound no clock that jumped
        firm = track.guest[sure[0] if begin.is_jump else first : sure[1] if end.is_jump else last]
        fitted = _fitted(track, firm, scaled, piece, line, relation, peers)
        if relation.slew_ppm:
            epoch = _within_band(epoch, events - line.offset, scaled, fitted.band)
        epochs.append(replace(epoch, fitted=fitted))
        if fitted.band.width >= UNBOUNDED:
            in_doubt[index] = True
            said.append(f"no clock that is slewed by {relation.slew_ppm} ppm at most holds the events of an epoch")
        runs = unexplained(track.guest, scaled, line.offset, first, last)
        doubtful |= bool(runs)
        unseen.append(np.concatenate([epoch.rows[:0], *(track.rows[a:b] for a, b in runs)]))
        said += [
            f"{b - a} events (guest stamps {guest.stamp[track.rows[a]]} to {guest.stamp[track.rows[b - 1]]}) would lie"
            " outside the host's recording: the clock seems to have been set, by how much is not known"
            for a, b in runs
        ]
        if epoch.violations:
            said.append(
                f"{epoch.violations} events between two rates fit neither line (the clock was set, or its rate"
                " changed fast)"
            )
    late = tuple(
        _late(guest, track, thread, used, cut)
        for used, cut in zip(pairwise(lines), cuts[1:-1], strict=True)
        if cut.left < cut.at
    )
    epochs = [_with_band(e) for e in epochs]
    proofs = tuple(_claim(guest, track, thread, c, epochs) for c in claims)
    refuted = any(c.verdict is Verdict.REFUTED for c in proofs)
    epochs = [
        replace(e, verdict=_verdict(e, refuted=refuted, doubtful=doubtful or r))
        for e, r in zip(epochs, in_doubt, strict=True)
    ]
    epochs = [replace(e, doubted=_doubted(e, rows, any(in_doubt))) for e, rows in zip(epochs, unseen, strict=True)]
    return VcpuProof(track.cpu, thread.windows.tid, matched_by, tuple(epochs), proofs, late, tuple(said))


def _doubted(epoch: EpochProof, unseen: I64, shaky: bool) -> I64:
    """The rows that the epoch's line may be wrong for; ``shaky``: another line of the vCPU is in doubt.

    Beside a line that was found little evidence is asked of others: they all rest on it.
    """
    if shaky or epoch.violations or epoch.verdict is Verdict.UNBOUNDED:
        return epoch.rows
    return epoch.rows[:0] if epoch.verdict.is_sound else unseen


def _verdict(epoch: EpochProof, *, refuted: bool, doubtful: bool) -> Verdict:
    if epoch.source != BY_CAUSALITY and not doubtful and not epoch.violations and epoch.evidence >= EVIDENCE_FOR_CLAIM:
        return Verdict.PROVED
    if refuted:
        return Verdict.REFUTED
    if not epoch.inside:
        return Verdict.UNBOUNDED
    return Verdict.AMBIGUOUS if epoch.violations or doubtful else Verdict.DERIVED


class _Cut(NamedTuple):
    """Where a piece's events begin, and the end of those of the piece before; what is between is stamped late.

    ``is_jump``: the clock jumps there, as far as is known.
    """

    at: int
    left: int
    is_jump: bool


def _cuts(track: Track, thread: Thread, pieces: Sequence[Piece], relation: Relation) -> list[_Cut]:
    """Where each piece's events begin, and the end.

    In an overlap that is where the stamps jump most: a change comes with a stop or a step. A rate that changes does so
    without, where the two lines meet. Where the clock stepped back, what the guest's kernel stamped late is no piece's.
    """
    guest = track.guest
    cuts = [_Cut(0, 0, is_jump=False)]
    for (left, right), jump in zip(pairwise(pieces), change_points(guest, pieces), strict=True):
        late = next((end for begin, end in track.late if begin < left.last and end == right.sure_first), None)
        if late is not None:
            cuts.append(_Cut(late, min(left.last, late), is_jump=True))
        elif right.first < left.last:
            events = guest[right.first : left.last]
            apart = np.abs(_hosts(events, thread, _line(left)) - _hosts(events, thread, _line(right)))
            widths = [piece.polygon.values(0) for piece in (left, right)]
            meet = relation.slew_ppm > 0 and int(apart.min()) <= max(hi - lo for lo, hi in widths)
            at = right.first + int(apart.argmin()) if meet else jump
            cuts.append(_Cut(at, at, is_jump=not meet))
        else:
            between = guest[left.last : right.first]
            bad = [
                check(between, line.offset, thread.at_scale(line.scale)).violations
                for line in (_line(left), _line(right))
            ]
            at = right.first if bad[0] <= bad[1] else left.last
            cuts.append(_Cut(at, at, is_jump=True))
    return [*cuts, _Cut(len(guest), len(guest), is_jump=False)]


def _late(guest: Recording, track: Track, thread: Thread, lines: tuple[Line, Line], cut: _Cut) -> MisStamped:
    """The events before a cut that are stamped late, where their windows tell by how much."""
    before, after = lines
    scaled = thread.at_scale(after.scale)
    host = _hosts(track.guest[[cut.left - 1]], thread, before)
    left = int(track.guest[cut.left - 1]) - int(after.scale.apply_signed_relative(host, scaled.real.base)[0])
    count = len(track.guest)
    parts = [
        Part(0, cut.left, (0, cut.left), Fit(), left),
        Part(cut.at, count, (cut.at, count), Fit(), after.offset),
    ]
    return VcpuProver(guest, track, scaled).mis_stamped(cut.left, cut.at, parts)


def _line(piece: Piece) -> Line:
    return in_use(piece.best, piece.scale)


def _hosts(events: I64, thread: Thread, line: Line) -> I64:
    """Host times relative to the base, of guest stamps by a line."""
    if line.scale.is_identity:
        return events - line.offset
    return line.scale.inverse_signed_relative(events - line.offset, thread.real.base)[0]


def _chosen(
    track: Track, thread: Thread, piece: Piece, first: int, last: int, claims: list[Claim], relation: Relation
) -> tuple[Line, str]:
    """The line in use for events first..last, and who says so."""
    events = track.guest[first:last]
    # a claimed constant offset that holds for all events is one of the lines
    plain = thread.at_scale(Scale())
    for claim in claims:
        if claim.guest_at is None and claim.host_from is None and claim.host_to is None and claim.scale == plain.scale:
            offset = track.relative_offset(claim.offset, plain.windows.base)
            outcome = check(events, offset, plain)
            if outcome.feasible and outcome.evidence >= EVIDENCE_FOR_CLAIM:
                return Line(plain.scale, offset), claim.source
    line = _line(piece)
    if relation.slew_ppm or not check(events, line.offset, thread.at_scale(line.scale)).violations:
        return line, BY_CAUSALITY
    # an event that two windows may hold bounds no line, but not every line puts it into one of them
    for lines in (piece.best, piece.lines):
        for slope in _slopes(lines):
            other = in_use(lines, piece.scale, slope)
            level = thread.at_scale(other.scale)
            low, high = value_bounds(
                lines, piece.scale, other, thread.real.base, _hosts(events[[0]], thread, other), relation.rough
            )
            within = other.offset + int(low[0]) - 2, other.offset + int(high[0]) + 2
            near = fit(events, level, within, 0)
            if near.candidates:
                best = min(near.candidates, key=lambda c: abs(c.lo + c.hi - 2 * other.offset))
                return Line(other.scale, min(max(other.offset, best.lo), best.hi)), BY_CAUSALITY
    return line, BY_CAUSALITY


def _slopes(lines: Lines) -> list[Fraction]:
    """Slopes of the lines, those in the middle first."""
    lo, hi = lines.polygon.slopes
    return [lo + (hi - lo) * Fraction(k, SLOPES) for k in sorted(range(SLOPES + 1), key=lambda k: abs(2 * k - SLOPES))]


def _fitted(
    track: Track, events: I64, scaled: Thread, piece: Piece, line: Line, relation: Relation, peers: Peers
) -> Fitted:
    nominal = relation.scale or Scale()
    least, most = (r / as_fraction(nominal) - 1 for r in piece.rates())
    used = as_fraction(line.scale)
    own: Band | None = None
    if relation.slew_ppm:
        # the rate may be anywhere that NTP may put it, at any time
        slew, away = Fraction(relation.slew_ppm, 1_000_000), as_fraction(nominal) / used
        spread = max(away * (1 + slew) - 1, 1 - away * (1 - slew))
        grows = -int(-spread * used * BILLION // 1)
        band = Band(*_slew_band(events, scaled, line, spread, (), relation.rough), grows, grows)
        if peers:
            others = [(o.guest + to_signed(o.base - track.base), t.at_scale(line.scale)) for o, t in peers]
            joint = Band(*_slew_band(events, scaled, line, spread, others, relation.rough), grows, grows)
            own, band = (band, joint) if joint.width < band.width else (None, band)
    else:
        band = _line_band(events, scaled, piece.best, piece.scale, line, relation.rough)
        if piece.joint is not None:
            own = _line_band(events, scaled, piece.lines, piece.scale, line, relation.rough)
            own = None if own == band else own
    return Fitted(nominal, (int(least * BILLION // 1), -int(-most * BILLION // 1)), relation.slew_ppm, band, own)


Spans = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _line_band(events: I64, scaled: Thread, lines: Lines, level: Scale, line: Line, rough: int) -> Band:
    """The lines about the one in use, between the first and the last event."""
    host = _hosts(np.array([events.min(), events.max()]), scaled, line)
    edges = np.unique(np.linspace(int(host[0]), int(host[1]), SPANS + 1).astype(np.int64))
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    lo, hi = value_bounds(lines, level, line, scaled.real.base, edges, rough)
    used, slopes = as_fraction(line.scale), lines.polygon.slopes
    low, high = (as_fraction(level) * (1 + s) for s in slopes)
    slower, faster = (max(0, -int(-x * BILLION // 1)) for x in (used - low, high - used))
    # between two edges the least line is concave, the greatest convex: both are extreme at the edges
    return Band(
        tuple((int(e) + scaled.real.base) & ((1 << 64) - 1) for e in edges.tolist()),
        tuple(np.minimum(lo[1:], lo[:-1]).tolist()),
        tuple(np.maximum(hi[1:], hi[:-1]).tolist()),
        slower,
        faster,
    )


def _slew_band(
    events: I64, scaled: Thread, line: Line, spread: Fraction, others: Sequence[tuple[I64, Thread]], rough: int
) -> Spans:
    """The bounds that each event sets about the line in use, which widen with the time from it by ``spread``."""
    thin, thick = edges_of(scaled.scale, rough)
    begin, end = int(events.min()), int(events.max())
    near = [(e[(e >= begin) & (e <= end)] - line.offset, thread) for e, thread in others]
    found = cone([(events - line.offset, scaled), *near], spread, thin, thick)
    when = found.when if found is not None else np.zeros(0, np.int64)
    marks = np.unique(np.linspace(0, len(when) - 1, SPANS + 1).astype(np.int64)) if len(when) else when
    marks = marks[np.diff(when[marks], prepend=when[0] - 1) > 0] if len(when) else marks
    if found is None or len(marks) < 2:
        reach = UNBOUNDED // 2
        edges = np.array([begin, max(end, begin + 1)]) - line.offset
        return tuple(scaled.stamp(int(e)) for e in edges), (-reach,), (reach,)
    # how far the bounds open between two events
    opened = np.ceil(np.diff(when) * float(spread) / 2).astype(np.int64) + 1
    tops = np.maximum(found.high[1:], found.high[:-1]) + opened
    bottoms = np.minimum(found.low[1:], found.low[:-1]) - opened
    return (
        tuple(scaled.stamp(int(when[m])) for m in marks.tolist()),
        tuple(np.minimum.reduceat(bottoms, marks[:-1]).tolist()),
        tuple(np.maximum.reduceat(tops, marks[:-1]).tolist()),
    )


def _within_band(epoch: EpochProof, when: I64, scaled: Thread, band: Band) -> EpochProof:
    """The epoch with only those events as violations that the whole of the band puts into a gap."""
    base = scaled.real.base
    host = when if scaled.scale.is_identity else scaled.scale.inverse_signed_relative(when, base)[0]
    low, high = band.at(host.view(np.uint64) + np.uint64(base & ((1 << 64) - 1)))
    first = np.searchsorted(scaled.hi, when - high - 2, side="left")
    bad = int((np.searchsorted(scaled.lo, when - low + 2, side="right") <= first).sum())
    return replace(epoch, inside=epoch.checked - bad, violations=bad)


def _with_band(epoch: EpochProof) -> EpochProof:
    """State the band's extremes as the interval of the offset: it holds at every instant of the epoch."""
    assert epoch.fitted is not None and epoch.offset is not None
    lo, hi = epoch.fitted.band.extremes
    return replace(epoch, feasible=(epoch.offset + lo, epoch.offset + hi), usable=None)


def _claim(guest: Recording, track: Track, thread: Thread, claim: Claim, epochs: list[EpochProof]) -> ClaimProof:
    """What the lines say of a claim: at its own instant where it names one, else as a constant offset."""
    if claim.guest_at is None or claim.scale != Scale():
        plain = thread.at_scale(Scale())
        offset = track.relative_offset(claim.offset, plain.windows.base)
        count = len(track.guest)
        part = Part(0, count, (0, count), Fit(), offset, claim.source)
        proof = Claims(guest, track, plain).hold(claim, [part], np.zeros(count, np.bool_))
        if proof.verdict is not Verdict.UNBOUNDED:
            return proof
        reason = _too_far(track, claim, epochs) if claim.scale == Scale() else ""
        return replace(proof, verdict=Verdict.REFUTED, reason=reason) if reason else proof
    epoch = next((e for e in epochs if e.guest_to is None or to_signed(claim.guest_at - e.guest_to) <= 0), epochs[-1])
    assert epoch.fitted is not None and epoch.offset is not None
    stamp = (claim.guest_at - claim.offset) & ((1 << 64) - 1)
    band = epoch.fitted.band
    lo, hi = (int(x[0]) for x in band.at(np.array([stamp], np.uint64)))
    mapped = epoch.scale.apply_int(stamp) + epoch.offset
    apart = to_signed(claim.guest_at - mapped)
    count = len(track.guest)
    allowed = claim.offset - apart + lo, claim.offset - apart + hi
    told = f"at guest stamp {claim.guest_at}, where it was measured, the events allow {allowed[0]} to {allowed[1]}"
    if not lo <= apart <= hi:
        return ClaimProof(claim, Verdict.REFUTED, 0, 0, count, reason=told)
    begin, end = to_signed(stamp - band.host[0]), to_signed(stamp - band.host[-1])
    # beside the events the bound grows: where it is still of their order the claim is as good as among them
    if (begin < 0 or end > 0) and hi - lo > FAR * band.width:
        away = -begin if begin < 0 else end
        told += f" ({away} host units {'before' if begin < 0 else 'after'} them): it may be right"
        return ClaimProof(claim, Verdict.UNBOUNDED, 0, 0, count, reason=told)
    return ClaimProof(claim, Verdict.PROVED, 0, 0, count, reason=told)


def _too_far(track: Track, claim: Claim, epochs: list[EpochProof]) -> str:
    """Why a constant offset that puts all events out of sight is wrong: the lines allow no such one at any event."""
    for epoch in epochs:
        assert epoch.fitted is not None
        low, high = epoch.fitted.band.extremes
        guest = np.array([track.guest[0], track.guest[-1]]).view(np.uint64) + np.uint64(track.base)
        host = epoch.as_epoch().to_host(guest)
        apart = [to_signed(int(g) - int(h) - claim.offset) for g, h in zip(guest.tolist(), host.tolist(), strict=True)]
        least, most = min(apart) + low, max(apart) + high
        if least <= 0 <= most:
            return ""
    return f"the events allow offsets from {claim.offset + least} to {claim.offset + most} alone"
