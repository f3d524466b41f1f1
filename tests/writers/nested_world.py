"""Three levels: L0 runs the vCPUs of L1 as threads; a thread of L1 runs an L2 vCPU and moves between L1's vCPUs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from writers.events import KVM_ENTRY_X86, KVM_EXIT_X86, MARK, Event
from writers.tracedat import Buffer, TraceFile

VMENTER = Event(1470, "kvm", "kvm_nested_vmenter")
VMRUN = Event(1471, "kvm", "kvm_nested_vmrun")
VMEXIT = Event(1472, "kvm", "kvm_nested_vmexit")
INJECT = Event(1473, "kvm", "kvm_nested_vmexit_inject")

L2_TID, L3_TID = 441, 551
START = 500_000_000


@dataclass
class NestedTruth:
    """L1 CPU c is thread ``100 + c`` of L0; ``l2``: (host time, L1 CPU) of each of L2's events in their order.

    ``l1``: host times of L1's events by L1 CPU. ``l3``: host times of the events of a guest of L2, whose clock is
    ``l23`` ahead of L2's.
    """

    offsets: list[int]
    l12: int
    l2: list[tuple[int, int]] = field(default_factory=list)
    l1: dict[int, list[int]] = field(default_factory=dict)
    l3: list[tuple[int, int]] = field(default_factory=list)
    l23: int = 5_000_000


@dataclass
class _World:
    rng: random.Random
    l0: dict[int, list[tuple[int, Event, int]]]
    l1: dict[int, list[tuple[int, Event, int]]]
    truth: NestedTruth
    deep: bool = False
    l2: list[tuple[Event, int]] = field(default_factory=list)

    def gap(self, mean: int) -> int:
        return self.rng.randint(mean // 2, 2 * mean)

    def run(self, cpu: int, at: int, length: int) -> tuple[int, int]:
        """One entry and exit of an L1 CPU's thread."""
        tid, end = 100 + cpu, at + length
        self.l0[cpu] += [(at, KVM_ENTRY_X86, tid), (end, KVM_EXIT_X86, tid)]
        return at, end

    def mark(self, cpu: int, at: int, event: Event = MARK, tid: int = 7) -> None:
        self.l1[cpu].append((at, event, tid))
        self.truth.l1[cpu].append(at)

    def own(self, cpu: int, at: int, marks: int = 2) -> int:
        """L1 itself runs on one of its CPUs; return when the thread has left guest mode."""
        begin, end = self.run(cpu, at, self.gap(12_000))
        for when in sorted(self.rng.randint(begin + 100, end - 100) for _ in range(marks)):
            self.mark(cpu, when)
        return end

    def nested(self, cpu: int, at: int, enter: Event | None, count: int) -> int:
        """L1 enters L2, which runs in ``count`` windows of L0, and leaves it."""
        tid = 100 + cpu
        begin, end = self.run(cpu, at, self.gap(6_000))
        self.mark(cpu, end - self.rng.randint(50, 900), KVM_ENTRY_X86, L2_TID)
        for index in range(count):
            at = end + self.gap(2_000)
            if index == 0 and enter is not None:
                self.l0[cpu].append((at - 300, enter, tid))
            begin, end = self.run(cpu, at, self.gap(9_000))
            inside = sorted(self.rng.randint(begin + 500, end - 500) for _ in range(self.rng.randint(0, 3)))
            whens = [(begin + 60, KVM_ENTRY_X86, L3_TID), (end - 60, KVM_EXIT_X86, L3_TID)] if self.deep else []
            whens += [(begin + 40, MARK, 7)] if self.deep else [(when, MARK, 7) for when in inside]
            for when, event, task in sorted(whens, key=lambda row: row[0]):
                self.truth.l2.append((when, cpu))
                self.l2.append((event, task))
            self.truth.l3 += [(when, cpu) for when in inside]
            if enter is not None:
                self.l0[cpu].append((end + 100, VMEXIT, tid))
        if enter is not None:
            self.l0[cpu].append((end + 200, INJECT, tid))
        begin, end = self.run(cpu, end + self.gap(2_000), self.gap(6_000))
        self.mark(cpu, begin + self.rng.randint(50, 900), KVM_EXIT_X86, L2_TID)
        return end


def nested_world(
    *,
    seed: int = 1,
    offsets: Sequence[int] = (-90_000_000, -90_000_000),
    l12: int = -7_000_000_000,
    stays: int = 60,
    made_up: bool = False,
    enter: Event | None = VMENTER,
    move_gap: int = 4_000,
    deep: bool = False,
    **file: Any,
) -> tuple[list[TraceFile], NestedTruth]:
    """Make the recordings of L0, L1 and L2 (``deep``: and of L3, a guest of L2), and the truth.

    L1 CPU c has the offset ``offsets[c]`` to L0; L2's clock is that of the L1 CPU it is on plus ``l12``, or with
    ``made_up`` that of L1's CPU 0 wherever it is. L2's thread makes ``stays`` stays on L1's CPUs, at least ``move_gap``
    apart. ``enter``: which event tells of nested entries (None: no nested events at all).
    """
    cpus = range(len(offsets))
    truth = NestedTruth(list(offsets), l12)
    world = _World(random.Random(seed), {c: [] for c in cpus}, {c: [] for c in cpus}, truth, deep)
    world.truth.l1 = {c: [] for c in cpus}
    rng, clock, here = world.rng, [START + world.gap(5_000) for _ in cpus], 0
    for _ in range(stays):
        now = max(clock[here], START)
        for _ in range(rng.randint(1, 4)):
            now = world.nested(here, now + world.gap(8_000), enter, rng.randint(1, 3)) + world.gap(3_000)
            now = world.own(here, now)
        clock[here] = now
        there = rng.choice([c for c in cpus if c != here] or [here])
        # the others run L1 meanwhile
        for cpu in cpus:
            while cpu != here and clock[cpu] < now:
                clock[cpu] = world.own(cpu, clock[cpu] + world.gap(15_000))
        clock[there] = max(clock[there], now + move_gap)
        here = there
    kvm, options = [KVM_ENTRY_X86, KVM_EXIT_X86, MARK], {"clock": "x86-tsc"} | file
    l0 = TraceFile(events=[*kvm, VMENTER, VMRUN, VMEXIT, INJECT], trace_id=1, **options)
    l1, l2, l3 = (TraceFile(events=kvm, trace_id=n, **options) for n in (2, 3, 4))
    for machine, rows, ahead in ((l0, world.l0, [0] * len(offsets)), (l1, world.l1, list(offsets))):
        buffer = Buffer()
        for cpu, events in rows.items():
            events.sort(key=lambda row: row[0])
            buffer.cpus[cpu] = machine.stream([(at + ahead[cpu], machine.payload(e, tid)) for at, e, tid in events])
        machine.buffers = [buffer]
    for machine, when, extra, what in (
        (l2, truth.l2, l12, world.l2),
        (l3, truth.l3, l12 + truth.l23, [(MARK, 7)] * len(truth.l3)),
    ):
        stamps = [at + offsets[0 if made_up else cpu] + extra for at, cpu in when]
        buffer = Buffer()
        records = [(s, machine.payload(e, tid)) for s, (e, tid) in zip(stamps, what, strict=True)]
        buffer.cpus[0] = machine.stream(records)
        machine.buffers = [buffer]
    return [l0, l1, l2, l3][: 3 + deep], truth
