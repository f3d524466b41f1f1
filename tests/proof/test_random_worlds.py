"""Random small worlds over all features: nothing that is called sound is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from counterpoint.clocks.counter import to_signed
from counterpoint.proof.verdicts import Verdict
from counterpoint.timeline.sync import SyncResult
from proof.random_worlds import World, complaints, random_world, true_offsets, wrong_claims

SEEDS, PER_TEST, QUICK = 220, 10, 50


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.long] * (n >= QUICK)) for n in range(0, SEEDS, PER_TEST)]
)
def test_what_is_said_of_a_world_is_true(tmp_path: Path, first: int) -> None:
    found = []
    for seed in range(first, first + PER_TEST):
        world = random_world(seed, tmp_path)
        blind = world.sync(use_claims=False)
        for use_claims in (True, False):
            result = world.sync() if use_claims else blind
            found += [f"seed {seed}, claims {use_claims}: {text}" for text in complaints(world, result)]
            found += [f"seed {seed}: {text}" for text in wrong_claims(world, result)]
        found += [f"seed {seed}: {text}" for text in _typed(world, blind)]
    assert not found, "\n".join(found)


def _typed(world: World, blind: SyncResult) -> list[str]:
    """Claims typed by hand, right and wrong: what is wrong about the answers."""
    rng = random.Random(world.seed)
    vcpu = rng.choice(blind.guests[0].vcpus)
    if not vcpu.verdict.is_sound or len(world.truth.epochs[vcpu.guest_cpu]) > 1:
        return []
    epoch = vcpu.epochs[0]
    assert epoch.feasible is not None
    width = epoch.feasible[1] - epoch.feasible[0]
    truth = to_signed(next(iter(true_offsets(world, vcpu, blind).values())))
    off = rng.choice((-1, 1)) * (width + 1 + int(10 ** rng.uniform(0, 15)))
    out = []
    for value, wanted in ((truth, Verdict.PROVED), (to_signed(truth + off), Verdict.REFUTED)):
        result = world.sync(offsets=[f"{vcpu.guest_cpu}={value}"])
        again = result.guests[0].vcpus[vcpu.guest_cpu]
        proof = next(c for c in again.claims if c.claim.source == "given")
        if proof.verdict is not wanted:
            out.append(f"--offset {vcpu.guest_cpu}={value} (truth {truth}, width {width}) is {proof.verdict}")
        if wanted is Verdict.REFUTED and (again.verdict is not Verdict.REFUTED or result.is_sound):
            out.append(f"--offset {vcpu.guest_cpu}={value} is refuted, and the vCPU {again.verdict}")
    return out
