"""What is made in tracefs is gone again, whatever ended the one who made it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import probes, tracefs
from counterpoint.live.probes import NAME, Recipe, change_filter, open_probe, read_once
from helpers import need

pytestmark = pytest.mark.usefixtures("alone")


def ours(root: Path) -> list[str]:
    """Everything of ours that is there."""
    events = [line for line in (root / "dynamic_events").read_text().splitlines() if "counterpoint" in line]
    return [*events, *(name for name in os.listdir(root / "instances") if name.startswith("counterpoint"))]


def uprobe(arguments: str = "vcpu_id=%si:s32 l1=%di:u64", key: str = "l1") -> Recipe:
    """A probe that every kernel with uprobes takes: labs(value) of the C library, whose second register is the vCPU."""
    need(Path("/proc/sys/kernel/perf_event_paranoid").exists(), "no perf events")
    libc = ctypes.CDLL(None)
    address = ctypes.cast(libc.labs, ctypes.c_void_p).value
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            words = line.split()
            return Recipe("p", f"{words[5]}:{address - low + int(words[2], 16):#x}", arguments, key)
    raise AssertionError("labs is nowhere")


def test_an_instance_is_there_and_gone(tracefs_root):
    before = (tracefs_root / "trace_clock").read_text(), (tracefs_root / "tracing_on").read_text()

    with tracefs.instance(tracefs_root) as instance:
        instance.enable("kvm", "kvm_write_tsc_offset")
        assert ours(tracefs_root) == [instance.folder.name]
        assert (tracefs_root / "events/kvm/kvm_write_tsc_offset/enable").read_text().strip() == "0"

    assert ours(tracefs_root) == []
    assert before == ((tracefs_root / "trace_clock").read_text(), (tracefs_root / "tracing_on").read_text())


def test_a_process_may_have_several(tracefs_root):
    with tracefs.instance(tracefs_root), tracefs.instance(tracefs_root):
        assert len(ours(tracefs_root)) == 2

    assert ours(tracefs_root) == []


def test_an_instance_is_gone_after_an_error(tracefs_root):
    with pytest.raises(ZeroDivisionError), tracefs.instance(tracefs_root):
        _ = 1 / 0

    assert ours(tracefs_root) == []


def test_without_tracefs_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(tracefs, "ROOTS", (tmp_path / "tracing",))

    with pytest.raises(UsageError, match=r"mount -t tracefs nodev .*tracing|run as root"):
        tracefs.require_root()


def test_an_event_is_recorded_with_its_exact_stamp(tracefs_root):
    recipe = uprobe()
    libc = ctypes.CDLL(None)
    with ExitStack() as stack:
        instance = stack.enter_context(tracefs.instance(tracefs_root))
        probe, missing = open_probe(stack, tracefs_root, instance, [recipe])
        need(probe is not None, f"no uprobe: {missing}")
        probe.enable()
        for value in (5, -7, 1 << 62):
            libc.labs(ctypes.c_long(value), 3)
        events, lost = instance.read()
        probe.disable()
        libc.labs(ctypes.c_long(99), 3)
        assert instance.read() == ([], False)

    assert not lost
    assert [(name, fields["l1"], fields["vcpu_id"]) for _, name, fields in events] == [
        (NAME, 5, 3), (NAME, -7 & (1 << 64) - 1, 3), (NAME, 1 << 62, 3),
    ]  # fmt: skip
    assert all(fields["common_pid"] == os.getpid() for _, _, fields in events)
    assert [stamp for stamp, _, _ in events] == sorted(stamp for stamp, _, _ in events)
    assert ours(tracefs_root) == []


def test_a_probe_is_read_once_and_then_only_changes_come_through(tracefs_root):
    recipe = uprobe("vcpu_id=%si:s32 l1=%di:u64 off=%di:u64")
    code = (
        "import ctypes, sys\nlabs = ctypes.CDLL(None).labs\nvalue = -50\nprint('ready', flush=True)\n"
        "import select\nwhile True:\n labs(ctypes.c_long(value), 2)\n"
        " if select.select([sys.stdin], [], [], 0.001)[0]:\n  line = sys.stdin.readline()\n"
        "  if not line: break\n  value = int(line)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        with ExitStack() as stack:
            instance = stack.enter_context(tracefs.instance(tracefs_root))
            probe, missing = open_probe(stack, tracefs_root, instance, [recipe])
            need(probe is not None, f"no uprobe: {missing}")
            found = read_once(probe, {process.pid}, seconds=5)
            assert [(r.level, r.low, r.exact) for r in found[process.pid]] == [("L1", -50, True)]

            probe.enable()
            probe.only_changes()
            instance.read()
            time.sleep(0.1)
            assert instance.read()[0] == []
            process.stdin.write("-77\n")
            process.stdin.flush()
            time.sleep(0.2)
            events, _ = instance.read()
            assert events and {fields["l1"] for _, _, fields in events} == {-77 & (1 << 64) - 1}
    finally:
        process.communicate("", timeout=60)
    assert ours(tracefs_root) == []


def test_a_recipe_that_the_kernel_refuses_is_passed_over(tracefs_root):
    with ExitStack() as stack:
        instance = stack.enter_context(tracefs.instance(tracefs_root))
        wrong = Recipe("p", "no_such_function_anywhere", "x=%di:u64", "x")
        none, missing = open_probe(stack, tracefs_root, instance, [wrong])
        assert none is None and "no_such_function_anywhere" in missing.reason
        probe, why = open_probe(stack, tracefs_root, instance, [wrong, uprobe()])
        need(probe is not None, f"no uprobe: {why}")
        assert probe.recipe.key == "l1"

    assert ours(tracefs_root) == []


def test_a_filter_names_what_is_known():
    recipe = Recipe("t", "kvm_entry", "", "l1")

    assert change_filter(recipe, {}) == ""
    assert change_filter(recipe, {7: 5, 3: 9}) == "!((common_pid == 3 && l1 == 9) || (common_pid == 7 && l1 == 5))"
    many = change_filter(recipe, dict.fromkeys(range(1000), 10**18))
    assert many == f"l1 != {10**18}"
    put = Recipe("p", "__kvm_timer_set_cntvoff", "", "voff", skip_zero=True)
    assert change_filter(put, {1: 4}) == "voff != 0 && !((common_pid == 1 && voff == 4))"


def test_readings_of_every_recipe_have_kvms_sign():
    class Fake:
        clock = "x86-tsc"

    x86 = probes.Probe(Fake(), "group", probes.RECIPES["x86_64"][0])
    nested = x86.readings(5, {"l1": -33 & (1 << 64) - 1, "off": -390 & (1 << 64) - 1, "ratio": 1, "l1_ratio": 1 << 32})
    assert [(r.level, r.low, r.host_counter) for r in nested] == [("L1", -33, 5), ("active", -390, 5)]
    arm = probes.Probe(Fake(), "group", probes.RECIPES["aarch64"][0])
    assert [(r.level, r.low) for r in arm.readings(5, {"voff": 13991199888, "poff": 108576873})] == [
        ("L1", -13991199888), ("physical", -108576873),
    ]  # fmt: skip


LEAVER = """
import sys, time
from contextlib import ExitStack
from counterpoint.live import tracefs
from counterpoint.live.probes import Recipe, open_probe
root = tracefs.require_root()
with ExitStack() as stack:
    instance = stack.enter_context(tracefs.instance(root))
    probe, missing = open_probe(stack, root, instance, [Recipe("p", sys.argv[1], "l1=%di:u64", "l1")])
    if probe:
        probe.enable()
    print("ready", bool(probe), flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_named_and_swept(tracefs_root):
    command = [sys.executable, "-c", LEAVER, uprobe().place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert tracefs.leftovers(tracefs_root) == []
        process.kill()
    need("True" in said, "no uprobe")

    left = tracefs.leftovers(tracefs_root)
    assert [x.kind for x in left] == ["instance", "dynamic event"]
    assert len(ours(tracefs_root)) == 2
    out = subprocess.run([sys.executable, "-m", "counterpoint", "doctor"], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stdout.count("of a process that was killed") == 2
    cures = re.findall(r"-> (rmdir .*|echo -:.*)", out.stdout)
    assert len(cures) == 2

    # the command that doctor names does it, and so does the next run
    subprocess.run(["sh", "-c", cures[0]], check=True)
    assert [x.kind for x in tracefs.sweep(tracefs_root)] == ["dynamic event"]
    assert ours(tracefs_root) == []


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyboardInterrupt", "raise MemoryError"])
def test_a_process_that_ends_in_the_middle_removes_its_own(tracefs_root, end):
    code = LEAVER.replace("time.sleep(60)", end)

    done = subprocess.run([sys.executable, "-c", code, uprobe().place], check=False, capture_output=True)

    assert done.returncode not in (0, 2)
    assert ours(tracefs_root) == []


def test_another_process_with_the_same_number_is_not_the_one_that_was_killed(tracefs_root):
    own = tracefs.own_name()
    assert not tracefs._is_dead(own)
    pid, begun = own.split("_")[1:3]
    assert tracefs._is_dead(f"counterpoint_{pid}_{int(begun) + 1}")
    assert not tracefs._is_dead("somebody_elses")
