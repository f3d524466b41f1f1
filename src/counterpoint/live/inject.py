"""One ioctl made inside a VMM, by its own vCPU's thread, without a lasting trace.

KVM answers only calls from the process that made the VM (kvm_vcpu_ioctl in virt/kvm/kvm_main.c: ``kvm->mm !=
current->mm`` is -EIO), and a call on a vCPU from any thread but its own waits until KVM_RUN ends, which may be never.
So the vCPU's thread is stopped (PTRACE_SEIZE, PTRACE_INTERRUPT: KVM_RUN ends with EINTR, as for any signal), made to do
the call by a stub that undoes itself (counterpoint.live.arch), and put back.

* At every moment the thread's registers and memory are such that it goes on right if this process is killed:
  PTRACE_O_EXITKILL is not set, single-stepping is not used (a tracer's death would leave the trap flag behind), and
  the registers change in one system call, after the frame is in place and before it is taken away.
* Memory is touched only below the red zone of the thread's stack, where nothing is kept, and put back.
* Nothing is done to a thread that another tracer has, that is stopped, whose seccomp filters would not allow the call,
  or that has a shadow stack.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from counterpoint.errors import UsageError
from counterpoint.live import counter, libc, seccomp
from counterpoint.live.arch import ARCHES, NT_PRSTATUS, Arch, Arguments, Frame, Registers
from counterpoint.live.kvm import Call
from counterpoint.live.tracefs import started

TRIES = 200
"""How often a thread is stopped until it is where a call can be made."""
_PATIENCE = 2.0
"""Seconds until a thread that does not stop, or a call that does not return, is given up."""
_CODE_LIMIT = 256 << 20
_SPARE = 16384
"""Bytes of stack that stay free below the stub, for handlers of signals."""


class NotInjected(UsageError):
    """Why a thread was not made to do a call: it runs on as before."""


class _NotNow(Exception):
    """The thread is elsewhere than at the end of KVM_RUN: later, perhaps."""


NOT_ALLOWED = -4096
"""In place of a call's result: the VMM's seccomp filter does not allow the call, and it was not made."""


@dataclass(frozen=True)
class Answer:
    """What a call returned (a value, -errno, or NOT_ALLOWED), its argument afterwards, the host's counter around it."""

    result: int
    data: bytes
    before: int
    after: int


@dataclass(frozen=True)
class Injection:
    """The answers, in the order of the calls; ``stood_ns``: the thread stood still for at most so long, all tries."""

    answers: tuple[Answer, ...]
    stood_ns: int
    tries: int


@dataclass(frozen=True)
class Code:
    """Where in a process the two instructions are that the stub is made of."""

    call: int
    sigreturn: int
    call_end: int
    """What the instruction pointer is during the call, as a seccomp filter sees it."""
    sigreturn_end: int


def status_of(pid: int, tid: int) -> dict[str, str]:
    """/proc/PID/task/TID/status as a dict; empty where the thread is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{tid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def refusal(status: dict[str, str]) -> str | None:
    """Why nothing may be done to the thread of this ``status_of``; None: nothing speaks against it."""
    if not status:
        return "the thread is gone"
    if status.get("TracerPid", "0") != "0":
        return f"another tracer is attached (process {status['TracerPid']})"
    if status.get("State", "")[:1] in ("T", "t"):
        return "the process is stopped"
    if status.get("State", "")[:1] in ("Z", "X"):
        return "the thread is gone"
    if status.get("Seccomp") == "1":
        return "the thread is in strict seccomp mode"
    if "shstk" in status.get("x86_Thread_features", ""):
        return "the thread has a shadow stack"
    return None


def arch_of(pid: int) -> Arch:
    """The architecture, if the process is of the machine's own kind. NotInjected otherwise."""
    arch = ARCHES.get(libc.MACHINE)
    if arch is None:
        raise NotInjected(f"calls cannot be made inside another process on {libc.MACHINE}")
    with open(f"/proc/{pid}/exe", "rb") as file:
        if file.read(5) != b"\x7fELF\x02":
            raise NotInjected("the VMM is a 32-bit program")
    return arch


