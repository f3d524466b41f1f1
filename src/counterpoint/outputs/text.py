"""The timeline as text: the lines of ``trace-cmd report -t -N``, with the machine's name before each.

::

        host: CPU 0/KVM-191    [000]310513527754: hrtimer_expire_entry: hrtimer=0xff2c74ef7aa235c0 ...
       guest:          sh-152  [001]310513530112: sys_exit:             NR 1 = 1

A recording alone is shown without names, as trace-cmd shows it. Stamps are the host's trace-clock values: ticks of a
counter plain, ns as seconds with nine decimals.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, relative
from counterpoint.outputs.files import replacing
from counterpoint.timeline.merge import Loss, Timeline
from counterpoint.traces.formats import named_fields
from counterpoint.traces.printing import CURRENT, Dialect, PrintFormat, Symbols, compile_fields, compile_print
from counterpoint.traces.recording import Recording

BLOCK = 1 << 15
_CONTROL = {c: f"\\x{c:02x}" for c in (*range(0x09), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0))}


class EventText:
    """Renders the events of one recording; each kind is compiled when first seen."""

    def __init__(self, recording: Recording, *, raw: bool = False, dialect: Dialect = CURRENT) -> None:
        """``raw``: list the fields instead of applying the print format."""
        self._recording = recording
        self._symbols = Symbols(
            recording.kallsyms,
            recording.printk_formats,
            long_size=recording.long_size,
            big_endian=recording.big_endian,
        )
        self._compile = compile_fields if raw else compile_print
        self._dialect = dialect
        self._formats: dict[int, PrintFormat] = {}
        self.fallbacks: list[str] = []

    def render(self, event_id: int, rows: I64) -> list[str]:
        """The texts of ``rows``, all events of one kind."""
        event = self._recording.formats.get(event_id)
        if event is None:
            return [""] * len(rows)
        compiled = self._formats.get(event_id)
        if compiled is None:
            compiled = self._formats[event_id] = self._compile(event, self._symbols, self._dialect)
            if compiled.fallback:
                self.fallbacks.append(compiled.fallback)
        return compiled.render(self._recording.batch(event, rows))


class TimelineText:
    """Renders a timeline's events, block by block."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        raw: bool = False,
        names: bool | None = None,
        dialect: Dialect = CURRENT,
        origin: int | None = None,
    ) -> None:
        """``names``: put the machine's name before each line (None: where there are several machines).

        ``origin``: a host stamp from which the lines count theirs, with a sign (None: they show the clock's values).
        """
        self._origin = origin
        self.timeline = timeline
        self._texts = [EventText(m.recording, raw=raw, dialect=dialect) for m in timeline.machines]
        several = len(timeline.machines) > 1 if names is None else names
        width = max(len(m.name) for m in timeline.machines)
        self._prefix = [f"{_clean(m.name):>{width}}: " if several else "" for m in timeline.machines]
        self._tasks: list[dict[int, str]] = [{} for _ in timeline.machines]
        self._counter = timeline.machines[0].recording.unit == "ticks"

    @property
    def fallbacks(self) -> list[str]:
        """Why events were shown by their fields: one sentence a kind, of those rendered so far."""
        return [text for machine in self._texts for text in machine.fallbacks]

    def lines(self, positions: I64 | None = None) -> Iterator[str]:
        """The lines of the events at ``positions`` (None: all), with marks where events were lost."""
        timeline = self.timeline
        losses = timeline.losses()
        at = 0
        total = len(timeline) if positions is None else len(positions)
        for begin in range(0, total, BLOCK):
            end = min(begin + BLOCK, total)
            block = np.arange(begin, end) if positions is None else positions[begin:end]
            texts = self._block(block)
            last = int(block[-1])
            if at < len(losses) and losses[at].at <= last:
                for position, text in zip(block.tolist(), texts, strict=True):
                    while at < len(losses) and losses[at].at <= position:
                        if losses[at].at == position:
                            yield self._loss(losses[at])
                        at += 1
                    yield text
            else:
                yield from texts

    def records(self, positions: I64, *, fields: bool = False) -> Iterator[dict[str, Any]]:
        """The events at ``positions`` as dicts, for JSON lines; ``stamp`` is the machine's own.

        ``fields``: with the event's own fields as a dict.
        """
        timeline = self.timeline
        for begin in range(0, len(positions), BLOCK):
            block = positions[begin : begin + BLOCK]
            machine, row = timeline.machine[block], timeline.row[block]
            info = self._info(machine, row)
            own = self._fields(machine, row) if fields else [{}] * len(block)
            for index, at, host, text, values in zip(
                machine.tolist(), row.tolist(), timeline.host_ticks[block].tolist(), info, own, strict=True
            ):
                recording = timeline.machines[index].recording
                event = recording.formats.get(int(recording.event_id[at]))
                pid = int(recording.pid[at])
                yield {
                    "machine": timeline.machines[index].name,
                    "host_stamp": host,
                    "stamp": int(recording.stamp[at]),
                    "cpu": recording.streams[int(recording.stream_of[at])].cpu,
                    "task": recording.comm(pid),
                    "tid": pid,
                    "event": f"{event.system}:{event.name}" if event else str(int(recording.event_id[at])),
                    "text": text.strip(),
                    **({"fields": values} if fields else {}),
                }

    def _fields(self, machine: npt.NDArray[np.uint16], row: I64) -> list[dict[str, Any]]:
        """The fields of events by name."""
        out: list[dict[str, Any]] = [{} for _ in row]
        for index in np.unique(machine).tolist():
            mine = np.flatnonzero(machine == index)
            recording = self.timeline.machines[index].recording
            ids = recording.event_id[row[mine]]
            for event_id in np.unique(ids).tolist():
                chosen = mine[ids == event_id]
                event = recording.formats.get(event_id)
                batch = recording.batch(event, row[chosen]) if event else None
                for name, field in named_fields(event) if event else ():
                    for place, value in zip(chosen.tolist(), batch.values(field) if batch else (), strict=True):
                        out[place][name] = value
        return out

    def _info(self, machine: npt.NDArray[np.uint16], row: I64) -> list[str]:
        """The texts of events behind their names."""
        info: list[str] = [""] * len(row)
        for index in np.unique(machine).tolist():
            mine = np.flatnonzero(machine == index)
            ids = self.timeline.machines[index].recording.event_id[row[mine]]
            for event_id in np.unique(ids).tolist():
                chosen = mine[ids == event_id]
                for place, text in zip(chosen.tolist(), self._texts[index].render(event_id, row[chosen]), strict=True):
                    info[place] = text
        return info

    def _loss(self, loss: Loss) -> str:
        count = f"{loss.count} " if loss.count > 0 else ""
        return f"{self._prefix[loss.machine]}CPU:{loss.cpu} [{count}EVENTS DROPPED]"

    def _block(self, positions: I64) -> list[str]:
        timeline = self.timeline
        machine, row = timeline.machine[positions], timeline.row[positions]
        info = self._info(machine, row)
        names: list[str] = [""] * len(positions)
        heads: list[str] = [""] * len(positions)
        for index in np.unique(machine).tolist():
            recording = timeline.machines[index].recording
            mine = np.flatnonzero(machine == index)
            rows = row[mine]
            titles = {
                event_id: f"{_clean(recording.event_name(event_id)) + ':':<21} "
                for event_id in np.unique(recording.event_id[rows]).tolist()
            }
            tasks, prefix = self._tasks[index], self._prefix[index]
            cpus = [s.cpu for s in recording.streams]
            for place, pid, stream, event_id in zip(
                mine.tolist(),
                recording.pid[rows].tolist(),
                recording.stream_of[rows].tolist(),
                recording.event_id[rows].tolist(),
                strict=True,
            ):
                task = tasks.get(pid)
                if task is None:
                    task = tasks[pid] = f"{prefix}{_clean(recording.comm(pid)):>16}-{pid:<5} ["
                heads[place] = f"{task}{cpus[stream]:03d}]"
                names[place] = titles[event_id]
        stamps = self._stamps(positions)
        # most lines are clean: look once at all of them together
        lines = [f"{h}{t}: {n}{i}" for h, t, n, i in zip(heads, stamps, names, info, strict=True)]
        if not "".join(info).replace("\n", "").isprintable():
            lines = [line if line.isprintable() else _clean(line) for line in lines]
        return lines

    def _stamps(self, positions: I64) -> Iterable[str]:
        ticks = self.timeline.host_ticks[positions]
        if self._origin is not None:
            return [self._since(t) for t in relative(ticks, self._origin).tolist()]
        if self._counter:
            return [f"{t:12d}" for t in ticks.tolist()]
        seconds, ns = np.divmod(ticks, np.uint64(1_000_000_000))
        return [f"{s:6d}.{n:09d}" for s, n in zip(seconds.tolist(), ns.tolist(), strict=True)]

    def _since(self, passed: int) -> str:
        sign, passed = "-" if passed < 0 else "+", abs(passed)
        if self._counter:
            return f"{f'{sign}{passed}':>12}"
        return f"{f'{sign}{passed // 1_000_000_000}':>6}.{passed % 1_000_000_000:09d}"


def _clean(text: str) -> str:
    """Text from a trace without the characters that steer a terminal."""
    return text if text.isprintable() else text.translate(_CONTROL)


def write_text(timeline: Timeline, path: Path, *, overwrite: bool) -> list[str]:
    """Write all lines to ``path``; returns the fallbacks. UsageError where it exists and may not be replaced."""
    text = TimelineText(timeline)
    with replacing(path, overwrite=overwrite) as file:
        lines = text.lines()
        while block := list(itertools.islice(lines, BLOCK)):
            file.write(("\n".join(block) + "\n").encode("utf-8", "replace"))
    return text.fallbacks
