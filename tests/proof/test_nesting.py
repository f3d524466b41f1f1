"""Nested guests: whose windows they are, clocks that differ between a hypervisor's own CPUs, and deeper levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.counter import relative
from counterpoint.proof.fit import Thread
from counterpoint.proof.levels import only, sides
from counterpoint.proof.nesting import guest_mode
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.proof.windows import FOREVER, HostActivity, RunWindows
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.events import KVM_ENTRY_X86, KVM_EXIT_X86, Event
from writers.nested_world import INJECT, VMENTER, VMEXIT, VMRUN, NestedTruth, nested_world
from writers.tracedat import Buffer, TraceFile

TID = 146

EQUAL, APART = (-90_000_000, -90_000_000), (-90_000_000, -89_997_000)
FURTHER, WIDE = (-90_000_000, -89_960_000, -90_020_000), (-90_000_000, -88_000_000, -91_500_000)


def synced(path: Path, **world: Any) -> tuple[SyncResult, NestedTruth]:
    """The world's recordings, related by proof alone."""
    machines, truth = nested_world(**world)
    files = [machine.write(path / f"l{n}.dat") for n, machine in enumerate(machines)]
    parents = {f"l{n}": f"l{n - 1}" for n in range(2, len(files))}
    return sync(files[0], *files[1:], parents=parents), truth


def placed_within(result: SyncResult, level: int, true: list[int], bound: int) -> None:
    """Every event of a level lies in the host's time as far from its true time as the proof allows."""
    machine = result.timeline.machines[level]
    assert machine.placed.all()
    assert np.abs(relative(machine.host_stamp, 0) - np.array(true)).max() <= bound


def widths(result: SyncResult) -> int:
    """The sum of the widest intervals of all levels."""
    return sum(
        max(e.feasible[1] - e.feasible[0] for v in g.vcpus for e in v.epochs if e.feasible) for g in result.guests
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("world", "clock"),
    [
        ({"offsets": EQUAL}, ""),
        ({"offsets": EQUAL, "enter": None}, ""),
        ({"offsets": EQUAL, "enter": VMRUN}, ""),
        ({"offsets": APART, "move_gap": 9_000}, "the clock of the CPU that it was on"),
        ({"offsets": FURTHER, "move_gap": 90_000}, "the clock of the CPU that it was on"),
        # the thread moves faster than the CPUs' clocks are apart
        ({"offsets": WIDE, "made_up": True}, "which CPU 0 has"),
        ({"offsets": WIDE, "made_up": True, "enter": None}, "which CPU 0 has"),
        ({"offsets": (-90_000_000, -90_000_000 + (1 << 60)), "made_up": True}, "which CPU 0 has"),
    ],
)
def test_l2_is_derived_and_placed(tmp_path: Path, seed: int, world: dict[str, Any], clock: str) -> None:
    result, truth = synced(tmp_path, seed=seed, **world)
    l1, l2 = result.guests
    assert [v.verdict for v in l1.vcpus] == [Verdict.DERIVED] * len(truth.offsets)
    for vcpu in l1.vcpus:
        (epoch,) = vcpu.epochs
        assert vcpu.host_tid == 100 + vcpu.guest_cpu
        assert epoch.feasible is not None
        lo, hi = epoch.feasible
        assert (truth.offsets[vcpu.guest_cpu] - lo) % (1 << 64) <= hi - lo
    (vcpu,) = l2.vcpus
    (epoch,) = vcpu.epochs
    assert vcpu.verdict is Verdict.DERIVED
    assert epoch.feasible is not None
    true = truth.l12
    if clock == "which CPU 0 has":
        constant = l1.vcpus[0].epochs[0].offset
        assert constant is not None
        true += truth.offsets[0] - constant
    assert epoch.feasible[0] <= true <= epoch.feasible[1]
    assert [clock in note for note in vcpu.notes] == [True] * bool(clock)
    placed_within(result, 2, [at for at, _ in truth.l2], widths(result))


def test_clocks_too_far_apart_to_compare_are_no_error(tmp_path: Path) -> None:
    result, _ = synced(tmp_path, offsets=(-90_000_000, -90_000_000 + (1 << 63)), made_up=True)
    assert all(v.verdict is Verdict.DERIVED for v in result.guests[0].vcpus)
    assert not result.guests[1].verdict.is_sound
    assert len(result.timeline) > 0


@pytest.mark.parametrize(
    "world",
    [{"offsets": EQUAL}, {"offsets": APART, "move_gap": 9_000}, {"offsets": WIDE, "made_up": True}],
)
def test_a_guest_of_l2_goes_by_the_same_rule(tmp_path: Path, world: dict[str, Any]) -> None:
    result, truth = synced(tmp_path, stays=120, deep=True, **world)
    (vcpu,) = result.guests[2].vcpus
    (epoch,) = vcpu.epochs
    assert (vcpu.host_tid, vcpu.verdict) == (551, Verdict.DERIVED)
    assert epoch.feasible is not None
    assert epoch.feasible[0] <= truth.l23 <= epoch.feasible[1]
    placed_within(result, 3, [at for at, _ in truth.l3], widths(result))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("enter", [VMENTER, VMRUN])
def test_windows_are_told_apart_as_they_were(tmp_path: Path, seed: int, enter: Event) -> None:
    (l0, *_), truth = nested_world(seed=seed, enter=enter)
    host = Recording.open(l0.write(tmp_path / "l0.dat"))
    activity = HostActivity(host)
    for cpu in range(2):
        windows = activity.windows(100 + cpu)
        own, nested = sides(windows, host)
        assert not (own & nested).any()
        for times, wrong in ((truth.l1[cpu], nested), ([at for at, where in truth.l2 if where == cpu], own)):
            at = np.searchsorted(windows.lo, np.array(times) - windows.base, side="right") - 1
            assert windows.is_run[at].all()
            assert not wrong[at].any()
        assert nested.sum() > 100
        assert (own | nested)[windows.is_run].sum() > 0.95 * windows.count


