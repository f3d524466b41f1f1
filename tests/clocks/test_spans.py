"""Spans of a clock: which intervals meet them, and what is kept of many."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given

from clocks.cases import EDGES, PERIOD, randoms
from counterpoint.clocks.spans import Spans

OPEN = 1 << 62


def made(random: Random) -> tuple[int, list[tuple[int | None, int | None]]]:
    """A base, and spans relative to it."""
    at, pairs = 0, []
    for _ in range(random.randrange(1, 6)):
        begin = at + random.randrange(0, 20)
        at = begin + random.randrange(0, 20)
        pairs.append((begin, at))
        at += 1
    spans: list[tuple[int | None, int | None]] = list(pairs)
    if random.random() < 0.4:
        spans[0] = None, spans[0][1]
    if random.random() < 0.4:
        spans[-1] = spans[-1][0], None
    return random.choice([0, *EDGES]), spans


@given(randoms)
def test_an_interval_is_cut_to_the_spans_it_meets(random: Random) -> None:
    base, pairs = made(random)
    spans = Spans(
        tuple(
            (None if a is None else (base + a) % PERIOD, None if b is None else (base + b) % PERIOD) for a, b in pairs
        )
    )
    asked = [(lo, lo + random.randrange(0, 30)) for lo in (random.randrange(-30, 160) for _ in range(20))]
    early, late = (np.array([(base + a[i]) % PERIOD for a in asked], np.uint64) for i in (0, 1))
    held, begin, end = spans.clip(early, late)
    for at, (lo, hi) in enumerate(asked):
        met = [(a, b) for a, b in pairs if (a is None or a <= hi) and (b is None or lo <= b)]
        assert bool(held[at]) == bool(met)
        first = lo if not met or met[0][0] is None else max(lo, met[0][0])
        last = hi if not met or met[-1][1] is None else min(hi, met[-1][1])
        assert (int(begin[at]), int(end[at])) == ((base + first) % PERIOD, (base + last) % PERIOD)


@given(randoms)
def test_joined_spans_hold_all_that_they_were_made_of(random: Random) -> None:
    base, pairs = made(random)
    lo = np.array([-OPEN if a is None else a for a, _ in pairs], np.int64)
    hi = np.array([OPEN if b is None else b for _, b in pairs], np.int64)
    most = random.randrange(1, 6)
    spans = Spans.joined(base, lo, hi, most)
    assert len(spans.pairs) <= max(most, 1)
    points = np.array([int(x) for x in np.r_[lo, hi] if abs(int(x)) < OPEN], np.int64).view(np.uint64) + np.uint64(base)
    assert spans.clip(points, points)[0].all()


def test_of_many_the_widest_gaps_are_kept() -> None:
    spans = Spans.joined(100, np.array([0, 10, 50, 53]), np.array([1, 11, 52, 60]), 2)
    assert spans.pairs == ((100, 111), (150, 160))


@pytest.mark.parametrize(
    "pairs", [((5, 4),), ((1, 2), (2, 1)), ((1, None), (5, 6)), ((1, 2), (None, 6)), ((-1, 2),), ((0, 1 << 64),)]
)
def test_spans_that_are_not_in_order_are_none(pairs: tuple[tuple[int | None, int | None], ...]) -> None:
    with pytest.raises(ValueError, match="span"):
        Spans(pairs)


def test_without_spans_nothing_is_met_and_with_one_that_is_open_all_is() -> None:
    at = np.array([1, 1 << 63], np.uint64)
    assert Spans(()).clip(at, at)[0].tolist() == [False, False]
    assert Spans(((None, None),)).clip(at, at)[0].tolist() == [True, True]
