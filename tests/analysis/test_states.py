"""vCPU states: of small hosts event by event, of real recordings against a slow oracle, and their sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.oracle import follow
from counterpoint.analysis.contexts import Context, context_steps
from counterpoint.analysis.edges import HostEdges
from counterpoint.analysis.states import State, VcpuStates, _alone, _in_calls, vcpu_states
from counterpoint.analysis.threads import thread_steps
from counterpoint.clocks.rate import Rate
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from writers.events import Event, FieldSpec
from writers.nested_world import nested_world
from writers.tracedat import Buffer, TraceFile

DATA = Path(__file__).parent.parent / "data"
A, B, HOG = 147, 148, 900
NONE: tuple[str, ...] = ()


def event(id_: int, system: str, name: str, *fields: str, print_fmt: str = '""') -> Event:
    return Event(id_, system, name, [FieldSpec(*each.rsplit(" ", 1)) for each in fields], print_fmt)


EVENTS = {
    "entry": event(20, "kvm", "kvm_entry", "unsigned int vcpu_id"),
    "exit": event(
        21, "kvm", "kvm_exit", "unsigned int exit_reason", "u32 isa",
        print_fmt='"vcpu %u reason %s ", 0, __print_symbolic(REC->exit_reason, {12, "HLT"}, {30, "IO"}, {1, "IRQ"})',
    ),
    "user": event(
        22, "kvm", "kvm_userspace_exit", "u32 reason", "int errno",
        print_fmt='"reason %s (%d)", __print_symbolic(REC->reason, {2, "KVM_EXIT_IO"}), REC->reason',
    ),
    "wakeup": event(23, "kvm", "kvm_vcpu_wakeup", "u64 ns", "bool waited", "bool valid"),
    "switch": event(24, "sched", "sched_switch", "pid_t prev_pid", "long prev_state", "pid_t next_pid"),
    "waking": event(25, "sched", "sched_waking", "pid_t pid", "int target_cpu"),
    "call": event(29, "raw_syscalls", "sys_enter", "long id"),
    "called": event(30, "raw_syscalls", "sys_exit", "long id"),
    "mark": event(26, "test", "mark"),
}  # fmt: skip


def host(
    path: Path, *script: str, lost: dict[tuple[int, int], int] | None = None, without: tuple[str, ...] = NONE
) -> Path:
    """A host of a script: lines "CPU STAMP EVENT PID FIELD=VALUE..."."""
    events = {name: each for name, each in EVENTS.items() if name not in without}
    file = TraceFile(events=list(events.values()), clock="mono", uname="Linux host 6.1.0 x86_64", cpu_count=2)
    rows: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    for line in script:
        cpu, stamp, name, pid, *fields = line.split()
        if name in events:
            values = {key: int(value) for key, value in (each.split("=") for each in fields)}
            rows[int(cpu)].append((int(stamp), file.payload(events[name], int(pid), **values)))
    buffer = Buffer()
    for cpu, mine in rows.items():
        missed = {[s for s, _ in mine].index(stamp): n for (number, stamp), n in (lost or {}).items() if number == cpu}
        buffer.cpus[cpu] = file.stream(mine, missed=missed)
    file.buffers = [buffer]
    return file.write(path / "host.dat")


def states(path: Path, *script: str, tid: int = A, **options: object) -> list[tuple[int, str, str, int]]:
    """(begin, state, cause, by) of a thread's steps."""
    recording = Recording.open(host(path, "0 0 mark 1", *script, "1 1000 mark 1", **options))  # type: ignore[arg-type]
    all_rows = np.ones(len(recording), np.bool_)
    edges = HostEdges(Machine("host", recording, None, recording.stamp, all_rows, all_rows), 0, Rate.ns())
    steps = thread_steps(edges, tid)
    assert (np.diff(steps.begin) > 0).all()
    assert (int(steps.begin[0]), steps.end) == edges.span == (0, 1000)
    index, names = edges.names.of(steps.cause)
    return [
        (begin, State(state).name, [*names, ""][at], by)
        for begin, state, at, by in zip(
            steps.begin.tolist(), steps.state.tolist(), index.tolist(), steps.by.tolist(), strict=True
        )
    ]


