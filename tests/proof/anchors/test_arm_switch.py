"""arm64's world switch: events between kvm_entry and kvm_exit bound the run, and only where they are what they seem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoint.proof.anchors.model import Tightened
from counterpoint.proof.anchors.tighten import tighten
from proof.anchors.test_arm_host import check, kind_of
from writers.timer_world import GUEST, HOST, IN_INTERRUPT, IRQ_ENTRY, MARK, TID, Maker, World

KIND = "world switch"


def narrowed(world: World) -> Tightened:
    return tighten(world.host, world.guest, TID, 0, world.windows(60_000, 45_000), np.arange(len(world.guest)))


def run(maker: Maker, *, interrupted: bool = False) -> None:
    """The guest runs, and writes events of its own."""
    maker.enter()
    for number in range(maker.rng.randrange(4)):
        maker.emit(GUEST, MARK, n=number)
        maker.step(3000)
    maker.leave(interrupted=interrupted)
    maker.step(100_000)


def world_of(path: Path, seed: int, *, switches: bool = True, interrupted: float = 0.0) -> World:
    maker = Maker(seed=seed, switches=switches)
    for _ in range(300):
        run(maker, interrupted=maker.rng.random() < interrupted)
    return maker.made(path)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interrupted", [0.0, 0.5])
def test_what_is_written_around_the_run_bounds_it(tmp_path: Path, interrupted: float, seed: int) -> None:
    world = world_of(tmp_path, seed, interrupted=interrupted)
    found = narrowed(world)
    check(world, found)
    assert found.factor > 10
    assert found.low is not None and found.high is not None
    assert (found.low.kind, found.high.kind) == (KIND, KIND)
    for anchor in (found.low, found.high):
        assert world.host.stamp[anchor.host_row] == anchor.host_stamp
        assert world.guest.stamp[anchor.guest_row] == anchor.guest_stamp
        name = world.host.event_name(int(world.host.event_id[anchor.host_row or 0]))
        assert name in ("kvm_get_timer_map", "irq_handler_entry")
    # the witness alone excludes the next offset
    assert found.low.guest_stamp is not None and found.low.host_stamp is not None
    assert found.low.guest_stamp - (found.low.bound - 1) > found.low.host_stamp
    assert found.high.guest_stamp is not None and found.high.host_stamp is not None
    assert found.high.guest_stamp - (found.high.bound + 1) < found.high.host_stamp


@pytest.mark.parametrize("seed", range(3))
def test_without_cntpoff_the_hosts_interrupts_bound_its_end(tmp_path: Path, seed: int) -> None:
    world = world_of(tmp_path, seed, switches=False, interrupted=1.0)
    found = narrowed(world)
    check(world, found)
    assert found.high is None
    assert found.low is not None
    assert "interrupts of the host are off" in found.low.assumption


def test_without_either_nothing_is_said(tmp_path: Path) -> None:
    assert kind_of(narrowed(world_of(tmp_path, 1, switches=False)), KIND) is None


def test_maps_of_interrupts_are_none_of_the_switch(tmp_path: Path) -> None:
    """kvm_arch_timer_handler calls get_timer_map too: after the run, in an interrupt."""
    maker = Maker()
    for _ in range(200):
        run_with_handler(maker, maps=2)
    world = maker.made(tmp_path)
    found = narrowed(world)
    check(world, found)
    assert found.high is None


def run_with_handler(maker: Maker, maps: int) -> None:
    maker.enter()
    maker.emit(GUEST, MARK)
    maker.step(10_000)
    for _ in range(maps):
        maker.map(flags=IN_INTERRUPT)
    maker.leave()
    maker.step(100_000)


def test_maps_that_are_not_two_in_every_run_are_not_taken(tmp_path: Path) -> None:
    """Something else writes them: nobody knows when."""
    maker = Maker()
    for index in range(100):
        maker.enter()
        for _ in range(1 + index % 2):
            maker.emit(GUEST, MARK)
            maker.map()
        maker.leave()
        maker.step(100_000)
    world = maker.made(tmp_path)
    assert kind_of(narrowed(world), KIND) is None


def test_an_nmi_may_come_before_the_run(tmp_path: Path) -> None:
    maker = Maker()
    for _ in range(100):
        maker.enter()
        maker.emit(HOST, IRQ_ENTRY, TID, irq=23, common_flags=IN_INTERRUPT | 0x40)
        maker.emit(GUEST, MARK)
        maker.leave()
        maker.step(100_000)
    assert kind_of(narrowed(maker.made(tmp_path)), KIND) is None


def test_a_switch_that_its_run_contradicts_is_said_to_and_not_used(tmp_path: Path) -> None:
    """The guest runs before the first map and after the second: the code is another."""
    maker = Maker()
    for _ in range(100):
        maker.enter()
        maker.emit(GUEST, MARK)
        maker.step(60_000)
        maker.map()
        maker.step(60_000)
        maker.map()
        maker.step(60_000)
        maker.emit(GUEST, MARK)
        maker.leave()
        maker.step(100_000)
    world = maker.made(tmp_path)
    found = narrowed(world)
    assert found.interval == found.windows
    assert {anchor.kind for anchor in found.contradictions} == {KIND}


@pytest.mark.parametrize("seed", range(3))
def test_runs_with_lost_events_are_left_as_they_are(tmp_path: Path, seed: int) -> None:
    maker = Maker(seed=seed, switches=True)
    for index in range(300):
        if index % 4 == 1:
            # one of the two maps, or the entry before them
            maker.lose(HOST, maker.rng.randrange(1, 3))
        run(maker)
        maker.machines[HOST].losing = 0
    world = maker.made(tmp_path)
    found = narrowed(world)
    check(world, found)
    assert found.factor > 10
