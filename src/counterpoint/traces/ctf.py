"""CTF traces of kernels, through babeltrace2's Python module: LTTng's, perf's, and our own.

babeltrace2 makes a Python object of every message; here each becomes the bytes of a record as ftrace would have them,
under a format text that is made of the trace's own description, and from there on all is columns again. Its own
layer ``bt2._native_bt`` is used for fields: several times as fast as its classes.

Of our own traces the recording is taken back as it was: stamps are those of the machine's own clock, not host time.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I32, I64, U64, relative
from counterpoint.clocks.rate import Rate
from counterpoint.errors import BadFileError, UsageError
from counterpoint.traces.babeltrace import babeltrace
from counterpoint.traces.child import Answer, in_child
from counterpoint.traces.container import MAX_CPUS
from counterpoint.traces.contents import Contents, Losses, Stream
from counterpoint.traces.formats import MAX_FIELDS
from counterpoint.traces.lttng_names import kernel_event, kernel_field
from counterpoint.traces.options import Options, Tsc2Nsec
from counterpoint.traces.ring import unaligned

METADATA: Final = "metadata"
TEXT, PACKETS = b"/* CTF 1.", (0x75D11D57).to_bytes(4, "little")
"""How metadata begins: as text, or in packets (CTF 1.8.3, 7), of either byte order."""

MIN_BYTES, MAX_RATIO = 1 << 28, 64
"""What the events of a trace may take in memory: ``MAX_RATIO`` times its size on disk, or that many bytes."""

MAX_KINDS = 0xFFFF
MAX_DYNAMIC = 0xFFFF
"""Bytes that a locator (length << 16 | offset) can speak of."""

Bytes = npt.NDArray[np.uint8]

_COMMON = "<HBBi"
_HEAD = struct.calcsize(_COMMON)
_UNKNOWN_TID = -1


def is_trace(path: Path) -> bool:
    """Whether a folder is a CTF trace, or LTTng's folder of a session with a kernel's trace in it."""
    return trace_folder(path) is not None


def trace_folder(path: Path) -> Path | None:
    """The folder that holds the metadata: ``path`` itself, or ``path``/kernel."""
    for folder in (path, path / "kernel"):
        try:
            with (folder / METADATA).open("rb") as file:
                head = file.read(len(TEXT))
        except OSError:
            continue
        if head == TEXT or head[:4] in (PACKETS, PACKETS[::-1]):
            return folder
    return None


def read(path: str) -> Contents:
    """Read the CTF trace at ``path``; BadFileError where it cannot be, UsageError where babeltrace2 is missing."""
    folder = trace_folder(Path(path))
    if folder is None:
        raise BadFileError("the folder holds no CTF trace: it has no metadata", path)
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    most = max(MIN_BYTES, MAX_RATIO * size)
    # a damaged trace may make babeltrace2 crash, or fill the memory
    said, (data, stamp, offset, length, *lost) = in_child(lambda: _columns(path, folder, most), path, 2 * most)
    options = Options(recorder=said["recorder"], uname=said["uname"], date_offset_us=said["date_us"])
    if said["tsc2nsec"] is not None:
        mult, shift = said["tsc2nsec"]
        options.tsc2nsec = Tsc2Nsec(mult, shift, 0)
    return Contents(
        path=path,
        format="CTF",
        clock=said["clock"],
        cpus=max((cpu + 1 for cpu, _, _ in said["streams"]), default=0),
        data=data,
        stamp=stamp,
        offset=offset,
        length=length,
        streams=tuple(Stream("", *place) for place in said["streams"]),
        losses=Losses(*lost),
        format_texts=[(system, text.encode()) for system, text in said["formats"]],
        comms=lambda: {int(tid): comm for tid, comm in said["comms"].items()},
        options=options,
        warnings=said["warnings"],
    )


def _columns(path: str, folder: Path, most: int) -> Answer:
    """What is in a trace; BadFileError where it takes more than ``most`` bytes."""
    bt2 = babeltrace()
    try:
        return _Reader(bt2, path, folder, most).read()
    except bt2._Error as err:
        raise BadFileError(
            f"babeltrace2 cannot read it: {_cause(err)} (babeltrace2 {folder} may say more)", path
        ) from None


def _cause(err: Any) -> str:  # noqa: ANN401
    """The first cause of an error of babeltrace2."""
    causes = [str(cause.message) for cause in err]
    return causes[0] if causes else str(err)


# -- kinds of events


@dataclass(slots=True)
class _Member:
    """A field of an event: where it is in the payload, and what it becomes.

    ``code`` is struct's, of an integer or of an array's elements; ``plus`` is added to each value. ``kind``: "int",
    "text" or "list".
    """

    path: tuple[int, ...]
    name: str
    kind: str
    code: str
    plus: int
    get: Callable[[Any], Any]
    is_hexadecimal: bool = False


_TYPES: Final = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "b": "s8", "h": "s16", "i": "s32", "q": "s64"}


@dataclass(slots=True)
class _Kind:
    """A kind of event, by its number here, and how its records are made."""

    number: int
    system: str
    name: str
    members: list[_Member]
    packer: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        codes = "".join(m.code if m.kind == "int" else "I" for m in self.members)
        self.packer = struct.Struct(_COMMON + codes)

    @property
    def places(self) -> dict[str, int]:
        """The byte of each field in a record."""
        sizes = [struct.calcsize("<" + m.code) if m.kind == "int" else 4 for m in self.members]
        starts = np.cumsum([_HEAD, *sizes]).tolist()
        return {m.name: at for m, at in zip(self.members, starts[:-1], strict=True)}

    @property
    def text(self) -> tuple[str, str]:
        """The system and the format text, as the kernel would show it."""
        lines = [f"name: {self.name}", f"ID: {self.number}", "format:"]
        for declaration, offset, size, signed in (
            ("unsigned short common_type", 0, 2, 0),
            ("unsigned char common_flags", 2, 1, 0),
            ("unsigned char common_preempt_count", 3, 1, 0),
            ("int common_pid", 4, 4, 1),
        ):
            lines.append(f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};")
        lines.append("")
        places = self.places
        for m in self.members:
            size = struct.calcsize("<" + m.code) if m.kind == "int" else 4
            signed = int(m.code.islower())
            kind = "char" if m.kind == "text" else _TYPES[m.code]
            declaration = f"{kind} {m.name}" if m.kind == "int" else f"__data_loc {kind}[] {m.name}"
            lines.append(f"\tfield:{declaration};\toffset:{places[m.name]};\tsize:{size};\tsigned:{signed};")
        shown = [_shown(m) for m in self.members]
        arguments = "".join(f", {argument}" for _, argument in shown)
        lines += ["", f'print fmt: "{" ".join(text for text, _ in shown)}"{arguments}', ""]
        return self.system, "\n".join(lines)


def _shown(member: _Member) -> tuple[str, str]:
    """A conversion of a print format and its argument."""
    name = member.name
    if member.kind == "text":
        return f"{name}=%s", f"__get_str({name})"
    size = struct.calcsize("<" + member.code)
    if member.kind == "list":
        count = f"__get_dynamic_array_len({name}) / {size}"
        return f"{name}=%s", f"__print_array(__get_dynamic_array({name}), {count}, {size})"
    length = {1: "hh", 2: "h", 4: "", 8: "ll"}[size]
    if member.is_hexadecimal:
        return f"{name}=0x%{length}x", f"REC->{name}"
    return f"{name}=%{length}{'d' if member.code.islower() else 'u'}", f"REC->{name}"


# -- streams


@dataclass(slots=True)
class _Rows:
    """What was read of one data stream."""

    cpu: int = -1
    stamp: array[int] = field(default_factory=lambda: array("Q"))
    begin: array[int] = field(default_factory=lambda: array("Q"))
    data: bytearray = field(default_factory=bytearray)
    lost_row: array[int] = field(default_factory=lambda: array("q"))
    lost_count: array[int] = field(default_factory=lambda: array("q"))
    lossy: bool = False
    lossy_to: int | None = None

    def lose(self, count: int, end: int | None) -> None:
        """Events were lost between here and the stamp ``end`` of the trace's clock (None: somewhere in this packet)."""
        self.lost_row.append(len(self.stamp))
        self.lost_count.append(count)
        self.lossy, self.lossy_to = True, end

    def on(self, value: int) -> None:
        """An event at a stamp of the trace's clock: it may come after lost ones, as the one before it may."""
        if not self.lost_row or self.lost_row[-1] != len(self.stamp):
            self.lost_row.append(len(self.stamp))
            self.lost_count.append(-1)
        if self.lossy_to is not None and value >= self.lossy_to:
            self.lossy = False


