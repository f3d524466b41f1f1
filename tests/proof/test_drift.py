"""Whole worlds whose clocks do not run at one rate: what is said of them holds the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.proof.verdicts import EpochProof, Verdict
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult, sync


def made(folder: Path, options: WorldOptions, **how: Any) -> tuple[World, SyncResult]:
    """A world's files, and what sync makes of them."""
    world = World(options)
    world.write(folder)
    parents = {
        guest.machine.name: Path(guest.machine.parent).stem
        for guest in world.guests
        if guest.machine.parent not in (None, "host")
    }
    files = [folder / guest.machine.file for guest in world.guests]
    return world, sync(folder / "host.dat", *files, parents=parents, **how)


def signed(values: U64) -> I64:
    return values.view(np.int64)


def sure(epoch: EpochProof, stamps: U64) -> Bools:
    """Which stamps are of the epoch beyond doubt."""
    keep = np.ones(len(stamps), np.bool_)
    begin, end = epoch.guest_sure
    if begin is not None:
        keep &= signed(stamps - np.uint64(begin)) >= 0
    if end is not None:
        keep &= signed(np.uint64(end) - stamps) >= 0
    return keep


def untrue(world: World, result: SyncResult) -> list[str]:
    """What the result states without doubt and is not so."""
    return [text for guest in result.guests for text in _untrue(world, guest)]


def _untrue(world: World, guest: GuestProof) -> list[str]:
    out = []
    truth = next(g for g in world.truth["guests"] if g["file"] == guest.recording.path.name)
    for vcpu in guest.vcpus:
        # stamps that count from another clock than the parent's
        if any("the offset is to the clock of" in note for note in vcpu.notes):
            continue
        where = f"{guest.name} CPU {vcpu.guest_cpu}"
        events = world.events(guest.name, vcpu.guest_cpu)
        first = next(s.first for s in guest.recording.streams if s.cpu == vcpu.guest_cpu and s.last > s.first)
        true_tid = next(v["host_tid"] for v in truth["vcpus"] if v["guest_cpu"] == vcpu.guest_cpu)
        if vcpu.verdict.is_sound and guest.parent == "host" and vcpu.host_tid != true_tid:
            out.append(f"{where}: thread {vcpu.host_tid} is not {true_tid}")
        for epoch in vcpu.epochs:
            if not epoch.verdict.is_sound:
                continue
            rows = epoch.rows - first
            rows = rows[sure(epoch, events.stamp[rows]) & ~events.late[rows]]
            early, late = epoch.as_epoch().bound(events.stamp[rows])
            parent = events.parent_stamp[rows]
            wrong = (signed(parent - early) < 0) | (signed(late - parent) < 0)
            if wrong.any():
                out.append(f"{where}: {int(wrong.sum())} of {len(rows)} events outside of their bounds")
            least, greatest = epoch.as_epoch().bound_guest(parent)
            true = events.true_stamp[rows]
            if ((signed(true - least) < 0) | (signed(greatest - true) < 0)).any():
                out.append(f"{where}: guest stamps outside of their bounds")
    return out


# jumps, steps, slews, losses, CPUs that are not recorded, events out of sight: each of these went wrong once
SEEDS = (1, 2, 4, 10, 11, 12, 40, 81, 114, 123, 292, 346, 367, 368, 409, 441, 446)


@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_worlds(tmp_path: Path, seed: int) -> None:
    world, result = made(tmp_path, random_options(seed), use_claims=False)
    assert not untrue(world, result)
    assert all(guest.verdict.is_sound for guest in result.guests)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"clock": "mono_raw", "drift_ppm": 120.0, "pauses": 2}, 3),
        ({"clock": "mono_raw", "drift_ppm": -80.0, "restores": 1}, 2),
        ({"clock": "boot", "slews": 3, "restores": 1}, 2),
        ({"guest_clock": "mono", "drift_ppm": 60.0}, 1),
        ({"arch": "arm64", "guest_clock": "boot", "slews": 2, "pauses": 1}, 2),
    ],
)
def test_every_cpu_has_the_epochs_that_there_are(tmp_path: Path, options: dict[str, Any], epochs: int) -> None:
    world, result = made(tmp_path, WorldOptions(events=6000, seed=5, tsc2nsec="arch" not in options, **options))
    assert not untrue(world, result)
    for vcpu in result.guests[0].vcpus:
        assert len(vcpu.epochs) == epochs
        assert vcpu.verdict is Verdict.DERIVED


def test_cpus_of_one_clock_have_one_line_and_their_own_proof(tmp_path: Path) -> None:
    world, result = made(tmp_path, WorldOptions(events=6000, clock="mono_raw", drift_ppm=120.0))
    one, other = (vcpu.epochs[0] for vcpu in result.guests[0].vcpus)
    assert (one.offset, one.scale) == (other.offset, other.scale)
    for epoch in (one, other):
        assert epoch.fitted is not None
        assert epoch.fitted.own is not None
        assert epoch.fitted.band.width <= epoch.fitted.own.width
    assert not untrue(world, result)


def test_a_clock_that_is_set_back_stamps_events_late(tmp_path: Path) -> None:
    world, result = made(tmp_path, random_options(409), use_claims=False)
    runs = [(vcpu, run) for vcpu in result.guests[0].vcpus for run in vcpu.mis_stamped]
    assert runs
    known = 0
    for vcpu, run in runs:
        events = world.events("guest", vcpu.guest_cpu)
        first = next(s.first for s in result.guests[0].recording.streams if s.cpu == vcpu.guest_cpu)
        late = signed(events.stamp - events.true_stamp)[run.rows - first]
        if run.late_by is not None:
            known += 1
            assert run.late_by[0] <= int(late.min())
            assert int(late.max()) <= run.late_by[1]
    assert known


@pytest.mark.parametrize("seed", [4, 44, 70, 340, 385])
def test_nested_guests_go_through_the_lines_of_their_hypervisor(tmp_path: Path, seed: int) -> None:
    world, result = made(tmp_path, random_options(seed), use_claims=False)
    assert not untrue(world, result)
    machine = next(m for m in result.timeline.machines if m.name == "l2")
    bound = sum(
        e.fitted.band.width if e.fitted else e.feasible[1] - e.feasible[0]
        for g in result.guests
        for v in g.vcpus
        for e in v.epochs
        if e.feasible is not None and g.name in ("guest", "l2")
    )
    for stream in machine.recording.streams:
        if stream.last > stream.first:
            events = world.events("l2", stream.cpu)
            placed = machine.placed[stream.first : stream.last]
            away = signed(machine.host_stamp[stream.first : stream.last] - events.host_stamp)[placed]
            assert placed.any()
            # in the host's units, of which there are up to 4 a ns
            assert int(np.abs(away).max()) <= 4 * bound
