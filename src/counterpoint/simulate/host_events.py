"""Everything that hosts record, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from counterpoint.clocks.counter import I64, MASK, U64
from counterpoint.simulate import activity
from counterpoint.simulate.events import (
    HRTIMER_EXPIRE_ENTRY,
    KVM_ENTRY_ARM64,
    KVM_ENTRY_X86,
    KVM_EXIT_ARM64,
    KVM_EXIT_X86,
    KVM_INJECT_NESTED,
    KVM_NESTED_ERET,
    KVM_NESTED_VMENTER,
    KVM_NESTED_VMEXIT,
    KVM_PVCLOCK_UPDATE,
    KVM_USERSPACE_EXIT,
    KVM_WRITE_TSC_OFFSET,
    SCHED_SWITCH,
    SCHED_WAKING,
    SET_CNTVOFF,
    Block,
)
from counterpoint.simulate.exits import KERNEL_TEXT, exit_values, rips
from counterpoint.simulate.machines import Machine
from counterpoint.simulate.members import Host
from counterpoint.simulate.plan import (
    Plan,
    Vm,
    VmCounters,
)
from counterpoint.simulate.schedule import (
    FAST,
    INTERRUPT,
    USER,
)
from counterpoint.simulate.times import Times
from counterpoint.simulate.truth import TraceClock

HOST_TASKS = {14: "ksoftirqd/{}", 15: "rcuop/{}", 31: "kworker/{}:1", 640: "hog{}", 811: "qemu-main{}"}
"""Tasks of each CPU by what their thread ids begin with, and their names."""


def make_hosts(
    plan: Plan,
    times: Times,
    counters: Sequence[VmCounters | None],
    clocks: Sequence[TraceClock],
    monos: Sequence[TraceClock],
    span: tuple[int, int],
) -> list[Host]:
    """The hosts, with all that they record; ``clocks`` and ``monos``: of each, its trace clock and CLOCK_MONOTONIC."""
    options = plan.options
    blocks = _host_blocks(plan, times, counters, monos)
    names = _host_tasks(plan)
    out = []
    for number, clock in enumerate(clocks):
        low = number * options.cpus
        mine = [_on_cpus(block, low, low + options.cpus) for block in blocks]
        seen = span
        silent: frozenset[int] = frozenset()
        if number == 0:
            seen = (int(span[1] * options.late_start), span[1] - int(span[1] * options.early_end))
            silent = _silent_cpus(plan, times)
        out.append(
            Host(
                Machine(
                    "host" if number == 0 else "host-b", None, clock.name, options.cpus, _any_cpu(clock), mine,
                    names if options.cmdlines else {}, seen=seen, silent=silent,
                    losses=options.lose if number == 0 else 0, counted=not options.uncounted,
                ),
                clock,
            )
        )  # fmt: skip
    return out


def _silent_cpus(plan: Plan, times: Times) -> frozenset[int]:
    """The first host's CPUs that are not recorded: such as run vCPUs first, but one of those is recorded."""
    options = plan.options
    cpus = plan.rng.permutation(options.cpus)
    used = np.isin(cpus, times.stints.cpu)
    ordered = np.r_[cpus[used][1:], cpus[~used], cpus[used][:1]]
    return frozenset(ordered[: options.unrecorded_cpus].tolist())


def _host_tasks(plan: Plan) -> dict[int, str]:
    names = {0: "swapper/0"}
    for cpu in range(plan.options.cpus):
        names |= {int(_task_on(task, cpu)): name.format(cpu) for task, name in HOST_TASKS.items()}
    for vm in plan.vms:
        for vcpu in range(vm.vcpus):
            for tids in plan.tids:
                names[int(tids[vm.first + vcpu])] = f"CPU {vcpu}/KVM"
    return names


def _task_on(task: I64 | int, cpu: I64 | int) -> I64:
    """The thread id of a CPU's own such task: no thread is on two CPUs at once."""
    return np.where(np.equal(task, 0) | np.equal(cpu, 0), task, task + 1_000_000 + 1000 * np.asarray(cpu))


def _any_cpu(clock: TraceClock) -> Callable[[int, I64], U64]:
    return lambda _cpu, t: clock.at(t)


