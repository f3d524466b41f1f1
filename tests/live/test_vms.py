"""VMs are found by KVM's own descriptors, whatever the VMM; threads by debugfs, by their system call, by their name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from counterpoint.live import debugfs, vms
from counterpoint.live.debugfs import read_active


def test_a_vmm_is_found_with_its_vcpus_and_threads(run_vmm):
    vmm = run_vmm("idle", 3, "--name", "guest=web,debug-threads=on")

    (vm,), _ = vms.find_vms([vmm.pid])

    assert (vm.pid, vm.name, vm.label) == (vmm.pid, "web", "web")
    assert [vcpu.number for vcpu in vm.vcpus] == [0, 1, 2]
    names = [Path(f"/proc/{vmm.pid}/task/{vcpu.tid}/comm").read_text() for vcpu in vm.vcpus]
    assert names == ["vcpu 0\n", "vcpu 1\n", "vcpu 2\n"]
    assert [vcpu.hardware_id for vcpu in vm.vcpus] == [0, 1, 2]
    assert vm in vms.find_vms()[0]


def test_a_vcpu_is_counted_once_however_many_descriptors_it_has(run_vmm):
    # the VMM's mapping of struct kvm_run holds a second descriptor of each vCPU
    vmm = run_vmm("idle", 1)
    links = [os.readlink(f"/proc/{vmm.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{vmm.pid}/fd")]
    assert links.count("anon_inode:kvm-vcpu:0") == 2

    (vm,), _ = vms.find_vms([vmm.pid])

    assert len(vm.vcpus) == 1


def test_threads_are_known_without_names(run_vmm, monkeypatch):
    vmm = run_vmm("idle")
    monkeypatch.setattr(vms, "_THREAD_NAMES", ())
    monkeypatch.setattr(debugfs, "vcpu_pid", lambda *_: None)

    (vm,), _ = vms.find_vms([vmm.pid])

    assert [vcpu.thread_by for vcpu in vm.vcpus] == ["its system call", "its system call"]
    assert len({vcpu.tid for vcpu in vm.vcpus}) == 2


def test_debugfs_names_the_threads(run_vmm, debugfs_root):
    vmm = run_vmm("exits")

    (vm,), _ = vms.find_vms([vmm.pid])

    assert vm.folder is not None and vm.folder.parent == debugfs_root
    assert [vcpu.thread_by for vcpu in vm.vcpus] == ["debugfs", "debugfs"]


def test_a_process_without_a_vm_is_none():
    assert vms.find_vms([os.getpid()]) == ([], [])
    assert vms.find_vms([2**22 - 3]) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["qemu", "-name", "guest=a,debug-threads=on"], "a"),
        (["qemu", "-name", "b,process=x"], "b"),
        (["firecracker", "--id", "c"], "c"),
        (["lkvm", "run", "--name", "d"], "d"),
        (["crosvm", "run"], None),
        (["qemu", "-name"], None),
    ],
)
def test_names_from_command_lines(arguments, name):
    assert vms._vm_name(arguments) == name


@pytest.mark.parametrize(
    ("thread", "vcpu"),
    [("CPU 3/KVM", 3), ("fc_vcpu 0", 0), ("kvm-vcpu-12", 12), ("crosvm_vcpu2", 2), ("vcpu5", 5), ("vcpu 7", 7)],
)
def test_names_of_vcpu_threads(thread, vcpu):
    assert vms._numbers_in(thread) == {vcpu}


@pytest.mark.parametrize("thread", ["qemu-system-x86", "IO iothread1", "kvm-nx-lpage-re", "vhost-123", "CPU x/KVM"])
def test_names_of_other_threads(thread):
    assert vms._numbers_in(thread) == set()


def test_the_vmm_is_named_by_its_program(tmp_path):
    for program, name in (("qemu-system-x86_64", "QEMU"), ("firecracker", "Firecracker"), ("own-vmm", "own-vmm")):
        link = tmp_path / program
        link.write_bytes(Path("/bin/sleep").read_bytes())
        link.chmod(0o755)
        process = subprocess.Popen([link, "20"])
        try:
            assert vms._who(process.pid) == (name, None)
        finally:
            process.kill()
            process.wait()


class Folder:
    """A VM's folder in debugfs whose files give one value after the other."""

    def __init__(self, monkeypatch, **values):
        self.values = {name.replace("_offset", "-offset"): list(each) for name, each in values.items()}
        monkeypatch.setattr(debugfs, "_integer", self.read)

    def read(self, path):
        left = self.values.get(path.name)
        return None if left is None else left.pop(0) if len(left) > 1 else left[0]


def test_debugfs_is_read_again_while_the_vcpu_runs_its_own_guest(monkeypatch, tmp_path):
    Folder(monkeypatch, guest_mode=[1, 1, 0, 1, 0, 0], tsc_offset=[-390, -391, -33])

    active = read_active(tmp_path, 0)

    assert (active.offset, active.nested, active.reads) == (-33, 0, 3)


def test_debugfs_says_so_where_the_vcpu_never_left_its_guest(monkeypatch, tmp_path):
    Folder(monkeypatch, guest_mode=[1], tsc_offset=[-390])

    active = read_active(tmp_path, 0)

    assert (active.offset, active.nested) == (-390, 1)


def test_debugfs_of_arm64_with_the_rfcs_file(monkeypatch, tmp_path):
    Folder(monkeypatch, cntvoff=[13991199888])

    active = read_active(tmp_path, 0)

    assert (active.offset, active.nested, active.ratio) == (-13991199888, None, None)


def test_debugfs_without_the_offset(monkeypatch, tmp_path):
    Folder(monkeypatch, guest_mode=[0])

    assert read_active(tmp_path, 0) is None
