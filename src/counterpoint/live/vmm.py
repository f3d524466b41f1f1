"""The VMM's own context as a source: what KVM tells the process that made the VM, asked from inside it.

x86: KVM_VCPU_TSC_OFFSET is exact; IA32_TSC between two readings of the host's counter bounds the offset. arm64:
TIMER_CNT and PTIMER_CNT between two readings do. Brackets are intersected, so the result is an interval of integers.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence

from counterpoint.errors import UsageError
from counterpoint.live import kvm, libc
from counterpoint.live.inject import NOT_ALLOWED, Answer, Injection, Injector
from counterpoint.live.missing import Missing
from counterpoint.live.model import L1, PHYSICAL, Reading
from counterpoint.live.vms import Vcpu, Vm

MASK = (1 << 64) - 1


def signed(value: int) -> int:
    """The signed number with the low 64 bits of ``value``."""
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def intersect(guests: Sequence[tuple[int, int, int]], ratio: int = 1, frac_bits: int = 0) -> tuple[int, int] | None:
    """The closed interval of signed offsets that all (before, guest, after) allow; None where no offset does.

    guest = (host * ratio >> frac_bits) + offset modulo 2**64 for a host value from before to after.
    """
    limits: list[tuple[int, int]] = []
    for before, guest, after in guests:
        scaled = before * ratio >> frac_bits
        most = signed(guest - scaled)
        if limits:
            # all on the same turn of the 64 bits
            most = limits[0][1] + signed(most - limits[0][1])
        limits.append((most - ((after * ratio >> frac_bits) - scaled), most))
    if not limits:
        return None
    low, high = max(least for least, _ in limits), min(most for _, most in limits)
    return (low, high) if low <= high else None


def read_vcpu(
    vm: Vm, vcpu: Vcpu, injector: Injector, brackets: int, scale: tuple[int | None, int | None] = (None, None)
) -> tuple[list[Reading], list[Missing], kvm.Clock | None]:
    """(readings, missing, the VM's clock) of one vCPU, by calls in its own thread.

    ``scale`` is the (ratio, frac_bits) of a scaled TSC where another source knows it.
    """
    if vcpu.tid is None or vcpu.descriptor is None:
        what = "which thread runs this vCPU" if vcpu.tid is None else "which descriptor is this vCPU's"
        return [], [Missing("vmm", f"{what} is not known")], None
    try:
        if libc.MACHINE == "aarch64":
            return (*_arm64(vcpu, injector, brackets), None)
        return _x86(vm, vcpu, injector, brackets, scale)
    except (UsageError, OSError) as err:
        return [], [Missing("vmm", str(err))], None


class _Asked:
    """Repeated injections into one vCPU: their answers, their cost."""

    def __init__(self, vcpu: Vcpu, injector: Injector) -> None:
        self._vcpu = vcpu
        self._injector = injector
        self.begun = time.monotonic_ns()
        self.stood_ns = 0

    def ask(self, calls: Sequence[kvm.Call]) -> Injection:
        assert self._vcpu.tid is not None and self._vcpu.descriptor is not None
        out = self._injector.call(self._vcpu.tid, self._vcpu.descriptor, calls)
        self.stood_ns += out.stood_ns
        return out

    def reading(
        self,
        source: str,
        level: str,
        limits: tuple[int, int],
        at: int,
        scale: tuple[int | None, int | None],
        brackets: int = 0,
    ) -> Reading:
        cost = time.monotonic_ns() - self.begun
        return Reading(source, level, *limits, at, time.time_ns(), cost, self.stood_ns, *scale, brackets)


def _x86(
    vm: Vm, vcpu: Vcpu, injector: Injector, brackets: int, scale: tuple[int | None, int | None]
) -> tuple[list[Reading], list[Missing], kvm.Clock | None]:
    readings: list[Reading] = []
    missing: list[Missing] = []
    ratio, bits = scale
    scaled = ratio is not None and bits is not None and ratio != 1 << bits
    asked = _Asked(vcpu, injector)
    exact, clock = asked.ask([kvm.tsc_offset(), kvm.clock(vm.descriptor)]).answers
    if why := _failure(exact, 0):
        missing.append(Missing("vmm-offset", why))
    else:
        offset = kvm.tsc_offset_of(exact.data)
        readings.append(asked.reading("vmm-offset", L1, (offset, offset), exact.after, scale))
    pair = None if _failure(clock, 0) else kvm.clock_of(clock.data)
    asked = _Asked(vcpu, injector)
    found = []
    for _ in range(brackets):
        (answer,) = asked.ask([kvm.tsc_msr()]).answers
        why = _failure(answer, 1)
        if why:
            missing.append(Missing("vmm-msr", why))
            return readings, missing, pair
        found.append((answer.before, kvm.tsc_msr_of(answer.data), answer.after))
    if found:
        limits = intersect(found, *((ratio, bits) if scaled else ()))
        if limits is None:
            why = "its brackets have no offset in common: the TSC was written meanwhile, or it is scaled"
            missing.append(Missing("vmm-msr", why if ratio is None else why.partition(",")[0]))
        else:
            readings.append(asked.reading("vmm-msr", L1, limits, found[-1][2], scale, brackets=len(found)))
    return readings, missing, pair


def _arm64(vcpu: Vcpu, injector: Injector, brackets: int) -> tuple[list[Reading], list[Missing]]:
    readings: list[Reading] = []
    missing: list[Missing] = []
    for source, level, name, register in (
        ("vmm-timer-cnt", L1, "TIMER_CNT", kvm.TIMER_CNT),
        ("vmm-ptimer-cnt", PHYSICAL, "PTIMER_CNT", kvm.PTIMER_CNT),
    ):
        asked, found = _Asked(vcpu, injector), []
        for _ in range(max(1, brackets)):
            (answer,) = asked.ask([kvm.one_reg(name, register)]).answers
            why = _failure(answer, 0)
            if why:
                missing.append(Missing(source, why))
                break
            found.append((answer.before, kvm.one_reg_of(answer.data), answer.after))
        else:
            limits = intersect(found)
            if limits is None:
                missing.append(Missing(source, "its brackets have no offset in common: it was written meanwhile"))
            else:
                readings.append(asked.reading(source, level, limits, found[-1][2], (None, None), brackets=len(found)))
    return readings, missing


def _failure(answer: Answer, expected: int) -> str:
    """Why a call did not give what it should; "" where it did."""
    if answer.result == NOT_ALLOWED:
        return "the VMM's seccomp filter does not allow the call"
    if answer.result == expected:
        return ""
    if answer.result < 0:
        code = -answer.result
        return f"KVM answers {errno.errorcode.get(code, code)} ({os.strerror(code)})"
    return f"KVM answers {answer.result}"