def _on_cpus(block: Block, low: int, high: int) -> Block:
    """The part of a block on CPUs low..high-1, numbered from 0."""
    rows = np.flatnonzero((block.cpu >= low) & (block.cpu < high))
    if len(rows) == len(block.cpu) and low == 0:
        return block
    values = {name: v[rows] if isinstance(v, np.ndarray) else v for name, v in block.values.items()}
    return Block(block.kind, block.t[rows], block.cpu[rows] - low, block.pid[rows], values)


def _host_blocks(
    plan: Plan, times: Times, counters: Sequence[VmCounters | None], monos: Sequence[TraceClock]
) -> list[Block]:
    """All events of the hosts; CPUs of the second host follow those of the first."""
    options, rng = plan.options, plan.rng
    stints, windows = times.stints, times.windows
    stint_tid = np.array(plan.tids)[plan.visit(stints), stints.thread]
    vcpu_of = np.concatenate([np.arange(vm.vcpus) for vm in plan.vms])
    tid, cpu, vcpu = stint_tid[windows.stint], stints.cpu[windows.stint], vcpu_of[stints.thread][windows.stint]
    blocks: list[Block] = []

    def now(t: I64, where: I64) -> I64:
        """CLOCK_MONOTONIC as the interrupt read it, a little before the event."""
        t = np.maximum(t - rng.integers(1, times.slot + 1, len(t)), 0)
        out = monos[0].at(t)
        if len(monos) > 1:
            out = np.where(where >= options.cpus, monos[1].at(t), out)
        return out.view(np.int64)

    if options.kvm_events:
        blocks += _kvm_blocks(plan, times, tid, cpu, vcpu)
        for its, vm in zip(counters, plan.vms, strict=True):
            if its is not None:
                blocks += _write_blocks(plan, times, its, vm, stint_tid)
                blocks += _pvclock_blocks(times, its, vm, stint_tid)
        if options.probes and options.arch == "arm64":
            blocks += _probe_blocks(plan, times, counters, stint_tid)
    blocks += _switch_blocks(plan, times, stint_tid, now)
    if options.timers:
        ticking = np.flatnonzero((windows.reason == INTERRUPT) & ~times.last)
        ticking = ticking[rng.random(len(ticking)) < 0.6]
        t = windows.leave[ticking] + (windows.entry[ticking + 1] - windows.leave[ticking]) // 2
        blocks.append(_tick_block(t, cpu[ticking], tid[ticking], now(t, cpu[ticking])))
    return blocks


def _tick_block(t: I64, cpu: I64, pid: I64, now: I64) -> Block:
    values = {"hrtimer": activity.timers_of(cpu), "now": now, "function": 0xFFFFFFFF81100000}
    return Block(HRTIMER_EXPIRE_ENTRY, t, cpu, pid, values)


def _kvm_blocks(plan: Plan, times: Times, tid: I64, cpu: I64, vcpu: I64) -> list[Block]:
    """kvm_entry, kvm_exit, kvm_userspace_exit and the marks of nesting."""
    options, rng = plan.options, plan.rng
    windows, l2 = times.windows, times.l2
    x86 = options.arch == "x86"
    rip = rips(rng, len(tid))
    last = times.last
    enters = ~last & (l2 < 0) & (np.r_[l2[1:], -1] >= 0)
    returns = ~last & (l2 >= 0) & (np.r_[l2[1:], -1] < 0)
    logged = np.ones(len(tid), np.bool_)
    if options.unlogged:
        # older kernels go back in from a fast path without saying so
        follows_fast = np.r_[False, windows.reason[:-1] == FAST] & ~times.first
        logged = ~(follows_fast & (rng.random(len(tid)) < options.unlogged))
    at = np.flatnonzero(logged)
    values: dict[str, Any] = {"vcpu_id": vcpu[at], "rip": rip[at]} if x86 else {"vcpu_pc": rip[at]}
    out = [Block(KVM_ENTRY_X86 if x86 else KVM_ENTRY_ARM64, windows.entry[at], cpu[at], tid[at], values)]
    values = exit_values(plan, windows.reason, enters, vcpu, rip)
    out.append(Block(KVM_EXIT_X86 if x86 else KVM_EXIT_ARM64, windows.leave, cpu, tid, values))
    at = np.flatnonzero((windows.reason == USER) & ~last)
    t = windows.leave[at] + (windows.entry[at + 1] - windows.leave[at]) // 3
    out.append(Block(KVM_USERSPACE_EXIT, t, cpu[at], tid[at], {"reason": 2 if x86 else 6, "errno": 0}))
    if not options.nested_events:
        return out
    for rows, kind in ((enters, KVM_NESTED_VMENTER), (returns, KVM_NESTED_VMEXIT)):
        at = np.flatnonzero(rows)
        t = windows.leave[at] + (windows.entry[at + 1] - windows.leave[at]) * 2 // 3
        if not x86:
            values = {"elr_el2": rip[at]} if kind is KVM_NESTED_VMENTER else {"esr_el2": 0x5E000000}
            out.append(
                Block(KVM_NESTED_ERET if kind is KVM_NESTED_VMENTER else KVM_INJECT_NESTED, t, cpu[at], tid[at], values)
            )
        elif kind is KVM_NESTED_VMENTER:
            values = {"rip": rip[at], "nested_rip": rip[at], "isa": 1 if options.frac == 48 else 2, "tdp_enabled": 1}
            out.append(Block(kind, t, cpu[at], tid[at], values))
        else:
            values = exit_values(plan, windows.reason[at], enters[at], vcpu[at], rip[at])
            out.append(Block(kind, t, cpu[at], tid[at], values))
    return out


