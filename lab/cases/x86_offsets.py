"""Offsets that are not the same for all vCPUs, or for all the time."""

from __future__ import annotations

import time

from lab.x86 import X86, Guest, Session

STEP = 5_000_000_000


def _differ(session: Session, guest: Guest) -> None:
    session.set_offset(guest, 1, STEP)


def _change(session: Session, guest: Guest) -> None:
    time.sleep(3)
    session.set_offset(guest, 1, STEP)
    time.sleep(3)


def _adjust(session: Session, guest: Guest) -> None:
    time.sleep(3)
    guest.channel.run(f"lab-msr 1 0x3b {STEP // 10}")
    time.sleep(3)


def _write_tsc(session: Session, guest: Guest) -> None:
    time.sleep(3)
    guest.channel.run(f"lab-msr 1 0x10 {STEP // 10}")
    time.sleep(3)


CASES = [
    X86(
        name="x86-vcpus-differ",
        about="vCPU 1's offset is 5e9 ticks higher from before the recording (KVM_VCPU_TSC_OFFSET)",
        offsets=True,
        before=_differ,
    ),
    X86(
        name="x86-offset-change",
        about="vCPU 1's offset is raised by 5e9 ticks in mid-recording (KVM_VCPU_TSC_OFFSET)",
        during=_change,
    ),
    X86(
        name="x86-tsc-adjust",
        about="the guest adds to IA32_TSC_ADJUST of vCPU 1 in mid-recording; its kernel undoes it",
        during=_adjust,
        by_writes=True,
    ),
    X86(
        name="x86-tsc-write",
        about="the guest, without TSC_ADJUST, writes IA32_TSC of vCPU 1 in mid-recording: it stays",
        cpu="host,-tsc-adjust",
        during=_write_tsc,
    ),
]
