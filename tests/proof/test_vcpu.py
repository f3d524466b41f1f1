"""One vCPU's epochs and claims: proved, derived, refuted with a counter-example, or left open with a reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.claims import time_shift
from counterpoint.clocks.counter import to_signed
from counterpoint.proof.epochs import MIN_BETWEEN
from counterpoint.proof.vcpu import _lit
from counterpoint.proof.verdicts import VcpuProof, Verdict
from counterpoint.timeline.sync import SyncResult, sync
from writers.plain import guest_file, host_file, random_events, random_runs, runs
from writers.tracedat import TimeShift
from writers.worlds import HOST_ID, OffsetChange, Truth, tiny_pair

ENOUGH = {"windows": 300, "guest_events": 900}
OFFSET = -38_775_413_133


def pair(path: Path, **how: Any) -> tuple[Path, Path, Truth]:
    host, guest, truth = tiny_pair(**(ENOUGH | how))
    return host.write(path / "host.dat"), guest.write(path / "guest.dat"), truth


def vcpus(result: SyncResult) -> tuple[VcpuProof, ...]:
    return result.guests[0].vcpus


def holds(vcpu: VcpuProof, index: int, offset: int) -> bool:
    feasible = vcpu.epochs[index].feasible
    return feasible is not None and 0 <= to_signed(offset - feasible[0]) <= feasible[1] - feasible[0]


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("use_claims", [True, False])
def test_one_offset(tmp_path: Path, arch: str, use_claims: bool) -> None:
    host, guest, truth = pair(tmp_path, arch=arch, vcpus=2)
    result = sync(host, guest, use_claims=use_claims)
    assert result.is_sound
    for vcpu in vcpus(result):
        (epoch,) = vcpu.epochs
        assert vcpu.verdict is (Verdict.PROVED if use_claims else Verdict.DERIVED)
        assert vcpu.host_tid == truth.threads[vcpu.guest_cpu]
        assert holds(vcpu, 0, OFFSET)
        assert (epoch.checked, epoch.inside, epoch.violations, epoch.unknown) == (900, 900, 0, 0)
        assert (epoch.guest_from, epoch.guest_to, epoch.host_from, epoch.host_to) == (None,) * 4
        assert epoch.source == ("time_shift" if use_claims else "causality")
        assert epoch.offset is not None
        assert use_claims is (epoch.offset == OFFSET) or epoch.offset == OFFSET


def test_witnesses_bound_the_offset(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path)
    (epoch,) = vcpus(sync(host, guest))[0].epochs
    assert epoch.feasible is not None
    assert epoch.low is not None
    assert epoch.high is not None
    assert (epoch.low.bound, epoch.high.bound) == epoch.feasible
    # the next lower offset would put the low witness behind its exit, the next higher the other before its entry
    assert epoch.low.guest_stamp - epoch.low.bound == epoch.low.host_to
    assert epoch.high.guest_stamp - epoch.high.bound == epoch.high.host_from
    assert (epoch.high.host_from_event, epoch.low.host_to_event) == ("kvm_entry", "kvm_exit")


@pytest.mark.parametrize("use_claims", [True, False])
def test_vcpus_that_differ(tmp_path: Path, use_claims: bool) -> None:
    offsets = [OFFSET, OFFSET + 5_000_000_000, OFFSET - 77]
    host, guest, _ = pair(tmp_path, vcpus=3, offset=offsets)
    result = sync(host, guest, use_claims=use_claims)
    assert result.is_sound
    for vcpu, offset in zip(vcpus(result), offsets, strict=True):
        assert holds(vcpu, 0, offset)


@pytest.mark.parametrize(
    ("offset", "start"),
    [
        (OFFSET, (1 << 64) - 30_000_000),
        ((1 << 63) - 5, 345_000_000_000),
        (-(1 << 63), 345_000_000_000),
        ((1 << 63) + 12345, (1 << 64) - 30_000_000),
        (5, (1 << 63) - 30_000_000),
        ((1 << 62) + 1, 0),
    ],
)
@pytest.mark.parametrize("use_claims", [True, False])
def test_counters_that_wrap(tmp_path: Path, offset: int, start: int, use_claims: bool) -> None:
    host, guest, _ = pair(tmp_path, offset=offset, start=start, vcpus=2)
    result = sync(host, guest, use_claims=use_claims)
    assert result.is_sound
    for vcpu in vcpus(result):
        assert holds(vcpu, 0, offset)
        (epoch,) = vcpu.epochs
        assert epoch.feasible is not None
        assert epoch.offset is not None
        assert epoch.feasible[0] <= epoch.offset <= epoch.feasible[1] <= epoch.feasible[0] + 400
        assert epoch.low is not None
        assert 0 <= (epoch.low.host_to or 0) < 1 << 64


# -- changes

LONG = {"windows": 700, "guest_events": 2100}


@pytest.mark.parametrize("delta", [5_000_000, -5_000_000, 5_000_000_000, -5_000_000_000])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_change_in_mid_recording(tmp_path: Path, delta: int, recorded: bool) -> None:
    change = OffsetChange(delta, 1, recorded=recorded)
    host, guest, truth = pair(tmp_path, **LONG, vcpus=2, change=change, claims=False)
    when = truth.epochs[1][1][0]
    hosts = [e.host for e in truth.guest_events[1]]
    for use_claims in (True, False):
        first, second = vcpus(sync(host, guest, use_claims=use_claims))
        assert first.verdict.is_sound
        assert len(first.epochs) == 1
        assert len(second.epochs) == 2
        assert [holds(second, 0, OFFSET), holds(second, 1, OFFSET + delta)] == [True, True]
        proved = recorded and use_claims
        assert second.verdict is (Verdict.PROVED if proved else Verdict.DERIVED)
        before, after = second.epochs
        assert (before.guest_from, after.guest_to, before.host_from, after.host_to) == (None,) * 4
        if proved:
            assert before.host_to == after.host_from
            assert 0 <= (after.host_from or 0) - when < 100_000
        # all but what lies in windows at both offsets is on its side
        assert abs(sum(h < when for h in hosts) - len(before.rows)) <= 0.03 * len(hosts)


@pytest.mark.parametrize("use_claims", [True, False])
def test_several_changes(tmp_path: Path, use_claims: bool) -> None:
    deltas = [3_000_000, -700_000_000, 40_000_000]
    changes = [OffsetChange(d, 0, at) for d, at in zip(deltas, (0.25, 0.5, 0.75), strict=True)]
    host, guest, _ = pair(tmp_path, windows=1400, guest_events=5000, change=changes, claims=False)
    (vcpu,) = vcpus(sync(host, guest, use_claims=use_claims))
    assert [e.verdict for e in vcpu.epochs] == [Verdict.PROVED if use_claims else Verdict.DERIVED] * 4
    offset = OFFSET
    for index, delta in enumerate([0, *deltas]):
        offset += delta
        assert holds(vcpu, index, offset)


def test_the_samples_of_a_time_shift_follow_each_other(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path, arch="arm64", **LONG, change=OffsetChange(-4_000_000, 0))
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict is Verdict.PROVED
    assert [c.verdict for c in vcpu.claims] == [Verdict.PROVED] * 2
    first, second = (c.claim for c in vcpu.claims)
    # the change is somewhere between the two samples
    assert (first.host_to, first.last_seen) == (second.first_seen, second.host_from)
    assert None not in (first.host_to, first.last_seen)


@pytest.mark.parametrize(("after", "is_lossy"), [(0, True), (1_000_000, True), (6_000_000, False)])
def test_events_that_either_of_two_samples_may_hold_are_not_sure(tmp_path: Path, after: int, is_lossy: bool) -> None:
    # the offset changes where the host lost its events: what follows fits the old offset as well, for a while
    rng = random.Random(4)
    windows = random_runs(rng, 300)
    windows += random_runs(rng, 300, begin=windows[-1][3] + 1_500_000)
    change, late = windows[300][2], -1_500_000
    events = random_events(rng, windows, 1800)
    kept = [w for w in windows if not is_lossy or not windows[270][3] < w[2] < windows[330][2]]
    lost = {(0, windows[330][2]): 240} if is_lossy else {}
    host = host_file(runs(*kept), lost=lost, trace_id=HOST_ID).write(tmp_path / "h.dat")
    guest = guest_file({0: [e + OFFSET + late * (e >= change) for e in events]})
    guest.time_shift = TimeShift(
        HOST_ID, 0, [[(events[0] + OFFSET, -OFFSET, 1, 0), (change + after + OFFSET + late, -OFFSET - late, 1, 0)]]
    )
    result = sync(host, guest.write(tmp_path / "g.dat"))
    (vcpu,) = vcpus(result)
    assert [e.verdict for e in vcpu.epochs] == [Verdict.PROVED] * 2
    doubtful = 0
    for index, epoch in enumerate(vcpu.epochs):
        sure = epoch.is_sure(result.guests[0].recording.stamp[epoch.rows])
        assert all((events[row] >= change) == bool(index) for row in epoch.rows[sure].tolist())
        doubtful += int((~sure).sum())
    assert 10 < doubtful < 300 if is_lossy else doubtful < 10
    assert [c.verdict for c in vcpu.claims] == [Verdict.PROVED] * 2


def test_a_change_that_leaves_the_rest_out_of_sight_is_not_passed_over(tmp_path: Path) -> None:
    # too little is left for an epoch of its own, and what is left would lie behind the host's recording
    change = OffsetChange(10**12, 0, 0.5)
    host, guest, _ = pair(tmp_path, windows=260, guest_events=500, change=change, claims=False)
    (vcpu,) = vcpus(sync(host, guest, use_claims=False))
    assert not vcpu.verdict.is_sound
    assert len(vcpu.epochs) == 1
    assert any("seems to have changed" in note for note in vcpu.notes)


def test_a_host_that_stopped_early_is_no_change(tmp_path: Path) -> None:
    rng = random.Random(1)
    windows = random_runs(rng, 600)
    events = random_events(rng, windows, 1800)
    seen = [w for w in windows if w[3] < windows[400][2]]
    host = host_file(runs(*seen)).write(tmp_path / "h.dat")
    guest = guest_file({0: [e + OFFSET for e in events]}).write(tmp_path / "g.dat")
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict is Verdict.DERIVED
    assert len(vcpu.epochs) == 1
    assert vcpu.epochs[0].unknown > 400
    assert holds(vcpu, 0, OFFSET)


def test_what_lies_beyond_what_the_host_saw_is_placed_and_not_proved(tmp_path: Path) -> None:
    rng = random.Random(1)
    windows = random_runs(rng, 600)
    events = random_events(rng, windows, 1800)
    host = host_file(runs(*[w for w in windows if w[3] < windows[400][2]])).write(tmp_path / "h.dat")
    guest = guest_file({0: [e + OFFSET for e in events]}).write(tmp_path / "g.dat")
    result = sync(host, guest)
    (epoch,) = vcpus(result)[0].epochs
    sure = epoch.is_sure(result.guests[0].recording.stamp[epoch.rows])
    assert epoch.guest_sure[1] is not None
    assert 400 < (~sure).sum() <= epoch.unknown
    machine = result.timeline.machines[1]
    assert machine.placed.all()
    assert np.array_equal(machine.proved[epoch.rows], sure)
    assert result.timeline.unproved == (~sure).sum()
    assert result.is_sound


def test_a_few_hits_beyond_a_dark_stretch_prove_nothing() -> None:
    assert _lit(np.ones(100, np.bool_)) == [(0, 100)]
    assert _lit(np.arange(300) % 3 == 0) == [(0, 300)]
    (first, begin), (end, last) = _lit(np.r_[np.ones(200, np.bool_), np.zeros(100, np.bool_), np.ones(30, np.bool_)])
    assert (first, last) == (0, 330)
    # a dark stretch begins and ends within a neighbourhood of its own ends
    assert 200 <= begin <= 200 + MIN_BETWEEN
    assert 300 - MIN_BETWEEN <= end <= 300


# -- little, nothing, too much


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_a_few_events_derive_nothing(tmp_path: Path, count: int) -> None:
    host, guest, _ = pair(tmp_path, windows=200, guest_events=count, claims=False)
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict in (Verdict.AMBIGUOUS, Verdict.UNBOUNDED)


def test_a_few_windows_derive_nothing(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path, windows=3, guest_events=500, claims=False, decoys=0)
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict in (Verdict.AMBIGUOUS, Verdict.UNBOUNDED)


def test_recordings_of_different_times_derive_nothing(tmp_path: Path) -> None:
    host, _, _ = tiny_pair(seed=1, **ENOUGH)
    _, guest, _ = tiny_pair(seed=2, **ENOUGH)
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"), use_claims=False)
    assert not any(v.verdict.is_sound for v in vcpus(result))


def test_a_strictly_periodic_pair_is_ambiguous(tmp_path: Path) -> None:
    windows = [(0, 147, 10**9 + i * 100_000, 10**9 + i * 100_000 + 30_000) for i in range(150)]
    events = [w[2] + 10_000 for w in windows[20:130]]
    host = host_file(runs(*windows)).write(tmp_path / "h.dat")
    guest = guest_file({0: [e + OFFSET for e in events]}).write(tmp_path / "g.dat")
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict is Verdict.AMBIGUOUS
    (epoch,) = vcpu.epochs
    assert any(lo <= OFFSET <= hi for lo, hi in epoch.candidates)


@pytest.mark.parametrize("seed", range(6))
def test_lost_host_events_are_never_a_violation(tmp_path: Path, seed: int) -> None:
    host, guest, truth = pair(tmp_path, seed=seed, lost=400, host_cpus=2, vcpus=2)
    assert truth.losses
    result = sync(host, guest)
    for vcpu in vcpus(result):
        (epoch,) = vcpu.epochs
        assert vcpu.verdict is Verdict.PROVED
        assert epoch.violations == 0
        assert epoch.inside + epoch.unknown == 900
        assert holds(vcpu, 0, OFFSET)
    assert sum(v.epochs[0].unknown for v in vcpus(result)) > 0


# -- two rates


@pytest.mark.parametrize("ppm", [0.2, 0.5, 2, 20, -20, 200, -200])
def test_clocks_of_two_rates_are_related_by_a_line(tmp_path: Path, ppm: float) -> None:
    rng = random.Random(1)
    windows = random_runs(rng, 1000, gap=4_000_000)
    events = random_events(rng, windows, 2000)
    host = host_file(runs(*windows), clock="mono_raw").write(tmp_path / "h.dat")
    stamps = [e + 5_000_000 + int(e * ppm / 1e6) for e in events]
    guest = guest_file({0: stamps}, clock="mono_raw").write(tmp_path / "g.dat")
    (vcpu,) = vcpus(sync(host, guest))
    assert vcpu.verdict is Verdict.DERIVED
    (epoch,) = vcpu.epochs
    assert epoch.fitted is not None
    assert epoch.fitted.rate_ppb[0] <= ppm * 1000 <= epoch.fitted.rate_ppb[1]
    at = np.array(stamps, np.uint64)
    early, late = epoch.as_epoch().bound(at)
    true = np.array(events, np.uint64)
    assert (early <= true).all()
    assert (true <= late).all()


# -- claims


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("by", [401, 1_000_000, 77_000_000_000, 1 << 62, (1 << 63) - 10**12])
def test_a_claim_off_by_more_than_the_width_is_refuted(tmp_path: Path, by: int, side: int) -> None:
    host, guest, truth = pair(tmp_path, claims=False)
    (vcpu,) = vcpus(sync(host, guest, offsets=[f"0={OFFSET + side * by}"]))
    assert vcpu.verdict is Verdict.REFUTED
    (claim,) = vcpu.claims
    assert claim.verdict is Verdict.REFUTED
    example = claim.counterexample
    assert example is not None
    assert example.guest_stamp - (OFFSET + side * by) - example.host_stamp in (0, 1 << 64, -(1 << 64))
    if claim.violations:
        assert example.host_from is not None
        assert example.host_to is not None
        assert example.host_from < example.host_stamp < example.host_to
        windows = truth.windows[0]
        assert not any(w.entry <= example.host_stamp <= w.exit for w in windows)
        assert example.host_from in [w.exit for w in windows]
        assert example.host_to in [w.entry for w in windows]
    else:
        assert "where the host saw nothing" in claim.reason


def test_a_right_claim_typed_by_hand_is_proved(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path, claims=False)
    result = sync(host, guest, offsets=[f"guest:0={OFFSET:#x}"])
    (vcpu,) = vcpus(result)
    assert (vcpu.verdict, vcpu.epochs[0].source, vcpu.epochs[0].offset) == (Verdict.PROVED, "given", OFFSET)
    assert result.is_sound


def test_a_wrong_claim_by_hand_does_not_hide_behind_a_right_one_in_the_file(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path)
    result = sync(host, guest, offsets=[f"0={OFFSET + 5000}"])
    (vcpu,) = vcpus(result)
    assert {c.claim.source: c.verdict for c in vcpu.claims} == {
        "given": Verdict.REFUTED,
        "time_shift": Verdict.PROVED,
    }
    assert vcpu.verdict is Verdict.REFUTED
    assert not result.is_sound


def test_a_wrong_time_shift_is_refuted(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair(**ENOUGH)
    guest.time_shift = TimeShift(HOST_ID, 0, [[(0, -OFFSET + 1000, 1, 0)]])
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"))
    (vcpu,) = vcpus(result)
    assert vcpu.claims[0].verdict is Verdict.REFUTED
    assert vcpu.verdict is Verdict.REFUTED
    assert not result.is_sound
    # what the events say is said all the same
    assert holds(vcpu, 0, OFFSET)


def test_a_time_shift_made_with_another_recording_is_left_out(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair(**ENOUGH)
    guest.time_shift = TimeShift(0xBAD, 0, [[(0, -OFFSET, 1, 0)]])
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"))
    assert vcpus(result)[0].claims == ()
    assert any("0xbad" in text for text in result.guests[0].warnings)
    assert vcpus(result)[0].verdict is Verdict.DERIVED


@pytest.mark.parametrize(("scaling", "frac"), [(1, 0), (1 << 48, 48), (1 << 32, 32), (0, 0)])
def test_unscaled_in_all_its_spellings(tmp_path: Path, scaling: int, frac: int) -> None:
    host, guest, _ = tiny_pair(**ENOUGH)
    guest.time_shift = TimeShift(HOST_ID, 0, [[(0, -OFFSET, scaling, frac)]])
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"))
    assert vcpus(result)[0].verdict is Verdict.PROVED


def test_a_scaled_claim_about_an_unscaled_guest_is_refuted(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair(**ENOUGH)
    guest.time_shift = TimeShift(HOST_ID, 0, [[(0, -OFFSET, 3 << 46, 48)]])
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"))
    (vcpu,) = vcpus(result)
    assert vcpu.claims[0].verdict is Verdict.REFUTED
    assert (vcpu.claims[0].claim.ratio, vcpu.claims[0].claim.frac_bits) == (3 << 46, 48)
    assert vcpu.verdict is Verdict.REFUTED
    assert vcpu.epochs[0].offset is not None
    assert abs(vcpu.epochs[0].offset - OFFSET) < 1000


def test_each_measured_sample_is_a_claim_of_its_own(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair(**ENOUGH)
    samples = [(n, -OFFSET + d, 1, 0) for n, d in enumerate((0, 3, 1_300_000, 0))]
    guest.time_shift = TimeShift(HOST_ID, time_shift.INTERPOLATE, [samples])
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"))
    verdicts = {c.claim.offset - OFFSET: c.verdict for c in vcpus(result)[0].claims}
    assert verdicts == {0: Verdict.PROVED, -3: Verdict.PROVED, -1_300_000: Verdict.REFUTED}
    assert not result.is_sound


def test_a_claims_file(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path, vcpus=2, claims=False)
    path = tmp_path / "claims.jsonl"
    entries = [
        {"guest": "guest", "cpu": 0, "offset": OFFSET, "source": "vmm"},
        {"cpu": 1, "offset": OFFSET + 4000, "source": "vmm", "host_from": 345_000_000_000},
    ]
    path.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    result = sync(host, guest, claims_file=path)
    right, wrong = vcpus(result)
    assert (right.verdict, right.epochs[0].source) == (Verdict.PROVED, "vmm")
    assert wrong.claims[0].verdict is Verdict.REFUTED
    assert wrong.verdict is Verdict.REFUTED


def test_a_claim_about_a_cpu_without_events_is_said_to_be_in_vain(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path)
    result = sync(host, guest, offsets=[f"7={OFFSET}"])
    assert any("CPU 7" in text for text in result.guests[0].warnings)


def test_two_vcpus_share_one_derived_offset_where_both_allow_it(tmp_path: Path) -> None:
    host, guest, _ = pair(tmp_path, vcpus=3, hug=0.0)
    used = {v.epochs[0].offset for v in vcpus(sync(host, guest, use_claims=False))}
    assert len(used) == 1


def test_verdicts_from_good_to_bad() -> None:
    from counterpoint.proof.verdicts import worst

    order = [Verdict.PROVED, Verdict.DERIVED, Verdict.UNBOUNDED, Verdict.AMBIGUOUS, Verdict.REFUTED]
    for index, verdict in enumerate(order):
        assert worst(order[: index + 1]) is verdict
        assert verdict.is_sound is (index < 2)
    assert worst([]) is Verdict.UNBOUNDED
