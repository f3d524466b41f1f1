"""``counterpoint record`` of this machine: what it writes, and that nothing is left behind whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from counterpoint.live import tracefs
from counterpoint.traces.options import GuestOption
from counterpoint.traces.recording import Recording
from helpers import need, need_tool
from live.conftest import FULL

pytestmark = pytest.mark.usefixtures("alone")

COMMAND = [sys.executable, "-m", "counterpoint", "record"]
EVENTS = ("-e", "sched:sched_switch", "-e", "sched:sched_waking", "-e", "irq", "-e", "timer")

BUSY = """
import os
a, b = os.pipe()
c, d = os.pipe()
parent = os.getpid()
if os.fork() == 0:
    os.close(b)
    while os.read(a, 1):
        os.write(d, b"x")
    os._exit(0)
os.close(a)
while True:
    os.write(b, b"x")
    os.read(c, 1)
"""


@pytest.fixture
def load():
    """Two processes that wake each other all the time."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    yield process
    process.kill()
    process.wait()


def ours(root: Path) -> list[str]:
    return [name for name in os.listdir(root / "instances") if name.startswith("counterpoint")]


def children() -> set[str]:
    """The processes of ours: recorders and their watchdogs."""
    found = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"counterpoint" in words and b"record" in words:
                found.add(pid)
    return found


def state(root: Path) -> list[str]:
    """What may not be changed: the top-level buffer's settings."""
    names = ("trace_clock", "tracing_on", "buffer_size_kb", "set_event", "current_tracer", "saved_cmdlines_size")
    return [(root / name).read_text() for name in names]


