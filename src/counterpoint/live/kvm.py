"""KVM's ioctls that tell of a guest's counter: what is sent and what comes back. include/uapi/linux/kvm.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_TYPE = 0xAE
_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _TYPE << 8 | number


KVM_GET_TSC_KHZ = _request(0, 0xA3, 0)
KVM_GET_MSRS = _request(_READ | _WRITE, 0x88, 8)
KVM_GET_CLOCK = _request(_READ, 0x7C, 48)
KVM_GET_ONE_REG = _request(_WRITE, 0xAB, 16)
KVM_GET_DEVICE_ATTR = _request(_WRITE, 0xE2, 24)

MSR_IA32_TSC = 0x10
TIMER_CNT = 0x603000000013DF1A
"""KVM_REG_ARM_TIMER_CNT: the guest's CNTVCT."""
PTIMER_CNT = 0x603000000013DF01
"""KVM_REG_ARM_PTIMER_CNT: the guest's CNTPCT."""

_CLOCK_TSC_STABLE, _CLOCK_REALTIME, _CLOCK_HOST_TSC = 2, 4, 8


@dataclass(frozen=True)
class Call:
    """An ioctl on a vCPU, or on ``descriptor`` where that is given: ``argument`` is copied to the VMM's stack.

    ``pointer`` is the offset in the argument of a u64 that points to the offset ``target`` in the argument.
    """

    name: str
    request: int
    argument: bytes = b""
    pointer: int | None = None
    target: int = 0
    descriptor: int | None = None

    def put(self, memory: bytearray, place: int, address: int) -> None:
        """Write the argument to ``memory`` at ``place``, which is ``address`` in the VMM."""
        memory[place : place + len(self.argument)] = self.argument
        if self.pointer is not None:
            struct.pack_into("<Q", memory, place + self.pointer, address + self.target)


def tsc_offset() -> Call:
    """KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET: L1's offset, exactly.

    (since Linux 5.16: 828ca89628bf "KVM: x86: Expose TSC offset controls to userspace")
    """
    return Call("KVM_VCPU_TSC_OFFSET", KVM_GET_DEVICE_ATTR, struct.pack("<IIQQQ", 0, 0, 0, 0, 0), 16, 24)


def tsc_offset_of(data: bytes) -> int:
    """The signed offset."""
    return int(struct.unpack_from("<q", data, 24)[0])


def tsc_msr() -> Call:
    """IA32_TSC as the host reads it: L1's counter at an instant between the two host readings around the call."""
    return Call("IA32_TSC", KVM_GET_MSRS, struct.pack("<IIIIQ", 1, 0, MSR_IA32_TSC, 0, 0))


def tsc_msr_of(data: bytes) -> int:
    """The counter, u64."""
    return int(struct.unpack_from("<Q", data, 16)[0])


def tsc_khz() -> Call:
    """The guest's rate in kHz (the result itself)."""
    return Call("KVM_GET_TSC_KHZ", KVM_GET_TSC_KHZ)


def one_reg(name: str, register: int) -> Call:
    """arm64: a register of the vCPU. TIMER_CNT is KVM's (and the ABI's) accident for CNTVCT: api.rst 4.68."""
    return Call(name, KVM_GET_ONE_REG, struct.pack("<QQQ", register, 0, 0), 8, 16)


def one_reg_of(data: bytes) -> int:
    """The register, u64."""
    return int(struct.unpack_from("<Q", data, 16)[0])


def clock(vm_descriptor: int) -> Call:
    """KVM_GET_CLOCK on the VM."""
    return Call("KVM_GET_CLOCK", KVM_GET_CLOCK, bytes(48), descriptor=vm_descriptor)


@dataclass(frozen=True)
class Clock:
    """What KVM_GET_CLOCK returned; the pair of one reading only where the master clock is in use (None otherwise)."""

    kvmclock_ns: int
    realtime_ns: int | None
    host_tsc: int | None


def clock_of(data: bytes) -> Clock:
    """Struct kvm_clock_data.

    (realtime and host_tsc since Linux 5.16: c68dc1b577ea "KVM: x86: Report host tsc and realtime values in
    KVM_GET_CLOCK")
    """
    nanoseconds, flags, realtime, host_tsc = struct.unpack_from("<QI4xQQ", data)
    return Clock(
        nanoseconds,
        realtime if flags & _CLOCK_REALTIME else None,
        host_tsc if flags & _CLOCK_HOST_TSC else None,
    )
