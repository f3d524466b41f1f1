"""The rooms of the house: imports go one way only (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "counterpoint"
ZIPAPP = (
    "errors.py",
    "dat_layout.py",
    "commands/main.py",
    "commands/common.py",
    "commands/agent.py",
    "commands/offsets.py",
    "commands/doctor.py",
    "commands/record.py",
)
ROOMS = ("clocks", "traces", "claims", "proof", "timeline", "analysis", "outputs", "commands")


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("counterpoint.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_to_its_left(room):
    allowed = {"errors", "_version", "dat_layout", *ROOMS[: ROOMS.index(room) + 1]}
    if room == "commands":
        allowed |= {"simulate", "live"}

    wrong = {
        f"{path.name} imports {name}"
        for path in (SOURCE / room).glob("*.py")
        for name in imported(path)
        if name.split(".")[1] not in allowed
    }

    assert wrong == set()


def test_worlds_share_nothing_with_what_proves():
    wrong = {
        f"{path.name} imports {name}"
        for path in (SOURCE / "simulate").glob("*.py")
        for name in imported(path)
        if name.split(".")[1] not in {"simulate", "clocks", "traces", "errors", "dat_layout"}
    }

    assert wrong == set()


def test_what_runs_live_needs_nothing_installed():
    # counterpoint.clocks has nothing yet that live needs; of it only modules without numpy may be used
    wrong = {
        f"{path.name} imports {name}"
        for path in (SOURCE / "live").glob("*.py")
        for name in imported(path)
        if name.split(".")[1] not in {"live", "errors", "dat_layout", "_version"}
    }

    assert wrong == set()


def test_what_runs_live_imports_the_standard_library_alone():
    parts = [*(SOURCE / "live").glob("*.py"), *(SOURCE / name for name in ZIPAPP)]
    wrong = {
        f"{path.name} imports {name}"
        for path in parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name and name.split(".")[0] not in {"counterpoint", *sys.stdlib_module_names}
    }

    assert wrong == set()


def test_the_command_answers_without_numpy():
    for name in ("commands/main.py", "commands/common.py", "__init__.py", "errors.py"):
        top = ast.parse((SOURCE / name).read_text()).body
        heavy = [
            alias.name
            for node in top
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if getattr(node, "module", alias.name) in ("numpy", "rich")
        ]

        assert heavy == []
