"""CNTVOFF in ticks: exact intervals from spans, claims held against them, and changes with no K known."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.clocks.arch_counter import Lattice, find_lattice, k_of_timekeeper, scale_of
from counterpoint.proof.cntvoff import CounterPair, Spans, TickCheck, change
from counterpoint.proof.fit import Thread
from counterpoint.proof.windows import HostActivity
from counterpoint.timeline.sync import SyncResult, sync
from helpers import RECORDINGS

SCALE = scale_of(24_000_000)
ks = st.integers(-(1 << 58), 1 << 84)
"""Any K for which the stamps below are from 0 to 2**63 ns, as the kernel's are."""


def world(host_k: int, guest_k: int, cntvoff: int, seed: int, slack: int) -> tuple[CounterPair, Spans, tuple[int, int]]:
    """Events of a guest in spans of host time of up to ``slack`` ticks each way, and the CNTVOFFs that these leave."""
    assert SCALE is not None
    rng = np.random.default_rng(seed)
    guest = np.sort(rng.integers(1 << 30, 1 << 36, 50)).astype(np.uint64)
    host = guest + np.uint64(cntvoff)
    before, after = (rng.integers(0, slack, 50).astype(np.uint64) for _ in range(2))
    lo, hi = host - before, host + after
    spans = Spans(
        SCALE.to_ns(guest, guest_k),
        SCALE.to_ns(lo, host_k),
        SCALE.to_ns(hi, host_k),
        np.ones(50, np.bool_),
        np.ones(50, np.bool_),
    )
    lattices = [Lattice(SCALE, k % SCALE.mult, k % SCALE.mult) for k in (host_k, guest_k)]
    whole = [lattice.whole((k, k)) for lattice, k in zip(lattices, (host_k, guest_k), strict=True)]
    pair = CounterPair(lattices[0], lattices[1], whole[0], whole[1])
    return pair, spans, (cntvoff - int(before.min()), cntvoff + int(after.min()))


worlds = st.builds(world, ks, ks, st.integers(0, 1 << 40), st.integers(0, 1 << 30), st.sampled_from([1, 20, 5000]))


@given(worlds)
def test_the_interval_is_exactly_what_the_spans_leave(made: tuple[CounterPair, Spans, tuple[int, int]]) -> None:
    pair, spans, expected = made
    index = pair.index_range(spans)
    assert index is not None
    assert pair.cntvoff(index) == expected


