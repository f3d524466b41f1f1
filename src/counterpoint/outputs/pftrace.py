"""A writer of Perfetto traces: tracks with slices, instants and counters, from columns.

    with PerfettoWriter("merged.pftrace") as trace:
        guest = trace.process("guest web01")
        cpu0 = trace.track("vCPU 0", guest)
        trace.slices(cpu0, begin_ns, end_ns, reason, ["running", "HLT", "MSR_WRITE"])

What a reader may rely on:

* **Clock.** Timestamps are nanoseconds of the merged host timeline, 0 <= t < 2**63, written without a clock
  id: readers take them for their default trace clock (BOOTTIME) as they are. There is no clock snapshot,
  because nothing here needs converting; with a clock id a reader would convert each packet, to itself.
* **Order.** Packets are not sorted by time. Perfetto's trace processor sorts a whole file, stably, so only
  packets with equal stamps must be in order, and they are: see ``PerfettoWriter.slices``.
* **One sequence.** All packets are of one sequence, whose first packet clears the incremental state. A name
  is written once, before its first use, and from then on referred to by number (interned). Tracks are
  numbered from 1, so that naming one takes two or three bytes of a packet; a default track for the sequence
  would save those, at the price of a state that changes with every call.
* **Text** is made valid UTF-8 without control characters, and is cut to ``MAX_TEXT_BYTES``.

The numbers of the fields are those of Perfetto's ``protos/perfetto/trace``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from counterpoint.errors import BadFileError, UsageError
from counterpoint.outputs import protorows
from counterpoint.outputs.protorows import Part, fixed64, integer, message, text, when

MAX_TEXT_BYTES: Final = 4096
"""A longer text is cut, at a character, and ends in an ellipsis."""
OPEN_END: Final = -1
"""In a column of slice ends: this slice had not ended when the trace did."""

Text = str | bytes
Names = Sequence[Text]


@dataclass(frozen=True)
class Addresses:
    """Values that are shown in hexadecimal: a column of unsigned integers.

    For what may pass 2**63, such as an address in a kernel: the trace processor keeps numbers as int64,
    and shows a greater one as negative.
    """

    column: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Interned:
    """Texts by their numbers, which ``PerfettoWriter.intern`` gave."""

    column: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Flows:
    """Arrows that begin, or end, at the events of a call: a column of their numbers, one per row."""

    ids: NDArray[np.integer[Any]]
    field: int

    @classmethod
    def begins(cls, ids: NDArray[np.integer[Any]]) -> Flows:
        """At each event an arrow begins."""
        return cls(ids, _TrackEvent.FLOW_IDS)

    @classmethod
    def ends(cls, ids: NDArray[np.integer[Any]]) -> Flows:
        """At each event an arrow ends, which has begun at an event that is not later."""
        return cls(ids, _TrackEvent.TERMINATING_FLOW_IDS)

    def part(self, rows: slice) -> Flows:
        """Those of some rows."""
        return Flows(self.ids[rows], self.field)


Values = NDArray[Any] | tuple[Names, NDArray[np.integer[Any]]] | Addresses | Interned
"""Values of an annotation, one per row: a column of int (of any size and sign), bool or float; distinct texts
and an index into them; or addresses. Rows that a ``numpy.ma`` array masks have no such annotation."""
Annotations = Sequence[tuple[Text, Values]]


class _Trace:
    PACKET = 1


class _TracePacket:
    TIMESTAMP = 8
    TRUSTED_PACKET_SEQUENCE_ID = 10
    TRACK_EVENT = 11
    INTERNED_DATA = 12
    SEQUENCE_FLAGS = 13
    TRACK_DESCRIPTOR = 60
    FIRST_PACKET_ON_SEQUENCE = 87
    MACHINE_ID = 98
    TRACE_ATTRIBUTES = 126

    SEQ_INCREMENTAL_STATE_CLEARED = 1
    SEQ_NEEDS_INCREMENTAL_STATE = 2


class _TrackDescriptor:
    UUID = 1
    NAME = 2
    PROCESS = 3
    PARENT_UUID = 5
    COUNTER = 8
    CHILD_ORDERING = 11
    SIBLING_ORDER_RANK = 12
    DESCRIPTION = 14
    SIBLING_MERGE_BEHAVIOR = 15
    PROCESS_ORDERING = 19

    EXPLICIT = 3
    SIBLING_MERGE_BEHAVIOR_NONE = 2
    PROCESS_ORDERING_EXPLICIT = 1


class _ProcessDescriptor:
    PID = 1
    LEGACY_SORT_INDEX = 3
    PROCESS_NAME = 6


class _CounterDescriptor:
    UNIT_NAME = 6


class _TrackEvent:
    CATEGORY_IIDS = 3
    DEBUG_ANNOTATIONS = 4
    TYPE = 9
    NAME_IID = 10
    TRACK_UUID = 11
    COUNTER_VALUE = 30
    FLOW_IDS = 47
    TERMINATING_FLOW_IDS = 48

    TYPE_SLICE_BEGIN = 1
    TYPE_SLICE_END = 2
    TYPE_INSTANT = 3
    TYPE_COUNTER = 4


class _DebugAnnotation:
    NAME_IID = 1
    BOOL_VALUE = 2
    UINT_VALUE = 3
    INT_VALUE = 4
    DOUBLE_VALUE = 5
    POINTER_VALUE = 7
    STRING_VALUE_IID = 17


class _InternedData:
    EVENT_CATEGORIES = 1
    EVENT_NAMES = 2
    DEBUG_ANNOTATION_NAMES = 3
    DEBUG_ANNOTATION_STRING_VALUES = 29


class _Interned:
    """An entry of interned data: EventCategory, EventName, DebugAnnotationName, InternedString alike."""

    IID = 1
    NAME = 2


class _TraceAttributes:
    ATTRIBUTE = 1


class _Attribute:
    KEY = 1
    LONG_VALUE = 2
    STRING_VALUE = 3


_SEQUENCE_ID = 1
_ROOT = 0  # the uuid of the track above all, which says how processes are ordered
_FOREVER = np.iinfo(np.int64).max
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(value: Text) -> bytes:
    """Text from a trace as UTF-8 that is safe to show.

    Bytes that are not UTF-8, lone surrogates, control characters (tab and newline stay) and marks that change
    the direction of writing become U+FFFD. What is longer than ``MAX_TEXT_BYTES`` is cut.
    """
    if isinstance(value, str) and len(value) <= MAX_TEXT_BYTES and value.isascii() and value.isprintable():
        return value.encode()
    if isinstance(value, bytes):
        value = value[: MAX_TEXT_BYTES + 4].decode("utf-8", "replace")
    data = _UNFIT.sub("\ufffd", value[: MAX_TEXT_BYTES + 1]).encode()
    if len(data) <= MAX_TEXT_BYTES:
        return data
    ellipsis = "…".encode()
    return data[: MAX_TEXT_BYTES - len(ellipsis)].decode("utf-8", "ignore").encode() + ellipsis


class PerfettoWriter:
    """Writes one trace, to a path or to an open binary file.

    A path gets its name when ``close`` has written everything: until then the data is in a temporary file
    beside it, which ``abort``, or an exception in the ``with`` block, removes. A file object is written to
    and flushed, not closed.

    Tracks are known by the numbers that ``process``, ``track`` and ``counter_track`` return.
    """

    def __init__(self, target: str | PathLike[str] | BinaryIO, *, overwrite: bool = False) -> None:
        """Start the trace; an existing file is replaced only with ``overwrite``, else it is a UsageError."""
        self.bytes_written = 0
        self._path: Path | None = None
        self._temporary: Path | None = None
        if isinstance(target, (str, PathLike)):
            self._path = Path(target)
            if not overwrite and self._path.exists():
                raise UsageError(f"{self._path} exists; it is replaced only when asked to")
            self._temporary = self._path.with_name(f".{secrets.token_hex(8)}.pftrace.part")
            try:
                self._file: BinaryIO = self._temporary.open("xb")
            except OSError as error:
                raise BadFileError(f"cannot be written: {error.strerror}", self._path) from error
        else:
            self._file = target
        self._closed = False
        self._uuids = 0
        self._pids = 0
        self._machines = 0
        self._children: dict[int, int] = {}
        self._interned: dict[int, dict[bytes, int]] = {}
        try:
            self._start()
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        """Use as a context: closed at its end, or aborted on an exception."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close, or abort on an exception."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def close(self) -> None:
        """Write out everything and give the file its name. A second call does nothing."""
        if self._closed:
            return
        try:
            if self._temporary is None or self._path is None:
                self._file.flush()
            else:
                self._file.close()
                self._temporary.replace(self._path)
        except OSError as error:
            self.abort()
            raise self._failed(error) from error
        self._closed = True

    def abort(self) -> None:
        """Give up: remove the temporary file. Nothing has touched the target's name."""
        if self._closed:
            return
        self._closed = True
        if self._temporary is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._temporary.unlink()

    # -- tracks

    def process(self, name: Text, *, order: int | None = None, description: Text = "") -> int:
        """Add a group of tracks for a machine: a process of this name, with a number of its own as pid.

        The pids of host and guests collide, and a machine is not one of its processes, so no real pid is
        used. ``order`` ranks it among the processes; by default they show as they were added.
        """
        self._pids += 1
        rank = self._rank(_ROOT, order)
        process = message(
            _TrackDescriptor.PROCESS,
            integer(_ProcessDescriptor.PID, self._pids),
            text(_ProcessDescriptor.PROCESS_NAME, clean(name)),
            # what readers go by that do not know PROCESS_ORDERING
            integer(_ProcessDescriptor.LEGACY_SORT_INDEX, rank),
        )
        return self._describe(rank, description, process)

    def track(self, name: Text, parent: int | None = None, *, order: int | None = None, description: Text = "") -> int:
        """Add a track below ``parent``, which is a process or a track, or at the top (None).

        ``order`` ranks it among the tracks of its parent; by default they show as they were added. Tracks of
        the same name stay apart.
        """
        return self._child(name, parent, order, description)

    def counter_track(
        self,
        name: Text,
        parent: int | None = None,
        *,
        unit: Text = "",
        order: int | None = None,
        description: Text = "",
    ) -> int:
        """Add a track for ``counter``; ``unit`` is shown with its values."""
        fields = [text(_CounterDescriptor.UNIT_NAME, clean(unit))] if unit else []
        return self._child(name, parent, order, description, message(_TrackDescriptor.COUNTER, *fields))

    # -- events

    def slices(
        self,
        track: int,
        begin_ns: NDArray[np.integer[Any]],
        end_ns: NDArray[np.integer[Any]],
        name_index: NDArray[np.integer[Any]],
        names: Names,
        annotations: Annotations = (),
        *,
        category: Text = "",
    ) -> None:
        """Add slices (n,) to one track, from ``begin_ns`` to ``end_ns``: ``OPEN_END`` if that is missing.

        They may touch, nest and have no length, but not cross: a ValueError names two that do. A slice with
        no end holds all that begin after it. Rows need not be sorted; among slices that begin together the
        longer is the outer one. One without length is inside those of them that come before it, if the rows
        are in order, and else inside them all.

        A second call for the same track must not add slices that cross those of the first.
        """
        begin, end = _stamps(begin_ns, "begin_ns"), _integers(end_ns, "end_ns")
        ended = end != OPEN_END
        _check_rows(begin, end, name_index)
        early = np.flatnonzero(ended & (end < begin))
        if len(early):
            row = int(early[0])
            raise ValueError(f"slice {row} ends at {end[row]}, before it begins at {begin[row]}")
        order = _nesting_order(begin, np.where(ended, end, _FOREVER))
        if order is not None:
            begin, end, ended, name_index = begin[order], end[order], ended[order], name_index[order]
            annotations = [(name, _reordered(values, order)) for name, values in annotations]

        # A row is a begin and its end, side by side. That is the right order for a reader that sorts stably
        # by time: of packets with one stamp, the ends are of slices that began earlier, so they stand before
        # the begins, which stand outer first; and ends, having no names, may stand in any order.
        begins = self._named(_TrackEvent.TYPE_SLICE_BEGIN, track, name_index, names, annotations, category)
        ends = _event(_TrackEvent.TYPE_SLICE_END, self._known(track))
        self._write(_packet(begin, begins), when(ended, _packet(end, ends)))

    def slice_ends(self, track: int, end_ns: NDArray[np.integer[Any]]) -> None:
        """Add the ends (n,) of slices whose begins are added after it, kind by kind, with ``slice_begins``.

        So slices of several kinds, with annotations of their own, can be on one track. They all have a length, nest
        without crossing, and outer ones are added before inner ones. That is the right order for a reader that sorts
        stably by time: at one stamp ends stand before begins, and begins outer first.
        """
        self._write(_packet(_stamps(end_ns, "end_ns"), _event(_TrackEvent.TYPE_SLICE_END, self._known(track))))

    def slice_begins(
        self,
        track: int,
        begin_ns: NDArray[np.integer[Any]],
        name_index: NDArray[np.integer[Any]],
        names: Names,
        annotations: Annotations = (),
        *,
        category: Text = "",
    ) -> None:
        """Add the begins (n,) of slices whose ends have been added with ``slice_ends``."""
        stamps = _stamps(begin_ns, "begin_ns")
        _check_rows(stamps, name_index)
        begins = self._named(_TrackEvent.TYPE_SLICE_BEGIN, track, name_index, names, annotations, category)
        self._write(_packet(stamps, begins))

    def instants(
        self,
        track: int | NDArray[np.integer[Any]],
        ts_ns: NDArray[np.integer[Any]],
        name_index: NDArray[np.integer[Any]],
        names: Names,
        annotations: Annotations = (),
        *,
        category: Text = "",
        flows: Flows | None = None,
    ) -> None:
        """Add instants (n,) to one track, or each to its own (a column of tracks), in any order of time."""
        stamps = _stamps(ts_ns, "ts_ns")
        _check_rows(stamps, name_index)
        event = self._named(_TrackEvent.TYPE_INSTANT, track, name_index, names, annotations, category, flows)
        self._write(_packet(stamps, event))

    def counter(self, track: int, ts_ns: NDArray[np.integer[Any]], values: NDArray[np.integer[Any]]) -> None:
        """Add values (n,), int64, to a counter track; each holds until the next."""
        stamps, values = _stamps(ts_ns, "ts_ns"), _integers(values, "values")
        _check_rows(stamps, values)
        event = _event(_TrackEvent.TYPE_COUNTER, self._known(track), integer(_TrackEvent.COUNTER_VALUE, values))
        self._write(_packet(stamps, event))

    def facts(
        self,
        title: Text,
        facts: Mapping[str, int | bool | str],
        ts_ns: int,
        *,
        parent: int | None = None,
        description: Text = "",
    ) -> int:
        """Add what holds for the whole trace, such as the proof of its clocks; return the track it is on.

        It is written twice. As an instant at ``ts_ns`` (take the begin of the timeline) on a track of its
        own, with an annotation for each fact: every version of the UI shows that on a click, and of the
        trace processor in its table ``args``. And as trace attributes, the format's own place for it, which
        is young: a reader that does not know them passes over them. Other places are no better: Chrome's
        metadata has fixed fields, a trace config would claim a recording that did not happen, and the state
        of the UI is not shown.
        """
        track = self.track(title, parent, order=-1, description=description)
        annotations: list[tuple[Text, Values]] = []
        attributes: list[Part] = []
        for key, fact in facts.items():
            if isinstance(fact, str):
                value = text(_Attribute.STRING_VALUE, clean(fact))
                annotations.append((key, ([fact], np.zeros(1, np.int64))))
            else:
                column = np.array([fact])
                if column.dtype.kind not in "iub":
                    raise ValueError(f"the fact {key!r} is {fact}, which does not fit into 64 bits")
                value = integer(_Attribute.LONG_VALUE, int(fact))
                annotations.append((key, column))
            attribute = [text(_Attribute.KEY, clean(key)), value]
            attributes.append(message(_TraceAttributes.ATTRIBUTE, *attribute))
        self._write(_bare_packet(message(_TracePacket.TRACE_ATTRIBUTES, *attributes)))
        self.instants(track, np.array([ts_ns]), np.zeros(1, np.int64), [title], annotations)
        return track

    def intern(self, texts: Iterable[Text]) -> NDArray[np.uint64]:
        """The numbers of these texts, for annotations: to be taken by an index, as ``Interned``."""
        return self._intern(_InternedData.DEBUG_ANNOTATION_STRING_VALUES, texts)

    # -- packets of other kinds

    def machine(self) -> int:
        """A number for a machine, whose packets a reader keeps apart; the first, 0, is the trace's own."""
        self._machines += 1
        return self._machines - 1

    def packet(self, machine: int, *parts: Part) -> None:
        """Add a packet of these fields, which needs no state of a sequence."""
        self._write(message(_Trace.PACKET, *self._of_machine(machine), *parts))

    def rows_in_packets(self, machine: int, field: int, head: Sequence[Part], row: Part) -> None:
        """Add packets with one message ``field`` each, which holds ``head`` and then a block of rows."""
        for block in protorows.encode(row):
            body = [*head, protorows.constant(block.tobytes())]
            self.packet(machine, message(field, *body))

    def _of_machine(self, machine: int) -> list[Part]:
        sequence = integer(_TracePacket.TRUSTED_PACKET_SEQUENCE_ID, _SEQUENCE_ID + 1 + machine)
        return [sequence, *([integer(_TracePacket.MACHINE_ID, machine)] if machine else [])]

    # -- inside

    def _start(self) -> None:
        """Write the first packet: the sequence starts anew, and the root track orders processes by rank."""
        root = message(
            _TracePacket.TRACK_DESCRIPTOR,
            integer(_TrackDescriptor.UUID, _ROOT),
            integer(_TrackDescriptor.CHILD_ORDERING, _TrackDescriptor.EXPLICIT),
            integer(_TrackDescriptor.PROCESS_ORDERING, _TrackDescriptor.PROCESS_ORDERING_EXPLICIT),
        )
        cleared = _TracePacket.SEQ_INCREMENTAL_STATE_CLEARED | _TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        first = integer(_TracePacket.FIRST_PACKET_ON_SEQUENCE, 1)
        self._write(_bare_packet(first, root, flags=cleared))

    def _child(self, name: Text, parent: int | None, order: int | None, description: Text, *parts: Part) -> int:
        rank = self._rank(_ROOT if parent is None else self._known(parent), order)
        above = [] if parent is None else [integer(_TrackDescriptor.PARENT_UUID, parent)]
        return self._describe(rank, description, *above, text(_TrackDescriptor.NAME, clean(name)), *parts)

    def _describe(self, rank: int, description: Text, *parts: Part) -> int:
        self._uuids += 1
        if description:
            parts = (*parts, text(_TrackDescriptor.DESCRIPTION, clean(description)))
        track = message(
            _TracePacket.TRACK_DESCRIPTOR,
            integer(_TrackDescriptor.UUID, self._uuids),
            *parts,
            integer(_TrackDescriptor.CHILD_ORDERING, _TrackDescriptor.EXPLICIT),
            integer(_TrackDescriptor.SIBLING_ORDER_RANK, rank),
            integer(_TrackDescriptor.SIBLING_MERGE_BEHAVIOR, _TrackDescriptor.SIBLING_MERGE_BEHAVIOR_NONE),
        )
        self._write(_bare_packet(track))
        return self._uuids

    def _rank(self, parent: int, order: int | None) -> int:
        """The rank of a new track: the ``order`` asked for, or else how many its parent has had."""
        count = self._children.get(parent, 0)
        self._children[parent] = count + 1
        if order is None:
            return count
        if not -(1 << 31) <= order < 1 << 31:
            raise ValueError(f"an order is a 32-bit number, not {order}")
        return order

    def _known(self, track: int) -> int:
        if not 0 < track <= self._uuids:
            raise ValueError(f"there is no track {track}")
        return track

    def _named(
        self,
        kind: int,
        track: int | NDArray[np.integer[Any]],
        name_index: NDArray[np.integer[Any]],
        names: Names,
        annotations: Annotations,
        category: Text,
        flows: Flows | None = None,
    ) -> Part:
        """A track event with a name, annotations and a category; the interned data it needs is written."""
        if not isinstance(track, np.ndarray):
            self._known(track)
        elif len(track):
            self._known(int(track.min()))
            self._known(int(track.max()))
        parts = [integer(_TrackEvent.NAME_IID, self._intern_column(_InternedData.EVENT_NAMES, names, name_index))]
        if category:
            iid = self._intern(_InternedData.EVENT_CATEGORIES, [category])[0]
            parts.append(integer(_TrackEvent.CATEGORY_IIDS, int(iid)))
        iids = self._intern(_InternedData.DEBUG_ANNOTATION_NAMES, [name for name, _ in annotations])
        for iid, (_, values) in zip(iids, annotations, strict=True):
            parts.append(self._annotation(int(iid), values))
        if flows is not None:
            parts.append(fixed64(flows.field, _integers(flows.ids, "flows")))
        return _event(kind, track, *parts)

    def _annotation(self, name_iid: int, values: Values) -> Part:
        value: Part
        texts: Names | None = None
        if isinstance(values, Interned):
            value = integer(_DebugAnnotation.STRING_VALUE_IID, values.column)
            return message(_TrackEvent.DEBUG_ANNOTATIONS, integer(_DebugAnnotation.NAME_IID, name_iid), value)
        if isinstance(values, tuple):
            texts, column = values
        else:
            column = values.column if isinstance(values, Addresses) else values
        absent = np.ma.getmaskarray(column) if np.ma.is_masked(column) else None
        column = np.ma.getdata(column) if absent is None else np.ma.filled(column, 0)
        if texts is not None:
            strings = _InternedData.DEBUG_ANNOTATION_STRING_VALUES
            if absent is not None and not texts:
                texts = [""]
            iids = self._intern_column(strings, texts, column)
            value = integer(_DebugAnnotation.STRING_VALUE_IID, iids)
        elif column.dtype.kind == "f":
            value = fixed64(_DebugAnnotation.DOUBLE_VALUE, column.astype(np.float64, copy=False))
        else:
            field = _VALUE_FIELDS.get(column.dtype.kind, 0)
            if isinstance(values, Addresses):
                field = _DebugAnnotation.POINTER_VALUE
            value = integer(field, column)
        part = message(_TrackEvent.DEBUG_ANNOTATIONS, integer(_DebugAnnotation.NAME_IID, name_iid), value)
        return part if absent is None else when(~absent, part)

    def _intern_column(self, kind: int, texts: Names, index: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
        """The numbers of the texts that ``index`` points to."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(texts):
            raise ValueError(f"an index leaves the {len(texts)} texts it points into")
        numbers: NDArray[np.uint64] = self._intern(kind, texts)[index]
        return numbers

    def _intern(self, kind: int, texts: Iterable[Text]) -> NDArray[np.uint64]:
        """The numbers of these texts, as a field of InternedData; those that are new are written."""
        numbers = self._interned.setdefault(kind, {})
        known = len(numbers)
        found = [numbers.setdefault(data, len(numbers) + 1) for data in map(clean, texts)]
        new = list(numbers)[known:] if len(numbers) > known else []
        if new:
            iids = np.arange(known + 1, len(numbers) + 1)
            entry = message(kind, integer(_Interned.IID, iids), text(_Interned.NAME, new))
            self._write(_bare_packet(message(_TracePacket.INTERNED_DATA, entry)))
        return np.array(found, np.uint64)

    def _write(self, *parts: Part) -> None:
        if self._closed:
            raise ValueError("the trace is closed")
        for block in protorows.encode(*parts):
            try:
                self._file.write(block.data)
            except OSError as error:
                raise self._failed(error) from error
            self.bytes_written += len(block)

    def _failed(self, error: OSError) -> Exception:
        """What to raise: a file of ours is named; the owner of another knows it by the error itself."""
        if self._path is None:
            return error
        return BadFileError(f"cannot be written: {error.strerror}", self._path)


_VALUE_FIELDS = {
    "b": _DebugAnnotation.BOOL_VALUE,
    "u": _DebugAnnotation.UINT_VALUE,
    "i": _DebugAnnotation.INT_VALUE,
}


def _bare_packet(*parts: Part, flags: int = _TracePacket.SEQ_NEEDS_INCREMENTAL_STATE) -> Part:
    """A packet without a timestamp: for descriptions, which hold for all times."""
    sequence = integer(_TracePacket.TRUSTED_PACKET_SEQUENCE_ID, _SEQUENCE_ID)
    return message(_Trace.PACKET, sequence, integer(_TracePacket.SEQUENCE_FLAGS, flags), *parts)


def _packet(stamps: NDArray[np.int64], event: Part) -> Part:
    return _bare_packet(integer(_TracePacket.TIMESTAMP, stamps), event)


def _event(kind: int, track: int | NDArray[np.integer[Any]], *parts: Part) -> Part:
    return message(
        _TracePacket.TRACK_EVENT,
        integer(_TrackEvent.TYPE, kind),
        integer(_TrackEvent.TRACK_UUID, track),
        *parts,
    )


def _integers(values: NDArray[np.integer[Any]], what: str) -> NDArray[np.int64]:
    """The column as int64; a ValueError if it is not of integers, or does not fit."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{what} is a column of integers, not of {values.dtype}")
    if values.dtype.kind == "u" and len(values) and int(values.max()) > _FOREVER:
        raise ValueError(f"{what} has a value above the range of int64")
    return values.astype(np.int64, copy=False)


