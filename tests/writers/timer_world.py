"""A host and a guest with a virtual timer, step by step as the kernels' code goes, with the truth beside them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from counterpoint.clocks.arch_counter import Clock, NsScale, calc_mult_shift, scale_of
from counterpoint.traces.recording import Recording
from writers.events import (
    HRTIMER_EXPIRE_ENTRY,
    KVM_ENTRY_ARM64,
    KVM_EXIT_ARM64,
    KVM_GET_TIMER_MAP,
    MARK,
    Event,
    FieldSpec,
)
from writers.tracedat import Buffer, TraceFile

TICK, BACKGROUND, OTHER = 0xFFFF800080100000, 0xFFFF800080200000, 0xFFFF800080400000
KALLSYMS = (
    f"{TICK:016x} t tick_nohz_handler\n{BACKGROUND:016x} t kvm_bg_timer_expire\n{BACKGROUND + 4096:016x} t the_end\n"
)
TID = 147
TIMER, SLEEPER = 0xFF1100, 0xFF2200
IN_INTERRUPT, IN_SOFTIRQ = 0x09, 0x10
HOST, GUEST = 0, 1


def event(id_: int, system: str, name: str, *fields: str) -> Event:
    return Event(id_, system, name, [FieldSpec(*text.rsplit(" ", 1)) for text in fields])


IRQ_ENTRY = event(901, "irq", "irq_handler_entry", "int irq")
IRQ_EXIT = event(902, "irq", "irq_handler_exit", "int irq", "int ret")
EXPIRE_EXIT = event(903, "timer", "hrtimer_expire_exit", "void * hrtimer")
REARM = event(904, "timer", "hrtimer_rearm", "s64 next_event", "bool deferred")
START = event(905, "timer", "hrtimer_start", "void * hrtimer", "void * function", "s64 expires", "s64 softexpires")
SAVE = event(906, "kvm", "kvm_timer_save_state", "unsigned long ctl", "u64 cval", "int timer_idx")
UPDATE = event(911, "kvm", "kvm_timer_update_irq", "unsigned long vcpu_id", "u32 irq", "int level")
RESTORE = event(912, "kvm", "kvm_timer_restore_state", "unsigned long ctl", "u64 cval", "int timer_idx")
EMULATE = event(913, "kvm", "kvm_timer_emulate", "int timer_idx", "bool should_fire")
CANCEL = event(914, "timer", "hrtimer_cancel", "void * hrtimer")

HOST_EVENTS = [
    *(IRQ_ENTRY, HRTIMER_EXPIRE_ENTRY, EXPIRE_EXIT, START, SAVE, KVM_GET_TIMER_MAP, KVM_ENTRY_ARM64, KVM_EXIT_ARM64),
    *(UPDATE, RESTORE, EMULATE),
]
GUEST_EVENTS = [IRQ_ENTRY, IRQ_EXIT, HRTIMER_EXPIRE_ENTRY, EXPIRE_EXIT, REARM, START, CANCEL, MARK]


@dataclass
class Machine:
    """One machine's clocks, in ns as integers: of the trace and CLOCK_MONOTONIC, by its own counter."""

    scale: NsScale
    mono: NsScale
    k: int
    mono_k: int
    slew: Callable[[int], int]
    rows: dict[int, list[tuple[int, bytes]]] = field(default_factory=lambda: {0: [], 1: []})
    missed: dict[int, dict[int, int]] = field(default_factory=lambda: {0: {}, 1: {}})
    losing: int = 0

    def stamp(self, counter: int) -> int:
        return self.scale.ns_of(counter, self.k)

    def monotonic(self, counter: int) -> int:
        return self.mono.ns_of(counter, self.mono_k) + self.slew(counter)


@dataclass
class World:
    """Two recordings, and the true offset of their trace clocks times 2**shift."""

    host: Recording
    guest: Recording
    offset: int
    shift: int
    guest_whole: int

    def holds(self, interval: tuple[int, int]) -> bool:
        """Whether an offset that the truth allows (it is no whole number of ns) lies in the interval."""
        return (
            interval[0] << self.shift <= self.offset + (1 << self.shift)
            and self.offset - (1 << self.shift) <= interval[1] << self.shift
        )

    def windows(self, below: int, above: int) -> tuple[int, int]:
        middle = self.offset >> self.shift
        return middle - below, middle + above


