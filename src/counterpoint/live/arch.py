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
from operator import itemgetter
from typing import Any, Callable

from counterpoint.live import counter
from counterpoint.live.libc import Area

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

_FLOATING_LIMIT = 16384
"""Bytes of floating-point state, at most."""


class Frame:
    """The memory at the stub's stack pointer, from which a thread's registers are restored, and the calls' arguments.

    It is laid out before the thread is stopped. Then its floating-point registers are read to ``floating`` and its
    signal mask to ``mask``, in place; ``measure`` says how long it is with those, and ``finish`` does the rest.
    """

    area: Area
    arguments: int
    """Where the arguments begin, by bytes: aligned to 16."""
    floating: int
    mask: int

    def measure(self, got: int) -> int:
        """How many bytes it has with ``got`` bytes of floating-point registers, which are in it."""
        raise NotImplementedError

    def finish(self, registers: Registers, address: int) -> None:
        """Complete it for ``address``, after ``measure``."""
        raise NotImplementedError


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
    result_at: int
    """Where in NT_PRSTATUS the result of a system call is."""
    _pick: Callable[[Registers], tuple[Any, ...]]
    red_zone = 128
    """Bytes below the stack pointer that may be in use (x86 psABI; none on arm64, left alone all the same)."""

    def __init__(self) -> None:
        """Look up once what is the same for all threads."""
        self._pick = itemgetter(*self.names)

    def parse(self, content: bytes | bytearray) -> Registers:
        """Registers by name from NT_PRSTATUS."""
        return dict(zip(self.names, self.registers.unpack_from(content)))

    def pack(self, registers: Registers, into: bytearray, start: int = 0) -> None:
        """NT_PRSTATUS of them."""
        self.registers.pack_into(into, start, *self._pick(registers))

    def waits_in(self, registers: Registers, before: bytes, at: bytes) -> int | None:
        """The descriptor of the vCPU where the thread stands at the end of KVM_RUN; -1 in a futex wait; else None.

        ``before`` and ``at`` are the instructions before and at the program counter. Only at these two places is a
        thread made to do a call: what holds there of all its registers is known.
        """
        raise NotImplementedError

    def resumed(self, registers: Registers) -> Registers:
        """The registers with which the thread goes on; a futex wait is begun again, as the kernel does."""
        raise NotImplementedError

    def frame(self, room: int, restorer: int) -> Frame:
        """A frame with ``room`` bytes for arguments, that returns to ``restorer``."""
        raise NotImplementedError

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        """The registers to make ioctl(*arguments) at ``code`` and to return to ``restorer`` with ``stack``."""
        raise NotImplementedError

    def result(self, content: bytearray) -> int:
        """What the system call returned, by NT_PRSTATUS: a value, or -errno."""
        return int(_SIGNED.unpack_from(content, self.result_at)[0])


_SIGNED, _UNSIGNED = struct.Struct("<q"), struct.Struct("<Q")
_FXSAVE = 576
"""Bytes of FXSAVE's area and XSAVE's header."""
_XTILEDATA = 18
"""The component that a process must ask for: without it, its frames are shorter."""
_FPSIMD_MAGIC = 0x46508001


