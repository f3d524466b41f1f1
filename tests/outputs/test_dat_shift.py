"""TIME_SHIFT options: that trace-cmd puts every event where it belongs, or why it could not."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from counterpoint.outputs.dat_shift import time_shift_of
from counterpoint.timeline.merge import Machine
from counterpoint.traces.container import open_container
from counterpoint.traces.recording import Recording
from counterpoint.traces.write_copy import copy_with_options
from counterpoint.traces.write_options import time_shift_option
from helpers import need_tool
from writers.events import MARK
from writers.tracedat import Buffer, TraceFile

BIG = 1 << 62


def machine(folder, cpus, version=7):
    """A machine whose CPUs have events at (own stamp, host stamp)."""
    file = TraceFile(events=[MARK], version=version, cpu_count=4)
    pages = {
        # a page each: stamps may step back between them
        cpu: [page for own, _ in events for page in file.stream([(own, file.payload(MARK, 1))])]
        for cpu, events in cpus.items()
    }
    file.buffers = [Buffer(cpus=pages)]
    recording = Recording.open(file.write(folder / "guest.dat"))
    host = np.array([there for events in cpus.values() for _, there in events], np.uint64)
    one = np.ones(len(recording), np.bool_)
    return Machine("guest", recording, None, host, one, one)


def shown(made, shift, folder):
    """The stamps that trace-cmd shows, CPU by CPU."""
    container = open_container(made.recording.path)
    path = folder / "copy.dat"
    with path.open("wb") as file:
        options = [(o.id, o.data) for o in container.options]
        copy_with_options(container, [*options, time_shift_option(shift)], file)
    out = subprocess.run([need_tool("trace-cmd"), "report", "-t", "-i", str(path)], capture_output=True, check=True)
    found: dict[int, list[int]] = {}
    for cpu, stamp in re.findall(r"\[(\d+)\] *(\d+): ", out.stdout.decode()):
        found.setdefault(int(cpu), []).append(int(stamp))
    return found


@pytest.mark.peer
@pytest.mark.parametrize(
    "cpus",
    [
        {0: [(100, 1100), (200, 1200)], 1: [(100, 5100)]},
        {0: [(100, 1100), (200, 2200), (300, 2300)]},
        {0: [(100, 1100), (200, 2200), (300, 900_300), (400, 900_400)], 1: [(5, 5)]},
        {0: [(100, 1100), (500, 1500), (300, 1900), (310, 1910)]},
        {0: [(BIG, 7), (BIG + 9, 16)]},
        {1: [(100, 1100)], 3: [(100, 1101), (110, 1111)]},
    ],
    ids=["differ", "two", "three", "back", "far", "holes"],
)
def test_trace_cmd_shows_each_event_where_it_belongs(tmp_path, cpus):
    made = machine(tmp_path, cpus)

    shift = time_shift_of(made, 1)

    assert not isinstance(shift, str)
    assert all(shift.cpus)
    wanted = {cpu: [host for _, host in events] for cpu, events in cpus.items()}
    assert {c: sorted(s) for c, s in shown(made, shift, tmp_path).items()} == {c: sorted(s) for c, s in wanted.items()}


@pytest.mark.parametrize(
    ("cpus", "why"),
    [
        ({0: [(100, 1100), (100, 1200)]}, "one stamp lie at different times"),
        ({0: [(2 * BIG, 7), (2 * BIG + 9, 17)]}, "beyond 2^63"),
        ({0: [(100 + n, 1000 + 3 * n) for n in range(300)]}, "not one number"),
        ({}, "no events"),
    ],
    ids=["twice", "far", "scaled", "empty"],
)
def test_why_there_is_none(tmp_path, cpus, why):
    assert why in time_shift_of(machine(tmp_path, cpus), 1)


@pytest.mark.parametrize("version", [6, 7])
def test_a_cpu_without_events_has_a_table_too(tmp_path, version):
    shift = time_shift_of(machine(tmp_path, {0: [(100, 1100)], 2: [(100, 1101)]}, version=version), 1)

    assert not isinstance(shift, str)
    assert [samples[0].offset for samples in shift.cpus] == [1000, 1000, 1001]


def test_an_event_without_a_place_cannot_be_left_out_by_a_shift(tmp_path):
    made = machine(tmp_path, {0: [(100, 1100), (110, 1110)]})
    made.placed[0] = False

    assert time_shift_of(made, 1) == "1 of its events are on no timeline: they are left out"
