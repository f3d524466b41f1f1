"""Run a command that looks at the running kernel, and hold against each other how the machine was before and after.

    python on_this_machine.py COMMAND...

Where the machine cannot do it (no root, no tracefs, no /dev/kvm), the reason is printed and the exit status is 0.
Otherwise it is the command's, or 1 where something was left behind or changed: settings of the top-level trace buffer,
instances, probes, processes of ours.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from mounts import mount, unshare

TRACEFS = Path("/sys/kernel/tracing")
SETTINGS = (
    "tracing_on", "trace_clock", "current_tracer", "buffer_size_kb", "buffer_subbuf_size_kb", "set_event",
    "set_event_pid", "saved_cmdlines_size", "dynamic_events", "kprobe_events", "uprobe_events",
)  # fmt: skip
"""Of the top-level buffer; what a kernel lacks is not looked at."""
GET_API_VERSION = 0xAE00
OURS = (b"counterpoint", b"live/vmm.py", b"trace-cmd")


def lack() -> str | None:
    """What this machine cannot do; None: nothing is missing."""
    if os.geteuid():
        return "not root"
    if not unshare():
        return "no mount namespace of our own is allowed"
    if not mount("tracefs", str(TRACEFS), "instances"):
        return "tracefs cannot be mounted"
    try:
        descriptor = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        return f"/dev/kvm: {err.strerror}"
    try:
        fcntl.ioctl(descriptor, GET_API_VERSION, 0)
    except OSError as err:
        return f"/dev/kvm does not answer: {err.strerror}"
    finally:
        os.close(descriptor)
    return None


def state() -> dict[str, object]:
    """What may not be changed."""
    out: dict[str, object] = {}
    for name in SETTINGS:
        if (TRACEFS / name).exists():
            out[name] = (TRACEFS / name).read_text()
    # another's recording in an instance of its own is none of our business
    out["instances"] = {path.name for path in (TRACEFS / "instances").iterdir() if path.name.startswith("counterpoint")}
    return out


def processes() -> dict[str, str]:
    """Processes of these tests, by what they were started as."""
    out = {}
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            # a process's folder is where it was started
            if any(word in line for word in OURS) and (folder / "cwd").readlink() == Path.cwd():
                out[folder.name] = line.replace(b"\0", b" ").decode("utf-8", "replace")[:200]
        except OSError:
            continue
    return {pid: line for pid, line in out.items() if pid != str(os.getpid())}


def main() -> int:
    missing = lack()
    if missing:
        print(f"tests of the running kernel: skipped, {missing}")
        return 0
    before, there = state(), processes()
    status = subprocess.run(sys.argv[1:], check=False).returncode
    end = time.monotonic() + 15
    # (who was told to end may need a moment)
    while time.monotonic() < end and (state() != before or processes().keys() - there.keys()):
        time.sleep(0.1)
    after = state()
    said = [
        f"{name}: was {before.get(name)!r}, is {after.get(name)!r}" for name in before if before[name] != after[name]
    ]
    said += [f"process {pid} still runs: {line}" for pid, line in processes().items() if pid not in there]
    for line in said:
        print(f"left behind: {line}")
    if not said:
        print("the machine is as it was: the trace buffer's settings, instances, probes, processes")
    return status or bool(said)


if __name__ == "__main__":
    sys.exit(main())
