"""perf.data: the samples of tracepoints as events.

Layout: tools/perf/Documentation/perf.data-file-format.txt, tools/perf/util/header.h, include/uapi/linux/perf_event.h::

    "PERFILE2" | u64 size of this header, size of an attr | {u64 offset, size} of attrs, data, event types | features
    attr:     struct perf_event_attr, {u64 offset, size} of its ids
    data:     records {u32 type, u16 misc, u16 size}, of all CPUs in turn
    sample:   [identifier] [ip] [pid, tid] [time] [addr] [id] [stream] [cpu, -] [period] [callchain] [u32 size, raw]
    features: 256 bits; behind the data {u64 offset, size} of each one whose bit is set, in order

The raw data of a tracepoint is the record of ftrace, common fields first, and the feature TRACING_DATA has the formats
of the events as trace.dat has them. Stamps are exact ns of the clock that ``perf record -k`` named, else of perf's own.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64
from counterpoint.dat_layout import Option
from counterpoint.errors import BadFileError
from counterpoint.traces.container import MAX_CPUS, map_file, read_tables
from counterpoint.traces.contents import Contents, Losses, Stream
from counterpoint.traces.cursor import Cursor
from counterpoint.traces.dat import format_texts, saved_comms
from counterpoint.traces.options import Options
from counterpoint.traces.ring import unaligned

MAGIC = b"PERFILE2"
SWAPPED = MAGIC[::-1]

_TYPE_TRACEPOINT = 2
_LOST, _COMM, _THROTTLE, _SAMPLE, _LOST_SAMPLES, _AUXTRACE, _COMPRESSED = 2, 3, 5, 9, 13, 71, (81, 83)
_IP, _TID, _TIME, _ADDR, _READ, _CALLCHAIN, _ID, _CPU, _PERIOD, _STREAM, _RAW = (1 << bit for bit in range(11))
_IDENTIFIER = 1 << 16
_FREQ, _SAMPLE_ID_ALL, _USE_CLOCKID = 1 << 10, 1 << 18, 1 << 25
_CLOCKS = {0: "realtime", 1: "mono", 4: "mono_raw", 7: "boot", 11: "tai"}
"""What ftrace calls the clocks that ``perf record -k`` takes."""

_TRACING_DATA, _HOSTNAME, _OSRELEASE, _ARCH, _NRCPUS = 1, 3, 4, 6, 7
_HEADER = struct.Struct("<8s2Q6Q32s")
_ATTR = struct.Struct("<2I5Q")
_CLOCKID_AT = 92
MAX_ATTRS = 1 << 16
_MOST_LOST = np.uint64(1 << 40)
"""No record counts more losses than this."""


@dataclass(frozen=True, slots=True)
class _Attr:
    """An event that was recorded: ``ids``, one a CPU, name it in the records."""

    type: int
    config: int
    period: int
    sample_type: int
    flags: int
    clock: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    attrs: list[_Attr]
    begin: int
    end: int
    features: dict[int, tuple[int, int]]


def read(path: str) -> Contents:
    """Read the tracepoints' samples of the perf.data file at ``path``; BadFileError where it cannot be."""
    mapped = map_file(path)
    header = _header(path, mapped)
    traced = [a for a in header.attrs if a.type == _TYPE_TRACEPOINT]
    _check(path, traced)
    where = header.features.get(_TRACING_DATA)
    if where is None:
        raise BadFileError("it has no event formats (perf record writes them as it ends: was it cut off?)", path)
    tables = read_tables(path, mapped, *where)
    texts = list(format_texts(tables))
    samples = _Samples(path, mapped, header, tables.warnings)
    machine = _strings(path, mapped, header)
    return Contents(
        path=path,
        format="perf.data",
        clock=traced[0].clock,
        cpus=max([_cpus(path, mapped, header), *(s.cpu + 1 for s in samples.streams)]),
        data=mapped,
        stamp=samples.stamp,
        offset=samples.offset,
        length=samples.length,
        streams=samples.streams,
        losses=samples.losses,
        format_texts=texts,
        comms=lambda: saved_comms(tables) | samples.comms(),
        long_size=tables.long_size,
        options=Options(uname=machine),
        warnings=tables.warnings,
        kallsyms=lambda: tables.piece(Option.KALLSYMS)[4:],
        printk=lambda: tables.piece(Option.PRINTK)[4:],
    )


