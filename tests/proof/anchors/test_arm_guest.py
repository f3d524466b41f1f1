"""What a guest says of its timer: which CVAL is of which expiry, and what leaves that in doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from counterpoint.proof.anchors.arm_timer import SHARED
from counterpoint.proof.anchors.model import Tightened
from counterpoint.proof.anchors.tighten import Anchors, Bounded, tighten
from proof.anchors.test_arm_host import check, kind_of
from writers.timer_world import (
    CANCEL,
    EXPIRE_EXIT,
    GUEST,
    HRTIMER_EXPIRE_ENTRY,
    IN_INTERRUPT,
    IN_SOFTIRQ,
    IRQ_EXIT,
    MARK,
    OTHER,
    SLEEPER,
    TID,
    Maker,
    World,
    arm_world,
)


def narrowed(world: World) -> Tightened:
    return tighten(world.host, world.guest, TID, 0, world.windows(60_000, 45_000), np.arange(len(world.guest)))


def rounds(maker: Maker, count: int, odd: Callable[[Maker], None]) -> None:
    """Rounds in every third of which ``odd`` stands for the guest's timer interrupt and what follows it."""
    for index in range(count):
        maker.load()
        if index % 3 == 2:
            odd(maker)
        else:
            maker.interrupt()
        maker.emit(GUEST, MARK, n=index)
        maker.step(30_000)
        maker.leave()
        maker.put()
        maker.block()
        maker.step(30_000)
        maker.tick(0)
        maker.sleep()


def left_before_it_was_written(maker: Maker) -> None:
    """The vCPU is put between saying what it programs and programming it: KVM saves the CVAL before."""

    def put() -> None:
        maker.leave()
        maker.put()
        maker.step(2_000_000)
        maker.load()

    maker.interrupt(put)


def asked_for_too_soon(maker: Maker) -> None:
    """An expiry that has passed: the clock event is set to its shortest."""
    reading = maker.tick(GUEST)
    maker.start(reading - 50_000)
    maker.program(reading - 50_000)
    maker.emit(GUEST, IRQ_EXIT, irq=11, ret=1)


def forced_already(maker: Maker) -> None:
    """An expiry that has passed, of a clock event that was forced before: it is left as it is (since 7.1)."""
    cval = maker.cval
    asked_for_too_soon(maker)
    maker.cval = cval + 1_000


def lost(maker: Maker) -> None:
    """Another programming that the recording lost."""
    maker.interrupt()
    maker.lose(GUEST, 6)
    maker.interrupt()


