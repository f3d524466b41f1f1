"""Guests: L1s, and the L2 of the first of them."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64, U64, to_signed
from counterpoint.simulate import activity
from counterpoint.simulate.counters import kvm_ratio
from counterpoint.simulate.events import (
    KVM_ENTRY_ARM64,
    KVM_ENTRY_X86,
    KVM_EXIT_ARM64,
    KVM_EXIT_X86,
    Block,
)
from counterpoint.simulate.exits import exit_values, rips
from counterpoint.simulate.machines import Machine
from counterpoint.simulate.members import Guest
from counterpoint.simulate.plan import (
    Plan,
    Vm,
    VmCounters,
    nested_counter,
)
from counterpoint.simulate.rates import MachineRates, counter_of, guest_hz
from counterpoint.simulate.times import Times
from counterpoint.simulate.truth import Steps, TraceClock


def make_guest(plan: Plan, vm: Vm, its: VmCounters, times: Times, host_of: Steps, span: tuple[int, int]) -> Guest:
    """An L1 guest: its events are those of the windows that L1 itself runs in."""
    options, stints = plan.options, times.stints
    hz = guest_hz(plan)
    rates = MachineRates(plan, span, hz, drift=options.drift_ppm, steps=options.steps, stands=its.stands)
    in_ns = its.kvm_clock or rates.clock(options.guests_clock, counter_of(its.common))
    clocks = [TraceClock(options.guests_clock, its.common if in_ns else c, in_ns) for c in its.vcpus]
    mono = TraceClock("mono", its.common, rates.clock("mono", counter_of(its.common)))
    begin, end = np.searchsorted(stints.thread, [vm.first, vm.first + vm.vcpus]).tolist()
    windows = slice(int(stints.first[begin]), int(stints.first[end]))
    mine = np.flatnonzero(
        (times.events.window >= windows.start)
        & (times.events.window < windows.stop)
        & (times.l2[times.events.window] < 0)
    )
    cpu = stints.thread[times.windows.stint[times.events.window[mine]]] - vm.first
    tasks = {0: "swapper/0", **activity.TASKS}
    l2_tids = l2_tids_of(plan) if vm.first == 0 else []
    blocks = _activity_blocks(plan, times, mine, cpu, mono, tasks, l2_tids)
    parent_cpu = []
    for vcpu in range(vm.vcpus):
        rows = slice(*np.searchsorted(stints.thread, [vm.first + vcpu, vm.first + vcpu + 1]).tolist())
        parent_cpu.append(Steps(stints.start[rows], stints.cpu[rows] % options.cpus))
    names = tasks | {tid: f"CPU {n}/KVM" for n, tid in enumerate(l2_tids)}
    machine = Machine(
        vm.name, "host", options.guests_clock, vm.vcpus, lambda c, t: clocks[c].at(t), blocks,
        names if options.cmdlines else {}, losses=options.lose_guest, counted=not options.uncounted,
    )  # fmt: skip
    tids = tuple(t[vm.first : vm.first + vm.vcpus].tolist() for t in plan.tids[: len(plan.hosts) + options.returns])
    arm64 = options.arch == "arm64"
    return Guest(
        machine, None, tids, its.vcpus, clocks, host_of, parent_cpu, arm64, sched_clock_offset=its.sched_clock_offset,
        mono=mono,
    )  # fmt: skip


def l2_tids_of(plan: Plan) -> list[int]:
    """L1's threads that are L2's vCPUs."""
    return [441 + 2 * n for n in range(plan.options.nested)]


def _activity_blocks(
    plan: Plan, times: Times, mine: I64, cpu: I64, mono: TraceClock, tasks: dict[int, str], l2_tids: list[int]
) -> list[Block]:
    """The events ``mine`` i64[n] of one guest, on its CPUs ``cpu`` i64[n]; L1's own kvm events with them."""
    events, rng = times.events, plan.rng
    t, kind = events.t[mine], events.kind[mine]
    target = events.target[mine]
    if l2_tids:
        target = np.where(target >= 0, np.array(l2_tids, np.int64)[np.maximum(target, 0)], -1)
    timers = np.flatnonzero(kind == activity.TIMER)
    now = np.zeros(len(t), np.int64)
    # read a little before, still in guest mode: no entry takes less
    now[timers] = mono.at(t[timers] - rng.integers(1, times.slot + 1, len(timers))).view(np.int64)
    blocks, current = activity.blocks(rng, cpu, t, kind, target, now, tasks, l2_tids)
    x86 = plan.options.arch == "x86"
    for which, block_kind in (
        (activity.KVM_ENTRY_HERE, KVM_ENTRY_X86 if x86 else KVM_ENTRY_ARM64),
        (activity.KVM_EXIT_HERE, KVM_EXIT_X86 if x86 else KVM_EXIT_ARM64),
    ):
        at = np.flatnonzero(kind == which)
        if not len(at) or not plan.options.kvm_events:
            continue
        rip = rips(rng, len(at))
        vcpu = np.searchsorted(np.array(l2_tids, np.int64), current[at])
        if which == activity.KVM_EXIT_HERE:
            reason = times.windows.reason[events.window[mine[at]] - 1]
            values = exit_values(plan, reason, np.zeros(len(at), np.bool_), vcpu, rip)
        else:
            values = {"vcpu_id": vcpu, "rip": rip} if x86 else {"vcpu_pc": rip}
        blocks.append(Block(block_kind, t[at], cpu[at], current[at], values))
    return blocks