@dataclass
class Maker:
    """Makes a world: ``now`` is the host's counter; each step of the code takes some of it."""

    hz: int = 24_000_000
    clock: Clock = "mono_raw"
    seed: int = 1
    slewed: Literal["", "host", "guest", "both"] = ""
    parted: bool = True
    step_ns: int = 400
    kvm_only: bool = False
    nested: bool = False
    rearms: bool = True
    switches: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        scale, mono = scale_of(self.hz, self.clock), scale_of(self.hz)
        assert scale is not None and mono is not None
        self.scale, self.mono = scale, mono
        self.machines = self._machine("host"), self._machine("guest")
        self.cntvoff = self.rng.randrange(1 << 36)
        self.now = self.rng.randrange(1 << 36) + self.cntvoff
        self.files = [TraceFile(clock=self.clock, kallsyms=KALLSYMS, cpu_count=2) for _ in range(2)]
        self.files[HOST].events = [e for e in HOST_EVENTS if e.system == "kvm" or not self.kvm_only]
        self.files[GUEST].events = [e for e in GUEST_EVENTS if e is not REARM or self.rearms]
        self.to_ticks = calc_mult_shift(1_000_000_000, self.hz, 600)
        self.cpu, self.cval, self.own = 0, 0, 2 if self.nested else 1
        self.target: int | None = None

    def _machine(self, name: str) -> Machine:
        k = self.rng.randrange(1 << 40) << self.scale.shift
        phase, depth = self.rng.random() * 6, 0.0004 * self.hz

        # up to 400 ppm, to and fro within about 2 s
        def slew(counter: int) -> int:
            slewed = self.slewed in (name, "both")
            return int(depth / self.hz * 1e9 * np.sin(counter / self.hz + phase)) if slewed else 0

        parted = self.parted or self.clock == "local"
        mono_k = self.rng.randrange(1 << 40) << self.mono.shift if parted else k + self.rng.randrange(1 << 12)
        return Machine(self.scale, self.mono, k, mono_k, slew)

    # -- the steps

    def step(self, mean_ns: float | None = None) -> None:
        self.now += 1 + int(self.rng.expovariate(1 / (mean_ns or self.step_ns)) * self.hz / 1e9)

    @property
    def counter(self) -> int:
        """The guest's."""
        return self.now - self.cntvoff

    def read(self, which: int) -> int:
        """CLOCK_MONOTONIC of a machine."""
        return self.machines[which].monotonic(self.now - self.cntvoff * which)

    def emit(self, which: int, kind: Event, pid: int = 0, **values: Any) -> None:
        """An event, and then a step; none where this machine is losing events."""
        machine, cpu = self.machines[which], self.cpu if which == HOST else 0
        if self.kvm_only and which == HOST and kind.system != "kvm":
            self.step()
            return
        if machine.losing:
            machine.losing -= 1
            rows = len(machine.rows[cpu])
            machine.missed[cpu][rows] = machine.missed[cpu].get(rows, 0) + 1
        else:
            payload = self.files[which].payload(kind, pid, **values)
            machine.rows[cpu].append((machine.stamp(self.now - self.cntvoff * which), payload))
        self.step()

    def lose(self, which: int, count: int) -> None:
        """The next ``count`` events of a machine are not recorded."""
        self.machines[which].losing = count

    def map(self, *, emulates: bool = False, flags: int = 0) -> None:
        values = {"emul_vtimer": 1, "emul_ptimer": 0} if emulates else {"emul_vtimer": -1, "emul_ptimer": -1}
        self.emit(HOST, KVM_GET_TIMER_MAP, TID, common_flags=flags, **values)

    def load(self) -> None:
        """KVM loads the vCPU: compares, restores, enters."""
        self.map()
        reached = self.counter >= self.cval
        self.step()
        self.emit(HOST, UPDATE, TID, irq=27, level=int(reached))
        self.emit(HOST, UPDATE, TID, irq=30, level=0)
        self.emit(HOST, RESTORE, TID, ctl=1, cval=self.cval, timer_idx=self.own)
        self.emit(HOST, RESTORE, TID, ctl=0, cval=0, timer_idx=3 if self.nested else 0)
        self.enter()

    def enter(self) -> None:
        self.emit(HOST, KVM_ENTRY_ARM64, TID)
        self.step(20_000)
        if self.switches:
            self.map()

    def leave(self, *, interrupted: bool = False) -> None:
        if self.switches:
            self.map()
        self.step(20_000)
        if interrupted:
            self.emit(HOST, IRQ_ENTRY, TID, irq=14, common_flags=IN_INTERRUPT)
        self.step(20_000)
        self.emit(HOST, KVM_EXIT_ARM64, TID, ret=0 if interrupted else 2, esr_ec=1)

    def put(self) -> None:
        """KVM saves the vCPU's timers."""
        self.map()
        self.emit(HOST, SAVE, TID, ctl=1, cval=self.cval, timer_idx=self.own)
        self.emit(HOST, SAVE, TID, ctl=0, cval=0, timer_idx=3 if self.nested else 0)

    def block(self, early: int = 0) -> None:
        """KVM sets a timer for a vCPU that waits, ``early`` ns too early where its code were another."""
        self.map()
        ahead = self.cval - self.counter
        self.step(100)
        part = self.rng.randrange(1 << self.mono.shift)
        wait = max(ahead, 0) * self.mono.mult + part >> self.mono.shift if ahead > 0 else 0
        expires = self.read(HOST) + wait - early
        self.step()
        self.emit(HOST, START, TID, function=BACKGROUND, expires=expires, softexpires=expires)

    def nested_run(self, *, moves: bool = False) -> None:
        """A guest of the guest runs: KVM has its timer in the hardware, and emulates the guest's own."""
        self.map(emulates=True)
        self.step()
        self.emit(HOST, UPDATE, TID, irq=27, level=0)
        self.emit(HOST, UPDATE, TID, irq=30, level=0)
        # its timer counts from another offset
        self.emit(HOST, RESTORE, TID, ctl=1, cval=self.cval - 1_000_000, timer_idx=1)
        self.emit(HOST, RESTORE, TID, ctl=0, cval=0, timer_idx=0)
        self.emulate()
        self.enter()
        self.step(3000)
        self.leave()
        self.map(emulates=True)
        self.emit(HOST, SAVE, TID, ctl=1, cval=self.cval - 1_000_000, timer_idx=1)
        self.emit(HOST, SAVE, TID, ctl=0, cval=0, timer_idx=0)
        if moves:
            self.cpu = 1 - self.cpu

    def emulate(self) -> None:
        reached = self.counter >= self.cval
        self.step()
        self.emit(HOST, EMULATE, TID, timer_idx=2, should_fire=int(reached))
        self.emit(HOST, EMULATE, TID, timer_idx=3, should_fire=0)

    def tick(self, which: int, begin: Event | None = IRQ_ENTRY, timer: int = TIMER) -> int:
        """A timer interrupt up to the end of what it expires; returns its reading."""
        if begin is not None:
            self.emit(which, begin, irq=11, common_flags=IN_INTERRUPT)
        reading = self.read(which)
        self.step()
        self.emit(which, HRTIMER_EXPIRE_ENTRY, now=reading, function=TICK, hrtimer=timer, common_flags=IN_INTERRUPT)
        self.emit(which, EXPIRE_EXIT, hrtimer=timer, common_flags=IN_INTERRUPT)
        return reading

    def start(self, target: int, timer: int = TIMER, function: int = TICK) -> None:
        self.emit(GUEST, START, hrtimer=timer, function=function, expires=target, softexpires=target)

    def program(self, target: int, between: Callable[[], None] = lambda: None) -> None:
        """The guest programs its timer; ``between``: what happens before it does, after it was said."""
        if self.rearms:
            self.emit(GUEST, REARM, next_event=target)
        between()
        delta = target - self.read(GUEST)
        self.step(100)
        mult, shift = self.to_ticks
        self.cval = self.counter + (delta * mult >> shift if delta > 2000 else 15)
        self.step()

    def interrupt(self, between: Callable[[], None] = lambda: None) -> None:
        """The guest's timer interrupt, from beginning to end."""
        self.program_after(self.tick(GUEST), between)
        self.emit(GUEST, IRQ_EXIT, irq=11, ret=1, common_flags=IN_INTERRUPT)

    def program_after(self, reading: int, between: Callable[[], None] = lambda: None) -> None:
        target = reading + self.rng.randrange(300_000, 4_000_000)
        self.start(target)
        self.program(target, between)
        self.target = target

    def sleep(self) -> None:
        """Until about when the timer is reached: by chance just before, or just after."""
        self.now = max(self.now, self.cval + self.cntvoff + self.rng.randrange(-4_000, 4_000))
        self.step(self.rng.choice((30_000, 3_000_000)))

    def round(self, *, early: int = 0, late: bool = False, interrupted: bool = False) -> None:
        """Loaded, a timer interrupt, left, put, blocked and woken."""
        self.load()
        self.interrupt()
        self.emit(GUEST, MARK, n=1)
        self.step(200_000)
        self.leave(interrupted=interrupted)
        self.step(4_000_000 if late else 2000)
        self.put()
        self.block(early)
        if not self.kvm_only:
            self.step(30_000)
            self.tick(HOST)
        if self.nested:
            self.nested_run()

    def made(self, path: Path) -> World:
        recordings = []
        for name, file, own in zip(("host", "guest"), self.files, self.machines, strict=True):
            pages = {cpu: file.stream(rows, missed=own.missed[cpu]) for cpu, rows in own.rows.items() if rows}
            file.buffers = [Buffer(cpus=pages)]
            recordings.append(Recording.open(file.write(path / f"{name}.dat")))
        host, guest = self.machines
        # guest ns - host ns at one instant, times 2**shift
        offset = guest.k - host.k - self.cntvoff * self.scale.mult
        return World(recordings[0], recordings[1], offset, self.scale.shift, guest.k // self.scale.mult)


def arm_world(path: Path, *, blocks: int = 150, break_code: bool = False, **how: Any) -> World:
    """A guest that programs its timer and blocks, ``blocks`` times, under a host that waits for it.

    ``break_code``: from the middle on KVM's timers are set too early. The rest: see ``Maker``.
    """
    maker = Maker(**how)
    for block in range(blocks):
        maker.round(
            early=300_000 if break_code and block >= blocks // 2 else 0,
            late=maker.rng.random() < 0.1,
            interrupted=maker.switches and block % 2 == 1,
        )
        if block % 3:
            maker.sleep()
    return maker.made(path)
