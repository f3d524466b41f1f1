"""How late a machine's high-resolution timers expired, by its own recording and its own clock: no map is in it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed
from counterpoint.analysis.steps import held
from counterpoint.clocks.counter import I64, Bools

_MOST_NS = 1 << 60
"""Times beyond are none: KTIME_MAX and the like."""


@dataclass(frozen=True, slots=True)
class Expiries:
    """Each expiry of a timer whose start was recorded: ``row`` i64[n] of its hrtimer_expire_entry, in order of time.

    ``late_ns`` i64[n]: the kernel's ``now`` less the time that the timer was set to; below 0 it came early, within the
    slack that it was given. ``slack_ns`` i64[n]; ``cpu`` i64[n]; ``when`` i64[n] from the timeline's base; ``function``
    i64[n]: the address of what it calls.
    """

    row: I64
    when: I64
    late_ns: I64
    slack_ns: I64
    cpu: I64
    function: I64

    def __len__(self) -> int:
        """Number of expiries."""
        return len(self.row)

    def take(self, at: npt.NDArray[np.integer] | Bools) -> Expiries:
        """Those at the places ``at``."""
        return Expiries(*(getattr(self, field.name)[at] for field in fields(self)))


def expiries(placed: Placed) -> Expiries | None:
    """The expiries of a machine's timers; None where it did not record hrtimer_start or hrtimer_expire_entry.

    Each goes with the last hrtimer_start of its timer: one that goes on is started anew each time (enqueue_hrtimer,
    kernel/time/hrtimer.c). Both are of one CPU's records, or no pair: between CPUs their order may not be sure. Nor is
    there one where events of any CPU were lost between.
    """
    started = placed.of("timer", "hrtimer_start", ("hrtimer", "expires", "softexpires"))
    entered = placed.of("timer", "hrtimer_expire_entry", ("hrtimer", "now", "function"))
    if started is None or entered is None:
        return None
    timer = np.r_[started["hrtimer"], entered["hrtimer"]]
    row, when = np.r_[started.row, entered.row], np.r_[started.when, entered.when]
    order = np.lexsort((row, when, timer))
    number = np.r_[np.arange(len(started)), np.full(len(entered), -1)]
    last = np.full(len(row), -1, np.int64)
    last[order] = held(number[order])
    start = last[len(started) :]
    good = start >= 0
    at, start = np.flatnonzero(good), start[good]
    expires = started["expires"][start]
    good = (started["hrtimer"][start] == entered["hrtimer"][at]) & (started.cpu[start] == entered.cpu[at])
    good &= (np.abs(expires) < _MOST_NS) & (np.abs(entered["now"][at]) < _MOST_NS)
    good &= ~placed.lost_within(started.when[start], entered.when[at])
    at, start, expires = at[good], start[good], expires[good]
    slack = expires - started["softexpires"][start]
    return Expiries(
        entered.row[at], entered.when[at], entered["now"][at] - expires, slack, entered.cpu[at],
        entered["function"][at],
    )  # fmt: skip
