"""What happens to a VM: it stands still, it is restored, its VMM sets its counter."""

from __future__ import annotations

import time
from functools import partial

from lab.arm64 import Arm64, Session

AHEAD = 5 * 24_000_000


def _pause(session: Session) -> None:
    guest = session.guests["guest"]
    time.sleep(8)
    session.qmp(guest, "stop")
    time.sleep(1.5)
    session.qmp(guest, "cont")
    session.lab.say("the guest stood still for 1.5 s")
    time.sleep(3)


def _restore(session: Session) -> None:
    guest = session.restore(session.guests["guest"])
    session.read_truth(guest, "restored")


def _set_counter(session: Session, how: str) -> None:
    guest = session.guests["guest"]
    time.sleep(8)
    arguments = f"/lab/share/counterpoint.pyz {guest.process} {AHEAD} {how}"
    session.host.run(f"lab-set-counter {arguments}", 120)
    session.lab.say("the guest's counter is set, 5 s ahead")
    time.sleep(3)


CASES = [
    Arm64(
        name="arm64-pause",
        about="the VMM stops the guest for 1.5 s in mid-recording: its counter goes on from where it was",
        during=_pause,
        options="--no-kallsyms -e sched:sched_switch -e irq -e timer:hrtimer_*",
    ),
    Arm64(
        name="arm64-restore",
        about="the VM's state is saved, its VMM ends, another one restores it; then it is recorded",
        before=_restore,
    ),
    Arm64(
        name="arm64-set-counter",
        about="in mid-recording the VMM sets the guest's counter 5 s ahead (KVM_SET_ONE_REG TIMER_CNT)",
        during=partial(_set_counter, how="timer-cnt"),
    ),
    Arm64(
        name="arm64-counter-offset",
        about="in mid-recording the VMM sets the VM's counters 5 s ahead (KVM_ARM_SET_COUNTER_OFFSET)",
        vcpus=(1,),
        during=partial(_set_counter, how="counter-offset"),
    ),
]
