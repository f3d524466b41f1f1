"""Tracks: the events of one guest CPU, in recorded order, as small signed numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, relative, to_signed
from counterpoint.traces.recording import Recording


@dataclass(frozen=True, slots=True)
class Track:
    """Guest CPU ``cpu``: ``rows`` i64[n] of the recording, and ``guest`` i64[n], their stamps minus ``base``.

    ``late_ends`` are the positions at which a sub-buffer begins with a stamp below the one before: the guest's
    counter stepped back while the sub-buffer before it was written. ``late_begins``: where each of those begins.
    """

    cpu: int
    rows: I64
    guest: I64
    base: int
    late_ends: tuple[int, ...]
    late_begins: tuple[int, ...] = ()

    @property
    def late(self) -> tuple[tuple[int, int], ...]:
        """The spans (first, last) of events among which the counter stepped back: some may be stamped late."""
        return tuple(zip(self.late_begins, self.late_ends, strict=True))

    def relative_offset(self, offset: int, host_base: int) -> int:
        """An offset between trace-clock values as one between numbers relative to the two bases."""
        return to_signed(offset - self.base + host_base)

    def absolute_offset(self, offset: int, host_base: int) -> int:
        """The reverse of ``relative_offset``: signed, modulo 2**64."""
        return to_signed(offset + self.base - host_base)


def tracks_of(guest: Recording) -> list[Track]:
    """The tracks of all CPUs of ``guest`` that have events, by CPU."""
    by_cpu: dict[int, list[npt.NDArray[np.int64]]] = {}
    for stream in guest.streams:
        if stream.last > stream.first:
            by_cpu.setdefault(stream.cpu, []).append(np.arange(stream.first, stream.last))
    first_rows = guest.sub_buffer_first_row
    out = []
    for cpu in sorted(by_cpu):
        parts = by_cpu[cpu]
        rows = np.concatenate(parts)
        stamps = guest.stamp[rows]
        # the middle one is within 2**63 of all others, wherever the counter stands
        base = int(stamps[len(stamps) // 2])
        values = relative(stamps, base)
        late: tuple[int, ...] = ()
        begins: tuple[int, ...] = ()
        if len(parts) > 1:
            order = np.argsort(values, kind="stable")
            rows, values = rows[order], values[order]
        else:
            back = np.flatnonzero(values[1:] < values[:-1]) + 1
            late = tuple(back[np.isin(rows[back], first_rows)].tolist()) if len(back) else ()
            before = first_rows[np.searchsorted(first_rows, rows[list(late)]) - 1]
            begins = tuple(np.searchsorted(rows, before).tolist())
        out.append(Track(cpu, rows, values, base, late, begins))
    return out
