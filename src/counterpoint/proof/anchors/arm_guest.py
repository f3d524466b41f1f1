"""What an arm64 guest's recording tells of its virtual timer: the CVALs that it programmed, on the guest's clock.

``hrtimer_rearm`` (kernel/time/hrtimer.c, since 7.1) names the expiry Y on CLOCK_MONOTONIC that is about to be
programmed, with interrupts off. Then (clockevents.c, drivers/clocksource/arm_arch_timer.c) delta = Y - ktime_get(),
then CVAL = counter + delta in ticks, both read before that CPU's next event. So by the guest's clock the counter
reaches CVAL at Y, or later by what passed between the two readings, at most from ``hrtimer_rearm`` to the next event.

Where no such event is: ``expiries``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.proof.anchors import expiries
from counterpoint.proof.anchors.expiries import Programmed
from counterpoint.proof.anchors.marks import MAX_WAIT_NS, Marks, Saved, factor_slack
from counterpoint.proof.anchors.mono import Domain, MonoClock
from counterpoint.proof.anchors.unseen import unbroken
from counterpoint.proof.feasible import Interval

_MIN_DELTA_NS, _MIN_DELTA_TICKS = 2000, 16  # shorter waits are lengthened: to 1000 ns, or 15 ticks
_REARM = ("timer", "hrtimer_rearm")


@dataclass(frozen=True, slots=True)
class _Places:
    """Where CVALs that KVM saved lie among a CPU's events: ``at`` i64[n] of the last of them before each.

    Only of those of which this is the same at all offsets of the windows: ``cval`` u64[n], and the earliest that
    they may have been saved, ``when`` i64[n] from the guest's base.
    """

    cval: U64
    at: I64
    when: I64


def _places(when: I64, saved: Saved, windows: Interval, shift: int) -> _Places:
    early = saved.when + shift + windows[0]
    first, last = (np.searchsorted(when, saved.when + shift + o, side="right") - 1 for o in windows)
    known = (first >= 0) & (first == last)
    return _Places(saved.cval[known], first[known], early[known])


class GuestTimers:
    """What a guest's recording tells of when it programmed its timers, in the numbers of ``domain``."""

    def __init__(self, clock: MonoClock, domain: Domain, *, trust_boot: bool) -> None:
        """Take the guest's clock."""
        self.clock, self.domain, self.guest, self.trust_boot = clock, domain, clock.recording, trust_boot

    @cached_property
    def is_usable(self) -> bool:
        """Whether the recording holds the events at all."""
        return self.clock.is_usable and (self._rearms or expiries.are_in(self.guest))

    @cached_property
    def _rearms(self) -> bool:
        return len(self.guest.rows(self.guest.format_named(*_REARM))) > 0

    def _programmed(self, cpu: int) -> Programmed:
        """When guest CPU ``cpu`` programmed its timer, and for what."""
        guest = self.guest
        if not self._rearms:
            return expiries.programmed(self.clock, cpu)
        event = guest.format_named(*_REARM)
        assert event is not None
        rows = guest.rows(event)
        inside = np.zeros(len(rows), np.bool_)
        for stream in guest.streams:
            # the last event of a CPU has no next one
            inside |= (stream.cpu == cpu) & (rows >= stream.first) & (rows < stream.last - 1)
        rows = rows[inside]
        order = np.argsort(relative(guest.stamp[rows], guest.base), kind="stable")
        rows = rows[order]
        return Programmed(rows, guest.column(event, "next_event", rows).astype(np.int64), rows >= 0)

    def marks(self, cpu: int, saved: Saved, windows: Interval, host_base: int) -> Marks:
        """The CVALs of ``saved``, each with what guest CPU ``cpu`` programmed last before it was saved.

        Only those are taken of which this is the same at all offsets of ``windows``, and that were surely written
        before: the CPU's next event comes before the saving as well.
        """
        guest, domain = self.guest, self.domain
        found = self._programmed(cpu)
        when = relative(guest.stamp[found.row], guest.base)
        places = _places(when, saved, windows, host_base - guest.base)
        rows = found.row[places.at]
        done = found.known[places.at] & (relative(guest.stamp[rows + 1], guest.base) <= places.when)
        # had events been lost in between, one of them might have programmed another
        ends = np.array([stream.last - 1 for stream in guest.streams], np.int64)
        last = places.at + 1 >= len(found.row)
        following = found.row[np.minimum(places.at + 1, len(found.row) - 1)] if len(found.row) else rows
        done &= unbroken(guest, rows, np.where(last, ends[guest.stream_of[rows]], following))
        rows, expires, cval = rows[done], found.expires[places.at][done], places.cval[done]
        begin, end = domain.stamps(guest.stamp[rows]), domain.stamps(guest.stamp[rows + 1])
        low, high = self.clock.distance(domain, begin, trust_boot=self.trust_boot)
        target = domain.clock(expires)
        # Y and the reading are cut off to ns, and the wait to ticks
        slack = factor_slack(target - low - begin) + domain.tick * (domain.mono is None)
        shortest = domain.clock(expires - _MIN_DELTA_NS) - _MIN_DELTA_TICKS * domain.tick
        as_asked = (shortest - high > end) & (end >= begin) & (domain.clock(expires - MAX_WAIT_NS) - low <= begin)
        return Marks(
            cval,
            target - high - slack - domain.tick,
            target - low + (end - begin) + slack,
            as_asked,
            as_asked,
            rows,
            relative(guest.stamp[rows], guest.base),
        )
