"""CTF as babeltrace2's Python module reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.traces.babeltrace import babeltrace
from helpers import need


@dataclass
class Event:
    """One event; ``ns`` from the clock's origin, ``stamp`` the clock's own value."""

    machine: str
    cpu: int
    ns: int
    stamp: int
    name: str
    context: dict[str, Any]
    fields: dict[str, Any]


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
                    int(event.packet.context_field["cpu_id"]),
                    clock.ns_from_origin,
                    clock.value,
                    event.name,
                    {str(k): plain(v) for k, v in event.common_context_field.items()},
                    {str(k): plain(v) for k, v in (event.payload_field or {}).items()},
                )
            )
        elif kind == "_DiscardedEventsMessageConst":
            stream = message.stream
            machine = str(stream.trace.environment["hostname"])
            lost.append(
                Lost(
                    machine,
                    stream.id,
                    message.beginning_default_clock_snapshot.value,
                    message.end_default_clock_snapshot.value,
                    message.count,
                )
            )
    for one in lost:
        one.cpu = cpus[one.machine, one.cpu]
    return events, lost