def cut_short(maker: Maker) -> None:
    """A wait beyond what a clock event can measure."""
    reading = maker.tick(GUEST)
    target = reading + 900_000_000_000
    maker.start(target)
    maker.program(target)
    maker.cval -= 24_000_000 * 250
    maker.emit(GUEST, IRQ_EXIT, irq=11, ret=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rearms", [True, False])
@pytest.mark.parametrize("odd", [left_before_it_was_written, asked_for_too_soon, forced_already, lost, cut_short])
def test_what_is_in_doubt_is_left_out(tmp_path: Path, odd: Callable[[Maker], None], rearms: bool, seed: int) -> None:
    maker = Maker(seed=seed, rearms=rearms)
    rounds(maker, 90, odd)
    world = maker.made(tmp_path)
    found = narrowed(world)
    check(world, found)
    assert found.factor > 3


# -- kernels without hrtimer_rearm


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hz", [24_000_000, 62_500_000, 1_000_000_000])
def test_a_guest_whose_kernel_does_not_name_what_it_programs_bounds_the_offset(
    tmp_path: Path, hz: int, seed: int
) -> None:
    world = arm_world(tmp_path, hz=hz, seed=seed, rearms=False)
    found = narrowed(world)
    check(world, found)
    assert found.factor > 5
    assert found.low is not None
    assert "expires next" in found.low.assumption


def an_earlier_one_of_a_task(maker: Maker) -> None:
    """A task starts a timer that expires before the tick: it is programmed for instead."""
    maker.interrupt()
    target = maker.read(GUEST) + 100_000
    maker.start(target, SLEEPER, OTHER)
    maker.program(target)


def left_before_its_timer(maker: Maker) -> int:
    """A tick programs what is due soon, and KVM puts the vCPU before that expires; when the tick was."""
    reading = maker.tick(GUEST)
    maker.start(reading + 3_000_000)
    maker.program(reading + 200_000)
    maker.emit(GUEST, IRQ_EXIT, irq=11, ret=1)
    maker.leave()
    maker.put()
    return reading


def an_earlier_one_that_is_cancelled(maker: Maker) -> None:
    """What was programmed for is cancelled after KVM saved it, and never expires."""
    reading = left_before_its_timer(maker)
    maker.step(50_000)
    maker.load()
    maker.emit(GUEST, CANCEL, hrtimer=SLEEPER)
    maker.program(reading + 3_000_000)


def an_unknown_one(maker: Maker) -> None:
    """A timer that was started before the recording expires together with the tick, and before it."""
    left_before_its_timer(maker)
    maker.step(4_000_000)
    maker.load()
    reading = maker.tick(GUEST, timer=SLEEPER)
    for kind in (HRTIMER_EXPIRE_ENTRY, EXPIRE_EXIT):
        values = {"now": reading} if kind is HRTIMER_EXPIRE_ENTRY else {}
        maker.emit(GUEST, kind, hrtimer=0xFF1100, common_flags=IN_INTERRUPT, **values)
    maker.program_after(reading)
    maker.emit(GUEST, IRQ_EXIT, irq=11, ret=1)


def a_soft_one(maker: Maker) -> None:
    """A timer of the softirq's is programmed for: it expires there, and the tick later."""
    left_before_its_timer(maker)
    maker.step(400_000)
    maker.load()
    values = {"hrtimer": SLEEPER, "common_flags": IN_SOFTIRQ}
    maker.emit(GUEST, HRTIMER_EXPIRE_ENTRY, now=maker.read(GUEST), function=OTHER, **values)
    maker.emit(GUEST, EXPIRE_EXIT, **values)
    maker.interrupt()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "odd", [an_earlier_one_of_a_task, an_earlier_one_that_is_cancelled, an_unknown_one, a_soft_one]
)
def test_the_timer_that_was_programmed_for_is_told_from_others(
    tmp_path: Path, odd: Callable[[Maker], None], seed: int
) -> None:
    maker = Maker(seed=seed, rearms=False)
    rounds(maker, 90, odd)
    world = maker.made(tmp_path)
    found = narrowed(world)
    check(world, found)
    assert found.factor > 3


# -- the other vCPUs


def test_the_timers_of_a_vms_other_vcpus_bound_it_where_they_are_of_the_same_time(tmp_path: Path) -> None:
    """Here two threads are one: what the one shows is said of the other, whose own timer says nothing."""
    world = arm_world(tmp_path)
    windows, rows = world.windows(60_000, 45_000), np.arange(len(world.guest))
    early, late = rows[: len(rows) // 3], rows[2 * len(rows) // 3 :]
    own = Bounded(TID + 1, 0, windows, rows)
    found, other = Anchors(world.host, world.guest).tighten([own, Bounded(TID, 0, windows, rows)])
    assert kind_of(found, "virtual timer") is None
    assert kind_of(found, SHARED) is not None
    assert world.holds(found.interval)
    assert found.factor > 5
    assert found.low is not None
    assert "one offset" in found.low.assumption
    assert kind_of(other, SHARED) is None
    apart = [Bounded(TID + 1, 0, windows, early), Bounded(TID, 0, windows, late)]
    found, _ = Anchors(world.host, world.guest).tighten(apart)
    assert kind_of(found, SHARED) is None
    assert found.interval == windows


def test_vcpus_that_differ_all_the_same_are_a_contradiction(tmp_path: Path) -> None:
    world = arm_world(tmp_path)
    windows, rows = world.windows(60_000, 45_000), np.arange(len(world.guest))
    elsewhere = windows[0] + 5_000_000, windows[1] + 5_000_000
    own = Bounded(TID + 1, 0, elsewhere, rows)
    found, _ = Anchors(world.host, world.guest).tighten([own, Bounded(TID, 0, windows, rows)])
    assert found.interval == elsewhere
    assert {anchor.kind for anchor in found.contradictions} == {SHARED}