def whole(vcpu: VcpuStates) -> None:
    """Exhaustive and disjoint."""
    assert (np.diff(vcpu.begin) > 0).all()
    assert sum(vcpu.residency().values()) == vcpu.end - int(vcpu.begin[0])


BEGUN = (f"0 100 entry {A}", f"0 110 exit {A} exit_reason=30", f"0 120 user {A} reason=2", f"0 150 entry {A}")
HALT = (
    f"0 200 exit {A} exit_reason=12",
    f"0 260 switch {A} prev_pid={A} prev_state=1 next_pid=0",
    f"1 300 waking 5 pid={A} target_cpu=0",
    f"0 340 switch {HOG} prev_pid={HOG} prev_state=0 next_pid={A}",
    f"0 350 wakeup {A} ns=130 waited=1 valid=1",
    f"0 360 entry {A}",
)
LEFT = (f"0 400 exit {A} exit_reason=1", f"0 410 switch {A} prev_pid={A} prev_state=256 next_pid={HOG}")
BACK = (
    f"0 500 switch {HOG} prev_pid={HOG} prev_state=1 next_pid={A}",
    f"0 510 entry {A}",
    f"0 600 exit {A} exit_reason=1",
)


def test_each_state_in_its_turn(tmp_path):
    found = states(tmp_path, *BEGUN, *HALT, *LEFT, *BACK)

    assert found == [
        (0, "UNKNOWN", "", -1),
        (100, "GUEST", "", -1),
        (110, "KERNEL", "IO", -1),
        (120, "USER", "IO", -1),
        (150, "GUEST", "", -1),
        (200, "KERNEL", "HLT", -1),
        (220, "POLLING", "HLT", -1),
        (260, "HALTED", "HLT", -1),
        (300, "WAITING", "HLT", 0),
        (340, "KERNEL", "HLT", -1),
        (360, "GUEST", "", -1),
        (400, "KERNEL", "IRQ", -1),
        (410, "WAITING", "IRQ", HOG),
        (500, "KERNEL", "IRQ", -1),
        (510, "GUEST", "", -1),
        (600, "UNKNOWN", "", -1),
    ]


def test_a_wait_is_cut_by_who_runs_meanwhile(tmp_path):
    other = (f"0 450 switch {HOG} prev_pid={HOG} prev_state=1 next_pid={B}", "1 460 switch 3 prev_pid=3 next_pid=4")
    back = BACK[0].replace(f"switch {HOG} prev_pid={HOG}", f"switch {B} prev_pid={B}")

    found = states(tmp_path, *BEGUN, *LEFT, *other, back, *BACK[1:])

    assert [each for each in found if each[1] == "WAITING"] == [
        (410, "WAITING", "IRQ", HOG),
        (450, "WAITING", "IRQ", B),
    ]


def test_who_is_about_to_sleep_and_is_woken_runs_on(tmp_path):
    waking = (f"1 205 waking 5 pid={A} target_cpu=0",)

    assert states(tmp_path, *BEGUN, HALT[0], *waking, HALT[5]) == states(tmp_path, *BEGUN, HALT[0], HALT[5])


def test_asleep_without_a_halt_is_blocked(tmp_path):
    found = states(
        tmp_path,
        *BEGUN[:3],
        *(each.replace("exit_reason=12", "exit_reason=30") for each in HALT[1:4]),
        BEGUN[3].replace("150", "370"),
    )

    assert [(at, state) for at, state, *_ in found][3:6] == [(120, "USER"), (260, "BLOCKED"), (300, "WAITING")]


def test_without_switches_only_guest_mode_is_told(tmp_path):
    found = states(tmp_path, *BEGUN, *HALT, without=("switch", "waking"))

    assert {state for _, state, *_ in found} == {"UNKNOWN", "GUEST", "OUTSIDE"}
    assert (200, "OUTSIDE", "HLT", -1) in found


