"""Where a recording has no hole: what two events say together holds only if none between them was lost."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64, Bools, relative
from counterpoint.traces.recording import Recording


def unbroken(recording: Recording, first: I64, last: I64) -> Bools:
    """Whether the rows ``first`` and ``last`` i64[n] are of one stream, in order, with no events lost between them."""
    lost = np.sort(recording.losses.row)
    ok: Bools = recording.stream_of[first] == recording.stream_of[last]
    ok &= first <= last
    ok &= np.searchsorted(lost, first, "right") == np.searchsorted(lost, last, "right")
    return ok


def unlost(recording: Recording, begin: I64, end: I64) -> Bools:
    """Whether no CPU lost events between the stamps ``begin`` and ``end`` i64[n] (from the base): bool[n]."""
    lost = recording.losses.row[recording.losses.row < len(recording)]
    stamps = np.sort(relative(recording.stamp[lost], recording.base))
    whole: Bools = np.searchsorted(stamps, begin, "left") == np.searchsorted(stamps, end, "right")
    return whole
