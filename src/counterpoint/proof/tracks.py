"""Tracks: the events of one guest CPU, in recorded order, as small signed numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, relative, to_signed
from counterpoint.traces.recording import Recording


@dataclass(frozen=True, slots=True)
class Track:
    """Guest CPU ``cpu``: ``rows`` i64[n] of the recording, and ``guest`` i64[n], their stamps minus ``base``.

    ``late``: spans (first, last) of positions, each a sub-buffer that the guest's counter stepped back in while it was
    written, for the one after it begins with a stamp below: some of its events may be stamped late.
    """

    cpu: int
    rows: I64
    guest: I64
    base: int
    late: tuple[tuple[int, int], ...] = ()

    @property
    def late_ends(self) -> tuple[int, ...]:
        """The positions at which the sub-buffers after those begin."""
        return tuple(end for _, end in self.late)

    def part(self, first: int, last: int) -> Track:
        """The events ``first`` to ``last`` (exclusive) alone."""
        late = tuple((max(a, first) - first, min(b, last) - first) for a, b in self.late if a < last and first < b)
        return replace(self, rows=self.rows[first:last], guest=self.guest[first:last], late=late)

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
        late: tuple[tuple[int, int], ...] = ()
        if len(parts) > 1:
            order = np.argsort(values, kind="stable")
            rows, values = rows[order], values[order]
        else:
            back = np.flatnonzero(values[1:] < values[:-1]) + 1
            ends = back[np.isin(rows[back], first_rows)]
            begins = np.searchsorted(rows, first_rows[np.searchsorted(first_rows, rows[ends]) - 1])
            late = tuple(zip(begins.tolist(), ends.tolist(), strict=True))
        out.append(Track(cpu, rows, values, base, late))
    return out
