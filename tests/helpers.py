"""What several test files use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def need_tool(name: str) -> str:
    """Return the path of the program ``name``; skip the test where it is missing (fail if skips are off)."""
    path = shutil.which(name)
    need(path is not None, f"{name} is not installed")
    assert path is not None
    return path


def need(is_there: bool, reason: str) -> None:
    """Skip the test for ``reason`` where what it needs is not there (fail if skips are off)."""
    if is_there:
        return
    if os.environ.get("COUNTERPOINT_NO_SKIP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


RECORDINGS = Path(os.environ.get("COUNTERPOINT_RECORDINGS") or Path(__file__).parents[2] / "shared" / "data")
"""The folder of full-size recordings: one folder a pair, with its trace.dat files and its truth.json."""


def full_size_recordings() -> list[object]:
    """Parameters for a test over every recording in ``RECORDINGS``; one that skips where there is no folder."""
    if not RECORDINGS.is_dir():
        reason = "no folder of recordings (COUNTERPOINT_RECORDINGS)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    return [pytest.param(p, id=f"{p.parent.name}/{p.stem}") for p in sorted(RECORDINGS.glob("*/*.dat"))]
