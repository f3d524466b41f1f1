"""arm64's virtual timers: what guests program their compare values (CVAL) for, and what their host's KVM shows of them.

A guest's timer interrupt reads CLOCK_MONOTONIC, expires, starts and programs its tick: CVAL is the counter, read last,
and what was left until the expiry, in ticks. KVM saves CVAL when it puts a vCPU and compares it with the counter when
it loads one; a vCPU that halts is woken by a timer that KVM sets. Each step happens at a hidden time of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.simulate.counters import GuestCounter, clocksource_mult_shift
from counterpoint.simulate.events import (
    BACKGROUND_FUNCTION,
    HRTIMER_EXPIRE_ENTRY,
    HRTIMER_EXPIRE_EXIT,
    HRTIMER_REARM,
    HRTIMER_START,
    IRQ_ENTRY,
    IRQ_EXIT,
    IRQ_NAME,
    IRQ_NAME_LOC,
    KVM_GET_TIMER_MAP,
    KVM_TIMER_EMULATE,
    KVM_TIMER_RESTORE,
    KVM_TIMER_SAVE,
    KVM_TIMER_UPDATE_IRQ,
    TICK_FUNCTION,
    Block,
    EventKind,
)
from counterpoint.simulate.members import Guest, Host
from counterpoint.simulate.plan import Plan, Vm
from counterpoint.simulate.rates import guest_hz
from counterpoint.simulate.schedule import INTERRUPT
from counterpoint.simulate.times import Times
from counterpoint.simulate.truth import TraceClock

IN_INTERRUPT = 0x09  # common_flags: interrupts off, hard interrupt
MIN_DELTA_NS, MIN_DELTA_TICKS = 1000, 15
LIVE, REACHED = 1, 4  # CTL: enabled and not masked; ISTATUS
PROGRAMS, STRADDLES, ALONE = 0.5, 0.12, 0.15
BLOCKED = 0xFFF00000063C62B8
TIMER_IRQ, HOST_TIMER_IRQ = 11, 14
PTIMER, VTIMER, HVTIMER, HPTIMER = range(4)
VTIMER_LINE = {VTIMER: 27, PTIMER: 30, HVTIMER: 28, HPTIMER: 26}


@dataclass
class Programs:
    """What a vCPU wrote into CVAL: ``cval`` u64[n] at hidden times ``t`` i64[n], in order."""

    t: I64
    cval: U64
    counter: GuestCounter

    def at(self, t: I64) -> tuple[Bools, U64]:
        """Whether anything was written by hidden times i64[n], and what CVAL holds then."""
        index = np.searchsorted(self.t, t, side="right") - 1
        cval = self.cval[np.maximum(index, 0)] if len(self.t) else np.zeros(len(t), np.uint64)
        return index >= 0, cval

    def reached(self, t: I64) -> Bools:
        """Whether the counter has reached CVAL."""
        any_, cval = self.at(t)
        out: Bools = any_ & ((self.counter.at(t) - cval).view(np.int64) >= 0)
        return out


def points(rng: np.random.Generator, after: I64, before: I64, count: int) -> list[I64]:
    """``count`` times in order between ``after`` and ``before`` i64[n], which are at least 2 apart."""
    share = np.sort(rng.random((len(after), count)), axis=1)
    return list((after[:, None] + 1 + (share * (before - after - 1)[:, None]).astype(np.int64)).T)


def add_virtual_timers(
    plan: Plan, times: Times, hosts: Sequence[Host], guests: Sequence[Guest], host_mono: TraceClock
) -> None:
    """Add the timers' events to the machines of an arm64 world."""
    rng = np.random.Generator(np.random.PCG64([plan.options.seed, len(hosts), 1]))
    host = hosts[0].machine
    has_cntpoff = rng.random() < 0.6
    nested = plan.options.nested > 0
    recorded = [vm for vm in plan.vms if vm.recorded]
    l1s = [guest for guest in guests if guest.parent is None]
    for vm, guest in zip(recorded, l1s, strict=True):
        names_expiry = rng.random() < 0.5
        for vcpu in range(vm.vcpus):
            blocks, programs = _guest(plan, times, guest, vm.first + vcpu, vcpu, rng, names_expiry=names_expiry)
            guest.machine.blocks += blocks
            if plan.options.kvm_events:
                kvm = _Kvm(plan, times, vm, vcpu, programs, host_mono, rng, is_nested=nested and vm.first == 0)
                host.blocks += kvm.blocks(has_cntpoff=has_cntpoff)
    if plan.options.timers:
        host.blocks += _host_ticks(times, host_mono, rng)


