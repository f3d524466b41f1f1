"""The merged order: stable, complete, with its marks; and nested machines taken to the host's time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.select import Selection, around, select
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from writers.plain import GUEST_ID, Row, guest_file, host_file, random_events, random_runs, runs
from writers.tracedat import TraceFile
from writers.worlds import OffsetChange, tiny_pair

ENOUGH = {"windows": 250, "guest_events": 700}


def synced(path: Path, **how: object) -> tuple[SyncResult, object]:
    host, guest, truth = tiny_pair(**(ENOUGH | how))  # type: ignore[arg-type]
    return sync(host.write(path / "host.dat"), guest.write(path / "guest.dat")), truth


@pytest.mark.parametrize("start", [345_000_000_000, (1 << 64) - 20_000_000, (1 << 63) - 20_000_000])
def test_every_event_is_there_once_in_the_order_of_host_time(tmp_path: Path, start: int) -> None:
    result, _ = synced(tmp_path, vcpus=2, start=start)
    timeline = result.timeline
    assert len(timeline) == sum(len(m.recording) for m in timeline.machines)
    assert timeline.unplaced == 0
    for index, machine in enumerate(timeline.machines):
        rows = timeline.row[timeline.machine == index]
        assert sorted(rows.tolist()) == list(range(len(machine.recording)))
        assert timeline.host_ticks[timeline.machine == index].tolist() == machine.host_stamp[rows].tolist()
    steps = np.diff(timeline.host_ticks.view(np.int64))
    assert (steps >= 0).all()


def test_each_guest_event_stands_at_its_true_time(tmp_path: Path) -> None:
    change = OffsetChange(5_000_000, 0)
    host, guest, truth = tiny_pair(windows=700, guest_events=2000, vcpus=2, change=change)
    timeline = sync(host.write(tmp_path / "host.dat"), guest.write(tmp_path / "guest.dat")).timeline
    machine = timeline.machines[1]
    for stream in machine.recording.streams:
        hosts = machine.host_stamp[stream.first : stream.last].tolist()
        assert hosts == [event.host for event in truth.guest_events[stream.cpu]]


def test_columns_are_those_of_the_machines(tmp_path: Path) -> None:
    timeline = synced(tmp_path)[0].timeline
    for at in (0, 17, len(timeline) // 2, len(timeline) - 1):
        recording, row = timeline.machines[timeline.machine[at]].recording, int(timeline.row[at])
        assert timeline.cpu[at] == recording.streams[recording.stream_of[row]].cpu
        assert timeline.pid[at] == recording.pid[row]
        assert timeline.event_id[at] == recording.event_id[row]
    assert [s.stop - s.start for s in timeline.blocks(100)][:-1] == [100] * (
        len(timeline) // 100 - (len(timeline) % 100 == 0)
    )
    assert sum(s.stop - s.start for s in timeline.blocks(100)) == len(timeline)


def machine(path: Path, name: str, file: TraceFile, placed: bool = True) -> Machine:
    recording = Recording.open(file.write(path / f"{name}.dat"))
    mask = np.full(len(recording), placed, np.bool_)
    return Machine(name, recording, None, recording.stamp, mask, mask)


def test_ties_go_to_the_host_then_by_machine_and_cpu(tmp_path: Path) -> None:
    marks: list[Row] = [(cpu, stamp, "mark", n) for cpu in (0, 1) for n, stamp in enumerate((100, 100, 200))]
    machines = [
        machine(tmp_path, "host", host_file(marks)),
        machine(tmp_path, "one", guest_file({0: [100, 200], 1: [100]})),
        machine(tmp_path, "two", guest_file({0: [100, 100]})),
    ]
    timeline = Timeline(machines, None)
    order = list(
        zip(
            timeline.host_ticks.tolist(),
            timeline.machine.tolist(),
            timeline.cpu.tolist(),
            timeline.row.tolist(),
            strict=True,
        )
    )
    assert order == sorted(order)
    assert [m for s, m, _, _ in order if s == 100] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert not timeline.has_ns
    assert timeline.ts_ns.tolist() == timeline.host_ticks.tolist()


def test_ns_by_a_rate(tmp_path: Path) -> None:
    timeline = Timeline([machine(tmp_path, "host", guest_file({0: [1000, 3000]}))], Rate(1 << 31, 32, "test"))
    assert timeline.ts_ns.tolist() == [500, 1500]


def test_events_without_a_map_are_left_out_and_counted(tmp_path: Path) -> None:
    machines = [
        machine(tmp_path, "host", guest_file({0: [100, 200]})),
        machine(tmp_path, "guest", guest_file({0: [150, 160, 170]}), placed=False),
    ]
    timeline = Timeline(machines, None)
    assert (len(timeline), timeline.unplaced) == (2, 3)


def test_an_unmatched_guest_is_unplaced(tmp_path: Path) -> None:
    host = host_file(runs((0, 147, 1000, 2000), (0, 147, 3000, 4000)))
    guest = guest_file({0: list(range(10, 10_000, 7))})
    result = sync(host.write(tmp_path / "host.dat"), guest.write(tmp_path / "guest.dat"))
    assert result.timeline.unplaced == len(result.guests[0].recording)
    assert len(result.timeline) == 4


def test_marks_of_lost_events_stand_before_the_event_after_the_loss(tmp_path: Path) -> None:
    rows: list[Row] = [(cpu, 100 + 10 * n + cpu, "mark", n) for cpu in (0, 1) for n in range(6)]
    host = host_file(rows, lost={(0, 130): 5, (1, 151): -1, (1, 101): 2})
    timeline = Timeline([machine(tmp_path, "host", host)], None)
    found = [(int(timeline.host_ticks[loss.at]), loss.cpu, loss.count) for loss in timeline.losses()]
    assert found == [(101, 1, 2), (130, 0, 5), (151, 1, -1)]


def test_marks_of_a_machine_that_is_unplaced_stand_at_the_end(tmp_path: Path) -> None:
    rows: list[Row] = [(0, 100, "mark", 0), (0, 110, "mark", 0)]
    host, lossy = host_file(rows), host_file(rows, lost={(0, 110): 5})
    timeline = Timeline([machine(tmp_path, "a", host), machine(tmp_path, "b", lossy, placed=False)], None)
    assert [(loss.at, loss.machine) for loss in timeline.losses()] == [(2, 1)]


# -- select


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    return synced(tmp_path_factory.mktemp("select"), vcpus=2)[0].timeline


def names(timeline: Timeline, positions: np.ndarray) -> list[tuple[str, int, str, str]]:
    """(machine, cpu, comm, event) at the positions."""
    out = []
    for at in positions.tolist():
        m = timeline.machines[timeline.machine[at]]
        event = m.recording.formats[int(timeline.event_id[at])]
        comm = m.recording.comm(int(timeline.pid[at]))
        out.append((m.name, int(timeline.cpu[at]), comm, f"{event.system}:{event.name}"))
    return out


def test_nothing_asked_is_everything(whole: Timeline) -> None:
    assert select(whole, Selection()).tolist() == list(range(len(whole)))


@pytest.mark.parametrize(
    ("wanted", "keeps"),
    [
        (Selection(machines=["guest"]), lambda m, c, t, e: m == "guest"),
        (Selection(cpus=[(None, 1)]), lambda m, c, t, e: c == 1),
        (Selection(cpus=[("guest", 1), ("host", 0)]), lambda m, c, t, e: (m, c) in {("guest", 1), ("host", 0)}),
        (Selection(tasks=["CPU*KVM"]), lambda m, c, t, e: t.startswith("CPU")),
        (Selection(events=["kvm_*"]), lambda m, c, t, e: e.startswith("kvm:")),
        (Selection(events=["kvm:kvm_exit", "mark"]), lambda m, c, t, e: e in ("kvm:kvm_exit", "marks:mark")),
        (Selection(machines=["host"], events=["mark"]), lambda m, c, t, e: False),
        (
            Selection(machines=["guest"], events=["mark"], cpus=[(None, 0)]),
            lambda m, c, t, e: (m, c, e) == ("guest", 0, "marks:mark"),
        ),
    ],
)  # fmt: skip
def test_filters(whole: Timeline, wanted: Selection, keeps: object) -> None:
    everything = names(whole, np.arange(len(whole)))
    assert callable(keeps)
    assert select(whole, wanted).tolist() == [i for i, row in enumerate(everything) if keeps(*row)]


def test_a_task_by_its_id(whole: Timeline) -> None:
    assert set(whole.pid[select(whole, Selection(tasks=["147"]))].tolist()) == {147}


@pytest.mark.parametrize("start", [345_000_000_000, (1 << 64) - 2_000_000])
def test_spans_of_time_and_around(tmp_path: Path, start: int) -> None:
    timeline = synced(tmp_path, start=start, windows=250)[0].timeline
    stamps = timeline.host_ticks.tolist()
    begin, end = stamps[100], stamps[-100]
    inside = select(timeline, Selection(begin=begin, end=end)).tolist()
    zero = stamps[0]
    wanted = [
        i for i, s in enumerate(stamps) if to_signed(begin - zero) <= to_signed(s - zero) <= to_signed(end - zero)
    ]
    assert inside == wanted
    everything = np.arange(len(timeline))
    at = around(timeline, everything, stamps[300], 5).tolist()
    first = stamps.index(stamps[300])
    assert at == list(range(first - 5, first + 5))
    assert len(around(timeline, everything, stamps[0], 5)) == 5


def test_times_before_and_after_everything(whole: Timeline) -> None:
    assert len(select(whole, Selection(begin=-5, end=1 << 70))) == len(whole)
    assert len(select(whole, Selection(begin=(1 << 64) - 1))) == 0
    assert len(select(whole, Selection(end=0))) == 0
    assert len(select(whole, Selection(begin=10**12, end=5))) == 0


# -- nesting


@pytest.mark.parametrize("start", [10**9, (1 << 64) - 5 * 10**7])
def test_three_levels_with_a_thread_that_moves_between_cpus_of_different_offsets(tmp_path: Path, start: int) -> None:
    """L2's vCPU thread moves between two CPUs of L1 whose offsets differ: each event goes by the CPU it ran on."""
    rng = random.Random(3)
    offsets, deep = [-7_000_000_000, -7_000_050_000], 123_456_789
    threads = (201, 202)
    l0: list[Row] = []
    l1: dict[int, list[Row]] = {0: [], 1: []}
    windows: list[list[tuple[int, int, int, int]]] = []
    for cpu, tid in enumerate(threads):
        mine = random_runs(rng, 900, tid=tid, cpu=cpu, begin=start, length=60_000, gap=30_000)
        windows.append(mine)
        l0 += runs(*mine)
        # L1's own events
        l1[cpu] += [(cpu, e + offsets[cpu], "mark", 0) for e in random_events(rng, mine, 1300)]
    # L2 runs for a while on one CPU of L1, then on the other, each time inside a window of that CPU
    l2: list[tuple[int, int]] = []
    at, cpu = start, 0
    while True:
        usable = [w for w in windows[cpu] if w[2] > at and w[3] - w[2] > 20_000]
        if not usable:
            break
        for window in usable[: rng.randint(1, 3)]:
            entry, leave = window[2] + 2_000, window[3] - 2_000
            l1[cpu] += [(cpu, entry + offsets[cpu], "entry", 300), (cpu, leave + offsets[cpu], "exit", 300)]
            for _ in range(rng.randint(1, 4)):
                host = rng.randint(entry + 100, leave - 100)
                # L2's counter is L1's, on the CPU that it is on, and its own offset
                l2.append((host, host + offsets[cpu] + deep))
            at = window[3]
        # the move takes longer than the two counters differ: else L1's own stamps would not be in order
        cpu, at = 1 - cpu, at + 200_000
    l2.sort()
    files = [
        host_file(l0).write(tmp_path / "l0.dat"),
        host_file([row for rows in l1.values() for row in rows], trace_id=GUEST_ID).write(tmp_path / "l1.dat"),
        guest_file({0: [stamp for _, stamp in l2]}, trace_id=0xC0).write(tmp_path / "l2.dat"),
    ]
    tight = [f"l1:{c}={o}" for c, o in enumerate(offsets)] + [f"l2:0={deep}"]
    result = sync(*files, parents={"l2": "l1"}, offsets=tight)
    assert [v.host_tid for v in result.guests[0].vcpus] == list(threads)
    assert result.guests[1].vcpus[0].host_tid == 300
    timeline = result.timeline
    assert timeline.unplaced == 0
    assert [m.parent for m in timeline.machines] == [None, "l0", "l1"]
    nested = timeline.machines[2]
    assert nested.host_stamp.tolist() == [host % (1 << 64) for host, _ in l2]