def _header(path: str, mapped: npt.NDArray[np.uint8]) -> _Header:
    head = mapped[: _HEADER.size].tobytes()
    if head[:8] == SWAPPED:
        raise BadFileError("a perf.data of a big-endian machine is not understood", path, 0)
    if len(head) < 16:
        raise BadFileError("the file ends inside its header", path, len(head))
    size = int.from_bytes(head[8:16], "little")
    if size < _HEADER.size:
        raise (
            BadFileError(
                "it was written to a pipe: perf inject -i FILE -o NEW makes one of it that can be read", path, 8
            )
            if size == 16
            else BadFileError(f"a header of {size} bytes is not understood", path, 8)
        )
    if len(head) < _HEADER.size:
        raise BadFileError("the file ends inside its header", path, len(head))
    _, _, attr_size, attrs_at, attrs_size, begin, data_size, _, _, bits = _HEADER.unpack(head)
    if not data_size:
        raise BadFileError("it says that it has no data: perf record was not ended properly", path, 48)
    if begin > len(mapped):
        raise BadFileError("its data is said to begin behind its end", path, 40)
    end = min(begin + data_size, len(mapped))
    cursor = Cursor(mapped.data, path)
    cursor.pos = begin + data_size
    features = {}
    for bit in (n for n in range(256) if bits[n // 8] >> n % 8 & 1):
        if cursor.left < 16:
            break
        features[bit] = cursor.uint(8, "a feature"), cursor.uint(8, "a feature")
    return _Header(list(_attrs(path, mapped, attr_size, attrs_at, attrs_size)), begin, end, features)


def _attrs(path: str, mapped: npt.NDArray[np.uint8], size: int, at: int, whole: int) -> Iterator[_Attr]:
    if size < _CLOCKID_AT + 4 + 16 or size > 4096 or whole // size > MAX_ATTRS or at + whole > len(mapped):
        raise BadFileError(f"its {whole} bytes of events, {size} each, at byte {at} are not understood", path, 24)
    for begin in range(at, at + whole - size + 1, size):
        entry = mapped[begin : begin + size].tobytes()
        kind, _, config, period, sample_type, _, flags = _ATTR.unpack_from(entry)
        ids_at, ids_size = struct.unpack_from("<2Q", entry, size - 16)
        if ids_at + ids_size > len(mapped):
            raise BadFileError("the ids of an event lie behind its end", path, begin)
        ids = unaligned(mapped[ids_at : ids_at + ids_size], "<u8")[::8].tolist()
        clockid = struct.unpack_from("<i", entry, _CLOCKID_AT)[0]
        clock = _CLOCKS.get(clockid, f"clock {clockid}") if flags & _USE_CLOCKID else "perf"
        yield _Attr(kind, config, period, sample_type, flags, clock, tuple(ids))


def _check(path: str, traced: list[_Attr]) -> None:
    """Refuse events that were recorded in a way that nothing can be proved by."""
    if not traced:
        raise BadFileError("no tracepoint was recorded (perf record -e 'kvm:*' -e 'sched:*' -a)", path)
    for attr in traced:
        if not attr.sample_type & _TIME or not attr.sample_type & _CPU or not attr.sample_type & _RAW:
            raise BadFileError(
                f"tracepoint {attr.config} was recorded without its time, CPU or raw data (perf record -T -R, and -a)",
                path,
            )
        if attr.sample_type & _READ:
            raise BadFileError("its samples hold counters (perf record -e '{...}:S'): that is not understood", path)
        if attr.flags & _FREQ or attr.period != 1:
            raise BadFileError(
                f"of tracepoint {attr.config} only some events were recorded, and nothing marks the others"
                " (perf record -c 1)",
                path,
            )
    if len({a.clock for a in traced}) > 1:
        raise BadFileError("its tracepoints were stamped by different clocks", path)


class _Samples:
    """The tracepoints' samples, CPU by CPU in the order of their stamps, and what was lost between them."""

    def __init__(self, path: str, mapped: npt.NDArray[np.uint8], header: _Header, warnings: list[str]) -> None:
        self._path, self._mapped, self._header, self._warnings = path, mapped, header, warnings
        self._starts = self._walk()
        self._types = unaligned(mapped, "<u4")[self._starts]
        if np.isin(self._types, _COMPRESSED).any():
            raise BadFileError("its records are compressed: record without -z, or write it anew by perf inject", path)
        self._ids = np.array([i for a in header.attrs for i in a.ids], np.uint64)
        self._attr_of = np.repeat(np.arange(len(header.attrs)), [len(a.ids) for a in header.attrs])
        order = np.argsort(self._ids, kind="stable")
        self._ids, self._attr_of = self._ids[order], self._attr_of[order]
        start, stamp, cpu, offset, length = self._tracepoints()
        order = np.lexsort((np.arange(len(start)), stamp, cpu))
        self.stamp, self.offset = stamp[order], offset[order]
        self.length = length[order].astype(np.int32)
        cpus, first = np.unique(cpu[order], return_index=True)
        ends = np.append(first, len(start))
        self.streams = tuple(
            Stream("", int(c), int(a), int(b)) for c, a, b in zip(cpus, ends[:-1], ends[1:], strict=True)
        )
        self.losses = self._losses(start[order])

    def _walk(self) -> I64:
        """Where the records begin: each says where the next one does."""
        data = self._mapped[self._header.begin : self._header.end]
        data = np.ascontiguousarray(data[: len(data) // 8 * 8])
        sizes, types, longs = data.data.cast("H"), data.data.cast("I"), data.data.cast("Q")
        starts = array("q")
        at, last = 0, len(data) - 8
        while at <= last:
            size = sizes[(at >> 1) + 3]
            if size < 8 or size & 7:
                break
            starts.append(at)
            if types[at >> 2] == _AUXTRACE and size >= 16:
                size += longs[(at >> 3) + 1]
            at += size
        if at != len(data):
            self._warnings.append(
                f"{self._path}, byte {self._header.begin + at}: the records are cut short or damaged (read up to there)"
            )
        found = np.frombuffer(starts, np.int64) if len(starts) else np.zeros(0, np.int64)
        # the last one may reach beyond the end
        return (found if at <= len(data) else found[:-1]) + self._header.begin

    def _u64(self, at: I64) -> npt.NDArray[np.uint64]:
        found: npt.NDArray[np.uint64] = unaligned(self._mapped, "<u8")[at]
        return found

    def _u32(self, at: I64) -> I64:
        return unaligned(self._mapped, "<u4")[at].astype(np.int64)

    def _attrs_of(self, ids: npt.NDArray[np.uint64]) -> I64:
        """The attr that each id is of; -1 where there is none."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._attr_of[at], -1)

    def _tracepoints(self) -> tuple[I64, npt.NDArray[np.uint64], I64, I64, I64]:
        """(start of the record, stamp, CPU, first byte and length of the raw data) of every tracepoint's sample."""
        starts = self._starts[self._types == _SAMPLE]
        ends = starts + unaligned(self._mapped, "<u2")[starts + 6]
        attrs = self._header.attrs
        identified = all(a.sample_type & _IDENTIFIER for a in attrs)
        if not identified and len({a.sample_type for a in attrs}) > 1:
            raise BadFileError(
                "its events differ in what their samples hold, and the samples have no identifier", self._path
            )
        if identified:
            starts, ends = starts[ends >= starts + 16], ends[ends >= starts + 16]
            of = self._attrs_of(self._u64(starts + 8))
        elif len(attrs) == 1:
            of = np.zeros(len(starts), np.int64)
        else:
            at = 8 + 8 * (attrs[0].sample_type & (_IP | _TID | _TIME | _ADDR)).bit_count()
            starts, ends = starts[ends >= starts + at + 8], ends[ends >= starts + at + 8]
            of = self._attrs_of(self._u64(starts + at))
        parts = []
        bad = int((of < 0).sum())
        for number, attr in enumerate(attrs):
            if attr.type == _TYPE_TRACEPOINT and (mine := of == number).any():
                part, wrong = self._decode(starts[mine], ends[mine], attr.sample_type)
                parts.append(part)
                bad += wrong
        if bad:
            self._warnings.append(f"{self._path}: {bad} samples are damaged, and left out")
        if not parts:
            none = np.zeros(0, np.int64)
            return none, none.astype(np.uint64), none, none, none
        start, stamp, cpu, offset, length = (np.concatenate(column) for column in zip(*parts, strict=True))
        in_file = np.argsort(start, kind="stable")
        return start[in_file], stamp[in_file], cpu[in_file], offset[in_file], length[in_file]

    def _decode(self, start: I64, end: I64, kind: int) -> tuple[tuple[I64, npt.NDArray[np.uint64], I64, I64, I64], int]:
        """The samples of one kind, and how many are damaged."""
        count = len(start)
        time = 8 + 8 * (kind & (_IDENTIFIER | _IP | _TID)).bit_count()
        cpu = time + 8 + 8 * (kind & (_ADDR | _ID | _STREAM)).bit_count()
        chain = cpu + 8 + 8 * (kind & _PERIOD).bit_count()
        fits = start + chain + 8 <= end
        start, end = start[fits], end[fits]
        raw = start + chain
        if kind & _CALLCHAIN:
            entries = self._u64(raw)
            fits = entries < np.uint64(1 << 13)  # a record has 64 KiB
            start, end, raw = start[fits], end[fits], raw[fits] + 8 + 8 * entries[fits].astype(np.int64)
            fits = raw + 4 <= end
            start, end, raw = start[fits], end[fits], raw[fits]
        length = self._u32(raw)
        where = self._u32(start + cpu)
        fits = (raw + 4 + length <= end) & (where < MAX_CPUS)
        start, raw, length, where = start[fits], raw[fits], length[fits], where[fits]
        return (start, self._u64(start + time), where, raw + 4, length), count - len(start)

    def _losses(self, start: I64) -> Losses:
        """Where events were lost: before the next sample that the CPU's buffer took. ``start``: of every row."""
        at, cpu, count = self._marks()
        streams, rows, counts = [], [], []
        for number, stream in enumerate(self.streams):
            behind = np.maximum.accumulate(start[stream.first : stream.last])
            for which, known in ((stream.cpu, True), (-1, False)):
                mine = slice(*np.searchsorted(cpu, [which, which + 1]).tolist())
                # up to each row, those that lie before it or one of the rows before it
                upto = np.r_[0, np.searchsorted(at[mine], behind), mine.stop - mine.start]
                row = np.flatnonzero(np.diff(upto))
                total = np.r_[0, np.cumsum(count[mine])][upto]
                streams.append(np.full(len(row), number))
                rows.append(stream.first + row)
                counts.append(np.diff(total)[row] if known else np.full(len(row), -1))
        more = self._lost_samples() - int(count.sum())
        if more > 0:
            self._warnings.append(f"{self._path}: {more} lost events are marked nowhere: each CPU's end may lack some")
            streams.append(np.arange(len(self.streams)))
            rows.append(np.array([stream.last for stream in self.streams], np.int64))
            counts.append(np.full(len(self.streams), -1))
        if not streams:
            return Losses(*(np.zeros(0, np.int64) for _ in range(3)))
        found = np.concatenate(counts)
        return Losses(np.concatenate(streams), np.concatenate(rows), np.where(found > 0, found, -1))

    def _marks(self) -> tuple[I64, I64, I64]:
        """(start of the record, CPU or -1, events lost or 0) of what says that events were lost, by CPU and place."""
        size = unaligned(self._mapped, "<u2")[self._starts + 6].astype(np.int64)
        is_mark = ((self._types == _LOST) & (size >= 24)) | ((self._types == _THROTTLE) & (size >= 32))
        at, size, is_lost = self._starts[is_mark], size[is_mark], self._types[is_mark] == _LOST
        count = np.where(is_lost, np.minimum(self._u64(at + 16), _MOST_LOST).astype(np.int64), 0)
        # {id, lost} of what was lost; {time, id, stream} of an event that was throttled
        of = self._attrs_of(self._u64(np.where(is_lost, at + 8, at + 16)))
        kinds = np.array([a.sample_type if a.flags & _SAMPLE_ID_ALL else 0 for a in self._header.attrs])[of]
        back = np.where(kinds & _IDENTIFIER > 0, 16, 8)
        known = (of >= 0) & (kinds & _CPU > 0) & (size >= 24 + back)
        cpu = np.where(known, self._u32(np.where(known, at + size - back, at)), -1)
        order = np.lexsort((at, cpu))
        return at[order], cpu[order], count[order]

    def _lost_samples(self) -> int:
        """How many samples perf says, as it ends, that the kernel has lost."""
        found = self._starts[self._types == _LOST_SAMPLES]
        found = found[unaligned(self._mapped, "<u2")[found + 6] >= 16]
        return int(np.minimum(self._u64(found + 8), _MOST_LOST).astype(np.int64).sum())

    def comms(self) -> dict[int, str]:
        """Command names by thread, the last of each."""
        out = {}
        for at in self._starts[self._types == _COMM].tolist():
            size = int(unaligned(self._mapped, "<u2")[at + 6])
            raw = self._mapped[at + 16 : min(at + size, at + 32)].tobytes()
            tid = int(unaligned(self._mapped, "<i4")[at + 12]) if size >= 16 else 0
            if tid > 0:
                out[tid] = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        return out


def _feature(path: str, mapped: npt.NDArray[np.uint8], header: _Header, feature: int) -> Cursor | None:
    at, size = header.features.get(feature, (0, 0))
    if not size or size > 1 << 16 or at + size > len(mapped):
        return None
    return Cursor(mapped[at : at + size].data, path, base=at)


def _strings(path: str, mapped: npt.NDArray[np.uint8], header: _Header) -> str:
    """What uname would say, as trace.dat has it: system, name, release, machine."""
    words = []
    for feature in (_HOSTNAME, _OSRELEASE, _ARCH):
        cursor = _feature(path, mapped, header, feature)
        words.append("")
        if cursor is not None and cursor.left > 4:
            raw = cursor.take(min(cursor.uint(4, "a name"), cursor.left), "a name")
            words[-1] = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "Linux " + " ".join(words) if all(words) else ""


def _cpus(path: str, mapped: npt.NDArray[np.uint8], header: _Header) -> int:
    cursor = _feature(path, mapped, header, _NRCPUS)
    return min(cursor.uint(4, "the number of CPUs"), MAX_CPUS) if cursor is not None and cursor.left >= 8 else 0
