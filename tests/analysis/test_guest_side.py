"""Wakeups, timers, IPIs, halts and what a guest accounted: scripts, and real recordings followed line by line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.halt_polls import halts
from counterpoint.analysis.ipis import ipis
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import State, vcpu_states
from counterpoint.analysis.steal import accounted, time_in
from counterpoint.analysis.timer_lateness import expiries
from counterpoint.analysis.wakeups import wakeups
from counterpoint.outputs.text import EventText
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from writers.scripts import kind, placed, scripted

DATA = Path(__file__).parent.parent / "data"
EVENTS = {
    "switch": kind(20, "sched:sched_switch", "pid_t prev_pid", "long prev_state", "pid_t next_pid"),
    "waking": kind(21, "sched:sched_waking", "pid_t pid", "int target_cpu"),
    "start": kind(22, "timer:hrtimer_start", "u64 hrtimer", "u64 function", "s64 expires", "s64 softexpires"),
    "expire": kind(23, "timer:hrtimer_expire_entry", "u64 hrtimer", "s64 now", "u64 function"),
    "raise": kind(24, "ipi:ipi_raise", "mask target_cpus", "unsigned long reason"),
    "enter": kind(25, "ipi:ipi_entry", "unsigned long reason"),
    "runtime": kind(26, "sched:sched_stat_runtime", "pid_t pid", "u64 runtime"),
    "halt": kind(27, "kvm:kvm_vcpu_wakeup", "u64 ns", "bool waited", "bool valid"),
    "poll": kind(28, "kvm:kvm_halt_poll_ns", "bool grow", "u32 vcpu_id", "u32 new", "u32 old"),
}  # fmt: skip


def of(path: Path, *script: str, **options: object) -> Placed:
    return placed(scripted(path / "guest.dat", EVENTS, *script, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["x86-agent", "arm64-monoraw"])
def result(request) -> SyncResult:
    return sync(DATA / request.param / "host.dat", DATA / request.param / "guest.dat")


def lines(machine: Placed, *names: str) -> list[tuple[int, int, str, str]]:
    """(time, CPU, name, text) of some events in order."""
    recording: Recording = machine.recording
    text = EventText(recording)
    found = []
    for event_id in recording.counts_by_id():
        if recording.event_name(event_id) in names:
            rows = recording.rows(event_id)
            rows = rows[machine.machine.placed[rows]]
            times, cpus = machine.when(rows).tolist(), machine.cpu(rows).tolist()
            told = zip(times, rows.tolist(), cpus, text.render(event_id, rows), strict=True)
            found += [(when, row, cpu, recording.event_name(event_id), line) for when, row, cpu, line in told]
    return [(when, cpu, name, line) for when, _, cpu, name, line in sorted(found)]


def test_wakeups_of_real_guests(result):
    guest = Placed(result.timeline.machines[1], result.timeline.base)
    asleep: set[int] = set()
    woken: dict[int, int] = {}
    expected = []
    for when, cpu, name, line in lines(guest, "sched_switch", "sched_waking"):
        if name == "sched_waking":
            pid = int(re.search(r" pid=(\d+)", line)[1])
            if pid in asleep:
                woken.setdefault(pid, when)
            continue
        previous, state, following = re.search(r"prev_pid=(\d+) .*prev_state=(\S+) ==> .*next_pid=(\d+)", line).groups()
        if int(following) in woken:
            expected.append((int(following), woken.pop(int(following)), when, cpu))
        asleep.discard(int(following))
        if not state.startswith("R"):
            asleep.add(int(previous))

    found = wakeups(guest)

    columns = (found.pid, found.woken, found.ran, found.cpu)
    assert sorted(zip(*(c.tolist() for c in columns), strict=True)) == sorted(expected)
    assert len(expected) > 50


def test_timers_of_real_guests(result):
    guest = Placed(result.timeline.machines[1], result.timeline.base)
    started: dict[str, tuple[int, int]] = {}
    expected = []
    for when, cpu, name, line in lines(guest, "hrtimer_start", "hrtimer_expire_entry"):
        timer = re.search(r"hrtimer=(\S+)", line)[1]
        if name == "hrtimer_start":
            started[timer] = cpu, int(re.search(r" expires=(\d+)", line)[1])
        elif started.get(timer, (-1, 0))[0] == cpu:
            expected.append((when, int(re.search(r"now=(\d+)", line)[1]) - started[timer][1]))

    found = expiries(guest)

    assert sorted(zip(found.when.tolist(), found.late_ns.tolist(), strict=True)) == sorted(expected)
    assert len(expected) > 100
    # what came early came within its slack
    assert (found.late_ns >= -found.slack_ns).all()


def test_who_is_woken_twice_waited_since_the_first(tmp_path):
    found = wakeups(
        of(
            tmp_path,
            "0 10 switch 5 prev_pid=5 prev_state=1 next_pid=0",
            "1 20 waking 9 pid=5",
            "1 25 waking 9 pid=5",
            "0 40 switch 0 next_pid=5",
            # about to sleep and woken: it did not
            "1 50 waking 9 pid=5",
            "0 60 switch 5 prev_pid=5 prev_state=0 next_pid=0",
            "0 70 switch 0 next_pid=5",
            # of 6 nothing is known before
            "0 80 waking 5 pid=6",
            "0 90 switch 5 prev_pid=5 prev_state=2 next_pid=6",
        )
    )

    assert [found.pid.tolist(), found.woken.tolist(), found.ran.tolist()] == [[5], [20], [40]]
    assert (found.waker.tolist(), found.cpu.tolist()) == ([1], [0])


def test_no_wakeup_and_no_expiry_across_lost_events(tmp_path):
    script = (
        "0 10 switch 5 prev_pid=5 prev_state=1 next_pid=0", "0 20 waking 9 pid=5", "1 30 waking 9 pid=7",
        "0 40 switch 0 next_pid=5", "0 50 start 5 hrtimer=1 expires=90", "1 55 waking 9 pid=7",
        "0 60 expire 5 hrtimer=1 now=100",
    )  # fmt: skip
    kept, lost = of(tmp_path, *script), of(tmp_path, *script, lost={(1, 30): 1, (1, 55): 1})

    assert [len(wakeups(kept)), len(expiries(kept))] == [1, 1]
    assert [len(wakeups(lost)), len(expiries(lost))] == [0, 0]


def test_a_timer_is_late_against_its_last_start_on_its_cpu(tmp_path):
    found = expiries(
        of(
            tmp_path,
            "0 10 start 1 hrtimer=1 expires=100 softexpires=90",
            "0 20 start 1 hrtimer=1 expires=200 softexpires=150",
            "0 30 expire 1 hrtimer=1 now=180 function=7",
            "0 40 start 1 hrtimer=1 expires=300 softexpires=300",
            "1 50 expire 1 hrtimer=1 now=400",  # another CPU's
            "0 60 start 1 hrtimer=2 expires=9223372036854775807",
            "0 70 expire 1 hrtimer=2 now=500",  # KTIME_MAX is no time
            "0 80 expire 1 hrtimer=3 now=500",  # never started
        )
    )

    assert (found.late_ns.tolist(), found.slack_ns.tolist(), found.function.tolist()) == ([-20], [50], [7])


def test_an_ipi_waits_since_its_first_raise(tmp_path):
    machine = of(
        tmp_path,
        "0 10 raise 1 target_cpus=2,0 reason=77",
        "1 20 enter 1 reason=77",
        "0 35 raise 1 target_cpus=6,0 reason=77",
        "2 36 raise 1 target_cpus=2,0 reason=77",
        "1 50 enter 1 reason=77",
        "1 60 enter 1 reason=88",
        "2 70 enter 1 reason=77",
        "1 80 raise 1 target_cpus=0,1 reason=77",
        cpus=65,
    )

    found = ipis(machine, np.full(len(machine.recording), 5, np.int64))
    assert found is not None
    columns = (found.sender, found.cpu, found.reason, found.raised, found.entered, found.width)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == [(0, 1, 77, 35, 50, 10)]

    # as wide as it took from the entry before: which came first is not sure
    assert len(ipis(machine, np.full(len(machine.recording), 8, np.int64))) == 0


def test_ipis_of_a_real_guest():
    result = sync(DATA / "arm64-monoraw" / "host.dat", DATA / "arm64-monoraw" / "guest.dat")
    guest = Placed(result.timeline.machines[1], result.timeline.base)
    pending: dict[tuple[int, str], int] = {}
    before: set[tuple[int, str]] = set()
    expected = []
    for when, cpu, name, line in lines(guest, "ipi_raise", "ipi_entry"):
        reason = re.search(r"\((.*)\)", line)[1]
        if name == "ipi_raise":
            # one CPU each
            pending.setdefault((int(re.search(r"target_mask=(\d+) ", line)[1]), reason), when)
            continue
        raised = pending.pop((cpu, reason), None)
        if raised is not None and (cpu, reason) in before:
            expected.append((cpu, raised, when))
        before.add((cpu, reason))

    found = ipis(guest, result.timeline.details[1].width)

    told = set(zip(found.cpu.tolist(), found.raised.tolist(), found.entered.tolist(), strict=True))
    assert told <= set(expected)
    # few are left out as not sure
    assert len(told) > 0.9 * len(expected) > 10


def test_how_long_a_halt_was_to_poll(tmp_path):
    host = of(
        tmp_path,
        "0 10 halt 147 ns=5 waited=1 valid=1",
        "0 19 poll 147 new=10000 old=0 grow=1",
        "0 20 halt 147 ns=9 waited=1 valid=1",
        "0 30 halt 147 ns=7 waited=0 valid=1",
        "0 38 poll 147 new=20000 old=10000 grow=1",
        "0 39 poll 147 new=0 old=20000",
        "0 40 halt 147 ns=3 waited=1",
        "0 50 halt 147 ns=3 waited=1",
        "1 45 halt 148 ns=1 waited=1",
    )

    found = halts(host)

    assert found.tid.tolist() == [147] * 5 + [148]
    assert found.poll_ns.tolist() == [0, 0, 10000, 10000, 0, -1]
    assert found.slept.tolist() == [True, True, False, True, True, True]


def test_what_a_guest_accounted(tmp_path):
    machine = of(
        tmp_path,
        "0 5 runtime 5 pid=5 runtime=900",  # before the first switch
        "0 10 switch 4 prev_pid=4 next_pid=5",
        "0 20 runtime 5 pid=5 runtime=7",
        "0 29 runtime 5 pid=5 runtime=6",
        "0 30 switch 5 prev_pid=5 next_pid=6",
        "0 40 switch 6 prev_pid=6 next_pid=5",  # nothing was accounted to 6
        "1 42 runtime 5 pid=5 runtime=900",  # another CPU's
        "0 50 runtime 5 pid=8 runtime=900",  # another task's
        "0 60 switch 5 prev_pid=5 next_pid=0",
    )

    found = accounted(machine)

    columns = (found.pid, found.cpu, found.begin, found.end, found.accounted_ns)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == [(5, 0, 10, 30, 13)]


def test_time_in_states_is_that_of_each_instant(result):
    vcpu = vcpu_states(result)[0]
    random = np.random.default_rng(3)
    edges = np.unique(random.integers(int(vcpu.begin[0]) - 1000, vcpu.end + 1000, 40))
    begin, end = edges[:-1:2], edges[1::2]

    found = time_in(vcpu, begin, end)

    expected = dict.fromkeys(State, 0)
    for at, until, state in zip(vcpu.begin.tolist(), vcpu.ends.tolist(), vcpu.state.tolist(), strict=True):
        for lo, hi in zip(begin.tolist(), end.tolist(), strict=True):
            expected[State(state)] += max(0, min(until, hi) - max(at, lo))
    assert dict(zip(State, found.tolist(), strict=True)) == expected
