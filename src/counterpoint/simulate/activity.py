"""What guests do in their run windows: which events, when, by which of their tasks; as arrays over all windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.simulate.events import (
    COMM,
    HRTIMER_EXPIRE_ENTRY,
    IRQ_ENTRY,
    IRQ_EXIT,
    IRQ_NAME,
    IRQ_NAME_LOC,
    PRINT,
    SCHED_SWITCH,
    SCHED_WAKING,
    SYS_ENTER,
    SYS_EXIT,
    Block,
)
from counterpoint.simulate.schedule import Draw

KVM_EXIT_HERE, KVM_ENTRY_HERE = -2, -1
SWITCH, WAKING, IRQ_IN, IRQ_OUT, TIMER, ENTER, LEAVE, MARK = range(8)
_WEIGHTS = np.array([0.17, 0.16, 0.13, 0.13, 0.1, 0.12, 0.12, 0.07])

TASKS = {
    1: "init", 15: "rcu_preempt", 24: "kworker/0:1", 133: "trace-cmd", 201: "worker-a", 202: "worker-b",
    203: "worker-c", 310: "cyclictest",
}  # fmt: skip


@dataclass
class Activity:
    """Guest events, window by window: ``window`` i64[E] index, ``t`` i64[E], ``kind`` i64[E] as above.

    ``target`` i64[E]: the task that a forced switch goes to (-1: any).
    """

    window: I64
    t: I64
    kind: I64
    target: I64


def event_gaps(draw: Draw, counts: I64, hug: float) -> tuple[I64, I64, I64]:
    """Spans before each event of windows with ``counts`` i64[W] events, and after the last one of each window.

    Returns (first i64[W + 1], gap i64[E], tail i64[W]): events come in bursts, and with chance ``hug`` the first and
    the last of a window are as near its ends as the latencies let them.
    """
    rng = draw.rng
    first = np.r_[0, np.cumsum(counts)]
    total = int(first[-1])
    short = draw.spans((80, 700), total)
    long = draw.spans((500, 9_000), total)
    gap = np.where(rng.random(total) < 0.7, short, long)
    busy = np.flatnonzero(counts)
    opening = first[busy]
    gap[opening] = np.where(rng.random(len(busy)) < hug, 1, gap[opening])
    tail = np.where((rng.random(len(counts)) < hug) & (counts > 0), 1, draw.spans((100, 4_000), len(counts)))
    return first, gap, tail


def random_kinds(rng: np.random.Generator, count: int, switching: Bools | None = None) -> I64:
    """Kinds i64[count] by weight; no switches where ``switching`` is False."""
    kind = np.searchsorted(np.cumsum(_WEIGHTS), rng.random(count) * _WEIGHTS.sum() * 0.999999)
    if switching is not None:
        kind[(kind == SWITCH) & ~switching] = WAKING
    out: I64 = kind.astype(np.int64)
    return out


def fixed_comm(tasks: dict[int, str], pids: I64) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Command names, S16[n], of ``pids`` i64[n]."""
    known = np.array(sorted(tasks), np.int64)
    names = np.array([tasks[pid].encode()[: COMM - 1] for pid in known.tolist()], f"S{COMM}")
    return names[np.searchsorted(known, pids)]


