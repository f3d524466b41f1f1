"""Event formats: the ``format`` text of an ftrace event, to fields with offset, size and kind.

The text is what the kernel shows in ``events/SYSTEM/NAME/format`` (kernel/trace/trace_events.c, ``f_show``)::

    name: sched_switch
    ID: 316
    format:
            field:unsigned short common_type;       offset:0;       size:2; signed:0;

            field:char prev_comm[16];       offset:8;       size:16;        signed:0;
    print fmt: "prev_comm=%s ...", REC->prev_comm, ...

The first block of fields is common to all events, the second is the event's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["int", "string", "array", "bytes"]
Dynamic = Literal["", "data_loc", "rel_loc"]

MAX_FIELDS = 4096
"""Fields read of one event; the kernel's own limit is far below (an event fits in one page)."""

# bounded where the kernel's are: a declaration is a line, an offset lies in a page
_FIELD = re.compile(
    r"^\s*field(?: special)?:(?P<decl>[^;]{0,1024});\s*offset:\s*(?P<offset>\d{1,9});"
    r"\s*size:\s*(?P<size>-?\d{1,9});(?:\s*signed:\s*(?P<signed>\d{1,9});)?",
    re.ASCII,
)
_HEAD = re.compile(rb"name: (?P<name>\S+)\s*\nID: (?P<id>[0-9]{1,9})\s*\n")
_LOCATED = re.compile(r"^__(?P<how>data|rel)_loc\s+")
_ARRAY = re.compile(r"\[(?P<len>[^\]]*)\]\s*$")
_WORD = re.compile(r"[A-Za-z_]\w*")
_INT_SIZES = {"char": 1, "short": 2, "int": 4, "long long": 8, "u8": 1, "s8": 1, "u16": 2, "s16": 2}
_INT_SIZES |= {"u32": 4, "s32": 4, "u64": 8, "s64": 8, "pid_t": 4, "bool": 1}
_INT_SIZES |= {f"{s}int{b}_t": b // 8 for s in ("", "u") for b in (8, 16, 32, 64)}
_INT_SIZES |= {f"__{s}{b}": b // 8 for s in "us" for b in (8, 16, 32, 64)}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    ``offset`` and ``size`` are bytes within the record. For a dynamic field (``data_loc``, ``rel_loc``) they
    name the 4-byte locator (length << 16 | offset), and ``kind`` says what lies where it points: ``string``
    (chars up to the first NUL), ``array`` (integers of ``element_size``) or ``bytes`` (elements of unknown
    size). ``kind`` "int" is a scalar of ``size`` 1, 2, 4 or 8.
    """

    name: str
    declaration: str
    offset: int
    size: int
    signed: bool
    kind: Kind
    element_size: int
    dynamic: Dynamic = ""


@dataclass(frozen=True, slots=True)
class EventFormat:
    """The layout of one event: ``common`` fields, then its own ``fields``; ``print_fmt`` is C text."""

    id: int
    system: str
    name: str
    common: tuple[Field, ...]
    fields: tuple[Field, ...]
    print_fmt: str

    def field(self, name: str) -> Field | None:
        """Return the field called ``name`` (own fields first), or None."""
        for field in (*self.fields, *self.common):
            if field.name == name:
                return field
        return None


def _element_size(type_words: str, long_size: int) -> int:
    """Size of one element by its C type; 0 where the name does not tell."""
    if "*" in type_words:
        return long_size
    words = [w for w in _WORD.findall(type_words) if w not in ("const", "volatile", "__attribute__", "struct")]
    if words.count("long") == 2:
        return 8
    if "long" in words or any(w in ("size_t", "ssize_t", "uintptr_t", "cpumask_t") for w in words):
        return long_size
    for word in reversed(words):
        if word in _INT_SIZES:
            return _INT_SIZES[word]
    return 4 if words and words[-1] in ("unsigned", "signed") else 0


def parse_field(line: str, long_size: int) -> Field | None:
    """Read one ``field:`` line; None where the line is not one."""
    match = _FIELD.match(line)
    if match is None:
        return None
    declaration = " ".join(match["decl"].split())
    offset, size = int(match["offset"]), int(match["size"])
    text = declaration
    dynamic: Dynamic = ""
    if located := _LOCATED.match(text):
        dynamic = "data_loc" if located["how"] == "data" else "rel_loc"
        text = text[located.end() :]
    is_array = dynamic != "" or _ARRAY.search(text) is not None
    if array := _ARRAY.search(text):
        text = text[: array.start()].rstrip()
        # a dynamic array is declared "__data_loc char[] name": the brackets follow the type
    text = re.sub(r"\[\]", " ", text)
    words = _WORD.findall(text)
    name = words[-1] if words else ""
    type_words = text[: text.rfind(name)] if name else text
    # "signed:" is absent from old kernels' files: the type's own words tell
    signed_text = match["signed"]
    if signed_text is None:
        signed = not re.search(r"\bunsigned\b|\bu\d+\b|\b__u\d+\b|\*", type_words)
    else:
        signed = signed_text == "1"
    if not is_array:
        kind: Kind = "int" if size in (1, 2, 4, 8) else "bytes"
        return Field(name, declaration, offset, size, signed, kind, size, dynamic)
    element = _element_size(type_words, long_size)
    if re.search(r"\bchar\b", type_words) and "*" not in type_words and element == 1:
        kind = "string"
    elif element in (1, 2, 4, 8) and (dynamic or (size > 0 and size % element == 0) or size == 0):
        kind = "array"
    else:
        kind, element = "bytes", 1
    return Field(name, declaration, offset, size, signed, kind, element, dynamic)


def parse_format(text: str, system: str, long_size: int) -> EventFormat | None:
    """Read one event's format text; None where it names no event.

    ``long_size`` is that of the recorded machine (4 or 8). Lines that cannot be read are passed over: the
    event keeps the fields that could.
    """
    name, event_id, print_fmt = "", -1, ""
    blocks: list[list[Field]] = [[]]
    lines = iter(text.split("\n"))
    for line in lines:
        if line.startswith("name:"):
            name = line[5:].strip()
        elif line.startswith("ID:"):
            digits = line[3:].strip()
            event_id = int(digits) if re.fullmatch("[0-9]{1,9}", digits) else -1
        elif line.startswith("print fmt:"):
            print_fmt = "\n".join([line[10:].strip(), *lines]).strip()
            break
        elif not line.strip():
            if blocks[-1]:
                blocks.append([])
        elif sum(map(len, blocks)) < MAX_FIELDS and (field := parse_field(line, long_size)):
            blocks[-1].append(field)
    if not name or event_id < 0 or event_id > 0xFFFF:
        return None
    common = [f for f in blocks[0] if f.name.startswith("common_")]
    own = [f for f in blocks[0] if not f.name.startswith("common_")]
    for block in blocks[1:]:
        own.extend(block)
    return EventFormat(event_id, system, name, tuple(common), tuple(own), print_fmt)


def named_fields(event: EventFormat) -> Iterator[tuple[str, Field]]:
    """The event's own fields with names that differ: a second one of a name, and one without, is named by its byte."""
    declared = {one.name for one in event.fields}
    used: set[str] = set()
    for one in event.fields:
        name = one.name
        if not name or name in used:
            name = f"{one.name}_at_{one.offset}"
            while name in declared or name in used:
                name += "_"
        used.add(name)
        yield name, one


class FormatTable(Mapping[int, EventFormat]):
    """The event formats of a file by event id. Each is read when it is asked for."""

    def __init__(self, texts: Iterable[tuple[str, bytes]], long_size: int) -> None:
        """Take (system, format text) of every event; of two with one id the first counts."""
        self._long_size = long_size
        self._texts: dict[int, tuple[str, bytes]] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._read: dict[int, EventFormat] = {}
        for system, text in texts:
            head = _HEAD.match(text)
            if head is not None:
                event_id, name = int(head["id"]), head["name"].decode("utf-8", "replace")
            else:
                parsed = parse_format(text.decode("utf-8", "replace"), system, long_size)
                if parsed is None:
                    continue
                event_id, name = parsed.id, parsed.name
            if event_id <= 0xFFFF and event_id not in self._texts:
                self._texts[event_id] = system, text
                self._ids[system, name] = event_id

    def __getitem__(self, event_id: int) -> EventFormat:
        """Read the format of an event; KeyError where the file has none."""
        if event_id not in self._read:
            system, text = self._texts[event_id]
            parsed = parse_format(text.decode("utf-8", "replace"), system, self._long_size)
            # the text names another event further down: it is none of the two
            if parsed is None or parsed.id != event_id:
                raise KeyError(event_id)
            self._read[event_id] = parsed
        return self._read[event_id]

    def text(self, event_id: int) -> tuple[str, bytes]:
        """The system and the format text of an event; KeyError where the file has none."""
        return self._texts[event_id]

    def __iter__(self) -> Iterator[int]:
        """The event ids, in file order."""
        return iter(self._texts)

    def __len__(self) -> int:
        """Number of events."""
        return len(self._texts)

    def named(self, system: str, name: str) -> EventFormat | None:
        """The format of event ``system:name``, or None."""
        event_id = self._ids.get((system, name))
        return None if event_id is None else self.get(event_id)
