"""What differs between x86_64 and aarch64 when a stopped thread is made to do one system call and go on as it was.

The call is made by a **stub** that needs nobody to undo it: the thread is sent to a ``syscall; ret`` that its program
has anyway, and what it returns to is the C library's own return from signal handlers, over a frame as the kernel
writes it for a handler, holding every register of before. Whoever sent it there may die at any point: the thread does
the call, returns, and goes on where it was.

Layouts: struct user_regs_struct (arch/x86/include/asm/user_64.h), struct rt_sigframe and sigcontext
(arch/x86/include/asm/sigframe.h, arch/x86/include/uapi/asm/sigcontext.h), check_xstate_in_sigframe
(arch/x86/kernel/fpu/signal.c); struct user_pt_regs, user_fpsimd_state, sigcontext, fpsimd_context
(arch/arm64/include/uapi/asm/ptrace.h, sigcontext.h), struct rt_sigframe (arch/arm64/kernel/signal.c).
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache

from counterpoint.live import counter

U64 = (1 << 64) - 1
KVM_RUN = 0xAE80
_FUTEX_WAITS = (0, 9)
"""FUTEX_WAIT, FUTEX_WAIT_BITSET."""
_EINTR = 4
_ERESTARTSYS = 512

NT_PRSTATUS = 1
NT_PRFPREG = 2
NT_X86_XSTATE = 0x202

Registers = dict[str, int]
Arguments = tuple[int, int, int]


class Arch:
    """One architecture: names of registers and the encoding of the stub's frame."""

    name: str
    registers: struct.Struct
    names: tuple[str, ...]
    call: bytes
    """The instructions ``system call; return``."""
    call_length: int
    """Bytes of the first of them."""
    sigreturn: tuple[bytes, ...]
    """Instructions that return from a signal handler."""
    floating: tuple[int, ...]
    """Register sets of the floating-point state: the first that the kernel has counts."""
    step: int
    """Alignment of instructions."""
    pc: str
    sp: str
    audit: int
    """AUDIT_ARCH_* that a seccomp filter sees."""
    rt_sigreturn: int
    ioctl: int
    red_zone = 128
    """Bytes below the stack pointer that may be in use (x86 psABI; none on arm64, left alone all the same)."""

    def parse(self, content: bytes) -> Registers:
        """Registers by name from NT_PRSTATUS."""
        return dict(zip(self.names, self.registers.unpack_from(content)))

    def pack(self, registers: Registers) -> bytes:
        """NT_PRSTATUS of them."""
        return self.registers.pack(*(registers[name] & U64 for name in self.names))

    def waits_in(self, registers: Registers, before: bytes, at: bytes) -> int | None:
        """The descriptor of the vCPU where the thread stands at the end of KVM_RUN; -1 in a futex wait; else None.

        ``before`` and ``at`` are the instructions before and at the program counter. Only at these two places is a
        thread made to do a call: what holds there of all its registers is known.
        """
        raise NotImplementedError

    def resumed(self, registers: Registers) -> Registers:
        """The registers with which the thread goes on; a futex wait is begun again, as the kernel does."""
        raise NotImplementedError

    def frame(self, registers: Registers, floating: bytes, mask: int, address: int, restorer: int) -> bytes:
        """The memory at ``address``, the stub's stack pointer, from which ``registers`` are restored."""
        raise NotImplementedError

    def frame_size(self, floating: bytes) -> int:
        """Bytes of ``frame``."""
        raise NotImplementedError

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        """The registers to make ioctl(*arguments) at ``code`` and to return to ``restorer`` with ``stack``."""
        raise NotImplementedError

    def result(self, registers: Registers) -> int:
        """What the system call returned: a value, or -errno."""
        raise NotImplementedError


class X86(Arch):
    """x86_64."""

    name = "x86_64"
    registers = struct.Struct("<27Q")
    names = (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    call = bytes.fromhex("0f05c3")
    call_length = 2
    # mov rax, 15; syscall  and  mov eax, 15; syscall
    sigreturn = (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))
    floating = (NT_X86_XSTATE, NT_PRFPREG)
    step = 1
    pc = "rip"
    sp = "rsp"
    audit = 0xC000003E
    rt_sigreturn = 15
    ioctl = 16
    _futex = 202
    _SIGCONTEXT = (
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp",
        "rip", "eflags",
    )  # fmt: skip

    def waits_in(self, registers: Registers, before: bytes, at: bytes) -> int | None:
        number, result = registers["orig_rax"], _signed(registers["rax"])
        if before[-2:] != self.call[:2]:
            return None
        if number == self.ioctl and registers["rsi"] & 0xFFFFFFFF == KVM_RUN and result in (0, -_EINTR):
            return registers["rdi"] & 0x7FFFFFFF
        if number == self._futex and registers["rsi"] & 0x7F in _FUTEX_WAITS and result == -_ERESTARTSYS:
            return -1
        return None

    def resumed(self, registers: Registers) -> Registers:
        if _signed(registers["rax"]) != -_ERESTARTSYS:
            return registers
        # arch_do_signal_or_restart in arch/x86/kernel/signal.c
        return {**registers, "rax": registers["orig_rax"], "rip": registers["rip"] - 2}

    def frame_size(self, floating: bytes) -> int:
        # 64 to align the floating-point state by, 4 for the second magic word
        return 8 + 304 + 128 + 64 + len(_fpstate(floating)) + 4

    def frame(self, registers: Registers, floating: bytes, mask: int, address: int, restorer: int) -> bytes:
        state = _fpstate(floating)
        fpstate = (address + 8 + 304 + 128 + 63) & ~63
        # UC_FP_XSTATE where there is more than FXSAVE's; UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
        flags = (1 if len(state) > 512 else 0) | 2 | 4
        context = struct.pack("<QQ", flags, 0)
        # a stack_t that is refused, so that the alternate stack stays as it is (restore_altstack ignores it)
        context += struct.pack("<QiiQ", 0, 0x7FFF, 0, 0)
        context += struct.pack("<18Q", *(registers[name] & U64 for name in self._SIGCONTEXT))
        context += struct.pack("<4H", *(registers[name] & 0xFFFF for name in ("cs", "gs", "fs", "ss")))
        context += struct.pack("<5Q8Q", 0, 0, 0, 0, fpstate, *[0] * 8)
        context += struct.pack("<Q", mask)
        head = struct.pack("<Q", restorer) + context + bytes(128)
        return head.ljust(fpstate - address, b"\0") + state

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        first, second, third = arguments
        # orig_rax -1: in no system call, so nothing is begun again on the way out
        return {
            **registers,
            "rip": code, "rsp": stack, "rax": self.ioctl, "orig_rax": -1, "rdi": first, "rsi": second, "rdx": third,
        }  # fmt: skip

    def result(self, registers: Registers) -> int:
        return _signed(registers["rax"])


