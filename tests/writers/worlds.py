"""A small made-up world: a host, one of its guests, and the truth about their clocks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from writers.events import (
    HRTIMER_EXPIRE_ENTRY,
    KVM_ENTRY_ARM64,
    KVM_ENTRY_X86,
    KVM_EXIT_ARM64,
    KVM_EXIT_X86,
    KVM_GET_TIMER_MAP,
    KVM_WRITE_TSC_OFFSET,
    MARK,
    SCHED_SWITCH,
    SCHED_WAKING,
    Event,
)
from writers.tracedat import Buffer, GuestOption, TimeShift, TraceFile

HOST_ID, GUEST_ID = 0x1057, 0x6E57
START = 345_000_000_000


@dataclass(frozen=True)
class OffsetChange:
    """``delta`` is added to the offset of ``vcpu`` (None: of all) when ``at`` of its windows are over.

    ``recorded``: x86 hosts record it as kvm_write_tsc_offset (arm64 has no such event).
    """

    delta: int
    vcpu: int | None = None
    at: float = 0.5
    recorded: bool = True


@dataclass(frozen=True)
class Window:
    """A stretch in the guest: stamps of kvm_entry and kvm_exit on a host CPU."""

    cpu: int
    entry: int
    exit: int


@dataclass(frozen=True)
class GuestEvent:
    """A guest event: its stamp, when it happened in host time, and on which host CPU."""

    guest: int
    host: int
    cpu: int


@dataclass(frozen=True)
class Loss:
    """``count`` events of host CPU ``cpu`` are lost between the stamps ``after`` and ``before``."""

    cpu: int
    after: int
    before: int
    count: int


@dataclass
class Truth:
    """What happened: per vCPU its thread, its windows (lost ones too), its events, its epochs.

    An epoch is ``(first host stamp, offset)``; offset = guest - host.
    """

    threads: dict[int, int]
    decoys: list[int]
    windows: dict[int, list[Window]]
    guest_events: dict[int, list[GuestEvent]]
    epochs: dict[int, list[tuple[int, int]]]
    losses: list[Loss] = field(default_factory=list)

    def offset(self, vcpu: int, host: int) -> int:
        """Return the offset of ``vcpu`` at host time ``host``."""
        return [offset for start, offset in self.epochs[vcpu] if start <= host][-1]


@dataclass
class _Thread:
    tid: int
    vcpu: int
    comm: str
    left: int
    decoy: bool
    pending: list[tuple[int, int]] = field(default_factory=list)


def _switch(old: tuple[int, str], new: tuple[int, str]) -> dict[str, Any]:
    """Return the fields of a sched_switch between ``(pid, comm)`` and ``(pid, comm)``."""
    names = {"prev_comm": old[1], "prev_pid": old[0], "next_comm": new[1], "next_pid": new[0]}
    return names | {"prev_prio": 120, "next_prio": 120}


class _World:
    """The schedule is a row of rounds; in a round each host CPU runs at most one thread."""

    def __init__(self, arch: str, seed: int, slack: int, double_exits: float, host: TraceFile) -> None:
        self.x86 = arch == "x86"
        self.random = random.Random(seed)
        self.slack = slack
        self.double_exits = double_exits
        self.host = host
        self.rows: dict[int, list[tuple[int, bytes]]] = {}
        self.windows: dict[int, list[Window]] = {}

    def gap(self, mean: float) -> int:
        return 2 + int(self.random.expovariate(1 / mean))

    def emit(self, cpu: int, ts: int, event: Event, task: int, /, **values: Any) -> None:
        self.rows.setdefault(cpu, []).append((ts, self.host.payload(event, task, **values)))

    def switch(self, cpu: int, ts: int, old: tuple[int, str], new: tuple[int, str], state: int) -> None:
        self.emit(cpu, ts, SCHED_SWITCH, old[0], **_switch(old, new), prev_state=state)

    def enter(self, cpu: int, ts: int, thread: _Thread, ip: int) -> None:
        if self.x86:
            self.emit(cpu, ts, KVM_ENTRY_X86, thread.tid, vcpu_id=thread.vcpu, rip=ip)
        else:
            self.emit(cpu, ts, KVM_ENTRY_ARM64, thread.tid, vcpu_pc=ip)

    def leave(self, cpu: int, ts: int, thread: _Thread, ip: int) -> None:
        if self.x86:
            reason = self.random.choice((1, 12, 32, 48))
            values = {"exit_reason": reason, "guest_rip": ip, "isa": 1, "vcpu_id": thread.vcpu}
            self.emit(cpu, ts, KVM_EXIT_X86, thread.tid, **values)
        else:
            esr = self.random.choice((0, 1, 0x24))
            self.emit(cpu, ts, KVM_EXIT_ARM64, thread.tid, ret=2 if esr else 0, esr_ec=esr, vcpu_pc=ip)

    def round(self, cpu: int, ts: int, thread: _Thread) -> int:
        """Run ``thread`` on ``cpu`` from ``ts`` on for a few windows; return when it is done."""
        idle, me, kworker = (0, f"swapper/{cpu}"), (thread.tid, thread.comm), (40 + cpu, f"kworker/{cpu}:1")
        self.emit(cpu, ts, SCHED_WAKING, 0, comm=thread.comm, pid=thread.tid, prio=120, target_cpu=cpu)
        ts += self.gap(1500)
        self.switch(cpu, ts, idle, me, 0)
        for old, new in thread.pending:
            ts += self.gap(2000)
            values = {"previous_tsc_offset": old, "next_tsc_offset": new}
            self.emit(cpu, ts, KVM_WRITE_TSC_OFFSET, thread.tid, vcpu_id=thread.vcpu, **values)
        thread.pending.clear()
        if not self.x86:
            ts += self.gap(800)
            values = {"vcpu_id": thread.vcpu, "emul_vtimer": -1, "emul_ptimer": -1}
            self.emit(cpu, ts, KVM_GET_TIMER_MAP, thread.tid, **values)
        for _ in range(min(thread.left, self.random.randint(1, 4))):
            ip = 0xFFFFFFFF81000000 + self.random.randrange(1 << 20)
            entry = ts + self.gap(3000)
            ts = entry + 2 * self.slack + self.gap(self.random.choice((3_000, 30_000, 300_000)))
            self.enter(cpu, entry, thread, ip)
            self.leave(cpu, ts, thread, ip + 4)
            if not thread.decoy:
                self.windows.setdefault(thread.vcpu, []).append(Window(cpu, entry, ts))
            thread.left -= 1
            if self.random.random() < self.double_exits:
                ts += self.gap(900)
                self.leave(cpu, ts, thread, ip + 4)
            if self.random.random() < 0.15:
                ts += self.gap(1500)
                self.switch(cpu, ts, me, kworker, 0)
                ts += self.gap(8000)
                self.switch(cpu, ts, kworker, me, 128)
        ts += self.gap(2000)
        self.switch(cpu, ts, me, idle, 1)
        return ts


def tiny_pair(
    *,
    seed: int = 1,
    arch: Literal["x86", "arm64"] = "x86",
    host_cpus: int = 2,
    vcpus: int = 1,
    windows: int = 20,
    guest_events: int = 40,
    start: int = START,
    offset: int | Sequence[int] = -38_775_413_133,
    change: OffsetChange | Sequence[OffsetChange] | None = None,
    decoys: int = 1,
    slack: int = 200,
    hug: float = 0.1,
    lost: int = 0,
    double_exits: float = 0.0,
    claims: bool = True,
    **file: Any,
) -> tuple[TraceFile, TraceFile, Truth]:
    """Make a host file, a guest file and the truth.

    Each vCPU has ``windows`` run windows and ``guest_events`` events, all within ``[entry + slack, exit -
    slack]`` in host time; a share ``hug`` of them lies on those bounds. ``start`` is about the first host
    stamp (a counter that passes 2^64 wraps). ``offset`` is one for all vCPUs or one each. ``lost`` events in
    a row are missing from the middle of host CPU 0. ``decoys`` threads of another VM run vCPUs of the same
    numbers. ``claims``: the files hold right TIME_SHIFT and GUEST options. ``file`` goes to both
    ``TraceFile``s.
    """
    file = {"clock": "x86-tsc" if arch == "x86" else "mono_raw"} | file
    kvm = [KVM_ENTRY_X86, KVM_EXIT_X86, KVM_WRITE_TSC_OFFSET]
    if arch == "arm64":
        kvm = [KVM_ENTRY_ARM64, KVM_EXIT_ARM64, KVM_GET_TIMER_MAP]
    host = TraceFile(events=[SCHED_SWITCH, SCHED_WAKING, *kvm], trace_id=HOST_ID, cpu_count=host_cpus, **file)
    events = [SCHED_SWITCH, HRTIMER_EXPIRE_ENTRY, MARK]
    guest = TraceFile(events=events, trace_id=GUEST_ID, cpu_count=vcpus, **file)
    world = _World(arch, seed, slack, double_exits, host)
    threads = [_Thread(147 + v, v, f"CPU {v}/KVM", windows, decoy=False) for v in range(vcpus)]
    others = [_Thread(961 + v, v, f"CPU {v}/KVM", windows, decoy=True) for v in range(decoys)]
    offsets = [offset] * vcpus if isinstance(offset, int) else list(offset)
    epochs = {v: [(0, offsets[v])] for v in range(vcpus)}

    now = start
    changes = [] if change is None else [change] if isinstance(change, OffsetChange) else list(change)
    while any(thread.left for thread in threads + others):
        for one in list(changes):
            moved = [t for t in threads if one.vcpu in (None, t.vcpu)]
            if sum(t.left for t in moved) > (1 - one.at) * windows * len(moved):
                continue
            changes.remove(one)
            for thread in moved:
                old = offsets[thread.vcpu]
                offsets[thread.vcpu] = old + one.delta
                epochs[thread.vcpu].append((now, old + one.delta))
                if one.recorded and arch == "x86":
                    thread.pending.append((old, old + one.delta))
        ready = [thread for thread in threads + others if thread.left]
        world.random.shuffle(ready)
        cpus = world.random.sample(range(host_cpus), host_cpus)
        ends = [world.round(cpu, now + world.gap(4000), t) for cpu, t in zip(cpus, ready, strict=False)]
        now = max(ends) + world.gap(10_000)

    tids = {t.vcpu: t.tid for t in threads}
    truth = Truth(tids, [t.tid for t in others], world.windows, {}, epochs)
    _fill_guest(world, guest, truth, guest_events, hug)
    _fill_host(host, world.rows, truth, lost)
    host.cmdlines = {t.tid: t.comm for t in threads + others}
    guest.cmdlines = {500: "task"}
    if claims:
        host.guests = [GuestOption("vm", GUEST_ID, sorted(tids.items()))]
        samples = [[(max(begin, start) + o, -o, 1, 0) for begin, o in epochs[v]] for v in range(vcpus)]
        guest.time_shift = TimeShift(HOST_ID, 0, samples)
    return host, guest, truth


def _fill_guest(world: _World, guest: TraceFile, truth: Truth, count: int, hug: float) -> None:
    rng, number = world.random, 0
    task = (500, "task")
    buffer = Buffer()
    for vcpu in truth.threads:
        times: list[tuple[int, int]] = []
        for _ in range(count):
            window = rng.choice(truth.windows[vcpu])
            low, high = window.entry + world.slack, window.exit - world.slack
            time = rng.choice((low, high)) if rng.random() < hug else rng.randint(low, high)
            times.append((time, window.cpu))
        events = [GuestEvent(t + truth.offset(vcpu, t), t, cpu) for t, cpu in sorted(times)]
        idle = (0, f"swapper/{vcpu}")
        records, running = [], 0
        for event in events:
            number += 1
            kind = rng.randrange(4)
            if kind == 0:
                body = guest.payload(HRTIMER_EXPIRE_ENTRY, running, now=event.guest, function=0xFFFF)
            elif kind == 1:
                old, new = (task, idle) if running else (idle, task)
                running = new[0]
                body = guest.payload(SCHED_SWITCH, old[0], **_switch(old, new))
            else:
                body = guest.payload(MARK, running, n=number)
            records.append((event.guest, body))
        truth.guest_events[vcpu] = events
        buffer.cpus[vcpu] = guest.stream(records)
    guest.buffers = [buffer]


def _fill_host(host: TraceFile, rows: dict[int, list[tuple[int, bytes]]], truth: Truth, lost: int) -> None:
    buffer = Buffer()
    for cpu, row in sorted(rows.items()):
        missed = {}
        if lost and cpu == 0 and len(row) > lost + 2:
            first = (len(row) - lost) // 2
            truth.losses.append(Loss(cpu, row[first - 1][0], row[first + lost][0], lost))
            del row[first : first + lost]
            missed = {first: lost}
        buffer.cpus[cpu] = host.stream(row, missed=missed)
    host.buffers = [buffer]
