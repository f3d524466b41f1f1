"""What a capture says of its machine, and of the VM that a guest is."""

from __future__ import annotations

import os
import time

import pytest

from counterpoint.claims.given import claim_of
from counterpoint.errors import UsageError
from counterpoint.live import counter, machine, report
from counterpoint.live.kvm import Clock
from counterpoint.live.machine import VmLook
from counterpoint.live.model import ACTIVE, L1, HostOffsets, Reading, VcpuOffsets
from counterpoint.live.vms import Vcpu, Vm
from helpers import need


def reading(low: int, source: str = "debugfs", level: str = L1, high: int | None = None) -> Reading:
    return Reading(source, level, low, low if high is None else high, 5, 7)


@pytest.fixture
def look(monkeypatch):
    """Two VMs, read twice; the first one's offset changed in between."""
    vcpus = tuple(Vcpu(n, 10 + n, 100 + n, "debugfs", n) for n in range(2))
    one = Vm(50, 3, "QEMU", "web", vcpus)
    other = Vm(60, 3, "crosvm", None, (Vcpu(0, 9, 200, "debugfs", 0), Vcpu(4, 8, 201, "debugfs", 4)))
    looks = []
    for offset in (-1000, -2000):
        found = HostOffsets([VcpuOffsets(vm, vcpu) for vm in (one, other) for vcpu in vm.vcpus], [one, other])
        found.vcpus[0].readings = [reading(offset), reading(-7, "vmm-offset"), reading(-99, level=ACTIVE)]
        found.vcpus[1].readings = [reading(offset), reading(-8, "vmm-msr", high=5)]
        found.vcpus[2].readings = [reading(-5)]
        found.clocks[50, 3] = Clock(1, 1700, 1234)
        found.clocks[60, 3] = Clock(1, None, None)
        looks.append(found)
    monkeypatch.setattr(machine, "gather", lambda _: looks.pop(0))
    out = VmLook(vmm=True, probes=False)
    out.look()
    out.look()
    return out


def test_claims_are_the_exact_offsets_of_l1_each_once(look, monkeypatch):
    monkeypatch.setattr(report.libc, "MACHINE", "x86_64")
    claims = look.claims(look.vm_of("web"))

    assert [(c["cpu"], c["offset"], c["source"]) for c in claims] == [
        (0, -1000, "debugfs"), (0, -7, "vmm-offset"), (1, -1000, "debugfs"),
        (0, -2000, "debugfs"), (1, -2000, "debugfs"),
    ]  # fmt: skip
    assert [claim_of(claim, "capture.json", "a claim")[1].offset for claim in claims] == [c["offset"] for c in claims]
    assert claims[0]["vm"] == {"pid": 50, "descriptor": 3, "vmm": "QEMU", "name": "web"} and "guest" not in claims[0]


def test_an_offset_that_changed_is_left_to_the_recordings_own_probe(look, monkeypatch):
    monkeypatch.setattr(report.libc, "MACHINE", "x86_64")
    look.in_recording = True

    assert [(c["cpu"], c["offset"], c["source"]) for c in look.claims(look.vm_of("web"))] == [(0, -7, "vmm-offset")]
    assert [c["offset"] for c in look.claims(look.vm_of("60"))] == [-5]


def test_claims_of_arm64_are_of_cntvoff(look, monkeypatch):
    monkeypatch.setattr(report.libc, "MACHINE", "aarch64")
    claims = look.claims(look.vm_of("60"))

    assert [(c["cpu"], c["cntvoff"]) for c in claims] == [(0, 5)] and "offset" not in claims[0]


def test_a_guest_is_the_vm_of_its_name_or_the_only_one(look):
    assert look.vm_of("web").pid == look.vm_of("50").pid == 50
    assert look.vm_of("crosvm-60").pid == 60
    assert look.vm_of("10-0-0-5") is None
    for found in look.found:
        del found.vms[1]
    assert look.vm_of("10-0-0-5").pid == 50


def test_a_guest_is_the_vm_of_its_cid(look, monkeypatch):
    lines = {50: "qemu -device vhost-vsock-pci,guest-cid=33,x=1", 60: "crosvm run --cid 3 kernel"}
    monkeypatch.setattr(machine, "command_line", lines.get)

    assert look.vm_of("x", "vsock://3:823").pid == 60
    assert look.vm_of("x", "vsock://33").pid == 50
    assert look.vm_of("x", "vsock://333") is None
    assert machine.has_cid("cloud-hypervisor --vsock cid=7,socket=/s", 7) and machine.has_cid("lkvm --vsock 7", 7)
    assert not machine.has_cid("qemu -smp 7 -name acid=7", 7)


def test_threads_are_given_where_vcpus_are_numbered_as_cpus(look):
    assert look.threads(look.vm_of("web"), 2) == {"0": 100, "1": 101}
    assert look.threads(look.vm_of("web"), 4) == {}
    assert look.threads(look.vm_of("60"), 2) == {}


def test_pairs_of_kvm_are_those_of_the_master_clock(look):
    assert look.pairs() == [{"counter": 1234, "realtime_ns": 1700, "bound_ns": 0, "source": "kvm_get_clock"}] * 2


def test_what_cannot_be_read_is_a_note(monkeypatch):
    def nothing(_):
        raise UsageError("no source of offsets answers here")

    monkeypatch.setattr(machine, "gather", nothing)
    out = VmLook(vmm=False, probes=False)
    out.look()

    assert out.notes == ["offsets: no source of offsets answers here"] and out.vms == [] and out.vm_of("x") is None


def test_a_reading_lies_between_two_of_the_counter():
    try:
        counter.reader()
    except UsageError as err:
        need(False, str(err))
    before = time.time_ns()
    found = machine.readings()
    pair = machine.clock_pair(found)

    assert all(each["before"] <= each["after"] for each in found.values())
    assert before <= pair["realtime_ns"] <= time.time_ns() and pair["counter"] == found["realtime_ns"]["before"]
    width = found["realtime_ns"]["after"] - found["realtime_ns"]["before"]
    assert pair["bound_ns"] * counter.frequency().low_hz >= width * 10**9


def test_this_machine_is_described():
    said = machine.machine()

    assert said["kernel"] == os.uname().release and len(said["cpus"]) >= 1
    assert machine.clock_line("local") == {"name": "local"}
    assert machine.thread_names()[os.getpid()]
