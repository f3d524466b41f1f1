"""What all parts of the Perfetto output share: a machine on the trace."""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.clocks.counter import I64, Bools
from counterpoint.timeline.merge import Machine

BLOCK = 1 << 18
"""Events written at once: bounds the memory of their columns."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A machine on the trace: its group of tracks, its stamps in ns i64[n], and the rows not shown yet bool[n]."""

    machine: Machine
    group: int
    ts_ns: I64
    as_instant: Bools

    def by_cpu(self) -> dict[int, list[int]]:
        """Stream numbers by CPU, those with events on the timeline."""
        out: dict[int, list[int]] = {}
        for index, stream in enumerate(self.machine.recording.streams):
            if self.machine.placed[stream.first : stream.last].any():
                out.setdefault(stream.cpu, []).append(index)
        return dict(sorted(out.items()))
