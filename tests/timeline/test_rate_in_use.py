"""Whose rate turns the host's stamps into ns."""

from __future__ import annotations

from counterpoint.timeline.sync import sync
from writers.events import MARK
from writers.tracedat import Buffer, TraceFile


def recorded(path, clock, **more):
    file = TraceFile(events=[MARK], clock=clock, **more)
    rows = [(10**12 + i * 1000, file.payload(MARK, 1, n=i)) for i in range(20)]
    file.buffers = [Buffer("", cpus={0: file.stream(rows)})]
    file.write(path)
    return path


def test_a_guest_in_ns_says_nothing_of_the_hosts_ticks(tmp_path):
    host, guest = recorded(tmp_path / "host.dat", "x86-tsc"), recorded(tmp_path / "guest.dat", "mono_raw")

    result = sync(host, guest)

    assert result.rate is None
    assert not result.timeline.has_ns


def test_a_guest_on_the_same_counter_does(tmp_path):
    host = recorded(tmp_path / "host.dat", "x86-tsc")
    guest = recorded(tmp_path / "guest.dat", "x86-tsc", tsc2nsec=(1 << 30, 31, 0))

    assert sync(host, guest).rate.khz == 2_000_000