def record(folder: Path, *arguments: str) -> dict:
    done = subprocess.run([*COMMAND, "-o", folder, "--json", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def reported(file: Path) -> int:
    command = [need_tool("trace-cmd"), "report", "-t", "--raw-ts", "-i", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum(": " in line for line in done.stdout.splitlines() if "EVENTS DROPPED" not in line)


def test_this_machine_under_load(tracefs_root, tmp_path, load):
    before = state(tracefs_root)

    said = record(tmp_path / "capture", "-d", "10s" if FULL else "1s")

    host = said["machines"][0]
    found = Recording.open(tmp_path / "capture" / "host.dat")
    assert host["events"] == len(found) > 10_000 and host["lost_events"] == found.losses.total == 0
    assert found.warnings == []
    assert reported(found.path) == len(found)
    assert said["stopped_by"] == "duration" and ours(tracefs_root) == [] and state(tracefs_root) == before
    assert {str(load.pid), str(os.getpid())} & set(map(str, found.cmdlines))
    assert sorted(os.listdir(tmp_path / "capture")) == ["capture.json", "host.dat"]
    content = json.loads((tmp_path / "capture" / "capture.json").read_text())
    assert content["state"] == "complete" and len(content["clock_pairs"]["host"]) == 2
    first, last = content["clock_pairs"]["host"]
    if found.clock == "x86-tsc":
        assert first["counter"] < found.stamp.min() and found.stamp.max() < last["counter"]


def test_lost_events_are_counted(tracefs_root, tmp_path, load):
    # a recorder that is stopped for a moment loses what its small buffers cannot hold
    folder = tmp_path / "capture"
    command = [*COMMAND, "-o", folder, "--json", "--buffer-size", "16k", *EVENTS, "-d", "3s"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until(lambda: (folder / "host.dat.cpu0").exists())
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=90)

    host = json.loads(out)["machines"][0]
    found = Recording.open(folder / "host.dat")
    assert host["events"] == len(found)
    assert host["lost_events"] > 100 and sum(host["lost_by_cpu"].values()) == host["lost_events"]
    # (the last loss of a CPU has no page after it that could say so, and some marks carry no count)
    assert 0 < found.losses.total <= host["lost_events"]
    assert json.loads((folder / "capture.json").read_text())["lost"]["host"]["events"] == host["lost_events"]


def test_a_command_is_recorded_to_its_end(tracefs_root, tmp_path):
    said = record(tmp_path / "capture", "--", "sh", "-c", "sleep 0.2; exit 3")

    assert said["stopped_by"] == "command" and said["command_status"] == 3 and said["seconds"] > 0.2


def test_no_more_than_max_size(tracefs_root, tmp_path, load):
    said = record(tmp_path / "capture", "--max-size", "2M", "--for", "all")

    # what one go takes (1 MB) is not cut
    assert said["stopped_by"] == "max-size" and 2 << 20 <= said["machines"][0]["bytes"] <= 4 << 20
    assert said["machines"][0]["events"] >= len(Recording.open(tmp_path / "capture" / "host.dat"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_good_order(tracefs_root, tmp_path, load, number):
    before = state(tracefs_root)
    folder = tmp_path / "capture"
    process = subprocess.Popen(
        [*COMMAND, "-o", folder, "--json", "--", "sleep", "60"], stdout=subprocess.PIPE, text=True
    )
    until(lambda: (folder / "host.dat.cpu0").exists())
    time.sleep(0.7)
    process.send_signal(number)
    out, _ = process.communicate(timeout=90)

    assert process.returncode == 0
    said = json.loads(out)
    assert said["stopped_by"] == signal.Signals(number).name and said["command_status"] == -signal.SIGTERM
    assert said["machines"][0]["events"] == len(Recording.open(folder / "host.dat")) > 0
    assert ours(tracefs_root) == [] and state(tracefs_root) == before and children() == set()


@pytest.mark.parametrize("after", [0.0, 0.1, 0.25, 0.5, 1.5, 2.0])
def test_a_kill_leaves_nothing_behind_and_all_that_was_written(tracefs_root, tmp_path, load, after):
    before = state(tracefs_root)
    folder = tmp_path / "capture"
    process = subprocess.Popen([*COMMAND, "-o", folder, *EVENTS])
    if after > 1:
        until(lambda: (folder / "host.dat.cpu0").exists())
    else:
        until(lambda: ours(tracefs_root) or process.poll() is not None)
    time.sleep(after)
    process.kill()
    process.wait()

    # its child removes what it made
    until(lambda: ours(tracefs_root) == [] and children() == set())
    assert state(tracefs_root) == before
    if after > 1:
        written = {cpu: os.stat(folder / f"host.dat.cpu{cpu}").st_size // 4096 for cpu in range(os.cpu_count() or 1)}
        done = subprocess.run(
            [sys.executable, "-m", "counterpoint", "info", "--json", folder], capture_output=True, text=True, check=True
        )
        assert "was put together from its parts" in done.stderr
        found = Recording.open(folder / "host.dat")
        assert len(found) == json.loads(done.stdout)["recordings"][0]["events"] > 1000
        assert len(found.sub_buffer_first_row) == sum(written.values())
        assert found.warnings == []
        assert reported(found.path) == len(found)


def test_what_a_kill_of_all_leaves_the_next_run_removes(tracefs_root, tmp_path):
    folder = tmp_path / "capture"
    process = subprocess.Popen([*COMMAND, "-o", folder, *EVENTS])
    until(lambda: (folder / "host.dat.cpu0").exists())
    # as a cgroup's end, or the machine's memory: the child is killed first
    for pid in children() - {str(process.pid)}:
        os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.wait()
    assert len(ours(tracefs_root)) == 1
    doctor = subprocess.run(
        [sys.executable, "-m", "counterpoint", "doctor"], capture_output=True, text=True, check=False
    )
    assert "of a process that was killed" in doctor.stdout

    said = record(folder, "--force", "-d", "100ms")

    assert any("removed the instance" in note for note in said["notes"])
    assert ours(tracefs_root) == []


def test_an_error_leaves_nothing_behind(tracefs_root, tmp_path):
    before = state(tracefs_root)
    folder = tmp_path / "capture"
    for arguments, reason in (
        (["-e", "sched:sched_switch:no_such_field == 1"], "Field not found"),
        (["-e", "no_such_system"], "has no event"),
        (["--clock", "sundial"], "no trace clock"),
        (["--snapshot-on", "sched:sched_*"], "one is needed"),
        (["--", "no-such-program"], "cannot be run"),
        (["--guest", "vm1=ssh://there", "--ssh-command", "false"], "the connection ended"),
        (["--buffer-size", "900T"], "buffers"),
    ):
        done = subprocess.run([*COMMAND, "-o", folder, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and reason in done.stderr, (arguments, done.stderr)
        assert not folder.exists() and ours(tracefs_root) == [] and children() == set()
    assert state(tracefs_root) == before


def test_a_full_disk_is_said_and_what_was_written_stays(tracefs_root, tmp_path, load, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "nodev", disk], check=True)
    try:
        command = [*COMMAND, "-o", disk / "capture", "--for", "all", "--no-kallsyms", "-d", "60s"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2 and "No space left" in done.stderr
        assert ours(tracefs_root) == []
        assert (disk / "capture" / "host.dat.parts").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_flight_recorder_keeps_the_last_before_the_condition(tracefs_root, tmp_path, load):
    folder = tmp_path / "capture"
    program = tmp_path / "the-culprit"
    program.symlink_to("/bin/true")
    condition = f'sched:sched_process_exec:filename ~ "*{program.name}"'
    command = [
        *COMMAND,
        "-o",
        folder,
        "--json",
        "--snapshot-on",
        condition,
        "--buffer-size",
        "256k",
        *EVENTS,
        "-d",
        "60s",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until(lambda: (folder / "host.dat.cpu0").exists())
    time.sleep(1)
    subprocess.run([program], check=True)
    out, _ = process.communicate(timeout=90)

    said = json.loads(out)
    assert process.returncode == 0 and said["stopped_by"] == "condition"
    found = Recording.open(folder / "host.dat")
    # older events were overwritten, the condition's own is there
    assert said["machines"][0]["lost_events"] > 0 and said["machines"][0]["bytes"] <= (os.cpu_count() or 1) * (
        260 << 10
    )
    stamp = said["snapshot"]["stamp"]
    exec_ = found.format_named("sched", "sched_process_exec")
    rows = np.flatnonzero(found.event_id == exec_.id)
    (culprit,) = (row for row in rows if program.name.encode() + b"\0" in found.payload(row))
    # the two instances stamp it one after the other
    assert abs(int(found.stamp[culprit]) - stamp) == abs(found.stamp[rows].astype("i8") - stamp).min()
    assert found.stamp.min() < stamp


def test_a_condition_that_never_comes(tracefs_root, tmp_path):
    command = [*COMMAND, "-o", tmp_path / "capture", "--json", "--snapshot-on", "SIGUSR1", "-d", "300ms"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert json.loads(done.stdout)["snapshot"] == {"on": "SIGUSR1", "happened": False}


def test_sigusr1_is_a_condition(tracefs_root, tmp_path):
    folder = tmp_path / "capture"
    command = [*COMMAND, "-o", folder, "--json", "--snapshot-on", "SIGUSR1", "--after", "100ms"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until(lambda: (folder / "host.dat.cpu0").exists())
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=90)

    assert process.returncode == 0 and json.loads(out)["snapshot"]["happened"]


@pytest.fixture
def fake_ssh(tmp_path) -> str:
    """As ssh and sshd do it: the words after the target are one line for the user's shell."""
    program = tmp_path / "ssh"
    program.write_text('#!/bin/sh\nwhile [ "$1" != there ]; do shift; done\nshift\nexec sh -c "$*"\n')
    program.chmod(0o755)
    return str(program)


def test_a_guest_with_nothing_but_a_shell(tracefs_root, tmp_path, load, fake_ssh):
    before = state(tracefs_root)
    folder = tmp_path / "capture"

    said = record(
        folder, "-d", "10s" if FULL else "2s", *EVENTS, "--guest", "vm1=ssh://there", "--ssh-command", fake_ssh
    )

    guest = said["machines"][1]
    found = Recording.open(folder / "vm1.dat")
    assert (guest["events"], guest["notes"]) == (len(found), []) and len(found) > 1000
    assert found.warnings == [] and reported(found.path) == len(found)
    # the machine is its own guest here: its events are among the host's, stamp for stamp
    host = Recording.open(folder / "host.dat")
    middle = found.stamp[(found.stamp > host.stamp.min()) & (found.stamp < host.stamp.max())]
    assert len(middle) == len(found)
    assert ours(tracefs_root) == [] and state(tracefs_root) == before
    assert json.loads((folder / "capture.json").read_text())["guests"][0]["file"] == "vm1.dat"


@pytest.mark.parametrize("victim", ["recorder", "ssh"])
def test_a_guest_is_left_as_it_was_when_its_host_is_lost(tracefs_root, tmp_path, load, fake_ssh, victim):
    folder = tmp_path / "capture"
    command = [*COMMAND, "-o", folder, *EVENTS, "--guest", "vm1=ssh://there", "--ssh-command", fake_ssh, "-d", "4s"]
    process = subprocess.Popen(command)
    until(lambda: (folder / "vm1.dat.cpu0").exists())
    if victim == "recorder":
        process.kill()
        process.wait()
    else:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if b"trace_pipe_raw" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGTERM)
        assert process.wait(90) in (0, 1)

    until(lambda: ours(tracefs_root) == [])
    subprocess.run([sys.executable, "-m", "counterpoint", "info", folder], capture_output=True, check=True)
    assert len(Recording.open(folder / "vm1.dat")) > 0


def cpu_seconds(*command: str) -> float:
    """Of it and all its children that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.skipif(not FULL, reason="a minute: COUNTERPOINT_FULL=1")
def test_it_takes_no_more_of_the_cpu_than_trace_cmd(tracefs_root, tmp_path, load):
    program = need_tool("trace-cmd")
    events = list(EVENTS)
    theirs = [
        program,
        "record",
        "-B",
        "theirs",
        "-b",
        "4096",
        *events,
        "-o",
        str(tmp_path / "t.dat"),
        "sleep",
        "10",
    ]
    probe = subprocess.run([*theirs[:-1], "0"], capture_output=True, text=True, check=False)
    if probe.returncode:
        with contextlib.suppress(FileNotFoundError):
            (tracefs_root / "instances" / "theirs").rmdir()
    need(probe.returncode == 0, f"trace-cmd cannot record here: {probe.stderr[:200]}")
    ratios = []
    for number in range(3):
        other = cpu_seconds(*theirs)
        own = cpu_seconds(*COMMAND, "-o", str(tmp_path / f"c{number}"), *events, "-d", "10s")
        ratios.append(own / other)
    print("CPU time, ours by trace-cmd's:", [f"{ratio:.2f}" for ratio in ratios])
    assert sorted(ratios)[1] <= 1.5
    assert tracefs.leftovers(tracefs_root) == []


def test_vms_and_their_offsets_are_in_the_capture(tracefs_root, debugfs_root, tmp_path, run_vmm):
    vmm = run_vmm("exits", 2)
    folder = tmp_path / "capture"

    record(folder, "--vmm", "--for", "exits", "-d", "500ms")

    content = json.loads((folder / "capture.json").read_text())
    assert len(content["vms"]) == 2
    for look in content["vms"]:
        (vm,) = (vm for vm in look["vms"] if vm["pid"] == vmm.pid)
        assert [vcpu["vcpu"] for vcpu in vm["vcpus"]] == [0, 1]
        assert all(vcpu["tid"] and "vmm-offset" in {r["source"] for r in vcpu["readings"]} for vcpu in vm["vcpus"])
    tids = {vcpu["tid"] for vcpu in vm["vcpus"]}
    host = Recording.open(folder / "host.dat")
    exits = host.pid[host.event_id == host.format_named("kvm", "kvm_userspace_exit").id]
    assert tids <= set(exits.tolist())
    assert Path(f"/proc/{vmm.pid}").exists()


def test_the_host_says_which_of_its_threads_are_the_guests_cpus(tracefs_root, tmp_path, run_vmm, fake_ssh):
    cpus = os.cpu_count() or 1
    vmm = run_vmm("exits", cpus, "--name", "vm1")
    folder = tmp_path / "capture"

    record(folder, "-d", "500ms", "--for", "exits", "--guest", "vm1=ssh://there", "--ssh-command", fake_ssh)

    (said,) = json.loads((folder / "capture.json").read_text())["guests"]
    assert said["vm"]["pid"] == vmm.pid
    host, guest = Recording.open(folder / "host.dat"), Recording.open(folder / "vm1.dat")
    pairs = tuple((int(cpu), tid) for cpu, tid in said["threads"].items())
    assert host.options.guests == [GuestOption("vm1", guest.options.trace_id, pairs)] and len(pairs) == cpus
    assert host.options.trace_id not in (None, guest.options.trace_id)