def make_nested(plan: Plan, l1: Guest, its: VmCounters, times: Times, span: tuple[int, int]) -> Guest:
    """The L2 guest of the first L1: its events are those of the windows in which L2 runs."""
    options, rng, stints = plan.options, plan.rng, times.stints
    frac = options.frac
    x86 = options.arch == "x86"
    l1_khz = guest_hz(plan) // 1000
    ratio = kvm_ratio(options.nested_khz, l1_khz, frac)
    l1_now = int(l1.counters[0].at(np.array([0], np.int64))[0])
    up = int(rng.integers(10**7, 10**9))
    offset = to_signed(up - (l1_now * ratio >> frac))
    given = (ratio, offset)
    own = [nested_counter(counter, *given) for counter in l1.counters]
    hz = options.nested_khz * 1000 if ratio != 1 << frac else l1_khz * 1000
    rates = MachineRates(plan, span, hz, drift=options.drift_ppm / 2, steps=options.steps, stands=its.stands)
    common = nested_counter(its.common, *given)
    in_ns = rates.clock(options.guests_clock, counter_of(common))
    clocks = [TraceClock(options.guests_clock, common if in_ns else c, in_ns) for c in own]
    mono = TraceClock("mono", common, rates.clock("mono", counter_of(common)))
    mine = np.flatnonzero(times.l2[times.events.window] >= 0)
    cpu = times.l2[times.events.window[mine]]
    order = np.lexsort((times.events.t[mine], cpu))
    mine, cpu = mine[order], cpu[order]
    tasks = {0: "swapper/0", **activity.TASKS}
    blocks = _activity_blocks(plan, times, mine, cpu, mono, tasks, [])
    parent_cpu = []
    for vcpu in range(options.nested):
        rows = np.flatnonzero(times.stint_l2 == vcpu)
        rows = rows[np.argsort(stints.start[rows], kind="stable")]
        where = Steps(stints.start[rows], stints.thread[rows])
        parent_cpu.append(where if len(rows) else Steps(np.zeros(1, np.int64), np.zeros(1, np.int64)))

    def stamps(cpu: int, t: I64) -> U64:
        on = parent_cpu[cpu].at(t)
        out = np.zeros(len(t), np.uint64)
        for l1_cpu, clock in enumerate(clocks):
            at = on == l1_cpu
            out[at] = clock.at(t[at])
        return out

    machine = Machine(
        "l2", l1.machine.name, options.guests_clock, options.nested, stamps, blocks,
        tasks if options.cmdlines else {}, losses=options.lose_guest, counted=not options.uncounted,
    )  # fmt: skip
    host_of = Steps(np.zeros(1, np.int64), np.zeros(1, np.int64))
    # by L1 CPU, not by its own: its counters differ by where it runs
    return Guest(machine, l1, (l2_tids_of(plan),), own, clocks, host_of, parent_cpu, not x86, given)
