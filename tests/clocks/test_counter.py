"""Counter arithmetic and rates against plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.clocks.counter import add, relative, to_signed
from counterpoint.clocks.rate import Rate

PERIOD = 1 << 64
EDGES = [0, 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, PERIOD - 1]

u64 = st.one_of(st.sampled_from(EDGES), st.integers(0, PERIOD - 1))
anything = st.one_of(u64, st.integers(-(1 << 70), 1 << 70))


@given(anything)
def test_to_signed_is_the_number_nearest_zero_with_the_same_low_bits(value: int) -> None:
    signed = to_signed(value)
    assert (signed - value) % PERIOD == 0
    assert -(1 << 63) <= signed < 1 << 63


@given(st.lists(u64, max_size=20), anything)
def test_relative_is_the_signed_distance_from_a_base(stamps: list[int], base: int) -> None:
    assert relative(np.array(stamps, np.uint64), base).tolist() == [to_signed(s - base) for s in stamps]


@given(st.lists(u64, max_size=20), anything)
def test_add_wraps(stamps: list[int], delta: int) -> None:
    moved = add(np.array(stamps, np.uint64), delta)
    assert moved.dtype == np.uint64
    assert moved.tolist() == [(s + delta) % PERIOD for s in stamps]


@given(st.lists(u64, max_size=20), anything)
def test_adding_and_taking_away_again_changes_nothing(stamps: list[int], delta: int) -> None:
    column = np.array(stamps, np.uint64)
    assert add(add(column, delta), -delta).tolist() == stamps


@given(st.lists(u64, max_size=20), st.integers(1, (1 << 32) - 1), st.integers(0, 32))
def test_ns_of_a_column_are_those_of_each_number(values: list[int], mult: int, shift: int) -> None:
    rate = Rate(mult, shift, "test")
    fit = [v for v in values if (v * mult) >> shift < 1 << 63]
    column = rate.array_to_ns(np.array(fit, np.uint64)).tolist()
    assert column == [(v * mult) >> shift for v in fit] == [rate.to_ns(v) for v in fit]


@given(st.integers(-(1 << 64), 1 << 64), st.integers(1, (1 << 32) - 1), st.integers(0, 32))
def test_ns_of_a_negative_number_round_toward_minus_infinity(value: int, mult: int, shift: int) -> None:
    assert Rate(mult, shift, "test").to_ns(value) == value * mult // (1 << shift)


@pytest.mark.parametrize(("mult", "shift"), [(0, 0), (1 << 32, 0), (-1, 3), (1, 33), (1, -1)])
def test_factors_beyond_the_exact_arithmetic_are_refused(mult: int, shift: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Rate(mult, shift, "test")


@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50))
def test_the_rate_of_a_ratio_is_near_it(ns: int, ticks: int) -> None:
    rate = Rate.of_ratio(ns, ticks, "test")
    if rate is None:
        assert ns >= ticks << 32 or ns << 32 < ticks
        return
    # the factor is rounded to the nearest of its own steps
    assert abs(rate.mult * ticks - (ns << rate.shift)) * 2 <= ticks


@pytest.mark.parametrize(("ns", "ticks"), [(0, 5), (5, 0), (-1, 1), (1, -1)])
def test_no_rate_of_a_ratio_that_is_none(ns: int, ticks: int) -> None:
    assert Rate.of_ratio(ns, ticks, "test") is None


def test_a_clock_in_ns_counts_ns() -> None:
    values = np.array([0, 1, (1 << 63) - 1], np.uint64)
    assert Rate.ns().array_to_ns(values).tolist() == values.tolist()
    assert Rate.ns().khz == 1_000_000


@pytest.mark.parametrize(("mult", "shift", "khz"), [(699050667, 24, 24_000), (134217728, 23, 62_500)])
def test_khz_of_the_kernels_factors(mult: int, shift: int, khz: int) -> None:
    assert Rate(mult, shift, "test").khz == khz