_NATIVE: Final = (
    "clock_snapshot_get_value",
    "event_borrow_class_const",
    "event_borrow_common_context_field_const",
    "event_borrow_payload_field_const",
    "field_array_borrow_element_field_by_index_const",
    "field_array_get_length",
    "field_bool_get_value",
    "field_integer_signed_get_value",
    "field_integer_unsigned_get_value",
    "field_string_get_value",
    "field_structure_borrow_member_field_by_index_const",
    "message_event_borrow_default_clock_snapshot_const",
    "message_event_borrow_event_const",
)


def _sink(bt2: Any) -> Any:  # noqa: ANN401
    """A component that gives each of its streams to a function, one after the other; what that raises it keeps."""

    class Columns(bt2._UserSinkComponent):  # type: ignore[misc]
        def __init__(self, config: Any, params: Any, obj: Any) -> None:  # noqa: ANN401, ARG002
            count, self._take, self._failed = obj
            for number in range(count):
                self._add_input_port(str(number))

        def _user_graph_is_configured(self) -> None:
            self._iterators = [self._create_message_iterator(port) for port in self._input_ports.values()][::-1]

        def _user_consume(self) -> None:
            if not self._iterators or self._failed:
                raise bt2.Stop
            try:
                self._take(self._iterators.pop())
            except (BadFileError, UsageError) as err:
                self._failed.append(err)

    return Columns


