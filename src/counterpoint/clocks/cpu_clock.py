"""One guest CPU's clock map with where it is known to hold: converts stamps and says how far each may be relied on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from counterpoint.clocks.answers import Candidates, Reasons, Status
from counterpoint.clocks.counter import I64, MASK, U64, Bools, add, relative
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.spans import Spans

FAR = 1 << 61
"""Stamps this far from an epoch's events are none of its own: decades, for any counter."""

Span = tuple[U64, U64, U64]
"""Closed intervals u64[n] with a point in each: (earliest, stamp, latest)."""


ALWAYS = Spans(((None, None),))


@dataclass(frozen=True, slots=True)
class Reach:
    """Where an epoch is known to hold.

    ``seen``: the guest stamps of the first and the last event that surely belong to it and that the host saw run.
    ``within``: spans of host time; of the guest's instants outside of them it holds for none. ``began_at``: the host
    stamp at which KVM itself said that it begins (None: it did not).
    """

    seen: tuple[int, int]
    within: Spans = ALWAYS
    began_at: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How far beyond the recording answers may be given on one side: up to host stamp ``until`` (None: anywhere).

    ``reason`` says what speaks against answers beyond that ("" where nothing does); ``is_firm``: nothing is beyond.
    """

    until: int | None = None
    reason: str = ""
    is_firm: bool = False


@dataclass(frozen=True, slots=True)
class Through:
    """How a nested guest's thread lay on the CPUs of its host, which is a guest itself (see proof.nesting).

    ``clock``: what the nested guest's map leads to: the "shared" clock of that host's CPUs, the "own" clock of the CPU
    that it was on, or a "reference" clock, which is that host's host's plus ``constant``. ``stays``: of each CPU the
    spans, in that clock, in which the thread may have run the guest there.
    """

    clock: str = "shared"
    constant: int = 0
    stays: tuple[tuple[int, Spans], ...] = ()

    def may_hold(self, cpu: int, earliest: U64, latest: U64) -> Bools:
        """Whether the thread may have run the guest on ``cpu`` within each of [earliest, latest] u64[n]."""
        spans = dict(self.stays).get(cpu)
        return np.zeros(len(earliest), np.bool_) if spans is None else spans.clip(earliest, latest)[0]


@dataclass(frozen=True, slots=True)
class CpuClock:
    """Guest CPU ``guest_cpu``'s clock against its parent's, which is called the host here.

    ``epochs`` in the order of time, and of each its ``reaches``; ``before`` and ``after``: what is known beyond the
    first and the last event. ``rounding``: by how many units the difference of two stamps may vary within an epoch,
    since both clocks round down. ``late``: guest stamps (from, to) between which the guest's own recording, not its
    counter, is late. ``refusal``: why nothing can be said at all; there are no epochs then.
    """

    guest_cpu: int
    epochs: tuple[Epoch, ...] = ()
    reaches: tuple[Reach, ...] = ()
    before: End = End()
    after: End = End()
    rounding: int = 0
    late: tuple[tuple[int, int], ...] = ()
    through: Through | None = None
    refusal: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be used (ValueError)."""
        if len(self.epochs) != len(self.reaches) or bool(self.epochs) == bool(self.refusal):
            raise ValueError(f"{len(self.epochs)} epochs, {len(self.reaches)} reaches, refusal {self.refusal!r}")
        if not all(epoch.is_bounded for epoch in self.epochs):
            raise ValueError("an epoch is not bounded")

    # -- guest to host

    def to_host(self, guest: Span, *, extrapolate: bool, reasons: Reasons) -> Candidates:
        """The host stamps that guest stamps within ``guest`` may be, one candidate at least for each.

        ``extrapolate``: answer beyond the recording even where it shows that the clock was set.
        """
        count = len(guest[0])
        if self.refusal:
            return self._without(np.arange(count), Status.REFUSED, self.refusal, reasons)
        parts = [self._in_epoch(index, guest) for index in range(len(self.epochs))]
        left = _unanswered(parts, count)
        lo, _, hi = part_of(guest, left)
        is_before = _between(lo, self.reaches[0].seen[0], -FAR, -1)
        is_after = _between(hi, self.reaches[-1].seen[1], 1, FAR)
        if len(self.epochs) == 1:
            is_after &= ~is_before
        for beyond, side, epoch in ((is_before, -1, self.epochs[0]), (is_after, 1, self.epochs[-1])):
            rows = left[beyond]
            span = self._bounds(epoch, part_of(guest, rows))
            parts += self._outside(rows, span, span, side, extrapolate=extrapolate, reasons=reasons)
        none = left[~(is_before | is_after)]
        if len(self.epochs) > 1:
            text = f"guest CPU {self.guest_cpu}'s clock never showed it in the recording: it was set over it"
            parts.append(self._without(none, Status.SKIPPED, text, reasons))
        else:
            parts.append(self._without(none, Status.REFUSED, self._too_far, reasons))
        return Candidates.join(parts)

    def _in_epoch(self, index: int, guest: Span) -> Candidates:
        """The instants of one epoch, between its own limits."""
        epoch, reach = self.epochs[index], self.reaches[index]
        lo, _, hi = guest
        rows = np.flatnonzero(_between(lo, reach.seen[0], -FAR, FAR) & _between(hi, reach.seen[0], -FAR, FAR))
        lo, _, hi = part = part_of(guest, rows)
        early, at, late = self._bounds(epoch, part)
        keep, early, late = reach.within.clip(early, late)
        sure = np.ones(len(rows), np.bool_)
        # the first epoch has no beginning and the last no end: there their own events say where the recording does
        if index == 0:
            keep &= relative(hi, reach.seen[0]) >= 0
            sure &= relative(lo, reach.seen[0]) >= 0
        if index == len(self.epochs) - 1:
            keep &= relative(lo, reach.seen[1]) <= 0
            sure &= relative(hi, reach.seen[1]) <= 0
        span = _ordered(part_of((early, at, late), np.flatnonzero(keep)))
        found = Candidates.of(rows[keep], span, Status.INSIDE, epoch=index, cpu=self.guest_cpu)
        # an interval that reaches beyond what was seen
        return replace(found, status=np.where(sure[keep], found.status, np.int8(Status.OUTSIDE)))

    def _bounds(self, epoch: Epoch, guest: Span) -> Span:
        """Host stamps of guest stamps by one epoch."""
        lo, at, hi = guest
        early, late = epoch.bound(lo)[0], epoch.bound(hi)[1]
        return add(early, -self.rounding), epoch.to_host(at), add(late, self.rounding)

    # -- host to guest

    def to_guest(self, host: Span, *, extrapolate: bool, reasons: Reasons) -> Candidates:
        """The guest stamps that host stamps within ``host`` may be, one candidate at least for each."""
        lo, _, hi = host
        count = len(lo)
        if self.refusal:
            return self._without(np.arange(count), Status.REFUSED, self.refusal, reasons)
        first, last = self._edge(0, last=False)[1], self._edge(-1, last=True)[0]
        inside = (relative(lo, first) >= 0) & (relative(hi, last) <= 0)
        parts = []
        for index, epoch in enumerate(self.epochs):
            begin, end = self._holds(index)
            held = inside.copy()
            if begin is not None:
                held &= relative(hi, begin) >= 0
            if end is not None:
                held &= relative(lo, end) <= 0
            rows = np.flatnonzero(held)
            part = tuple(_clipped(stamps, begin, end) for stamps in part_of(host, rows))
            span = self._guest_bounds(epoch, _ordered(part))
            parts.append(Candidates.of(rows, span, Status.INSIDE, epoch=index, cpu=self.guest_cpu))
        left = _unanswered(parts, count)
        is_before = _between(lo[left], first, -FAR, -1)
        is_after = _between(hi[left], last, 1, FAR) & ~is_before
        for beyond, side, epoch in ((is_before, -1, self.epochs[0]), (is_after, 1, self.epochs[-1])):
            rows = left[beyond]
            part = part_of(host, rows)
            span = self._guest_bounds(epoch, part)
            parts += self._outside(rows, span, part, side, extrapolate=extrapolate, reasons=reasons)
        parts.append(self._without(left[~(is_before | is_after)], Status.REFUSED, self._too_far, reasons))
        return Candidates.join(parts)

    def _guest_bounds(self, epoch: Epoch, host: Span) -> Span:
        """Guest stamps of host stamps by one epoch: a clock runs forward, so the ends bound all between them."""
        lo, at, hi = host
        least, greatest = epoch.bound_guest(lo)[0], epoch.bound_guest(hi)[1]
        return add(least, -self.rounding), epoch.to_guest(at), add(greatest, self.rounding)

    def _holds(self, index: int) -> tuple[int | None, int | None]:
        """Between which host stamps an epoch may hold: from one neighbour's last sure event to the other's first."""
        begin = end = None
        if index > 0:
            begin = self.reaches[index].began_at
            begin = self._edge(index - 1, last=True)[0] if begin is None else begin
        if index + 1 < len(self.epochs):
            end = self.reaches[index + 1].began_at
            end = self._edge(index + 1, last=False)[1] if end is None else (end - 1) & MASK
        return begin, end

    def _edge(self, index: int, *, last: bool) -> tuple[int, int]:
        """The earliest and the latest host stamp of the first or the last event that the host saw in an epoch."""
        stamp = np.array([self.reaches[index].seen[1 if last else 0]], np.uint64)
        early, _, late = self._bounds(self.epochs[index], (stamp, stamp, stamp))
        return int(early[0]), int(late[0])

    # -- beyond the recording

    def _outside(
        self, rows: I64, span: Span, host: Span, side: int, *, extrapolate: bool, reasons: Reasons
    ) -> list[Candidates]:
        """Answers ``span`` at host stamps ``host`` before (``side`` -1) or after (1), as far as nothing is against."""
        end = self.before if side < 0 else self.after
        allowed = np.ones(len(rows), np.bool_)
        if end.until is not None and (end.is_firm or not extrapolate):
            allowed = relative(host[0], end.until) >= 0 if side < 0 else relative(host[2], end.until) <= 0
        epoch = 0 if side < 0 else len(self.epochs) - 1
        answered = part_of(span, np.flatnonzero(allowed))
        return [
            Candidates.of(rows[allowed], answered, Status.OUTSIDE, epoch=epoch, cpu=self.guest_cpu),
            self._without(rows[~allowed], Status.REFUSED, end.reason, reasons),
        ]

    @property
    def _too_far(self) -> str:
        return f"it is too far from guest CPU {self.guest_cpu}'s recorded stamps"

    def _without(self, rows: I64, status: Status, text: str, reasons: Reasons) -> Candidates:
        number = reasons.number(text) if len(rows) else -1
        return Candidates.without(rows, status, cpu=self.guest_cpu, reason=number)


def _unanswered(parts: list[Candidates], count: int) -> I64:
    """The stamps that no part has an instant of."""
    rows = np.concatenate([part.row for part in parts])
    return np.flatnonzero(np.bincount(rows, minlength=count) == 0)


def part_of(span: Span, rows: I64) -> Span:
    """The intervals at ``rows`` i64."""
    return span[0][rows], span[1][rows], span[2][rows]


def _between(stamps: U64, base: int, low: int, high: int) -> Bools:
    """Which stamps lie from ``low`` to ``high`` after ``base``."""
    distance = relative(stamps, base)
    return (distance >= low) & (distance <= high)


def _clipped(stamps: U64, begin: int | None, end: int | None) -> U64:
    if begin is not None:
        stamps = np.where(relative(stamps, begin) < 0, np.uint64(begin), stamps)
    if end is not None:
        stamps = np.where(relative(stamps, end) > 0, np.uint64(end), stamps)
    return stamps


def _ordered(span: tuple[U64, ...]) -> Span:
    """A span cut at both ends, with its point between them."""
    early, at, late = span
    at = np.where((at - early).view(np.int64) < 0, early, at)
    return early, np.where((late - at).view(np.int64) < 0, late, at), late
