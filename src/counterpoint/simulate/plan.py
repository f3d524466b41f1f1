"""The plan of a world: its VMs and threads, the rounds, and what happens to counters when."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, to_signed
from counterpoint.simulate.counters import GuestCounter, HostCounter, NsClock, Setting, combined, kvm_ratio, scaled
from counterpoint.simulate.options import WorldOptions
from counterpoint.simulate.schedule import Stints, sticky_choice

HOST_EVENTS_A_WINDOW = 2.45
GUEST_EVENTS_A_WINDOW = 2.2
NESTED_ROUND = 8
PVCLOCK_UPDATES = 3
STANDS = 0.08
"""How long a pause lasts on average, as a share of the world's time without it."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens to a VM's counters: the VM stands in rounds ``begin``:``end``, and goes on changed."""

    kind: str
    vm: int
    begin: int
    end: int
    vcpu: int = -1


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM: its threads are ``first`` and on, one a vCPU; ``recorded`` or a decoy."""

    name: str
    vcpus: int
    first: int
    recorded: bool


@dataclass(frozen=True, slots=True)
class Write:
    """A counter written for one vCPU: at the beginning of stint ``stint``, ``slot`` steps in."""

    stint: int
    slot: int
    thread: int
    change: Change


@dataclass
class Plan:
    """All that is drawn before any time is: arrays over threads and rounds are [threads, rounds]."""

    options: WorldOptions
    rng: np.random.Generator
    vms: list[Vm]
    rounds: int
    changes: list[Change]
    tids: tuple[I64, ...]
    fine: int
    hosts: tuple[HostCounter, ...]
    writes: list[Write] = field(default_factory=list)

    @property
    def threads(self) -> int:
        """vCPU threads of all VMs."""
        return sum(vm.vcpus for vm in self.vms)

    @property
    def units_per_ns(self) -> float:
        """Hidden time per ns; a float, it only chooses how long things take."""
        return self.options.host_khz * (1 << self.fine) / 1e6

    @property
    def moves(self) -> list[Change]:
        """The migrations to the second host, back, and so on, in order."""
        return [c for c in self.changes if c.kind == "migrate"]

    def visit(self, stints: Stints) -> I64:
        """How often the VM of each stint had moved by then, i64[S]: each time it runs in other threads."""
        out = np.zeros(len(stints.thread), np.int64)
        for move in self.moves:
            vm = self.vms[move.vm]
            mine = (stints.thread >= vm.first) & (stints.thread < vm.first + vm.vcpus)
            out += mine & (stints.round >= move.begin)
        return out


def make_plan(options: WorldOptions, rng: np.random.Generator) -> Plan:
    """Draw VMs, rounds and changes."""
    vms, at = [], 0
    for index in range(options.vms):
        vms.append(Vm("guest" if index == 0 else f"guest{index + 1}", options.vcpus, at, recorded=True))
        at += options.vcpus
    for index in range(options.decoys):
        vms.append(Vm(f"decoy{index + 1}", 1, at, recorded=False))
        at += 1
    recorded = options.vms * options.vcpus
    a_window = (recorded * (HOST_EVENTS_A_WINDOW + GUEST_EVENTS_A_WINDOW) + options.decoys * HOST_EVENTS_A_WINDOW) / at
    windows = max(30.0, options.events / a_window / at)
    stint = min(14.0, max(2.0, windows / 40))
    if options.nested:
        stint = max(stint, NESTED_ROUND)
    rounds = max(16, int(windows / stint / 0.85))
    tids = [
        np.sort(rng.choice(np.arange(1000, 9000 + 4 * at), at, replace=False)),
        np.sort(rng.choice(np.arange(10_000, 19_000 + 4 * at), at, replace=False)),
    ]
    for visit in range(2, 2 + options.returns):
        first = int(tids[visit - 2][-1]) + 1
        tids.append(np.sort(rng.choice(np.arange(first, first + 8000 + 4 * at), at, replace=False)))
    khz = options.host_khz
    fine = 0
    while khz << fine < 1_000_000:
        fine += 1
    start = options.start
    if start is None:
        start = int(rng.integers(10**11, 10**13)) if options.arch == "x86" else int(rng.integers(10**9, 10**11))
    hosts = [HostCounter(start, 1, fine)]
    if options.migrate:
        khz_b = options.khz_b or khz
        other = int(rng.integers(10**10, 10**14)) if options.arch == "x86" else int(rng.integers(10**9, 10**11))
        hosts.append(HostCounter(other, round((khz_b << 20) / khz), 20 + fine))
    changes = _changes(options, rng, rounds)
    return Plan(options, rng, vms, rounds, changes, tuple(tids), fine, tuple(hosts))


