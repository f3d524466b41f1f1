"""The timeline as Arrow record batches: a row an event, block by block, from columns to columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from counterpoint._version import __version__
from counterpoint.clocks.counter import I64
from counterpoint.clocks.rate import Rate
from counterpoint.timeline.arrow_fields import Chunk, FieldColumns, arrow, from_numpy
from counterpoint.timeline.details import Details, widths_to_ns
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.traces.recording import Recording

BLOCK = 1 << 17
"""Events of one batch, at most: bounds the memory of its columns."""

MAX_CELLS = 1 << 25
"""Fields of one batch, at most, present or null."""

_LUT = 1 << 22
"""Thread ids below this (the kernel's PID_MAX_LIMIT, include/linux/threads.h) are looked up in one step."""

NULLABLE = ("host_ns", "bound_ns", "vcpu_guest", "vcpu")
"""Columns that may be null; the others are written faster for never being so."""

I32 = npt.NDArray[np.int32]
T = TypeVar("T", bound=np.generic)


class ArrowEvents:
    """A timeline's events as Arrow columns; see docs/parquet.md for what each is."""

    def __init__(self, timeline: Timeline, *, fields: bool = True) -> None:
        """``fields``: with the struct of the events' own fields. UsageError where pyarrow is not installed."""
        pa = arrow()
        self._timeline = timeline
        self._fields = FieldColumns([m.recording for m in timeline.machines]) if fields else None
        self._events = _Events(timeline)
        machines = [m.name for m in timeline.machines]
        known = self._events
        words = {"machine": machines, "vcpu_guest": known.guests.list, "task": known.tasks.list}
        words["event"] = known.names.list
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
        kinds = {
            "host_ns": pa.int64(), "host_ticks": pa.uint64(), "stamp": pa.uint64(), "bound_ns": pa.int64(),
            "proved": pa.bool_(), "machine": word, "cpu": pa.uint16(), "vcpu_guest": word, "vcpu": pa.int32(),
            "task": word, "pid": pa.int32(), "event": word, "lost_before": pa.int64(),
        }  # fmt: skip
        columns = [pa.field(name, kind, nullable=name in NULLABLE) for name, kind in kinds.items()]
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
                yield from self._split(part)
            return
        mine = np.flatnonzero(timeline.machine == machine)
        for begin in range(0, len(mine), self.block):
            yield from self._split(mine[begin : begin + self.block])

    def _split(self, positions: slice | I64) -> Iterator[Any]:
        """These events as one batch, or as several where their texts are long."""
        try:
            batch = self.batch(positions)
        except OverflowError:
            if isinstance(positions, slice):
                positions = np.arange(positions.start, positions.stop)
            half = len(positions) // 2
            if not half:
                raise MemoryError from None
            yield from self._split(positions[:half])
            yield from self._split(positions[half:])
            return
        yield batch

    def batch(self, positions: slice | I64) -> Any:  # noqa: ANN401
        """One RecordBatch of the events at ``positions`` of the timeline; OverflowError: they are too many."""
        pa = arrow()
        timeline, events = self._timeline, self._events
        machine, row, ticks = timeline.machine[positions], timeline.row[positions], timeline.host_ticks[positions]
        count = len(row)
        place = events.place(machine, row)
        thread = _take(events.thread, place)
        guest, vcpu = _take(events.guest, thread), _take(events.vcpu, thread)
        bound = _take(events.bound_ns, place)
        rate = timeline.rate
        has_ns = None if rate is not None else np.zeros(count, np.bool_)
        columns = [
            from_numpy(pa.int64(), ticks.view(np.int64) if rate is None else rate.array_to_ns(ticks), has_ns),
            from_numpy(pa.uint64(), ticks),
            from_numpy(pa.uint64(), _take(events.stamp, place)),
            from_numpy(pa.int64(), bound, bound >= 0),
            _bools(_take(events.proved, place)),
            self._word("machine", machine.astype(np.int32)),
            from_numpy(pa.uint16(), _take(events.cpu, place)),
            self._word("vcpu_guest", guest),
            from_numpy(pa.int32(), vcpu, vcpu >= 0),
            self._word("task", _take(events.task, thread)),
            from_numpy(pa.int32(), _take(events.pid, thread)),
            self._word("event", _take(events.event, place)),
            from_numpy(pa.int64(), events.lost_before(place)),
        ]
        if self._fields is not None and self._fields.columns:
            chunks: list[Chunk] = []
            for index, one in enumerate(timeline.machines):
                at = np.flatnonzero(machine == index)
                if not len(at):
                    continue
                chunks += self._chunks(index, at, row[at], one.recording.event_id[row[at]])
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


class _Events:
    """What is known of the events of all machines, one machine behind the other, and of their threads.

    By ``place``: stamp u64, bound_ns i64 (-1: none), proved bool, cpu u16, event i32 (into ``names``), thread i32. By
    thread: pid i32, task, guest (into ``tasks``, ``guests``; -1: none) and vcpu i32.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.tasks, self.guests, self.names = _Words(), _Words(), _Words()
        machines = timeline.machines
        details: Sequence[Details | None] = timeline.details or [None] * len(machines)
        counts = np.array([len(m.recording) for m in machines], np.int64)
        self._first = np.cumsum(counts) - counts
        self.stamp = _joined([m.recording.stamp for m in machines])
        self.proved = _joined([m.proved for m in machines])
        self.bound_ns = _joined(
            [_bound_ns(one, timeline.rate, len(m.recording)) for m, one in zip(machines, details, strict=True)]
        )
        self.cpu = _joined(
            [np.array([s.cpu for s in r.streams] or [0], np.uint16)[r.stream_of] for r in _recordings(machines)]
        )
        self.event = _joined([self._event_numbers(r)[r.event_id] for r in _recordings(machines)])
        threads = [_threads(m.recording.pid) for m in machines]
        known = np.cumsum([0, *(len(tids) for tids, _ in threads)]).tolist()
        self.thread = _joined([at + np.int32(n) for (_, at), n in zip(threads, known, strict=False)])
        self.pid = _joined([tids for tids, _ in threads])
        names = [
            [m.recording.comm(tid) for tid in tids.tolist()] for m, (tids, _) in zip(machines, threads, strict=True)
        ]
        self.task = np.array([self.tasks.number(name) for part in names for name in part], np.int32)
        vcpus = [
            one.vcpus.get(tid) if one else None
            for one, (tids, _) in zip(details, threads, strict=True)
            for tid in tids.tolist()
        ]
        self.guest = np.array([self.guests.number(v[0]) if v else -1 for v in vcpus], np.int32)
        self.vcpu = np.array([v[1] if v else -1 for v in vcpus], np.int32)
        lost = [_lost(r) for r in _recordings(machines)]
        self._lost_at = np.concatenate([rows + first for (rows, _), first in zip(lost, self._first, strict=True)])
        self._lost_count = np.concatenate([count for _, count in lost])

    def place(self, machine: npt.NDArray[np.uint16], row: I64) -> I64:
        """The places i64[n] of rows i64[n] of machines u16[n]."""
        return row if len(self._first) == 1 else row + _take(self._first, machine)

    def lost_before(self, place: I64) -> I64:
        """How many events were lost on their CPU just before those at ``place`` i64[n]: -1 not counted, 0 none."""
        if not len(self._lost_at):
            return np.zeros(len(place), np.int64)
        at = np.minimum(np.searchsorted(self._lost_at, place), len(self._lost_at) - 1)
        return np.where(self._lost_at[at] == place, self._lost_count[at], 0)

    def _event_numbers(self, recording: Recording) -> I32:
        """The number of each event id's name."""
        numbers = np.full(1 << 16, -1, np.int32)
        for event_id in recording.counts_by_id():
            has = recording.formats.get(event_id)
            numbers[event_id] = self.names.number(f"{has.system}:{has.name}" if has else str(event_id))
        return numbers


def _recordings(machines: Sequence[Machine]) -> list[Recording]:
    return [m.recording for m in machines]


def _joined(parts: Sequence[npt.NDArray[T]]) -> npt.NDArray[T]:
    """The parts behind one another; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _take(column: npt.NDArray[T], at: npt.NDArray[np.integer]) -> npt.NDArray[T]:
    """The values at places that are known to be there (clip: they are not checked once more)."""
    return column.take(at, mode="clip") if len(column) else np.zeros(len(at), column.dtype)


def _bools(values: npt.NDArray[np.bool_]) -> Any:  # noqa: ANN401
    pa = arrow()
    return pa.Array.from_buffers(
        pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))]
    )  # fmt: skip


def _bound_ns(details: Details | None, rate: Rate | None, count: int) -> I64:
    """The bounds i64[n] of a machine's events in ns; -1: none."""
    if details is None or rate is None:
        return np.full(count, -1, np.int64)
    # few differ from the event before
    edges = np.flatnonzero(np.r_[True, details.width[1:] != details.width[:-1]]) if count else np.zeros(0, np.int64)
    return np.repeat(widths_to_ns(details.width[edges], rate), np.diff(np.r_[edges, count]))


def _threads(pid: I32) -> tuple[I32, I32]:
    """The thread ids i32[k] that occur, in order, and the place i32[n] of each event's among them."""
    if len(pid) and int(pid.min()) >= 0 and int(pid.max()) < _LUT:
        there = np.zeros(int(pid.max()) + 1, np.bool_)
        there[pid] = True
        return np.flatnonzero(there).astype(np.int32), (np.cumsum(there, dtype=np.int32) - np.int32(1))[pid]
    tids, at = np.unique(pid, return_inverse=True)
    return tids, at.astype(np.int32)


def _lost(recording: Recording) -> tuple[I64, I64]:
    """The rows i64[k], in order, before which events were lost, and how many."""
    losses = recording.losses
    # at a CPU's end there is no event of its own that follows
    inner = losses.row < np.array([s.last for s in recording.streams], np.int64)[losses.stream]
    rows, first = np.unique(losses.row[inner], return_index=True)
    return rows, losses.count[inner][first]
