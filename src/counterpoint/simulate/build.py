"""From options to machines: the world's times are drawn, and every event of every machine placed, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from counterpoint.clocks.counter import MASK
from counterpoint.errors import UsageError
from counterpoint.simulate.deadlines import add_deadlines
from counterpoint.simulate.events import KALLSYMS
from counterpoint.simulate.file_options import add_options
from counterpoint.simulate.guest_events import make_guest, make_nested
from counterpoint.simulate.host_events import make_hosts, nested_probe_blocks
from counterpoint.simulate.members import Guest, Host
from counterpoint.simulate.options import WorldOptions
from counterpoint.simulate.plan import Plan, VmCounters, make_counters, make_plan
from counterpoint.simulate.rates import MachineRates, host_hz
from counterpoint.simulate.times import make_times
from counterpoint.simulate.truth import Steps, TraceClock
from counterpoint.simulate.virtual_timers import add_virtual_timers


def build(options: WorldOptions, rng: np.random.Generator) -> tuple[list[Host], list[Guest], tuple[int, int]]:
    """Draw a world; returns hosts, guests and the hidden times it spans."""
    plan = make_plan(options, rng)
    times = make_times(plan)
    span = (0, int(times.begin[-1]))
    if span[1] * max(counter.mult for counter in plan.hosts) >> 63:
        raise UsageError("the world would last too long for its second host's counter: fewer events, or more vCPUs")
    counters = [
        make_counters(plan, index, times.begin, times.stints, times.slot) if vm.recorded else None
        for index, vm in enumerate(plan.vms)
    ]
    _refuse_jumps(plan, counters, span[1])
    host_clocks, host_monos = [], []
    for number, counter in enumerate(plan.hosts):
        hz = host_hz(plan, number)
        rates = MachineRates(plan, span, hz)
        host_clocks.append(TraceClock(options.host_clock, counter, rates.clock(options.host_clock, counter.at_one)))
        host_monos.append(TraceClock("mono", counter, rates.clock("mono", counter.at_one)))
    hosts = make_hosts(plan, times, counters, host_clocks, host_monos, span)
    guests: list[Guest] = []
    for index, (vm, its) in enumerate(zip(plan.vms, counters, strict=True)):
        if its is None:
            continue
        moves = [move for move in plan.moves if move.vm == index]
        since = [0, *(int(times.begin[move.begin]) for move in moves)]
        host_of = Steps(np.array(since, np.int64), np.arange(len(since)) % 2)
        guests.append(make_guest(plan, vm, its, times, host_of, span))
    if options.nested:
        assert counters[0] is not None
        nested = make_nested(plan, guests[0], counters[0], times, span)
        guests.append(nested)
        if options.probes and options.kvm_events and nested.given is not None:
            hosts[0].machine.blocks += nested_probe_blocks(plan, times, counters[0], nested.given[1])
    if options.vtimers and options.arch == "arm64":
        add_virtual_timers(plan, times, hosts, guests, host_monos[0])
        for machine in [*(host.machine for host in hosts), *(guest.machine for guest in guests)]:
            machine.kallsyms = KALLSYMS
    elif options.vtimers:
        add_deadlines(plan, times, hosts, guests)
    add_options(plan, hosts, guests)
    return hosts, guests, span


def _refuse_jumps(plan: Plan, counters: Sequence[VmCounters | None], end: int) -> None:
    """UsageError where a host's counter passes 2^64 under a scaled guest: KVM scales what is left of it then."""
    wraps = [host.start + (end * host.mult >> host.shift) > MASK for host in plan.hosts]
    default = 1 << plan.options.frac
    scaled = [wraps[s.host] and s.ratio != default for its in counters if its for s in its.common.settings]
    if any(scaled) or (wraps[0] and plan.options.nested_khz):
        raise UsageError("a scaled guest's counter would jump where the host's passes 2^64: start it lower")
