"""Whether a thread's seccomp filters allow a system call: the filters themselves are run, on that very call.

A call that a filter forbids kills the program, so none is injected before its filters said yes. struct seccomp_data
and the actions: include/uapi/linux/seccomp.h; the instructions: include/uapi/linux/bpf_common.h, seccomp_check_filter
in kernel/seccomp.c (a filter has no loops: it ends within its own length).
"""

from __future__ import annotations

import ctypes
import errno
import operator
import struct
from collections.abc import Sequence
from typing import Callable

from counterpoint.live import libc

MASK = 0xFFFFFFFF
_ALLOW = 0x7FFF0000
_LOG = 0x7FFC0000
_LIMIT = 4096
"""BPF_MAXINSNS."""

Filter = Sequence[tuple[int, int, int, int]]
"""(code, jt, jf, k) of each instruction."""

_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: operator.add, 0x10: operator.sub, 0x20: operator.mul, 0x40: operator.or_, 0x50: operator.and_,
    0xA0: operator.xor, 0x60: lambda a, b: a << (b & 31), 0x70: lambda a, b: a >> (b & 31),
}  # fmt: skip
_JUMP: dict[int, Callable[[int, int], int]] = {
    0x10: operator.eq,
    0x20: operator.gt,
    0x30: operator.ge,
    0x40: operator.and_,
}


SystemCall = tuple[int, int, tuple[int, ...]]
"""Its number, the address after its instruction, its arguments."""


def filters_of(tid: int) -> list[Filter]:
    """The filters of a stopped, seized thread. OSError where the kernel does not show them."""
    out: list[Filter] = []
    buffer = ctypes.create_string_buffer(_LIMIT * 8)
    while count := _get_filter(tid, len(out), ctypes.addressof(buffer)):
        out.append(list(struct.iter_unpack("<HBBI", buffer.raw[: count * 8])))
    return out


def _get_filter(tid: int, index: int, address: int) -> int:
    """How many instructions it has, of 8 bytes; they are copied to ``address`` unless that is 0. 0: there is none."""
    try:
        # (since Linux 4.4: f8e529ed941b "seccomp, ptrace: add support for dumping seccomp filters")
        return libc.ptrace(libc.PTRACE_SECCOMP_GET_FILTER, tid, index, address)
    except OSError as err:
        if err.errno == errno.ENOENT:
            return 0
        raise


class Verdicts:
    """What a thread's filters say: they are read while it stands, and run, which takes longer, while it does not."""

    def __init__(self, tid: int) -> None:
        """Read them. OSError where the kernel does not show them."""
        self._filters = filters_of(tid)
        self._said: dict[SystemCall, bool] = {}
        self._asked: list[SystemCall] = []

    def hold(self, tid: int) -> bool:
        """Whether the stopped thread has no more filters than these: one is never taken away or changed."""
        return not _get_filter(tid, len(self._filters), 0)

    def ask(self, calls: Sequence[SystemCall]) -> list[bool] | None:
        """Whether each is allowed; None where that is known only after ``judge``."""
        self._asked = [call for call in calls if call not in self._said]
        return None if self._asked else [self._said[call] for call in calls]

    def judge(self, audit: int) -> None:
        """Run the filters on what was asked last."""
        for call in self._asked:
            self._said[call] = allows(self._filters, audit, *call)


def allows(filters: Sequence[Filter], audit: int, number: int, address: int, arguments: Sequence[int]) -> bool:
    """Whether all ``filters`` let the system call through, made at the code ``address``."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("<iIQ6Q", number, audit, address, *(value & (1 << 64) - 1 for value in padded))
    return all(run(each, call) & 0xFFFF0000 in (_ALLOW, _LOG) for each in filters)


def run(program: Filter, call: bytes) -> int:
    """The value that ``program`` returns for a struct seccomp_data; 0, which kills, where it is no such program."""
    a = x = at = 0
    memory = [0] * 16
    for _ in range(len(program)):
        if at >= len(program):
            return 0
        code, jt, jf, k = program[at]
        at += 1
        kind, source = code & 7, x if code & 8 else k
        if kind == 6:  # BPF_RET
            return a if code & 0x18 == 0x10 else int(k)
        if kind in (0, 1):  # BPF_LD, BPF_LDX
            mode = code & 0xE0
            if mode == 0x20 and k % 4 == 0 and k + 4 <= len(call):
                (value,) = struct.unpack_from("<I", call, k)
            elif mode in (0x00, 0x60, 0x80):
                value = {0x00: k, 0x60: memory[k & 15], 0x80: len(call)}[mode]
            else:
                return 0
            a, x = (value, x) if kind == 0 else (a, value)
        elif kind in (2, 3):  # BPF_ST, BPF_STX
            memory[k & 15] = a if kind == 2 else x
        elif kind == 4:  # BPF_ALU
            how = code & 0xF0
            if how in _ALU:
                a = _ALU[how](a, source) & MASK
            elif how == 0x80:
                a = -a & MASK
            elif how == 0x30 and source:
                a //= source
            else:
                return 0
        elif kind == 5:  # BPF_JMP
            how = code & 0xF0
            if how == 0:
                at += k
            elif how in _JUMP:
                at += jt if _JUMP[how](a, source) else jf
            else:
                return 0
        else:  # BPF_MISC
            a, x = (x, x) if code & 0x80 else (a, a)
    return 0
