"""How long a tick is, from the recording itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording
from writers.events import HRTIMER_EXPIRE_ENTRY, MARK
from writers.tracedat import Buffer, TraceFile

DATA = Path(__file__).parent.parent / "data"


def recorded(tmp_path, rows, **more) -> Recording:
    file = TraceFile(events=[HRTIMER_EXPIRE_ENTRY, MARK], clock="x86-tsc", **more)
    payloads = [
        (stamp, file.payload(HRTIMER_EXPIRE_ENTRY, 1, hrtimer=1, now=now, function=function))
        for stamp, now, function in rows
    ]
    file.buffers = [Buffer("", cpus={0: file.stream(payloads)})]
    file.write(tmp_path / "t.dat")
    return Recording.open(tmp_path / "t.dat")


def test_a_clock_in_ns_needs_no_rate():
    assert rate_of(Recording.open(DATA / "arm64-monoraw" / "host.dat")).khz == 1_000_000


def test_host_and_guest_tell_the_same_rate():
    host, guest = (rate_of(Recording.open(DATA / "x86-agent" / name)) for name in ("host.dat", "guest.dat"))

    assert abs(host.khz - guest.khz) <= 3
    assert 2_596_101 <= host.khz <= 2_596_137  # what the kernels of this machine found, boot by boot
    assert host.source == "hrtimer_expire_entry"


def test_late_timers_do_not_bend_the_rate(tmp_path):
    # GIVEN a counter of 3 GHz, and timers that are late by up to 9 ms, the worst at both ends
    late = [9_000_000, 5_000, 700_000, 5_000, 1_000_000, 5_000, 80_000, 5_000, 8_000_000]
    rows = [(3 * (i * 10**9 + ns) + 10**12, i * 10**9, 7) for i, ns in enumerate(late)]

    rate = rate_of(recorded(tmp_path, rows))

    assert rate.khz == 3_000_000


def test_a_clock_that_stood_still_once_does_not_bend_the_rate(tmp_path):
    # GIVEN a VM that was moved after 12.5 of 20 s: its counter stood still for a second that its ktime did not see
    rows = [(3 * i * 10**8 + 3 * 10**9 * (i > 125) + 10**12, i * 10**8, 7) for i in range(200)]

    assert rate_of(recorded(tmp_path, rows)).khz == 3_000_000


def test_timers_of_another_clock_base_do_not_count(tmp_path):
    rows = [(3 * i * 10**9 + 10**12, i * 10**9, 7) for i in range(1, 9)]
    rows += [(3 * 9 * 10**9 + 10**12, 1_700_000_000 * 10**9, 8)]

    assert rate_of(recorded(tmp_path, rows)).khz == 3_000_000


def test_tsc2nsec_goes_first(tmp_path):
    rows = [(3 * i * 10**9 + 10**12, i * 10**9, 7) for i in range(1, 9)]

    rate = rate_of(recorded(tmp_path, rows, tsc2nsec=(1 << 30, 31, 0)))

    assert (rate.khz, rate.source) == (2_000_000, "tsc2nsec")


@pytest.mark.parametrize("rows", [[], [(10**12, 5, 7)], [(10**12, 5, 7), (10**12 + 300, 105, 7)]])
def test_without_a_span_the_rate_is_not_known(tmp_path, rows):
    assert rate_of(recorded(tmp_path, rows)) is None


def test_times_that_run_backwards_give_no_rate(tmp_path):
    rows = [(10**12 + i * 10**9, -i * 10**12, 7) for i in range(8)]

    assert rate_of(recorded(tmp_path, rows)) is None


@pytest.mark.parametrize("tsc2nsec", [(0, 10, 0), ((1 << 32) - 1, 0, 0), (1, 32, 0), (1 << 31, 40, 0)])
def test_no_counter_runs_at_what_a_file_may_say(tmp_path, tsc2nsec):
    assert rate_of(recorded(tmp_path, [], tsc2nsec=tsc2nsec)) is None


def test_timers_that_were_written_over_give_no_rate(tmp_path):
    # ns that run 2^31 times as fast as the counter
    rows = [(10**12 + i * 10, i << 34, 7) for i in range(8)]

    assert rate_of(recorded(tmp_path, rows)) is None
