"""How long a recording's trace-clock unit is, from what the recording itself says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, relative
from counterpoint.clocks.rate import Rate
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.recording import Recording

REFINEMENTS = 3

MIN_SPAN_NS = 10_000_000
"""A shorter span of timer events does not give a rate: their own latency would show in it."""


def rate_of(recording: Recording) -> Rate | None:
    """The rate of ``recording``'s clock: of a clock in ns, else by TSC2NSEC, else by its timer events, else None."""
    if recording.unit == "ns":
        return Rate.ns()
    factors = recording.options.tsc2nsec
    if factors is not None and factors.shift <= 32:
        return Rate(factors.mult, factors.shift, "tsc2nsec")
    return _from_timers(recording)


def _from_timers(recording: Recording) -> Rate | None:
    """From ``timer:hrtimer_expire_entry``: its ``now`` is ktime in ns, read some time before its own stamp.

    Of the most frequent timer function two events are taken, one from each end of the recording, whose stamps are least
    behind their ``now``: what is left of the error is the difference of two smallest latencies over the span, and
    CLOCK_MONOTONIC's own slew (at most 500 ppm under NTP).
    """
    event = recording.format_named("timer", "hrtimer_expire_entry")
    rows = recording.rows(event)
    if event is None or len(rows) < 2:
        return None
    try:
        now = recording.column(event, "now", rows).astype(np.int64)
        function = _functions(recording, event, rows)
    except KeyError:
        return None
    ordered = np.sort(function)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    often = function == ordered[starts[np.diff(np.r_[starts, len(ordered)]).argmax()]]
    order = np.argsort(now[often], kind="stable")
    now = now[often][order] - now[often][order[0]]
    stamp = relative(recording.stamp[rows[often]][order], int(recording.stamp[rows[often][order[0]]]))
    first, last = 0, len(now) - 1
    for _ in range(REFINEMENTS):
        span_ns, ticks = int(now[last] - now[first]), int(stamp[last] - stamp[first])
        if span_ns < MIN_SPAN_NS or ticks <= 0:
            return None
        # how far each stamp is behind its now, by the slope so far; a float will do to choose by
        behind = stamp - now * (ticks / span_ns)
        third = max(1, len(now) // 3)
        first, last = int(behind[:third].argmin()), len(now) - third + int(behind[-third:].argmin())
    return Rate.of_ratio(int(now[last] - now[first]), int(stamp[last] - stamp[first]), "hrtimer_expire_entry")


def _functions(recording: Recording, event: EventFormat, rows: I64) -> npt.NDArray[np.integer]:
    """A number for the function of each event: its address, or where it was printed as a name, the name's own."""
    field = event.field("function")
    if field is None or field.kind != "string":
        return recording.column(event, "function", rows)
    numbers: npt.NDArray[np.integer] = np.unique(recording.batch(event, rows).text("function"), return_inverse=True)[1]
    return numbers
