"""What each vCPU did, as a line of characters each: for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import numpy as np

from counterpoint.analysis.contexts import Context
from counterpoint.analysis.states import State, VcpuStates, vcpu_states
from counterpoint.clocks.counter import I64, MASK, to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.outputs.printable import printable
from counterpoint.timeline.sync import SyncResult

WIDTH = 80
MIN_COLUMNS = 10

_IDLE = len(State)
"""Stands beside the states: in guest mode, where the guest's idle task runs."""

SIGNS = {
    State.GUEST: "█", _IDLE: "▄", State.KERNEL: "x", State.USER: "v", State.OUTSIDE: "o", State.POLLING: "~",
    State.HALTED: "·", State.BLOCKED: "b", State.WAITING: "W", State.UNKNOWN: "?",
}  # fmt: skip
MEANINGS = {
    State.GUEST: "guest", _IDLE: "guest, idle", State.KERNEL: "exit", State.USER: "VMM", State.OUTSIDE: "exit or VMM",
    State.POLLING: "halt polling", State.HALTED: "halted", State.BLOCKED: "blocked", State.WAITING: "waits for a CPU",
    State.UNKNOWN: "not seen",
}  # fmt: skip


def print_lanes(result: SyncResult, out: TextIO, *, begin: int | None, end: int | None, width: int = WIDTH) -> None:
    """A lane for each vCPU of the timeline, between two host stamps (None: where the states begin and end).

    Each character is what took most of its time.
    """
    lanes = vcpu_states(result)
    if not lanes:
        out.write("no vCPU's thread is in these recordings\n")
        return
    base = result.timeline.base
    first = min(int(v.begin[0]) for v in lanes) if begin is None else to_signed((begin - base) & MASK)
    last = max(v.end for v in lanes) if end is None else to_signed((end - base) & MASK)
    names = [_name(v) for v in lanes]
    margin = min(max(map(len, names)), width - MIN_COLUMNS - 1)
    columns = width - margin - 1
    if last - first < columns:
        last = first + columns
    edges = first + np.array([(last - first) * n // columns for n in range(columns + 1)], np.int64)
    rate = result.timeline.rate or Rate.ns()
    unit = "ns" if result.timeline.has_ns else "ticks"
    seen = np.zeros(len(State) + 1, np.bool_)
    text = []
    for name, vcpu in zip(names, lanes, strict=True):
        most = dominant(vcpu, edges)
        seen[most] = True
        text.append(f"{name[:margin]:{margin}} {''.join(SIGNS[kind] for kind in most.tolist())}")
    out.write(f"{(first + base) & MASK} to {(last + base) & MASK}: {_span(rate.to_ns(last - first), unit)}")
    out.write(f", {_span(rate.to_ns((last - first) // columns), unit)} a column\n")
    out.write("\n".join(text) + "\n")
    for line in _legend(seen, width):
        out.write(line + "\n")


def dominant(vcpu: VcpuStates, edges: I64) -> I64:
    """What took most of each span between two ``edges`` i64[n + 1]: a State, or ``_IDLE``, i64[n]."""
    kind = vcpu.state.astype(np.int64)
    kind[vcpu.context == Context.IDLE] = _IDLE
    took = np.zeros((len(State) + 1, len(edges) - 1), np.int64)
    # each step's share of each span: cumulative time of a kind up to the edges
    ends = vcpu.ends
    for each in np.unique(kind).tolist():
        mine = kind == each
        length = np.where(mine, ends - vcpu.begin, 0)
        before = np.r_[np.int64(0), np.cumsum(length)]
        at = np.searchsorted(vcpu.begin, edges, side="right") - 1
        inside = np.clip(edges - vcpu.begin[at], 0, ends[at] - vcpu.begin[at])
        upto = np.where(at >= 0, before[at] + np.where(mine[at], inside, 0), 0)
        took[each] = np.diff(upto)
    covered = took.sum(axis=0)
    # what lies outside the recording is not seen
    took[State.UNKNOWN] += np.diff(edges) - covered
    most: I64 = took.argmax(axis=0)
    return most


def _name(vcpu: VcpuStates) -> str:
    if vcpu.guest is None:
        return printable(f"{vcpu.host} thread {vcpu.tid}")
    return printable(f"{vcpu.guest} cpu {vcpu.guest_cpu}")


def _span(value: int, unit: str) -> str:
    if unit != "ns":
        return f"{value} {unit}"
    for name, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if value >= size:
            return f"{value // size}.{value % size * 1000 // size:03} {name}"
    return f"{value} ns"


def _legend(seen: Sequence[bool] | np.ndarray[tuple[int], np.dtype[np.bool_]], width: int) -> list[str]:
    lines, line = [], ""
    for kind, sign in SIGNS.items():
        if not seen[kind]:
            continue
        word = f"{sign} {MEANINGS[kind]}"
        if line and len(line) + 3 + len(word) > width:
            lines.append(line)
            line = ""
        line += ("   " if line else "") + word
    return [*lines, line]
