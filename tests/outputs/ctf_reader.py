"""CTF as babeltrace2's Python module reads it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.traces.babeltrace import babeltrace
from helpers import need, need_tool


@dataclass
class Event:
    """One event, at the clock's own value ``stamp``; printed ones have their fields as text."""

    machine: str
    cpu: int
    stamp: int
    name: str
    context: dict[str, Any]
    fields: Any


@dataclass
class Lost:
    """``count`` events that were lost between two stamps."""

    machine: str
    cpu: int
    begin: int
    end: int
    count: int


def need_babeltrace() -> Any:
    """The bt2 module; skip the test where there is none for this Python (fail if skips are off)."""
    try:
        return babeltrace()
    except UsageError as err:
        need(False, str(err))


def plain(value: Any) -> Any:
    """A field as Python has it."""
    bt2 = need_babeltrace()
    if isinstance(value, bt2._StringFieldConst):
        return str(value)
    if isinstance(value, bt2._ArrayFieldConst):
        return [int(x) for x in value]
    return int(value)


def read(folder: Path) -> tuple[list[Event], list[Lost]]:
    """All events of all traces under ``folder``, merged by babeltrace2, and what was lost."""
    bt2 = need_babeltrace()
    events, lost = [], []
    cpus: dict[tuple[str, int], int] = {}
    for message in bt2.TraceCollectionMessageIterator(str(folder)):
        kind = type(message).__name__
        if kind == "_PacketBeginningMessageConst":
            stream = message.packet.stream
            machine = str(stream.trace.environment["hostname"])
            cpus[machine, stream.id] = int(message.packet.context_field["cpu_id"])
        elif kind == "_EventMessageConst":
            event, clock = message.event, message.default_clock_snapshot
            machine = str(event.stream.trace.environment["hostname"])
            events.append(
                Event(
                    machine,
                    cpus[machine, event.stream.id],
                    clock.value,
                    event.name,
                    {str(k): plain(v) for k, v in event.common_context_field.items()},
                    {str(k): plain(v) for k, v in (event.payload_field or {}).items()},
                )
            )
        elif kind == "_DiscardedEventsMessageConst":
            stream = message.stream
            machine = str(stream.trace.environment["hostname"])
            begin, end = message.beginning_default_clock_snapshot, message.end_default_clock_snapshot
            lost.append(Lost(machine, stream.id, begin.value, end.value, message.count))
    for one in lost:
        one.cpu = cpus[one.machine, one.cpu]
    return events, lost


def read_text(folder: Path) -> Iterator[Event]:
    """All events as the program babeltrace2 prints them: many, and fast."""
    run = subprocess.run(
        [need_tool("babeltrace2"), str(folder), "--clock-seconds"], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    found = _LINE.findall(run.stdout)
    assert len(found) == run.stdout.count("\n")
    for seconds, ns, machine, name, cpu, tid, task, stamp, proved, fields in found:
        context = {"tid": int(tid), "procname": task, "stamp": int(stamp), "proved": int(proved)}
        yield Event(machine, int(cpu), int(seconds) * 10**9 + int(ns), name, context, fields)


_LINE = re.compile(
    r"^\[(\d+)\.(\d{9})\] \(\S+\) (\S+) (\S+): \{ cpu_id = (\d+) \},"
    r' \{ tid = (-?\d+), procname = "([^"]*)", stamp = (\d+), proved = (\d) \}, \{ ?(.*)\}$',
    re.MULTILINE,
)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[\d+\] = |(?P<key>\w+) = |0x[0-9A-F]+|-?\d+|[][{},]')


def parsed(text: str) -> dict[str, Any]:
    """The fields of a printed event."""
    out = _TOKEN.sub(
        lambda t: f'"{t["key"]}": ' if t["key"] else "" if t[0].startswith("[") and t[0] != "[" else t[0], text
    )
    fields: dict[str, Any] = ast.literal_eval("{" + out + "}")
    return fields
