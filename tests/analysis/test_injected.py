"""``why`` on small worlds in which one known cause made a task late: it comes first, none is made up."""

from __future__ import annotations

import os

import pytest

from analysis.injected import KINDS, judge, make

FULL = os.environ.get("COUNTERPOINT_FULL") == "1"


@pytest.mark.parametrize("seed", range(300 if FULL else 2 * len(KINDS)))
def test_the_cause_is_named_first_and_its_share_is_right(seed, tmp_path):
    assert judge(make(seed, tmp_path)) == []


@pytest.mark.parametrize("seed", range(1000, 1100 if FULL else 1004))
def test_a_quiet_world_has_no_invented_cause(seed, tmp_path):
    assert judge(make(seed, tmp_path, quiet=True)) == []
