"""Encodings of the stub, for both architectures: held against structs written down a second time, in ctypes."""

from __future__ import annotations

import ctypes
import struct

from counterpoint.live import arch as arch_module
from counterpoint.live.arch import ARCHES, KVM_RUN

X86, ARM = ARCHES["x86_64"], ARCHES["aarch64"]
U64 = (1 << 64) - 1


def structure(*fields):
    return type("S", (ctypes.LittleEndianStructure,), {"_fields_": fields})


STACK = structure(("sp", ctypes.c_uint64), ("flags", ctypes.c_int), ("size", ctypes.c_uint64))
# arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64
_NAMES = "r8 r9 r10 r11 r12 r13 r14 r15 di si bp bx dx ax cx sp ip flags"
X86_CONTEXT = structure(
    *((name, ctypes.c_uint64) for name in _NAMES.split()),
    *((name, ctypes.c_uint16) for name in ("cs", "gs", "fs", "ss")),
    *((name, ctypes.c_uint64) for name in ("err", "trapno", "oldmask", "cr2", "fpstate")),
    ("reserved", ctypes.c_uint64 * 8),
)
X86_FRAME = structure(
    ("pretcode", ctypes.c_uint64), ("uc_flags", ctypes.c_uint64), ("uc_link", ctypes.c_uint64), ("uc_stack", STACK),
    ("context", X86_CONTEXT), ("mask", ctypes.c_uint64), ("info", ctypes.c_uint8 * 128),
)  # fmt: skip
# arch/arm64/include/uapi/asm/sigcontext.h: __reserved is aligned to 16
ARM_CONTEXT = structure(
    ("fault", ctypes.c_uint64), ("regs", ctypes.c_uint64 * 31), ("sp", ctypes.c_uint64), ("pc", ctypes.c_uint64),
    ("pstate", ctypes.c_uint64), ("pad", ctypes.c_uint64), ("reserved", ctypes.c_uint8 * 4096),
)  # fmt: skip
ARM_FRAME = structure(
    ("info", ctypes.c_uint8 * 128), ("uc_flags", ctypes.c_uint64), ("uc_link", ctypes.c_uint64), ("uc_stack", STACK),
    ("mask", ctypes.c_uint64), ("unused", ctypes.c_uint8 * 120), ("pad", ctypes.c_uint64), ("context", ARM_CONTEXT),
)  # fmt: skip


def some(arch) -> dict[str, int]:
    return {name: (n + 1) * 0x0101010101010101 & U64 for n, name in enumerate(arch.names)}


def filled(arch, registers, floating: bytes, address: int):
    """(length, memory, frame) with a room of 80 bytes, as an injection fills one."""
    frame = arch.frame(80, 0x1234)
    memory = frame.area.memory
    memory[frame.floating : frame.floating + len(floating)] = floating
    struct.pack_into("<Q", memory, frame.mask, 0xABCD)
    length = frame.measure(len(floating))
    frame.finish(registers, address)
    return length, memory, frame


def test_registers_go_both_ways():
    for arch, size in ((X86, 27 * 8), (ARM, 34 * 8)):
        packed = bytearray(size)
        arch.pack(some(arch), packed)

        assert arch.registers.size == size
        assert arch.parse(packed) == some(arch)


def test_the_x86_frame_holds_every_register_the_mask_and_the_floating_point_state(monkeypatch):
    monkeypatch.setattr(arch_module, "_components", lambda: ((2, 832), (9, 840), (18, 9216)))
    registers = {**some(X86), "cs": 0x33, "ss": 0x2B, "fs": 0, "gs": 0}
    floating = bytearray(range(256)) * 36
    struct.pack_into("<Q", floating, 464, 1 << 18 | 1 << 9 | 7)  # what the CPU has
    struct.pack_into("<Q", floating, 512, 1 << 9 | 7)  # what is in use: no tiles
    address = 0x7FFF_0000_1000

    length, memory, made = filled(X86, registers, bytes(floating), address)

    frame = bytes(memory[:length])
    assert made.arguments % 16 == 0 and made.arguments + 80 <= made.floating
    found = X86_FRAME.from_buffer_copy(frame)
    assert (found.pretcode, found.mask) == (0x1234, 0xABCD)
    assert found.uc_flags == 1 | 2 | 4
    short = {"di": "rdi", "si": "rsi", "bp": "rbp", "bx": "rbx", "dx": "rdx", "ax": "rax", "cx": "rcx", "sp": "rsp",
             "ip": "rip", "flags": "eflags"}  # fmt: skip
    assert all(getattr(found.context, name) == registers[short.get(name, name)] for name in _NAMES.split())
    assert (found.context.cs, found.context.ss) == (0x33, 0x2B)
    at = found.context.fpstate - address
    assert found.context.fpstate % 64 == 0 and at >= ctypes.sizeof(X86_FRAME)
    magic, extended, features, size = struct.unpack_from("<IIQI", frame, at + 464)
    # tiles are not in use: a frame with them would be refused
    assert (magic, features, size, extended) == (0x46505853, 1 << 9 | 7, 840, 844)
    assert struct.unpack_from("<I", frame, at + size) == (0x46505845,)
    assert frame[at : at + 464] == floating[:464]
    assert frame[at + 520 : at + size] == floating[520:size]