def _write_blocks(plan: Plan, times: Times, its: VmCounters, vm: Vm, stint_tid: I64) -> list[Block]:
    """kvm_write_tsc_offset for each write of a TSC."""
    if plan.options.silent or plan.options.arch != "x86" or not its.writes:
        return []
    stint = np.array([done.write.stint for done in its.writes], np.int64)
    values = {
        "vcpu_id": np.array([done.write.thread - vm.first for done in its.writes], np.int64),
        "previous_tsc_offset": np.array([done.before & MASK for done in its.writes], np.uint64),
        "next_tsc_offset": np.array([done.after & MASK for done in its.writes], np.uint64),
    }
    t = np.array([done.t for done in its.writes], np.int64)
    return [Block(KVM_WRITE_TSC_OFFSET, t, times.stints.cpu[stint], stint_tid[stint], values)]


def _pvclock_blocks(times: Times, its: VmCounters, vm: Vm, stint_tid: I64) -> list[Block]:
    """kvm_pvclock_update for each vCPU that is told of a new pair of TSC and ns (kvm_guest_time_update)."""
    if its.kvm_clock is None or not its.updates:
        return []
    segments = {segment.since: segment for segment in its.kvm_clock.segments}
    used = [segments[update.since if update.write.change.end else 0] for update in its.updates]
    stint = np.array([update.write.stint for update in its.updates], np.int64)
    values = {
        "vcpu_id": np.array([update.write.thread - vm.first for update in its.updates], np.int64),
        "version": np.array([2 * update.write.change.end + 2 for update in its.updates], np.int64),
        "tsc_timestamp": np.array([segment.counter & MASK for segment in used], np.uint64),
        "system_time": np.array([segment.ns + its.sched_clock_offset for segment in used], np.uint64),
        "tsc_to_system_mul": np.array([segment.mult for segment in used], np.uint32),
        "tsc_shift": np.array([-segment.pre for segment in used], np.int8),
        "flags": 1,  # PVCLOCK_TSC_STABLE_BIT
    }
    t = np.array([update.t for update in its.updates], np.int64)
    return [Block(KVM_PVCLOCK_UPDATE, t, times.stints.cpu[stint], stint_tid[stint], values)]


def _probe_blocks(plan: Plan, times: Times, counters: Sequence[VmCounters | None], stint_tid: I64) -> list[Block]:
    """A probe of the user's that logs CNTVOFF when a vCPU is loaded, and 0 when it is put."""
    stints = times.stints
    loaded = stints.start + (stints.jumps + 1) * times.slot
    value = np.zeros(len(loaded), np.uint64)
    for its, vm in zip(counters, plan.vms, strict=True):
        mine = (stints.thread >= vm.first) & (stints.thread < vm.first + vm.vcpus)
        if its is None:
            value[mine] = 123_456_789
            continue
        offsets = np.array([-s.offset & MASK for s in its.common.settings], np.uint64)
        value[mine] = offsets[its.common.epoch(loaded[mine])]
    put = stints.end - times.slot
    out = []
    for t, off in ((loaded, value), (put, np.zeros(len(put), np.uint64))):
        out.append(Block(SET_CNTVOFF, t, stints.cpu, stint_tid, {"__probe_ip": KERNEL_TEXT + 0x4000, "off": off}))
    return out


