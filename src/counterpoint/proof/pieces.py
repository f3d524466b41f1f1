"""The search for the pieces of a guest CPU's events: which events one line holds, and all lines that do.

A stretch of events is searched for lines (see ``cells``); what is found is extended both ways as far as one line holds,
over the events of its neighbours as well: where two pieces overlap, the change is somewhere in the overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.cells import MAX_INTERVALS, Cell, Cluster, clusters, search_cells
from counterpoint.proof.feasible import Interval, TooManyError
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, EVIDENCE_PER_TRIAL_BIT, RIVAL_SHARE, Thread, check
from counterpoint.proof.lines import (
    FRAC_BITS,
    RATE_ERROR,
    SLACK,
    Lines,
    Piece,
    bounds,
    by_guest,
    edges_of,
    in_use,
    sharing_rates,
)
from counterpoint.proof.polygon import HalfPlane, Polygon, above, below
from counterpoint.proof.windows import FOREVER

SEED_EVENTS = (1024, 256, 64)
"""Sizes of the stretches in which a line is searched."""

SEED_PLACES = (8, 4, 12, 2, 14, 6, 10, 0, 15)
"""Where in the recording, in sixteenths."""

FIRST_SEEDS, MAX_SEEDS = 4, 12
"""Candidates that are grown, those with the most evidence: more where one of the first is a piece."""

MAX_SHARE = 64
"""A stretch is no shorter than 1/MAX_SHARE of where it is searched in."""

MAX_GIVEN_UP = 6
"""So many stretches that could hold far too many lines are enough to know that the others can, too."""

MAX_RATED = 4096
MAX_CLUSTERS = 64
"""Where more lines than this may hold a stretch, it is too short to tell."""

MIN_PIECE = 24
"""Fewer events than this are not searched for a line of their own."""

MIN_BETWEEN = 12
"""But these are between two known pieces."""

EVIDENCE_BETWEEN = 3
"""Bits of evidence per bit of search between two known pieces: something did run there."""

EVIDENCE_BESIDE = 6
"""And before the first and after the last of them: the thread is the right one, but it may have run unseen."""

MAX_PIECES = 64

MAX_OPENINGS = 40
"""Boxes tried until the events alone bound the lines."""

MAX_OPEN_VALUES = 1 << 48
"""Events that bound the lines' values no better than this do not bound them."""

ROUNDS = 4
"""How often what few lines are left is used to tell more events' windows."""


class _Level:
    """A thread's allowed spans in levelled host time.

    A host stamp is the instant rounded down, and so is a levelled one: an instant lies less than ``thin`` units before
    and ``thick`` units after its levelled stamp, where the clocks are not ``rough``.
    """

    def __init__(self, thread: Thread, scale: Scale, rough: int) -> None:
        self.scale = scale
        self.thread = thread.at_scale(scale)
        self.lo, self.hi = self.thread.lo, self.thread.hi
        self.thin, self.thick = edges_of(scale, rough)
        gaps = self.thread.gap_hi - self.thread.gap_lo
        self.gap = int(np.median(gaps)) if len(gaps) else 0


class _Where(NamedTuple):
    """Where lines are sought for a hole.

    ``stretches``: what to try, (first, last, centre); ``slopes``: the least and the greatest. ``begin``, ``end``:
    levelled host times between which the hole's events lie; ``near``: lines that theirs are close to.
    """

    stretches: Iterable[tuple[int, int, int]]
    slopes: tuple[Fraction, Fraction]
    per_trial: int
    begin: int | None = None
    end: int | None = None
    near: Lines | None = None


