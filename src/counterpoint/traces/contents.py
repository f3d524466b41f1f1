"""What the reader of a format hands over: a machine's events, before anything is known of what they mean.

A reader is a function of a path that returns ``Contents`` or raises BadFileError; ``opening`` lists them. Every event
has a payload: bytes that begin with the common fields (``common_type``, ``common_pid``), laid out as its format text
says. Fields are decoded from there when asked for. A reader of a format that has no such bytes makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I32, I64, U64
from counterpoint.traces.container import Container
from counterpoint.traces.options import Options


@dataclass(frozen=True, slots=True)
class Stream:
    """One CPU of one buffer: its events are rows ``first`` to ``last`` (exclusive) of the recording."""

    buffer: str
    cpu: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Lost events: ``count[i]`` i64 (-1: not counted) were lost on ``stream[i]`` just before row ``row[i]``."""

    stream: I64
    row: I64
    count: I64

    @property
    def total(self) -> int:
        """Events known to be lost; marks without a count add nothing."""
        return int(np.maximum(self.count, 0).sum())


def _none() -> I64:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Contents:
    """A machine's events, stream by stream, and what its file says beside them.

    ``stamp`` u64[n], of ``clock``; ``offset`` i64[n] and ``length`` i32[n]: the payloads within ``data`` u8.
    ``streams`` hold all rows, in order. ``format_texts``: (system, format text) of every event. ``cpus``: those of the
    machine. ``sub_buffer_first_row`` i64: where a ring buffer's sub-buffers begin, if there are any. ``comms``,
    ``kallsyms`` and ``printk`` are asked when they are needed. ``warnings`` may grow while they are. ``rounding``: by
    how many units a true stamp may lie before and after the one that was written down. ``has_fields``: an event's
    fields are all there, and not only those that could be read of how it was printed.
    """

    path: str
    format: str
    clock: str
    cpus: int
    data: npt.NDArray[np.uint8]
    stamp: U64
    offset: I64
    length: I32
    streams: tuple[Stream, ...]
    losses: Losses
    format_texts: Sequence[tuple[str, bytes]]
    comms: Callable[[], dict[int, str]] = dict
    big_endian: bool = False
    long_size: int = 8
    options: Options = field(default_factory=Options)
    warnings: list[str] = field(default_factory=list)
    sub_buffer_first_row: I64 = field(default_factory=_none)
    kallsyms: Callable[[], bytes] = bytes
    printk: Callable[[], bytes] = bytes
    container: Container | None = None
    rounding: tuple[int, int] = (0, 0)
    has_fields: bool = True
    sub_buffer_size: int = 4096
