"""The timeline as Arrow record batches: a row an event, block by block, from columns to columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint._version import __version__
from counterpoint.clocks.counter import I64
from counterpoint.timeline.arrow_fields import Chunk, FieldColumns, arrow, from_numpy
from counterpoint.timeline.details import Details, widths_to_ns
from counterpoint.timeline.merge import Machine, Timeline

BLOCK = 1 << 17
"""Events of one batch, at most: bounds the memory of its columns."""

MAX_CELLS = 1 << 25
"""Fields of one batch, at most, present or null."""

_LUT = 1 << 22
"""Thread ids below this (the kernel's PID_MAX_LIMIT, include/linux/threads.h) are looked up in one step."""

I32 = npt.NDArray[np.int32]


class ArrowEvents:
    """A timeline's events as Arrow columns; see docs/parquet.md for what each is."""

    def __init__(self, timeline: Timeline, *, fields: bool = True) -> None:
        """``fields``: with the struct of the events' own fields. UsageError where pyarrow is not installed."""
        pa = arrow()
        self._timeline = timeline
        self._fields = FieldColumns([m.recording for m in timeline.machines]) if fields else None
        tasks, guests, events = _Words(), _Words(), _Words()
        details: Sequence[Details | None] = timeline.details or [None] * len(timeline.machines)
        self._machines = [
            _Codes.of(machine, one, tasks, guests, events)
            for machine, one in zip(timeline.machines, details, strict=True)
        ]
        machines = [m.name for m in timeline.machines]
        words = {"machine": machines, "vcpu_guest": guests.list, "task": tasks.list, "event": events.list}
        self._words = {name: pa.array(texts, pa.string()) for name, texts in words.items()}
        self.block = BLOCK
        if self._fields is not None and self._fields.columns:
            self.block = max(1024, min(BLOCK, MAX_CELLS // len(self._fields.columns)))
        self.schema = self._schema()

    @property
    def left_out(self) -> int:
        """Fields that have no column, for there are too many (``MAX_COLUMNS``)."""
        return self._fields.left_out if self._fields else 0

    def _schema(self) -> Any:  # noqa: ANN401 (pyarrow has no types)
        pa = arrow()
        word = pa.dictionary(pa.int32(), pa.string())
        columns = [
            ("host_ns", pa.int64()),
            ("host_ticks", pa.uint64()),
            ("stamp", pa.uint64()),
            ("bound_ns", pa.int64()),
            ("proved", pa.bool_()),
            ("machine", word),
            ("cpu", pa.uint16()),
            ("vcpu_guest", word),
            ("vcpu", pa.int32()),
            ("task", word),
            ("pid", pa.int32()),
            ("event", word),
            ("lost_before", pa.int64()),
        ]
        if self._fields is not None and self._fields.columns:
            # never null itself
            columns.append(pa.field("fields", self._fields.type, nullable=False))
        return pa.schema(columns, metadata=self.metadata())

    def metadata(self) -> dict[str, str]:
        """What the schema says of the whole: versions, machines and clocks, how ns were made, which field is where."""
        timeline = self._timeline
        rate = timeline.rate
        names = [m.name for m in timeline.machines]
        said = {
            "version": __version__,
            "machines": [
                {"name": m.name, "parent": m.parent, "clock": m.recording.clock, "unit": m.recording.unit}
                for m in timeline.machines
            ],
            "rate": None if rate is None else {"mult": rate.mult, "shift": rate.shift, "source": rate.source},
            "fields": [
                {"machine": names[machine], "event": event, "columns": columns}
                for (machine, event), columns in (self._fields.names.items() if self._fields else ())
            ],
        }
        return {f"counterpoint.{key}": json.dumps(value) for key, value in said.items()}

    def reader(self) -> Any:  # noqa: ANN401
        """A ``pyarrow.RecordBatchReader`` of all events, to be read once."""
        return arrow().RecordBatchReader.from_batches(self.schema, self.batches())

    def batches(self, machine: int | None = None) -> Iterator[Any]:
        """The batches in order; ``machine``: of this one's events alone."""
        timeline = self._timeline
        if machine is None:
            for part in timeline.blocks(self.block):
                yield from self._split(np.arange(part.start, part.stop))
            return
        mine = np.flatnonzero(timeline.machine == machine)
        for begin in range(0, len(mine), self.block):
            yield from self._split(mine[begin : begin + self.block])

    def _split(self, positions: I64) -> Iterator[Any]:
        """These events as one batch, or as several where their texts are long."""
        try:
            batch = self.batch(positions)
        except OverflowError:
            half = len(positions) // 2
            if not half:
                raise MemoryError from None
            yield from self._split(positions[:half])
            yield from self._split(positions[half:])
            return
        yield batch

    def batch(self, positions: I64) -> Any:  # noqa: ANN401
        """One RecordBatch of the events at ``positions`` i64[n] of the timeline; OverflowError: they are too many."""
        pa = arrow()
        timeline, count = self._timeline, len(positions)
        machine, row = timeline.machine[positions], timeline.row[positions]
        ticks = timeline.host_ticks[positions]
        yes = np.ones(count, np.bool_)
        stamp, lost = np.empty(count, np.uint64), np.zeros(count, np.int64)
        bound, proved = np.full(count, -1, np.int64), np.zeros(count, np.bool_)
        cpu, pid = np.empty(count, np.uint16), np.empty(count, np.int32)
        guest, vcpu = np.full(count, -1, np.int32), np.full(count, -1, np.int32)
        task, event = np.empty(count, np.int32), np.empty(count, np.int32)
        chunks: list[Chunk] = []
        for index, codes in enumerate(self._machines):
            one = timeline.machines[index]
            at = np.flatnonzero(machine == index)
            if not len(at):
                continue
            rows, recording = row[at], one.recording
            stamp[at], proved[at], lost[at] = recording.stamp[rows], one.proved[rows], codes.lost_before(rows)
            if codes.details is not None:
                bound[at] = codes.details.width[rows]
            pids, ids = recording.pid[rows], recording.event_id[rows]
            thread = codes.thread(pids)
            cpu[at], pid[at], event[at] = codes.cpu[recording.stream_of[rows]], pids, codes.event[ids]
            task[at], guest[at], vcpu[at] = codes.task[thread], codes.guest[thread], codes.vcpu[thread]
            chunks += self._chunks(index, at, rows, ids) if self._fields is not None else []
        rate = timeline.rate
        ns = ticks.view(np.int64) if rate is None else rate.array_to_ns(ticks)
        bound = np.full(count, -1, np.int64) if rate is None else widths_to_ns(bound, rate)
        columns = [
            from_numpy(pa.int64(), ns, yes if rate is not None else ~yes),
            from_numpy(pa.uint64(), ticks, yes),
            from_numpy(pa.uint64(), stamp, yes),
            from_numpy(pa.int64(), bound, bound >= 0),
            pa.array(proved),
            self._word("machine", machine.astype(np.int32)),
            from_numpy(pa.uint16(), cpu, yes),
            self._word("vcpu_guest", guest),
            from_numpy(pa.int32(), vcpu, vcpu >= 0),
            self._word("task", task),
            from_numpy(pa.int32(), pid, yes),
            self._word("event", event),
            from_numpy(pa.int64(), lost, yes),
        ]
        if self._fields is not None and self._fields.columns:
            columns.append(self._fields.block(count, chunks))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _word(self, name: str, codes: I32) -> Any:  # noqa: ANN401
        pa = arrow()
        return pa.DictionaryArray.from_arrays(from_numpy(pa.int32(), codes, codes >= 0), self._words[name], safe=False)

    def _chunks(self, index: int, at: I64, rows: I64, ids: npt.NDArray[np.uint16]) -> Iterator[Chunk]:
        """The events of one machine in a block, kind by kind."""
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
        formats = self._timeline.machines[index].recording.formats
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            known = formats.get(int(ordered[begin]))
            if known is not None:
                chosen = order[begin:end]
                yield Chunk(index, known, at[chosen], rows[chosen])


class _Words:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def list(self) -> list[str]:
        return list(self._numbers)


@dataclass(frozen=True, slots=True)
class _Codes:
    """What a machine's numbers stand for: its threads i32[k] in order, with task, guest and vCPU of each; its events.

    ``lut`` i32 finds a thread by its id where all ids are small. ``lost_row``, ``lost_count`` i64: see ``lost_before``.
    """

    details: Details | None
    cpu: npt.NDArray[np.uint16]
    threads: I32
    lut: I32 | None
    task: I32
    guest: I32
    vcpu: I32
    event: I32
    lost_row: I64
    lost_count: I64

    @classmethod
    def of(cls, machine: Machine, details: Details | None, tasks: _Words, guests: _Words, events: _Words) -> _Codes:
        recording = machine.recording
        pid = recording.pid
        lut = None
        if len(pid) and int(pid.min()) >= 0 and int(pid.max()) < _LUT:
            there = np.zeros(int(pid.max()) + 1, np.bool_)
            there[pid] = True
            threads = np.flatnonzero(there).astype(np.int32)
            lut = np.cumsum(there, dtype=np.int32) - 1
        else:
            threads = np.unique(pid)
        vcpus = details.vcpus if details else {}
        known = [vcpus.get(tid) for tid in threads.tolist()]
        event = np.full(1 << 16, -1, np.int32)
        for event_id in recording.counts_by_id():
            has = recording.formats.get(event_id)
            event[event_id] = events.number(f"{has.system}:{has.name}" if has else str(event_id))
        losses = recording.losses
        # at a CPU's end there is no event of its own that follows
        inner = losses.row < np.array([s.last for s in recording.streams], np.int64)[losses.stream]
        rows, first = np.unique(losses.row[inner], return_index=True)
        return cls(
            details,
            np.array([s.cpu for s in recording.streams], np.uint16),
            threads,
            lut,
            np.array([tasks.number(recording.comm(tid)) for tid in threads.tolist()], np.int32),
            np.array([guests.number(v[0]) if v else -1 for v in known], np.int32),
            np.array([v[1] if v else -1 for v in known], np.int32),
            event,
            rows,
            losses.count[inner][first],
        )

    def thread(self, pids: I32) -> npt.NDArray[np.integer]:
        """The places i[n] of thread ids i32[n] among ``threads``."""
        return self.lut[pids] if self.lut is not None else np.searchsorted(self.threads, pids)

    def lost_before(self, rows: I64) -> I64:
        """How many events were lost on their CPU just before ``rows`` i64[n]: -1 not counted, 0 none."""
        if not len(self.lost_row):
            return np.zeros(len(rows), np.int64)
        at = np.minimum(np.searchsorted(self.lost_row, rows), len(self.lost_row) - 1)
        return np.where(self.lost_row[at] == rows, self.lost_count[at], 0)
