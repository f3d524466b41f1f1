"""A machine's events as columns, CPU by CPU, and its trace.dat file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.simulate.events import KINDS, Block
from counterpoint.traces.write import Compression, CpuPages, TraceFile
from counterpoint.traces.write_options import RawOption
from counterpoint.traces.write_pages import Batch, pack_pages

StampsOf = Callable[[int, I64], U64]
"""A machine's trace clock: stamps u64[n] on a CPU at hidden times i64[n]."""


@dataclass(frozen=True, slots=True)
class CpuEvents:
    """One CPU's events as they stand in the file.

    ``t`` i64[n] hidden times; ``true_stamp`` u64[n] what the clock said; ``stamp`` u64[n] what the file says (later,
    where the clock stepped back within a page); ``lost_row``, ``lost_count``: losses before rows.
    """

    t: I64
    true_stamp: U64
    stamp: U64
    lost_row: I64
    lost_count: I64


@dataclass
class Machine:
    """A machine to be recorded. ``seen``: hidden times (from, to) of its recording; ``silent``: CPUs not recorded."""

    name: str
    parent: str | None
    clock: str
    cpus: int
    stamps: StampsOf
    blocks: list[Block]
    cmdlines: Mapping[int, str]
    options: list[RawOption] = field(default_factory=list)
    seen: tuple[int, int] = (0, 1 << 62)
    silent: frozenset[int] = frozenset()
    losses: int = 0
    counted: bool = True
    kallsyms: bytes = b""
    events: dict[int, CpuEvents] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.dat"

    @property
    def count(self) -> int:
        """Events in its file."""
        return sum(len(cpu.t) for cpu in self.events.values())

    def write(
        self, file: BinaryIO, arch: str, rng: np.random.Generator, *, version: int, compression: Compression
    ) -> None:
        """Write the file; afterwards ``events`` is what stands in it, and ``blocks`` are gone."""
        formats = [(kind.system, kind.format_text) for kind in KINDS[arch]]
        out = TraceFile(
            self.clock, self.cpus, formats, {p: c for p, c in self.cmdlines.items() if p}, self.options,
            self.kallsyms, version=6 if version == 6 else 7, compression=compression,
        )  # fmt: skip
        out.write(file, self._pages(rng))
        self.blocks = []

    def _pages(self, rng: np.random.Generator) -> Iterator[CpuPages]:
        grouped = []
        for block in self.blocks:
            order = np.argsort(block.cpu.astype(np.int16), kind="stable")
            grouped.append((block, order, np.searchsorted(block.cpu[order], np.arange(self.cpus + 1))))
        totals = np.sum([np.diff(starts) for _, _, starts in grouped], axis=0)
        shares = _shares(rng, self.losses, totals)
        for cpu in range(self.cpus):
            if cpu in self.silent:
                continue
            parts = [(block, order[starts[cpu] : starts[cpu + 1]]) for block, order, starts in grouped]
            yield self._cpu(rng, cpu, parts, shares[cpu])

    def _cpu(self, rng: np.random.Generator, cpu: int, parts: Sequence[tuple[Block, I64]], losses: int) -> CpuPages:
        t = np.concatenate([block.t[rows] for block, rows in parts])
        order = np.argsort(t, kind="stable")
        t = t[order]
        begin, end = np.searchsorted(t, self.seen[0]), np.searchsorted(t, self.seen[1], side="right")
        keep, lost_row, lost_count = _lose(rng, int(end - begin), losses)
        place = np.full(len(order), -1, np.int64)
        kept = order[begin:end][keep]
        place[kept] = np.arange(len(kept))
        t = t[begin:end][keep]
        stamp = self.stamps(cpu, t)
        batches, at = [], 0
        for block, rows in parts:
            places = place[at : at + len(rows)]
            at += len(rows)
            if (places < 0).any():
                rows, places = rows[places >= 0], places[places >= 0]
            if len(rows):
                batches.append(Batch(places, block.kind.rows(block.pid[rows], block.values, rows)))
        if not self.counted:
            lost_count = np.full(len(lost_count), -1, np.int64)
        pages = pack_pages(stamp, batches, lost_row=lost_row.tolist(), lost_count=lost_count.tolist(), backwards="late")
        self.events[cpu] = CpuEvents(t, stamp, pages.stamp, lost_row, lost_count)
        return CpuPages(cpu, pages.data)


def _shares(rng: np.random.Generator, losses: int, totals: I64) -> list[int]:
    """How many losses each CPU has, by its number of events."""
    if not losses or not totals.sum():
        return [0] * len(totals)
    shares: list[int] = rng.multinomial(losses, totals / totals.sum()).tolist()
    return shares


def _lose(rng: np.random.Generator, count: int, losses: int) -> tuple[Bools, I64, I64]:
    """Drop stretches of ``count`` events: (kept bool[count], rows of the kept that losses come before, their sizes)."""
    keep = np.ones(count, np.bool_)
    none = np.zeros(0, np.int64)
    if not losses or count < 20:
        return keep, none, none
    begin = rng.integers(1, count, losses)
    # a twentieth of all events on average, or a tenth of them in many losses
    sizes = rng.geometric(min(1.0, max(20, 10 * losses) / count), losses)
    for first, size in zip(begin.tolist(), sizes.tolist(), strict=True):
        keep[first : first + size] = False
    # what is lost is overwritten by what comes later: the end is never lost
    keep[-1] = True
    dropped = np.cumsum(~keep)[np.flatnonzero(keep)]
    step = np.diff(np.r_[0, dropped])
    rows = np.flatnonzero(step)
    return keep, rows, step[rows]
