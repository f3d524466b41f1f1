"""What a host's KVM says of its guests' timers: what is taken, what is another timer's, what may not be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.proof.anchors.model import Found, Tightened
from counterpoint.proof.anchors.tighten import tighten
from writers.timer_world import HOST, RESTORE, SAVE, TID, UPDATE, Maker, World

FAR = 60_000_000


def narrowed(world: World, below: int = 60_000, above: int = 45_000) -> Tightened:
    return tighten(world.host, world.guest, TID, 0, world.windows(below, above), np.arange(len(world.guest)))


def kind_of(found: Tightened, name: str) -> Found | None:
    return next((kind for kind in found.found if kind.kind == name), None)


def check(world: World, found: Tightened) -> None:
    """The truth is in what is left, and in what each kind says alone."""
    assert found.contradictions == ()
    assert world.holds(found.interval)
    for kind in found.found:
        for anchor in kind.anchors:
            ends = (anchor.bound, anchor.bound + FAR) if anchor.side == "low" else (anchor.bound - FAR, anchor.bound)
            assert world.holds(ends), anchor


def emulated_world(path: Path, seed: int, rounds: int = 80, **how: Any) -> World:
    """A guest at EL2 that is put with its timer set, while a guest of its own runs."""
    maker = Maker(seed=seed, nested=True, kvm_only=True)
    for index in range(rounds):
        maker.load()
        maker.interrupt()
        maker.step(50_000)
        maker.leave()
        maker.step(2000)
        if how.get("lost") and index % 2:
            # the saving is not seen: what was saved before is not what is compared
            maker.lose(HOST, 2)
        maker.put()
        maker.machines[HOST].losing = 0
        for _ in range(6):
            if maker.rng.random() < 0.5:
                maker.now = max(maker.now, maker.cval + maker.cntvoff + maker.rng.randrange(-2500, 1000))
            maker.nested_run(moves=bool(how.get("moves")) and maker.rng.random() < 0.3)
        maker.sleep()
    return maker.made(path)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("how", [{}, {"lost": True}, {"moves": True}])
def test_a_timer_that_kvm_emulates_bounds_the_offset_too(tmp_path: Path, how: dict[str, bool], seed: int) -> None:
    world = emulated_world(tmp_path, seed, **how)
    found = narrowed(world)
    check(world, found)
    kind = kind_of(found, "emulated virtual timer")
    assert kind is not None
    for anchor in kind.anchors:
        assert anchor.host_row is not None
        assert world.host.event_name(int(world.host.event_id[anchor.host_row])) == "kvm_timer_emulate"
        assert "saved" in anchor.assumption
    assert kind.high is not None
    # not reached yet: that bounds it from above
    assert kind.high.bound - (world.offset >> world.shift) < 30_000


def test_an_emulation_of_a_timer_that_was_restored_since_is_not_taken(tmp_path: Path) -> None:
    maker = Maker(nested=True, kvm_only=True)
    for _ in range(80):
        maker.load()
        maker.interrupt()
        maker.leave()
        maker.put()
        maker.emit(HOST, RESTORE, TID, ctl=1, cval=maker.cval, timer_idx=2)
        # by now the guest may have programmed another
        maker.cval += 500_000
        maker.emulate()
        maker.cval -= 500_000
        maker.sleep()
    found = narrowed(maker.made(tmp_path))
    assert kind_of(found, "emulated virtual timer") is None


def test_an_emulated_timer_that_lies_is_a_contradiction_and_no_kind_of_its_family_is_used(tmp_path: Path) -> None:
    maker = Maker(nested=True, kvm_only=True)
    for _ in range(80):
        maker.load()
        maker.interrupt()
        maker.leave()
        maker.put()
        # said to be not reached, long after
        maker.now = maker.cval + maker.cntvoff + 3_000_000
        maker.emit(HOST, RESTORE, TID, ctl=0, cval=0, timer_idx=1)
        maker.cval += 24_000_000
        maker.emulate()
        maker.cval -= 24_000_000
        maker.sleep()
    world = maker.made(tmp_path)
    found = narrowed(world)
    assert found.interval == found.windows
    assert {anchor.kind for anchor in found.contradictions} == {"emulated virtual timer"}
    assert kind_of(found, "virtual timer") is not None
    assert all("none of them is used" in note for note in found.notes)


@pytest.mark.parametrize("seed", range(4))
def test_a_timer_interrupt_between_the_steps_of_a_load_is_not_taken_for_one(tmp_path: Path, seed: int) -> None:
    """kvm_arch_timer_handler writes a map and an update of its own."""
    maker = Maker(seed=seed, kvm_only=True)
    for _ in range(120):
        maker.map()
        reached = maker.counter >= maker.cval
        maker.step()
        if maker.rng.random() < 0.5:
            maker.now = max(maker.now, maker.cval + maker.cntvoff)
            maker.map(flags=0x09)
            maker.emit(HOST, UPDATE, TID, irq=27, level=1, common_flags=0x09)
        maker.emit(HOST, UPDATE, TID, irq=27, level=int(reached))
        maker.emit(HOST, UPDATE, TID, irq=30, level=0)
        maker.emit(HOST, RESTORE, TID, ctl=1, cval=maker.cval, timer_idx=1)
        maker.emit(HOST, RESTORE, TID, ctl=0, cval=0, timer_idx=0)
        maker.enter()
        maker.interrupt()
        maker.leave()
        maker.put()
        maker.sleep()
    world = maker.made(tmp_path)
    check(world, narrowed(world))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", ["masked", "disabled", "other timer", "lost", "wfit"])
def test_waits_for_another_timer_are_no_bounds(tmp_path: Path, what: str, seed: int) -> None:
    maker = Maker(seed=seed)
    for index in range(80):
        odd = index % 2 == 1
        maker.load()
        maker.interrupt()
        maker.leave()
        cval = maker.cval
        maker.map()
        ctl = {"masked": 3, "disabled": 0}.get(what, 1) if odd else 1
        if odd and what == "lost":
            maker.lose(HOST, 1)
        maker.emit(HOST, SAVE, TID, ctl=ctl, cval=cval, timer_idx=1)
        maker.emit(HOST, SAVE, TID, ctl=1 if odd and what == "other timer" else 0, cval=cval - 5_000, timer_idx=0)
        if odd and ctl == 1 and what == "wfit":
            # longer than anything that a clock event measures: it is not believed
            maker.cval += 24_000_000 * 700
        elif odd:
            maker.cval -= 5_000
        maker.block()
        maker.cval = cval
        maker.step(30_000)
        maker.tick(HOST)
        maker.sleep()
    world = maker.made(tmp_path)
    found = narrowed(world)
    if what == "wfit":
        assert world.holds(found.interval)
        return
    check(world, found)
    assert found.factor > 3
