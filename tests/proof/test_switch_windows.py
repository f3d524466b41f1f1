"""Windows of a host that recorded no kvm_entry and kvm_exit: when its threads were on a CPU."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from counterpoint.clocks.counter import to_signed
from counterpoint.outputs.perfetto import write_perfetto
from counterpoint.proof.fit import Thread, check
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.verdicts import Verdict
from counterpoint.proof.windows import FOREVER, HostActivity, RunWindows, WindowKind
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from writers.events import SCHED_SWITCH
from writers.masked import without
from writers.plain import Row, guest_file, host_file, runs
from writers.tracedat import Buffer, TraceFile
from writers.worlds import tiny_pair

A, B = 147, 148


def activity(path: Path, rows: list[Row], **options: object) -> HostActivity:
    return HostActivity(Recording.open(host_file(rows, **options).write(path / "host.dat")))  # type: ignore[arg-type]


def spans(windows: RunWindows) -> list[tuple[int | None, int | None, str]]:
    """The spans in host stamps: (lo, hi, "run" | "unknown"), None for an open end."""
    far = int(FOREVER)
    return [
        (None if lo <= -far else lo + windows.base, None if hi >= far else hi + windows.base, ("unknown", "run")[run])
        for lo, hi, run in zip(windows.lo.tolist(), windows.hi.tolist(), windows.is_run.tolist(), strict=True)
    ]


def on_cpu(*stays: tuple[int, int, int, int]) -> list[Row]:
    """The switches of stays (CPU, thread, to it, away), idle between them."""
    return [row for cpu, tid, to, away in stays for row in ((cpu, to, "in", tid), (cpu, away, "out", tid))]


def chain(path: Path, switches: dict[int, list[tuple[int, int, int]]]) -> HostActivity:
    """A host with these switches (stamp, from, to) of each CPU."""
    file = TraceFile(events=[SCHED_SWITCH], clock="x86-tsc", cpu_count=len(switches))
    file.buffers = [Buffer()]
    for cpu, row in switches.items():
        records = [(at, file.payload(SCHED_SWITCH, old, prev_pid=old, next_pid=new)) for at, old, new in row]
        file.buffers[0].cpus[cpu] = file.stream(records)
    return HostActivity(Recording.open(file.write(path / "host.dat")))


def test_windows_lie_between_the_switches_to_and_away(tmp_path: Path) -> None:
    found = activity(tmp_path, on_cpu((0, A, 100, 200), (0, A, 300, 450)))
    assert found.kind is WindowKind.SCHED_SWITCH
    assert found.tids.tolist() == [A]
    windows = found.windows(A)
    assert spans(windows) == [(None, 100, "unknown"), (100, 200, "run"), (300, 450, "run"), (450, None, "unknown")]
    assert windows.kind is WindowKind.SCHED_SWITCH
    assert windows.kind.edge_events == ("sched_switch", "sched_switch")
    with pytest.raises(KeyError, match="0 has no sched_switch"):
        found.windows(0)


def test_one_switch_ends_a_stay_and_begins_another(tmp_path: Path) -> None:
    found = chain(tmp_path, {0: [(100, 0, A), (200, A, B), (300, B, A), (400, A, 0)]})
    assert spans(found.windows(A))[1:-1] == [(100, 200, "run"), (300, 400, "run")]
    assert spans(found.windows(B)) == [(None, 200, "unknown"), (200, 300, "run"), (300, None, "unknown")]


def test_a_thread_that_moves(tmp_path: Path) -> None:
    rows = on_cpu((0, A, 100, 200), (1, A, 200, 300), (0, A, 305, 310))
    assert spans(activity(tmp_path, rows).windows(A))[1:-1] == [
        (100, 200, "run"), (200, 300, "run"), (305, 310, "run"),
    ]  # fmt: skip


def test_a_thread_that_runs_as_the_recording_begins_and_ends(tmp_path: Path) -> None:
    rows: list[Row] = [(0, 100, "out", A), *on_cpu((0, A, 200, 300)), (0, 400, "in", A)]
    assert spans(activity(tmp_path, rows).windows(A)) == [
        (None, 100, "unknown"), (200, 300, "run"), (400, None, "unknown"),
    ]  # fmt: skip


def test_threads_that_were_only_switched_away_from_are_no_candidates(tmp_path: Path) -> None:
    assert activity(tmp_path, [(0, 100, "out", B), *on_cpu((0, A, 200, 300))]).tids.tolist() == [A]


def test_with_kvm_events_the_switches_make_no_windows_and_no_candidates(tmp_path: Path) -> None:
    found = activity(tmp_path, [*on_cpu((0, A, 50, 250), (1, B, 90, 400)), *runs((0, A, 100, 200))])
    assert found.kind is WindowKind.KVM
    assert found.tids.tolist() == [A]
    assert spans(found.windows(A))[1] == (100, 200, "run")
    assert found.windows(A).kind.edge_events == ("kvm_entry", "kvm_exit")


def test_neither_kind_leaves_no_threads(tmp_path: Path) -> None:
    assert activity(tmp_path, [(0, 100, "mark", A)]).tids.tolist() == []


def test_a_lost_switch_is_unknown(tmp_path: Path) -> None:
    rows: list[Row] = [*on_cpu((0, A, 100, 200)), (0, 400, "mark", 0), (0, 600, "mark", 0), *on_cpu((0, A, 900, 950))]
    assert (400, 600, "unknown") in spans(activity(tmp_path, rows, lost={(0, 600): 4}).windows(A))
    rows = [(0, 100, "in", A), (0, 200, "mark", A), (0, 300, "mark", A), (0, 400, "out", A), *on_cpu((0, A, 500, 600))]
    found = spans(activity(tmp_path, rows, lost={(0, 300): 2}).windows(A))
    assert found[1:4] == [(100, 200, "run"), (200, 300, "unknown"), (300, 400, "run")]


def test_a_cpu_without_events_leaves_all_the_time_away_unknown(tmp_path: Path) -> None:
    found = activity(tmp_path, on_cpu((0, A, 100, 200), (0, A, 300, 450)), cpus=2)
    assert (200, 300, "unknown") in spans(found.windows(A))


def test_switches_that_are_missing_without_a_mark_are_seen(tmp_path: Path) -> None:
    # from 250 on something else ran than what was switched to
    found = chain(tmp_path, {0: [(100, 0, A), (150, A, 0), (250, 9, 0), (300, 0, A), (400, A, 0)]})
    assert (150, 250, "unknown") in spans(found.windows(A))
    found = chain(tmp_path, {0: [(100, 0, A), (150, A, 0), (250, 0, 9), (270, 9, 0), (300, 0, A), (400, A, 0)]})
    assert spans(found.windows(A))[1:-1] == [(100, 150, "run"), (300, 400, "run")]


@pytest.mark.parametrize("seed", range(40))
def test_no_true_event_is_ever_outside(tmp_path: Path, seed: int) -> None:
    """Hosts whose threads share CPUs and move, with losses, some without a CPU: every true event stays allowed."""
    rng = random.Random(seed)
    lost = rng.choice((0, 0, 7, 40))
    arch = rng.choice(("x86", "arm64"))
    host, _, truth = tiny_pair(
        seed=seed, arch=arch, vcpus=2, host_cpus=rng.choice((2, 3)), windows=40, guest_events=300, lost=lost,
        start=rng.choice((1_000_000, (1 << 64) - 2_000_000)), claims=False,
    )  # fmt: skip
    if rng.random() < 0.3:
        del host.buffers[0].cpus[rng.randrange(len(host.buffers[0].cpus))]
    found = HostActivity(without(Recording.open(host.write(tmp_path / "host.dat")), "kvm"))
    assert found.kind is WindowKind.SCHED_SWITCH
    for vcpu, tid in truth.threads.items():
        windows = found.windows(tid)
        stamps = np.array([to_signed(e.host - found.base) for e in truth.guest_events[vcpu]], np.int64)
        outcome = check(stamps, 0, Thread(windows))
        assert not outcome.violations
        assert outcome.inside or lost


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_a_pair_without_kvm_events_is_derived_within_the_bounds_of_scheduling(tmp_path: Path, arch: str) -> None:
    host, guest, truth = tiny_pair(arch=arch, vcpus=2, windows=600, guest_events=3000, claims=False)  # type: ignore[arg-type]
    recording = Recording.open(host.write(tmp_path / "host.dat"))
    guest.write(tmp_path / "guest.dat")
    with_kvm = sync(recording, tmp_path / "guest.dat")
    result = sync(without(recording, "kvm"), tmp_path / "guest.dat")
    assert any("only by when each thread" in w for w in result.guests[0].warnings)
    assert not any("only by when each thread" in w for w in with_kvm.guests[0].warnings)
    for wide, tight in zip(result.guests[0].vcpus, with_kvm.guests[0].vcpus, strict=True):
        assert wide.host_tid == tight.host_tid == truth.threads[wide.guest_cpu]
        (epoch,) = wide.epochs
        assert epoch.verdict is Verdict.DERIVED
        assert epoch.feasible is not None
        assert epoch.low is not None
        assert epoch.high is not None
        lo, hi = epoch.feasible
        assert lo <= truth.epochs[wide.guest_cpu][0][1] <= hi
        narrow = tight.epochs[0].feasible
        assert narrow is not None
        assert lo <= narrow[0] <= narrow[1] <= hi
        assert {epoch.low.host_to_event, epoch.high.host_from_event} == {"sched_switch"}
    write_perfetto(result, tmp_path / "out.pftrace", overwrite=False)
    assert (tmp_path / "out.pftrace").stat().st_size > 0


def test_another_hosts_switches_derive_nothing(tmp_path: Path) -> None:
    host, _, _ = tiny_pair(seed=1, vcpus=2, windows=600, claims=False)
    _, guest, _ = tiny_pair(seed=2, vcpus=2, windows=600, guest_events=3000, claims=False)
    guest.write(tmp_path / "guest.dat")
    result = sync(without(Recording.open(host.write(tmp_path / "host.dat")), "kvm"), tmp_path / "guest.dat")
    assert {v.verdict for v in result.guests[0].vcpus} <= {Verdict.UNBOUNDED, Verdict.AMBIGUOUS}
    assert not result.is_sound


def test_a_name_says_which_thread_to_report_on_and_proves_nothing(tmp_path: Path) -> None:
    stays = [(at, at + 5_000) for at in range(10_000, 200_000, 20_000)]
    rows = [row for cpu, tid in ((0, A), (1, B)) for lo, hi in stays for row in on_cpu((cpu, tid, lo, hi + cpu))]
    host = host_file(rows, cpus=2)
    host.cmdlines = {A: "CPU 0/KVM", B: "worker"}
    guest_file({0: [at + 7_000 for at, _ in stays[:3]]}).write(tmp_path / "guest.dat")
    recording = Recording.open(host.write(tmp_path / "host.dat"))
    assert ThreadPool(recording).named == {A: 0}
    (vcpu,) = sync(recording, tmp_path / "guest.dat").guests[0].vcpus
    assert (vcpu.host_tid, vcpu.matched_by) == (A, "comm")
    assert not vcpu.verdict.is_sound


@pytest.mark.parametrize(
    ("comm", "vcpu"),
    [("CPU 3/KVM", 3), ("fc_vcpu 1", 1), ("crosvm_vcpu12", 12), ("vcpu0", 0), ("kvm-vcpu-2", 2), ("worker", None)],
)
def test_names_of_vcpu_threads(tmp_path: Path, comm: str, vcpu: int | None) -> None:
    host = host_file(on_cpu((0, A, 100, 200)))
    host.cmdlines = {A: comm}
    assert ThreadPool(Recording.open(host.write(tmp_path / "host.dat"))).named.get(A) == vcpu


def test_hundreds_of_threads_are_excluded_quickly(tmp_path: Path) -> None:
    """Each of 600 threads runs for a while now and then; one of them is the vCPU."""
    rng, rows, mine, at = random.Random(3), [], [], 1_000_000
    for _ in range(12_000):
        at += rng.randint(1_000, 60_000)
        tid = rng.choice((A, rng.randint(1_000, 1_600)))
        end = at + rng.randint(2_000, 90_000)
        rows += on_cpu((0, tid, at, end))
        mine += [(at, end)] * (tid == A)
        at = end
    stamps = sorted(rng.randint(lo + 50, hi - 50) for lo, hi in mine for _ in range(rng.randint(0, 3)))
    guest_file({0: [s + 99_000_000 for s in stamps]}).write(tmp_path / "guest.dat")
    host = Recording.open(host_file(rows, cpus=1).write(tmp_path / "host.dat"))
    begin = time.process_time()
    (vcpu,) = sync(host, tmp_path / "guest.dat").guests[0].vcpus
    assert time.process_time() - begin < 10
    assert (vcpu.host_tid, vcpu.verdict) == (A, Verdict.DERIVED)
    (epoch,) = vcpu.epochs
    assert epoch.feasible is not None
    assert epoch.feasible[0] <= 99_000_000 <= epoch.feasible[1]
