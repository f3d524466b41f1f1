"""Simulated worlds with timers: each kind of anchor alone, and all together, hold the truth in every one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.proof.anchors.model import Side, Tightened
from counterpoint.proof.anchors.tighten import Anchors, Bounded
from counterpoint.proof.ticks import sure_rows
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.timeline.sync import SyncResult, sync

WORLDS, PER_TEST, QUICK = 200, 20, 20
Interval = tuple[int, int]


def options_of(seed: int) -> WorldOptions:
    """A random world of two clocks that one offset relates, with timers on both sides."""
    drawn = random_options(seed)
    raw = {"x86": ("x86-tsc",), "arm64": ("mono_raw", "mono_raw", "local")}[drawn.arch]
    plain: dict[str, Any] = {
        "clock": raw[seed % len(raw)],
        "guest_clock": "",
        "steps": 0,
        "migrate": False,
        "returns": 0,
        "khz_b": 0,
    }
    scaled = {"guest_khz": 0, "nested_khz": 0, "pvclock": False}
    return replace(drawn, **plain, **scaled, vtimers=True, kvm_events=True, events=4000)


def true_offsets(epochs: list[dict[str, Any]], windows: Interval) -> list[Interval]:
    """The true offsets that the windows hold, each as the least and the greatest that it may seem."""
    out = []
    for epoch in epochs:
        low, high = epoch.get("offset_range") or (epoch["offset"], epoch["offset"])
        turns = (0, 1 << 64, -1 << 64)
        out += [(low + t, high + t) for t in turns if windows[0] <= high + t and low + t <= windows[1]]
    return out


def judged(truth: dict[str, Any], result: SyncResult, trust_boot: bool) -> list[tuple[Tightened, Interval]]:
    """What anchors leave of every epoch of which the truth is certain, with the truth."""
    out = []
    for guest in truth["guests"]:
        proof = next(g for g in result.guests if f"{g.name}.dat" == guest["file"])
        host = next((g.recording for g in result.guests if g.name == proof.parent), result.host)
        epochs, right = [], []
        for known in guest["vcpus"]:
            vcpu = next((v for v in proof.vcpus if v.guest_cpu == known["guest_cpu"]), None)
            for epoch in vcpu.epochs if vcpu else ():
                windows = epoch.by_windows or epoch.feasible
                assert vcpu is not None
                if not epoch.verdict.is_sound or windows is None or epoch.fitted or vcpu.host_tid is None:
                    continue
                true = true_offsets(known["epochs"], windows)
                if len(true) == 1:
                    rows = sure_rows(proof.recording, epoch)
                    epochs.append(Bounded(vcpu.host_tid, vcpu.guest_cpu, windows, rows))
                    right += true
        assert proof.pool is not None
        threads = {bounded.tid: proof.pool.thread(bounded.tid).windows for bounded in epochs}
        anchors = Anchors(host, proof.recording, windows=threads.__getitem__, trust_boot=trust_boot)
        out += list(zip(anchors.tighten(epochs), right, strict=True))
    return out


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.long] * (n >= QUICK)) for n in range(0, WORLDS, PER_TEST)]
)
def test_every_bound_holds_the_truth(tmp_path: Path, first: int) -> None:
    wrong, kinds, narrowed = [], Counter[str](), 0
    for seed in range(first, first + PER_TEST):
        world = World(options_of(seed))
        truth = world.write(tmp_path / str(seed))
        parents = {Path(g["file"]).stem: g["parent"] for g in truth["guests"]}
        result = sync(*(tmp_path / str(seed) / m.file for m in world.machines), use_claims=False, parents=parents)
        for trust_boot in (True, False):
            for found, (low, high) in judged(truth, result, trust_boot):
                narrowed += found.factor > 1
                if not (found.interval[0] <= high and low <= found.interval[1]):
                    wrong.append(f"seed {seed}: {found.interval} without {low}..{high}")
                wrong += [f"seed {seed}: {note}" for note in found.notes]
                for anchor in (anchor for kind in found.found for anchor in kind.anchors):
                    kinds[anchor.kind] += 1
                    if anchor.bound > high if anchor.side is Side.LOW else anchor.bound < low:
                        wrong.append(f"seed {seed}: {anchor} excludes {low}..{high}")
    assert not wrong, "\n".join(wrong)
    assert narrowed > PER_TEST
    assert {"world switch", "virtual timer", "kvm_wait_lapic_expire", "kvm_pvclock_update"} <= set(kinds)