def find_pieces(
    guest: I64,
    thread: Thread,
    scale: Scale,
    error: Fraction = RATE_ERROR,
    *,
    constant: bool = True,
    rough: int = 0,
    known: Sequence[Lines] = (),
    late: Sequence[tuple[int, int]] = (),
    looks: int | None = None,
) -> list[Piece]:
    """Find the pieces of ``guest`` i64[n] (a guest CPU's stamps in recorded order) in ``thread``'s windows, in order.

    ``scale`` is what is known of the guest's rate, true to ``error``. ``constant``: all pieces have one rate, though it
    is not known; else it may change at any time, without a jump. ``rough``: see ``Relation``. ``known``: lines that
    other CPUs of the guest are on, which are tried first, and alone where nothing else is known. ``late``: (first,
    last) events of which some may be stamped late (see ``Track``). ``looks``: how many stretches to try where nothing
    was found yet (None: all). At most MAX_PIECES are found; none where no line holds enough events to be told from
    chance.
    """
    search = _Search(guest, _Level(thread, scale, rough), (-error, error), known, constant=constant)
    search.looks = looks
    found: list[Piece] = []
    searched: set[tuple[int, int]] = set()
    while len(found) < MAX_PIECES:
        holes = _holes(found, len(guest), MIN_BETWEEN if known else MIN_PIECE)
        hole = next((h for h in holes if h[:2] not in searched), None)
        if hole is None:
            break
        searched.add(hole[:2])
        found = _in_order([*found, *search.hole(*hole)])
    found = search.settled(_joined(found), late)
    return sharing_rates(found) if constant else found


def _holes(found: list[Piece], count: int, least: int) -> list[tuple[int, int, Piece | None, Piece | None]]:
    """What the pieces leave: (first, last, the piece before, the piece after); ``least`` events at either end."""
    out = []
    for left, right in zip([None, *found], [*found, None], strict=True):
        begin, end = left.last if left else 0, right.first if right else count
        if end - begin >= (MIN_BETWEEN if left and right else least):
            out.append((begin, end, left, right))
    return out


def _in_order(found: list[Piece]) -> list[Piece]:
    """The pieces in order, without those that lie within another's reach."""
    out: list[Piece] = []
    for piece in sorted(found, key=lambda p: (p.first, -p.last)):
        if not out or piece.last > out[-1].last:
            out.append(piece)
    return out


def _joined(found: list[Piece]) -> list[Piece]:
    """The pieces; neighbours with one line, between which no other was found, as one."""
    out = found[:1]
    for piece in found[1:]:
        if piece.polygon is out[-1].polygon:
            out[-1] = replace(out[-1], last=piece.last, sure_last=piece.sure_last)
        else:
            out.append(piece)
    return out


