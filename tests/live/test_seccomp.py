"""A seccomp filter run here says what the kernel would."""

from __future__ import annotations

import ctypes
import os
import random
import struct

import pytest

from counterpoint.live import libc, seccomp
from helpers import need

X86 = 0xC000003E
LD, JEQ, JGT, JGE, JSET, RET = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050005


def call(number: int, *arguments: int) -> bytes:
    return struct.pack("<iIQ6Q", number, X86, 0x1000, *[*arguments, *[0] * (6 - len(arguments))])


def test_a_filter_looks_at_number_and_arguments():
    program = [
        (LD, 0, 0, 0),
        (JEQ, 0, 3, 16),
        (LD, 0, 0, 24),
        (JEQ, 0, 1, 0xAE80),
        (RET, 0, 0, ALLOW),
        (RET, 0, 0, KILL),
    ]

    assert seccomp.run(program, call(16, 5, 0xAE80)) == ALLOW
    assert seccomp.run(program, call(16, 5, 0xAE81)) == KILL
    assert seccomp.run(program, call(17)) == KILL
    assert seccomp.allows([program], X86, 16, 0, (5, 0xAE80, 0))
    assert not seccomp.allows([program, [(RET, 0, 0, ERRNO)]], X86, 16, 0, (5, 0xAE80, 0))


def test_arithmetic_and_memory():
    program = [
        (LD, 0, 0, 0), (0x02, 0, 0, 3), (0x54, 0, 0, 0xF0), (0x07, 0, 0, 0), (0x60, 0, 0, 3), (0x0C, 0, 0, 0),
        (0x44, 0, 0, 1), (0x64, 0, 0, 4), (0x74, 0, 0, 1), (0x84, 0, 0, 0), (0x16, 0, 0, 0),
    ]  # fmt: skip
    value = 0x123

    assert seccomp.run(program, call(value)) == -((((value + (value & 0xF0)) | 1) << 4 & 0xFFFFFFFF) >> 1) & 0xFFFFFFFF


@pytest.mark.parametrize(
    "program", [[], [(LD, 0, 0, 0)], [(0x05, 0, 0, 999)], [(LD, 0, 0, 61)], [(0x34, 0, 0, 0)], [(0xE5, 0, 0, 0)]]
)
def test_what_is_no_program_allows_nothing(program):
    assert seccomp.run(program, call(1)) == 0


def test_random_programs_end():
    chance = random.Random(3)
    for _ in range(3000):
        program = [
            (
                chance.randrange(256),
                chance.randrange(8),
                chance.randrange(8),
                chance.choice((0, 4, 16, 0xAE80, 1 << 31)),
            )
            for _ in range(chance.randrange(1, 30))
        ]
        assert 0 <= seccomp.run(program, call(chance.randrange(400))) < 1 << 32


def test_the_kernel_agrees_about_a_filter_that_it_runs():
    need(os.geteuid() == 0 and libc.MACHINE == "x86_64", "root on x86_64 is needed")
    # getpriority(which, who) fails with errno 5 where which > 40 or who & 4
    program = [
        (LD, 0, 0, 0), (JEQ, 0, 5, 140), (LD, 0, 0, 16), (JGT, 2, 0, 40), (LD, 0, 0, 24), (JSET, 0, 1, 4),
        (RET, 0, 0, ERRNO), (RET, 0, 0, ALLOW),
    ]  # fmt: skip
    arguments = [(which, who) for which in (0, 40, 41, 1 << 31) for who in (0, 3, 4, 7)]
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            own = ctypes.CDLL(None, use_errno=True)
            own.syscall.restype = ctypes.c_long
            code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
            wanted = ctypes.create_string_buffer(struct.pack("H6xQ", len(program), ctypes.addressof(code)))
            assert own.prctl(38, 1, 0, 0, 0) == 0 and own.prctl(22, 2, wanted, 0, 0) == 0
            out = b""
            for which, who in arguments:
                ctypes.set_errno(0)
                own.syscall(ctypes.c_long(140), ctypes.c_long(which), ctypes.c_long(who))
                out += bytes([ctypes.get_errno() == 5])
            os.write(write, out)
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 100)
    os.waitpid(pid, 0)

    assert len(said) == len(arguments)
    for (which, who), refused in zip(arguments, said, strict=True):
        assert seccomp.allows([program], X86, 140, 0, (which, who)) is not bool(refused)


def test_a_filter_more_is_seen():
    need(os.geteuid() == 0, "root is needed")
    ours, theirs = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(ours[1])
            own = ctypes.CDLL(None, use_errno=True)
            own.prctl(38, 1, 0, 0, 0)
            code = ctypes.create_string_buffer(struct.pack("HBBI", RET, 0, 0, ALLOW))
            while True:
                wanted = ctypes.create_string_buffer(struct.pack("H6xQ", 1, ctypes.addressof(code)))
                assert own.prctl(22, 2, wanted, 0, 0) == 0
                os.write(theirs[1], b"x")
                if not os.read(ours[0], 1):
                    break
        finally:
            os._exit(0)
    os.close(ours[0])

    def stopped(look):
        os.read(theirs[0], 1)
        libc.ptrace(libc.PTRACE_SEIZE, pid)
        libc.ptrace(libc.PTRACE_INTERRUPT, pid)
        os.waitpid(pid, libc.WALL)
        found = look()
        libc.ptrace(libc.PTRACE_DETACH, pid)
        os.write(ours[1], b"x")
        return found

    verdicts, held = stopped(lambda: ((first := seccomp.Verdicts(pid)), first.hold(pid)))
    assert held
    # asked, then known: the filters run in between
    assert verdicts.ask([(16, 0x1000, (1,))]) is None
    verdicts.judge(X86)
    assert verdicts.ask([(16, 0x1000, (1,))]) == [True]
    assert not stopped(lambda: verdicts.hold(pid))
    os.close(ours[1])
    os.waitpid(pid, 0)
