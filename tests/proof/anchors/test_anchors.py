"""Anchors: every bound holds the truth, in made-up worlds and in real recordings, and none beats a window."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from counterpoint.clocks.arch_counter import Clock, k_of_timekeeper, scale_of
from counterpoint.proof.anchors.model import Anchor, Found, Side, combine
from counterpoint.proof.anchors.mono import MonoClock
from counterpoint.proof.anchors.tighten import Anchors, Bounded, tighten
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.events import KVM_ENTRY_X86, KVM_EXIT_X86, MARK, Event
from writers.timer_world import TID, World, arm_world, event
from writers.tracedat import Buffer, TraceFile

MSR = event(907, "kvm", "kvm_msr", "unsigned int write", "u32 ecx", "u64 data", "u8 exception")
WAIT = event(908, "kvm", "kvm_wait_lapic_expire", "u32 vcpu_id", "s64 delta")
INJECT = event(909, "kvm", "kvm_inj_virq", "unsigned int vector")
PVCLOCK = event(
    910, "kvm", "kvm_pvclock_update", "unsigned int vcpu_id", "u64 tsc_timestamp", "u64 system_time", "u8 flags"
)


def narrowed(world: World, windows: tuple[int, int], **options: Any) -> Any:
    rows = np.arange(len(world.guest))
    return tighten(world.host, world.guest, TID, 0, windows, rows, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clock", ["mono_raw", "local"])
@pytest.mark.parametrize("hz", [24_000_000, 62_500_000, 1_000_000_000, 19_200_000])
def test_timers_bound_the_offset_and_the_guests_k(tmp_path: Path, hz: int, clock: Clock, seed: int) -> None:
    world = arm_world(tmp_path, hz=hz, clock=clock, seed=seed)
    windows = world.windows(60_000, 45_000)
    found = narrowed(world, windows)
    assert found.contradictions == ()
    assert world.holds(found.interval)
    assert found.factor > 5
    assert found.low.side is Side.LOW
    assert found.high.bound == found.interval[1]
    for anchor in (found.low, found.high):
        assert world.host.stamp[anchor.host_row] == anchor.host_stamp
        assert world.guest.stamp[anchor.guest_row] == anchor.guest_stamp
        assert "hrtimer_rearm" in anchor.assumption
    (kind,) = found.found
    if hz < 500_000_000:
        lattice = MonoClock(world.guest).lattice
        assert lattice is not None
        whole = lattice.whole((0, 0))
        assert kind.guest_whole is not None
        # the index of the lattice counts from K modulo mult
        assert kind.guest_whole[0] <= world.guest_whole <= kind.guest_whole[1]
        assert whole is None or whole == (0, 0)
    else:
        assert kind.guest_whole is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slewed", ["host", "guest", "both"])
@pytest.mark.parametrize("clock", ["mono_raw", "local"])
def test_a_clock_that_ntp_slews_is_bounded_by_what_ntp_may_do(
    tmp_path: Path, clock: Clock, slewed: Literal["host", "guest", "both"], seed: int
) -> None:
    world = arm_world(tmp_path, clock=clock, slewed=slewed, seed=seed)
    found = narrowed(world, world.windows(60_000, 45_000))
    assert found.contradictions == ()
    assert world.holds(found.interval)
    assert found.factor > 1.5
    assert "500 ppm on the " + ("host" if slewed == "both" else slewed) in found.low.assumption


@pytest.mark.parametrize("seed", range(4))
def test_clocks_that_never_parted_are_taken_as_one_and_it_is_said(tmp_path: Path, seed: int) -> None:
    world = arm_world(tmp_path, parted=False, seed=seed)
    windows = world.windows(60_000, 45_000)
    plain, trusting = narrowed(world, windows, trust_boot=False), narrowed(world, windows)
    assert MonoClock(world.host).is_mono_raw
    assert world.holds(plain.interval)
    assert world.holds(trusting.interval)
    assert trusting.factor > plain.factor
    assert "since boot" in trusting.low.assumption
    assert "since boot" not in plain.low.assumption


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("clock", ["mono_raw", "local"])
def test_a_host_with_kvm_events_alone_bounds_it_too(tmp_path: Path, clock: Clock, nested: bool, seed: int) -> None:
    world = arm_world(tmp_path, clock=clock, seed=seed, kvm_only=True, nested=nested)
    found = narrowed(world, world.windows(60_000, 45_000))
    assert found.contradictions == ()
    assert world.holds(found.interval)
    # by chance: how near to CVAL the vCPU was loaded, and on which side of it
    assert found.factor > 1.2
    ends = [anchor for anchor in (found.low, found.high) if anchor is not None]
    for anchor in ends:
        assert "kvm_timer_update_irq" in anchor.assumption
        assert world.host.event_name(int(world.host.event_id[anchor.host_row])) == "kvm_timer_update_irq"


@pytest.mark.parametrize("seed", range(3))
def test_the_timer_of_a_guests_guest_is_not_taken_for_its_own(tmp_path: Path, seed: int) -> None:
    world = arm_world(tmp_path, seed=seed, nested=True)
    found = narrowed(world, world.windows(60_000, 45_000))
    assert found.contradictions == ()
    assert world.holds(found.interval)
    assert found.factor > 5


def test_clocks_that_parted_are_not_taken_as_one(tmp_path: Path) -> None:
    world = arm_world(tmp_path)
    assert not MonoClock(world.host).is_mono_raw
    assert not MonoClock(world.guest).is_mono_raw


@pytest.mark.parametrize("hz", [24_000_000, 1_000_000_000])
def test_a_timer_that_breaks_the_assumption_is_a_contradiction_and_no_bound(tmp_path: Path, hz: int) -> None:
    world = arm_world(tmp_path, hz=hz, break_code=True)
    windows = world.windows(60_000, 45_000)
    found = narrowed(world, windows)
    assert found.interval == windows
    assert (found.low, found.high) == (None, None)
    assert found.contradictions
    assert all("not used" in note or "none of them is used" in note for note in found.notes)


def test_windows_that_exclude_the_anchors_are_kept(tmp_path: Path) -> None:
    world = arm_world(tmp_path)
    windows = world.windows(-30_000, 45_000)
    found = narrowed(world, windows)
    assert found.interval == windows
    assert found.contradictions


def test_epochs_without_events_are_left_as_they_are(tmp_path: Path) -> None:
    world = arm_world(tmp_path, blocks=40)
    windows = world.windows(10, 10)
    nothing = np.zeros(0, np.int64)
    (found,) = Anchors(world.host, world.guest).tighten([Bounded(TID, 0, windows, nothing)])
    assert found.interval == windows
    other = tighten(world.host, world.guest, TID + 1, 0, windows, np.arange(len(world.guest)))
    assert other.interval == windows


# -- x86


def x86_world(path: Path, offset: int, *, stale: int = 0, masterclock: bool = False, seed: int = 1) -> World:
    """A guest whose deadlines KVM waits for; ``stale`` of them were of another timer."""
    rng = random.Random(seed)
    host, guest = TraceFile(cpu_count=1), TraceFile(cpu_count=1)
    host.events = [KVM_ENTRY_X86, KVM_EXIT_X86, MSR, WAIT, INJECT, PVCLOCK]
    guest.events = [MARK]
    rows: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    now = 345_000_000_000

    def emit(kind: Event, **values: Any) -> None:
        nonlocal now
        rows[0].append((now, host.payload(kind, TID, **values)))
        now += 1 + int(rng.expovariate(1 / 300))

    for block in range(60):
        emit(KVM_ENTRY_X86)
        rows[1].append((now + offset, guest.payload(MARK, n=block)))
        now += 5000
        emit(KVM_EXIT_X86, exit_reason=32)
        deadline = now + offset + rng.randrange(10_000, 900_000)
        emit(MSR, write=1, ecx=0x6E0, data=deadline)
        if block % 7 == 3:
            emit(KVM_ENTRY_X86)
            now += 900
            emit(KVM_EXIT_X86, exit_reason=12)
            read = now + offset - (1_000_000 if masterclock else 0)
            now += 40
            emit(PVCLOCK, tsc_timestamp=read, flags=int(masterclock))
        now = max(now, deadline - offset + rng.randrange(-300, 4000))
        emit(INJECT, vector=236)
        emit(KVM_ENTRY_X86)
        delta = now + offset - deadline
        now += 60
        if block < stale:
            delta += 10_000_000
        emit(WAIT, delta=delta)
        now += 2000
        rows[1].append((now + offset, guest.payload(MARK, n=block)))
        now += 40_000
        emit(KVM_EXIT_X86, exit_reason=1)
    recordings = []
    for name, file, own in (("host", host, rows[0]), ("guest", guest, rows[1])):
        file.buffers = [Buffer(cpus={0: file.stream(own)})]
        recordings.append(Recording.open(file.write(path / f"{name}.dat")))
    return World(recordings[0], recordings[1], offset, 0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("masterclock", [False, True])
def test_deadlines_bound_the_tscs_offset_on_both_sides(tmp_path: Path, masterclock: bool, seed: int) -> None:
    world = x86_world(tmp_path, -38_775_413_133, masterclock=masterclock, seed=seed)
    found = narrowed(world, world.windows(50_000, 60_000))
    assert found.contradictions == ()
    assert found.interval[0] <= world.offset <= found.interval[1]
    assert found.factor > 50
    kinds = {kind.kind for kind in found.found}
    assert kinds == ({"kvm_wait_lapic_expire"} if masterclock else {"kvm_wait_lapic_expire", "kvm_pvclock_update"})


def test_a_deadline_of_another_timer_is_left_out_and_counted(tmp_path: Path) -> None:
    world = x86_world(tmp_path, 77, stale=3)
    found = narrowed(world, world.windows(55_000, 55_000))
    assert found.interval[0] <= world.offset <= found.interval[1]
    assert next(kind.discarded for kind in found.found if kind.kind == "kvm_wait_lapic_expire") == 3


def test_deadlines_that_mostly_contradict_the_windows_are_said_to(tmp_path: Path) -> None:
    world = x86_world(tmp_path, 77, stale=50)
    windows = world.windows(50_000, 60_000)
    found = narrowed(world, windows)
    assert {anchor.kind for anchor in found.contradictions} == {"kvm_wait_lapic_expire"}
    assert found.low is None or found.low.kind == "kvm_pvclock_update"


# -- what is left


def bound(side: Side, value: int, kind: str = "a") -> Anchor:
    return Anchor(kind, side, value, "it holds")


def kind_of(low: int | None, high: int | None, kind: str = "a") -> Found:
    return Found(
        kind,
        None if low is None else bound(Side.LOW, low, kind),
        None if high is None else bound(Side.HIGH, high, kind),
        1,
    )


@pytest.mark.parametrize(
    ("found", "interval", "contradictions"),
    [
        ([], (0, 100), 0),
        ([kind_of(20, 60)], (20, 60), 0),
        ([kind_of(None, 60)], (0, 60), 0),
        ([kind_of(-50, 300)], (0, 100), 0),
        ([kind_of(20, 60), kind_of(30, None, "b")], (30, 60), 0),
        # outside the windows, against itself, or two kinds against each other
        ([kind_of(101, 130)], (0, 100), 2),
        ([kind_of(60, 20)], (0, 100), 2),
        ([kind_of(20, 60), kind_of(61, None, "b")], (0, 100), 3),
        ([kind_of(20, 60), kind_of(101, None, "b")], (20, 60), 1),
    ],
)
def test_no_anchor_overrides_a_window(found: list[Found], interval: tuple[int, int], contradictions: int) -> None:
    left = combine((0, 100), found)
    assert left.interval == interval
    assert len(left.contradictions) == contradictions == len(left.notes)
    assert (left.low is None) == (interval[0] == 0)
    assert (left.high is None) == (interval[1] == 100)


# -- real recordings

REAL = {
    "arm64-monoraw": 5.0,
    "arm64-pause": 5.0,
    "arm64-local": 4.3,
    "x86-agent": 10.0,
    "x86-busy": 10.0,
    "x86-vcpus-differ": 10.0,
    "x86-lossy": 10.0,
    "x86-offset-change": 10.0,
    "x86-guest-wrmsr": 10.0,
    "x86-nested-l0-l1": 10.0,
    "arm64-nested": 5.0,
}
"""How many times narrower anchors must make every epoch. On bare metal the steps are shorter on both sides."""


@cache
def synced(name: str) -> tuple[dict[str, Any], SyncResult]:
    if not (RECORDINGS / name).is_dir():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    truth = json.loads((RECORDINGS / name / "truth.json").read_text())
    files = [str(RECORDINGS / name / f) for f in (truth["host"], truth["guests"][0]["file"])]
    return truth, sync(*files, use_claims=False)


@pytest.mark.long
@pytest.mark.recordings
@pytest.mark.parametrize("trust_boot", [True, False])
@pytest.mark.parametrize("name", REAL)
def test_real_recordings_hold_the_truth_in_less(name: str, trust_boot: bool) -> None:
    truth, result = synced(name)
    guest = result.guests[0]
    epochs, right = [], []
    for vcpu in truth["guests"][0]["vcpus"]:
        proof = next(v for v in guest.vcpus if v.guest_cpu == vcpu["guest_cpu"])
        assert proof.host_tid is not None
        for epoch, known in zip(proof.epochs, vcpu["epochs"], strict=True):
            windows = epoch.by_windows or epoch.feasible
            assert windows is not None
            stamps = guest.recording.stamp[epoch.rows]
            sure = np.ones(len(stamps), np.bool_)
            if epoch.guest_sure[0] is not None:
                sure &= stamps >= np.uint64(epoch.guest_sure[0])
            if epoch.guest_sure[1] is not None:
                sure &= stamps <= np.uint64(epoch.guest_sure[1])
            epochs.append(Bounded(proof.host_tid, proof.guest_cpu, windows, epoch.rows[sure]))
            right.append(known.get("offset_range") or [known["offset"]] * 2)
    anchors = Anchors(result.host, guest.recording, trust_boot=trust_boot)
    for found, (lo, hi) in zip(anchors.tighten(epochs), right, strict=True):
        assert found.contradictions == ()
        assert found.interval[0] <= hi
        assert lo <= found.interval[1]
        assert found.factor > (REAL[name] if trust_boot else min(REAL[name], 3.2))


@pytest.mark.recordings
@pytest.mark.parametrize("name", ["arm64-monoraw", "arm64-pause"])
def test_a_real_guests_k_lies_in_what_its_hosts_timers_leave(name: str) -> None:
    truth, result = synced(name)
    recording, snapshot = result.guests[0].recording, truth["guest_mono_raw"]
    proof = result.guests[0].vcpus[0]
    assert proof.host_tid is not None
    epoch = proof.epochs[-1]
    windows = epoch.by_windows or epoch.feasible
    assert windows is not None
    found = tighten(result.host, recording, proof.host_tid, proof.guest_cpu, windows, epoch.rows[-4000:])
    scale = scale_of(truth["cntfrq"])
    assert scale is not None
    k = k_of_timekeeper(scale, snapshot["cycle_last"], snapshot["raw_sec"], snapshot["raw_snsec"])
    kind = next(kind for kind in found.found if kind.kind == "virtual timer")
    assert kind.guest_whole is not None
    assert kind.guest_whole[0] <= k // scale.mult <= kind.guest_whole[1]
    # within 20 us
    assert (kind.guest_whole[1] - kind.guest_whole[0]) * scale.mult >> scale.shift < 20_000
