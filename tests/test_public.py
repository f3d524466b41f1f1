"""The Python face."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import counterpoint

DATA = Path(__file__).parent / "data" / "x86-agent"


def test_every_public_name_is_there():
    for name in counterpoint.__all__:
        assert getattr(counterpoint, name) is not None

    assert sorted(counterpoint.__all__) == counterpoint.__all__
    with pytest.raises(AttributeError):
        _ = counterpoint.nonsense


def test_importing_the_package_imports_no_numpy():
    code = "import counterpoint, sys; assert 'numpy' not in sys.modules"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sync_returns_proofs_maps_and_columns():
    result = counterpoint.sync(DATA / "host.dat", DATA / "guest.dat")

    vcpu = result.guests[0].vcpus[0]
    assert (vcpu.host_tid, vcpu.verdict, vcpu.epochs[0].offset) == (191, "proved", -81892957611)
    timeline = result.timeline
    assert len(timeline) == len(result.host) + len(result.guests[0].recording)
    assert (np.diff(timeline.ts_ns) >= 0).all()
    assert set(timeline.machine.tolist()) == {0, 1}


def test_a_clock_map_goes_both_ways_and_states_its_bound():
    result = counterpoint.sync(DATA / "host.dat", DATA / "guest.dat")
    guest = result.guests[0].recording
    clock_map = result.guests[0].vcpus[0].clock_map
    stream = guest.streams[0]
    stamps = guest.stamp[stream.first : stream.last]

    host = clock_map.to_host(stamps)
    early, late = clock_map.bound(stamps)

    assert (clock_map.to_guest(host) == stamps).all()
    assert (host.astype(np.int64) - stamps.astype(np.int64) == 81892957611).all()
    assert ((early <= host) & (host <= late)).all()
    lo, hi = result.guests[0].vcpus[0].epochs[0].feasible
    assert (late - early == np.uint64(hi - lo)).all()
