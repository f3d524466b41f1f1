"""What all parts of the Perfetto output share: a machine on the trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.outputs.pftrace import Flows
from counterpoint.timeline.merge import Machine

BLOCK = 1 << 18
"""Events written at once: bounds the memory of their columns."""


@dataclass(slots=True)
class FlowEnds:
    """The events of a machine at which arrows begin, or end: rows i64[k], in order, and the arrows' numbers i64[k]."""

    begins: tuple[I64, I64] = field(default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.int64)))
    ends: tuple[I64, I64] = field(default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.int64)))

    def split(self, rows: I64) -> Iterator[tuple[I64, Flows | None]]:
        """The ``rows``, which are in order, in parts: at no arrow, where arrows begin, and where they end."""
        left = rows
        for (known, numbers), make in ((self.begins, Flows.begins), (self.ends, Flows.ends)):
            mine = known[(known >= rows[0]) & (known <= rows[-1])] if len(rows) else known[:0]
            at = np.searchsorted(left, mine)
            here = at < len(left)
            here[here] = left[at[here]] == mine[here]
            if here.any():
                yield mine[here], make(numbers[np.searchsorted(known, mine[here])])
                keep = np.ones(len(left), np.bool_)
                keep[at[here]] = False
                left = left[keep]
        if len(left):
            yield left, None


@dataclass(frozen=True, slots=True)
class Lane:
    """A machine on the trace: its group of tracks, its stamps in ns i64[n], and the rows not shown yet bool[n]."""

    machine: Machine
    group: int
    ts_ns: I64
    as_instant: Bools
    flows: FlowEnds = field(default_factory=FlowEnds)
    comms: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The last ns that a thread's name was recorded at, and the name, by thread id."""

    def task(self, pid: int) -> str:
        """A thread's name and id."""
        _, comm = self.comms.get(pid, (0, ""))
        return f"{comm or self.machine.recording.comm(pid)} [{pid}]"

    def by_cpu(self) -> dict[int, list[int]]:
        """Stream numbers by CPU, those with events on the timeline."""
        out: dict[int, list[int]] = {}
        for index, stream in enumerate(self.machine.recording.streams):
            if self.machine.placed[stream.first : stream.last].any():
                out.setdefault(stream.cpu, []).append(index)
        return dict(sorted(out.items()))