def blocks(
    rng: np.random.Generator,
    cpu: I64,
    t: I64,
    kind: I64,
    target: I64,
    now: I64,
    tasks: dict[int, str],
    vcpu_tids: list[int],
) -> tuple[list[Block], I64]:
    """The events of one guest: ``cpu``, ``t``, ``kind``, ``target`` i64[n], CPU by CPU and by time in each.

    ``now``: CLOCK_MONOTONIC in ns for timers; ``vcpu_tids``: tasks that are only switched to where ``target`` says so.
    Returns the events, and the task of each, i64[n]: the events KVM_*_HERE are the caller's to make.
    """
    current, kind, switched_to, before = run_tasks(rng, cpu, kind, target, tasks)
    tasks = tasks | {tid: f"CPU {n}/KVM" for n, tid in enumerate(vcpu_tids)}

    def part(which: int) -> I64:
        return np.flatnonzero(kind == which)

    pids = np.array(sorted(set(tasks) - {0}), np.int64)
    out = []
    at = part(SWITCH)
    prev, following = before[at], switched_to[at]
    out.append(
        Block(
            SCHED_SWITCH, t[at], cpu[at], prev,
            {
                "prev_comm": fixed_comm(tasks, prev), "prev_pid": prev, "prev_prio": 120,
                "prev_state": rng.integers(0, 2, len(at)) * (prev > 0), "next_comm": fixed_comm(tasks, following),
                "next_pid": following, "next_prio": 120,
            },
        )
    )  # fmt: skip
    at = part(WAKING)
    woken = pids[rng.integers(0, len(pids), len(at))]
    values = {"comm": fixed_comm(tasks, woken), "pid": woken, "prio": 120, "target_cpu": cpu[at]}
    out.append(Block(SCHED_WAKING, t[at], cpu[at], current[at], values))
    at = part(IRQ_IN)
    values = {"irq": 28, "name": IRQ_NAME_LOC, "tail": IRQ_NAME}
    out.append(Block(IRQ_ENTRY, t[at], cpu[at], current[at], values))
    at = part(IRQ_OUT)
    out.append(Block(IRQ_EXIT, t[at], cpu[at], current[at], {"irq": 28, "ret": 1}))
    at = part(TIMER)
    values = {"hrtimer": timers_of(cpu[at]), "now": now[at], "function": 0xFFFFFFFF81200000}
    out.append(Block(HRTIMER_EXPIRE_ENTRY, t[at], cpu[at], current[at], values))
    at = part(ENTER)
    out.append(Block(SYS_ENTER, t[at], cpu[at], current[at], {"id": rng.integers(0, 335, len(at))}))
    at = part(LEAVE)
    values = {"id": rng.integers(0, 335, len(at)), "ret": rng.integers(-2, 100, len(at))}
    out.append(Block(SYS_EXIT, t[at], cpu[at], current[at], values))
    at = part(MARK)
    values = {"ip": 0xFFFFFFFF811F0000, "tail": numbered(np.arange(len(at)))}
    out.append(Block(PRINT, t[at], cpu[at], current[at], values))
    return out, current


def run_tasks(
    rng: np.random.Generator, cpu: I64, kind: I64, target: I64, tasks: dict[int, str]
) -> tuple[I64, I64, I64, I64]:
    """Who is the current task: (current, kind, switched to, current before), i64[n] each.

    Switches go to ``target`` or any task; one that would stay becomes a waking, as no kernel switches to the same task.
    """
    count = len(kind)
    pids = np.array(sorted(tasks), np.int64)
    goes = np.where(target >= 0, target, pids[rng.integers(0, len(pids), count)])
    opens = np.r_[True, cpu[1:] != cpu[:-1]] if count else np.zeros(0, np.bool_)
    sets = (kind == SWITCH) | opens
    where = np.maximum.accumulate(np.where(sets, np.arange(count), 0))
    after = goes[where]
    before = np.r_[after[:1], after[:-1]]
    # the first event of a CPU: somebody runs, and nobody knows since when
    before[opens] = np.where(
        kind[opens] == SWITCH, pids[(np.searchsorted(pids, goes[opens]) + 1) % len(pids)], goes[opens]
    )
    kind = np.where((kind == SWITCH) & (before == after), WAKING, kind)
    current = np.where(kind == SWITCH, before, after)
    return current, kind, after, before


def timers_of(cpu: I64) -> U64:
    """Where each CPU's tick timer lies, u64[n]."""
    return np.uint64(0xFF11000080002000) + np.uint64(0x100) * cpu.astype(np.uint64)


def numbered(values: I64) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Texts ``mark 0000042``, S16[n]."""
    text = np.zeros((len(values), 16), np.uint8)
    text[:, :5] = np.frombuffer(b"mark ", np.uint8)
    for digit in range(7):
        text[:, 5 + digit] = 48 + values // 10 ** (6 - digit) % 10
    text[:, 12] = ord("\n")
    return text.view("S16").reshape(-1)
