"""Which VMs run on this host, whose they are, and which thread runs which vCPU. Any VMM: KVM's own descriptors tell.

A process that has a descriptor ``anon_inode:kvm-vm`` is a VMM; ``anon_inode:kvm-vcpu:N`` is vCPU N of its VM
(kvm_vm_ioctl_create_vcpu in virt/kvm/kvm_main.c). KVM's debugfs has a folder PID-FD for each VM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from counterpoint.live import debugfs, libc
from counterpoint.live.arch import KVM_RUN

_THREAD_NAMES = (
    re.compile(r"CPU (\d+)/KVM"),  # QEMU with -name debug-threads=on
    re.compile(r"kvm-vcpu-(\d+)"),  # kvmtool
    re.compile(r"fc_vcpu (\d+)"),  # Firecracker
    re.compile(r"crosvm_vcpu(\d+)"),
    re.compile(r"vcpu[ _-]?(\d+)"),  # cloud-hypervisor and others
)
_VMMS = (
    ("qemu-kvm", "QEMU"), ("qemu", "QEMU"), ("kvm", "QEMU"), ("firecracker", "Firecracker"),
    ("cloud-hyperviso", "Cloud Hypervisor"), ("crosvm", "crosvm"), ("lkvm", "kvmtool"), ("vm", "kvmtool"),
    ("dragonball", "Dragonball"), ("stratovirt", "StratoVirt"), ("runsc", "gVisor"), ("bhyve", "bhyve"),
)  # fmt: skip
"""Beginnings of a program's name, the first that fits; "kvm" and "vm" must be all of it."""
_WHOLE = ("kvm", "vm")

Threads = dict[int, str]


@dataclass(frozen=True)
class Vcpu:
    """vCPU ``number`` (KVM's vcpu_id). ``thread_by`` says how its thread is known; None: it is not."""

    number: int
    descriptor: int | None
    tid: int | None
    thread_by: str | None
    hardware_id: int | None
    """x86: the APIC id that KVM gives a new vCPU; arm64: the MPIDR (affinity bits) that it gives one."""


@dataclass(frozen=True)
class Vm:
    """One VM: ``descriptor`` of its kvm-vm in the process ``pid``; ``folder`` in KVM's debugfs, where that is there."""

    pid: int
    descriptor: int
    vmm: str
    name: str | None
    vcpus: tuple[Vcpu, ...] = ()
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A name for people: the VM's own, or VMM-PID."""
        return self.name or f"{self.vmm.lower().replace(' ', '-')}-{self.pid}"


def find_vms(pids: Iterable[int] | None = None) -> tuple[list[Vm], list[str]]:
    """All VMs, or those of ``pids``, and what could not be looked at."""
    out: list[Vm] = []
    hidden: list[int] = []
    folders = debugfs.folders()
    for pid in sorted(pids) if pids is not None else _all_pids():
        try:
            links = _links(pid)
        except PermissionError:
            hidden.append(pid)
            continue
        except OSError:
            continue
        out += _vms_of(pid, links, folders)
    notes = []
    if hidden:
        notes.append(f"the descriptors of {len(hidden)} processes may not be read: run as root to see all VMs")
    return out, notes


def _all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _links(pid: int) -> dict[int, str]:
    """The KVM descriptors of a process and what they are."""
    out = {}
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with suppress(OSError, ValueError):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("anon_inode:kvm-v"):
                out[int(name)] = target
    return out


def _distinct(pid: int, descriptors: list[int]) -> list[int]:
    """One descriptor for each open file, the lowest."""
    out: list[int] = []
    for descriptor in sorted(descriptors):
        if not any(libc.same_file(pid, descriptor, other) for other in out):
            out.append(descriptor)
    return out


def _vms_of(pid: int, links: dict[int, str], folders: dict[tuple[int, int], Path]) -> list[Vm]:
    machines = _distinct(pid, [d for d, target in links.items() if target == "anon_inode:kvm-vm"])
    if not machines:
        return []
    numbers: dict[int, list[int]] = {}
    for descriptor, target in links.items():
        match = re.fullmatch(r"anon_inode:kvm-vcpu:(\d+)", target)
        if match:
            numbers.setdefault(int(match[1]), []).append(descriptor)
    threads = _threads(pid)
    # the folder's number is that of the thread that made the VM
    own = {fd: path for (maker, fd), path in folders.items() if maker in threads or maker == pid}
    vmm, name = _who(pid)
    out = []
    for machine in machines:
        folder = own.get(machine) or (next(iter(own.values())) if len(own) == len(machines) == 1 else None)
        notes: list[str] = []
        if len(machines) == 1:
            by_number: dict[int, int | None] = {n: min(fds) for n, fds in numbers.items()}
        else:
            # nothing tells which of several VMs a vCPU's descriptor belongs to, but the threads that debugfs names do
            by_number = dict.fromkeys(debugfs.vcpu_numbers(folder) if folder else ())
            notes.append(f"process {pid} has {len(machines)} VMs: which descriptors are this one's vCPUs is not known")
        vcpus = [_vcpu(pid, n, descriptor, folder, threads) for n, descriptor in sorted(by_number.items())]
        if len(machines) > 1:
            vcpus = [_with_descriptor(pid, vcpu, numbers.get(vcpu.number, [])) for vcpu in vcpus]
        out.append(Vm(pid, machine, vmm, name, tuple(vcpus), folder, tuple(notes)))
    return out