def find_code(pid: int, arch: Arch) -> Code:
    """Where the stub's two instructions are in the process; NotInjected where it has none."""
    call = back = None
    with (
        open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps,
        open(f"/proc/{pid}/mem", "rb", 0) as memory,
    ):
        found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ *(.*)$", maps.read(), re.MULTILINE)
        # the C library first: it has both
        for low, high, path in sorted(found, key=lambda m: (not re.search(r"/(libc|ld-musl)|vdso", m[2]), m[2])):
            start, end = int(low, 16), int(high, 16)
            if not path.startswith(("/", "[vdso]")) or end - start > _CODE_LIMIT:
                continue
            with suppress(OSError, ValueError):
                memory.seek(start)
                content = memory.read(end - start)
                call = call or _find(content, arch.call, arch.step, start)
                for pattern in arch.sigreturn:
                    if back is None and (at := _find(content, pattern, arch.step, start)) is not None:
                        back = at, at + len(pattern)
            if call and back:
                return Code(call, back[0], call + arch.call_length, back[1])
    missing = "a system call that returns" if not call else "a return from signal handlers"
    raise NotInjected(f"the VMM's program has no code for {missing}")


def _find(content: bytes, pattern: bytes, step: int, start: int) -> int | None:
    at = content.find(pattern)
    while at >= 0 and at % step:
        at = content.find(pattern, at + 1)
    return start + at if at >= 0 else None


@contextmanager
def _undisturbed(cpu: int | None) -> Iterator[None]:
    """No signal reaches this thread meanwhile: Ctrl-C waits until the vCPU goes on. SIGCHLD tells of its stops.

    ``cpu``: where the vCPU's thread ran last, if it is known.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS})
    collecting, policy, parameters = gc.isenabled(), os.sched_getscheduler(0), os.sched_getparam(0)
    places = os.sched_getaffinity(0)
    gc.disable()
    # a vCPU stands still until this thread has a CPU (one that is real-time already stays what it is)
    with suppress(OSError):
        if policy not in (os.SCHED_FIFO, os.SCHED_RR):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        # beside the vCPU's thread: the two take turns, and neither waits for another CPU to be woken for it
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, places)
            os.sched_setscheduler(0, policy, parameters)
        if collecting:
            gc.enable()
        with suppress(OSError):
            signal.sigtimedwait({signal.SIGCHLD}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Known:
    """What was looked up while the thread still ran.

    Mappings that may be written, whether it has seccomp filters, when it was started.
    """

    lows: list[int]
    highs: list[int]
    filtered: bool
    started: int | None

    def writable(self, low: int, high: int) -> bool:
        """Whether one mapping that may be written has both addresses."""
        at = bisect_right(self.lows, low) - 1
        return at >= 0 and high <= self.highs[at]


class _Plan:
    """All that can be made before the thread is stopped: it stands still for every line that is run meanwhile."""

    def __init__(self, arch: Arch, code: Code, vcpu_fd: int, calls: Sequence[Call]) -> None:
        """Lay out the frame and the arguments behind one another in it."""
        *places, self.room = accumulate((-(-len(call.argument) // 16) * 16 for call in calls), initial=0)
        self.vcpu_fd = vcpu_fd
        self.calls = calls
        self.frame = arch.frame(self.room, code.sigreturn)
        self.places = [self.frame.arguments + place for place in places]
        self.kept = libc.Area(len(self.frame.area.memory))
        self.original, self.work = libc.Area(arch.registers.size), libc.Area(arch.registers.size)

    def arguments(self, stack: int) -> list[tuple[int, int, int]]:
        """The arguments of each ioctl, with the frame at ``stack``."""
        return [
            (_descriptor(call, self.vcpu_fd), call.request, stack + place if call.argument else 0)
            for call, place in zip(self.calls, self.places)
        ]

    def answers(self, found: Sequence[tuple[int, int, int]]) -> tuple[Answer, ...]:
        """What came of the calls, with the arguments that were read back to the frame."""
        memory = self.frame.area.memory
        return tuple(
            Answer(result, bytes(memory[place : place + len(call.argument)]), before, after)
            for (result, before, after), call, place in zip(found, self.calls, self.places)
        )


class _Thread:
    """A seized thread: whether it is stopped, and the signal that it was stopped with."""

    def __init__(self, tid: int) -> None:
        """Begin with a running one."""
        self.tid = tid
        self.stopped = False
        self.called = False
        """It has left the stop that PTRACE_INTERRUPT made, for a call."""
        self._signal = 0
        self._begun = 0

    def interrupt(self) -> None:
        """Seize and stop it. Signals that come first are delivered."""
        libc.ptrace(libc.PTRACE_SEIZE, self.tid, 0, libc.PTRACE_O_TRACESYSGOOD)
        self._begun = time.monotonic_ns()
        libc.ptrace(libc.PTRACE_INTERRUPT, self.tid)
        while True:
            status = self._wait()
            if status >> 16 == libc.PTRACE_EVENT_STOP:
                if os.WSTOPSIG(status) != signal.SIGTRAP:
                    raise NotInjected("the process is stopped")
                return
            self._resume(libc.PTRACE_CONT, os.WSTOPSIG(status))

    def to_next_stop(self) -> None:
        """Let it run to its next entry into or return from a system call. _NotNow where a signal comes first."""
        self._resume(libc.PTRACE_SYSCALL, 0)
        status = self._wait()
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            if not status >> 16:
                self._signal = os.WSTOPSIG(status)
            raise _NotNow("signals come")

    def let_go(self) -> int:
        """Detach: it goes on, with the signal that it was stopped with. For how many ns it stood still, at most.

        One that did not stop stays seized until this process ends, and then goes on.
        """
        if not self.stopped:
            return 0
        with suppress(ProcessLookupError):
            libc.ptrace(libc.PTRACE_DETACH, self.tid, 0, self._signal)
        self.stopped = False
        return time.monotonic_ns() - self._begun

    def _resume(self, how: int, number: int) -> None:
        libc.ptrace(how, self.tid, 0, number)
        self.stopped = False

    def _wait(self) -> int:
        """Wait until it stops: the status of waitpid."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            # its stop sends SIGCHLD; another thread of this process may take that: do not rely on it alone
            signal.sigtimedwait({signal.SIGCHLD}, 0.001)
            found, status = os.waitpid(self.tid, os.WNOHANG | libc.WALL)
            if found:
                if not os.WIFSTOPPED(status):
                    raise NotInjected("the thread is gone")
                self.stopped = True
                return status
        raise NotInjected(f"the thread did not stop within {_PATIENCE:.0f} s")


