"""Calls made inside a VMM: right, harmless, and harmless when whoever makes them is killed in the middle."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

import pytest

from counterpoint.live import inject, kvm, libc, seccomp, vms
from counterpoint.live.inject import NOT_ALLOWED, Injector, NotInjected
from helpers import need
from live.conftest import FULL

pytestmark = pytest.mark.usefixtures("as_root")

OFFSET = [kvm.tsc_offset()]
KVM_RUN = 0xAE80


def vcpus_of(pid: int) -> list[vms.Vcpu]:
    (vm,), _ = vms.find_vms([pid])
    found = list(vm.vcpus)
    assert all(vcpu.tid and vcpu.descriptor for vcpu in found)
    return found


def ask(injector: Injector, vcpu: vms.Vcpu, calls=OFFSET, **more) -> inject.Injection:
    assert vcpu.tid is not None and vcpu.descriptor is not None
    return injector.call(vcpu.tid, vcpu.descriptor, calls, **more)


def sound(vmm) -> None:
    """The guest runs on, and no register, memory or errno of its threads has changed."""
    before = [vmm.counts(n) for n in range(vmm.vcpus)]
    end = time.monotonic() + 60
    while time.monotonic() < end and any(vmm.counts(n)["rounds"] <= b["rounds"] for n, b in enumerate(before)):
        time.sleep(0.01)
    for n, was in enumerate(before):
        now = vmm.counts(n)
        assert now["rounds"] > was["rounds"], "the guest stands still"
        assert (now["mismatches"], now["unexpected"]) == (0, 0)


def tracer_of(pid: int, tid: int) -> str:
    return inject.status_of(pid, tid)["TracerPid"]


@pytest.mark.parametrize("guest", ["exits", "busy", "idle"])
def test_a_call_gives_kvms_word_and_its_counter_lies_in_the_bracket(run_vmm, guest):
    vmm = run_vmm(guest)
    injector = Injector(vmm.pid)

    for vcpu in vcpus_of(vmm.pid):
        exact, msr, khz = ask(injector, vcpu, [kvm.tsc_offset(), kvm.tsc_msr(), kvm.tsc_khz()]).answers

        assert (exact.result, msr.result) == (0, 1)
        assert khz.result > 100_000
        assert msr.before <= kvm.tsc_msr_of(msr.data) - kvm.tsc_offset_of(exact.data) <= msr.after


def test_the_offset_brackets_the_guests_own_readings(run_vmm):
    vmm = run_vmm("exits")
    injector = Injector(vmm.pid)

    for vcpu in vcpus_of(vmm.pid):
        offset = kvm.tsc_offset_of(ask(injector, vcpu).answers[0].data)
        brackets = vmm.brackets(vcpu.number)

        assert all(before <= guest - offset <= after for before, guest, after in brackets)


def test_injections_into_a_busy_vmm_change_nothing(run_vmm):
    vmm = run_vmm("busy")
    injector = Injector(vmm.pid)
    vcpus = vcpus_of(vmm.pid)

    stood = [ask(injector, vcpus[n % len(vcpus)]).stood_ns for n in range(1000 if FULL else 150)]

    sound(vmm)
    vmm.end()
    assert min(stood) > 0
    # (where all CPUs are busy a thread waits for one as well: the least says what the tool takes, benchmarks/ the rest)
    figures = [f"{each / 1000:.0f}" for each in (statistics.median(stood), min(stood), max(stood))]
    print("stood still, us: median {}, least {}, most {}; loads {}".format(*figures, os.getloadavg()))


def test_the_tool_is_scheduled_afterwards_as_before(run_vmm):
    vmm = run_vmm("busy")
    injector = Injector(vmm.pid)
    before = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)

    ask(injector, vcpus_of(vmm.pid)[0])

    assert (os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)) == before
    sound(vmm)


def test_injections_between_signals_change_nothing(run_vmm):
    vmm = run_vmm("exits")
    injector = Injector(vmm.pid)
    vcpus = vcpus_of(vmm.pid)
    done = threading.Event()

    def storm() -> None:
        command = "import os, sys, time\nwhile True:\n [os.kill(int(p), 10) for p in sys.argv[1:]]; time.sleep(0.001)"
        # a thread's id reaches its process: any of its threads gets the signal
        process = subprocess.Popen([sys.executable, "-c", command, *(str(vcpu.tid) for vcpu in vcpus)])
        done.wait()
        process.kill()
        process.wait()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for n in range(200 if FULL else 50):
            assert ask(injector, vcpus[n % 2]).answers[0].result == 0
    finally:
        done.set()
        thread.join()
    sound(vmm)


class _Dies:
    """Takes the place of ptrace and the like: kills its own process at the n-th call, before it or after it."""

    def __init__(self, at: int, *, after: bool) -> None:
        self._left = at
        self._after = after

    def around(self, function):
        def call(*arguments):
            self._left -= 1
            if self._left == 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def killed(injector: Injector, vcpu: vms.Vcpu, at: int, *, after: bool) -> bool:
    """Whether a process that injects was killed at its n-th step; False: it was through before."""
    pid = os.fork()
    if not pid:
        try:
            dies = _Dies(at, after=after)
            for name in ("ptrace", "read_memory", "write_memory"):
                setattr(libc, name, dies.around(getattr(libc, name)))
            ask(injector, vcpu, [kvm.tsc_offset(), kvm.tsc_msr()], tries=1)
        except NotInjected:
            pass
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("guest", ["exits", "busy", "idle"])
def test_a_tool_killed_at_any_step_leaves_a_vmm_that_runs_right(run_vmm, guest):
    vmm = run_vmm(guest)
    injector = Injector(vmm.pid)
    vcpus = vcpus_of(vmm.pid)
    reached = 0

    for after in (False, True):
        step = 1
        while killed(injector, vcpus[step % 2], step, after=after) or step < 10:
            assert tracer_of(vmm.pid, vcpus[step % 2].tid) == "0"
            reached = max(reached, step)
            step += 1

    # seize, interrupt, registers, frame, two calls of four steps each, back, detach
    assert reached >= 20
    if guest != "idle":
        sound(vmm)
    for vcpu in vcpus:
        assert ask(injector, vcpu).answers[0].result == 0
    vmm.end()


def test_a_tool_killed_at_random_leaves_a_vmm_that_runs_right(run_vmm):
    vmm = run_vmm("exits")
    injector = Injector(vmm.pid)
    vcpus = vcpus_of(vmm.pid)
    chance = random.Random(4)
    hit = 0

    for _ in range(100 if FULL else 20):
        pid = os.fork()
        if not pid:
            try:
                while True:
                    ask(injector, vcpus[0])
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.001, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        hit += 1
        assert tracer_of(vmm.pid, vcpus[0].tid) == "0"

    assert hit
    sound(vmm)
    vmm.end()


def test_nothing_is_done_to_a_thread_that_another_tracer_has(run_vmm):
    vmm = run_vmm("exits")
    vcpu = vcpus_of(vmm.pid)[0]
    assert vcpu.tid is not None
    ready, end = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            libc.ptrace(libc.PTRACE_SEIZE, vcpu.tid)
            os.write(ready[1], b"x")
            os.read(end[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(NotInjected, match=f"another tracer is attached .process {pid}."):
            ask(Injector(vmm.pid), vcpu)
    finally:
        os.write(end[1], b"x")
        os.waitpid(pid, 0)
    sound(vmm)


def test_nothing_is_done_to_a_process_that_is_stopped(run_vmm):
    vmm = run_vmm("exits")
    vcpu = vcpus_of(vmm.pid)[0]
    os.kill(vmm.pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + 60
        while inject.status_of(vmm.pid, vcpu.tid)["State"][0] != "T" and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(NotInjected, match="stopped"):
            ask(Injector(vmm.pid), vcpu)
    finally:
        os.kill(vmm.pid, signal.SIGCONT)
    sound(vmm)


def test_a_call_on_another_vcpu_than_the_threads_is_not_made(run_vmm):
    vmm = run_vmm("exits")
    one, other = vcpus_of(vmm.pid)

    with pytest.raises(NotInjected, match="runs another vCPU"):
        Injector(vmm.pid).call(one.tid, other.descriptor, OFFSET)
    sound(vmm)


def test_a_call_that_the_vmms_seccomp_filter_forbids_is_not_made(run_vmm):
    vmm = run_vmm("exits", 1, "--allow", hex(kvm.KVM_GET_MSRS))
    (vcpu,) = vcpus_of(vmm.pid)
    assert inject.status_of(vmm.pid, vcpu.tid)["Seccomp"] == "2"

    offset, msr = ask(Injector(vmm.pid), vcpu, [kvm.tsc_offset(), kvm.tsc_msr()]).answers

    assert (offset.result, msr.result) == (NOT_ALLOWED, 1)
    sound(vmm)


def test_seccomp_filters_are_run_once_and_while_the_thread_runs(run_vmm, monkeypatch):
    vmm = run_vmm("exits", 1, "--allow", hex(kvm.KVM_GET_MSRS), "--allow", hex(kvm.KVM_GET_DEVICE_ATTR))
    (vcpu,) = vcpus_of(vmm.pid)
    injector, ran, allows = Injector(vmm.pid), [], seccomp.allows

    def run(*arguments):
        ran.append(tracer_of(vmm.pid, vcpu.tid))
        return allows(*arguments)

    monkeypatch.setattr(seccomp, "allows", run)
    found = [ask(injector, vcpu, [kvm.tsc_offset(), kvm.tsc_msr()]) for _ in range(5)]

    assert all([answer.result for answer in each.answers] == [0, 1] for each in found)
    # a return from handlers and two ioctls, once for each place that the thread's stack was at
    assert set(ran) == {"0"} and len(ran) < 15
    sound(vmm)


def test_a_thread_that_is_gone_is_said_to_be(run_vmm):
    vmm = run_vmm("exits")
    injector = Injector(vmm.pid)

    with pytest.raises(NotInjected, match="gone"):
        injector.call(2**22 - 3, 5, OFFSET)


def test_a_process_that_runs_no_vcpu_in_the_thread_is_left_alone():
    need(libc.MACHINE in ("x86_64", "aarch64"), "x86_64 or aarch64 is needed")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(NotInjected, match="never where a call can be made"):
            Injector(process.pid).call(process.pid, 5, OFFSET, tries=3)
        assert process.poll() is None
    finally:
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