# -- the guest


def _guest(
    plan: Plan, times: Times, guest: Guest, thread: int, cpu: int, rng: np.random.Generator, *, names_expiry: bool
) -> tuple[list[Block], Programs]:
    """One vCPU's timer interrupts. ``names_expiry``: its kernel has hrtimer_rearm (7.1)."""
    assert guest.mono is not None
    counter, mono = guest.counters[cpu], guest.mono
    gaps, straddles = _gaps(times, thread, rng)
    kinds: list[list[I64]] = [points(rng, gaps[:, 0], gaps[:, 1], 9)]
    if len(straddles):
        first, rest = points(rng, straddles[:, 0], straddles[:, 1], 6), points(rng, straddles[:, 2], straddles[:, 3], 3)
        kinds.append(first + rest)
    enter, read, begin, leave, start, rearm, clock, count, out = (
        np.concatenate(parts) for parts in zip(*kinds, strict=True)
    )
    order = np.argsort(enter, kind="stable")
    enter, read, begin, leave, start, rearm, clock, count, out = (
        part[order] for part in (enter, read, begin, leave, start, rearm, clock, count, out)
    )
    # the tick expires before the next interrupt does
    now, left = mono.at(read).view(np.int64), mono.at(clock).view(np.int64)
    room = np.r_[now[1:], left[-1:] + 1_000_000] - left if len(left) else left
    expires = left + (room * rng.random(len(left))).astype(np.int64)
    soon = rng.random(len(left)) < 0.1
    expires = np.where(soon, np.minimum(expires, left + rng.integers(-2000, 3000, len(left))), expires)
    programs = _programmed(rng, guest_hz(plan), counter, left, count, expires)
    pid = np.zeros(len(enter), np.int64)
    where, timer = np.full(len(enter), cpu), {"hrtimer": 0xFF11000080003000 + 0x100 * cpu}
    inside = {"common_flags": IN_INTERRUPT}
    # sometimes it is a task that starts the timer: no interrupt, and nothing expires
    alone = names_expiry & (rng.random(len(enter)) < ALONE)
    parts: list[tuple[EventKind, I64, dict[str, Any], Bools]] = [
        (IRQ_ENTRY, enter, {"irq": TIMER_IRQ, "name": IRQ_NAME_LOC, "tail": IRQ_NAME}, ~alone),
        (HRTIMER_EXPIRE_ENTRY, begin, timer | {"now": now, "function": TICK_FUNCTION}, ~alone),
        (HRTIMER_EXPIRE_EXIT, leave, timer, ~alone),
        (HRTIMER_START, start, timer | {"function": TICK_FUNCTION, "expires": expires, "softexpires": expires}, ~alone),
        (HRTIMER_REARM, rearm, {"next_event": expires}, np.full(len(enter), names_expiry)),
        (IRQ_EXIT, out, {"irq": TIMER_IRQ, "ret": 1}, ~alone),
    ]
    blocks = []
    for kind, t, values, keep in parts:
        taken = {name: v[keep] if isinstance(v, np.ndarray) else v for name, v in (values | inside).items()}
        blocks.append(Block(kind, t[keep], where[keep], pid[keep], taken))
    return blocks, programs


