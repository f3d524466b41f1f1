"""A VMM in Python: some vCPUs in real mode, each run by a thread of machine code that checks itself (vcpu_loop.s).

    python vmm.py REPORT [--vcpus N] [--guest exits|busy|idle] [--name NAME] [--allow REQUEST]

The guests store their TSC and leave (``exits``: at once, ``busy``: after some 10,000 instructions), or halt for ever
in the kernel (``idle``). REPORT is a file that is mapped: of each vCPU a struct as vcpu_loop.s has it. "ready" is
printed when all run; they end when standard input does. Exit status 0: no register, memory, errno, signal mask or
alternate stack changed.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

STRIDE = 36864
"""Bytes of a vCPU's struct in the report."""
RING, PATTERNS, BRACKETS = 128, 32896, 1024
ERRNO = 77

_LOOP = base64.b64decode(
    "U1VBVEFVQVZBV0iB7AgBAABIiTwkSMdEJDAAAAAASIsEJEiDOAAPheYEAADF/m+AgIAAAMX+b4iggAAAxf5vkMCAAADF/m+Y4IAAAMX+b6AA"
    "gQAAxf5vqCCBAADF/m+wQIEAAMX+b7hggQAAxX5vgICBAADFfm+IoIEAAMV+b5DAgQAAxX5vmOCBAADFfm+gAIIAAMV+b6ggggAAxX5vsECC"
    "AADFfm+4YIIAAEi5WlpaWlpaWlpIiUwk+Ej/wUiJTCTwSP/BSIlMJOhI/8FIiUwk4Ej/wUiJTCTYSP/BSIlMJNBI/8FIiUwkyEj/wUiJTCTA"
    "SP/BSIlMJLhI/8FIiUwksEj/wUiJTCSoSP/BSIlMJKBI/8FIiUwkmEj/wUiJTCSQSP/BSIlMJIhI/8FIiUwkgEj/wUi7ARsbGxsbGxtIvQIr"
    "KysrKysrSbgDgYGBgYGBgUm5BJGRkZGRkZFJugWhoaGhoaGhSbwGwcHBwcHBwUm9B9HR0dHR0dFJvgjh4eHh4eHhSb8J8fHx8fHx8UiLeCi+"
    "gK4AAA+u6A8xD67oSMHiIEgJ0EiDfCQwAHUFSIlEJBgx0rgQAAAA+Q8FD5NEJAhIiUQkEEiJVCQoD67oDzEPruhIweIgSAnQSIlEJCBIiwQk"
    "SLkBGxsbGxsbG0g5yw+FgwIAAEi5AisrKysrKytIOc0PhXACAABIuQOBgYGBgYGBSTnID4VdAgAASLkEkZGRkZGRkUk5yQ+FSgIAAEi5BaGh"
    "oaGhoaFJOcoPhTcCAABIuQbBwcHBwcHBSTnMD4UkAgAASLkH0dHR0dHR0Uk5zQ+FEQIAAEi5COHh4eHh4eFJOc4Phf4BAABIuQnx8fHx8fHx"
    "STnPD4XrAQAASLmArgAAAAAAAEg5zg+F2AEAAEg7eCgPhc4BAABIg3wkKAAPhcIBAACAfCQIAA+FtwEAAEi5WlpaWlpaWlpIOUwk+A+FogEA"
    "AEj/wUg5TCTwD4WUAQAASP/BSDlMJOgPhYYBAABI/8FIOUwk4A+FeAEAAEj/wUg5TCTYD4VqAQAASP/BSDlMJNAPhVwBAABI/8FIOUwkyA+F"
    "TgEAAEj/wUg5TCTAD4VAAQAASP/BSDlMJLgPhTIBAABI/8FIOUwksA+FJAEAAEj/wUg5TCSoD4UWAQAASP/BSDlMJKAPhQgBAABI/8FIOUwk"
    "mA+F+gAAAEj/wUg5TCSQD4XsAAAASP/BSDlMJIgPhd4AAABI/8FIOUwkgA+F0AAAAEj/wcX9dICAgAAAxfV0iKCAAADF7XSQwIAAAMXldJjg"
    "gAAAxd10oACBAADF1XSoIIEAAMXNdLBAgQAAxcV0uGCBAADFPXSAgIEAAMU1dIiggQAAxS10kMCBAADFJXSY4IEAAMUddKAAggAAxRV0qCCC"
    "AADFDXSwQIIAAMUFdLhgggAAxf3bwcX928LF/dvDxf3bxMX928XF/dvGxf3bx8TBfdvAxMF928HEwX3bwsTBfdvDxMF928TEwX3bxcTBfdvG"
    "xMF928fF/dfIg/n/dARI/0AQSP9ACEiLTCQQSIP5/HQkSIXJdRVIi1Awi0oIg/kCdCWD+QUPhHX7//9IiUhASP9AIOtfSP9AGEjHRCQwAQAA"
    "AOlZ+///SItIWEiJyoHi/wMAAMHiBUiNlBCAAAAASItcJBhIiRpIi1g4SIsbSIlaCEiLXCQgSIlaEEiJShhI/8FIiUhYSMdEJDAAAAAA6Qz7"
    "///F+HdIgcQIAQAAQV9BXkFdQVxdW8M="
)

KVM_CREATE_VM, KVM_CREATE_IRQCHIP, KVM_GET_VCPU_MMAP_SIZE = 0xAE01, 0xAE60, 0xAE04
KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION = 0xAE41, 0x4020AE46
KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_REGS, KVM_SET_MSRS = 0x8138AE83, 0x4138AE84, 0x4090AE82, 0x4008AE89