def _stamps(values: NDArray[np.integer[Any]], what: str) -> NDArray[np.int64]:
    stamps = _integers(values, what)
    if len(stamps) and int(stamps.min()) < 0:
        raise ValueError(f"{what} has a negative time, {stamps.min()}")
    return stamps


def _check_rows(*columns: NDArray[Any]) -> None:
    if len({column.shape for column in columns}) > 1:
        raise ValueError(f"columns differ in shape: {', '.join(str(column.shape) for column in columns)}")


def _reordered(values: Values, order: NDArray[np.int64]) -> Values:
    if isinstance(values, tuple):
        return values[0], values[1][order]
    return type(values)(values.column[order]) if isinstance(values, Addresses | Interned) else values[order]


def _nesting_order(begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """An order of slices in which they begin one after the other, outer ones first; None: as they are.

    ValueError if two of them cross.
    """
    if np.all(end[:-1] <= begin[1:]):
        return None  # one after the other: the common case
    if np.all(begin[:-1] <= begin[1:]) and _first_crossing(begin, end) is None:
        return None
    order = np.lexsort((-end, begin))
    crossing = _first_crossing(begin[order], end[order])
    if crossing is not None:
        one, other = (int(order[row]) for row in crossing)
        spans = [f"{row} ({begin[row]} to {end[row]})" for row in (one, other)]
        raise ValueError(f"slices {spans[0]} and {spans[1]} cross")
    return order


def _first_crossing(begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[int, int] | None:
    """Two slices that do not nest when a stack of them is opened in this order, which is sorted by begin.

    Begins and ends in the order of time, like brackets, have a depth. They match if at each depth every
    begin is followed by the end of the same slice.
    """
    rows = np.arange(len(begin))
    long = begin < end
    # at one stamp: ends of what began before, the last begun first; then begins, an empty slice's end at once
    closing = rows[long][::-1]
    opening = np.repeat(rows, np.where(long, 1, 2))
    row = np.concatenate((closing, opening))
    stamp = np.concatenate((end[closing], begin[opening]))
    step = np.ones(len(row), np.int64)
    step[: len(closing)] = -1
    step[len(closing) + 1 :][opening[1:] == opening[:-1]] = -1
    order = np.argsort(stamp, kind="stable")
    row, step = row[order], step[order]
    depth = np.cumsum(step) + (step < 0)
    level = np.argsort(depth, kind="stable")
    begun, closed = row[level[0::2]], row[level[1::2]]
    bad = np.flatnonzero(begun != closed)
    return (int(begun[bad[0]]), int(closed[bad[0]])) if len(bad) else None
