"""x86's TSC deadlines: guests write them, KVM waits for them on the way in, and says by how much it missed them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from counterpoint.clocks.counter import I64
from counterpoint.simulate.events import KVM_INJ_VIRQ, KVM_MSR, KVM_PVCLOCK_UPDATE, KVM_WAIT_LAPIC_EXPIRE, Block
from counterpoint.simulate.members import Guest, Host
from counterpoint.simulate.plan import Plan
from counterpoint.simulate.schedule import FAST
from counterpoint.simulate.times import Times
from counterpoint.simulate.virtual_timers import points

MSR_TSC_DEADLINE = 0x6E0
WRITES, UPDATES, AGAIN = 0.3, 0.05, 0.1
TIMER_VECTOR = 236


def add_deadlines(plan: Plan, times: Times, hosts: Sequence[Host], guests: Sequence[Guest]) -> None:
    """Add the deadlines' events to the host of an x86 world."""
    if not plan.options.kvm_events:
        return
    rng = np.random.Generator(np.random.PCG64([plan.options.seed, len(hosts), 2]))
    recorded = [vm for vm in plan.vms if vm.recorded]
    for vm, guest in zip(recorded, (g for g in guests if g.parent is None), strict=True):
        for vcpu in range(vm.vcpus):
            hosts[0].machine.blocks += _of_vcpu(plan, times, guest, vm.first + vcpu, vcpu, rng)


def _of_vcpu(plan: Plan, times: Times, guest: Guest, thread: int, vcpu: int, rng: np.random.Generator) -> list[Block]:
    windows, stints, counter = times.windows, times.stints, guest.counters[vcpu]
    tid = int(plan.tids[0][thread])
    first, last = (int(stints.first[s]) for s in np.searchsorted(stints.thread, [thread, thread + 1]))
    # windows of the vCPU's own that the host goes on from
    inner = np.arange(first, last)
    inner = inner[~times.last[inner] & (times.l2[inner] < 0) & (times.l2[np.minimum(inner + 1, last - 1)] < 0)]
    inner = inner[~times.first[inner]]
    chosen = inner[rng.random(len(inner)) < WRITES]
    # every second of them waits for what the one before wrote
    count = len(chosen) // 2
    wrote, waited = chosen[: 2 * count : 2], chosen[1 : 2 * count : 2]

    def block(window: I64, after: I64, before: I64) -> tuple[I64, I64, I64]:
        """(a time, another after it, the CPU) between two times of a window's."""
        early, late = points(rng, after, before, 2)
        return early, late, stints.cpu[windows.stint[window]]

    gap = windows.leave[wrote], windows.entry[wrote + 1]
    _, written, cpu = block(wrote, *gap)
    (read,) = points(rng, windows.entry[waited], windows.entry[waited] + windows.into[waited], 1)
    tsc = counter.at(read)
    # KVM starts its timer early: the deadline may not have been reached
    missed = rng.integers(-1000, 10_000, count)
    pids = np.full(count, tid)
    deadline = tsc - missed.astype(np.uint64)
    values = {"write": 1, "ecx": MSR_TSC_DEADLINE, "data": deadline}
    out = [Block(KVM_MSR, written, cpu, pids, values)]
    before = windows.leave[waited - 1], windows.entry[waited]
    _, injected, cpu = block(waited, *before)
    out.append(Block(KVM_INJ_VIRQ, injected, cpu, pids, {"vector": TIMER_VECTOR}))
    # some are told of after the next exit: the guest was entered again at once
    again = (windows.reason[waited] == FAST) & (rng.random(count) < AGAIN) & ~times.last[waited + 1]
    told = waited + again
    _, after, cpu = block(told, windows.leave[told], windows.entry[told + 1])
    out.append(Block(KVM_WAIT_LAPIC_EXPIRE, after, cpu, pids, {"vcpu_id": vcpu, "delta": missed}))
    if plan.options.pvclock:
        return out
    updated = inner[rng.random(len(inner)) < UPDATES]
    read, t, cpu = block(updated, windows.leave[updated], windows.entry[updated + 1])
    values = {"vcpu_id": vcpu, "tsc_timestamp": counter.at(read)}
    return [*out, Block(KVM_PVCLOCK_UPDATE, t, cpu, np.full(len(updated), tid), values)]
