"""docs/trace-cmd-offsets.md: its tables are those of these worlds, and trace-cmd's column is what trace-cmd prints."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import need_tool

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "trace_cmd_offsets.py"
PAGE = ROOT / "docs" / "trace-cmd-offsets.md"

_GUEST = re.compile(r" *guest\.dat: .*?-\d+ +\[(\d+)\] *([\d.]+): \w+: ")


def _load():
    spec = importlib.util.spec_from_file_location("trace_cmd_offsets", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


peers = _load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def outcomes(folder):
    return {outcome.case.name: outcome for outcome in peers.outcomes(folder)}


def test_the_page_says_what_comes_out(outcomes):
    text = PAGE.read_text(encoding="utf-8")

    wanted = f"python tools/{TOOL.name} docs/{PAGE.name} writes it anew"
    assert peers.page(text, list(outcomes.values())) == text, wanted


@pytest.mark.parametrize("case", peers.CASES, ids=lambda case: case.name)
def test_ours_is_within_its_bound_and_theirs_is_not(outcomes, case):
    outcome = outcomes[case.name]

    assert outcome.events > 300
    assert outcome.ours_ns <= outcome.bound_ns < 2000
    assert outcome.theirs_ns > 10 * outcome.bound_ns


@pytest.mark.peer
@pytest.mark.parametrize("case", peers.CASES, ids=lambda case: case.name)
def test_trace_cmd_shows_what_its_formula_gives(outcomes, folder, case):
    outcome = outcomes[case.name]
    files = [argument for name in ("host.dat", "guest.dat") for argument in ("-i", str(folder / case.name / name))]
    command = [need_tool("trace-cmd"), "report", "-t", "-N", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    found = {}
    for line in filter(None, map(_GUEST.match, done.stdout.splitlines())):
        found.setdefault(int(line[1]), []).append(int(line[2].replace(".", "")))
    recording = outcome.result.guests[0].recording
    assert sum(map(len, found.values())) == outcome.events
    for stream in recording.streams:
        samples = tuple(outcome.samples[stream.cpu]) if outcome.samples else ()
        stamps = recording.stamp[stream.first : stream.last].tolist()
        assert found[stream.cpu] == [peers.shown(stamp, samples, case.flags) for stamp in stamps]
