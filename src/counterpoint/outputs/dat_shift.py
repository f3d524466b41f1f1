"""A TIME_SHIFT option that makes trace-cmd put every event of a recording where the timeline has it, or why none does.

What trace-cmd makes of the option is timestamp_host_sync() and timestamp_correction_calc() in
lib/trace-cmd/trace-input.c. Without interpolation an event is shifted by the last sample at or before it; of two
samples by the first, and past the last of more than two by the last but one: hence one more sample behind all events. A
ratio is not applied as KVM does it: offsets alone are of use.
"""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64, U64, to_signed
from counterpoint.timeline.merge import Machine
from counterpoint.traces.options import TimeSample, TimeShift

MAX_SAMPLES = 256
"""Samples of a CPU; a clock that needs more is no counter with an offset that changes now and then."""

_SIGNED = 1 << 63


def time_shift_of(machine: Machine, peer: int) -> TimeShift | str:
    """The option for a machine's file, whose host has the trace id ``peer``; or why there is none, in a few words."""
    recording = machine.recording
    if not machine.placed.all():
        return f"{int((~machine.placed).sum())} of its events are on no timeline: they are left out"
    offset = machine.host_stamp - recording.stamp
    cpu = np.array([s.cpu for s in recording.streams] or [0], np.int64)[recording.stream_of]
    if not len(cpu):
        return "it holds no events"
    tables: dict[int, tuple[TimeSample, ...]] = {}
    for number in sorted({s.cpu for s in recording.streams if s.last > s.first}):
        samples = _samples(recording.stamp, offset, np.flatnonzero(cpu == number))
        if isinstance(samples, str):
            return f"CPU {number}: {samples}"
        tables[number] = samples
    # a table without samples is more than trace-cmd can bear
    any_table = next(iter(tables.values()))
    return TimeShift(peer, 0, tuple(tables.get(n, any_table[:1]) for n in range(max(tables) + 1)), has_frac=True)


def _samples(stamp: U64, offset: U64, rows: I64) -> tuple[TimeSample, ...] | str:
    order = rows[np.argsort(stamp[rows], kind="stable")]
    stamps, offsets = stamp[order], offset[order]
    begins = np.flatnonzero(np.r_[True, offsets[1:] != offsets[:-1]])
    samples = [TimeSample(int(stamps[at]), to_signed(int(offsets[at])), 1, 0) for at in begins[:MAX_SAMPLES].tolist()]
    if len(samples) == 1:
        return (samples[0],)
    if len(begins) > MAX_SAMPLES:
        return "its offset is not one number, nor a few"
    if (stamps[begins[1:]] == stamps[begins[1:] - 1]).any():
        return "events with one stamp lie at different times"
    if int(stamps[-1]) >= _SIGNED - 1:
        return "its offset changes beyond 2^63, where trace-cmd's samples end"
    return (*samples, TimeSample(int(stamps[-1]) + 1, samples[-1].offset, 1, 0))
