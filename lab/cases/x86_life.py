"""What happens to a VM: it stands still, gets a vCPU, is restored, moves."""

from __future__ import annotations

import time

from lab.x86 import X86, Guest, Session


def _pause(session: Session, guest: Guest) -> None:
    time.sleep(2)
    session.qmp(guest, "stop")
    time.sleep(1.5)
    session.qmp(guest, "cont")
    time.sleep(2)


def _hotplug(session: Session, guest: Guest) -> None:
    time.sleep(2)
    session.qmp(
        guest, "device_add", driver="host-x86_64-cpu", id="late", **{"socket-id": 0, "core-id": 1, "thread-id": 0}
    )
    online = "/sys/devices/system/cpu/cpu1/online"
    guest.channel.run(
        f"n=0; until echo 1 > {online}; do sleep 0.5; n=$((n+1)); [ $n -lt 60 ] || exit 1; done 2>&1", 120
    )
    session.lab.say("vCPU 1 is there and online")
    for job in [guest.channel.start("lab-counter marks 1 5 40")]:
        job.wait(120)


def _restore(session: Session, guest: Guest) -> None:
    time.sleep(2)
    session.move(guest, "/run/state")
    time.sleep(5)


def _migrate(session: Session, guest: Guest) -> None:
    time.sleep(2)
    session.move(guest, "unix:/run/moved.state")
    time.sleep(5)


CASES = [
    X86(
        name="x86-pause",
        about="the VMM stops the guest for 1.5 s in mid-recording: on x86 no offset changes",
        during=_pause,
    ),
    X86(
        name="x86-hotplug",
        about="a second vCPU is plugged in in mid-recording",
        vcpus=1,
        smp="1,maxcpus=2",
        recorder="inside",
        during=_hotplug,
        verdicts=("proved", "derived"),
    ),
    X86(
        name="x86-restore",
        about="the VM's state is saved, its VMM ends, another one restores it, in mid-recording",
        recorder="inside",
        during=_restore,
        verdicts=("proved", "derived"),
    ),
    X86(
        name="x86-migrate",
        about="the VM migrates to another VMM on the same host in mid-recording",
        recorder="inside",
        during=_migrate,
        verdicts=("proved", "derived"),
    ),
]
