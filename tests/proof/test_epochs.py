"""Stretches of one offset, found blind."""

from __future__ import annotations

import random

import numpy as np
import pytest

from counterpoint.proof.epochs import change_points, find_stretches, unexplained
from counterpoint.proof.fit import Thread, fit
from counterpoint.proof.windows import FOREVER, RunWindows


class Made:
    """A thread with random windows and its events, in host time."""

    def __init__(self, seed: int, windows: int = 600, events: int = 1800) -> None:
        rng = random.Random(seed)
        at, lo, hi = 0, [], []
        for _ in range(windows):
            at += rng.randint(1000, 200_000)
            lo.append(at)
            at += rng.randint(500, 40_000)
            hi.append(at)
        far = int(FOREVER)
        self.lo, self.hi = np.array(lo, np.int64), np.array(hi, np.int64)
        all_lo, all_hi = np.r_[-far, self.lo, hi[-1]], np.r_[lo[0], self.hi, far]
        none = np.full(windows + 2, -1, np.int64)
        is_run = np.ones(windows + 2, np.bool_)
        is_run[[0, -1]] = False
        self.thread = Thread(RunWindows(1, 0, all_lo, all_hi, is_run, none, none))
        which = sorted(rng.randrange(windows) for _ in range(events))
        self.host = np.array(sorted(rng.randint(lo[w] + 50, hi[w] - 50) for w in which), np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_one_offset_is_one_stretch_over_everything(seed: int) -> None:
    made = Made(seed)
    (stretch,) = find_stretches(made.host + 777, made.thread)
    assert (stretch.first, stretch.last) == (0, len(made.host))
    assert stretch.fit.is_unique
    assert stretch.fit.candidates[0].lo <= 777 <= stretch.fit.candidates[0].hi


@pytest.mark.parametrize(
    "deltas",
    [[90_000], [-1_000_000], [10**10], [-(10**10)], [3_000_000, -3_000_000], [10**9, -(10**9)], [10**9, 10**9, 10**9]],
)
def test_changes_however_far(deltas: list[int]) -> None:
    made = Made(5, windows=1200, events=4800)
    cuts = [len(made.host) * (i + 1) // (len(deltas) + 1) for i in range(len(deltas))]
    offsets, offset, guest = [0], 0, made.host.copy()
    for cut, delta in zip(cuts, deltas, strict=True):
        offset += delta
        offsets.append(offset)
        guest[cut:] += delta
    found = find_stretches(guest, made.thread)
    assert len(found) == len(offsets)
    for stretch, truth in zip(found, offsets, strict=True):
        assert stretch.fit.is_unique
        best = stretch.fit.candidates[0]
        assert best.lo <= truth <= best.hi
    for cut, point, left, right in zip(cuts, change_points(guest, found), found, found[1:], strict=False):
        assert right.first <= cut <= left.last
        assert left.sure_last <= cut <= right.sure_first
        assert abs(point - cut) <= 0.01 * len(guest)


def test_a_short_visit_between_two_long_stretches() -> None:
    made = Made(6, windows=1500, events=6000)
    guest = made.host.copy()
    guest[3000:3300] += 470_000_000
    found = find_stretches(guest, made.thread)
    assert len(found) == 3
    assert found[1].fit.candidates[0].lo <= 470_000_000 <= found[1].fit.candidates[0].hi


def test_noise_is_nothing() -> None:
    made = Made(7)
    rng = np.random.default_rng(1)
    guest = np.sort(rng.integers(0, int(made.hi[-1]), 1000))
    assert not any(s.fit.is_unique for s in find_stretches(guest, made.thread))


def test_events_out_of_sight_are_believed_unless_the_order_forbids_them() -> None:
    made = Made(8)
    count = len(made.host)
    later = np.r_[made.host, made.host[-1] + 1000 + np.arange(100) * 50_000]
    assert unexplained(later, made.thread, 0, 0, count + 100) == []
    # recorded after the others, stamped before them
    back = np.r_[made.host, made.host[0] - 10**9 + np.arange(100)]
    assert unexplained(back, made.thread, 0, 0, count + 100) == [(count, count + 100)]
    # in the middle
    middle = np.r_[made.host[:500], made.host[500:540] + 10**11, made.host[540:]]
    assert unexplained(middle, made.thread, 0, 0, count) == [(500, 540)]


def test_events_out_of_sight_while_the_vcpu_ran_on_are_doubted() -> None:
    made = Made(9)
    guest = made.host.copy()
    guest[900:] += 10**11
    assert unexplained(guest, made.thread, 0, 0, len(guest)) == [(900, len(guest))]
    ahead = made.host.copy()
    ahead[:900] -= 10**11
    assert unexplained(ahead, made.thread, 0, 0, len(ahead)) == [(0, 900)]


def test_a_search_within_limits_finds_only_what_lies_there() -> None:
    made = Made(10)
    assert fit(made.host + 5, made.thread, (-(10**6), 10**6)).is_unique
    assert not fit(made.host + 5, made.thread, (10**6, 10**7)).is_unique