class Injector:
    """Makes calls inside one process; finds its code once."""

    def __init__(self, pid: int) -> None:
        """Look at the process. NotInjected where no call can be made in it, OSError where it may not be read."""
        self.pid = pid
        self.arch = arch_of(pid)
        self.code = find_code(pid, self.arch)
        # what is looked up once is looked up while the thread still runs
        counter.reader()
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._verdicts: dict[tuple[int, int | None], seccomp.Verdicts] = {}
        """By thread and when it was started."""

    def call(self, tid: int, vcpu_fd: int, calls: Sequence[Call], tries: int = TRIES) -> Injection:
        """Make ``calls`` in the thread ``tid``, which runs the vCPU of ``vcpu_fd``. NotInjected says why not."""
        stood, reason = 0, ""
        plan = _Plan(self.arch, self.code, vcpu_fd, calls)
        for attempt in range(1, tries + 1):
            status = status_of(self.pid, tid)
            why = refusal(status)
            if why:
                raise NotInjected(why)
            known = _Known(*_writable(self.pid), status.get("Seccomp", "0") != "0", started(tid))
            if (verdicts := self._verdicts.get((tid, known.started))) is not None:
                verdicts.judge(self.arch.audit)
            thread = _Thread(tid)
            with _undisturbed(_last_cpu(self.pid, tid)):
                try:
                    found = self._stopped_call(thread, plan, known)
                except _NotNow as err:
                    found, reason = None, str(err)
                except ProcessLookupError:
                    raise NotInjected("the thread is gone") from None
                except PermissionError as err:
                    raise NotInjected(
                        f"the kernel forbids it ({err.strerror}): root, or CAP_SYS_PTRACE, is needed"
                    ) from None
                finally:
                    stood += thread.let_go()
            if found is not None:
                return Injection(plan.answers(found), stood, attempt)
            time.sleep(0.0002 * min(attempt, 50))
        raise NotInjected(f"in {tries} tries the thread was never where a call can be made: {reason}")

    def _stopped_call(self, thread: _Thread, plan: _Plan, known: _Known) -> list[tuple[int, int, int]]:
        """(result, the counter before, after) of each call; their arguments are in the plan's frame."""
        thread.interrupt()
        arch, pid, tid, frame = self.arch, self.pid, thread.tid, plan.frame
        libc.get_regset(tid, NT_PRSTATUS, plan.original)
        registers = arch.parse(plan.original.memory)
        self._require_place(registers, plan.vcpu_fd)
        length = frame.measure(_floating(tid, arch, frame))
        stack = (registers[arch.sp] - arch.red_zone - length) & ~63
        if not known.writable(stack - _SPARE, registers[arch.sp]):
            raise NotInjected("the thread's stack has no room")
        arguments = plan.arguments(stack)
        allowed = self._allowed(tid, known, arguments) if known.filtered else [True] * len(arguments)
        resumed = arch.resumed(registers)
        libc.get_sigmask(tid, frame.area, frame.mask)
        frame.finish(resumed, stack)
        for call, place in zip(plan.calls, plan.places):
            call.put(frame.area.memory, place, stack + place)
        libc.read_memory(pid, stack, plan.kept, length)
        libc.write_memory(pid, stack, frame.area, length)
        found: list[tuple[int, int, int]] = []
        try:
            for each, may in zip(arguments, allowed):
                found.append(self._one(thread, registers, each, stack, plan.work) if may else (NOT_ALLOWED, 0, 0))
            libc.read_memory(pid, stack + frame.arguments, frame.area, plan.room, frame.arguments)
        finally:
            if thread.stopped:
                # the registers first: from here on nothing needs the frame
                if thread.called:
                    arch.pack(resumed, plan.original.memory)
                libc.set_regset(tid, NT_PRSTATUS, plan.original)
                libc.write_memory(pid, stack, plan.kept, length)
        return found

    def _one(
        self, thread: _Thread, registers: Registers, arguments: Arguments, stack: int, work: libc.Area
    ) -> tuple[int, int, int]:
        """(result, the counter before, after)."""
        arch, read = self.arch, counter.reader()
        arch.pack(arch.calling(registers, self.code.call, stack, self.code.sigreturn, arguments), work.memory)
        libc.set_regset(thread.tid, NT_PRSTATUS, work)
        thread.to_next_stop()
        thread.called = True
        before = read()
        thread.to_next_stop()
        after = read()
        libc.get_regset(thread.tid, NT_PRSTATUS, work)
        return arch.result(work.memory), before, after

    def _require_place(self, registers: Registers, vcpu_fd: int) -> None:
        at = registers[self.arch.pc]
        if not at:
            raise NotInjected("it is a thread of the kernel's own")
        if at not in self._around:
            code = libc.Area(8)
            libc.read_memory(self.pid, at - 4, code, 8)
            self._around = {at: (bytes(code.memory[:4]), bytes(code.memory[4:]))}
        waits = self.arch.waits_in(registers, *self._around[at])
        if waits is None:
            raise _NotNow("it is in its own code or in another system call")
        if waits >= 0 and waits != vcpu_fd and libc.same_file(self.pid, waits, vcpu_fd) is not True:
            raise NotInjected(f"the thread runs another vCPU (descriptor {waits})")

    def _allowed(self, tid: int, known: _Known, calls: Sequence[Arguments]) -> list[bool]:
        """Which of the ioctls the thread's seccomp filters allow. _NotNow where they have to be looked at first."""
        arch, key = self.arch, (tid, known.started)
        # a filter sees the address after the instruction (seccomp_data's instruction_pointer is KSTK_EIP)
        wanted: list[seccomp.SystemCall] = [(arch.rt_sigreturn, self.code.sigreturn_end, ())]
        wanted += [(arch.ioctl, self.code.call_end, each) for each in calls]
        try:
            verdicts = self._verdicts.get(key)
            if verdicts is None or not verdicts.hold(tid):
                verdicts = self._verdicts[key] = seccomp.Verdicts(tid)
        except OSError as err:
            raise NotInjected(f"the thread's seccomp filters cannot be read ({err.strerror})") from None
        said = verdicts.ask(wanted)
        if said is None:
            raise _NotNow("its seccomp filters change")
        if not said[0]:
            raise NotInjected("the VMM's seccomp filter does not allow a return from signal handlers")
        return said[1:]


def _descriptor(call: Call, vcpu_fd: int) -> int:
    return vcpu_fd if call.descriptor is None else call.descriptor


def _last_cpu(pid: int, tid: int) -> int | None:
    """The CPU that the thread ran on last (proc(5): ``processor`` in its stat); None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{tid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[36])
    except (OSError, ValueError, IndexError):
        return None


def _writable(pid: int) -> tuple[list[int], list[int]]:
    """The mappings of a process that may be written, in order: (first addresses, ends)."""
    text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw", text, re.MULTILINE)
    return [int(low, 16) for low, _ in found], [int(high, 16) for _, high in found]


def _floating(tid: int, arch: Arch, frame: Frame) -> int:
    """Read the thread's floating-point registers to where they are in the frame; how many bytes they are."""
    for kind in arch.floating:
        with suppress(OSError):
            return libc.get_regset(tid, kind, frame.area, frame.floating)
    raise NotInjected("the floating-point registers cannot be read")
