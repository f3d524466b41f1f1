"""A few simulated worlds judged by their truth; ``make worlds`` judges 500."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulate.judge import judge

SEEDS = (125, 163, 302, 316, 434, 442)
"""Worlds of which something false was said once."""


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_of_a_world_is_true(tmp_path: Path, seed: int) -> None:
    found = judge(seed, tmp_path, wrong_claims=False)

    assert not found.complaints
    assert found.bounded > 0
