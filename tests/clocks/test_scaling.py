"""Scaled counters against the kernel's formulas in plain integers, at the edges of 64 bits too."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clocks import oracle
from clocks.cases import PERIOD, Tally, randoms, scales, signed, u64, u64s
from counterpoint.clocks.maps import ClockMap, Epoch
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.scaling import TSC_TOLERANCE_PPM, Scale, nested_cntvoff, nested_offset, nested_ratio
from counterpoint.clocks.wide import divide, multiply

TOP = PERIOD - 1
N = 100
tally = Tally()


def column(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@tally.property(150, N)
@given(scales(), randoms)
def test_scaled_values_are_kvms(scale: tuple[int, int], random: Random) -> None:
    hosts = u64s(random, N)
    expected = [oracle.kvm_scale_tsc(h, *scale) for h in hosts]
    assert Scale(*scale).apply(column(hosts)).tolist() == expected
    assert [Scale(*scale).apply_int(h) for h in hosts] == expected
    tally.checked += N


@tally.property(150, N)
@given(scales(), randoms)
def test_the_inverse_is_every_host_value_that_scales_to_a_value(scale: tuple[int, int], random: Random) -> None:
    near = u64(random)
    hosts = u64s(random, N // 2)
    values = [oracle.kvm_scale_tsc(h, *scale) for h in hosts] + u64s(random, N // 2)
    lo, hi = Scale(*scale).inverse(column(values), near)
    found = list(zip(lo.tolist(), hi.tolist(), strict=True))
    for value, ends in zip(values, found, strict=True):
        assert ends == oracle.inverse(value, near, *scale), (value, near)
    assert Scale(*scale).inverse_int(values[0], near) == found[0]
    tally.checked += N


@tally.property(150, N)
@given(scales(), randoms)
def test_stamps_of_one_recording_go_back_to_where_they_were(scale: tuple[int, int], random: Random) -> None:
    near = u64(random)
    # up to a quarter of the scaled period away
    reach = (1 << 62 + scale[1]) // scale[0]
    hosts = [min(max(near + random.randint(-reach, reach), 0), TOP) for _ in range(N)]
    lo, hi = Scale(*scale).inverse(Scale(*scale).apply(column(hosts)), near)
    for host, first, last in zip(hosts, lo.tolist(), hi.tolist(), strict=True):
        assert first <= host <= last
        assert oracle.kvm_scale_tsc(first, *scale) == oracle.kvm_scale_tsc(last, *scale)
        assert first == last or scale[0] < 1 << scale[1]
    tally.checked += N


@tally.property(100, N)
@given(scales(), randoms)
def test_the_inverse_of_a_span_of_values_reaches_from_its_first_to_its_last(
    scale: tuple[int, int], random: Random
) -> None:
    near, values = u64(random), u64s(random, N)
    below, above = (random.choice([0, 1, 5, -3, u64(random)]) for _ in range(2))
    lo, hi = Scale(*scale).inverse(column(values), near, below, above)
    for value, *ends in zip(values, lo.tolist(), hi.tolist(), strict=True):
        assert tuple(ends) == oracle.inverse(value, near, *scale, below, above), (value, near, below, above)
    tally.checked += N


@tally.property(150, N)
@given(scales(), randoms, st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, -1, TOP, PERIOD, -PERIOD]))
def test_scaled_distances_are_exact_and_rise(scale: tuple[int, int], random: Random, base: int) -> None:
    values = sorted(signed(random) for _ in range(N))
    out = Scale(*scale).apply_signed_relative(np.array(values), base).tolist()
    assert out == [oracle.relative(v, base, *scale) for v in values]
    assert out == sorted(out)
    tally.checked += N


@tally.property(150, N)
@given(scales(), randoms, st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, -1, TOP, PERIOD, -PERIOD]))
def test_scaled_distances_go_back(scale: tuple[int, int], random: Random, base: int) -> None:
    values = [signed(random) for _ in range(N // 2)]
    values += [oracle.relative(signed(random), base, *scale) for _ in range(N // 2)]
    lo, hi = Scale(*scale).inverse_signed_relative(np.array(values), base)
    for value, *ends in zip(values, lo.tolist(), hi.tolist(), strict=True):
        assert tuple(ends) == oracle.relative_inverse(value, base, *scale), value
    tally.checked += N


@tally.property(150, N)
@given(st.sampled_from([32, 48]) | st.integers(0, 63), randoms)
def test_nested_factors_are_kvms(frac: int, random: Random) -> None:
    for _ in range(N):
        l1_ratio, l12_ratio = (random.choice([1 << frac, max(u64(random), 1)]) for _ in range(2))
        l1_offset, l12_offset = u64(random), u64(random)
        ratio = oracle.kvm_calc_nested_tsc_multiplier(l1_ratio, l12_ratio, frac)
        offset = oracle.kvm_calc_nested_tsc_offset(l1_offset, l12_offset, l12_ratio, frac)
        assert nested_ratio(l1_ratio, l12_ratio, frac) == ratio
        assert nested_offset(l1_offset, l12_offset, l12_ratio, frac) == offset
        # signed offsets are the same ones
        assert nested_offset(l1_offset - PERIOD, l12_offset - PERIOD, l12_ratio, frac) == offset
    tally.checked += N


@tally.property(100, N)
@given(scales(), randoms)
def test_a_scaled_map_goes_both_ways(scale: tuple[int, int], random: Random) -> None:
    ratio, frac = scale
    near, offset = u64(random), random.choice([1, -1]) * u64(random)
    spare = random.randrange(1000), random.randrange(1000)
    feasible = offset - spare[0], offset + spare[1]
    clock = ClockMap(0, (Epoch(offset, feasible=feasible, ratio=ratio, frac_bits=frac, near=near),))
    hosts = u64s(random, N)
    guests = clock.to_guest(column(hosts))
    assert guests.tolist() == [oracle.kvm_read_l1_tsc(h, ratio, frac, offset % PERIOD) for h in hosts]
    least, greatest = clock.bound_guest(column(hosts))
    assert least.tolist() == [(g - spare[0]) % PERIOD for g in guests.tolist()]
    assert greatest.tolist() == [(g + spare[1]) % PERIOD for g in guests.tolist()]
    back = clock.to_host(guests).tolist()
    early, late = clock.bound(guests)
    for guest, host, *ends in zip(guests.tolist(), back, early.tolist(), late.tolist(), strict=True):
        scaled = (guest - offset) % PERIOD
        assert host == oracle.inverse(scaled, near, ratio, frac)[0]
        if ratio == 1 << frac:
            # unscaled maps wrap
            assert ends == [(host - spare[1]) % PERIOD, (host + spare[0]) % PERIOD]
        else:
            assert tuple(ends) == oracle.inverse(scaled, near, ratio, frac, spare[1], spare[0])
    tally.checked += N


@tally.property(150, N)
@given(st.integers(1, (1 << 32) - 1), st.integers(0, 32), randoms, st.integers(-(1 << 98), 1 << 98))
def test_ns_go_back_to_every_tick_that_has_them(mult: int, shift: int, random: Random, base: int) -> None:
    rate = Rate(mult, shift, "test")
    base >>= random.randrange(99)
    ticks = u64s(random, N)
    exact = [oracle.timekeeping_ns(t, mult, shift, base) for t in ticks]
    kept = [(t, ns) for t, ns in zip(ticks, exact, strict=True) if abs(ns) < PERIOD // 2]
    assert [rate.to_ns(t, base) for t in ticks] == exact
    assert rate.array_to_ns(column([t for t, _ in kept]), base).tolist() == [ns for _, ns in kept]
    values = [ns for _, ns in kept] + [signed(random) for _ in range(N)]
    lo, hi = rate.from_ns(np.array(values, np.int64), base)
    for value, *ends in zip(values, lo.tolist(), hi.tolist(), strict=True):
        expected = oracle.preimage(lambda t: oracle.timekeeping_ns(t, mult, shift, base), value, 0, TOP)
        assert tuple(ends) == expected, value
    tally.checked += len(values)


@tally.property(100, N)
@given(st.integers(1, TOP) | st.integers(0, 63).map(lambda bits: (1 << bits) + 1), randoms)
def test_wide_products_and_quotients(factor: int, random: Random) -> None:
    values = u64s(random, N)
    high, low = multiply(column(values), factor)
    assert [h << 64 | w for h, w in zip(high.tolist(), low.tolist(), strict=True)] == [v * factor for v in values]
    # dividends just below a multiple need the guessed digits put right
    dividends = [max(0, v * factor + random.choice([-1, 0, 1, factor - 1])) for v in values]
    dividends = [d for d in dividends if d >> 64 < factor]
    quotient, rest = divide(column([d >> 64 for d in dividends]), column([d & TOP for d in dividends]), factor)
    assert list(zip(quotient.tolist(), rest.tolist(), strict=True)) == [divmod(d, factor) for d in dividends]
    tally.checked += N


def test_more_than_a_hundred_thousand_cases_are_checked() -> None:
    # each property fails by itself where it checks fewer than it promised
    assert sum(tally.promised.values()) >= 100_000


@pytest.mark.parametrize(("ratio", "frac"), [(0, 0), (-1, 4), (PERIOD, 0), (1, 64), (1, -1)])
def test_factors_beyond_the_exact_arithmetic_are_refused(ratio: int, frac: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Scale(ratio, frac)
    with pytest.raises(ValueError, match="outside"):
        Epoch(0, ratio=ratio, frac_bits=frac)


@given(scales(), randoms)
def test_lowest_terms_map_alike(scale: tuple[int, int], random: Random) -> None:
    lowest, values = Scale.of(*scale), column(u64s(random, 20))
    assert (lowest.apply(values) == Scale(*scale).apply(values)).all()
    assert lowest.ratio % 2 == 1 or lowest.frac_bits == 0
    assert (lowest == Scale()) == Scale(*scale).is_identity


@given(st.integers(1, (1 << 32) - 1), st.integers(-1000, 1000), st.sampled_from([32, 48]), st.sampled_from([0, 250]))
def test_a_rate_near_the_hosts_is_not_scaled(host_khz: int, ppm: int, frac: int, tolerance: int) -> None:
    guest_khz = max(1, host_khz + host_khz * ppm // 1_000_000)
    scale = Scale.from_khz(guest_khz, host_khz, frac, tolerance)
    assert scale == Scale(oracle.set_tsc_khz(guest_khz, host_khz, frac, tolerance), frac)


def test_kvms_tolerance() -> None:
    assert Scale.from_khz(2_400_600, 2_400_000, 48, TSC_TOLERANCE_PPM).is_identity
    assert not Scale.from_khz(2_400_601, 2_400_000, 48, TSC_TOLERANCE_PPM).is_identity
    assert not Scale.from_khz(2_400_600, 2_400_000, 48).is_identity
    assert Scale.from_khz(1_200_000, 2_400_000, 32) == Scale(1 << 31, 32)


@pytest.mark.parametrize(("guest", "host"), [(0, 5), (5, 0), (1, (1 << 32) - 1), ((1 << 32) - 1, 1)])
def test_rates_that_kvm_refuses(guest: int, host: int) -> None:
    with pytest.raises(ValueError, match=r"kHz|outside"):
        Scale.from_khz(guest, host, 31 if guest < host else 33)


def test_a_nested_offset_is_rounded_toward_zero() -> None:
    # mul_s64_u64_shr scales the magnitude: -3 / 2 is -1, which an arithmetic shift would make -2
    assert nested_offset(-3, 0, 1 << 31, 32) == TOP
    assert nested_offset(3, 0, 1 << 31, 32) == 1


def test_a_skipped_value_lies_between_two_ticks() -> None:
    # 0, 1, 3, 4, 6: no tick shows 2
    assert Scale(3, 1).inverse_int(2) == (1, 2)
    assert Scale(3, 1).inverse_int(3) == (2, 2)
    assert Scale(1, 1).inverse_int(3) == (6, 7)
    # a clock at half the rate never shows its upper half
    assert Scale(1, 1).inverse_int(1 << 63) == (TOP, TOP)


def test_a_wrapped_value_goes_back_near_where_it_is_told() -> None:
    scale = Scale(4, 0)
    assert scale.inverse_int(8) == (2, 2)
    assert scale.inverse_int(8, near=1 << 62) == ((1 << 62) + 2, (1 << 62) + 2)
    # just before the wrap, seen from just after it
    assert scale.inverse_int(PERIOD - 4, near=1 << 62) == ((1 << 62) - 1, (1 << 62) - 1)
    # the lower of two equally near
    assert scale.inverse_int(0, near=(1 << 62) + (1 << 61)) == (1 << 62, 1 << 62)


def test_a_span_beyond_the_last_tick_ends_there() -> None:
    top = TOP * 3 // 2
    assert Scale(3, 1).inverse_int(top % PERIOD, near=TOP) == (TOP, TOP)
    assert Scale(3, 1).inverse_int(top % PERIOD, near=TOP, below=-1, above=1) == (TOP, TOP)
    # more than 128 bits once shifted
    for frac in (63, 2):
        top = TOP * TOP >> frac
        assert Scale(TOP, frac).inverse_int(top % PERIOD, near=TOP, below=-TOP, above=TOP) == (TOP, TOP)
    assert Scale(3, 1).inverse_int(0, below=5, above=-5) == (0, 0)


def test_arm64s_offsets_add_up() -> None:
    assert nested_cntvoff(5, TOP) == 4
    assert nested_cntvoff() == 0


def test_a_base_too_large_for_the_exact_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="base"):
        Rate(5, 1, "test").from_ns(np.array([1]), 1 << 120)


def test_a_scaled_map_says_so() -> None:
    assert str(ClockMap(2, (Epoch(7), Epoch(-5, 9, 9, ratio=3, frac_bits=1)))) == "guest CPU 2: 7, 3/2^1 -5"