class _Reader:
    """Reads one trace."""

    def __init__(self, bt2: Any, path: str, folder: Path, most: int) -> None:  # noqa: ANN401
        self._bt2, self._path, self._folder = bt2, path, folder
        self._native = import_module("bt2._native_bt")
        if missing := [name for name in _NATIVE if not hasattr(self._native, name)]:
            raise UsageError(f"{path}: CTF cannot be read with bt2 {bt2.__version__}: it has no {', '.join(missing)}")
        self._kinds: dict[int, _Kind] = {}
        self._classes: dict[int, Any] = {}
        self._alive: list[Any] = []
        self._rows: list[_Rows] = []
        self._comms: dict[int, str] = {}
        self._env: dict[str, str | int] = {}
        self._clock: Any = None
        self._is_lttng = self._is_ours = False
        self._has_tids = True
        self._tid: tuple[int, Callable[[Any], Any]] | None = None
        self._task: tuple[int, Callable[[Any], Any]] | None = None
        self._own: tuple[int, Callable[[Any], Any]] | None = None
        self._warnings: list[str] = []
        self._damaged: list[str] = []
        self._left_out: dict[str, str] = {}
        self._budget = most

    def read(self) -> Answer:
        """All messages, stream by stream, then all columns."""
        bt2 = self._bt2
        graph = bt2.Graph()
        plugin = bt2.find_plugin("ctf")
        if plugin is None or "fs" not in plugin.source_component_classes:
            raise UsageError(f"{self._path}: CTF cannot be read: babeltrace2 has no plugin ctf")
        source = graph.add_component(
            plugin.source_component_classes["fs"], "trace", params={"inputs": [str(self._folder)]}
        )
        outputs = list(source.output_ports.values())
        if len(outputs) > MAX_CPUS:
            raise BadFileError(f"it has {len(outputs)} data streams, more than {MAX_CPUS}", self._path)
        failed: list[BadFileError] = []
        sink = graph.add_component(_sink(bt2), "columns", obj=(len(outputs), self._stream, failed))
        for one, other in zip(outputs, sink.input_ports.values(), strict=True):
            graph.connect_ports(one, other)
        graph.run()
        if failed:
            raise failed[0]
        if self._damaged:
            what = f"babeltrace2 cannot read {len(self._damaged)} data streams to their end: {self._damaged[0]}"
            if not any(len(rows.stamp) for rows in self._rows):
                raise BadFileError(f"{what} (babeltrace2 {self._folder} may say more)", self._path)
            self._rows = [rows for rows in self._rows if rows.cpu >= 0 or len(rows.stamp)]
            self._warnings.append(f"{self._path}: {what}")
        return self._answer()

    # -- messages

    def _stream(self, messages: Iterator[Any]) -> None:
        """All messages of one data stream."""
        bt2 = self._bt2
        rows = _Rows()
        self._rows.append(rows)
        event = bt2._EventMessageConst
        others = {
            bt2._StreamBeginningMessageConst: self._on_stream,
            bt2._PacketBeginningMessageConst: self._on_packet,
            bt2._PacketEndMessageConst: self._on_packet_end,
            bt2._DiscardedEventsMessageConst: self._on_discarded,
            bt2._DiscardedPacketsMessageConst: self._on_discarded_packets,
        }
        try:
            for message in messages:
                kind = type(message)
                if kind is event:
                    self._on_event(message._ptr, rows)
                elif kind in others:
                    others[kind](message, rows)
        except bt2._Error as err:
            self._damaged.append(_cause(err))
            rows.lose(-1, None)

    def _on_stream(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401, ARG002
        stream = message.stream
        self._alive.append(stream)
        self._classes |= {int(cls._ptr): cls for cls in stream.cls.values()}
        self._describe(stream)

    def _describe(self, stream: Any) -> None:  # noqa: ANN401
        """Take what the trace says of itself, and the stream's kind of its events' context."""
        bt2, clock = self._bt2, stream.cls.default_clock_class
        if clock is None:
            raise BadFileError("its streams have no clock", self._path)
        if self._clock is not None and (self._clock.name, self._clock.uuid) != (clock.name, clock.uuid):
            raise BadFileError(f"its streams have different clocks ({self._clock.name}, {clock.name})", self._path)
        self._clock = clock
        for key, value in stream.trace.environment.items():
            self._env[str(key)] = int(value) if isinstance(value, bt2._IntegerValueConst) else str(value)
        self._is_lttng = self._env.get("tracer_name") == "lttng-modules"
        self._is_ours = str(self._env.get("written_by", "")).startswith("counterpoint")
        domain = self._env.get("domain", "kernel")
        if domain != "kernel":
            raise BadFileError(f"it is a trace of {domain}, not of a kernel", self._path)
        context = stream.cls.event_common_context_field_class
        self._tid = self._task = self._own = None
        for index, (name, cls) in enumerate(_fields(context)):
            member = self._member((index,), name, cls)
            if member is None:
                continue
            if name in ("tid", "perf_tid") and member.kind == "int" and member.code in "iI":
                self._tid = index, member.get
            elif name in ("procname", "perf_comm") and member.kind == "text":
                self._task = index, member.get
            elif name == "stamp" and member.kind == "int" and member.code == "Q" and self._is_ours:
                self._own = index, member.get
        self._has_tids &= self._tid is not None

    def _on_packet(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401
        context = message.packet.context_field
        cpu = int(context["cpu_id"]) if context is not None and "cpu_id" in context else -1
        if cpu >= MAX_CPUS:
            raise BadFileError(f"a packet is of CPU {cpu}", self._path)
        if rows.cpu not in (-1, cpu):
            raise BadFileError(f"a data stream is of CPU {rows.cpu} and of CPU {cpu}", self._path)
        rows.cpu = cpu

    def _on_packet_end(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401, ARG002
        if rows.lossy and rows.lossy_to is None:
            rows.lossy_to = 0  # the next event still may come after lost ones

    def _on_discarded(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401
        cls = message.stream.cls
        end = None
        if cls.discarded_events_have_default_clock_snapshots:
            end = message.end_default_clock_snapshot.value
        rows.lose(-1 if message.count is None else message.count, end)

    def _on_discarded_packets(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401, ARG002
        rows.lose(-1, 0)

    def _on_event(self, message: Any, rows: _Rows) -> None:  # noqa: ANN401
        native = self._native
        event = native.message_event_borrow_event_const(message)
        value = native.clock_snapshot_get_value(native.message_event_borrow_default_clock_snapshot_const(message))
        which = int(native.event_borrow_class_const(event))
        kind = self._kinds.get(which) or self._kind(which)
        tid, stamp = _UNKNOWN_TID, value
        if self._tid is not None or self._own is not None:
            context = native.event_borrow_common_context_field_const(event)
            borrow = native.field_structure_borrow_member_field_by_index_const
            if self._tid is not None:
                tid = self._tid[1](borrow(context, self._tid[0]))
                tid -= 1 << 32 if tid >= 1 << 31 else 0
                if self._task is not None and tid not in self._comms:
                    self._comms[tid] = self._task[1](borrow(context, self._task[0]))
            if self._own is not None:
                stamp = self._own[1](borrow(context, self._own[0]))
        if rows.lossy:
            rows.on(value)
        rows.stamp.append(stamp)
        rows.begin.append(len(rows.data))
        rows.data += self._record(kind, native.event_borrow_payload_field_const(event), tid)
        self._budget -= len(rows.data) - rows.begin[-1] + 24
        if self._budget < 0:
            raise BadFileError("its events take too much room for a trace of its size", self._path)

    def _record(self, kind: _Kind, payload: Any, tid: int) -> bytes:  # noqa: ANN401
        """The bytes of an event's record."""
        borrow = self._native.field_structure_borrow_member_field_by_index_const
        values = []
        tail = b""
        at = kind.packer.size
        for member in kind.members:
            of = payload
            for index in member.path:
                of = borrow(of, index)
            value = member.get(of)
            if member.kind == "int":
                values.append(value if not member.plus else _within(value + member.plus, member.code))
                continue
            part: bytes
            if member.kind == "text":
                part = value.encode("utf-8", "surrogateescape") + b"\0"
            else:
                part = struct.pack(f"<{len(value)}{member.code}", *value)
            room = MAX_DYNAMIC - at - len(tail)
            if len(part) > room:
                part = part[: max(room, 0)]
                self._left_out.setdefault(f"{kind.system}:{kind.name}", "the end")
            values.append(len(part) << 16 | min(at + len(tail), MAX_DYNAMIC))
            tail += part
        return kind.packer.pack(kind.number, 0, 0, tid, *values) + tail

    # -- kinds

    def _kind(self, which: int) -> _Kind:
        """The kind of an event whose class is at this address, seen for the first time."""
        cls = self._classes[which]
        if len(self._kinds) >= MAX_KINDS:
            raise BadFileError(f"it has more than {MAX_KINDS} kinds of events", self._path)
        said = "".join(c if c.isprintable() and not c.isspace() else "_" for c in str(cls.name or f"event{cls.id}"))
        if self._is_lttng:
            system, name = kernel_event(said)
        else:
            system, colon, name = said.partition(":")
            if not colon or not system or not name:
                system, name = "ctf", said
        members = []
        if cls.payload_field_class is not None:
            members = list(self._members(cls.payload_field_class, (), f"{system}:{name}"))
        taken: set[str] = set()
        for member in members:
            if self._is_lttng:
                member.name, member.plus = kernel_field(system, member.name)
            while member.name in taken:
                member.name += "_"
            taken.add(member.name)
        out = self._kinds[which] = _Kind(len(self._kinds) + 1, system, name, members)
        return out

    def _members(self, struct_class: Any, path: tuple[int, ...], event: str, before: str = "") -> Iterator[_Member]:  # noqa: ANN401
        """The fields of a structure, those of structures in it after its own name."""
        fields = _fields(struct_class)
        arrays = [name for name, cls in fields if isinstance(cls, self._bt2._DynamicArrayFieldClassConst)]
        lengths = {f"_{name}_length" for name in arrays} | {f"{name}_length" for name in arrays}
        for index, (name, cls) in enumerate(fields):
            if isinstance(cls, self._bt2._StructureFieldClassConst) and len(path) < 8:
                yield from self._members(cls, (*path, index), event, f"{before}{name}_")
                continue
            # an array of varying length knows it itself
            if name in lengths:
                continue
            member = self._member((*path, index), before + name, cls)
            if member is None:
                self._left_out.setdefault(event, name)
            else:
                yield member

    def _member(self, path: tuple[int, ...], name: str, cls: Any) -> _Member | None:  # noqa: ANN401
        """How a field is read; None where that is not known here."""
        bt2, native = self._bt2, self._native
        clean = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "_"
        clean = f"_{clean}" if clean[0].isdigit() else clean
        if isinstance(cls, bt2._IntegerFieldClassConst):
            is_signed = isinstance(cls, bt2._SignedIntegerFieldClassConst)
            get = native.field_integer_signed_get_value if is_signed else native.field_integer_unsigned_get_value
            code = _code(cls.field_value_range, is_signed)
            return _Member(path, clean, "int", code, 0, get, cls.preferred_display_base == 16)
        if isinstance(cls, bt2._BoolFieldClassConst):
            return _Member(path, clean, "int", "B", 0, native.field_bool_get_value)
        if isinstance(cls, bt2._StringFieldClassConst):
            return _Member(path, clean, "text", "B", 0, native.field_string_get_value)
        if isinstance(cls, bt2._ArrayFieldClassConst):
            element = self._member((), "", cls.element_field_class)
            if element is not None and element.kind == "int":
                return _Member(path, clean, "list", element.code, 0, self._list_of(element.get), False)
        return None

    def _list_of(self, get: Callable[[Any], Any]) -> Callable[[Any], list[int]]:
        length = self._native.field_array_get_length
        borrow = self._native.field_array_borrow_element_field_by_index_const

        def values(of: Any) -> list[int]:  # noqa: ANN401
            return [get(borrow(of, index)) for index in range(length(of))]

        return values

    # -- columns

    def _answer(self) -> Answer:
        data = np.concatenate([np.zeros(0, np.uint8), *(np.frombuffer(r.data, np.uint8) for r in self._rows)])
        bases = np.cumsum([0, *(len(r.data) for r in self._rows)]).tolist()
        groups: dict[int, list[tuple[_Rows, int]]] = {}
        for number, rows in enumerate(self._rows):
            groups.setdefault(rows.cpu if rows.cpu >= 0 else MAX_CPUS + number, []).append((rows, bases[number]))
        nameless = [cpu for cpu in groups if cpu >= MAX_CPUS]
        if nameless:
            self._warnings.append(f"{self._path}: {len(nameless)} data streams do not say their CPU, and are numbered")
        if self._left_out:
            event, what = next(iter(self._left_out.items()))
            self._warnings.append(
                f"{self._path}: {len(self._left_out)} kinds of events have fields that are left out, for they are of no"
                f" kind that is read here, or too long (of {event}: {what})"
            )
        streams: list[Stream] = []
        parts, lost = [], []
        first = 0
        taken = {cpu for cpu in groups if cpu < MAX_CPUS}
        for cpu, group in sorted(groups.items()):
            if cpu >= MAX_CPUS:
                cpu = next(n for n in range(MAX_CPUS) if n not in taken)
                taken.add(cpu)
            stamp, offset, length, marks = _merged(group)
            parts.append((stamp, offset, length))
            lost += [(len(streams), first + row, count) for row, count in sorted(marks.items())]
            streams.append(Stream("", cpu, first, first + len(stamp)))
            first += len(stamp)
        stamp, offset, length = (
            np.concatenate([np.zeros(0, kind), *column])
            for kind, column in zip(
                (np.uint64, np.int64, np.int32), zip(*parts, strict=True) if parts else ((), (), ()), strict=True
            )
        )
        columns = np.array(lost, np.int64).reshape(-1, 3).T.copy()
        losses = Losses(columns[0], columns[1], columns[2])
        self._switches(data, offset, streams, losses)
        clock, factors, date, stamp = self._time(stamp)
        names = ("sysname", "hostname", "kernel_release", "machine")
        said = {
            "clock": clock,
            "tsc2nsec": factors,
            "date_us": date,
            "recorder": str(self._env.get("written_by", self._env.get("tracer_name", ""))),
            "uname": " ".join(str(self._env[key]) for key in names if key in self._env),
            "streams": [(s.cpu, s.first, s.last) for s in streams],
            "formats": [kind.text for kind in self._kinds.values()],
            "comms": {tid: comm for tid, comm in self._comms.items() if comm and comm != "<...>"},
            "warnings": self._warnings,
        }
        return said, [data, stamp, offset, length, losses.stream, losses.row, losses.count]

    def _time(self, stamps: U64) -> tuple[str, tuple[int, int] | None, int | None, U64]:
        """The trace clock's name, mult and shift of its ticks, us from its 0 to 1970, and the stamps in its units."""
        clock = self._clock
        if clock is None:
            return "mono", None, None, stamps
        hz, name = clock.frequency, str(clock.name or "") or "ctf"
        if self._own is not None:
            mult, shift = self._env.get("tsc2nsec_mult"), self._env.get("tsc2nsec_shift")
            known = isinstance(mult, int) and isinstance(shift, int) and 0 < mult < 1 << 32 and 0 <= shift <= 32
            return str(self._env.get("trace_clock", "local")), (mult, shift) if known else None, None, stamps  # type: ignore[return-value]
        if hz == 1_000_000_000:
            offset = clock.offset.seconds * 1_000_000_000 + clock.offset.cycles
            date = offset // 1000 if clock.origin_is_unix_epoch and offset else None
            # lttng-modules reads ktime_get_mono_fast_ns() (src/wrapper/trace-clock.h)
            return "mono" if name == "monotonic" else name, None, date, stamps
        rate = Rate.of_ratio(1_000_000_000, hz, "clock")
        if "tsc" in name.lower() and rate is not None:
            return "x86-tsc", (rate.mult, rate.shift), None, stamps
        self._warnings.append(f"{self._path}: its clock {name} of {hz} Hz is turned into ns, rounded down")
        ns = [value * 1_000_000_000 // hz for value in stamps.tolist()]
        return name, None, None, np.array([n & (1 << 64) - 1 for n in ns], np.uint64)

    def _switches(self, data: Bytes, offset: I64, streams: list[Stream], losses: Losses) -> None:
        """Take names of tasks from switches; and where only they tell which thread an event is of, write it there.

        Between two losses it is known; without a switch between them it is not, and the events are of thread -1.
        """
        kind = next((k for k in self._kinds.values() if (k.system, k.name) == ("sched", "sched_switch")), None)
        at = {} if kind is None else kind.places
        if kind is None or not {"prev_pid", "next_pid"} <= at.keys():
            if len(offset) and not self._has_tids:
                self._warnings.append(
                    f"{self._path}: it has neither a context tid nor sched_switch events: which threads its events are"
                    " of is not known (lttng add-context -k -t tid)"
                )
            return
        pids = unaligned(data, "<i4")
        switch = np.flatnonzero(unaligned(data, "<u2")[offset] == kind.number)
        if "next_comm" in at and self._task is None:
            tids, last = np.unique(pids[offset[switch[::-1]] + at["next_pid"]], return_index=True)
            for tid, row in zip(tids.tolist(), offset[switch[::-1][last]].tolist(), strict=True):
                locator = int(pids[row + at["next_comm"]])
                text = data[row + (locator & 0xFFFF) : row + (locator & 0xFFFF) + (locator >> 16)].tobytes()
                self._comms[tid] = text.split(b"\0", 1)[0].decode("utf-8", "replace")
        if self._has_tids:
            return
        for number, stream in enumerate(streams):
            rows = losses.row[losses.stream == number]
            inside = np.unique(rows[(rows > stream.first) & (rows < stream.last)]).tolist()
            for begin, end in pairwise([stream.first, *inside, stream.last]):
                mine = switch[np.searchsorted(switch, begin) : np.searchsorted(switch, end)]
                if not len(mine):
                    continue
                # before the first switch ran whom it switches from; a switch itself is of whom it leaves
                known = np.r_[pids[offset[mine[:1]] + at["prev_pid"]], pids[offset[mine] + at["next_pid"]]]
                pids[offset[begin:end] + 4] = known[np.searchsorted(mine, np.arange(begin, end))]


def _merged(group: list[tuple[_Rows, int]]) -> tuple[U64, I64, I32, dict[int, int]]:
    """The events of one CPU's data streams, whose records begin at the bytes given, in the order of their stamps.

    Returns stamps, offsets and lengths of the records, and how many events were lost (-1: not counted) before which:
    where another stream has events between a lost one's neighbours, before any of these.
    """
    stamp = np.concatenate([np.frombuffer(r.stamp, np.uint64) for r, _ in group])
    begin = [np.frombuffer(r.begin, np.uint64).astype(np.int64) for r, _ in group]
    length = [np.diff(np.r_[b, len(r.data)]).astype(np.int32) for b, (r, _) in zip(begin, group, strict=True)]
    offset = np.concatenate([b + base for b, (_, base) in zip(begin, group, strict=True)])
    away = relative(stamp, int(stamp[0]) if len(stamp) else 0)
    order = np.argsort(away, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    marks: dict[int, int] = {}
    first = 0
    for rows, _ in group:
        count = len(rows.stamp)
        for row, number in zip(rows.lost_row, rows.lost_count, strict=True):
            to = int(place[first + row]) if row < count else len(order)
            after = int(place[first + row - 1]) if row else -1
            if len(group) > 1:
                marks |= {other: marks.get(other, -1) for other in range(after + 1, to)}
            known = marks.get(to, -1)
            marks[to] = max(known, number) if -1 in (known, number) else known + number
        first += count
    return stamp[order], offset[order], np.concatenate(length)[order], marks


def _fields(struct_class: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    """The names and classes of a structure's fields; none of None."""
    members = [] if struct_class is None else list(struct_class.items())[:MAX_FIELDS]
    return [(str(name), member.field_class) for name, member in members]


def _within(value: int, code: str) -> int:
    """A value cut to what ``code`` holds."""
    bits = 8 * struct.calcsize("<" + code)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
    return max(low, min(value, high))


def _code(bits: int, is_signed: bool) -> str:
    """The struct code of the least integer that holds so many bits."""
    code = next(c for size, c in ((8, "B"), (16, "H"), (32, "I"), (64, "Q")) if bits <= size)
    return code.lower() if is_signed else code
