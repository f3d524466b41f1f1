"""When everything is: stints, run windows and the guests' events, drawn and placed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.simulate import activity
from counterpoint.simulate.plan import (
    GUEST_EVENTS_A_WINDOW,
    Plan,
    make_stints,
)
from counterpoint.simulate.schedule import (
    FAST,
    HALT,
    INTERRUPT,
    KERNEL,
    LATENCIES,
    USER,
    Draw,
    Stints,
    Windows,
    place,
    segment_sums,
)

HUG = 0.25
SLOT_NS = 150
L2_EVENTS_A_WINDOW = 1.6
STAYS_IN_L2 = 0.7


@dataclass
class Times:
    """Everything about time: stints and windows, which L2 vCPU each is for (-1: none), and the guests' events."""

    stints: Stints
    windows: Windows
    begin: I64
    stint_l2: I64
    l2: I64
    recorded: Bools
    events: activity.Activity
    slot: int

    @property
    def first(self) -> Bools:
        """Which windows open a stint."""
        out = np.zeros(len(self.windows.stint), np.bool_)
        out[self.stints.first[:-1]] = True
        return out

    @property
    def last(self) -> Bools:
        """Which windows end a stint."""
        out = np.zeros(len(self.windows.stint), np.bool_)
        out[self.stints.first[1:] - 1] = True
        return out


def make_times(plan: Plan) -> Times:
    """Draw stints, windows and guest events, and place them in time."""
    options, rng = plan.options, plan.rng
    draw = Draw(rng, plan.units_per_ns)
    usual = LATENCIES[options.latency]
    stints, extra = make_stints(plan)
    count = int(stints.first[-1])
    size = np.diff(stints.first)
    stint = np.repeat(np.arange(len(size)), size)
    first, last = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    first[stints.first[:-1]] = last[stints.first[1:] - 1] = True

    reason = rng.choice(np.array([KERNEL, USER, INTERRUPT]), count, p=[0.5, 0.25, 0.25])
    reason[rng.random(count) < options.fast_exits] = FAST
    reason[last] = np.where(stints.halted, HALT, INTERRUPT)

    thread_recorded = np.zeros(plan.threads, np.bool_)
    for vm in plan.vms:
        thread_recorded[vm.first : vm.first + vm.vcpus] = vm.recorded
    recorded = thread_recorded[stints.thread][stint]
    stint_l2 = _assign_l2(plan, stints)
    l2 = np.where(first | last, -1, stint_l2[stint])
    back = rng.random(count) > STAYS_IN_L2
    back[np.r_[False, first[:-1]]] = False
    l2[back] = -1

    windows = Windows(
        stint, np.zeros(0, np.int64), np.zeros(0, np.int64), reason, draw.spans(usual.into, count),
        draw.spans(usual.out_of, count),
    )  # fmt: skip
    events, run = _guest_events(draw, windows, recorded, stint_l2, l2, first, last)

    slot = draw.units(SLOT_NS)
    after = np.zeros(count, np.int64)
    for which, ns in ((FAST, usual.fast), (KERNEL, usual.kernel), (INTERRUPT, usual.kernel), (USER, usual.user)):
        mine = np.flatnonzero(reason == which)
        after[mine] = draw.spans(ns, len(mine))
    # room for what the host does between two windows; entry, exit and those are at least a unit apart
    after = np.maximum(after, 4)
    before = np.r_[0, after[:-1]]
    opening = stints.first[:-1]
    before[opening] = draw.spans(usual.switch, len(size)) + (stints.jumps + 3) * slot
    closing = np.maximum(draw.spans(usual.switch, len(size)), 3 * slot)
    duration = segment_sums(before + run, stints.first) + closing
    begin = place(draw, stints, duration, plan.rounds, extra, usual.switch)

    total = np.cumsum(before + run)
    leave = total - np.repeat(np.r_[0, total[stints.first[1:-1] - 1]], size) + stints.start[stint]
    windows.entry, windows.leave = leave - run, leave
    events.t += windows.entry[events.window]
    return Times(stints, windows, begin, stint_l2, l2, recorded, events, slot)


def _assign_l2(plan: Plan, stints: Stints) -> I64:
    """Which L2 vCPU is run in each stint of the first VM's threads (-1: none), i64[S]; its thread moves."""
    out = np.full(len(stints.thread), -1, np.int64)
    vm = plan.vms[0]
    long_enough = np.diff(stints.first) >= 3
    for vcpu in range(plan.options.nested):
        on = plan.rng.integers(0, vm.vcpus, plan.rounds)
        fresh = plan.rng.random(plan.rounds) < 0.3
        fresh[0] = True
        on = on[np.maximum.accumulate(np.where(fresh, np.arange(plan.rounds), 0))]
        on[plan.rng.random(plan.rounds) < 0.15] = -1
        mine = (stints.thread < vm.vcpus) & (on[stints.round] == stints.thread) & long_enough & (out < 0)
        out[mine] = vcpu
    return out


def _guest_events(
    draw: Draw, windows: Windows, recorded: Bools, stint_l2: I64, l2: I64, first: Bools, last: Bools
) -> tuple[activity.Activity, I64]:
    """The events of all guests, with times counted from their window's entry; and how long each window runs, i64[W].

    An L1 window next to one of L2 has L1's own kvm_exit first or kvm_entry last; the stint's first and last window have
    L1's switches to and from the thread that is L2's vCPU.
    """
    rng = draw.rng
    count = len(l2)
    nested = stint_l2[windows.stint] >= 0
    in_l2 = l2 >= 0
    own_exit = (~in_l2) & np.r_[False, in_l2[:-1]] & ~first
    own_entry = (~in_l2) & np.r_[in_l2[1:], False] & ~last
    to_l2, from_l2 = nested & first & own_entry, nested & last & own_exit
    random = np.zeros(count, np.int64)
    mine = np.flatnonzero(recorded)
    mean = np.where(in_l2[mine], L2_EVENTS_A_WINDOW, GUEST_EVENTS_A_WINDOW)
    random[mine] = rng.geometric(1 / (mean + 1)) - 1
    counts = random + own_exit + own_entry + to_l2 + from_l2
    start, gap, tail = activity.event_gaps(draw, counts, HUG)
    window = np.repeat(np.arange(count), counts)
    total = np.cumsum(gap)
    base = np.r_[0, total][start[:-1]]
    t = total - base[window] + windows.into[window]
    run = windows.into + (np.r_[0, total][start[1:]] - base) + tail + windows.out_of

    kind = activity.random_kinds(rng, len(t), ~nested[window] | in_l2[window])
    target = np.full(len(t), -1, np.int64)
    woken = np.flatnonzero(np.r_[False, (windows.reason[:-1] == INTERRUPT)] & (random > 0))
    kind[(start[:-1] + own_exit + from_l2)[woken]] = activity.IRQ_IN
    kind[start[:-1][own_exit]] = activity.KVM_EXIT_HERE
    kind[start[1:][own_entry] - 1] = activity.KVM_ENTRY_HERE
    kind[start[:-1][from_l2] + 1] = activity.SWITCH
    switch_in = start[1:][to_l2] - 2
    kind[switch_in] = activity.SWITCH
    target[switch_in] = stint_l2[windows.stint[to_l2]]
    return activity.Activity(window, t, kind, target), run