class _Search:
    """The search for pieces in one thread's windows, all in one level."""

    def __init__(
        self, guest: I64, level: _Level, slopes: tuple[Fraction, Fraction], known: Sequence[Lines], *, constant: bool
    ) -> None:
        self.guest, self.level = guest, level
        self.slopes = slopes
        self.known = known
        self.constant = constant
        self.looks: int | None = None

    def hole(self, begin: int, end: int, left: Piece | None, right: Piece | None) -> list[Piece]:
        """The pieces that were found where events begin..end leave a hole between two others."""
        given_up = 0
        for where in self._wheres(begin, end, left, right):
            for first, last, centre in where.stretches:
                try:
                    grown = self._stretch(first, last, centre, where)
                except TooManyError:
                    given_up += 1
                    if given_up == MAX_GIVEN_UP:
                        return []
                    continue
                if grown is not None:
                    if self.constant and grown.is_unique:
                        low, high = grown.polygon.slopes
                        self.slopes = max(self.slopes[0], low), min(self.slopes[1], high)
                    return self._seen(grown)
        return []

    def _wheres(self, begin: int, end: int, left: Piece | None, right: Piece | None) -> Iterable[_Where]:
        """Where to search the hole, the likelier first."""
        least = MIN_BETWEEN if self.known or (left and right) else MIN_PIECE
        for lines in self.known:
            slopes = self.slopes
            if self.constant:
                low, high = lines.polygon.slopes
                slopes = max(slopes[0], low), min(slopes[1], high)
            if slopes[0] <= slopes[1]:
                yield _Where(_stretches(begin, end, least), slopes, EVIDENCE_BETWEEN, near=lines)
        if not self.constant:
            # a rate that changes does not make a clock jump
            sizes = [s for s in (*SEED_EVENTS[1:], MIN_PIECE) if s <= end - begin]
            if left is not None:
                around = [(begin, begin + s, begin) for s in sizes]
                yield _Where(around, self.slopes, EVIDENCE_BETWEEN, near=left.lines)
            if right is not None:
                around = [(end - s, end, end - 1) for s in sizes]
                yield _Where(around, self.slopes, EVIDENCE_BETWEEN, near=right.lines)
        if self.known and left is None and right is None:
            return
        stretches = _stretches(begin, end, least)
        yield _Where(
            stretches if left or right else islice(stretches, self.looks),
            self.slopes,
            EVIDENCE_BETWEEN if left and right else EVIDENCE_BESIDE if left or right else EVIDENCE_PER_TRIAL_BIT,
            self._host(left, left.sure_last - 1) if left else None,
            self._host(right, right.sure_first) if right else None,
        )

    def _host(self, piece: Piece, position: int) -> int:
        """The levelled host time of an event by the middle of a piece's lines."""
        stamp = int(self.guest[position])
        lo, hi = piece.lines.ahead(stamp)
        return stamp - (lo + hi) // 2

    def _within(self, first: int, last: int, centre: int, where: _Where) -> Interval:
        """The offsets to search at event ``centre``: it is where the thread was seen."""
        middle = int(self.guest[centre])
        windows = self.level.thread.windows
        low, high = middle - windows.last, middle - windows.first
        if where.near is not None:
            near = where.near.ahead(middle)
            return max(low, near[0] - self.level.gap), min(high, near[1] + self.level.gap)
        events = self.guest[first:last]
        least, most = int(events.min()), int(events.max())
        slop = int(max(-where.slopes[0], where.slopes[1]) * (most - least)) + self.level.gap + 1
        begin, end = where.begin, where.end
        # stamps that step among them need several lines: each keeps some of them between
        step = begin is not None and end is not None and most - end > least - begin
        if end is not None:
            low = max(low, (least if step else most) - end - slop)
        if begin is not None:
            high = min(high, (most if step else least) - begin + slop)
        return low, high

    def _stretch(self, first: int, last: int, centre: int, where: _Where) -> Piece | None:
        """The piece that events first..last are of, where their lines can be told."""
        level = self.level
        within = self._within(first, last, centre, where)
        if within[1] < within[0]:
            return None
        middle = int(self.guest[centre])
        cells = search_cells(
            self.guest[first:last],
            middle,
            (level.thread.gap_lo, level.thread.gap_hi),
            within,
            where.slopes,
            max(level.gap // 8, 1),
            level.thin + level.thick + 1,
        )
        seeds = []
        for cluster in self._clusters(cells, middle, first, last):
            lines = self._refined(_boxed(cluster, middle), first, last)
            if lines is not None:
                seeds.append((self._evidence(lines, first, last), lines))
        seeds.sort(key=lambda s: -s[0])
        grown = self._all_grown(seeds[:FIRST_SEEDS], first, last)
        if not grown:
            return None
        bits, best = max(grown, key=lambda g: g[0])
        lo, hi = best.lines.ahead(middle)
        width = hi - lo + 1
        span = int(self.guest[best.first : best.last].max() - self.guest[best.first : best.last].min())
        # a turn that moves no event by a gap is no other line to be tried
        turns = int((where.slopes[1] - where.slopes[0]) * span) // max(width, level.gap) + 1
        needed = max(EVIDENCE_FOR_CLAIM, where.per_trial * ((within[1] - within[0] + 1) * turns // width).bit_length())
        if bits < needed:
            return None
        grown += self._all_grown(seeds[FIRST_SEEDS:MAX_SEEDS], first, last)
        rivals: list[Piece] = []
        for other_bits, other in grown:
            if other_bits * RIVAL_SHARE <= bits or not _is_of_same(other, best):
                continue
            others = other.polygon.moved(best.origin - other.origin)
            if best.polygon.holds(others):
                continue
            both = None if best.polygon.meets(others) is None else self._about(best, others)
            if both is not None:
                best = both
            else:
                rivals.append(other)
        many = len(seeds) > MAX_SEEDS and seeds[MAX_SEEDS][0] * RIVAL_SHARE > bits
        return replace(best, needed=needed, rivals=() if many else tuple(rivals), is_unique=not rivals and not many)

    def _about(self, piece: Piece, lines: Polygon) -> Piece | None:
        """The piece with all lines about its own and ``lines``, which meet them."""
        values = [value for polygon in (piece.polygon, lines) for value in polygon.values(0)]
        slopes = [slope for polygon in (piece.polygon, lines) for slope in polygon.slopes]
        box = Polygon.box(0, (min(values), max(values)), (min(slopes), max(slopes)))
        return self._opened(Lines(piece.origin, box), piece.first, piece.last)

    def _clusters(self, cells: list[Cell], centre: int, first: int, last: int) -> list[Cluster]:
        """What to look at: all that the cells hang together in, or where that is too much what fits windows best."""
        if sum(len(cell.offsets) for cell in cells) > MAX_RATED:
            raise TooManyError
        if sum(len(cell.offsets) for cell in cells) <= MAX_INTERVALS:
            found = clusters(cells)
            if len(found) <= MAX_CLUSTERS:
                return found
        windows = self.level.thread.windows
        events = self.guest[first:last]
        rated: list[tuple[int, Cluster]] = []
        for cell in cells:
            placed = events - np.rint((events - centre) * float(cell.slope)).astype(np.int64)
            middles = (cell.offsets.lo + cell.offsets.hi) // 2
            host = placed[None, :] - middles[:, None]
            at = np.searchsorted(windows.lo, host, side="right") - 1
            hits = (windows.is_run[at] & (host <= windows.hi[at])).sum(axis=1)
            best = np.argsort(-hits)[:FIRST_SEEDS]
            slopes = cell.slope - 2 * cell.half, cell.slope + 2 * cell.half
            rated += [
                (int(hits[i]), Cluster((int(cell.offsets.lo[i]), int(cell.offsets.hi[i])), slopes))
                for i in best.tolist()
            ]
        rated.sort(key=lambda r: -r[0])
        return [cluster for _, cluster in rated[:MAX_SEEDS]]

    def _all_grown(self, seeds: list[tuple[int, Lines]], first: int, last: int) -> list[tuple[int, Piece]]:
        """The pieces that the seeds grow to, with their evidence."""
        pieces = [self._grown(lines, first, last) for _, lines in seeds]
        return [(self._evidence(p.lines, p.first, p.last), p) for p in pieces if p is not None]

    def _evidence(self, lines: Lines, first: int, last: int) -> int:
        """Bits of evidence that events first..last are on a line, by its fit into run windows."""
        line = in_use(lines, self.level.scale)
        return check(self.guest[first:last], line.offset, self.level.thread.at_scale(line.scale)).evidence

    def _grown(self, seed: Lines, first: int, last: int) -> Piece | None:
        """Extend the lines that hold events first..last as far as one line holds; None where that is no piece."""
        guest = self.guest
        lines = seed
        step = last - first
        while step and (first > 0 or last < len(guest)):
            new_first, new_last = max(0, first - step), min(len(guest), last + step)
            count, _ = self._spans(guest[new_first:new_last], lines)
            bad = np.flatnonzero(count == 0) + new_first
            new_first = int(bad[bad < first].max(initial=new_first - 1)) + 1
            new_last = int(bad[bad >= last].min(initial=new_last))
            if (new_first, new_last) == (first, last):
                if not len(bad):
                    break
                step //= 4
                continue
            wider = self._refined(lines, new_first, new_last)
            if wider is None:
                # the two sides may each hold alone
                ahead = self._refined(lines, first, new_last) if new_last > last else None
                back = self._refined(lines, new_first, last) if new_first < first and ahead is None else None
                if ahead is None and back is None:
                    step //= 4
                    continue
                wider = ahead or back
                new_first, new_last = (first, new_last) if ahead else (new_first, last)
            assert wider is not None
            lines, first, last, step = wider, new_first, new_last, max(2 * step, last - first)
        return self._opened(lines, first, last)

    def _opened(self, lines: Lines, first: int, last: int) -> Piece | None:
        """The piece with all lines that hold its events, not only those near its seed.

        The lines are sought in wider and wider boxes, until it is the events that bound them, or what is known of their
        slopes; None where there is no end to them.
        """
        events = self.guest[first:last]
        least, most = self.slopes
        for _ in range(MAX_OPENINGS):
            lo, hi = lines.polygon.slopes
            low, high = lines.polygon.values(0)
            if high - low > MAX_OPEN_VALUES:
                return None
            reach = max(hi - lo, Fraction(1, 1 << FRAC_BITS))
            slopes = max(lo - reach, least), min(hi + reach, most)
            if slopes[1] < slopes[0]:
                return None
            box = Polygon.box(0, (2 * low - high - 2, 2 * high - low + 2), slopes)
            polygon = self._clipped(Lines(lines.origin, box), events)
            if polygon is None:
                return None
            ends = [edge for edge in box.edges if edge[0] or self._is_open(edge)]
            if not set(polygon.edges) & set(ends):
                return Piece(first, last, first, last, self.level.scale, lines.origin, polygon)
            lines = Lines(lines.origin, polygon)
        return None

    def _is_open(self, edge: HalfPlane) -> bool:
        """Whether slopes beyond a box's edge are possible as well."""
        _, q, r = edge
        return self.slopes[0] < Fraction(r, q) < self.slopes[1]

    def _refined(self, lines: Lines, first: int, last: int) -> Lines | None:
        """Those of the lines that hold events first..last; the fewer they are, the more events' windows they tell."""
        events = self.guest[first:last]
        for _ in range(ROUNDS):
            polygon = self._clipped(lines, events)
            if polygon is None:
                return None
            (lo, hi), (new_lo, new_hi) = lines.polygon.slopes, polygon.slopes
            lines = Lines(lines.origin, polygon)
            if not new_hi - new_lo < (hi - lo) / 2:
                break
        return lines

    def _spans(self, events: I64, lines: Lines) -> tuple[I64, I64]:
        """For each event how many spans the lines can put it in, and the first of them."""
        level = self.level
        lo, hi = bounds(by_guest(lines.polygon), events - lines.origin)
        first = np.searchsorted(level.hi, events - hi - level.thick, side="left")
        last = np.searchsorted(level.lo, events + 1 - lo + level.thin, side="right")
        return last - first, first

    def _clipped(self, lines: Lines, events: I64) -> Polygon | None:
        """The lines that put the events that lie in one span alone there; None: no such line, or one lies in none."""
        level = self.level
        count, span = self._spans(events, lines)
        if (count == 0).any():
            return None
        sure = count == 1
        events, span = events[sure], span[sure]
        begin, end = level.lo[span], level.hi[span]
        over, under = begin > -FOREVER, end < FOREVER
        return _between(
            lines.polygon,
            (begin[over] - level.thin - lines.origin, events[over] + 1 - begin[over] + level.thin),
            (end[under] + level.thick - lines.origin, events[under] - end[under] - level.thick),
        )

    def _seen(self, piece: Piece) -> list[Piece]:
        """The piece without the runs of events that it puts where the host saw nothing of the thread."""
        stamps = self.guest[piece.first : piece.last]
        lo, hi = bounds(by_guest(piece.polygon), stamps - piece.origin)
        windows = self.level.thread.windows
        unseen = (stamps - lo < windows.first) | (stamps - hi > windows.last)
        edges = np.flatnonzero(np.diff(np.r_[False, unseen, False])).reshape(-1, 2)
        edges = edges[edges[:, 1] - edges[:, 0] >= MIN_BETWEEN] + piece.first
        begins, ends = [piece.first, *edges[:, 1].tolist()], [*edges[:, 0].tolist(), piece.last]
        return [
            replace(piece, first=a, last=b, sure_first=a, sure_last=b)
            for a, b in zip(begins, ends, strict=True)
            if b - a >= MIN_BETWEEN
        ]

    def settled(self, found: list[Piece], late: Sequence[tuple[int, int]]) -> list[Piece]:
        """Let each piece stand on the events that no neighbour reaches: those in an overlap may be either's.

        Nor is an event surely of a piece beside another if from there to its neighbour the host saw no window of any,
        or if it may be stamped late.
        """
        edges = [(0, 0)]
        for left, right in pairwise(found):
            edge = right.first, left.last
            for begin, end in late:
                # the clock stepped back among these, and the step is this change
                if left.first < begin < left.last <= end + MIN_BETWEEN and end < right.last:
                    edge = min(edge[0], begin), max(edge[1], end)
            edges.append(edge)
        edges.append((len(self.guest), len(self.guest)))
        out = []
        for index, piece in enumerate(found):
            first, last = max(piece.first, edges[index][1]), min(piece.last, edges[index + 1][0])
            if last - first < 2:
                continue
            settled = piece
            if first != piece.first or last != piece.last:
                opened = self._opened(piece.lines, first, last)
                if opened is None:
                    continue
                enough = self._evidence(opened.lines, first, last) >= piece.needed
                settled = replace(
                    piece,
                    origin=opened.origin,
                    polygon=opened.polygon,
                    is_unique=piece.is_unique and enough,
                    rivals=piece.rivals if enough else (),
                )
            seen = first + np.flatnonzero(self._in_windows(settled.lines, first, last))
            if len(seen):
                first = int(seen[0]) if index else first
                last = int(seen[-1]) + 1 if index + 1 < len(found) else last
            out.append(replace(settled, sure_first=first, sure_last=last))
        return out

    def _in_windows(self, lines: Lines, first: int, last: int) -> Bools:
        """Which of events first..last the middle line puts into run windows."""
        line = in_use(lines, self.level.scale)
        windows = self.level.thread.at_scale(line.scale).windows
        host = self.guest[first:last] - line.offset
        at = np.searchsorted(windows.lo, host, side="right") - 1
        inside: Bools = windows.is_run[at] & (host <= windows.hi[at])
        return inside


def _stretches(begin: int, end: int, least: int) -> Iterable[tuple[int, int, int]]:
    """Stretches (first, last, centre) to search in events begin..end: the long ones first, here and there."""
    tried: set[tuple[int, int]] = set()
    for size in (*SEED_EVENTS, least):
        if size * MAX_SHARE < end - begin:
            break
        for place in SEED_PLACES:
            first = begin + max(0, (end - begin - size) * place // 15)
            last = min(first + size, end)
            if last - first >= least and (first, last) not in tried:
                tried.add((first, last))
                yield first, last, (first + last) // 2


def _boxed(cluster: Cluster, centre: int) -> Lines:
    """All lines of a cluster that was found about guest stamp ``centre``, and some more."""
    lo, hi = cluster.offsets
    # value = offset + s * (guest - centre) is value = offset' + s / (1 - s) * (host - centre')
    low, high = (s / (1 - s) for s in cluster.slopes)
    room = int(max(abs(low), abs(high)) * (hi - lo)) + 2
    return Lines(centre - (lo + hi) // 2, Polygon.box(0, (lo - room, hi + room), (low, high)))


def _is_of_same(piece: Piece, best: Piece) -> bool:
    """Whether ``piece`` is of most of the events of ``best``."""
    common = min(piece.last, best.last) - max(piece.first, best.first)
    return 2 * common > best.last - best.first


def _between(polygon: Polygon, tops: tuple[I64, I64], bottoms: tuple[I64, I64]) -> Polygon | None:
    """The lines of the polygon that pass above no point (x, y) of ``tops`` and below none of ``bottoms``, or None.

    The point that cuts deepest comes first; those that no line is near any more are left out.
    """
    x, y = np.r_[tops[0], bottoms[0]], np.r_[tops[1], bottoms[1]]
    is_top = np.arange(len(x)) < len(tops[0])
    while len(x):
        lo, hi = bounds(polygon.corners, x)
        depth = np.where(is_top, hi - y, y - lo)
        keep = depth > 0
        x, y, is_top, depth = x[keep], y[keep], is_top[keep], depth[keep]
        if not len(x):
            break
        first = int(depth.argmax())
        # within what arithmetic may be off, nothing is deepest
        which = [first] if depth[first] > 2 * SLACK + 2 else range(len(x))
        cut = polygon.clip((below if is_top[i] else above)(int(x[i]), int(y[i])) for i in which)
        if cut is None or len(which) == len(x):
            return cut
        polygon = cut
        x, y, is_top = (np.delete(column, first) for column in (x, y, is_top))
    return polygon
