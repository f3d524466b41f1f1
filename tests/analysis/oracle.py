"""What a vCPU's thread does, followed event by event: slow, plain, and apart from the code under test.

For recordings that lost nothing and miss nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from counterpoint.outputs.text import EventText
from counterpoint.traces.recording import Recording

WANTED = ("kvm_entry", "kvm_exit", "kvm_userspace_exit", "kvm_vcpu_wakeup", "sched_switch", "sched_waking")


def _events(recording: Recording) -> Iterator[tuple[int, int, int, str, str]]:
    """(stamp, CPU, pid, name, text) in the order of the stamps."""
    text = EventText(recording)
    found = []
    for event_id in recording.counts_by_id():
        name = recording.event_name(event_id)
        if name not in WANTED:
            continue
        rows = recording.rows(event_id)
        for row, line in zip(rows.tolist(), text.render(event_id, rows), strict=True):
            cpu = recording.streams[recording.stream_of[row]].cpu
            found.append((int(recording.stamp[row]), row, cpu, int(recording.pid[row]), name, line))
    for stamp, _, cpu, pid, name, line in sorted(found):
        yield stamp, cpu, pid, name, line


def follow(recording: Recording, tid: int) -> list[tuple[int, str, int]]:
    """(stamp, state, who runs instead) at each change; a state holds until the next. Polling counts as kernel."""
    out: list[tuple[int, str, int]] = []
    sched, kvm, halt, waits_on = "?", "?", False, -1
    runs: dict[int, int] = {}
    for stamp, cpu, pid, name, line in _events(recording):
        if name == "sched_switch":
            found = re.search(r"prev_pid=(\d+) .*prev_state=(\S+) ==> .*next_pid=(\d+)", line)
            assert found
            runs[cpu] = int(found[3])
            if int(found[1]) == tid:
                sched = "ready" if found[2].startswith("R") else "asleep"
                waits_on = cpu if sched == "ready" else -1
            elif int(found[3]) == tid:
                sched = "on"
        elif name == "sched_waking":
            found = re.search(r" pid=(\d+) .*target_cpu=(\d+)", line)
            assert found
            if int(found[1]) == tid and sched == "asleep":
                sched, waits_on = "ready", int(found[2])
        elif pid == tid:
            sched = "on"
            if name == "kvm_entry":
                kvm = "guest"
            elif name == "kvm_exit":
                kvm, halt = "exit", bool(re.search(r"reason (hlt|HLT) |\(WFx\)", line))
            elif name == "kvm_userspace_exit":
                kvm = "user"
            elif kvm == "exit":
                halt = True
        if sched == "?" or kvm == "?":
            state = "?"
        elif sched == "on":
            state = {"guest": "guest", "exit": "kernel", "user": "user"}[kvm]
        else:
            state = "waiting" if sched == "ready" else "asleep" if kvm == "exit" and halt else "blocked"
        out.append((stamp, state, runs.get(waits_on, -1) if state == "waiting" else -1))
    return out
