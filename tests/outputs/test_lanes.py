"""vCPUs as lines of characters: each is what took most of its time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.contexts import Context
from counterpoint.analysis.states import State, vcpu_states
from counterpoint.commands.main import main
from counterpoint.outputs.lanes import SIGNS, dominant
from counterpoint.timeline.sync import SyncResult, sync

DATA = Path(__file__).parent.parent / "data" / "x86-agent"
FILES = [str(DATA / "host.dat"), str(DATA / "guest.dat")]


@pytest.fixture(scope="module")
def result() -> SyncResult:
    return sync(*FILES)


def test_each_column_is_what_took_most_of_its_time(result):
    for vcpu in vcpu_states(result):
        span = vcpu.end - int(vcpu.begin[0])
        edges = int(vcpu.begin[0]) + np.array([span * n // 61 for n in range(-2, 65)], np.int64)

        found = dominant(vcpu, edges).tolist()

        for low, high, kind in zip(edges.tolist(), edges[1:].tolist(), found, strict=False):
            took: Counter[int] = Counter()
            for begin, end, state, context in zip(
                vcpu.begin.tolist(), vcpu.ends.tolist(), vcpu.state.tolist(), vcpu.context.tolist(), strict=True
            ):
                took[len(State) if context == Context.IDLE else state] += max(0, min(end, high) - max(begin, low))
            took[State.UNKNOWN] += high - low - took.total()
            assert took[kind] == max(took.values())


def test_the_command_shows_them_in_80_columns(capsys, result):
    assert main(["show", *FILES, "--lanes"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("guest cpu 0 ")
    assert lines[2].startswith("guest cpu 1 ")
    assert SIGNS[State.HALTED] in lines[1]


def test_a_short_span_shows_single_states(capsys, result):
    vcpu = vcpu_states(result)[0]
    at = int(np.flatnonzero(vcpu.state == State.HALTED)[3])
    begin, end = int(vcpu.begin[at]) + result.timeline.base, int(vcpu.ends[at]) + result.timeline.base

    assert main(["show", *FILES, "--lanes", "--from", str(begin), "--to", str(end)]) == 0

    lane = capsys.readouterr().out.splitlines()[1].removeprefix("guest cpu 0 ")
    assert set(lane) == {SIGNS[State.HALTED]}


def test_a_host_alone_has_no_lanes(capsys):
    assert main(["show", FILES[0], "--lanes"]) == 2
    assert "--lanes: a guest's recording is needed" in capsys.readouterr().err