@given(worlds)
def test_a_claim_is_proved_inside_and_refuted_just_outside(made: tuple[CounterPair, Spans, tuple[int, int]]) -> None:
    pair, spans, (lo, hi) = made
    for value in (lo, (lo + hi) // 2, hi):
        assert pair.check(spans, value) == TickCheck(50, 0, 0, -1)
    for value in (lo - 1, hi + 1):
        outcome = pair.check(spans, value)
        assert outcome is not None
        assert outcome.violations > 0
        assert outcome.inside + outcome.violations == 50
        assert outcome.first >= 0


@given(worlds, st.integers(1, 100), st.integers(1, 100))
def test_a_k_that_is_only_bounded_widens_the_interval(
    made: tuple[CounterPair, Spans, tuple[int, int]], less: int, more: int
) -> None:
    pair, spans, (lo, hi) = made
    assert pair.guest_whole is not None
    loose = CounterPair(
        pair.host, pair.guest, pair.host_whole, (pair.guest_whole[0] - less, pair.guest_whole[1] + more)
    )
    index = loose.index_range(spans)
    assert index is not None
    assert loose.cntvoff(index) == (lo - less, hi + more)
    outcome = loose.check(spans, hi + 1)
    assert outcome is not None
    assert outcome.violations == 0
    assert outcome.unknown == outcome.doubtful > 0
    far = loose.check(spans, hi + more + 1)
    assert far is not None
    assert far.violations > 0


@given(worlds)
def test_offsets_in_ns_and_ticks_hold_each_other(made: tuple[CounterPair, Spans, tuple[int, int]]) -> None:
    pair, _, (lo, _) = made
    offsets = pair.offsets_of(lo)
    assert offsets is not None
    assert offsets[1] - offsets[0] <= 4
    found = pair.cntvoff(pair.index_range_of(offsets))
    assert found is not None
    assert found[0] <= lo <= found[1]


def test_without_k_a_change_is_known_all_the_same() -> None:
    first, one, (a_lo, a_hi) = world(12345 << 60, 678 << 55, 10**9, 1, 30)
    _, other, (b_lo, b_hi) = world(12345 << 60, 678 << 55, 10**9 + 36_181_649, 2, 30)
    unknown = CounterPair(first.host, first.guest)
    before, after = unknown.index_range(one), unknown.index_range(other)
    assert before is not None
    assert after is not None
    assert unknown.cntvoff(before) is None
    assert unknown.check(one, 10**9) is None
    assert unknown.offsets_of(10**9) is None
    assert change(before, after) == (b_lo - a_hi, b_hi - a_lo)


def test_open_spans_bound_one_side_only() -> None:
    pair, spans, (lo, hi) = world(5, 7, 10**9, 3, 30)
    none = np.zeros(50, np.bool_)
    assert pair.index_range(Spans(spans.guest, spans.lo, spans.hi, none, spans.hi_known)) is None
    half = Spans(spans.guest, spans.lo, spans.hi, spans.lo_known, none)
    assert pair.check(half, hi) == TickCheck(0, 0, 50, -1)
    outcome = pair.check(half, lo - 1)
    assert outcome is not None
    assert outcome.violations > 0


def test_counters_of_two_frequencies_have_no_cntvoff() -> None:
    other = scale_of(25_000_000)
    assert SCALE is not None
    assert other is not None
    with pytest.raises(ValueError, match="24000000"):
        CounterPair(Lattice(SCALE, 0, 0), Lattice(other, 0, 0))


# -- real recordings


@cache
def synced(name: str) -> tuple[dict[str, Any], SyncResult]:
    if not (RECORDINGS / name).is_dir():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    truth = json.loads((RECORDINGS / name / "truth.json").read_text())
    files = [str(RECORDINGS / name / f) for f in (truth["host"], *(g["file"] for g in truth["guests"]))]
    parents = {Path(g["file"]).stem: g["parent"] for g in truth["guests"]}
    return truth, sync(*files, use_claims=False, parents=parents)


@pytest.mark.recordings
@pytest.mark.parametrize("name", ["arm64-monoraw", "arm64-pause", "arm64-nested"])
def test_the_true_cntvoff_is_proved_and_one_off_by_more_is_refuted(name: str) -> None:
    truth, result = synced(name)
    recordings = {result.host_name: result.host} | {g.name: g.recording for g in result.guests}
    known = truth.get("mono_raw") or {"host": truth["host_mono_raw"], "guest": truth["guest_mono_raw"]}
    lattices, wholes = {}, {}
    for machine, snapshot in known.items():
        found = find_lattice(recordings[machine].stamp)
        assert found is not None
        k = k_of_timekeeper(found.scale, snapshot["cycle_last"], snapshot["raw_sec"], snapshot["raw_snsec"])
        lattices[machine], wholes[machine] = found, found.whole((k, k))
    for guest, told in zip(result.guests, truth["guests"], strict=True):
        host = recordings[guest.parent]
        pair = CounterPair(lattices[guest.parent], lattices[guest.name], wholes[guest.parent], wholes[guest.name])
        activity = HostActivity(host)
        for vcpu in told["vcpus"]:
            proof = next(v for v in guest.vcpus if v.guest_cpu == vcpu["guest_cpu"])
            assert proof.host_tid is not None
            thread = Thread(activity.windows(proof.host_tid))
            earlier: tuple[tuple[int, int], int] | None = None
            for epoch, right in zip(proof.epochs, vcpu["epochs"], strict=True):
                assert epoch.feasible is not None
                stamps = guest.recording.stamp[epoch.rows]
                sure = np.ones(len(stamps), np.bool_)
                if epoch.guest_sure[0] is not None:
                    sure &= stamps >= np.uint64(epoch.guest_sure[0])
                if epoch.guest_sure[1] is not None:
                    sure &= stamps <= np.uint64(epoch.guest_sure[1])
                stamps = stamps[sure]
                # of several intervals the one that holds the truth is looked at
                within = next(
                    c
                    for c in epoch.candidates or (epoch.feasible,)
                    if c[0] <= right["offset_range"][1] and right["offset_range"][0] <= c[1]
                )
                middle = (within[0] + within[1]) // 2
                spans = Spans.at(stamps, middle, thread)
                if guest.parent == result.host_name:
                    with pytest.raises(ValueError, match="into gaps"):
                        Spans.at(stamps, within[1] + 1, thread)
                index, value = pair.index_range(spans), right["cntvoff"]
                assert index is not None
                found_range = pair.cntvoff(index)
                assert found_range is not None
                assert found_range[0] <= value <= found_range[1]
                by_offsets = pair.cntvoff(pair.index_range_of(within))
                assert by_offsets is not None
                assert by_offsets[0] <= value <= by_offsets[1]
                if guest.parent == result.host_name:
                    # the same, or wider by what cutting to ns takes away
                    assert by_offsets[0] <= found_range[0]
                    assert found_range[1] <= by_offsets[1]
                outcome = pair.check(spans, value)
                assert outcome is not None
                assert outcome.violations == 0
                assert outcome.inside > 0
                for wrong in (found_range[0] - 1, found_range[1] + 1):
                    refuted = pair.check(spans, wrong)
                    assert refuted is not None
                    assert refuted.violations > 0
                offsets = pair.offsets_of(value)
                assert offsets is not None
                assert offsets[0] <= right["offset_range"][1]
                assert right["offset_range"][0] <= offsets[1]
                if earlier is not None:
                    moved = change(earlier[0], index)
                    assert moved[0] <= value - earlier[1] <= moved[1]
                earlier = index, value
