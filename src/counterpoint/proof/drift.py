"""The proof of a guest CPU whose clock does not run at the host's rate: pieces, each with a line and its band."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.band import BILLION, Band
from counterpoint.clocks.counter import I64, to_signed
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.epochs import unexplained
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, Candidate, Fit, Thread, check, fit
from counterpoint.proof.lines import Line, Piece, as_fraction, in_use, value_bounds
from counterpoint.proof.relation import Relation
from counterpoint.proof.tracks import Track
from counterpoint.proof.vcpu import BY_CAUSALITY, Part, VcpuProver
from counterpoint.proof.verdicts import ClaimProof, EpochProof, Fitted, VcpuProof, Verdict
from counterpoint.proof.windows import FOREVER
from counterpoint.traces.recording import Recording

FAR = 2
"""A claim made where the band is this many times as wide as among the events is not proved by it."""

SPANS = 48
"""A band is stated over this many spans of time."""

ROUNDS = 4
"""How often events that another window may hold are left out of a band, until none is."""


def prove_lines(
    guest: Recording,
    track: Track,
    thread: Thread,
    pieces: list[Piece],
    relation: Relation,
    claims: list[Claim],
    matched_by: str,
    notes: tuple[str, ...],
) -> VcpuProof:
    """Prove a guest CPU by the ``pieces`` (at least one) that were found in ``thread``'s windows."""
    cuts = _cuts(track.guest, thread, pieces)
    said, doubtful = list(notes), False
    epochs: list[EpochProof] = []
    for index, (piece, (first, last)) in enumerate(zip(pieces, pairwise(cuts), strict=True)):
        line, source = _chosen(track, thread, piece, first, last, claims)
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
        epochs.append(replace(epoch, fitted=_fitted(track, scaled, piece, line, first, last, relation)))
        runs = unexplained(track.guest, scaled, line.offset, first, last)
        doubtful |= bool(runs)
        said += [
            f"{b - a} events (guest stamps {guest.stamp[track.rows[a]]} to {guest.stamp[track.rows[b - 1]]}) would lie"
            " outside the host's recording: the clock seems to have been set, by how much is not known"
            for a, b in runs
        ]
        if outcome.violations:
            said.append(
                f"{outcome.violations} events between two rates fit neither line (the clock was set, or its rate"
                " changed fast)"
            )
    epochs = [_with_band(e) for e in epochs]
    proofs = tuple(_claim(guest, track, thread, c, epochs) for c in claims)
    refuted = any(c.verdict is Verdict.REFUTED for c in proofs)
    epochs = [replace(e, verdict=_verdict(e, refuted=refuted, doubtful=doubtful)) for e in epochs]
    return VcpuProof(track.cpu, thread.windows.tid, matched_by, tuple(epochs), proofs, (), tuple(said))


def _verdict(epoch: EpochProof, *, refuted: bool, doubtful: bool) -> Verdict:
    if epoch.source != BY_CAUSALITY and not doubtful and not epoch.violations and epoch.evidence >= EVIDENCE_FOR_CLAIM:
        return Verdict.PROVED
    if refuted:
        return Verdict.REFUTED
    if not epoch.inside:
        return Verdict.UNBOUNDED
    return Verdict.AMBIGUOUS if epoch.violations or doubtful else Verdict.DERIVED


def _cuts(guest: I64, thread: Thread, pieces: list[Piece]) -> list[int]:
    """Where each piece's events begin, and the end: in an overlap where the two lines meet."""
    cuts = [0]
    for left, right in pairwise(pieces):
        if right.first < left.last:
            events = guest[right.first : left.last]
            apart = np.abs(_hosts(events, thread, in_use(left)) - _hosts(events, thread, in_use(right)))
            cuts.append(right.first + int(apart.argmin()))
        else:
            between = guest[left.last : right.first]
            bad = [
                check(between, line.offset, thread.at_scale(line.scale)).violations
                for line in (in_use(left), in_use(right))
            ]
            cuts.append(right.first if bad[0] <= bad[1] else left.last)
    return [*cuts, len(guest)]


def _hosts(events: I64, thread: Thread, line: Line) -> I64:
    """Host times relative to the base, of guest stamps by a line."""
    if line.scale.is_identity:
        return events - line.offset
    return line.scale.inverse_signed_relative(events - line.offset, thread.real.base)[0]


def _chosen(track: Track, thread: Thread, piece: Piece, first: int, last: int, claims: list[Claim]) -> tuple[Line, str]:
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
    line = in_use(piece)
    if not check(events, line.offset, thread.at_scale(line.scale)).violations:
        return line, BY_CAUSALITY
    # rounding may put an event a unit past an edge
    host = np.array([int(_hosts(events[[0]], thread, line)[0])])
    low, high = value_bounds(piece, line, thread.real.base, host)
    near = fit(events, thread.at_scale(line.scale), (line.offset + int(low[0]) - 2, line.offset + int(high[0]) + 2), 0)
    if near.candidates:
        best = min(near.candidates, key=lambda c: abs(c.lo + c.hi - 2 * line.offset))
        line = Line(line.scale, min(max(line.offset, best.lo), best.hi))
    return line, BY_CAUSALITY


