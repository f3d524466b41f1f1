"""Run windows of small hosts: what was seen, what was not, and what neither proves nor refutes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from counterpoint.clocks.counter import to_signed
from counterpoint.proof.fit import Thread, check
from counterpoint.proof.windows import FOREVER, HostActivity, RunWindows
from counterpoint.traces.recording import Recording
from writers.plain import Row, host_file, random_runs, runs

A, B = 147, 148


def windows_of(path: Path, rows: list[Row], tid: int = A, **options: object) -> RunWindows:
    """The windows of a thread in a host with these events."""
    recording = Recording.open(host_file(rows, **options).write(path / "host.dat"))  # type: ignore[arg-type]
    return HostActivity(recording).windows(tid)


def spans(windows: RunWindows) -> list[tuple[int | None, int | None, str]]:
    """The spans in host stamps: (lo, hi, "run" | "unknown"), None for an open end."""
    far = int(FOREVER)
    return [
        (
            None if lo <= -far else lo + windows.base,
            None if hi >= far else hi + windows.base,
            "run" if run else "unknown",
        )
        for lo, hi, run in zip(windows.lo.tolist(), windows.hi.tolist(), windows.is_run.tolist(), strict=True)
    ]


def row(cpu: int, stamp: int, kind: str, tid: int = A) -> Row:
    return (cpu, stamp, kind, tid)


def test_windows_lie_between_entry_and_exit(tmp_path: Path) -> None:
    found = windows_of(tmp_path, runs((0, A, 100, 200), (0, A, 300, 450)))
    assert spans(found) == [(None, 100, "unknown"), (100, 200, "run"), (300, 450, "run"), (450, None, "unknown")]
    assert (found.first + found.base, found.last + found.base, found.count) == (100, 450, 2)


def test_each_thread_has_its_own(tmp_path: Path) -> None:
    rows = runs((0, A, 100, 200), (1, B, 150, 350), (0, A, 300, 400))
    assert spans(windows_of(tmp_path, rows, A))[1:-1] == [(100, 200, "run"), (300, 400, "run")]
    assert spans(windows_of(tmp_path, rows, B))[1:-1] == [(150, 350, "run")]


def test_a_thread_without_kvm_events_has_none(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="999"):
        windows_of(tmp_path, runs((0, A, 100, 200)), 999)


def test_a_recording_that_begins_in_guest_mode_or_ends_there(tmp_path: Path) -> None:
    rows = [row(0, 100, "exit"), *runs((0, A, 200, 300)), row(0, 400, "entry")]
    assert spans(windows_of(tmp_path, rows)) == [
        (None, 100, "unknown"), (200, 300, "run"), (400, None, "unknown"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["entry", "exit"])
def test_two_of_a_kind_in_a_row_leave_the_time_between_unknown(tmp_path: Path, kind: str) -> None:
    rows = [
        *runs((0, A, 100, 200)),
        row(0, 300, "entry"),
        row(0, 400, kind),
        *([row(0, 500, "exit")] * (kind == "entry")),
    ]
    if kind == "exit":
        rows.append(row(0, 500, "exit"))
    between = (300, 400, "unknown") if kind == "entry" else (400, 500, "unknown")
    assert between in spans(windows_of(tmp_path, rows))


def test_entry_and_exit_on_different_cpus_are_no_window(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200)), row(0, 300, "entry"), row(1, 400, "exit"), *runs((1, A, 500, 600))]
    assert (300, 400, "unknown") in spans(windows_of(tmp_path, rows))


def test_a_window_of_no_length(tmp_path: Path) -> None:
    found = windows_of(tmp_path, runs((0, A, 100, 200), (0, A, 300, 300), (0, A, 300, 400)))
    assert spans(found)[1:-1] == [(100, 200, "run"), (300, 300, "run"), (300, 400, "run")]
    lo, hi = found.allowed()
    assert (lo[1:] > hi[:-1]).all()


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    top = 1 << 64
    found = windows_of(
        tmp_path, runs((0, A, top - 300, top - 200), (0, A, top - 100, top + 100), (0, A, top + 200, top + 300))
    )
    assert [hi - lo for lo, hi, _ in ((s[0], s[1], s[2]) for s in spans(found)[1:-1])] == [100, 200, 100]  # type: ignore[operator]


# -- losses

GAP = [*runs((0, A, 100, 200)), row(0, 400, "mark", 0), row(0, 600, "mark", 0), *runs((0, A, 900, 950))]


@pytest.mark.parametrize("count", [17, -1])
def test_a_loss_on_its_cpu_is_unknown_and_no_more(tmp_path: Path, count: int) -> None:
    found = windows_of(tmp_path, GAP, lost={(0, 600): count})
    assert (400, 600, "unknown") in spans(found)
    assert (200, 400) not in [s[:2] for s in spans(found)]


def test_a_loss_cuts_a_window(tmp_path: Path) -> None:
    rows = [row(0, 100, "entry"), row(0, 200, "mark", 0), row(0, 300, "mark", 0), row(0, 400, "exit")]
    found = windows_of(tmp_path, [*rows, *runs((0, A, 500, 600))], lost={(0, 300): 2})
    assert spans(found)[1:4] == [(100, 200, "run"), (200, 300, "unknown"), (300, 400, "run")]


def test_a_loss_elsewhere_leaves_a_window_whole(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 400), (0, A, 500, 600)), row(1, 200, "mark", 0), row(1, 300, "mark", 0)]
    assert (100, 400, "run") in spans(windows_of(tmp_path, rows, lost={(1, 300): 2}))


ELSEWHERE = [row(1, 400, "mark", 0), row(1, 600, "mark", 0)]
SWITCHES = [row(1, 50, "in", 9), row(1, 60, "out", 9)]


def test_without_switches_a_thread_may_have_been_on_any_cpu_that_lost_events(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200), (0, A, 900, 950)), *ELSEWHERE]
    assert (400, 600, "unknown") in spans(windows_of(tmp_path, rows, lost={(1, 600): 5}))


def test_a_thread_that_was_not_switched_away_was_on_no_other_cpu(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200), (0, A, 900, 950)), *ELSEWHERE, *SWITCHES]
    found = spans(windows_of(tmp_path, rows, lost={(1, 600): 5}))
    assert found[1:-1] == [(100, 200, "run"), (900, 950, "run")]


def test_a_thread_that_was_switched_away_may_have_been(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200), (0, A, 900, 950)), *ELSEWHERE, *SWITCHES, row(0, 450, "out"), row(0, 800, "in")]
    assert (450, 600, "unknown") in spans(windows_of(tmp_path, rows, lost={(1, 600): 5}))


def test_a_thread_that_was_seen_to_come_to_a_cpu_before_it_lost_events(tmp_path: Path) -> None:
    rows = [
        *runs((0, A, 100, 200), (0, A, 900, 950)), row(0, 250, "out"), row(1, 300, "in"), *ELSEWHERE,
        row(1, 700, "out"), row(0, 800, "in"),
    ]  # fmt: skip
    assert (400, 600, "unknown") in spans(windows_of(tmp_path, rows, lost={(1, 600): 5}))


def test_a_switch_away_may_be_lost_itself(tmp_path: Path) -> None:
    # both CPUs lose events: the switch away from CPU 0 is not in the recording
    rows = [
        *runs((0, A, 100, 200), (0, A, 900, 950)), row(0, 210, "mark", 0), row(0, 300, "mark", 0),
        *ELSEWHERE, *SWITCHES, row(0, 800, "in"),
    ]  # fmt: skip
    found = spans(windows_of(tmp_path, rows, lost={(1, 600): 5, (0, 300): 5}))
    assert (210, 300, "unknown") in found
    assert (400, 600, "unknown") in found


def test_losses_at_the_very_start_and_between_entries(tmp_path: Path) -> None:
    rows = [
        row(0, 90, "mark", 0),
        *runs((0, A, 100, 200)),
        row(0, 300, "entry"),
        row(0, 500, "entry"),
        row(0, 600, "exit"),
    ]
    found = spans(windows_of(tmp_path, rows, lost={(0, 90): 3, (0, 500): 4}))
    assert found[0] == (None, 100, "unknown")
    assert (300, 500, "unknown") in found


# -- CPUs that were not traced


def test_a_silent_cpu_ran_no_vcpu_where_only_kvm_was_recorded(tmp_path: Path) -> None:
    found = windows_of(tmp_path, runs((0, A, 100, 200), (0, A, 900, 950)), cpus=4)
    assert spans(found)[1:-1] == [(100, 200, "run"), (900, 950, "run")]


def test_a_silent_cpu_is_not_trusted_where_others_show_more_than_kvm(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200), (0, A, 900, 950)), row(0, 250, "mark", 0)]
    assert (200, 900, "unknown") in spans(windows_of(tmp_path, rows, cpus=2))
    assert (200, 900, "unknown") not in spans(windows_of(tmp_path, rows, cpus=1))


def test_switches_tell_when_a_thread_may_be_on_a_silent_cpu(tmp_path: Path) -> None:
    rows = [*runs((0, A, 100, 200), (0, A, 900, 950), (0, A, 990, 999)), row(0, 300, "out"), row(0, 800, "in")]
    found = spans(windows_of(tmp_path, rows, cpus=2))
    assert found[1:-1] == [(100, 200, "run"), (300, 800, "unknown"), (900, 950, "run"), (990, 999, "run")]


def test_a_lost_switch_may_have_taken_it_to_a_silent_cpu(tmp_path: Path) -> None:
    rows = [*GAP, row(0, 30, "in", 9), row(0, 40, "out", 9)]
    assert (200, 900, "unknown") in spans(windows_of(tmp_path, rows, cpus=2, lost={(0, 600): 5}))


# -- the truth


@pytest.mark.parametrize("seed", range(60))
def test_no_true_event_is_ever_outside(tmp_path: Path, seed: int) -> None:
    """Random hosts whose threads move about, with losses and silent CPUs: every true window stays allowed."""
    rng = random.Random(seed)
    cpus, start = rng.choice((2, 3)), rng.choice((1_000, (1 << 63) - 5_000, (1 << 64) - 5_000))
    with_switches = rng.random() < 0.7
    rows: list[Row] = [row(cpu, start, "mark", 0) for cpu in range(cpus)]
    truth: list[tuple[int, int]] = []
    for tid in (A, B):
        at, here = start + rng.randint(2, 50), rng.randrange(cpus)
        for _ in range(rng.randint(3, 40)):
            if rng.random() < 0.4:
                at += rng.randint(1, 9)
                if with_switches:
                    rows.append(row(here, at, "out", tid))
                here = rng.randrange(cpus)
                at += rng.randint(1, 30)
                if with_switches:
                    rows.append(row(here, at, "in", tid))
            entry = at + rng.randint(1, 20)
            at = entry + rng.choice((0, 1, rng.randint(1, 60)))
            rows += runs((here, tid, entry, at))
            ran = [(entry, at)]
            if rng.random() < 0.15:  # a fast exit and a new run without an entry of its own
                ran.append((at, at + rng.randint(1, 40)))
                at = ran[-1][1]
                rows.append(row(here, at, "exit", tid))
            truth += ran if tid == A else []
    rows = sorted(set(rows), key=lambda r: (r[0], r[1], ("in", "entry", "exit", "out", "mark").index(r[2])))
    kept, lost = _lose(rng, rows, cpus)
    if not any(r[3] == A and r[2] in ("entry", "exit") for r in kept):
        return
    silent = rng.random() < 0.3
    if silent:
        gone = rng.randrange(cpus)
        kept, lost = [r for r in kept if r[0] != gone], {k: v for k, v in lost.items() if k[0] != gone}
        if not any(r[3] == A and r[2] in ("entry", "exit") for r in kept):
            return
    found = windows_of(tmp_path, kept, lost=lost, cpus=cpus)
    thread = Thread(found)
    stamps = [s for entry, leave in truth for s in {entry, leave, (entry + leave) // 2}]
    host = np.array([to_signed(s - found.base) for s in stamps], np.int64)
    outcome = check(host, 0, thread)
    assert not outcome.violations, [stamps[i] for i in np.flatnonzero(outcome.violating)]


def _lose(rng: random.Random, rows: list[Row], cpus: int) -> tuple[list[Row], dict[tuple[int, int], int]]:
    """Take some events away, a run of them at a time, and say before which."""
    kept: list[Row] = []
    lost: dict[tuple[int, int], int] = {}
    for cpu in range(cpus):
        mine = [r for r in rows if r[0] == cpu]
        for _ in range(rng.choice((0, 0, 1, 2))):
            if len(mine) > 4:
                first = rng.randrange(1, len(mine) - 1)
                count = rng.randint(1, min(20, len(mine) - 1 - first))
                after = mine[first + count][1]
                if mine[first + count - 1][1] == after or any(
                    k == (cpu, r[1]) for k in lost for r in mine[first : first + count]
                ):
                    continue  # the mark would not be at the first event after the loss
                del mine[first : first + count]
                lost[cpu, after] = count
        kept += mine
    return kept, lost


def test_windows_are_spans_in_order_with_rows_of_their_events(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [*runs(*random_runs(rng, 50, cpu=0)), *runs(*random_runs(rng, 50, cpu=1, tid=B))]
    recording = Recording.open(host_file(rows).write(tmp_path / "host.dat"))
    activity = HostActivity(recording)
    for tid in activity.tids.tolist():
        found = activity.windows(tid)
        assert (found.lo[1:] >= found.hi[:-1]).all()
        run = found.is_run
        assert recording.stamp[found.entry_row[run]].tolist() == [lo + found.base for lo in found.lo[run].tolist()]
        assert recording.stamp[found.exit_row[run]].tolist() == [hi + found.base for hi in found.hi[run].tolist()]
