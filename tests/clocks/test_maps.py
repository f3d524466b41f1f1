"""Clock maps against plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.maps import ClockMap, Epoch

PERIOD = 1 << 64
near = st.integers(-(1 << 40), 1 << 40)
bases = st.sampled_from([0, 1 << 40, (1 << 63) - 1000, 1 << 63, PERIOD - 1000])


@given(bases, st.lists(near, max_size=20), st.integers(-PERIOD, PERIOD))
def test_one_epoch_is_a_shift_both_ways(base: int, moves: list[int], offset: int) -> None:
    clock = ClockMap(0, (Epoch(offset, feasible=(offset - 5, offset + 7)),))
    host = [(base + m) % PERIOD for m in moves]
    guest = clock.to_guest(np.array(host, np.uint64))
    assert guest.tolist() == [(h + offset) % PERIOD for h in host]
    assert clock.to_host(guest).tolist() == host
    early, late = clock.bound(guest)
    assert early.tolist() == [(h - 7) % PERIOD for h in host]
    assert late.tolist() == [(h + 5) % PERIOD for h in host]


@given(bases, st.lists(near, max_size=20), st.lists(near, min_size=1, max_size=3, unique=True), st.data())
def test_each_stamp_goes_by_the_last_epoch_that_has_begun(
    base: int, moves: list[int], changes: list[int], data: st.DataObject
) -> None:
    changes.sort()
    offsets = [data.draw(near) for _ in range(len(changes) + 1)]
    epochs = [Epoch(offsets[0])]
    for change, offset in zip(changes, offsets[1:], strict=True):
        epochs.append(Epoch(offset, guest_from=(base + change) % PERIOD, host_from=(base + change) % PERIOD))
    clock = ClockMap(0, tuple(epochs))
    stamps = [(base + m) % PERIOD for m in moves]

    def offset_at(stamp: int) -> int:
        begun = [o for c, o in zip(changes, offsets[1:], strict=True) if to_signed(stamp - base - c) >= 0]
        return begun[-1] if begun else offsets[0]

    column = np.array(stamps, np.uint64)
    assert clock.to_host(column).tolist() == [(s - offset_at(s)) % PERIOD for s in stamps]
    assert clock.to_guest(column).tolist() == [(s + offset_at(s)) % PERIOD for s in stamps]


def test_no_bound_of_an_offset_that_is_not_bounded() -> None:
    with pytest.raises(ValueError, match="not bounded"):
        ClockMap(3, (Epoch(5),)).bound(np.array([1], np.uint64))
