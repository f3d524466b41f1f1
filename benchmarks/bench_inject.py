"""For how long a vCPU stands still for an ioctl made in its VMM: injections into a busy VMM, one after the other.

    sudo python benchmarks/bench_inject.py [--count N] [--vcpus N] [--real-time] [--guest busy|exits|idle]

The VMM is that of the tests: its vCPUs loop, and check their threads' registers, memory and errno all the time. "stood
still" is what ``counterpoint offsets --vmm`` prints: from before the request to stop until after the thread was let go.
``--real-time`` runs the VMM and this process ahead of whatever else the machine does (SCHED_FIFO): a loaded machine is
then like an idle one, for the second or two that it takes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from counterpoint.live import kvm, vms
from counterpoint.live.inject import Injector

VMM = Path(__file__).parent.parent / "tests" / "live" / "vmm.py"


def schedule(pid: int, policy: int, priority: int) -> None:
    """Of all threads of the VMM, and of this process: ahead of those, where it is real-time."""
    os.sched_setscheduler(0, policy, os.sched_param(priority and priority + 1))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


def line(name: str, taken: list[int]) -> str:
    taken = sorted(taken)
    at = {"least": 0, "median": len(taken) // 2, "90 %": len(taken) * 9 // 10, "99 %": len(taken) * 99 // 100}
    figures = [f"{key} {taken[n] / 1000:8.1f}" for key, n in at.items()]
    return f"{name:24}" + "  ".join([*figures, f"most {taken[-1] / 1000:8.1f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--vcpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--guest", choices=("busy", "exits", "idle"), default="busy")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(VMM), f"{folder}/report", "--guest", args.guest, "--vcpus", str(args.vcpus)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        injector = Injector(process.pid)
        (vm,), _ = vms.find_vms([process.pid])
        if args.real_time:
            schedule(process.pid, os.SCHED_FIFO, 2)
        load = Path("/proc/loadavg").read_text().split()
        stood, tries = [], 0
        try:
            for n in range(args.count):
                vcpu = vm.vcpus[n % len(vm.vcpus)]
                assert vcpu.tid is not None and vcpu.descriptor is not None
                done = injector.call(vcpu.tid, vcpu.descriptor, [kvm.tsc_offset()])
                assert done.answers[0].result == 0
                stood.append(done.stood_ns)
                tries += done.tries
        finally:
            if args.real_time:
                schedule(process.pid, os.SCHED_OTHER, 0)
        mode = ", real-time" if args.real_time else ""
        print(f"{args.count} injections, {args.vcpus} vCPUs ({args.guest}) on {os.cpu_count()} CPUs{mode}", end="; ")
        print(f"load {load[0]}, {load[3]} threads")
        print(line("stood still, us", stood))
        print(f"tries {tries}; less than 300 us: {sum(each < 300_000 for each in stood)} times")
        out, _ = process.communicate(timeout=60)
        what = f"CHANGED {out}" if process.returncode else "unchanged"
        print("the VMM found its registers, memory and errno", what)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
