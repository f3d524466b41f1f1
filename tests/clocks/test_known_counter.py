"""arm64's counter behind a clock in ns, by a K that is known exactly or to an interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from counterpoint.clocks.arch_counter import k_of_timekeeper, scale_of
from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.known_counter import ArchCounter

NS = 1_000_000_000
# K of the guest of a real arm64 recording
REAL = ArchCounter(24_000_000, -214955950111149651)


def test_ticks_become_stamps_and_stamps_ticks() -> None:
    ticks = np.arange(1_681_891_984, 1_681_892_984, dtype=np.uint64)
    stamps, most = REAL.stamps(ticks)
    assert (stamps == most).all()
    assert REAL.explains(stamps)
    assert not REAL.explains(stamps + np.uint64(7))
    first, last = REAL.ticks(stamps, stamps)
    assert (first == ticks).all()
    assert (last == ticks).all()
    first, last = REAL.ticks(stamps[:1], stamps[9:10])
    assert (int(first[0]), int(last[0])) == (int(ticks[0]), int(ticks[9]))


def test_k_is_that_of_a_snapshot() -> None:
    scale = scale_of(24_000_000)
    assert scale is not None
    assert k_of_timekeeper(scale, 1_249_715_776, 39, 4347272662072941) == REAL.k


@pytest.mark.parametrize(("frequency", "clock"), [(0, "mono_raw"), (2 * NS, "mono_raw"), (NS, "mono")])
def test_what_has_no_factors_is_refused(frequency: int, clock: str) -> None:
    with pytest.raises(ValueError, match=r"counter|Hz"):
        ArchCounter(frequency, 0, clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "k_hi"), [(1, 0), (0, 1 << 128), (-(1 << 128), 0)])
def test_what_is_no_interval_of_k_is_refused(k: int, k_hi: int) -> None:
    with pytest.raises(ValueError, match="K from"):
        ArchCounter(NS, k, "mono_raw", k_hi)


@given(
    st.sampled_from([19_200_000, 24_000_000, 62_500_000, NS]),
    st.integers(-(1 << 85), 1 << 85),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 55),
)
def test_what_an_interval_of_k_tells_holds_the_truth(hz: int, k: int, below: int, above: int, tick: int) -> None:
    scale = scale_of(hz)
    assert scale is not None
    # the kernel's clocks begin near 0 and last for centuries
    assume(scale.ns_of(tick, k - below) >= 0 and scale.ns_of(tick, k + above) < 1 << 63)
    stamp = scale.ns_of(tick, k)
    known = ArchCounter(hz, k - below, "mono_raw", k + above)

    least, most = (int(end[0]) for end in known.stamps(np.array([tick], np.uint64)))
    at = np.array([stamp], np.uint64)
    first, last = (to_signed(int(end[0]) - tick) for end in known.ticks(at, at))

    assert least <= stamp <= most <= least + ((below + above) >> scale.shift) + 1
    assert first <= 0 <= last
