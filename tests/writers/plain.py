"""Host and guest files from plain lists: when vCPU threads entered and left, when guest events happened."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from writers.events import KVM_ENTRY_ARM64, KVM_ENTRY_X86, KVM_EXIT_ARM64, KVM_EXIT_X86, MARK, SCHED_SWITCH
from writers.tracedat import Buffer, TraceFile

HOST_ID, GUEST_ID = 0xA0, 0xB0

Run = tuple[int, int, int, int]
"""A run window: (host CPU, thread, entry, exit)."""

Row = tuple[int, int, str, int]
"""A host event: (host CPU, stamp, "entry" | "exit" | "in" | "out" | "mark", thread)."""


def runs(*windows: Run) -> list[Row]:
    """The kvm events of run windows."""
    return [
        row for cpu, tid, entry, leave in windows for row in ((cpu, entry, "entry", tid), (cpu, leave, "exit", tid))
    ]


def host_file(
    rows: Sequence[Row],
    *,
    lost: Mapping[tuple[int, int], int] | None = None,
    cpus: int | None = None,
    arm64: bool = False,
    **options: Any,
) -> TraceFile:
    """A host's recording. ``lost``: (CPU, stamp of the event after the loss) to the count (-1: not counted)."""
    entry, leave = (KVM_ENTRY_ARM64, KVM_EXIT_ARM64) if arm64 else (KVM_ENTRY_X86, KVM_EXIT_X86)
    options = {"clock": "mono_raw" if arm64 else "x86-tsc", "trace_id": HOST_ID, "cpu_count": cpus} | options
    file = TraceFile(events=[entry, leave, SCHED_SWITCH, MARK], **options)
    buffer = Buffer()
    for cpu in sorted({row[0] for row in rows}):
        mine = sorted((row for row in rows if row[0] == cpu), key=lambda row: row[1])
        records = []
        for _, stamp, kind, tid in mine:
            if kind in ("in", "out"):
                pids = {"prev_pid": 0, "next_pid": tid} if kind == "in" else {"prev_pid": tid, "next_pid": 0}
                body = file.payload(SCHED_SWITCH, pids["prev_pid"], **pids)
            else:
                body = file.payload({"entry": entry, "exit": leave, "mark": MARK}[kind], tid)
            records.append((stamp, body))
        missed = {
            next(i for i, row in enumerate(mine) if row[1] == stamp): count
            for (number, stamp), count in (lost or {}).items()
            if number == cpu
        }
        buffer.cpus[cpu] = file.stream(records, missed=missed)
    file.buffers = [buffer]
    return file


def guest_file(stamps: Mapping[int, Sequence[int]], **options: Any) -> TraceFile:
    """A guest's recording: the stamps of each of its CPUs, in the order they were recorded."""
    options = {"clock": "x86-tsc", "trace_id": GUEST_ID} | options
    file = TraceFile(events=[MARK], **options)
    buffer = Buffer()
    for cpu, row in stamps.items():
        buffer.cpus[cpu] = file.stream([(stamp, file.payload(MARK, 7, n=n)) for n, stamp in enumerate(row)])
    file.buffers = [buffer]
    return file


def random_runs(
    rng: random.Random,
    count: int,
    *,
    tid: int = 147,
    cpu: int = 0,
    begin: int = 1_000_000_000,
    length: int = 20_000,
    gap: int = 100_000,
) -> list[Run]:
    """``count`` run windows of a thread, of random lengths up to twice ``length``, as far apart as ``gap``."""
    out, at = [], begin
    for _ in range(count):
        at += rng.randint(2, 2 * gap)
        end = at + rng.randint(length // 4, 2 * length)
        out.append((cpu, tid, at, end))
        at = end
    return out


def random_events(rng: random.Random, windows: Sequence[Run], count: int, slack: int = 100) -> list[int]:
    """Host times of ``count`` events in the windows, at least ``slack`` from their ends, in order."""
    out = []
    for _ in range(count):
        _, _, entry, leave = rng.choice(windows)
        out.append(rng.randint(entry + slack, leave - slack))
    return sorted(out)
