"""Spans of a clock: disjoint, in order, the first and the last of them maybe open."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from counterpoint.clocks.counter import MASK, U64, Bools, relative, to_signed

_OPEN = 1 << 62


@dataclass(frozen=True, slots=True)
class Spans:
    """Closed spans (from, to) of u64 stamps, None: open; they lie within 2**62 of each other.

    ValueError where they overlap or are not in order.
    """

    pairs: tuple[tuple[int | None, int | None], ...]

    def __post_init__(self) -> None:
        """Refuse spans that are not in order, and stamps that are none."""
        stamps = [stamp for pair in self.pairs for stamp in pair]
        if any(stamp is not None and not 0 <= stamp <= MASK for stamp in stamps):
            raise ValueError("a span's stamp has no 64 bits")
        if None in stamps[1:-1]:
            raise ValueError("a span between others is open")
        known = [stamp for stamp in stamps if stamp is not None]
        away = [to_signed(stamp - known[0]) for stamp in known]
        if any(a > b for a, b in pairwise(away)) or (away and away[-1] >= _OPEN):
            raise ValueError("spans are not in order")

    @classmethod
    def joined(cls, base: int, lo: np.ndarray, hi: np.ndarray, most: int) -> Spans:
        """Spans relative to ``base``, in order, +-2**62 for an open end; at most ``most``, joined over the least gaps.

        They may touch, and overlap by nothing.
        """
        gap = lo[1:] - hi[:-1]
        least = max(1, int(np.sort(gap)[-most])) if len(gap) >= most else 1
        apart = gap > least
        first, last = lo[np.r_[True, apart][: len(lo)]], hi[np.r_[apart, True][: len(hi)]]

        def stamp(value: int) -> int | None:
            return None if abs(value) >= _OPEN else (value + base) & MASK

        return cls(tuple((stamp(a), stamp(b)) for a, b in zip(first.tolist(), last.tolist(), strict=True)))

    def clip(self, early: U64, late: U64) -> tuple[Bools, U64, U64]:
        """Which of [early, late] u64[n] meet a span, and what of them lies from the first span met to the last.

        Those that meet none stay as they are.
        """
        base = next((stamp for pair in self.pairs for stamp in pair if stamp is not None), None)
        if base is None:
            return np.full(len(early), bool(self.pairs), np.bool_), early, late
        ends = np.array([[base if stamp is None else stamp for stamp in pair] for pair in self.pairs], np.uint64)
        lo, hi = relative(ends[:, 0], base), relative(ends[:, 1], base)
        if self.pairs[0][0] is None:
            lo[0] = -_OPEN
        if self.pairs[-1][1] is None:
            hi[-1] = _OPEN
        begin, end = relative(early, base), relative(late, base)
        first, last = np.searchsorted(hi, begin), np.searchsorted(lo, end, side="right") - 1
        held: Bools = first <= last
        begin = np.where(held, np.maximum(begin, lo[np.minimum(first, len(lo) - 1)]), begin)
        end = np.where(held, np.minimum(end, hi[np.maximum(last, 0)]), end)
        return held, begin.view(np.uint64) + np.uint64(base), end.view(np.uint64) + np.uint64(base)
