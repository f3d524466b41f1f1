"""Clock maps: a vCPU's guest stamps to host stamps, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import U64, add


@dataclass(frozen=True, slots=True)
class MapPiece:
    """Rows ``first`` to ``last`` (exclusive) of a guest recording: host = guest - ``offset`` (modulo 2**64)."""

    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class ClockMap:
    """One guest CPU's map: pieces in row order that cover its events."""

    guest_cpu: int
    pieces: tuple[MapPiece, ...]

    def to_host(self, stamps: U64) -> U64:
        """Host stamps u64[n] of a recording's guest ``stamps`` u64[n]: those of this map's rows; 0 elsewhere."""
        out = np.zeros(len(stamps), np.uint64)
        for piece in self.pieces:
            rows = slice(piece.first, piece.last)
            out[rows] = add(stamps[rows], -piece.offset)
        return out
