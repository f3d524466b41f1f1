"""arm64's counter behind ns: the kernel's factors, exact ticks, and lattices found in stamps alone."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.clocks.arch_counter import (
    WELL_KNOWN_HZ,
    Clock,
    Lattice,
    NsScale,
    calc_mult_shift,
    factors,
    find_lattice,
    k_of_timekeeper,
    lattice_at,
    lattice_of,
    scale_of,
)
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS

MASK = (1 << 64) - 1
frequencies = st.sampled_from(WELL_KNOWN_HZ) | st.integers(1_000_000, 1_000_000_000)


def stamps(scale: NsScale, k: int, seed: int, count: int = 2000, first: int = 10**9) -> Any:
    """Stamps of a counter, from 1 us to 100 ms apart, like those of events: (ns u64[count], ticks), in order."""
    rng = np.random.default_rng(seed)
    gaps = (10 ** rng.uniform(-6, -1, count) * scale.frequency).astype(np.uint64) + np.uint64(1)
    ticks = np.cumsum(gaps) + np.uint64(first)
    return scale.to_ns(ticks, k), ticks


# -- the kernel's factors


@pytest.mark.parametrize(
    ("hz", "mult", "shift"),
    [
        (19_200_000, 0x34155555, 24),
        (24_000_000, 0x29AAAAAB, 24),
        (25_000_000, 0x28000000, 24),
        (31_250_000, 0x10000000, 23),
        (50_000_000, 0x14000000, 24),
        (54_000_000, 0x1284BDA1, 24),
        (62_500_000, 0x08000000, 23),
        (100_000_000, 0x0A000000, 24),
        (1_000_000_000, 0x00800000, 23),
    ],
)
def test_mono_raws_factors_are_those_of_real_kernels(hz: int, mult: int, shift: int) -> None:
    assert scale_of(hz) == NsScale(hz, mult, shift)
    assert {scale_of(hz, "mono_raw", bits) for bits in range(56, 65)} == {scale_of(hz)}


def test_sched_clock_has_factors_of_its_own() -> None:
    assert scale_of(24_000_000, "local") == NsScale(24_000_000, 87381333, 21)


def test_a_counter_above_1_ghz_has_no_exact_ticks() -> None:
    assert scale_of(1_000_000_001) is None
    assert scale_of(0) is None
    with pytest.raises(ValueError, match="not between 1 ns"):
        NsScale(2_000_000_000, 1 << 22, 23)
    with pytest.raises(ValueError, match="no factors"):
        calc_mult_shift(0, 10**9, 600)


def test_factors_keep_the_rate_of_faster_counters_too() -> None:
    for hz in (1_000_000_000, 2_400_000_000, 3_700_000_001):
        mult, shift = factors(hz)
        assert abs(mult * hz - (10**9 << shift)) <= hz


@given(frequencies)
def test_the_factors_are_right_to_a_part_in_2_to_the_24(hz: int) -> None:
    for clock in ("mono_raw", "local"):
        scale = scale_of(hz, clock)  # type: ignore[arg-type]
        assert scale is not None
        assert abs(scale.mult * hz - (10**9 << scale.shift)) << 21 <= 10**9 << scale.shift


# -- ticks


@given(frequencies, st.integers(0, MASK), st.integers(-(1 << 100), 1 << 100), st.sampled_from(["mono_raw", "local"]))
def test_ns_of_ticks_is_the_kernels_formula_modulo_2_to_the_64(hz: int, ticks: int, k: int, clock: Clock) -> None:
    scale = scale_of(hz, clock)
    assert scale is not None
    whole = k - k % scale.mult
    # as in the kernel the remainder is added to the product of 64-bit ticks, of any epoch
    index = (ticks + whole // scale.mult) & MASK
    expected = ((index * scale.mult + k % scale.mult) >> scale.shift) & MASK
    assert int(scale.to_ns(np.array([ticks], np.uint64), k)[0]) == expected


@given(frequencies, st.integers(0, (1 << 63) - 1), st.integers(-(1 << 100), 1 << 100))
def test_ticks_of_ns_are_the_first_that_give_it_or_more(hz: int, ns: int, k: int) -> None:
    scale = scale_of(hz)
    assert scale is not None
    ticks = scale.ticks_of(ns, k)
    assert scale.ns_of(ticks, k) >= ns > scale.ns_of(ticks - 1, k)
    assert int(scale.to_ticks(np.array([ns], np.uint64), k)[0]) == ticks & MASK


@given(frequencies, st.integers(0, 1 << 56), st.integers(-(1 << 80), 1 << 80))
def test_every_tick_comes_back(hz: int, ticks: int, k: int) -> None:
    scale = scale_of(hz)
    assert scale is not None
    assert scale.ticks_of(scale.ns_of(ticks, k), k) == ticks


# -- lattices


@pytest.mark.parametrize("hz", [h for h in WELL_KNOWN_HZ if h <= 333_333_333])
@pytest.mark.parametrize("clock", ["mono_raw", "local"])
def test_well_known_frequencies_are_found_from_stamps_alone(hz: int, clock: Clock) -> None:
    scale = scale_of(hz, clock)
    assert scale is not None
    k = (hz * 7919) % (1 << 70)
    ns, ticks = stamps(scale, k, seed=hz % 1000)
    found = find_lattice(ns, clock)
    assert found is not None
    assert found.scale.frequency == hz
    assert found.k_lo <= k % scale.mult + (scale.mult if k % scale.mult < found.k_lo else 0) <= found.k_hi
    assert found.holds(ns)
    # all distances are exact
    index = found.index(ns)
    assert ((index - index[0]) == (ticks - ticks[0])).all()
    whole = found.whole((k, k))
    assert whole is not None
    assert whole[0] == whole[1]
    assert (index - np.uint64(whole[0] & MASK) == ticks).all()


@pytest.mark.parametrize("hz", [1_234_567, 3_579_545, 7_372_800, 14_318_180, 33_868_800, 77_777_777, 91_000_001])
def test_any_frequency_is_found(hz: int) -> None:
    scale = scale_of(hz)
    assert scale is not None
    ns, _ = stamps(scale, 987654321, seed=hz % 97, count=8000)
    found = find_lattice(ns)
    assert found is not None
    # a hertz apart the factors may be equal
    assert (found.scale.mult, found.scale.shift) == (scale.mult, scale.shift)
    assert found.holds(ns)


def test_frequencies_that_steps_of_several_ticks_would_explain_too_are_named() -> None:
    scale = scale_of(25_000_000)
    assert scale is not None
    found = find_lattice(stamps(scale, 5, seed=3)[0])
    assert found is not None
    assert found.scale.frequency == 25_000_000
    assert {50_000_000, 100_000_000, 200_000_000} <= set(found.multiples)


def test_stamps_of_other_clocks_lie_on_no_lattice() -> None:
    rng = np.random.default_rng(5)
    anything = np.unique(rng.integers(0, 10**11, 20_000)).astype(np.uint64)
    assert find_lattice(anything) is None
    fast = scale_of(1_000_000_000)
    assert fast is not None
    assert find_lattice(stamps(fast, 0, seed=1, count=20_000)[0]) is None


@pytest.mark.parametrize("ppb", [5, 1_000, 20_000])
def test_a_slewed_clock_lies_on_no_lattice(ppb: int) -> None:
    scale = scale_of(24_000_000)
    assert scale is not None
    ns, _ = stamps(scale, 12345, seed=8)
    half = len(ns) // 2
    # slewed from the middle on, as adjtimex would
    slewed = ns.copy()
    slewed[half:] += ((ns[half:] - ns[half]) * np.uint64(ppb)) // np.uint64(10**9)
    assert find_lattice(slewed) is None


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_too_few_stamps_tell_nothing(count: int) -> None:
    scale = scale_of(24_000_000)
    assert scale is not None
    ns, _ = stamps(scale, 1, seed=2)
    assert find_lattice(ns[:: len(ns) // 8][:count]) is None


def test_one_stamp_off_the_lattice_is_enough() -> None:
    scale = scale_of(24_000_000)
    assert scale is not None
    ns, _ = stamps(scale, 1, seed=2)
    assert lattice_at(ns, scale) is not None
    ns[777] += np.uint64(20)
    assert lattice_at(ns, scale) is None
    assert find_lattice(ns) is None


@given(st.integers(1, 40), st.integers(0, 1 << 30), st.integers(0, 10**6))
def test_the_interval_of_k_is_exact(count: int, k: int, first: int) -> None:
    """Every K that a small lattice allows, by trying them all."""
    scale = NsScale(71_000_000, 225, 4)
    ticks = np.arange(count, dtype=np.uint64) * np.uint64(7) + np.uint64(first)
    ns = scale.to_ns(ticks, k)
    suits = [
        any_k
        for any_k in range(scale.mult)
        if all(scale.ns_of(scale.ticks_of(int(s), any_k), any_k) == int(s) for s in ns)
    ]
    found = lattice_at(ns, scale)
    assert found is not None
    (lo, hi), _ = found
    assert sorted(value % scale.mult for value in range(lo, hi + 1)) == suits


@given(st.integers(-(1 << 80), 1 << 80), st.integers(0, 1 << 40))
def test_the_whole_of_k_is_an_interval_where_k_is_one(k: int, more: int) -> None:
    scale = scale_of(24_000_000)
    assert scale is not None
    rest = k % scale.mult
    lattice = Lattice(scale, rest, rest)
    assert lattice.whole((k, k)) == (k // scale.mult, k // scale.mult)
    assert lattice.whole((k, k + more)) == (k // scale.mult, (k + more - rest) // scale.mult)
    assert lattice.whole((k + 1, k + 2)) is None
    assert lattice.k_of((k // scale.mult, k // scale.mult)) == (k, k)


@given(frequencies, st.integers(0, 1 << 70), st.integers(0, 1 << 16), st.sampled_from(["mono_raw", "local"]))
def test_a_frequency_that_is_given_gives_ticks_back(hz: int, k: int, seed: int, clock: Clock) -> None:
    scale = scale_of(hz, clock)
    assert scale is not None
    ns, ticks = stamps(scale, k, seed, count=300)
    found = lattice_of(ns, hz, clock)
    if found is None:
        # of a counter of nearly 1 GHz many K suit some stamps
        assert scale.mult < 4 << scale.shift
        return
    whole = found.whole((k, k))
    assert whole is not None
    assert whole[0] == whole[1]
    assert (found.index(ns) - np.uint64(whole[0] & MASK) == ticks).all()
    lo, hi = found.k_of(whole)
    assert lo <= k <= hi


def test_at_1_ghz_every_stamp_is_a_tick() -> None:
    ns = np.array([5, 6, 7, 1 << 60], np.uint64)
    found = lattice_of(ns, 1_000_000_000)
    assert found is not None
    assert found.index(ns).tolist() == ns.tolist()
    assert found.whole((7 << 23, (8 << 23) - 1)) == (7, 7)
    assert lattice_of(ns, 1_000_000_001) is None
    assert lattice_of(ns, 24_000_000) is None


# -- real recordings


@cache
def truth_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RECORDINGS / name / "truth.json").read_text())
    return loaded


def real(name: str) -> Recording:
    path = RECORDINGS / name
    if not path.is_file():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    return Recording.open(path)


@pytest.mark.recordings
@pytest.mark.parametrize("case", ["arm64-monoraw", "arm64-pause", "arm64-nested"])
def test_real_counters_are_found_with_their_k(case: str) -> None:
    if not (RECORDINGS / case).is_dir():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    truth = truth_of(case)
    known = truth.get("mono_raw") or {"host": truth["host_mono_raw"], "guest": truth["guest_mono_raw"]}
    for name, snapshot in known.items():
        recording = real(f"{case}/{name}.dat")
        found = find_lattice(recording.stamp)
        assert found is not None
        assert (found.scale.frequency, found.scale.mult) == (truth["cntfrq"], snapshot["mult"])
        k = k_of_timekeeper(found.scale, snapshot["cycle_last"], snapshot["raw_sec"], snapshot["raw_snsec"])
        assert found.whole((k, k)) is not None


@pytest.mark.recordings
@pytest.mark.parametrize("name", ["host", "guest"])
def test_real_sched_clocks_are_found(name: str) -> None:
    recording = real(f"arm64-local/{name}.dat")
    found = find_lattice(recording.stamp, "local")
    assert found is not None
    assert found.scale == scale_of(24_000_000, "local")


@pytest.mark.recordings
@pytest.mark.parametrize(
    "name", ["x86-agent/host", "x86-agent-monoraw/host", "x86-agent-monoraw/guest", "x86-busy/guest"]
)
@pytest.mark.parametrize("clock", ["mono_raw", "local"])
def test_x86_clocks_lie_on_no_lattice(name: str, clock: Clock) -> None:
    assert find_lattice(real(f"{name}.dat").stamp, clock) is None
