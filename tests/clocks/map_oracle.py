"""What a guest CPU's clock map answers, once more, slowly: one stamp at a time, in whole integers.

Nothing is shared with what it tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clocks.oracle import inverse

PERIOD = 1 << 64
FAR = 1 << 61


def signed(value: int) -> int:
    """The number nearest to 0 that is the same modulo 2**64."""
    value %= PERIOD
    return value - PERIOD if value >= PERIOD // 2 else value


@dataclass
class Part:
    """An epoch: guest = scaled host + an offset within [lo, hi]; its seen guest stamps; host spans it may hold in."""

    lo: int
    hi: int
    used: int
    seen: tuple[int, int]
    spans: list[tuple[int | None, int | None]] = field(default_factory=lambda: [(None, None)])
    ratio: int = 1
    frac: int = 0
    near: int = 0

    def host(self, guest: int) -> tuple[int, int]:
        """The earliest and the latest host stamp of a guest stamp."""
        if self.ratio == 1 << self.frac:
            return (guest - self.hi) % PERIOD, (guest - self.lo) % PERIOD
        below, above = self.hi - self.used, self.used - self.lo
        return inverse((guest - self.used) % PERIOD, self.near, self.ratio, self.frac, below, above)

    def guest(self, host: int) -> tuple[int, int]:
        """The least and the greatest guest stamp of a host stamp."""
        scaled = (host % PERIOD) * self.ratio >> self.frac
        return (scaled + self.lo) % PERIOD, (scaled + self.hi) % PERIOD


@dataclass
class Answer:
    """What is expected: a verdict, and the bound (None: there is none)."""

    verdict: str
    bound: tuple[int, int] | None = None
    epochs: tuple[int, ...] = ()


def to_host(
    parts: list[Part], guest: int, before: int | None, after: int | None, rounding: int, *, extrapolate: bool
) -> Answer:
    """Of one guest stamp. ``before``, ``after``: up to which host stamps answers beyond the recording are given."""
    found: list[tuple[int, int, int]] = []
    for index, part in enumerate(parts):
        away = signed(guest - part.seen[0])
        if abs(away) > FAR:
            continue
        early, late = part.host(guest)
        early, late = early - rounding, late + rounding
        met = []
        for begin, end in part.spans:
            if begin is not None and signed(late - begin) < 0:
                continue
            if end is not None and signed(early - end) > 0:
                continue
            met.append((begin, end))
        if not met or (index == 0 and away < 0) or (index == len(parts) - 1 and signed(guest - part.seen[1]) > 0):
            continue
        if met[0][0] is not None and signed(met[0][0] - early) > 0:
            early = met[0][0]
        if met[-1][1] is not None and signed(met[-1][1] - late) < 0:
            late = met[-1][1]
        found.append((index, early, late))
    if found:
        return _hull(found, "inside")
    beyond = []
    refused = False
    lower, upper = signed(guest - parts[0].seen[0]), signed(guest - parts[-1].seen[1])
    if -FAR <= lower < 0:
        early, late = parts[0].host(guest)
        if before is not None and not extrapolate and signed(early - rounding - before) < 0:
            refused = True
        else:
            beyond.append((0, early - rounding, late + rounding))
    if 0 < upper <= FAR and not (len(parts) == 1 and -FAR <= lower < 0):
        early, late = parts[-1].host(guest)
        if after is not None and not extrapolate and signed(late + rounding - after) > 0:
            refused = True
        else:
            beyond.append((len(parts) - 1, early - rounding, late + rounding))
    if refused or (not beyond and len(parts) == 1):
        return Answer("refused")
    return _hull(beyond, "outside") if beyond else Answer("skipped")


def _hull(found: list[tuple[int, int, int]], verdict: str) -> Answer:
    base = found[0][1]
    lows = [signed(early - base) for _, early, _ in found]
    highs = [signed(late - base) for _, _, late in found]
    if max(lows) > min(highs):
        verdict = "ambiguous"
    bound = (base + min(lows)) % PERIOD, (base + max(highs)) % PERIOD
    return Answer(verdict, bound, tuple(index for index, _, _ in found))