# rdtsc; mov [bx], eax; mov [bx+4], edx; out 0x10, al; mov cx, COUNT; again: inc dword [bx+8]; dec cx; jnz again; jmp
_GUEST = bytes.fromhex("0f31 668907 66895704 e610 b9ffff 66ff4708 49 75f9")
_IDLE = bytes.fromhex("fa f4 ebfd")


def guest_code(kind: str) -> bytes:
    if kind == "idle":
        return _IDLE
    code = bytearray(_GUEST)
    struct.pack_into("<H", code, code.index(b"\xb9") + 1, 1 if kind == "exits" else 3000)
    return bytes(code) + bytes((0xEB, 256 - len(code) - 2))


class Vmm:
    """One VM. ``report`` is the mapped file."""

    def __init__(self, report: mmap.mmap, vcpus: int, kind: str) -> None:
        self.report = report
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        self.memory = mmap.mmap(-1, 1 << 16)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(self.vm, KVM_SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0, 1 << 16, self.address))
        if kind == "idle":
            fcntl.ioctl(self.vm, KVM_CREATE_IRQCHIP, 0)
        code = guest_code(kind)
        self.memory[0x1000 : 0x1000 + len(code)] = code
        size = fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_LOOP)
        self.loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        self.kept = [page]
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(report))
        self.changed: list[str] = []
        self.vcpus = [self._vcpu(index, size) for index in range(vcpus)]
        self.threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(vcpus)]

    def _vcpu(self, index: int, size: int) -> int:
        descriptor = fcntl.ioctl(self.vm, KVM_CREATE_VCPU, index)
        sregs = bytearray(fcntl.ioctl(descriptor, KVM_GET_SREGS, bytes(312)))
        struct.pack_into("QIH", sregs, 0, 0, 0xFFFF, 0)
        fcntl.ioctl(descriptor, KVM_SET_SREGS, bytes(sregs))
        registers = [0] * 18
        slot = 0x2000 + 64 * index
        registers[1], registers[16], registers[17] = slot, 0x1000, 2
        fcntl.ioctl(descriptor, KVM_SET_REGS, struct.pack("18Q", *registers))
        run = mmap.mmap(descriptor, size)
        self.kept.append(run)
        at = index * STRIDE
        run_address = ctypes.addressof(ctypes.c_char.from_buffer(run))
        struct.pack_into("3Q", self.report, at + 40, descriptor, run_address, self.address + slot)
        self.report[at + PATTERNS : at + PATTERNS + 512] = bytes((n * 7 + index) & 0xFF for n in range(512))
        return descriptor

    def _run(self, index: int) -> None:
        Path("/proc/thread-self/comm").write_text(f"vcpu {index}")
        errno = ctypes.CDLL(None)["__errno_location"]
        errno.restype = ctypes.POINTER(ctypes.c_int)
        location = errno()
        blocked = {signal.SIGUSR2, signal.SIGRTMIN + 3}
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        libc, stack = ctypes.CDLL(None), ctypes.create_string_buffer(65536)
        libc.sigaltstack(struct.pack("QiQ", ctypes.addressof(stack), 0, len(stack)), None)
        before, after = ctypes.create_string_buffer(24), ctypes.create_string_buffer(24)
        libc.sigaltstack(None, before)
        location[0] = ERRNO
        self.loop(self.base + index * STRIDE)
        found = location[0]
        libc.sigaltstack(None, after)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if found != ERRNO or mask != blocked or before.raw != after.raw:
            self.changed.append(f"errno {found}, mask {mask}, stack {before.raw!r} {after.raw!r}")

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        for index in range(len(self.vcpus)):
            struct.pack_into("Q", self.report, index * STRIDE, 1)
        end = time.monotonic() + 30
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < end:
                # a vCPU that halts leaves KVM_RUN for a signal only
                signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
                thread.join(0.05)

    def write_tsc(self, index: int, value: int) -> None:
        """Write IA32_TSC as a VMM that restores does; this vCPU's thread must not be in KVM_RUN for long."""
        fcntl.ioctl(self.vcpus[index], KVM_SET_MSRS, struct.pack("IIIIQ", 1, 0, 0x10, 0, value))


def allow_only(requests: list[int]) -> None:
    """A seccomp filter for this thread: of all ioctls these requests only, and every other system call."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = [(0x20, 0, 0, 0), (0x15, 0, len(requests) + 2, 16), (0x20, 0, 0, 24)]
    code += [(0x15, len(requests) - n, 0, request) for n, request in enumerate(requests)]
    code += [(0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
    # the jump of the first test goes to the last instruction; those of the requests, too
    program = b"".join(struct.pack("HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(program)
    filter_ = ctypes.create_string_buffer(struct.pack("H6xQ", len(code), ctypes.addressof(buffer)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("report")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--guest", choices=("exits", "busy", "idle"), default="exits")
    parser.add_argument("--name")
    parser.add_argument("--allow", action="append", type=lambda text: int(text, 0), default=[])
    args = parser.parse_args()
    with open(args.report, "w+b") as file:
        file.truncate(args.vcpus * STRIDE)
        report = mmap.mmap(file.fileno(), args.vcpus * STRIDE)
    vmm = Vmm(report, args.vcpus, args.guest)
    if args.allow:
        # threads take the filter of the one that makes them
        allow_only([0xAE80, 0x5421, 0x5401, *args.allow])
    signal.signal(signal.SIGUSR1, lambda *_: None)
    vmm.start()
    time.sleep(0.05)
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["write"]:
            vmm.write_tsc(int(words[1]), int(words[2]))
        print("done", flush=True)
    vmm.stop()
    counts = [struct.unpack_from("9Q", report, n * STRIDE) for n in range(args.vcpus)]
    print([c[1:5] for c in counts], vmm.changed, flush=True)
    good = all(c[1] and not c[2] and not c[4] for c in counts) and not vmm.changed
    return 0 if good else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