def test_the_x86_stub_calls_and_returns_to_the_sigreturn():
    registers = some(X86)

    calling = X86.calling(registers, 0xC0DE, 0x5000, 0x1234, (7, 0x4018AEE2, 0x6000))

    changed = {name for name in X86.names if calling[name] != registers[name]}
    assert changed == {"rip", "rsp", "rax", "orig_rax", "rdi", "rsi", "rdx"}
    assert [calling[name] for name in ("rip", "rsp", "rax", "rdi", "rsi", "rdx")] == [
        0xC0DE, 0x5000, 16, 7, 0x4018AEE2, 0x6000,
    ]  # fmt: skip
    packed = bytearray(X86.registers.size)
    X86.pack(calling, packed)
    assert struct.unpack_from("<q", packed, X86.names.index("orig_rax") * 8) == (-1,)
    assert (X86.result(packed), ARM.result(struct.pack("<q", -22))) == (16, -22)


def test_where_an_x86_thread_can_be_used():
    syscall = bytes.fromhex("90900f05")

    def waits(**changed):
        registers = {**some(X86), "orig_rax": 16, "rdi": 9, "rsi": KVM_RUN, "rax": -4 & U64, **changed}
        return X86.waits_in(registers, changed.pop("before", syscall), b"")

    assert waits() == 9
    assert waits(rax=0) == 9
    assert waits(rax=-14 & U64) is None
    assert waits(rsi=0x4018AEE2) is None
    assert waits(orig_rax=U64) is None
    futex = {"orig_rax": 202, "rsi": 128, "rax": -512 & U64}
    assert waits(**futex) == -1
    # a wait with a timeout is begun again by restart_syscall, which a return from a handler forgets
    assert waits(**{**futex, "rax": -516 & U64}) is None
    assert X86.waits_in({**some(X86), "orig_rax": 16, "rdi": 9, "rsi": KVM_RUN, "rax": 0}, b"\x90" * 4, b"") is None


def test_an_x86_futex_wait_is_begun_again():
    registers = {**some(X86), "orig_rax": 202, "rax": -512 & U64, "rip": 0x1002}

    resumed = X86.resumed(registers)

    assert (resumed["rax"], resumed["rip"]) == (202, 0x1000)
    assert X86.resumed({**registers, "rax": -4 & U64})["rip"] == 0x1002


def test_the_arm64_frame_holds_every_register_the_mask_and_the_floating_point_state():
    registers = some(ARM)
    floating = bytes(range(256)) * 2 + struct.pack("<4I", 0x11, 0x22, 0, 0)

    length, frame, made = filled(ARM, registers, floating, 0x7000)

    assert length == len(frame) == ctypes.sizeof(ARM_FRAME) + 80
    assert made.arguments == ctypes.sizeof(ARM_FRAME)
    found = ARM_FRAME.from_buffer_copy(frame)
    assert found.mask == 0xABCD
    assert ARM_FRAME.context.offset == 128 + 176 and ARM_CONTEXT.reserved.offset == 288
    assert list(found.context.regs) == [registers[f"x{n}"] for n in range(31)]
    assert (found.context.sp, found.context.pc, found.context.pstate) == (
        registers["sp"], registers["pc"], registers["pstate"],
    )  # fmt: skip
    record = bytes(found.context.reserved)
    # struct fpsimd_context, then the record that ends the list
    assert struct.unpack_from("<4I", record) == (0x46508001, 528, 0x11, 0x22)
    assert record[16:528] == floating[:512]
    assert struct.unpack_from("<2I", record, 528) == (0, 0)


def test_the_arm64_stub_calls_and_returns_to_the_sigreturn():
    registers = some(ARM)

    calling = ARM.calling(registers, 0xC0DE, 0x5000, 0x1234, (7, 0x4010AEAB, 0x6000))

    changed = {name for name in ARM.names if calling[name] != registers[name]}
    assert changed == {"pc", "sp", "x30", "x8", "x0", "x1", "x2"}
    assert [calling[name] for name in ("pc", "sp", "x30", "x8", "x0", "x1", "x2")] == [
        0xC0DE, 0x5000, 0x1234, 29, 7, 0x4010AEAB, 0x6000,
    ]  # fmt: skip


def test_where_an_arm64_thread_can_be_used():
    svc, nop = struct.pack("<I", 0xD4000001), struct.pack("<I", 0xD503201F)

    def waits(before, at, **changed):
        registers = {**some(ARM), "x8": 29, "x1": KVM_RUN, "x0": -4 & U64, **changed}
        return ARM.waits_in(registers, before, at)

    assert waits(svc, nop) == -1
    assert waits(svc, nop, x0=0) == -1
    assert waits(nop, nop) is None
    assert waits(svc, nop, x0=-14 & U64) is None
    assert waits(svc, nop, x1=0x4010AEAB) is None
    futex = {"x8": 98, "x1": 128, "x3": 0, "x0": 0x1000}
    assert waits(nop, svc, **futex) == -1
    assert waits(nop, svc, **{**futex, "x3": 0x2000}) is None


def test_instructions_are_what_they_are_said_to_be():
    # mov x8, #139 is movz x8, #139: sf=1, opc=10, 100101, hw=00, imm16, Rd
    assert struct.unpack("<2I", ARM.sigreturn[0]) == (0xD2800000 | 139 << 5 | 8, 0xD4000001)
    assert ARM.call[: ARM.call_length] == struct.pack("<I", 0xD4000001)
    assert X86.call[: X86.call_length] == b"\x0f\x05"
    assert all(pattern.endswith(b"\x0f\x05") and b"\x0f\x00\x00\x00" in pattern for pattern in X86.sigreturn)
