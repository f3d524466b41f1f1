"""How long a recording's trace-clock unit is, from what the recording itself says."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import relative
from counterpoint.clocks.rate import Rate
from counterpoint.traces.recording import Recording

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
    """From ``timer:hrtimer_expire_entry``: its ``now`` is ktime in ns, taken a moment before its own stamp.

    The span between the first and the last event of the most frequent timer function is taken: its error is that of
    two interrupt latencies over the span, and CLOCK_MONOTONIC's own slew (at most 500 ppm under NTP).
    """
    event = recording.format_named("timer", "hrtimer_expire_entry")
    rows = recording.rows(event)
    if event is None or len(rows) < 2:
        return None
    try:
        now = recording.column(event, "now", rows).astype(np.int64)
        function = recording.column(event, "function", rows)
    except KeyError:
        return None
    names, counts = np.unique(function, return_counts=True)
    rows, now = rows[function == names[counts.argmax()]], now[function == names[counts.argmax()]]
    base = int(recording.stamp[rows[0]])
    stamp = relative(recording.stamp[rows], base)
    first, last = int(stamp.argmin()), int(stamp.argmax())
    span_ns = int(now[last]) - int(now[first])
    if span_ns < MIN_SPAN_NS:
        return None
    return Rate.of_ratio(span_ns, int(stamp[last]) - int(stamp[first]), "hrtimer_expire_entry")