def _gaps(times: Times, thread: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Where a vCPU's timer interrupts fit: (after, before) i64[n, 2] within a window between two of its events.

    And i64[m, 4]: the end of a window and the beginning of the next, where the vCPU is left in mid-interrupt.
    """
    windows, events, stints = times.windows, times.events, times.stints
    first, last = (int(stints.first[s]) for s in np.searchsorted(stints.thread, [thread, thread + 1]))
    own = np.arange(first, last)
    own = own[(times.l2[own] < 0) & (rng.random(len(own)) < PROGRAMS)]
    begins, ends = np.searchsorted(events.window, own), np.searchsorted(events.window, own, side="right")
    chosen = begins + (rng.random(len(own)) * (ends - begins + 1)).astype(np.int64)
    t = np.r_[events.t, 0]
    entered, left = windows.entry[own] + windows.into[own], windows.leave[own] - windows.out_of[own]
    after = np.where(chosen > begins, t[chosen - 1], entered)
    before = np.where(chosen < ends, t[np.minimum(chosen, len(events.t))], left)
    final = np.where(ends > begins, t[ends - 1], entered)
    following = np.minimum(own + 1, last - 1)
    opens = np.searchsorted(events.window, following)
    has = (opens < len(events.t)) & (events.window[np.minimum(opens, len(events.t) - 1)] == following)
    back = windows.entry[following] + windows.into[following]
    until = np.where(has, t[np.minimum(opens, len(events.t))], windows.leave[following] - windows.out_of[following])
    straddles = (rng.random(len(own)) < STRADDLES) & (following > own) & (times.l2[following] < 0)
    straddles &= (left - final > 10) & (until - back > 10)
    # the next window is taken, by what began in this one
    taken = np.isin(own, following[straddles])
    straddles &= ~taken
    plain = ~straddles & ~np.isin(own, following[straddles]) & (before - after > 14)
    whole = np.stack([after[plain], before[plain]], axis=1)
    return whole, np.stack([final[straddles], left[straddles], back[straddles], until[straddles]], axis=1)


def _programmed(
    rng: np.random.Generator, hz: int, counter: GuestCounter, now: I64, count: I64, expires: I64
) -> Programs:
    """clockevents_program_event: ``now`` is CLOCK_MONOTONIC, ``count`` the hidden time at which the counter is read."""
    mult, shift = _ticks_per_ns(hz)
    left = expires - now
    as_asked = left > max(MIN_DELTA_NS, -(-MIN_DELTA_TICKS * 10**9 // hz))
    ticks = np.where(as_asked, np.maximum(left, 0) * mult >> shift, MIN_DELTA_TICKS)
    # a clock event that was forced already is left as it is
    keep = as_asked | (rng.random(len(now)) < 0.5)
    return Programs(count[keep], (counter.at(count) + ticks.astype(np.uint64))[keep], counter)


def _ticks_per_ns(hz: int) -> tuple[int, int]:
    """A clock event's factors (clockevents_config and clocks_calc_mult_shift, for 600 s)."""
    over, room = 600 * 10**9 >> 32, 32
    while over:
        over, room = over >> 1, room - 1
    for shift in range(32, 0, -1):
        mult = ((hz << shift) + 10**9 // 2) // 10**9
        if mult >> room == 0:
            break
    return mult, shift


# -- the host


class _Kvm:
    """What the host's KVM writes of one vCPU's timers, by its thread."""

    def __init__(
        self,
        plan: Plan,
        times: Times,
        vm: Vm,
        vcpu: int,
        programs: Programs,
        mono: TraceClock,
        rng: np.random.Generator,
        *,
        is_nested: bool,
    ) -> None:
        self.plan, self.times, self.vcpu, self.programs = plan, times, vcpu, programs
        self.mono, self.rng, self.is_nested = mono, rng, is_nested
        thread = vm.first + vcpu
        self.tid = int(plan.tids[0][thread])
        self.stints = slice(*np.searchsorted(times.stints.thread, [thread, thread + 1]).tolist())
        first = times.stints.first
        self.windows = np.arange(int(first[self.stints.start]), int(first[self.stints.stop]))

    def blocks(self, *, has_cntpoff: bool) -> list[Block]:
        """All of them."""
        stints, windows, times = self.times.stints, self.times.windows, self.times
        mine = self.stints
        opens, closes = stints.first[mine], stints.first[mine.start + 1 : mine.stop + 1] - 1
        cpu, in_l1 = stints.cpu[mine], np.zeros(len(opens), np.bool_)
        begun = stints.start[mine] + (stints.jumps[mine] + 2) * times.slot
        out = self._load(cpu, begun, windows.entry[opens], in_l1)
        out += self._put(cpu, windows.leave[closes], stints.end[mine], in_l1, stints.halted[mine])
        # between L1 and L2 KVM puts the one and loads the other
        at = self.windows[:-1]
        at = at[~times.last[at]]
        enters, returns = (times.l2[at] < 0) & (times.l2[at + 1] >= 0), (times.l2[at] >= 0) & (times.l2[at + 1] < 0)
        for chosen, from_l2 in ((enters, False), (returns, True)):
            window = at[chosen]
            where, leave, entry = stints.cpu[windows.stint[window]], windows.leave[window], windows.entry[window + 1]
            middle = leave + (entry - leave) // 2
            level = np.full(len(window), from_l2)
            out += self._put(where, leave, middle, level, np.zeros(len(window), np.bool_))
            out += self._load(where, middle - 1, entry, ~level)
        return out + self._switches(has_cntpoff=has_cntpoff)

    def _block(self, kind: EventKind, t: I64, cpu: I64, **values: Any) -> Block:  # noqa: ANN401 (a field's column)
        return Block(kind, t, cpu, np.full(len(t), self.tid), values)

    def _map(self, t: I64, cpu: I64, in_l2: Bools, flags: int = 0) -> Block:
        direct = np.where(in_l2 | (not self.is_nested), VTIMER, HVTIMER)
        values = {"direct_vtimer": direct, "direct_ptimer": np.where(direct == VTIMER, PTIMER, HPTIMER)}
        for name, low, high in (("emul_vtimer", VTIMER, HVTIMER), ("emul_ptimer", PTIMER, HPTIMER)):
            values[name] = np.where(direct == VTIMER, high, low) if self.is_nested else np.full(len(t), -1)
        return self._block(KVM_GET_TIMER_MAP, t, cpu, vcpu_id=self.vcpu, common_flags=flags, **values)

    def _timer(self, t: I64, in_l2: Bools) -> tuple[I64, U64, I64]:
        """CTL, CVAL and index of the virtual timer that the hardware has: L1's, or that of its own guest."""
        written, cval = self.programs.at(t)
        ctl = np.where(written, LIVE, 0)
        index = np.where(in_l2 | (not self.is_nested), VTIMER, HVTIMER)
        # L2's counts from an offset of its own
        other = cval - np.uint64(123_456)
        return ctl, np.where(in_l2, other, cval), index

    def _load(self, cpu: I64, after: I64, before: I64, in_l2: Bools) -> list[Block]:
        """kvm_timer_vcpu_load between two times."""
        at = points(self.rng, after, np.maximum(before, after + 2), 9)
        ctl, cval, index = self._timer(at[4], in_l2)
        level = np.where(in_l2, 0, self.programs.reached(at[1]))
        physical = np.where(index == VTIMER, PTIMER, HPTIMER)
        lines = np.array([VTIMER_LINE[i] for i in range(4)], np.int64)
        out = [
            self._map(at[0], cpu, in_l2),
            self._block(KVM_TIMER_UPDATE_IRQ, at[2], cpu, vcpu_id=self.vcpu, irq=lines[index], level=level),
            self._block(KVM_TIMER_UPDATE_IRQ, at[3], cpu, vcpu_id=self.vcpu, irq=lines[physical], level=0),
            self._block(KVM_TIMER_RESTORE, at[4], cpu, ctl=ctl, cval=cval, timer_idx=index),
            self._block(KVM_TIMER_RESTORE, at[5], cpu, ctl=0, cval=0, timer_idx=physical),
        ]
        if not self.is_nested:
            return out
        fires = np.where(in_l2, self.programs.reached(at[6]), 0)
        emulated = np.where(in_l2, HVTIMER, VTIMER)
        out.append(self._block(KVM_TIMER_EMULATE, at[7], cpu, timer_idx=emulated, should_fire=fires))
        out.append(self._block(KVM_TIMER_EMULATE, at[8], cpu, timer_idx=np.where(in_l2, HPTIMER, PTIMER)))
        return out

    def _put(self, cpu: I64, after: I64, before: I64, in_l2: Bools, blocks: Bools) -> list[Block]:
        """kvm_timer_vcpu_put between two times; ``blocks``: the vCPU waits for its timer."""
        at = points(self.rng, after, np.maximum(before, after + 2), 7)
        ctl, cval, index = self._timer(at[1], in_l2)
        # the hardware may be late to say so
        late = self.rng.random(len(cpu)) < 0.3
        ctl = ctl | np.where(self.programs.reached(at[1]) & ~late & ~in_l2, REACHED, 0)
        physical = np.where(index == VTIMER, PTIMER, HPTIMER)
        waits = np.flatnonzero(blocks & (ctl & LIVE != 0))
        out = [
            self._map(at[0], cpu, in_l2),
            self._block(KVM_TIMER_SAVE, at[1], cpu, ctl=ctl, cval=cval, timer_idx=index),
            self._block(KVM_TIMER_SAVE, at[2], cpu, ctl=0, cval=0, timer_idx=physical),
            self._map(at[3][waits], cpu[waits], in_l2[waits]),
        ]
        if not self.plan.options.timers:
            return out
        count, clock, start = (at[place][waits] for place in (4, 5, 6))
        left = (cval[waits] - self.programs.counter.at(count)).view(np.int64)
        mult, shift = clocksource_mult_shift(self.plan.options.host_khz * 1000)
        carried = self.rng.integers(0, 1 << shift, len(waits))
        wait = np.where(left > 0, np.maximum(left, 0) * mult + carried >> shift, 0)
        expires = self.mono.at(clock).view(np.int64) + wait
        values = {"hrtimer": BLOCKED, "function": BACKGROUND_FUNCTION, "expires": expires, "softexpires": expires}
        out.append(self._block(HRTIMER_START, start, cpu[waits], **values))
        return out

    def _switches(self, *, has_cntpoff: bool) -> list[Block]:
        """What the CPU writes between kvm_entry and kvm_exit, outside of the guest."""
        windows, at = self.times.windows, self.windows
        cpu, in_l2 = self.times.stints.cpu[windows.stint[at]], self.times.l2[at] >= 0
        entry, leave = windows.entry[at], windows.leave[at]
        (enters,) = points(self.rng, entry, entry + windows.into[at], 1)
        leaves, interrupted, handles = points(self.rng, leave - windows.out_of[at], leave, 3)
        out = []
        if has_cntpoff:
            out += [self._map(enters, cpu, in_l2), self._map(leaves, cpu, in_l2)]
        by = windows.reason[at] == INTERRUPT
        values = {"irq": HOST_TIMER_IRQ, "name": IRQ_NAME_LOC, "tail": IRQ_NAME, "common_flags": IN_INTERRUPT}
        out.append(self._block(IRQ_ENTRY, interrupted[by], cpu[by], **values))
        by &= self.rng.random(len(at)) < 0.3
        out.append(self._map(handles[by], cpu[by], in_l2[by], IN_INTERRUPT))
        return out


def _host_ticks(times: Times, mono: TraceClock, rng: np.random.Generator) -> list[Block]:
    """Timer interrupts of the host's CPUs, between stints."""
    stints = times.stints
    order = np.lexsort((stints.start, stints.cpu))
    cpu, start = stints.cpu[order], stints.start[order]
    before = np.r_[0, stints.end[order][:-1]]
    before[np.r_[True, cpu[1:] != cpu[:-1]]] = 0
    free = start - before
    keep = (free > 60) & (rng.random(len(free)) < 0.8)
    cpu, before, free = cpu[keep], before[keep], free[keep]
    enter, read, begin, leave, begun = points(rng, before + free * 2 // 5, before + free * 3 // 5, 5)
    pid, flags = np.zeros(len(cpu), np.int64), {"common_flags": IN_INTERRUPT}
    timer, now = {"hrtimer": 0xFFF00000BF9A6710}, mono.at(read).view(np.int64)
    later = now + 4_000_000
    parts: list[tuple[EventKind, I64, dict[str, Any]]] = [
        (IRQ_ENTRY, enter, {"irq": HOST_TIMER_IRQ, "name": IRQ_NAME_LOC, "tail": IRQ_NAME}),
        (HRTIMER_EXPIRE_ENTRY, begin, timer | {"now": now, "function": TICK_FUNCTION}),
        (HRTIMER_EXPIRE_EXIT, leave, timer),
        (HRTIMER_START, begun, timer | {"function": TICK_FUNCTION, "expires": later, "softexpires": later}),
    ]
    return [Block(kind, t, cpu, pid, values | flags) for kind, t, values in parts]