def _changes(options: WorldOptions, rng: np.random.Generator, rounds: int) -> list[Change]:
    """Draw when what changes; a VM's changes do not overlap: a short world may have fewer than asked for."""
    out: list[Change] = []
    if options.migrate and not options.returns:
        begin = int(rng.integers(2 * rounds // 5, 3 * rounds // 5))
        out.append(Change("migrate", 0, begin, begin + 2))
    elif options.migrate:
        stays = options.returns + 2
        for move in range(1, stays):
            begin = move * rounds // stays + int(rng.integers(0, max(1, rounds // stays // 4)))
            out.append(Change("migrate", 0, begin, begin + 2))
    if options.pvclock:
        out += [Change("pvclock", vm, 0, 0) for vm in range(options.vms)]
    kinds = ["pause"] * options.pauses + ["restore"] * options.restores + ["write"] * options.writes
    kinds += ["hotplug"] * options.hotplug + ["pvclock"] * (PVCLOCK_UPDATES * options.pvclock)
    free = rng.permutation(np.arange(rounds // 8, rounds - rounds // 8 - 2)).tolist()
    for kind in kinds:
        stands = 0 if kind in ("write", "hotplug", "pvclock") else 1 + int(rng.integers(0, max(1, rounds // 20)))
        vm = 0 if kind == "hotplug" else int(rng.integers(0, options.vms))
        vcpu = int(rng.integers(0, options.vcpus)) if kind == "write" else -1
        if kind == "hotplug":
            vcpu = options.vcpus - 1
        while free:
            begin = free.pop()
            change = Change(kind, vm, begin, begin + stands, vcpu)
            if all(o.vm != vm or o.end + 1 < begin or change.end + 1 < o.begin for o in out):
                out.append(change)
                break
    return sorted(out, key=lambda c: (c.end, c.begin))


def make_stints(plan: Plan) -> tuple[Stints, npt.NDArray[np.float64]]:
    """Draw who has a stint where, of how many windows; and the time added to each round, [rounds], in mean rounds."""
    options, rng = plan.options, plan.rng
    threads, rounds = plan.threads, plan.rounds
    active = rng.random((threads, rounds)) < (0.85 if threads > 1 else 0.97)
    cpu = sticky_choice(rng, threads, rounds, options.cpus, 0.15)
    extra = np.zeros(rounds)
    for change in plan.changes:
        vm = plan.vms[change.vm]
        mine = slice(vm.first, vm.first + vm.vcpus)
        if change.kind == "hotplug":
            active[vm.first + change.vcpu, : change.begin] = False
            continue
        active[mine, change.begin : change.end] = False
        if change.end > change.begin:
            extra[change.begin] += STANDS * rounds * (0.3 + rng.exponential())
        if change.kind == "migrate":
            # to the other host
            cpu[mine, change.begin :] += (
                options.cpus if (cpu[mine, change.begin] < options.cpus).all() else -options.cpus
            )
    for change in plan.changes:
        # whoever is concerned is there when it is done
        vm = plan.vms[change.vm]
        only = slice(vm.first, vm.first + vm.vcpus) if change.vcpu < 0 else vm.first + change.vcpu
        if change.vcpu < 0 and (late := _hotplug(plan, change.vm)) and late.begin > change.end:
            only = slice(vm.first, vm.first + vm.vcpus - 1)
        active[only, change.end] = True
    # somebody is there at the beginning and at the end
    active[:, 0] |= ~np.any(active, axis=1)
    thread, round_ = np.nonzero(active)
    budget = max(30.0, options.events / _events_a_window(plan) / threads)
    mean = max(1.0, budget * threads / max(1, len(thread)))
    least = 3 if options.nested else 1
    size = rng.geometric(1 / max(1.0, mean - least + 1), len(thread)) + least - 1
    halted = rng.random(len(thread)) < 0.5
    none = np.zeros(len(thread), np.int64)
    stints = Stints(
        thread, round_, cpu[thread, round_], np.r_[0, np.cumsum(size)], none, halted, none.copy(), none.copy()
    )
    _plan_writes(plan, stints)
    return stints, extra


def _events_a_window(plan: Plan) -> float:
    recorded = sum(vm.vcpus for vm in plan.vms if vm.recorded)
    return HOST_EVENTS_A_WINDOW + GUEST_EVENTS_A_WINDOW * recorded / plan.threads


def _hotplug(plan: Plan, vm: int) -> Change | None:
    return next((c for c in plan.changes if c.kind == "hotplug" and c.vm == vm), None)


def _plan_writes(plan: Plan, stints: Stints) -> None:
    """Find the stint at whose beginning each change is written for each vCPU; none where the vCPU never runs again."""
    for change in plan.changes:
        vm = plan.vms[change.vm]
        vcpus = range(vm.vcpus) if change.vcpu < 0 else [change.vcpu]
        late = _hotplug(plan, change.vm)
        for vcpu in vcpus:
            if late and vcpu == late.vcpu and change.end < late.begin:
                continue  # it is not there yet
            thread = vm.first + vcpu
            first, last = np.searchsorted(stints.thread, [thread, thread + 1]).tolist()
            at = first + int(np.searchsorted(stints.round[first:last], change.end))
            if at < last:
                plan.writes.append(Write(at, int(stints.jumps[at]), thread, change))
                stints.jumps[at] += 1


@dataclass(frozen=True, slots=True)
class WriteDone:
    """A write with its time and the offsets before and after it, signed."""

    write: Write
    t: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PvUpdate:
    """A vCPU told, at ``t``, of the kvm-clock that holds since ``since``."""

    write: Write
    t: int
    since: int


@dataclass
class VmCounters:
    """A VM's counters: ``common`` for what all vCPUs share (clocks in ns), ``vcpus`` for each one's own TSC.

    ``stands``: hidden times (from, to) at which the VM does not run, and its counters are put back to the first.
    ``kvm_clock``: what its trace clock local shows, kvm-clock minus ``sched_clock_offset``; ``updates`` of it.
    """

    common: GuestCounter
    vcpus: list[GuestCounter]
    writes: list[WriteDone]
    stands: list[tuple[int, int]]
    kvm_clock: NsClock | None
    sched_clock_offset: int
    updates: list[PvUpdate]


def make_counters(plan: Plan, vm_index: int, begin: I64, stints: Stints, slot: int) -> VmCounters:
    """Turn a VM's changes into settings; ``begin`` i64[rounds + 1]: when rounds begin, ``slot``: time per write."""
    options, rng, vm = plan.options, plan.rng, plan.vms[vm_index]
    frac = options.frac
    x86 = options.arch == "x86"
    khz = [options.host_khz, options.khz_b or options.host_khz]
    # a guest that keeps its rate is scaled on a host of another rate
    guest_khz = options.guest_khz or options.host_khz
    ratios = [kvm_ratio(options.guest_khz, khz[0], frac) if x86 else 1 << frac]
    ratios.append(kvm_ratio(guest_khz, khz[1], frac) if x86 else 1 << frac)

    def counter(host: int, t: int) -> int:
        value = plan.hosts[host].at(np.array([t], np.int64))
        return int(scaled(value, ratios[host], frac)[0])

    uptime = int(rng.integers(10**9, 10**12)) if x86 else int(rng.integers(10**8, 10**9))
    base = to_signed(uptime - counter(0, 0))
    spread = [0] * vm.vcpus
    if options.differ and x86:
        spread = rng.integers(-options.differ, options.differ + 1, vm.vcpus).tolist()
    if options.offset is not None:
        base, spread[0] = options.offset, 0
    common = [Setting(0, 0, ratios[0], base)]
    own = [[Setting(0, 0, ratios[0], to_signed(base + spread[v]))] for v in range(vm.vcpus)]
    done: list[WriteDone] = []
    updates: list[PvUpdate] = []
    for change in plan.changes:
        if change.vm != vm_index:
            continue
        stop, go = int(begin[change.begin]), int(begin[change.end])
        host = 1 - common[-1].host if change.kind == "migrate" else common[-1].host
        stood = counter(common[-1].host, stop) - counter(host, go)
        jump = int(10 ** rng.uniform(5, 10)) if change.kind == "restore" else 0
        skews = rng.integers(0, 3000, vm.vcpus).tolist() if change.kind == "restore" and x86 else [0] * vm.vcpus
        wrote = int(rng.choice([-1, 1])) * int(10 ** rng.uniform(5, 10)) if change.kind == "write" else 0
        if change.kind in ("pause", "restore", "migrate"):
            common.append(Setting(go, host, ratios[host], to_signed(common[-1].offset + stood + jump)))
        for write in (w for w in plan.writes if w.change is change):
            vcpu = write.thread - vm.first
            last = own[vcpu][-1]
            t = int(stints.start[write.stint]) + (write.slot + 1) * slot
            if change.kind == "pvclock":
                updates.append(PvUpdate(write, t, go))
                continue
            if change.kind == "hotplug":
                # KVM gives a new vCPU the VM's offset (kvm_synchronize_tsc with 0)
                last = Setting(0, common[-1].host, common[-1].ratio, to_signed(common[-1].offset + spread[vcpu]))
                own[vcpu] = [last]
                done.append(WriteDone(write, t, 0, last.offset))
                continue
            after = to_signed(
                last.offset + stood + jump + skews[vcpu] if change.kind != "write" else last.offset + wrote
            )
            # where all vCPUs have one offset in the hardware too, it changes for all at once
            since = t if x86 and change.kind != "migrate" else go
            own[vcpu].append(Setting(since, host, ratios[host], after))
            before = 0 if change.kind == "migrate" else last.offset
            done.append(WriteDone(write, t, before, after))
    shared = GuestCounter(plan.hosts, frac, tuple(common))
    kvm_clock = None
    if options.pvclock:
        scaled_rate = ratios[0] != 1 << frac
        times = sorted(
            {int(begin[c.end]) if c.end else 0 for c in plan.changes if c.vm == vm_index and c.kind == "pvclock"}
        )
        hz = (options.guest_khz if scaled_rate else options.host_khz) * 1000
        kvm_clock = NsClock.kvm_clock(
            lambda t: int(shared.at(np.array([t], np.int64))[0]), int(rng.integers(10**10, 10**13)), times, hz
        )
    return VmCounters(
        shared,
        [GuestCounter(plan.hosts, frac, tuple(settings)) for settings in own],
        done,
        [(int(begin[c.begin]), int(begin[c.end])) for c in plan.changes if c.vm == vm_index and c.end > c.begin],
        kvm_clock,
        int(rng.integers(10**8, 10**10)) if options.pvclock else 0,
        updates,
    )


def nested_counter(counter: GuestCounter, ratio: int, offset: int) -> GuestCounter:
    """The counter of an L2 vCPU while it is on the L1 vCPU of ``counter``: L1 gave it ``ratio`` and ``offset``."""
    settings = []
    for setting in counter.settings:
        both = combined(setting.ratio, setting.offset, ratio, offset, counter.frac_bits)
        settings.append(Setting(setting.since, setting.host, *both))
    return GuestCounter(counter.hosts, counter.frac_bits, tuple(settings))
