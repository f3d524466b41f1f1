"""Who runs where, and when: stints of threads on CPUs, run windows in stints, all as arrays.

Time is cut into rounds. In a round each active thread has one stint, on one CPU of one host; the stints of a CPU follow
one another in a drawn order, with other work between them; the round is as long as its busiest CPU needs. So no two
threads are ever on one CPU at once, and no thread on two CPUs.

All times are hidden times i64; a window's ``entry`` and ``leave`` are the stamps of kvm_entry and kvm_exit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, Bools

FAST, KERNEL, USER, INTERRUPT, HALT = range(5)
"""Why a window ends: handled at once, in the kernel, by the VMM; an interrupt of the host; the guest halts."""


@dataclass(frozen=True)
class Latencies:
    """In ns: (least, mean of what is drawn on top) of each span."""

    into: tuple[float, float]
    out_of: tuple[float, float]
    fast: tuple[float, float]
    kernel: tuple[float, float]
    user: tuple[float, float]
    switch: tuple[float, float]


LATENCIES = {
    "metal": Latencies((250, 250), (150, 200), (60, 300), (600, 1500), (6_000, 15_000), (700, 1500)),
    "emulated": Latencies((12_000, 9_000), (10_000, 12_000), (9_000, 9_000), (20_000, 20_000), (60_000, 90_000),
                          (30_000, 30_000)),
}  # fmt: skip


class Draw:
    """Random spans in units of hidden time, from means in ns."""

    def __init__(self, rng: np.random.Generator, units_per_ns: float) -> None:
        """Draw from ``rng``."""
        self.rng = rng
        self.units_per_ns = units_per_ns

    def spans(self, ns: tuple[float, float], count: int) -> I64:
        """``count`` spans of at least ns[0], and ns[1] more on average; at least 1 unit."""
        least, more = ns
        drawn = (least + self.rng.exponential(more, count)) * self.units_per_ns
        return np.maximum(drawn, 1.0).astype(np.int64)

    def units(self, ns: float) -> int:
        """A fixed span."""
        return max(1, int(ns * self.units_per_ns))


@dataclass
class Stints:
    """By thread, then round: ``thread``, ``round``, ``cpu`` i64[S]; windows of s: first[s]:first[s + 1], i64[S + 1].

    ``start`` and ``end`` i64[S]: when the thread is switched to and away from. ``jumps`` i64[S]: how many writes of
    counters happen at its beginning. ``halted`` bool[S]: it ends because the guest halts.
    """

    thread: I64
    round: I64
    cpu: I64
    first: I64
    jumps: I64
    halted: Bools
    start: I64
    end: I64


@dataclass
class Windows:
    """By stint: ``stint`` i64[W], ``entry``, ``leave`` i64[W], ``reason`` i64[W] why it ends.

    ``into``, ``out_of`` i64[W]: between entry and the guest's first instruction, and between its last and the exit.
    """

    stint: I64
    entry: I64
    leave: I64
    reason: I64
    into: I64
    out_of: I64


def sticky_choice(rng: np.random.Generator, threads: int, rounds: int, options: int, change: float) -> I64:
    """i64[threads, rounds] in 0..options-1; a thread keeps its value from round to round but for chance ``change``."""
    value = rng.integers(0, options, (threads, rounds))
    fresh = rng.random((threads, rounds)) < change
    fresh[:, 0] = True
    last = np.maximum.accumulate(np.where(fresh, np.arange(rounds), 0), axis=1)
    out: I64 = np.take_along_axis(value, last, axis=1)
    return out


def place(
    draw: Draw,
    stints: Stints,
    duration: I64,
    rounds: int,
    extra: npt.NDArray[np.float64],
    switch_ns: tuple[float, float],
) -> I64:
    """Set ``start`` and ``end`` of all stints; returns when each round begins, i64[rounds + 1].

    ``duration`` i64[S]; ``extra`` [rounds]: time added to the end of each, in mean rounds.
    """
    count = len(stints.thread)
    idle = draw.spans((switch_ns[0], 40 * switch_ns[1]), count)
    order = np.lexsort((draw.rng.random(count), stints.cpu, stints.round))
    total = np.cumsum((idle + duration)[order])
    key = stints.round[order] * (int(stints.cpu.max()) + 1) + stints.cpu[order]
    opens = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if count else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[opens, count])
    base = np.repeat(np.r_[0, total[opens[1:] - 1]], sizes)
    relative_end = total - base
    length = np.zeros(rounds, np.int64)
    np.maximum.at(length, stints.round[order], relative_end)
    length += draw.spans((4 * switch_ns[0], 20 * switch_ns[1]), rounds)
    length += (extra * float(length.mean())).astype(np.int64)
    begin = np.r_[0, np.cumsum(length)] + draw.units(20_000)
    end = np.empty(count, np.int64)
    end[order] = relative_end
    stints.end = begin[stints.round] + end
    stints.start = stints.end - duration
    out: I64 = begin
    return out


def segment_sums(values: I64, first: I64) -> I64:
    """The sums i64[n] of ``values`` over first[i]:first[i+1]."""
    total = np.r_[0, np.cumsum(values)]
    out: I64 = total[first[1:]] - total[first[:-1]]
    return out