def test_without_userspace_exits_the_kernel_is_not_told_from_the_vmm(tmp_path):
    found = states(tmp_path, *BEGUN, *HALT, without=("user",))

    assert (110, "OUTSIDE", "IO", -1) in found
    assert "KERNEL" not in {state for _, state, *_ in found}


@pytest.mark.parametrize(
    ("missing", "begin", "end"),
    [
        (f"0 200 exit {A} exit_reason=12", 150, 260),  # it sleeps, and was in guest mode
        (HALT[3], 300, 350),  # it runs, and nothing switched to it
        (HALT[2], 260, 340),  # it runs, and nothing woke it
        (LEFT[1], 400, 500),  # it is switched to, and was running
    ],
)
def test_what_does_not_fit_is_unknown(tmp_path, missing, begin, end):
    script = (*BEGUN, *HALT, *LEFT, *BACK, f"1 700 waking 5 pid={B} target_cpu=1")
    found = states(tmp_path, *(line for line in script if line != missing))

    at = [each[0] for each in found].index(begin)
    assert found[at][1] == "UNKNOWN"
    assert found[at + 1][0] == end


def test_a_loss_hides_what_the_thread_may_have_done(tmp_path):
    marks = ("0 430 mark 1", "0 440 mark 1", "1 280 mark 1", "1 290 mark 1", "0 170 mark 1", "0 180 mark 1")
    lost = {(0, 440): 1, (1, 290): -1, (0, 180): 2}

    found = states(
        tmp_path, *sorted((*BEGUN, *HALT, *LEFT, *BACK, *marks), key=lambda line: int(line.split()[1])), lost=lost
    )

    told = [(at, state) for at, state, *_ in found]
    # in guest mode: only the loss itself, on its CPU
    assert told[4:8] == [(150, "GUEST"), (170, "UNKNOWN"), (180, "GUEST"), (200, "KERNEL")]
    # asleep or waiting: it may have run on any CPU, and come back to another wait
    assert told[9:12] == [(260, "HALTED"), (280, "UNKNOWN"), (300, "WAITING")]
    assert (410, "WAITING") in told
    assert told[told.index((410, "WAITING")) + 1 :][:2] == [(430, "UNKNOWN"), (500, "KERNEL")]


@pytest.mark.parametrize("pair", ["x86-agent", "arm64-monoraw"])
def test_real_recordings_against_the_oracle(pair):
    result = sync(DATA / pair / "host.dat", DATA / pair / "guest.dat")
    found = vcpu_states(result)
    assert {(v.guest, v.guest_cpu) for v in found} == {("guest", 0), ("guest", 1)}
    words = {
        State.GUEST: "guest", State.KERNEL: "kernel", State.POLLING: "kernel", State.USER: "user",
        State.WAITING: "waiting", State.HALTED: "asleep", State.BLOCKED: "blocked",
    }  # fmt: skip
    for vcpu in found:
        whole(vcpu)
        told = follow(result.host, vcpu.tid)
        when = np.array([stamp for stamp, *_ in told]).astype(np.uint64)
        # the last of several changes at one time counts
        at = np.searchsorted(vcpu.begin, (when - np.uint64(result.timeline.base)).view(np.int64), side="right") - 1
        lasting = np.r_[when[1:] != when[:-1], True]
        unknown = 0
        for (stamp, word, by), index, lasts in zip(told, at.tolist(), lasting.tolist(), strict=True):
            state = State(vcpu.state[index])
            if state is State.UNKNOWN:
                unknown += 1
            elif lasts:
                assert (words[state], vcpu.by[index]) == (word, by), stamp
        assert unknown < len(told) // 50
        assert vcpu.residency()[State.UNKNOWN] < (vcpu.end - vcpu.begin[0]) // 50


