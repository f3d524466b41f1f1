"""What an anchor is, and what anchors leave of an interval that windows proved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from counterpoint.proof.feasible import Interval


class Side(StrEnum):
    """Which end of the offset's interval an anchor bounds."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A bound on ``offset = guest - host`` in trace-clock units, not below (LOW) or not above (HIGH) ``bound``.

    ``guest_row``, ``host_row`` are the events it rests on (None: none on that side), with their stamps; ``assumption``
    says in words what must hold for it.
    """

    kind: str
    side: Side
    bound: int
    assumption: str
    guest_row: int | None = None
    guest_stamp: int | None = None
    host_row: int | None = None
    host_stamp: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What one kind of anchor says of an epoch: its best anchor a side, and how many pairs it rests on.

    ``discarded`` pairs belong to other timers. ``guest_whole``: index minus ticks of the guest's counter (see
    ``clocks.arch_counter.Lattice``), as a closed interval, where the kind bounds it. ``at_odds``: its own pairs
    contradict each other. ``family``: kinds of one family rest on the same events: what belies one belies all.
    """

    kind: str
    low: Anchor | None
    high: Anchor | None
    pairs: int
    discarded: int = 0
    guest_whole: Interval | None = None
    at_odds: bool = False
    family: str = ""

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """Its anchors, the low one first."""
        return tuple(anchor for anchor in (self.low, self.high) if anchor is not None)


@dataclass(frozen=True, slots=True)
class Tightened:
    """The offsets that windows and anchors leave.

    ``interval`` is a part of ``windows``, never more. ``low`` and ``high`` are the anchors at its ends, None where the
    windows' own witness stands. ``contradictions`` are the anchors of kinds that the windows, or each other, belie:
    none of such a kind is used. ``used`` are the kinds that nothing belies.
    """

    windows: Interval
    interval: Interval
    low: Anchor | None
    high: Anchor | None
    found: tuple[Found, ...]
    contradictions: tuple[Anchor, ...]
    used: tuple[Found, ...] = ()

    @property
    def factor(self) -> float:
        """How many times narrower than by windows alone; for people, not for proofs."""
        return (self.windows[1] - self.windows[0] + 1) / (self.interval[1] - self.interval[0] + 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each anchor that contradicts the windows."""
        way = {Side.LOW: "below", Side.HIGH: "above"}
        return tuple(
            f"{anchor.kind} says that the offset is not {way[anchor.side]} {anchor.bound}, which the run windows or the"
            f" other anchors of its kind exclude: none of them is used (assumed was: {anchor.assumption})"
            for anchor in self.contradictions
        )


def combine(windows: Interval, found: Iterable[Found]) -> Tightened:
    """Cut ``windows`` by the anchors of every kind.

    A kind that leaves nothing of the windows is a contradiction; kinds that leave nothing together all are. None of a
    family is used where one of it is belied.
    """
    found = tuple(found)
    belied = [kind for kind in found if kind.at_odds or not _leaves(windows, [kind])]
    families = {kind.family for kind in belied} - {""}
    used = [kind for kind in found if kind not in belied and kind.family not in families]
    if not _leaves(windows, used):
        used, belied = [], list(found)
    low = max((kind.low for kind in used if kind.low), key=lambda anchor: anchor.bound, default=None)
    high = min((kind.high for kind in used if kind.high), key=lambda anchor: anchor.bound, default=None)
    low = low if low is not None and low.bound > windows[0] else None
    high = high if high is not None and high.bound < windows[1] else None
    interval = low.bound if low else windows[0], high.bound if high else windows[1]
    contradictions = tuple(anchor for kind in belied for anchor in kind.anchors)
    return Tightened(windows, interval, low, high, found, contradictions, tuple(used))


def _leaves(windows: Interval, kinds: Sequence[Found]) -> bool:
    """Whether the windows and all anchors of ``kinds`` together leave an offset."""
    lo = max([windows[0], *(kind.low.bound for kind in kinds if kind.low)])
    hi = min([windows[1], *(kind.high.bound for kind in kinds if kind.high)])
    return lo <= hi