def _fitted(
    track: Track, scaled: Thread, piece: Piece, line: Line, first: int, last: int, relation: Relation
) -> Fitted:
    nominal = relation.scale or Scale()
    least, most = (r / as_fraction(nominal) - 1 for r in piece.rates())
    used = as_fraction(line.scale)
    slew = Fraction(relation.slew_ppm, 1_000_000)
    if relation.slew_ppm:
        # the rate may be anywhere that NTP may put it, at any time
        spread = slew + abs(used / as_fraction(nominal) - 1)
        slower = faster = -int(-spread * used * BILLION // 1)
        band = _slew_band(track.guest[first:last], scaled, line, spread)
    else:
        low, high = piece.rates()
        slower, faster = (max(0, -int(-x * BILLION // 1)) for x in (used - low, high - used))
        band = _line_band(track.guest[first:last], scaled, piece, line)
    host, lo, hi = band
    return Fitted(
        nominal,
        (int(least * BILLION // 1), -int(-most * BILLION // 1)),
        relation.slew_ppm,
        Band(host, lo, hi, slower, faster),
    )


Spans = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _line_band(events: I64, scaled: Thread, piece: Piece, line: Line) -> Spans:
    """The lines of the piece about the one in use, between the first and the last event."""
    host = _hosts(np.array([events.min(), events.max()]), scaled, line)
    edges = np.unique(np.linspace(int(host[0]), int(host[1]), SPANS + 1).astype(np.int64))
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    lo, hi = value_bounds(piece, line, scaled.real.base, edges)
    # between two edges the least line is concave, the greatest convex: both are extreme at the edges
    return (
        tuple((int(e) + scaled.real.base) & ((1 << 64) - 1) for e in edges.tolist()),
        tuple(np.minimum(lo[1:], lo[:-1]).tolist()),
        tuple(np.maximum(hi[1:], hi[:-1]).tolist()),
    )


def _slew_band(events: I64, scaled: Thread, line: Line, spread: Fraction) -> Spans:
    """The bounds that each event sets about the line in use, which widen with the time from it by ``spread``."""
    when = np.sort(events) - line.offset
    span = np.searchsorted(scaled.lo, when, side="right") - 1
    inside = when <= scaled.hi[span]
    when, span = when[inside], span[inside]
    thin, thick = (0, 1) if scaled.scale.is_identity else (1, int(as_fraction(scaled.scale)) + 2)
    begin, end = scaled.lo[span], scaled.hi[span]
    known = (begin > -FOREVER) & (end < FOREVER)
    when, span, begin, end = when[known], span[known], begin[known], end[known]
    # where the window before or after this one ends and begins
    before = np.where(span > 0, scaled.hi[np.maximum(span - 1, 0)], -FOREVER)
    after = np.where(span + 1 < len(scaled.lo), scaled.lo[np.minimum(span + 1, len(scaled.lo) - 1)], FOREVER)
    keep = np.ones(len(when), np.bool_)
    low, high = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        if keep.sum() < 2:
            break
        length = np.ceil((end - begin)[keep] * float(spread)).astype(np.int64) + 1
        high = _cone(when[keep], when[keep] - begin[keep] + 1 + thin + length, spread)
        low = -_cone(when[keep], end[keep] + thick - when[keep] + length, spread)
        # an event that another window may hold as well, within these bounds, bounds nothing
        sure = (when[keep] - high > before[keep] + thick) & (when[keep] - low < after[keep] - thin)
        if sure.all():
            break
        keep[np.flatnonzero(keep)[~sure]] = False
    when = when[keep]
    if len(when) < 2:
        reach = 1 << 61
        edges = np.array([events.min(), max(int(events.max()), int(events.min()) + 1)]) - line.offset
        return tuple(scaled.stamp(int(e)) for e in edges), (-reach,), (reach,)
    # how far the bounds open between two events
    opened = np.ceil(np.diff(when) * float(spread) / 2).astype(np.int64) + 1
    tops = np.maximum(high[1:], high[:-1]) + opened
    bottoms = np.minimum(low[1:], low[:-1]) - opened
    marks = np.unique(np.linspace(0, len(when) - 1, SPANS + 1).astype(np.int64))
    marks = marks[np.r_[True, np.diff(when[marks]) > 0]]
    if len(marks) < 2:
        marks = np.array([0, len(when) - 1])
    return (
        tuple(scaled.stamp(int(when[m])) for m in marks.tolist()),
        tuple(np.minimum.reduceat(bottoms, marks[:-1]).tolist()),
        tuple(np.maximum.reduceat(tops, marks[:-1]).tolist()),
    )


def _cone(when: I64, limit: I64, spread: Fraction) -> I64:
    """The least of all ``limit[j] + spread * |when[i] - when[j]|`` for each i, rounded up."""
    top, bottom = spread.numerator, spread.denominator
    # exact while the product fits, which a recording of days does
    step = np.array([int(w) * top // bottom for w in (when - when[0]).tolist()], np.int64)
    ahead = np.minimum.accumulate(limit - step) + step
    back = (np.minimum.accumulate((limit + step)[::-1])[::-1]) - step
    out: I64 = np.minimum(ahead, back) + 2
    return out


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
        proof = VcpuProver(guest, track, plain).claim(claim, [part], np.zeros(count, np.bool_))
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
