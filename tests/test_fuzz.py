"""Inputs that once did harm, and a few new ones for each reader; ``make fuzz`` makes thousands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.__main__ import attempt
from fuzz.mutate import mutated
from fuzz.targets import TARGETS

KEPT = sorted((Path(__file__).parent / "data" / "fuzz").glob("*-*"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_what_once_did_harm_does_none(path):
    assert attempt(path.name.partition("-")[0], path.read_bytes(), 60) is None


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_are_nearly_right_are_read_or_refused(target):
    seeds = TARGETS[target].seeds()
    rng = random.Random(target)
    for data in [*seeds, *(mutated(rng, seeds) for _ in range(20))]:
        assert attempt(target, data, 60) is None
