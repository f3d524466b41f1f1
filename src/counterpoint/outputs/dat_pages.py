"""A machine's events as ring-buffer pages stamped in host time, CPU by CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, relative
from counterpoint.outputs.dat_tables import Translation
from counterpoint.timeline.merge import Machine
from counterpoint.traces.contents import Stream
from counterpoint.traces.recording import Recording
from counterpoint.traces.ring import MISSED_UNKNOWN
from counterpoint.traces.write import CpuPages
from counterpoint.traces.write_pages import pack_pages

BLOCK = 1 << 16
"""Events packed at once: few enough that their columns stay in the CPU's cache."""


class Counted:
    """Says how much of a file is written."""

    def __init__(self, say: Callable[[str], None] | None, path: Path) -> None:
        """``say`` takes a few words."""
        self._say = say
        self._path = path
        self._done = 0
        self._of = ""

    def expect(self, total: int, unit: str) -> None:
        """So much is to be written."""
        self._done = 0
        self._of = f"of {total} {unit}"

    def __call__(self, more: int) -> None:
        """So much more is."""
        self._done += more
        if self._say is not None:
            self._say(f"writing {self._path}: {self._done} {self._of}")


@dataclass(slots=True)
class MachinePages:
    """The pages of one machine's buffers; stamps are counted from ``base`` to order them (None: they stay as recorded).

    ``unmarked`` counts, when all is written, the marks of lost events behind a CPU's last event: pages have no place
    for such.
    """

    machine: Machine
    base: int | None
    page_size: int
    translation: Translation | None = None
    say: Callable[[int], None] = lambda _: None
    unmarked: int = 0
    _streams: dict[str, dict[int, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the recording's streams by buffer and CPU."""
        for index, stream in enumerate(self.machine.recording.streams):
            self._streams.setdefault(stream.buffer, {}).setdefault(stream.cpu, []).append(index)

    @property
    def buffers(self) -> list[str]:
        """Names of the buffers, the top one ("") first if there is any."""
        return sorted(self._streams, key=bool)

    def cpus(self, buffer: str) -> Iterator[CpuPages]:
        """The pages of each CPU of a buffer, in order."""
        for cpu, streams in sorted(self._streams.get(buffer, {}).items()):
            pages = self._cpu(cpu, streams)
            if pages is not None:
                yield pages

    def notes(self) -> list[str]:
        """What is not in the pages, in sentences, when all are written."""
        if not self.unmarked:
            return []
        return [
            f"{self.machine.name}: {self.unmarked} marks of lost events are left out: no event of their CPU follows"
        ]

    def _cpu(self, cpu: int, streams: list[int]) -> CpuPages | None:
        recording = self.machine.recording
        spans = [recording.streams[index] for index in streams]
        rows = np.concatenate([_placed(self.machine, span) for span in spans])
        if not len(rows):
            self.unmarked += sum(int((recording.losses.stream == index).sum()) for index in streams)
            return None
        stamp = self.machine.host_stamp[rows]
        away = relative(stamp, self.base or 0)
        place, recorded = None, rows
        if self.base is not None and (away[1:] < away[:-1]).any():
            # as the timeline has them, which is sorted
            order = np.argsort(away, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            rows, stamp = rows[order], stamp[order]
        lost = self._losses(recording, streams, recorded, place)
        parts = []
        for begin in range(0, len(rows), BLOCK):
            end = min(begin + BLOCK, len(rows))
            here = {at - begin: count for at, count in lost.items() if begin <= at < end}
            parts.append(self._pages(rows[begin:end], stamp[begin:end], here))
            self.say(end - begin)
        return CpuPages(cpu, np.concatenate(parts) if len(parts) > 1 else parts[0])

    def _pages(self, rows: I64, stamp: U64, lost: dict[int, int]) -> npt.NDArray[np.uint8]:
        recording = self.machine.recording
        batches = recording.payloads(rows)
        if self.translation is not None:
            batches = self.translation.apply(recording.event_id[rows], batches)
        return pack_pages(
            stamp,
            batches,
            page_size=self.page_size,
            long_size=recording.long_size,
            big_endian=recording.big_endian,
            lost_row=list(lost),
            lost_count=list(lost.values()),
        ).data

    def _losses(self, recording: Recording, streams: list[int], rows: I64, place: I64 | None) -> dict[int, int]:
        """How many events were lost before which of the CPU's events.

        ``rows`` i64[n] are those in the order of recording, ``place`` i64[n] where each now stands (None: there).
        """
        losses = recording.losses
        found: dict[int, int] = {}
        for index in streams:
            mine = np.flatnonzero(losses.stream == index)
            last = recording.streams[index].last
            before = np.searchsorted(rows, losses.row[mine])
            for at, count in zip(before.tolist(), losses.count[mine].tolist(), strict=True):
                if at == len(rows) or rows[at] >= last:
                    self.unmarked += 1
                    continue
                to = at if place is None else int(place[at])
                known = found.get(to, 0)
                unknown = MISSED_UNKNOWN in (known, count)
                found[to] = MISSED_UNKNOWN if unknown else known + count
        return dict(sorted(found.items()))


def page_size_of(recordings: Sequence[Recording]) -> int:
    """A size of pages that every event of the recordings has room in."""
    size = 4096
    while size < max(r.sub_buffer_size for r in recordings):
        size *= 2
    return size


def _placed(machine: Machine, span: Stream) -> I64:
    return span.first + np.flatnonzero(machine.placed[span.first : span.last])
