"""The options of the files, as trace-cmd would write them; some of them lie."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.arch_counter import NS_PER_SEC, calc_mult_shift
from counterpoint.clocks.counter import to_signed
from counterpoint.dat_layout import Option
from counterpoint.simulate.members import Guest, Host
from counterpoint.simulate.plan import (
    Plan,
)
from counterpoint.simulate.rates import guest_hz
from counterpoint.traces.options import INTERPOLATE, GuestOption, TimeSample, TimeShift
from counterpoint.traces.write_options import (
    RawOption,
    guest_option,
    text_option,
    time_shift_option,
    trace_id_option,
    tsc2nsec_option,
)


def add_options(plan: Plan, hosts: list[Host], guests: list[Guest]) -> None:
    """Trace ids, GUEST, TIME_SHIFT, TSC2NSEC, UNAME, as trace-cmd would write them."""
    options, rng = plan.options, plan.rng
    machines = [host.machine for host in hosts] + [guest.machine for guest in guests]
    ids = {machine.name: int(rng.integers(1, 1 << 63)) for machine in machines}
    machine_name = "x86_64" if options.arch == "x86" else "aarch64"
    for machine in machines:
        listed: list[RawOption] = []
        if options.uname:
            listed.append(text_option(Option.UNAME, f"Linux {machine.name} 6.1.0-simulated {machine_name}"))
        listed.append(text_option(Option.VERSION, "counterpoint simulate"))
        listed.append(trace_id_option(ids[machine.name]))
        machine.options = listed
    if options.guest_option:
        for guest in guests:
            # a recorder names the threads that are there as it begins
            for number, tids in enumerate(guest.tids[: len(hosts)]):
                owner = hosts[number].machine if guest.parent is None else guest.parent.machine
                found = GuestOption(guest.machine.name, ids[guest.machine.name], tuple(enumerate(tids)))
                owner.options.append(guest_option(found))
    if options.tsc2nsec and options.arch == "x86":
        # by the tsc_khz that KVM scales by too, whatever the crystal does
        for host, khz in zip(hosts, (options.host_khz, options.khz_b or options.host_khz), strict=False):
            if host.machine.clock == "x86-tsc":
                host.machine.options.append(tsc2nsec_option(*_tsc2nsec(khz * 1000)))
        for guest in guests:
            if guest.machine.clock == "x86-tsc":
                hz = options.nested_khz * 1000 if guest.parent and options.nested_khz else guest_hz(plan)
                guest.machine.options.append(tsc2nsec_option(*_tsc2nsec(hz)))
    if options.time_shift != "none":
        for guest in guests:
            shift = _time_shift(plan, hosts, guest, ids[guest.machine.parent or "host"], guests)
            guest.machine.options.append(time_shift_option(shift))


def _tsc2nsec(hz: int) -> tuple[int, int]:
    """mult and shift as x86's cyc2ns has them (set_cyc2ns_scale, arch/x86/kernel/tsc.c)."""
    mult, shift = calc_mult_shift(hz, NS_PER_SEC, 0)
    return (mult >> 1, 31) if shift == 32 else (mult, shift)


def _time_shift(plan: Plan, hosts: list[Host], guest: Guest, peer: int, guests: list[Guest]) -> TimeShift:
    """trace-cmd's samples of each vCPU: of the offset itself where both clocks are the TSC, else by messages.

    What debugfs shows is KVM's *active* offset: with "nested" they were read while L2 ran. "zero": the file was read
    where the offset was not there; "wrong": it is off by ``error``.
    """
    options, rng = plan.options, plan.rng
    parent_clock = hosts[0].clock if guest.parent is None else guest.parent.clocks[0]
    raw = guest.machine.clock == parent_clock.name == "x86-tsc"
    frac = options.frac
    cpus = []
    end = int(plan.rng.integers(1, 1000))
    for cpu in range(guest.machine.cpus):
        samples: list[TimeSample] = []
        settings = guest.since(cpu)
        for index, since in enumerate(settings):
            if guest.is_moved(cpu, index):
                break  # the recorder of the first host does not see the second
            t = since + end + 1000
            stamp = int(guest.machine.stamps(cpu, np.array([t], np.int64))[0])
            if raw:
                ratio, offset = guest.claimed(cpu, index)
                scaling = (1, 0) if ratio == 1 << frac else (ratio, frac)
            else:
                # a message each way takes a while, and not the same both ways
                there = parent_clock.at_one(t)
                offset = to_signed(stamp - there) + int(rng.normal(0, 3000))
                scaling = (1, 0)
            if options.time_shift == "wrong":
                offset += options.error
            elif options.time_shift == "nested":
                inner = next((g for g in guests if g.parent is guest), None)
                offset = inner.counters[cpu].settings[index].offset if inner and raw else offset - 358_990_379_404
            elif options.time_shift == "zero":
                offset = 0
            samples.append(TimeSample(stamp, to_signed(-offset), *scaling))
        cpus.append(tuple(samples))
    return TimeShift(peer, 0 if raw else INTERPOLATE, tuple(cpus), True)
