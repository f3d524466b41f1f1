"""The clocks of simulated worlds against plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.simulate.counters import (
    GuestCounter,
    HostCounter,
    NsClock,
    Setting,
    combined,
    kvm_ratio,
    pvclock_scale,
    scaled,
)

U64 = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]))
S64 = st.integers(-(1 << 63), (1 << 63) - 1)
MASK = (1 << 64) - 1


def signed(value):
    return value - (1 << 64) if value >> 63 else value


@given(st.lists(U64, min_size=1), st.integers(1, (1 << 64) - 1), st.sampled_from([1, 32, 48, 63]))
def test_scaled_is_kvms_product(values, ratio, frac):
    out = scaled(np.array(values, np.uint64), ratio, frac)

    assert out.tolist() == [(v * ratio >> frac) & MASK for v in values]


@given(U64, st.integers(1 << 44, 1 << 52), S64, st.integers(1 << 44, 1 << 52), S64)
def test_l2_is_what_kvm_makes_of_both_levels(host, l1_ratio, l1_offset, l12_ratio, l12_offset):
    ratio, offset = combined(l1_ratio, l1_offset, l12_ratio, l12_offset, 48)

    # kvm_calc_nested_tsc_offset: the signed product is that of the magnitude with its sign put back
    product = abs(l1_offset) * l12_ratio >> 48
    wanted = (product if l1_offset >= 0 else -product) + l12_offset
    if l12_ratio == 1 << 48:
        assert ratio == l1_ratio
    else:
        assert ratio == l1_ratio * l12_ratio >> 48
    assert offset == signed(wanted & MASK)
    # step by step it is the same to within the rounding of two products
    l1 = (host * l1_ratio >> 48) + l1_offset
    direct = (host * ratio >> 48) + offset
    assert abs((l1 * l12_ratio >> 48) + l12_offset - direct - (wanted - offset)) <= 4 + (l12_ratio >> 48) + (host >> 48)


@pytest.mark.parametrize(
    ("hz", "mul", "shift"),
    # div_frac(10^9, hz shifted until it is in 10^9..2 * 10^9)
    [(2_400_000_000, (10**9 << 32) // 1_200_000_000, -1), (1_500_000_000, (10**9 << 32) // 1_500_000_000, 0),
     (4_100_000_000, (10**9 << 32) // 1_025_000_000, -2), (800_000_000, (10**9 << 32) // 1_600_000_000, 1)],
)  # fmt: skip
def test_kvm_clocks_factors(hz, mul, shift):
    assert pvclock_scale(hz) == (mul, shift)


@given(
    st.integers(0, MASK),
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, (1 << 32) - 1), st.integers(-(10**6), 10**9)), max_size=5),
    st.lists(st.integers(0, 10**12), min_size=1),
    st.integers(1, 31),
)
def test_a_clock_in_ns_goes_on_where_its_rate_changes(start, changes, times, shift):
    counter = HostCounter(start, 1, 0)
    rates, at = [(0, 1 << 20, 0)], 0
    for after, mult, step in changes:
        at += after
        rates.append((at, mult, step))
    clock = NsClock.build(counter.at_one, 10**15, 1, rates, shift)

    found = clock.at(np.array(times, np.int64), counter.at(np.array(times, np.int64)))

    for t, ns in zip(times, found.tolist(), strict=True):
        total = (10**15 << shift) + 1
        for (since, mult, step), end in zip(rates, [r[0] for r in rates[1:]] + [1 << 62], strict=True):
            if since <= t:
                total += (min(t, end) - since) * mult + (step << shift)
        assert ns == (total >> shift) & MASK


@given(st.integers(0, MASK), st.lists(st.integers(0, 1 << 41), min_size=1))
def test_a_guests_counter_follows_its_settings(start, times):
    hosts = HostCounter(start, 1, 0), HostCounter(77, 1_400_000, 20)
    settings = (
        Setting(0, 0, 1 << 47, -5),
        Setting(1000, 0, 1 << 47, 10**12),
        Setting(1 << 40, 1, 1 << 48, -(1 << 62)),
    )
    guest = GuestCounter(hosts, 48, settings)

    found = guest.at(np.array(times, np.int64)).tolist()

    for t, value in zip(times, found, strict=True):
        setting = [s for s in settings if s.since <= t][-1]
        host = (start + t) & MASK if setting.host == 0 else 77 + (t * 1_400_000 >> 20)
        assert value == ((host * setting.ratio >> 48) + setting.offset) & MASK


def test_a_rate_near_the_hosts_is_not_scaled():
    assert kvm_ratio(0, 2_400_000, 48) == 1 << 48
    assert kvm_ratio(2_400_600, 2_400_000, 48) == 1 << 48
    assert kvm_ratio(2_400_601, 2_400_000, 48) == (2_400_601 << 48) // 2_400_000
    assert kvm_ratio(1_200_000, 2_400_000, 32) == 1 << 31
