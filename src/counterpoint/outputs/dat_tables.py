"""What the machines of one trace.dat file share: event formats, strings of the kernel, symbols, names of tasks.

A trace.dat file has one of each, and knows nothing of machines. So that no event is shown as what it is not:

* A format keeps its id. A guest's that differs from all before it, and whose id is taken, gets an id of its own, which
  is then written into its events (``common_type``). Formats are equal if their texts are, but for the id.
* A string that a guest's event points to (trace_printk()'s formats, ``char *`` fields) stands at its own address. Where
  another machine has another string there it moves, and the pointers in the events with it.
* Symbols are the first machine's. Where a guest's events print functions (%ps and the like) whose names differ by its
  own symbols, its format has the names in it, or prints the addresses as numbers.
* A task id that several machines use has all their names, in the order of the machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64, distinct
from counterpoint.errors import UsageError
from counterpoint.outputs.dat_names import Name, as_numbers, prints_symbols, read_printed
from counterpoint.traces.columns import int_column
from counterpoint.traces.formats import EventFormat, Field
from counterpoint.traces.recording import Recording
from counterpoint.traces.symbols import Symbols
from counterpoint.traces.write_pages import Batch

MAX_NAMED = 256
"""Functions that a format names; a reader goes through them one by one."""

MAX_PID = 1 << 22
"""PID_MAX_LIMIT of the kernel on 64 bits (include/linux/threads.h); a damaged file may have others."""

FIRST_MOVED = 1 << 12
"""Strings that move stand at addresses from here on, where no kernel has any."""

_ID = re.compile(rb"^ID: *[0-9]+ *$", re.MULTILINE)
_TEXT_POINTER = re.compile(r"\bchar\s*\*\s*(?:const\s+)?\w+$")
_PRINT = "print fmt:"


@dataclass(frozen=True, slots=True)
class _Moved:
    """A field whose values ``old`` u64[k] (in order) become ``new`` u64[k]."""

    field: Field
    old: U64
    new: U64


@dataclass
class Translation:
    """What changes in a machine's events: ids, u16[65536] by its own, and pointers to strings, by its own event id."""

    ids: npt.NDArray[np.uint16]
    at: Field
    big_endian: bool
    moved: dict[int, list[_Moved]] = field(default_factory=dict)

    def apply(self, event_id: npt.NDArray[np.uint16], batches: Iterable[Batch]) -> list[Batch]:
        """The payloads of events u16[n] with their new ids and pointers."""
        new = self.ids[event_id]
        changed = bool((new != event_id).any())
        out = []
        for batch in batches:
            rows = np.ascontiguousarray(batch.rows).view(np.uint8).reshape(len(batch.place), -1)
            own = event_id[batch.place]
            if changed and self.at.offset + 2 <= rows.shape[1]:
                _put(rows, slice(None), self.at, new[batch.place].astype(np.uint64), self.big_endian)
            for kind, fields in self.moved.items():
                mine = np.flatnonzero(own == kind)
                for one in fields if len(mine) else ():
                    # a record too short for the field points to nothing
                    if one.field.offset + one.field.size <= rows.shape[1]:
                        offset = mine * rows.shape[1]
                        length = np.full(len(mine), rows.shape[1], np.int32)
                        values = int_column(rows.reshape(-1), one.field, offset, length, self.big_endian)
                        where = np.searchsorted(one.old, values.astype(np.uint64))
                        _put(rows, mine, one.field, one.new[where], self.big_endian)
            out.append(Batch(batch.place, rows))
        return out


class _Names(Symbols):
    """What a machine knows of its kernel, and whether its symbols are the first machine's."""

    def __init__(self, recording: Recording, first: bytes = b"") -> None:
        """``first``: the first machine's text of symbols."""
        super().__init__(recording.kallsyms, recording.printk_formats)
        self._recording = recording
        self._first = first

    @cached_property
    def is_same(self) -> bool:
        """Whether a reader with the first machine's symbols gives no address a name that it has not here."""
        return not self._first or self._recording.kallsyms() == self._first

    def name(self, address: int) -> Name | None:
        """The name of an address, and how far it is into the function."""
        found = self.find(address)
        return None if found is None else (found[0], address - found[1])


