"""A recording as it would be had some events not been recorded."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from counterpoint.traces.contents import Losses
from counterpoint.traces.recording import Recording


def without(recording: Recording, *events: str) -> Recording:
    """``recording`` with no event of the kinds ``events``: "SYSTEM" or "SYSTEM:NAME". What was lost stays lost."""
    hidden = [
        i
        for i, known in recording.formats.items()
        if known.system in events or f"{known.system}:{known.name}" in events
    ]
    keep = ~np.isin(recording.event_id, hidden)
    new_row = np.r_[0, np.cumsum(keep)]
    out = copy.copy(recording)
    for name in ("base", "_rows_by_id"):
        out.__dict__.pop(name, None)
    for name in ("stamp", "event_id", "pid", "stream_of", "_offset", "_length"):
        setattr(out, name, getattr(recording, name)[keep])
    out.streams = tuple(replace(s, first=int(new_row[s.first]), last=int(new_row[s.last])) for s in recording.streams)
    out.sub_buffer_first_row = new_row[recording.sub_buffer_first_row]
    out.losses = Losses(recording.losses.stream, new_row[recording.losses.row], recording.losses.count)
    return out
