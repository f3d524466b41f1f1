"""What stamps are in another clock: for each an instant, its bound, and how far it may be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, Bools

I8 = npt.NDArray[np.int8]


class Status(IntEnum):
    """How far an answer may be relied on; a higher one is worse.

    * INSIDE: both recordings saw this span of time; the bound is proved.
    * OUTSIDE: before or after what both saw. The bound has grown with the distance, and holds while the clock was not
      set there.
    * AMBIGUOUS: several instants show this stamp, or it lies where the clock changed. The bound spans all of them.
    * SKIPPED: no instant shows this stamp: the clock was set over it.
    * REFUSED: nothing can be said; there is a reason.
    """

    INSIDE = 0
    OUTSIDE = 1
    AMBIGUOUS = 2
    SKIPPED = 3
    REFUSED = 4

    @property
    def is_answer(self) -> bool:
        """Whether there is an instant, or several."""
        return self <= Status.AMBIGUOUS


class Reasons:
    """Texts by number: each is said once, however many values it is about."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text, the same each time."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them, by number."""
        return tuple(self._numbers)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Instants that stamps may be, m of them: ``row`` i64[m] says of which stamp each is.

    ``stamp``, ``earliest``, ``latest`` u64[m]: the instant by the map in use, and its bound. ``status`` i8[m], never
    AMBIGUOUS. ``epoch`` i64[m] (-1: none) of guest CPU ``cpu`` i64[m]; ``on`` i64[m]: the CPU whose clock was asked
    last, one of its parent's where the guest is nested. ``reason`` i64[m] (-1: none).
    """

    row: I64
    stamp: U64
    earliest: U64
    latest: U64
    status: I8
    epoch: I64
    cpu: I64
    on: I64
    reason: I64

    @classmethod
    def of(
        cls, row: I64, span: tuple[U64, U64, U64], status: Status, *, epoch: int = -1, cpu: int, reason: int = -1
    ) -> Candidates:
        """Instants ``span`` (earliest, stamp, latest) that have the rest in common."""
        count = len(row)
        earliest, stamp, latest = span

        def all_of(value: int) -> I64:
            return np.full(count, value, np.int64)

        statuses = np.full(count, int(status), np.int8)
        return cls(row, stamp, earliest, latest, statuses, all_of(epoch), all_of(cpu), all_of(cpu), all_of(reason))

    @classmethod
    def without(cls, row: I64, status: Status, *, cpu: int, reason: int = -1) -> Candidates:
        """No instants: SKIPPED or REFUSED."""
        zero = np.zeros(len(row), np.uint64)
        return cls.of(row, (zero, zero, zero), status, cpu=cpu, reason=reason)

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of them."""
        if not parts:
            return cls.without(np.zeros(0, np.int64), Status.REFUSED, cpu=-1)
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))

    def take(self, which: I64 | Bools) -> Candidates:
        """Some of them."""
        return Candidates(*(getattr(self, name)[which] for name in self.__slots__))

    @property
    def is_answer(self) -> Bools:
        """Which are instants at all."""
        return self.status <= Status.OUTSIDE

    def __len__(self) -> int:
        """How many there are."""
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Answers:
    """What n stamps are in another clock, in trace-clock units.

    ``stamp`` u64[n]: by the maps in use; ``earliest``, ``latest`` u64[n]: the bound, which holds every instant that the
    stamp may be. All three are 0 where there is no answer. ``status`` i8[n]: see Status. ``epoch`` i64[n]: of the guest
    CPU's map (-1: several, or none). ``reason`` i64[n]: which of ``reasons`` says why there is none (-1: none).
    ``others``: of each AMBIGUOUS stamp (``row``) all instants that it may be, the one in ``stamp`` too.
    """

    stamp: U64
    earliest: U64
    latest: U64
    status: I8
    epoch: I64
    reason: I64
    others: Candidates
    reasons: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        """How many stamps were asked about."""
        return len(self.stamp)

    @property
    def is_sure(self) -> bool:
        """Every stamp has one answer, and no reason speaks against it."""
        return bool((self.status <= Status.OUTSIDE).all())

    def why(self, index: int) -> str:
        """Why there is no answer for a stamp; "" where there is."""
        return self.reasons[int(self.reason[index])] if self.reason[index] >= 0 else ""


def settle(found: Candidates, count: int, reasons: Reasons) -> Answers:
    """The answers to ``count`` stamps, each with one candidate at least.

    Candidates whose bounds have an instant in common are one answer, with the bound of all; else the stamp is
    AMBIGUOUS. One that is refused leaves none.
    """
    found = found.take(_worth_keeping(found, count))
    order = np.lexsort((np.arange(len(found)), found.row))
    found = found.take(order)
    first = np.flatnonzero(np.r_[True, found.row[1:] != found.row[:-1]]) if len(found) else np.zeros(0, np.int64)
    size = np.diff(np.r_[first, len(found)])
    base = np.repeat(found.stamp[first], size)
    low, high = (found.earliest - base).view(np.int64), (found.latest - base).view(np.int64)
    least, most = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    apart = np.maximum.reduceat(low, first) > np.minimum.reduceat(high, first)
    worst = np.maximum.reduceat(found.status, first)
    status = np.where(apart & (worst <= Status.OUTSIDE), np.int8(Status.AMBIGUOUS), worst)
    same = np.minimum.reduceat(found.epoch, first) == np.maximum.reduceat(found.epoch, first)
    answered = status <= Status.AMBIGUOUS
    start = found.stamp[first]
    is_several = np.repeat(status == Status.AMBIGUOUS, size)
    return Answers(
        np.where(answered, start, 0),
        np.where(answered, start + least.view(np.uint64), 0),
        np.where(answered, start + most.view(np.uint64), 0),
        status,
        np.where(same, found.epoch[first], -1),
        np.maximum.reduceat(found.reason, first),
        found.take(is_several),
        reasons.texts,
    )


def _worth_keeping(found: Candidates, count: int) -> Bools:
    """Which candidates say something: a CPU that skips a stamp does not where another shows it; one refusal will do."""
    is_refused = found.status == Status.REFUSED
    refused = np.bincount(found.row[is_refused], minlength=count)[found.row] > 0
    answered = np.bincount(found.row[found.is_answer], minlength=count)[found.row] > 0
    keep: Bools = is_refused | (~refused & ((found.status != Status.SKIPPED) | ~answered))
    return keep
