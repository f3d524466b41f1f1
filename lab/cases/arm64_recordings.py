"""Other loads, other recorders, too little room."""

from __future__ import annotations

from lab.arm64 import Arm64, Guest, Session
from lab.machine import Job


def _idle(session: Session, guest: Guest, seconds: float) -> list[Job]:
    return session.marks(guest, seconds, 1000)


def _busy(session: Session, guest: Guest, seconds: float) -> list[Job]:
    return session.spin(guest, round(seconds)) + session.marks(guest, seconds, 5)


CASES = [
    Arm64(
        name="arm64-idle",
        about="a guest with nothing to do: idle vCPUs pass no probe until the VMM is asked",
        load=_idle,
        offsets=True,
    ),
    Arm64(
        name="arm64-busy",
        about="every vCPU is busy all the time",
        load=_busy,
    ),
    Arm64(
        name="arm64-lossy",
        about="buffers of 32 KB a CPU and every event of kvm, sched, irq and timer: much is lost",
        options="--buffer-size 32K -e kvm -e sched -e irq -e timer -e raw_syscalls",
    ),
    Arm64(
        name="arm64-trace-cmd-agent",
        about="the guest is recorded by a stock trace-cmd agent, which does not say how its stamps come of its counter",
        recorder="trace-cmd-agent",
        verdicts=("derived",),
    ),
    Arm64(
        name="arm64-ssh",
        about="the guest is recorded by nothing but its shell, over ssh; that does not say it either",
        recorder="ssh",
        verdicts=("derived",),
    ),
]
