"""A guest with a guest of its own."""

from __future__ import annotations

import json

from lab.packages import LabError
from lab.x86 import X86, Guest, Session

# a port for its own guest, which is the host's lab.2
PORT = "-chardev serial,id=inner,path=$(lab-port 2) -device virtserialport,bus=ports.0,chardev=inner,name=lab.1"


def _start_inner(session: Session, guest: Guest) -> None:
    guest.channel.run("modprobe kvm_amd", 120)
    session.start_guest("inner", 2, parent=guest, wait=False)


def _while_it_runs(session: Session, guest: Guest) -> None:
    """Every source again, while the guest's own guest runs: L1's offset has to be told from the sum of both."""
    truth = {one["vcpu"]: one["offset"] for one in session.truths[0]["debugfs"] if one["guest"] == guest.name}
    session.read_truth("while L2 runs")
    said = json.loads(session.pyz("offsets --vmm --json", 240, check=False))
    session.lab.write("offsets-nested.json", said)
    for vm in said["vms"]:
        for vcpu in vm["vcpus"]:
            for reading in vcpu["readings"]:
                low, high = reading["offset"]
                if reading["level"] == "L1" and not low <= truth[vcpu["vcpu"]] <= high:
                    raise LabError(f"while L2 runs, {reading['source']} says {low}..{high} is L1's offset")


CASES = [
    X86(
        name="x86-nested",
        about="the guest boots a guest of its own while it is recorded: L1's offset while L2 runs",
        offsets=True,
        vcpus=1,
        memory="1200M",
        guest_options=PORT,
        seconds=15,
        before=_start_inner,
        during=_while_it_runs,
    ),
]