def _put(rows: npt.NDArray[np.uint8], which: I64 | slice, at: Field, values: U64, big_endian: bool) -> None:
    code = f"{'>' if big_endian else '<'}u{at.size}"
    rows[which, at.offset : at.offset + at.size] = values.astype(code).view(np.uint8).reshape(-1, at.size)


class Tables:
    """Collects the tables of a file, machine by machine: the first one's stay as they are."""

    def __init__(self, first: Recording) -> None:
        """Take the tables of the first machine whole."""
        self._first = first
        self.formats: list[tuple[str, str]] = []
        self.kallsyms = first.kallsyms()
        self.notes: list[str] = []
        self._printk_text = first.printk_formats()
        self._symbols = _Names(first)
        self._strings = dict(self._symbols.printk)
        self._added: list[bytes] = []
        self._moved: dict[str, int] = {}
        self._names: dict[int, list[str]] = {}
        self._by_body: dict[tuple[str, bytes], int] = {}
        self._used = {0, *first.formats, *first.counts_by_id()}
        self._next = max(self._used) + 1
        for event_id in first.formats:
            system, text = first.formats.text(event_id)
            self._by_body.setdefault((system, _ID.sub(b"", text, count=1)), event_id)
            self.formats.append((system, text.decode("utf-8", "surrogateescape")))

    @property
    def printk(self) -> bytes:
        """The text of printk_formats, with what was added."""
        text = self._printk_text
        if self._added and text and not text.endswith(b"\n"):
            text += b"\n"
        return text + b"".join(self._added)

    @property
    def cmdlines(self) -> dict[int, str]:
        """Names of tasks by id."""
        return {pid: "|".join(names) for pid, names in self._names.items()}

    def add(self, name: str, recording: Recording, rows: I64) -> Translation:
        """Take in what a machine's events at ``rows`` i64[n] need; the first machine is to be the first.

        UsageError where the file has no room for another format.
        """
        self._name_tasks(recording, rows)
        ids = np.arange(1 << 16, dtype=np.uint16)
        found = np.flatnonzero(np.bincount(recording.event_id[rows], minlength=1))
        known = [recording.formats.get(event_id) for event_id in found.tolist()]
        common = next((f for e in known if e for f in e.common if f.name == "common_type" and f.size == 2), None)
        at = common or Field("common_type", "unsigned short common_type", 0, 2, False, "int", 2)
        out = Translation(ids, at, recording.big_endian)
        if recording is self._first:
            return out
        theirs = _Names(recording, self.kallsyms)
        numbers = 0
        for event_id, event in zip(found.tolist(), known, strict=True):
            if event is None:
                ids[event_id] = self._new_id(event_id)
                continue
            mine = recording.rows(event_id)
            mine = mine[np.isin(mine, rows, assume_unique=True)]
            system, text = recording.formats.text(event_id)
            if prints_symbols(event.print_fmt) and not theirs.is_same:
                text, is_named = self._named(recording, event, mine, theirs, text)
                numbers += 0 if is_named else len(mine)
            ids[event_id] = self._id_of(system, text, event_id)
            pointers = [f for f in event.fields if _is_text_pointer(f, recording.long_size)]
            moved = [self._move(recording, event, f, mine, theirs) for f in pointers]
            if any(moved):
                out.moved[event_id] = [m for m in moved if m is not None]
        if numbers:
            self.notes.append(
                f"{name}: {numbers} events print functions as numbers: the file has room for the symbols of one kernel,"
                " and they are not this machine's"
            )
        return out

    # -- formats

    def _id_of(self, system: str, text: bytes, own: int) -> int:
        body = system, _ID.sub(b"", text, count=1)
        found = self._by_body.get(body)
        if found is None:
            found = self._by_body[body] = self._new_id(own)
            text = _ID.sub(b"ID: %d" % found, text, count=1)
            self.formats.append((system, text.decode("utf-8", "surrogateescape")))
        return found

    def _new_id(self, wanted: int) -> int:
        """``wanted`` where it is free, else one that is."""
        if wanted in self._used:
            while self._next in self._used and self._next < 1 << 16:
                self._next += 1
            wanted = self._next
            if wanted >= 1 << 16:
                raise UsageError("the machines have more kinds of events than one trace.dat has ids for (65535)")
        self._used.add(wanted)
        return wanted

    # -- strings and symbols

    def _move(self, recording: Recording, event: EventFormat, at: Field, rows: I64, theirs: _Names) -> _Moved | None:
        """Bring the strings that a field points to into the table; None where all stand where they stood."""
        old, _ = distinct(recording.column(event, at.name, rows).astype(np.uint64))
        new = old.astype(np.uint64)
        for index, address in enumerate(old.tolist()):
            text = theirs.printk.get(address)
            if text is None and address not in self._strings:
                continue
            if text is None:
                # what a reader makes of an address without a string: without this it would show another machine's
                text = f"(NO FORMAT FOUND at {address:x})\\n" if event.name == "bprint" else f"{address:x}"
            elif event.name == "bprint" and not theirs.is_same:
                text = as_numbers(text)
            new[index] = self._place(address, text)
        return _Moved(at, old.astype(np.uint64), new) if (new != old).any() else None

    def _place(self, address: int, text: str) -> int:
        """Where ``text`` stands in the table; it is put there, at ``address`` if that is free."""
        at = address
        if self._strings.get(at, text) != text:
            at = self._moved.get(text, FIRST_MOVED + 16 * len(self._moved))
            while self._strings.get(at, text) != text:
                at += 16
            self._moved[text] = at
        if at not in self._strings:
            self._strings[at] = text
            self._added.append(f'0x{at:x} : "{text}"\n'.encode())
        return at

    def _named(
        self, recording: Recording, event: EventFormat, rows: I64, theirs: _Names, text: bytes
    ) -> tuple[bytes, bool]:
        """The format text of events that print functions, for a reader with the first machine's symbols.

        It is ``text`` where all that occur have the same names there, else it has the names in itself; or numbers, and
        then False comes with it.
        """
        head, mark, print_format = text.decode("utf-8", "surrogateescape").partition(_PRINT)
        names: dict[str, dict[int, Name | None]] = {}
        printed = read_printed(print_format)
        for name in printed.fields if printed is not None else ():
            of = event.field(name)
            values: list[int] = []
            if of is not None and of.kind == "int":
                values = distinct(recording.column(event, name, rows).astype(np.uint64))[0].tolist()
            if not 0 < len(values) <= MAX_NAMED:
                printed = None
                break
            names[name] = {value: theirs.name(value) for value in values}
        if printed is None:
            return (head + mark + as_numbers(print_format)).encode("utf-8", "surrogateescape"), False
        if all(self._symbols.name(value) == found for of in names.values() for value, found in of.items()):
            return text, True
        return (head + mark + " " + printed.named(names) + "\n").encode("utf-8", "surrogateescape"), True

    # -- tasks

    def _name_tasks(self, recording: Recording, rows: I64) -> None:
        pids = _occurring(recording.pid[rows])
        for pid in {*pids.tolist(), *recording.cmdlines} - {0}:
            name = recording.comm(pid)
            names = self._names.setdefault(pid, [])
            if name not in names:
                names.append(name)


def _occurring(pid: npt.NDArray[np.int32]) -> npt.NDArray[np.integer]:
    """The task ids that occur, each once."""
    if not len(pid) or int(pid.min()) < 0 or int(pid.max()) > MAX_PID:
        return distinct(pid)[0]
    seen = np.zeros(MAX_PID + 1, np.bool_)
    seen[pid] = True
    return np.flatnonzero(seen)


def _is_text_pointer(one: Field, long_size: int) -> bool:
    return one.kind == "int" and one.size == long_size and _TEXT_POINTER.search(one.declaration) is not None
