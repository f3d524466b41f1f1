"""System calls that Python has no name for: ptrace, other processes' memory, kcmp, splice. Each raises OSError."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_SECCOMP_GET_FILTER = 0x420C
PTRACE_O_TRACESYSGOOD = 1
PTRACE_EVENT_STOP = 128
WALL = 0x40000000
"""__WALL of waitpid: threads too."""

MACHINE = platform.machine()
IS_LINUX = sys.platform == "linux"

_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_FILE = 0


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


if IS_LINUX:
    _libc.ptrace.restype = ctypes.c_long
    _libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    for _name in ("process_vm_readv", "process_vm_writev"):
        _function = getattr(_libc, _name)
        _function.restype = ctypes.c_ssize_t
        _function.argtypes = (
            ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.POINTER(_Iovec),
            ctypes.c_ulong, ctypes.c_ulong,
        )  # fmt: skip
    _libc.syscall.restype = ctypes.c_long
    _libc.splice.restype = ctypes.c_ssize_t
    _libc.splice.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint,
    )  # fmt: skip


def _fail(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """ptrace(2)."""
    result = int(_libc.ptrace(request, tid, address, data))
    if result == -1:
        raise _fail(f"ptrace({request:#x}, {tid})")
    return result


class Area:
    """Memory of this process that system calls fill and send. Made beforehand: a vCPU stands still while they run."""

    def __init__(self, size: int) -> None:
        """``size`` bytes of zero."""
        self.memory = bytearray(size)
        self._array = (ctypes.c_char * size).from_buffer(self.memory)
        self._address = ctypes.addressof(self._array)
        self._there = _Iovec()
        self._here = _Iovec()
        self._here_address = ctypes.addressof(self._here)

    def address(self, start: int) -> int:
        """Where the byte ``start`` lies in this process."""
        return self._address + start

    def vector(self, start: int, length: int) -> int:
        """The address of an iovec of ``length`` bytes from ``start`` on; of this area there is one at a time."""
        self._here.base, self._here.length = self._address + start, length
        return self._here_address

    def copy(self, how: Any, pid: int, address: int, length: int, start: int) -> None:  # noqa: ANN401
        """process_vm_readv or process_vm_writev (``how``) of ``length`` bytes. OSError where it is not all of them."""
        self.vector(start, length)
        self._there.base, self._there.length = address, length
        if how(pid, self._here, 1, self._there, 1, 0) != length:
            raise _fail(f"memory of process {pid} at {address:#x}")

    @property
    def vector_length(self) -> int:
        """Of how many bytes the iovec is after a system call."""
        return int(self._here.length)


def get_regset(tid: int, kind: int, area: Area, start: int = 0) -> int:
    """PTRACE_GETREGSET: the register set ``kind`` (NT_*) of a stopped thread into ``area``; its length in bytes."""
    ptrace(PTRACE_GETREGSET, tid, kind, area.vector(start, len(area.memory) - start))
    return area.vector_length


def set_regset(tid: int, kind: int, area: Area) -> None:
    """PTRACE_SETREGSET: all at once, so that a thread never runs with half of them."""
    ptrace(PTRACE_SETREGSET, tid, kind, area.vector(0, len(area.memory)))


def get_sigmask(tid: int, area: Area, start: int) -> None:
    """The signals that a stopped thread blocks, as the kernel's 64-bit set, into ``area``."""
    ptrace(PTRACE_GETSIGMASK, tid, 8, area.address(start))


def read_memory(pid: int, address: int, area: Area, length: int, start: int = 0) -> None:
    """``length`` bytes of another process's memory into ``area``."""
    area.copy(_libc.process_vm_readv, pid, address, length, start)


def write_memory(pid: int, address: int, area: Area, length: int) -> None:
    """Write the first ``length`` bytes of ``area`` to another process's memory, where that itself may write."""
    area.copy(_libc.process_vm_writev, pid, address, length, 0)


SPLICE_MOVE, SPLICE_NONBLOCK = 1, 2


_os_splice: Any = getattr(os, "splice", None)
"""From Python 3.10 on."""


def splice(source: int, target: int, count: int, flags: int = 0) -> int:
    """splice(2) from one descriptor to another; other threads run meanwhile. BlockingIOError: nothing is there now."""
    if _os_splice is not None:
        return int(_os_splice(source, target, count, flags=flags))
    result = _libc.splice(source, None, target, None, count, flags)
    if result < 0:
        raise _fail("splice")
    return int(result)


def same_file(pid: int, one: int, other: int) -> bool | None:
    """Whether two descriptors of a process are one open file (kcmp); None: the kernel does not tell."""
    number = _KCMP.get(MACHINE)
    if number is None:
        return None
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(pid), ctypes.c_long(pid), ctypes.c_long(_KCMP_FILE),
        ctypes.c_long(one), ctypes.c_long(other),
    )  # fmt: skip
    return None if result < 0 else result == 0