def nested_probe_blocks(plan: Plan, times: Times, its: VmCounters, l12_offset: int) -> list[Block]:
    """What the same probe logs as the first VM's vCPUs go to L2 and back: 0, and the sum of both levels or L1's own."""
    windows, stints, l2 = times.windows, times.stints, times.l2
    to_l2 = ~times.last & (l2 < 0) & (np.r_[l2[1:], -1] >= 0)
    to_l1 = ~times.last & (l2 >= 0) & (np.r_[l2[1:], -1] < 0)
    at = np.flatnonzero(to_l2 | to_l1)
    gap = windows.entry[at + 1] - windows.leave[at]
    put, loaded = windows.leave[at] + gap // 4, windows.leave[at] + gap * 3 // 4
    offsets = np.array([s.offset for s in its.common.settings], np.int64)[its.common.epoch(loaded)]
    value = -(offsets + np.where(to_l2[at], l12_offset, 0)).view(np.uint64)
    stint = windows.stint[at]
    tid = plan.tids[0][stints.thread[stint]]
    return [
        Block(SET_CNTVOFF, t, stints.cpu[stint], tid, {"__probe_ip": KERNEL_TEXT + 0x4000, "off": off})
        for t, off in ((put, np.zeros(len(at), np.uint64)), (loaded, value))
    ]


def _switch_blocks(plan: Plan, times: Times, stint_tid: I64, now: Callable[[I64, I64], I64]) -> list[Block]:
    """sched_switch to and from every stint, and what other tasks do between them."""
    options, rng, stints = plan.options, plan.rng, times.stints
    cpus = options.cpus * len(plan.hosts)
    order = np.lexsort((stints.start, stints.cpu))
    cpu, start, end, tid = stints.cpu[order], stints.start[order], stints.end[order], stint_tid[order]
    halted = stints.halted[order]
    others = np.array([0, *sorted(HOST_TASKS)], np.int64)
    # who has the CPU before each stint, and after its last one
    chance = np.r_[0.6, np.full(len(others) - 1, 0.4 / (len(others) - 1))]
    before = _task_on(rng.choice(others, len(order), p=chance), cpu % options.cpus)
    opens = np.r_[True, cpu[1:] != cpu[:-1]] if len(cpu) else np.zeros(0, np.bool_)
    ends = np.r_[opens[1:], True] if len(cpu) else np.zeros(0, np.bool_)
    after = np.where(ends, 0, np.r_[before[1:], 0])
    names = _host_tasks(plan)
    comm = activity.fixed_comm
    thread_comm, before_comm, after_comm = comm(names, tid), comm(names, before), comm(names, after)
    common = {"prev_prio": 120, "next_prio": 120}
    switched_in = {
        "prev_comm": before_comm, "prev_pid": before, "prev_state": np.where(before > 0, 1, 0),
        "next_comm": thread_comm, "next_pid": tid,
    }  # fmt: skip
    switched_out = {
        "prev_comm": thread_comm, "prev_pid": tid, "prev_state": halted.astype(np.int64),
        "next_comm": after_comm, "next_pid": after,
    }  # fmt: skip
    out = [
        Block(SCHED_SWITCH, start, cpu, before, common | switched_in),
        Block(SCHED_SWITCH, end, cpu, tid, common | switched_out),
    ]
    # the time between stints: at least 4 units
    free_from = np.where(opens, np.maximum(start - 40 * times.slot, 0), np.r_[0, end[:-1]])
    free = start - free_from
    values = {"comm": thread_comm, "pid": tid, "prio": 120, "target_cpu": cpu % options.cpus}
    out.append(Block(SCHED_WAKING, free_from + free * 2 // 3, cpu, before, values))
    if options.timers:
        at = np.flatnonzero(rng.random(len(order)) < 0.5)
        t = free_from[at] + free[at] // 3
        out.append(_tick_block(t, cpu[at], before[at], now(t, cpu[at])))
        # CPUs that no vCPU runs on are idle, and tick
        idle = np.setdiff1d(np.arange(cpus), cpu)
        t = np.repeat(times.begin[None, :-1], len(idle), axis=0).reshape(-1)
        on = np.repeat(idle, len(times.begin) - 1)
        out.append(_tick_block(t, on, np.zeros(len(t), np.int64), now(t, on)))
    return out
