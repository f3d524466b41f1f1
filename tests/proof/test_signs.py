"""Signs of clocks that cannot be trusted: each is said where the recording shows it, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.proof.signs import STORM, signs_of
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.events import KVM_ENTRY_X86, KVM_EXIT_X86, KVM_WRITE_TSC_OFFSET, SCHED_SWITCH, Event, FieldSpec
from writers.tracedat import Buffer, TraceFile
from writers.worlds import tiny_pair

CONSOLE = Event(90, "printk", "console", [FieldSpec("char", "msg", dynamic="data_loc")], '"%s", __get_str(msg)')
SUSPEND = Event(91, "power", "suspend_resume", [FieldSpec("int", "val"), FieldSpec("bool", "start")])
MASTER_CLOCK = Event(
    92,
    "kvm",
    "kvm_update_master_clock",
    [
        FieldSpec("bool", "use_master_clock"),
        FieldSpec("unsigned int", "host_clock"),
        FieldSpec("bool", "offset_matched"),
    ],
)
EVENTS = [KVM_ENTRY_X86, KVM_EXIT_X86, KVM_WRITE_TSC_OFFSET, SCHED_SWITCH, CONSOLE, SUSPEND, MASTER_CLOCK]

Row = tuple[int, int, Event, int, dict[str, Any]]
"""(CPU, stamp, event, thread, fields)."""


def signs(path: Path, rows: list[Row], missed: dict[int, dict[int, int]] | None = None, **options: Any) -> list[str]:
    """What a host with these events shows."""
    file = TraceFile(events=EVENTS, **{"clock": "x86-tsc"} | options)
    file.buffers = [Buffer()]
    for cpu in sorted({row[0] for row in rows}):
        records = [(at, file.payload(e, tid, **values)) for c, at, e, tid, values in rows if c == cpu]
        file.buffers[0].cpus[cpu] = file.stream(records, missed=(missed or {}).get(cpu, {}))
    recording = Recording.open(file.write(path / "host.dat"))
    return signs_of({"host": recording}, "host")


def console(*lines: str) -> list[Row]:
    return [(0, 100 * n, CONSOLE, 0, {"msg": line}) for n, line in enumerate(lines, 1)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clocksource: Switched to clocksource hpet", "clocksource became hpet"),
        ("Switched to clocksource kvm-clock\n", "clocksource became kvm-clock"),
        ("tsc: Marking TSC unstable due to clocksource watchdog", "found the TSC unstable"),
        ("clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because", "TSC unstable"),
        ("PM: suspend entry (deep)", "put to sleep (suspend)"),
        ("PM: hibernation: hibernation entry", "put to sleep (hibernation)"),
    ],
)
def test_the_kernels_own_log(tmp_path: Path, line: str, said: str) -> None:
    (sign,) = signs(tmp_path, console("usb 1-1: new device", line, line))
    assert sign.startswith("host: ")
    assert said in sign


def test_other_lines_are_no_signs(tmp_path: Path) -> None:
    lines = ("clocksource: tsc: mask: 0xffffffffffffffff", "tsc: Refined TSC clocksource calibration", "PM: core", "")
    assert signs(tmp_path, console(*lines)) == []


def test_a_suspended_host(tmp_path: Path) -> None:
    (sign,) = signs(tmp_path, [(0, 100, SUSPEND, 1, {"start": 1}), (0, 900, SUSPEND, 1, {"start": 0})])
    assert "suspended or resumed" in sign


@pytest.mark.parametrize(
    ("used", "clock", "matched", "said"),
    [
        (1, 1, 1, ""),
        (1, 3, 1, ""),
        (0, 0, 1, "clocksource is not the TSC"),
        (0, 2, 1, ""),  # a hypervisor that is a guest itself uses kvm-clock
        (0, 1, 1, "gave up the master clock"),
        (0, 1, 0, "different TSC offsets"),
    ],
)
def test_the_master_clock(tmp_path: Path, used: int, clock: int, matched: int, said: str) -> None:
    values = {"use_master_clock": used, "host_clock": clock, "offset_matched": matched}
    found = signs(tmp_path, [(0, 100, MASTER_CLOCK, 147, values)])
    assert [said in sign for sign in found] == [True] * bool(said)


@pytest.mark.parametrize(("count", "step", "expected"), [(STORM, 5, 0), (STORM + 1, 5, 1), (99, 0, 0)])
def test_a_storm_of_offsets(tmp_path: Path, count: int, step: int, expected: int) -> None:
    rows: list[Row] = [
        (0, 100 * n, KVM_WRITE_TSC_OFFSET, 147, {"vcpu_id": 1, "previous_tsc_offset": n, "next_tsc_offset": n + step})
        for n in range(1, count + 1)
    ]
    found = signs(tmp_path, rows)
    assert len(found) == expected
    assert all(f"vCPU 1 {count} times (thread 147)" in sign for sign in found)


@pytest.mark.parametrize(
    ("isa", "reason", "said"),
    [
        (1, 16, "TSC reads of thread 147's guest are emulated (1 exits"),
        (1, 51, "TSC reads"),
        (2, 0x6E, "TSC reads"),
        (2, 0x87, "TSC reads"),
        (1, 0x8000_0010, "TSC reads"),  # with a flag of VMX
        (1, 0x6E, ""),
        (2, 16, ""),
        (2, 51, ""),
        (1, 77, "confidential guest (TDCALL"),
        (2, 0x403, "confidential guest (VMGEXIT"),
        (2, 77, ""),
        (1, 0x403, ""),
        (1, 48, ""),
    ],
)
def test_exits(tmp_path: Path, isa: int, reason: int, said: str) -> None:
    values = {"exit_reason": reason, "isa": isa}
    found = signs(tmp_path, [(0, 100, KVM_ENTRY_X86, 147, {}), (0, 200, KVM_EXIT_X86, 147, values)])
    assert [said in sign for sign in found] == [True] * bool(said)


def switch(cpu: int, at: int, old: int, new: int) -> Row:
    return (cpu, at, SCHED_SWITCH, old, {"prev_pid": old, "next_pid": new})


def test_a_thread_on_two_cpus_at_once(tmp_path: Path) -> None:
    # CPU 1's clock is 300 behind: the thread leaves CPU 0 at 1,000 and arrives on CPU 1 at 750
    rows = [switch(0, 500, 0, 9), switch(0, 1_000, 9, 0), switch(1, 750, 0, 9), switch(1, 900, 9, 0)]
    (sign,) = signs(tmp_path, rows)
    assert "CPUs 0 and 1 disagree by at least 250 ticks: thread 9" in sign


@pytest.mark.parametrize(
    "rows",
    [
        [switch(0, 500, 0, 9), switch(0, 1_000, 9, 0), switch(1, 1_000, 0, 9), switch(1, 1_100, 9, 0)],
        # each CPU has an idle thread 0 of its own
        [switch(0, 500, 9, 0), switch(0, 1_000, 0, 9), switch(1, 600, 8, 0), switch(1, 900, 0, 8)],
        # what ran on CPU 0 up to 1,000 is not what it switched to at 500
        [switch(0, 500, 0, 9), switch(0, 1_000, 7, 0), switch(1, 750, 0, 9), switch(1, 900, 9, 0)],
    ],
)
def test_threads_that_move_as_they_should(tmp_path: Path, rows: list[Row]) -> None:
    assert signs(tmp_path, rows) == []


def test_a_lost_switch_is_no_sign(tmp_path: Path) -> None:
    rows = [switch(0, 500, 0, 9), switch(0, 1_000, 9, 0), switch(1, 750, 0, 9), switch(1, 900, 9, 0)]
    assert signs(tmp_path, rows, {0: {1: 4}}) == []


def test_of_guests_the_order_of_cpus_is_not_asked(tmp_path: Path) -> None:
    rows = [switch(0, 500, 0, 9), switch(0, 1_000, 9, 0), switch(1, 750, 0, 9), switch(1, 900, 9, 0)]
    assert len(signs(tmp_path, rows)) == 1
    recording = Recording.open(tmp_path / "host.dat")
    assert signs_of({"guest": recording}, "host") == []


def test_sync_warns(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair()
    guest.write(tmp_path / "guest.dat")
    host.events.append(SUSPEND)
    rows = [(0, 100, SUSPEND, 1, {}), (0, 200, KVM_ENTRY_X86, 1, {}), (0, 300, KVM_EXIT_X86, 1, {"isa": 1})]
    signs(tmp_path, rows)  # type: ignore[arg-type]
    assert any("suspended" in w for w in sync(tmp_path / "host.dat", tmp_path / "guest.dat").warnings)
    host.write(tmp_path / "plain.dat")
    assert sync(tmp_path / "plain.dat", tmp_path / "guest.dat").warnings == ()


EXPECTED = {
    # the VMM moved one of two vCPUs, and KVM said so
    "x86-offset-change/host.dat": ["different TSC offsets"],
}


@pytest.mark.recordings
@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no folder of recordings (COUNTERPOINT_RECORDINGS)")
def test_real_recordings_raise_no_false_alarm() -> None:
    found = {}
    for path in sorted(RECORDINGS.glob("*/*.dat")):
        recording = Recording.open(path)
        is_host = path.stem in ("host", "l0")
        said = signs_of({path.stem: recording}, path.stem if is_host else "")
        if said:
            found[f"{path.parent.name}/{path.name}"] = said
    assert found.keys() == EXPECTED.keys()
    for name, texts in EXPECTED.items():
        assert [text in sign for text, sign in zip(texts, found[name], strict=True)] == [True] * len(texts)


@pytest.mark.recordings
@pytest.mark.skipif(not (RECORDINGS / "x86-vcpus-differ").is_dir(), reason="no folder of recordings")
def test_a_real_machine_whose_cpus_disagree_is_seen() -> None:
    """The guest whose vCPUs' TSCs are 5e9 ticks apart, taken as if it were a host."""
    (sign,) = signs_of({"guest": Recording.open(RECORDINGS / "x86-vcpus-differ" / "guest.dat")}, "guest")
    assert "disagree by at least" in sign