def _with_descriptor(pid: int, vcpu: Vcpu, candidates: list[int]) -> Vcpu:
    """A vCPU of one VM among several: its descriptor, where its thread is seen to run it."""
    running = _running(pid, vcpu.tid) if vcpu.tid is not None else None
    if running not in candidates:
        return vcpu
    return Vcpu(vcpu.number, running, vcpu.tid, vcpu.thread_by, vcpu.hardware_id)


def _vcpu(pid: int, number: int, descriptor: int | None, folder: Path | None, threads: Threads) -> Vcpu:
    tid, how = None, None
    told = debugfs.vcpu_pid(folder, number) if folder else None
    if told in threads:
        tid, how = told, "debugfs"
    if tid is None and descriptor is not None:
        found = [t for t in threads if _same(pid, _running(pid, t), descriptor)]
        if len(found) == 1:
            tid, how = found[0], "its system call"
    if tid is None:
        found = [t for t, name in threads.items() if number in _numbers_in(name)]
        if len(found) == 1:
            tid, how = found[0], "its name"
    return Vcpu(number, descriptor, tid, how, _hardware_id(number))


def _same(pid: int, one: int | None, other: int) -> bool:
    return one is not None and (one == other or libc.same_file(pid, one, other) is True)


def _running(pid: int, tid: int) -> int | None:
    """The descriptor that a thread has called KVM_RUN on, while it waits there; a running one is not seen."""
    with suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
        # number, then the arguments: ioctl(descriptor, KVM_RUN, 0); ioctl is 16 on x86_64 and 29 on aarch64
        called = words[0] == {"x86_64": "16", "aarch64": "29"}.get(libc.MACHINE) and int(words[2], 16) == KVM_RUN
        # the last is the program counter: kvm-nx-lpage-recovery, a kernel's thread in the VMM's process, has copied
        # the registers of the thread that first ran a vCPU, all but this
        if called and int(words[8], 16):
            return int(words[1], 16)
    return None


def _threads(pid: int) -> dict[int, str]:
    """The threads of a process and their names."""
    out = {}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                text = Path(f"/proc/{pid}/task/{name}/comm").read_text(encoding="utf-8", errors="replace")
                out[int(name)] = text.rstrip("\n")
    return out


def _numbers_in(name: str) -> set[int]:
    """The vCPU that a thread's name says."""
    return {int(match[1]) for match in (pattern.fullmatch(name) for pattern in _THREAD_NAMES) if match}


def _hardware_id(number: int) -> int | None:
    """What KVM gives vCPU ``number`` unless its VMM sets another: kvm_lapic_reset, reset_mpidr (sys_regs.c)."""
    if libc.MACHINE == "x86_64":
        return number
    if libc.MACHINE == "aarch64":
        return (number & 0xF) | (number >> 4 & 0xFF) << 8 | (number >> 12 & 0xFF) << 16
    return None


def _who(pid: int) -> tuple[str, str | None]:
    """(the VMM's name, the VM's name where the command line has one)."""
    program = ""
    with suppress(OSError):
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).split(" (deleted)")[0]
    if not program:
        with suppress(OSError):
            program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    arguments: list[str] = []
    with suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()[: 1 << 20]
        arguments = [part.decode("utf-8", "replace") for part in raw.split(b"\0")]
    lower = program.lower()
    vmm = next(
        (name for start, name in _VMMS if (lower == start if start in _WHOLE else lower.startswith(start))),
        program or "unknown",
    )
    return vmm, _vm_name(arguments)


def _vm_name(arguments: list[str]) -> str | None:
    """QEMU's -name [guest=]NAME, Firecracker's --id NAME, kvmtool's and others' --name NAME."""
    for flag, value in zip(arguments, arguments[1:]):
        if flag in ("-name", "--name", "--id"):
            parts = value.split(",")
            named = [part[6:] for part in parts if part.startswith("guest=")]
            return (named or parts)[0] or None
    return None