def host_of(path: Path, rows: list[tuple[int, Event]], missed: dict[int, int] | None = None) -> Recording:
    """A host of one CPU and one thread with these events (stamp, event)."""
    file = TraceFile(events=[KVM_ENTRY_X86, KVM_EXIT_X86, VMENTER, VMEXIT, INJECT], clock="x86-tsc", cpu_count=1)
    file.buffers = [Buffer()]
    file.buffers[0].cpus[0] = file.stream([(at, file.payload(e, TID)) for at, e in rows], missed=missed or {})
    return Recording.open(file.write(path / "host.dat"))


def history(text: str) -> list[tuple[int, Event]]:
    """Events by letters: r a run window, E vmenter, X vmexit, I vmexit_inject."""
    rows: list[tuple[int, Event]] = []
    for at, letter in enumerate(text, 1):
        if letter == "r":
            rows += [(at * 100, KVM_ENTRY_X86), (at * 100 + 50, KVM_EXIT_X86)]
        else:
            rows.append((at * 100, {"E": VMENTER, "X": VMEXIT, "I": INJECT}[letter]))
    return rows


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("rrErXIrrErXIr", "11" "2" "11" "2" "1"),
        ("rErXrXIrEr", "1" "2" "2" "1" "?"),  # an exit that the host handled itself; the last entry may have failed
        ("rErErXIr", "1" "?" "2" "1"),  # the first entry failed
        ("rErXrErXIr", "1" "2" "?" "2" "1"),  # left without a word
        ("rXIrErXIr", "?" "1" "2" "1"),
        ("rrr", "???"),
        ("rXIrXIr", "???"),  # a kernel without the entry's event
        ("ErIr", "?1"),  # nothing was seen of the thread before its first entry
    ],
)  # fmt: skip
def test_sides(tmp_path: Path, events: str, expected: str) -> None:
    host = host_of(tmp_path, history(events))
    windows = HostActivity(host).windows(TID)
    own, nested = sides(windows, host)
    run = windows.is_run
    assert "".join("1" if o else "2" if n else "?" for o, n in zip(own[run], nested[run], strict=True)) == expected
    assert not (own | nested)[~run].any()
    assert only(windows, host, nested=False).count == len(expected) - expected.count("2")
    assert only(windows, host, nested=True).count == len(expected) - expected.count("1")


def test_what_was_lost_may_hide_a_switch(tmp_path: Path) -> None:
    rows = history("rErXIrrErXIr")
    # the loss lies between two windows of L1
    before = next(n for n, (at, _) in enumerate(rows) if at == 700)
    host = host_of(tmp_path, rows, {before: 3})
    windows = HostActivity(host).windows(TID)
    own, nested = sides(windows, host)
    run = windows.is_run
    assert "".join("1" if o else "2" if n else "?" for o, n in zip(own[run], nested[run], strict=True)) == "12??21"


def test_the_span_of_an_epoch_reaches_as_far_as_its_neighbours_are_not_sure() -> None:
    """L1's offset changes somewhere between 1,000 and 3,000: a window there may be of either epoch."""
    lo, hi = np.array([-FOREVER, 500, 1_500, 3_500, 9_000]), np.array([100, 600, 1_600, 3_600, FOREVER])
    run, rows = np.array([False, True, True, True, False]), np.arange(5)
    windows = RunWindows(TID, 0, lo, hi, run, rows, rows)

    def epoch(offset: int, first: int | None, last: int | None) -> EpochProof:
        return EpochProof(
            rows=np.zeros(0, np.int64), guest_from=first, guest_to=last, host_from=None, host_to=None, offset=offset,
            source="", verdict=Verdict.DERIVED, feasible=(offset - 5, offset + 5), candidates=(), inside=9,
            violations=0, unknown=0, evidence=99, guest_sure=(first, last),
        )  # fmt: skip

    vcpu = VcpuProof(0, TID, "", (epoch(10_000, None, 11_000), epoch(20_000, 23_000, None)), ())
    spans = guest_mode(vcpu, Thread(windows), 0)
    assert spans is not None
    found = list(zip(spans[0].tolist(), spans[1].tolist(), strict=True))
    assert [(a, b) for a, b in found if b < FOREVER and a > -FOREVER] == [
        (10_495, 10_605), (11_495, 11_605), (21_495, 21_605), (23_495, 23_605),
    ]  # fmt: skip


@pytest.mark.recordings
@pytest.mark.skipif(not (RECORDINGS / "x86-nested-l0-l1").is_dir(), reason="no folder of recordings")
def test_real_l1_events_are_in_none_of_l2s_windows() -> None:
    folder = RECORDINGS / "x86-nested-l0-l1"
    host = Recording.open(folder / "l0.dat")
    result = sync(host, folder / "l1.dat", use_claims=False)
    activity = HostActivity(host)
    for vcpu in result.guests[0].vcpus:
        assert vcpu.host_tid is not None
        windows = activity.windows(vcpu.host_tid)
        own, nested = sides(windows, host)
        assert nested.sum() > 1_000
        assert (own | nested).sum() == windows.count
        (epoch,) = vcpu.epochs
        assert (epoch.violations, epoch.unknown) == (0, 0)
