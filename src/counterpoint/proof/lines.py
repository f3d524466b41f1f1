"""Clocks that do not run at one rate: the lines that keep every guest event inside the run windows.

``guest = a + b * host`` with both unknown. A guest event in a run window says that the line passes below one point (the
window's beginning, the event) and above another (its end, the event); the lines that do so for all events are a
polygon, found by hulls in exact integers. Where no line holds all events there are several *pieces*, each with its own.

Host time is *levelled* first: scaled by a rate near the true one, so that what is sought is nearly constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, EVIDENCE_PER_TRIAL_BIT, Thread, check, fit
from counterpoint.proof.polygon import HalfPlane, Polygon, above, below
from counterpoint.proof.windows import FOREVER

FRAC_BITS = 48
"""Fixed point of a fitted rate: 4e-15, below a unit over three days of nanoseconds."""

RATE_ERROR = Fraction(1, 1000)
"""How far the rates of two clocks may be from what is known of them: NTP slews each by at most 500 ppm."""

SEED_EVENTS = (300, 1200, 4800)
"""Sizes of the stretches in which a line is searched."""

SEED_PLACES = (8, 4, 12, 2, 14, 6, 10, 0, 15)
"""Where in the recording, in sixteenths."""

MAX_BINS = 400
"""Slopes tried in one stretch."""

MAX_SEEDS = 4
"""Candidates that are grown before the next stretch is tried."""

MIN_PIECE = 24
"""Fewer events than this are not searched for a line of their own."""

MAX_PIECES = 64

MAX_OPENINGS = 40
"""Boxes tried until the events alone bound the lines."""

MAX_OPEN_SLOPE, MAX_OPEN_VALUES = Fraction(1, 100), 1 << 48
"""Events that bound the lines no better than this do not bound them."""

BLOCKS = 64
"""The events are cut in this many spans, of each of which only what may bound a line is kept."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Events ``first`` to ``last`` (exclusive) that one line holds, and the lines that do.

    ``polygon`` is over levelled host time relative to ``origin``: the lines' values are ``guest - levelled host``,
    slopes are relative to ``scale``. The events from ``sure_first`` to ``sure_last`` made it.
    """

    first: int
    last: int
    sure_first: int
    sure_last: int
    scale: Scale
    origin: int
    polygon: Polygon

    def rates(self) -> tuple[Fraction, Fraction]:
        """The least and the greatest rate, in guest units per host unit."""
        lo, hi = self.polygon.slopes
        rate = as_fraction(self.scale)
        return rate * (1 + lo), rate * (1 + hi)


def as_fraction(scale: Scale) -> Fraction:
    """Guest units per host unit."""
    return Fraction(scale.ratio, 1 << scale.frac_bits)


def scale_of(rate: Fraction) -> Scale:
    """The scale nearest to ``rate`` (guest units per host unit)."""
    return Scale(max(1, round(rate * (1 << FRAC_BITS))), FRAC_BITS)


class _Level:
    """A thread's allowed spans in levelled host time.

    A host stamp is the instant rounded down, and so is a levelled one: an instant lies less than ``thin`` units before
    and ``thick`` units after its levelled stamp.
    """

    def __init__(self, thread: Thread, scale: Scale) -> None:
        self.scale = scale
        self.thread = thread.at_scale(scale)
        self.lo, self.hi = self.thread.lo, self.thread.hi
        self.thin = 0 if scale.is_identity else 1
        self.thick = 1 if scale.is_identity else -(-scale.ratio >> scale.frac_bits) + 1


class _Growing(NamedTuple):
    level: _Level
    origin: int
    polygon: Polygon


def find_pieces(
    guest: I64, thread: Thread, scale: Scale, error: Fraction = RATE_ERROR, *, pieces: int = MAX_PIECES
) -> list[Piece]:
    """Find the pieces of ``guest`` i64[n] (a guest CPU's stamps in recorded order) in ``thread``'s windows, in order.

    ``scale`` is what is known of the guest's rate, true to ``error``. At most ``pieces`` are found; none where no
    line holds enough events to be told from chance.
    """
    found: list[Piece] = []
    holes = [(0, len(guest))]
    while holes and len(found) < pieces:
        begin, end = holes.pop(0)
        piece = _beside(guest, thread, error, begin, end, found) or _search(guest, thread, scale, error, begin, end)
        if piece is None:
            continue
        found.append(piece)
        found.sort(key=lambda p: p.first)
        holes += [h for h in ((begin, piece.first), (piece.last, end)) if h[1] - h[0] >= MIN_PIECE]
    return _settle(guest, thread, found)


def _search(guest: I64, thread: Thread, scale: Scale, error: Fraction, begin: int, end: int) -> Piece | None:
    """Search events begin..end for a line, in stretches here and there; grow the first that holds."""
    level = _Level(thread, scale)
    tried: set[tuple[int, int]] = set()
    for size in SEED_EVENTS:
        for place in SEED_PLACES:
            first = begin + max(0, (end - begin - size) * place // 15)
            last = min(first + size, end)
            if last - first < MIN_PIECE or (first, last) in tried:
                continue
            tried.add((first, last))
            for seed in _seeds(guest[first:last], level, error):
                grown = _grow(guest, thread, seed, first, last, begin, end)
                if grown and _has_evidence(guest, thread, grown, error):
                    return grown
        if size >= end - begin:
            break
    return None


def _beside(guest: I64, thread: Thread, error: Fraction, begin: int, end: int, found: list[Piece]) -> Piece | None:
    """A piece that continues a neighbour at another rate: clocks that are slewed do not jump."""
    for piece in found:
        if piece.last != begin and piece.first != end:
            continue
        level = _Level(thread, piece.scale)
        ahead = piece.last == begin
        edge = int(guest[piece.last - 1 if ahead else piece.first])
        lo, hi = piece.polygon.values(_levelled_at(edge, piece) - piece.origin)
        size = MIN_PIECE
        while size <= end - begin:
            first, last = (begin, begin + size) if ahead else (end - size, end)
            span = abs(int(guest[last - 1 if ahead else first]) - edge)
            room = int(span * error) + 1
            if room > _typical_gap(level):
                break
            box = Polygon.box(0, (lo - room, hi + room), (-error, error))
            seed = _Growing(level, _levelled_at(edge, piece), box)
            grown = _grow(guest, thread, seed, first, last, begin, end)
            if grown and grown.last - grown.first >= 2 * MIN_PIECE and _has_evidence(guest, thread, grown, None):
                return grown
            size *= 2
    return None


def _levelled_at(stamp: int, piece: Piece) -> int:
    """The levelled host time of a guest stamp, by the middle of the piece's lines."""
    at = stamp
    for _ in range(3):
        lo, hi = piece.polygon.values(at - piece.origin)
        at = stamp - (lo + hi) // 2
    return at


def _typical_gap(level: _Level) -> int:
    gaps = level.thread.gap_hi - level.thread.gap_lo
    return int(np.median(gaps)) if len(gaps) else 0


def _seeds(events: I64, level: _Level, error: Fraction) -> Iterator[_Growing]:
    """Lines that may hold ``events``: slope by slope, offsets in windows widened by what the slope's step moves."""
    low, high = int(events.min()), int(events.max())
    span, middle = max(high - low, 1), (low + high) // 2
    reach = max(_typical_gap(level) // 8, 1)
    steps = int(span * error) // (2 * reach) + 1
    if 2 * steps + 1 > MAX_BINS:
        return
    if int(span * error) // 2 <= reach:
        steps = 0
    slack = reach + level.thick + 3
    wide = _widened(level.thread, slack)
    found: list[tuple[int, int, int, int]] = []
    for step in sorted(range(-steps, steps + 1), key=abs):
        # a float will do: the windows are wider than its error
        shift = np.rint((events - middle) * (4 * reach * step / span)).astype(np.int64)
        outcome = fit(events - shift, wide, trials=2 * steps + 1)
        if outcome.candidates and not outcome.weak:
            found += [(c.evidence, step, c.lo, c.hi) for c in outcome.candidates[:MAX_SEEDS]]
        # the nearer the slope to what is known, the likelier; the truth fits its neighbours in part
        if found and (step <= 0 or not steps):
            found.sort(key=lambda f: -f[0])
            for _, at, lo, hi in found[:MAX_SEEDS]:
                slope = Fraction(4 * reach * at, span)
                width = Fraction(8 * reach, span) if steps else error
                box = Polygon.box(0, (lo - slack, hi + slack), (slope - width, slope + width))
                yield _Growing(level, middle - (lo + hi) // 2, box)
            found = []


def _widened(thread: Thread, by: int) -> Thread:
    """The windows with ``by`` units added on both sides."""
    windows = thread.windows
    lo = np.where(windows.lo <= -FOREVER, windows.lo, windows.lo - by)
    hi = np.where(windows.hi >= FOREVER, windows.hi, windows.hi + by)
    return Thread(replace(windows, lo=lo, hi=hi))


def _grow(guest: I64, thread: Thread, seed: _Growing, first: int, last: int, begin: int, end: int) -> Piece | None:
    """Extend a seed over events begin..end as far as one line holds; None where it does not even hold the seed."""
    state = _refined(guest, thread, seed, first, last)
    if state is None:
        return None
    step = last - first
    while step and (first > begin or last < end):
        new_first, new_last = max(begin, first - step), min(end, last + step)
        count, _ = _spans(guest[new_first:new_last], state)
        bad = np.flatnonzero(count == 0) + new_first
        new_first = int(bad[bad < first].max(initial=new_first - 1)) + 1
        new_last = int(bad[bad >= last].min(initial=new_last))
        if (new_first, new_last) == (first, last):
            if not len(bad):
                break
            step //= 4
            continue
        wider = _refined(guest, thread, state, new_first, new_last)
        if wider is None:
            # the two sides may each hold alone
            ahead = _refined(guest, thread, state, first, new_last) if new_last > last else None
            back = _refined(guest, thread, state, new_first, last) if new_first < first and ahead is None else None
            if ahead is None and back is None:
                step //= 4
                continue
            wider = ahead or back
            new_first, new_last = (first, new_last) if ahead else (new_first, last)
        assert wider is not None
        state, first, last, step = wider, new_first, new_last, max(2 * step, last - first)
    return _opened(guest, thread, state, first, last)


def _opened(guest: I64, thread: Thread, state: _Growing, first: int, last: int) -> Piece | None:
    """The piece with all lines that hold its events, not only those near its seed; None where there is no end to them.

    The lines are sought in wider and wider boxes, until it is the events that bound them on all sides.
    """
    events = guest[first:last]
    for _ in range(MAX_OPENINGS):
        lo, hi = state.polygon.slopes
        low, high = state.polygon.values(0)
        reach = max(hi - lo, Fraction(1, 1 << FRAC_BITS))
        if reach > MAX_OPEN_SLOPE or high - low > MAX_OPEN_VALUES:
            return None
        box = Polygon.box(0, (2 * low - high - 2, 2 * high - low + 2), (lo - reach, hi + reach))
        wide = _Growing(state.level, state.origin, box)
        planes = _planes(events, wide)
        polygon = None if planes is None else box.clip(planes)
        if polygon is None:
            return None
        if not set(polygon.edges) & set(box.edges):
            return Piece(first, last, first, last, state.level.scale, state.origin, polygon)
        state = _relevelled(thread, _Growing(state.level, state.origin, polygon), events)
    return None


def _refined(guest: I64, thread: Thread, state: _Growing, first: int, last: int) -> _Growing | None:
    """The lines of ``state`` that hold events first..last, levelled anew at the middle of their slopes."""
    events = guest[first:last]
    for _ in range(4):
        planes = _planes(events, state)
        if planes is None:
            return None
        polygon = state.polygon.clip(planes)
        if polygon is None:
            return None
        lo, hi = state.polygon.slopes
        new_lo, new_hi = polygon.slopes
        state = _relevelled(thread, _Growing(state.level, state.origin, polygon), events)
        if not new_hi - new_lo < (hi - lo) / 2:
            break
    return state


def _relevelled(thread: Thread, state: _Growing, events: I64) -> _Growing:
    """The same lines over host time levelled by their middle slope, with the events' middle as the origin."""
    lo, hi = state.polygon.slopes
    rate = as_fraction(state.level.scale)
    scale = scale_of(rate * (1 + (lo + hi) / 2))
    level = _Level(thread, scale)
    middle = (int(events.min()) + int(events.max())) // 2
    low, high = state.polygon.values(middle - state.origin)
    at = middle - (low + high) // 2
    low, high = state.polygon.values(at - state.origin)
    # the host instant that is ``at`` in the old level, in the new one: to a unit, both being rounded down
    host = Fraction(at) / rate
    fresh = int(host * as_fraction(scale))
    factor = rate / as_fraction(scale)
    slopes = (1 + lo) * factor - 1, (1 + hi) * factor - 1
    room = level.thick + 2
    return _Growing(level, fresh, Polygon.box(0, (low + at - fresh - room, high + at - fresh + room), slopes))


def _bounds(polygon: Polygon, x: I64) -> tuple[I64, I64]:
    """The least and the greatest value of the polygon's lines at ``x`` i64[n], rounded outward."""
    reach = int(max(abs(int(x.min())), abs(int(x.max())), 1)) if len(x) else 1
    lows, highs = [], []
    for a, b, d in polygon.corners:
        steep = abs(b) // d + 1
        bits = max(0, 61 - (steep * reach if steep > 1 else abs(b) * reach // d + 1).bit_length())
        bits = min(bits, 60)
        line = (x * np.int64((b << bits) // d)) >> np.int64(bits)
        slack = (reach >> bits) + 2
        lows.append(line + np.int64(a // d - slack))
        highs.append(line + np.int64(a // d + slack))
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _spans(events: I64, state: _Growing) -> tuple[I64, I64]:
    """For each event how many spans the lines can put it in, and the first of them."""
    level = state.level
    middle = state.polygon.values(0)
    lo, hi = _bounds(state.polygon, events - (middle[0] + middle[1]) // 2 - state.origin)
    first = np.searchsorted(level.hi, events - hi - level.thick, side="left")
    last = np.searchsorted(level.lo, events + 1 - lo + level.thin, side="right")
    return last - first, first


def _planes(events: I64, state: _Growing) -> list[HalfPlane] | None:
    """What the events that lie in one span alone say of the line; None where one lies in no span."""
    level = state.level
    count, span = _spans(events, state)
    if (count == 0).any():
        return None
    sure = count == 1
    events, span = events[sure], span[sure]
    begin, end = level.lo[span], level.hi[span]
    over, under = begin > -FOREVER, end < FOREVER
    planes: list[HalfPlane] = []
    x, y = begin[over] - level.thin - state.origin, events[over] + 1 - begin[over] + level.thin
    planes += [below(int(x[i]), int(y[i])) for i in _keepers(x, y, state.polygon).tolist()]
    x, y = end[under] + level.thick - state.origin, events[under] - end[under] - level.thick
    planes += [above(int(x[i]), int(y[i])) for i in _keepers(x, -y, state.polygon).tolist()]
    return planes


def _keepers(x: I64, y: I64, polygon: Polygon) -> I64:
    """Which of the points (x, y) may be the lowest for some slope of the polygon, or of its opposite.

    In each block of points those above its lowest by more than the slopes can make up for are left out. What is left
    out wrongly would only widen the bound; a float may choose.
    """
    if len(x) <= BLOCKS:
        return np.arange(len(x))
    steep = max(abs(float(s)) for s in polygon.slopes)
    edges = np.linspace(int(x.min()), int(x.max()) + 1, BLOCKS + 1)
    block = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, BLOCKS - 1)
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(block[order]) != 0])
    low = np.zeros(BLOCKS, np.int64)
    low[block[order][starts]] = np.minimum.reduceat(y[order], starts)
    keep = np.flatnonzero(y <= low[block] + int(steep * float(edges[1] - edges[0])) + 1)
    # the lowest first: it cuts most
    return keep[np.argsort(y[keep], kind="stable")]


def _has_evidence(guest: I64, thread: Thread, piece: Piece, error: Fraction | None) -> bool:
    """Whether the piece's events are too well placed for chance; ``error`` None: it was searched beside another."""
    line = in_use(piece)
    level = thread.at_scale(line.scale)
    outcome = check(guest[piece.first : piece.last], line.offset, level)
    if error is None:
        return outcome.evidence >= EVIDENCE_FOR_CLAIM
    lo, hi = piece.polygon.slopes
    searched = int(2 * error / (hi - lo + Fraction(1, 1 << FRAC_BITS))).bit_length()
    return outcome.evidence >= EVIDENCE_FOR_CLAIM + EVIDENCE_PER_TRIAL_BIT * searched


class Line(NamedTuple):
    """One line: ``guest = scaled host + offset``, both relative to their bases."""

    scale: Scale
    offset: int


def in_use(piece: Piece) -> Line:
    """The line to use: of rate 1 where that is among the piece's, else the middle of their rates; the middle offset."""
    lo, hi = piece.rates()
    scale = Scale() if lo <= 1 <= hi else scale_of((lo + hi) / 2)
    rate = as_fraction(piece.scale)
    slope = as_fraction(scale) / rate - 1
    low_slope, high_slope = piece.polygon.slopes
    found = piece.polygon.intercepts(min(max(slope, low_slope), high_slope))
    low, high = found if found is not None else (Fraction(0), Fraction(0))
    # guest = levelled + value; levelled = host * rate, so at the origin:
    host = Fraction(piece.origin) / rate
    offset = piece.origin + (low + high) / 2 - host * as_fraction(scale)
    return Line(scale, round(offset))


def _settle(guest: I64, thread: Thread, found: list[Piece]) -> list[Piece]:
    """Let each piece stand on the events that no neighbour reaches: those in an overlap may be either's."""
    out = []
    for index, piece in enumerate(found):
        first = max(piece.first, found[index - 1].last) if index else piece.first
        last = min(piece.last, found[index + 1].first) if index + 1 < len(found) else piece.last
        if first == piece.first and last == piece.last:
            out.append(piece)
            continue
        if last - first < 2:
            continue
        lo, hi = piece.polygon.values(0)
        slopes = piece.polygon.slopes
        room = hi - lo + 1
        box = Polygon.box(0, (lo - room, hi + room), (slopes[0] - RATE_ERROR, slopes[1] + RATE_ERROR))
        state = _refined(guest, thread, _Growing(_Level(thread, piece.scale), piece.origin, box), first, last)
        opened = None if state is None else _opened(guest, thread, state, first, last)
        if opened is not None:
            out.append(replace(opened, first=piece.first, last=piece.last))
    return out


def value_bounds(piece: Piece, line: Line, base: int, host: I64) -> tuple[I64, I64]:
    """How far a true guest stamp may be from the line's at the host instants ``base + host`` i64[n]: (lo, hi) i64[n].

    Rounded outward, with room for the instant being anywhere in the host's unit and for the stamps being rounded down.
    """
    rate = as_fraction(piece.scale)
    used = line.scale.apply_signed_relative(host, base) + line.offset
    lows, highs = [], []
    for at, mapped in zip(host.tolist(), used.tolist(), strict=True):
        ends = []
        for x in (at * rate, (at + 1) * rate):
            ends += [Fraction(a, d) + Fraction(b, d) * (x - piece.origin) + x for a, b, d in piece.polygon.corners]
        lows.append(min(ends).__floor__() - 1 - mapped)
        highs.append(max(ends).__ceil__() - mapped)
    return np.array(lows, np.int64), np.array(highs, np.int64)