class Arm64(Arch):
    """aarch64."""

    name = "aarch64"
    registers = struct.Struct("<34Q")
    names = (*(f"x{n}" for n in range(31)), "sp", "pc", "pstate")
    # svc #0; ret
    call = struct.pack("<2I", 0xD4000001, 0xD65F03C0)
    call_length = 4
    # mov x8, #139; svc #0
    sigreturn = (struct.pack("<2I", 0xD2801168, 0xD4000001),)
    floating = (NT_PRFPREG,)
    step = 4
    pc = "pc"
    sp = "sp"
    audit = 0xC00000B7
    rt_sigreturn = 139
    ioctl = 29
    _futex = 98
    _FPSIMD_MAGIC = 0x46508001

    def waits_in(self, registers: Registers, before: bytes, at: bytes) -> int | None:
        # do_signal in arch/arm64/kernel/signal.c has put the program counter back to the call where it is to be begun
        # again, before any debugger looks
        svc = self.call[:4]
        number, result = registers["x8"], _signed(registers["x0"])
        if (
            before == svc
            and number == self.ioctl
            and registers["x1"] & 0xFFFFFFFF == KVM_RUN
            and result in (0, -_EINTR)
        ):
            # x0, the descriptor, was overwritten by the result: which vCPU it was is not seen
            return -1
        if at == svc and number == self._futex and registers["x1"] & 0x7F in _FUTEX_WAITS and not registers["x3"]:
            return -1
        return None

    def resumed(self, registers: Registers) -> Registers:
        return registers

    def frame_size(self, floating: bytes) -> int:
        return 128 + 176 + 288 + 4096

    def frame(self, registers: Registers, floating: bytes, mask: int, address: int, restorer: int) -> bytes:
        vregs, status, control = floating[:512], *struct.unpack_from("<2I", floating, 512)
        context = struct.pack("<QQQiiQ", 0, 0, 0, 0x7FFF, 0, 0)
        # the mask has room for 1024 signals, and sigcontext is aligned to 16
        context += struct.pack("<Q", mask).ljust(128, b"\0") + bytes(8)
        context += struct.pack("<Q34Q", 0, *(registers[name] & U64 for name in self.names)) + bytes(8)
        record = struct.pack("<4I", self._FPSIMD_MAGIC, 16 + 512, status, control) + vregs
        return bytes(128) + context + record.ljust(4096, b"\0")

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        first, second, third = arguments
        return {
            **registers, "pc": code, "sp": stack, "x30": restorer,
            "x8": self.ioctl, "x0": first, "x1": second, "x2": third,
        }  # fmt: skip

    def result(self, registers: Registers) -> int:
        return _signed(registers["x0"])


ARCHES = {arch.name: arch for arch in (X86(), Arm64())}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 & 1 else value


_XTILEDATA = 18
"""The component that a process must ask for: without it, its frames are shorter."""


def _fpstate(floating: bytes) -> bytes:
    """x86: the floating-point part of a signal's frame, from XSAVE's standard format (or FXSAVE's)."""
    if len(floating) <= 576:
        return bytes(floating[:512])
    # sw_reserved of what ptrace gives begins with the mask of all components (copy_xstate_to_uabi_buf)
    (features,) = struct.unpack_from("<Q", floating, 464)
    (used,) = struct.unpack_from("<Q", floating, 512)
    if not used >> _XTILEDATA & 1:
        features &= ~(1 << _XTILEDATA)
    size = max([576, *(sum(part) for n, part in _components().items() if features >> n & 1)])
    state = bytearray(floating[:size])
    struct.pack_into("<Q", state, 512, used & features)
    # struct _fpx_sw_bytes: FP_XSTATE_MAGIC1, extended_size, xfeatures, xstate_size
    struct.pack_into("<IIQI28x", state, 464, 0x46505853, size + 4, features, size)
    return bytes(state) + struct.pack("<I", 0x46505845)


@cache
def _components() -> dict[int, tuple[int, int]]:
    """x86: (offset, size) of each component of XSAVE's standard format from number 2 on, by CPUID leaf 0xd."""
    # push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; the four to [r8]; pop rbx; ret
    code = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")
    cpuid = counter.executable(code, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    out = {}
    buffer = (ctypes.c_uint32 * 4)()
    for number in range(2, 63):
        cpuid(0xD, number, ctypes.addressof(buffer))
        size, offset = buffer[0], buffer[1]
        if size and offset:
            out[number] = (offset, size)
    return out
