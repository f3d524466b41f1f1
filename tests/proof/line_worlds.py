"""Threads and events on a line that is known, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.proof.fit import Thread
from counterpoint.proof.lines import Piece
from counterpoint.proof.windows import FOREVER, RunWindows

PPM = Fraction(1, 1_000_000)


def thread(lo: I64, hi: I64) -> Thread:
    """A thread with these run windows, and nothing known before and after them."""
    count = len(lo)
    edges = np.r_[-FOREVER, lo, hi[-1]], np.r_[lo[0], hi, FOREVER]
    run = np.r_[False, np.ones(count, np.bool_), False]
    rows = np.r_[-1, np.arange(count), -1]
    return Thread(RunWindows(7, 0, edges[0], edges[1], run, rows, rows))


@dataclass
class Drawn:
    """A thread, events in its windows, and the line that they are on: guest = host + offset + slope * host."""

    thread: Thread
    guest: I64
    offset: int
    slope: Fraction

    def polygon_holds(self, piece: Piece, slack: int = 0) -> bool:
        """Whether the true line is in the piece's polygon, widened by ``slack`` for stamps being rounded."""
        a = self.offset + self.slope * piece.origin
        planes = piece.polygon.edges
        return all(p * a + q * self.slope <= r + abs(p) * slack for p, q, r in planes)


def drawn(seed: int, windows: int = 300, events: int = 500, slope: Fraction = 40 * PPM, offset: int = 10**9) -> Drawn:
    rng = np.random.default_rng(seed)
    gap = np.maximum(rng.exponential(3000, windows), 300).astype(np.int64)
    gap[:: max(1, windows // 12)] *= 30
    run = np.maximum(rng.exponential(4000, windows), 400).astype(np.int64)
    lo = np.cumsum(gap + np.r_[0, run[:-1]])
    hi = lo + run
    which = np.sort(rng.integers(0, windows, events))
    host = lo[which] + (rng.random(events) * (run[which] - 200)).astype(np.int64) + 100
    host.sort()
    guest = np.array([(h + offset + slope * h).__floor__() for h in host.tolist()], np.int64)
    return Drawn(thread(lo, hi), guest, offset, slope)
