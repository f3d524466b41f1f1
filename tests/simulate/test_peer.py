"""What is written opens in trace-cmd: the same events at the same stamps."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from counterpoint.traces.recording import Recording
from helpers import need_tool
from simulate.worlds import CASES, make

_EVENT = re.compile(r" *(.*?)-(\d+) +\[(\d+)\] *([\d.]+): (\w+): ")


@pytest.mark.peer
@pytest.mark.parametrize("name", [name for name in CASES if name != "zlib"])  # Debian's trace-cmd has no zlib
def test_trace_cmd_reads_every_event(tmp_path, name):
    made = make(tmp_path, **CASES[name])

    for machine in made.world.machines:
        recording = Recording.open(tmp_path / machine.file)
        command = [need_tool("trace-cmd"), "report", "-t", "--raw-ts", "-N", "-i", str(tmp_path / machine.file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        lines = [line for line in done.stdout.splitlines() if not line.startswith(("cpus=", "CPU:", "CPU "))]
        found = [_EVENT.match(line) for line in lines]
        assert None not in found
        assert len(found) == len(recording)
        theirs = sorted(
            (int(m[3]), int(m[4].replace(".", "")), n, m[5], int(m[2])) for n, m in enumerate(found) if m is not None
        )
        by_cpu: dict[int, list[tuple[int, str, int]]] = {}
        for cpu, stamp, _, event, pid in theirs:
            by_cpu.setdefault(cpu, []).append((stamp, event, pid))
        for stream in recording.streams:
            rows = np.arange(stream.first, stream.last)
            rows = rows[np.argsort(recording.stamp[rows], kind="stable")]
            ours = [
                (int(recording.stamp[r]), recording.event_name(int(recording.event_id[r])), int(recording.pid[r]))
                for r in rows.tolist()
            ]
            assert sorted(ours) == sorted(by_cpu.get(stream.cpu, []))
