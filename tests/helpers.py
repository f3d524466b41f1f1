"""What several test files use."""

from __future__ import annotations

import os
import shutil

import pytest


def need_tool(name: str) -> str:
    """Return the path of the program ``name``; skip the test where it is missing (fail if skips are off)."""
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed"
    if os.environ.get("COUNTERPOINT_NO_SKIP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