class X86Frame(Frame):
    """struct rt_sigframe, then the arguments, then the floating-point state, which is aligned to 64."""

    mask = 304
    arguments = 448
    _CONTEXT = struct.Struct("<18Q4H5Q")
    _SOFTWARE = struct.Struct("<IIQI28xQ")
    _NAMES = (
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp",
        "rip", "eflags",
    )  # fmt: skip

    def __init__(self, room: int, restorer: int) -> None:
        """Lay it out."""
        self.floating = (self.arguments + room + 63) & ~63
        self.area = Area(self.floating + _FLOATING_LIMIT)
        # uc_flags (``finish``), uc_link; a stack_t that is refused, so that the alternate stack stays as it is
        # (restore_altstack ignores it)
        struct.pack_into("<QQQQiiQ", self.area.memory, 0, restorer, 0, 0, 0, 0x7FFF, 0, 0)
        self._pick = itemgetter(*self._NAMES)
        self._components = _components()

    def measure(self, got: int) -> int:
        memory, at = self.area.memory, self.floating
        # UC_FP_XSTATE where there is more than FXSAVE's; UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
        memory[8] = 2 | 4 | (got > _FXSAVE)
        if got <= _FXSAVE:
            return at + 512
        # sw_reserved of what ptrace gives begins with the mask of all components (copy_xstate_to_uabi_buf)
        (features,), (used,) = _UNSIGNED.unpack_from(memory, at + 464), _UNSIGNED.unpack_from(memory, at + 512)
        if not used >> _XTILEDATA & 1:
            features &= ~(1 << _XTILEDATA)
        size = max([_FXSAVE, *[end for number, end in self._components if features >> number & 1]])
        # struct _fpx_sw_bytes: FP_XSTATE_MAGIC1, extended_size, xfeatures, xstate_size; XSAVE's own mask; then MAGIC2
        self._SOFTWARE.pack_into(memory, at + 464, 0x46505853, size + 4, features, size, used & features)
        struct.pack_into("<I", memory, at + size, 0x46505845)
        return at + size + 4

    def finish(self, registers: Registers, address: int) -> None:
        selectors = [registers[name] & 0xFFFF for name in ("cs", "gs", "fs", "ss")]
        # err, trapno, oldmask, cr2; the pointer
        self._CONTEXT.pack_into(
            self.area.memory, 48, *self._pick(registers), *selectors, 0, 0, 0, 0, address + self.floating
        )


class Arm64Frame(Frame):
    """struct rt_sigframe with the floating-point registers among its records, then the arguments."""

    mask = 128 + 40
    _CONTEXT = 128 + 176 + 8
    _RECORDS = 128 + 176 + 288
    arguments = _RECORDS + 4096
    floating = _RECORDS + 16

    def __init__(self, room: int, restorer: int) -> None:
        """Lay it out."""
        self.area = Area(self.arguments + room)
        # after struct siginfo: uc_flags, uc_link, a stack_t that is refused
        struct.pack_into("<QQQiiQ", self.area.memory, 128, 0, 0, 0, 0x7FFF, 0, 0)

    def measure(self, got: int) -> int:
        memory, at = self.area.memory, self.floating
        # struct user_fpsimd_state has the two words at its end that struct fpsimd_context has before the registers
        status, control = struct.unpack_from("<2I", memory, at + 512)
        struct.pack_into("<4I", memory, at - 16, _FPSIMD_MAGIC, 16 + 512, status, control)
        # the record that ends the list
        memory[at + 512 : at + 528] = bytes(16)
        return len(memory)

    def finish(self, registers: Registers, address: int) -> None:
        ARCHES["aarch64"].pack(registers, self.area.memory, self._CONTEXT)


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
    result_at = names.index("rax") * 8

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

    def frame(self, room: int, restorer: int) -> Frame:
        return X86Frame(room, restorer)

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        first, second, third = arguments
        # orig_rax -1: in no system call, so nothing is begun again on the way out
        return {
            **registers,
            "rip": code, "rsp": stack, "rax": self.ioctl, "orig_rax": U64, "rdi": first, "rsi": second, "rdx": third,
        }  # fmt: skip


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
    result_at = names.index("x0") * 8

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

    def frame(self, room: int, restorer: int) -> Frame:
        return Arm64Frame(room, restorer)

    def calling(
        self, registers: Registers, code: int, stack: int, restorer: int, arguments: tuple[int, int, int]
    ) -> Registers:
        first, second, third = arguments
        return {
            **registers, "pc": code, "sp": stack, "x30": restorer,
            "x8": self.ioctl, "x0": first, "x1": second, "x2": third,
        }  # fmt: skip


ARCHES = {arch.name: arch for arch in (X86(), Arm64())}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 & 1 else value


@cache
def _components() -> tuple[tuple[int, int], ...]:
    """x86: (number, end) of each component of XSAVE's standard format from number 2 on, by CPUID leaf 0xd."""
    # push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; the four to [r8]; pop rbx; ret
    code = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")
    cpuid = counter.executable(code, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    out = []
    buffer = (ctypes.c_uint32 * 4)()
    for number in range(2, 63):
        cpuid(0xD, number, ctypes.addressof(buffer))
        size, offset = buffer[0], buffer[1]
        if size and offset:
            out.append((number, offset + size))
    return tuple(out)