def test_guest_mode_tells_what_the_guest_ran():
    result = sync(DATA / "x86-agent" / "host.dat", DATA / "x86-agent" / "guest.dat")
    guest = result.timeline.machines[1]
    switches = guest.recording.rows(guest.recording.format_named("sched", "sched_switch"))
    event = guest.recording.format_named("sched", "sched_switch")
    pids = guest.recording.column(event, "next_pid", switches)
    checked = 0
    for vcpu in vcpu_states(result):
        cpu = np.array([s.cpu for s in guest.recording.streams])[guest.recording.stream_of[switches]]
        mine = cpu == vcpu.guest_cpu
        when = (guest.host_stamp[switches[mine]] - np.uint64(result.timeline.base)).view(np.int64)
        at = np.searchsorted(vcpu.begin, when, side="right") - 1
        for index, pid in zip(at.tolist(), pids[mine].tolist(), strict=True):
            if vcpu.state[index] == State.GUEST:
                assert (vcpu.context[index], vcpu.what[index]) == ((Context.TASK, pid) if pid else (Context.IDLE, 0))
                checked += 1
        assert (vcpu.context[vcpu.state != State.GUEST] == 0).all()
    assert checked > 100


def test_system_calls_of_the_vmm_and_who_ends_a_sleep_in_one(tmp_path):
    calls = (
        f"0 122 called {A} id=16",
        f"0 125 call {A} id=1",
        f"0 130 switch {A} prev_pid={A} prev_state=1 next_pid=0",
        f"1 135 waking 77 pid={A} target_cpu=0",
        f"0 138 switch {HOG} prev_pid={HOG} prev_state=0 next_pid={A}",
        f"0 140 called {A} id=1",
        f"0 145 call {A} id=16",
    )
    script = ("0 0 mark 1", *BEGUN[:3], *calls, BEGUN[3], f"0 160 exit {A}", "1 1000 mark 1")
    recording = Recording.open(host(tmp_path, *script))
    rows = np.ones(len(recording), np.bool_)
    edges = HostEdges(Machine("host", recording, None, recording.stamp, rows, rows), 0, Rate.ns())

    vcpu = _in_calls(_alone((edges,), 0, A, thread_steps(edges, A), None, None), edges)

    whole(vcpu)
    found = [
        (begin, State(state).name, what)
        for begin, state, what in zip(vcpu.begin.tolist(), vcpu.state.tolist(), vcpu.what.tolist(), strict=True)
    ]
    assert found[3:11] == [
        (120, "USER", -1),
        (125, "USER", 1),
        (130, "BLOCKED", 1),
        (135, "WAITING", 1),
        (138, "USER", 1),
        (140, "USER", -1),
        (145, "USER", 16),
        (150, "GUEST", -1),
    ]
    (row,) = vcpu.woken_by()[vcpu.woken_by() >= 0].tolist()
    assert (recording.stamp[row], recording.pid[row]) == (135, 77)


@pytest.fixture
def nested_result(tmp_path: Path) -> SyncResult:
    files, _ = nested_world(offsets=(-90_000_000, -90_000_000))
    paths = [file.write(tmp_path / f"l{n}.dat") for n, file in enumerate(files)]
    return sync(*paths, parents={"l2": "l1"})


def test_without_its_switches_nobody_knows_what_a_guest_ran(tmp_path):
    recording = Recording.open(host(tmp_path, "0 10 mark 7", "0 20 mark 8", "0 500 mark 9", without=("switch",)))
    rows = np.ones(len(recording), np.bool_)

    steps = context_steps(Machine("guest", recording, None, recording.stamp, rows, rows), 0, 0)

    assert set(steps.context.tolist()) == {Context.UNKNOWN}


def test_a_nested_vcpu_does_what_its_hypervisors_vcpu_does(nested_result: SyncResult):
    inner = [v for v in vcpu_states(nested_result) if v.host == "l1" and v.guest == "l2"]
    outer = {v.guest_cpu: v for v in vcpu_states(nested_result) if v.guest == "l1"}
    assert inner
    for vcpu in inner:
        whole(vcpu)
        away = vcpu.machine == 0
        assert away.any()
        assert (vcpu.state[away] != State.GUEST).all()
        for index in np.flatnonzero(vcpu.state == State.GUEST).tolist():
            above = outer[int(vcpu.cpu[index])]
            at = np.searchsorted(above.begin, vcpu.begin[index], side="right") - 1
            assert above.state[at] == State.GUEST
