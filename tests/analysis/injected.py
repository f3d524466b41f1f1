"""Small worlds in which a guest's task is late for one known cause, and what each nanosecond of it was.

python tests/analysis/injected.py [CASES [QUIET]]      how many of them ``why`` gets right
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from counterpoint.analysis.why import Cause, Explainer
from counterpoint.timeline.sync import sync
from writers.events import Event, FieldSpec
from writers.tracedat import Buffer, TraceFile

REASONS = {12: "HLT", 1: "IRQ", 30: "IO", 48: "EPT_VIOLATION", 32: "MSR_WRITE", 10: "CPUID", 40: "PAUSE"}
LATE, OTHER, WAKER = 60, 61, 62
NAMES = {LATE: "late", OTHER: "other", WAKER: "waker"}
HOGS = {900: "hog", 901: "kworker/0:1", 902: "backup.sh"}
KINDS = ("preempted", "slow exit", "slow vmm", "late wake-up", "ipi", "irq storm", "lock")


def event(id_: int, system: str, name: str, *fields: str, print_fmt: str = '""') -> Event:
    return Event(id_, system, name, [FieldSpec(*each.rsplit(" ", 1)) for each in fields], print_fmt)


_SYMBOLS = ", ".join(f'{{{number}, "{name}"}}' for number, name in REASONS.items())
EVENTS = {
    "entry": event(20, "kvm", "kvm_entry", "unsigned int vcpu_id"),
    "exit": event(
        21, "kvm", "kvm_exit", "unsigned int exit_reason", "u32 isa",
        print_fmt=f'"reason %s ", __print_symbolic(REC->exit_reason, {_SYMBOLS})',
    ),
    "user": event(22, "kvm", "kvm_userspace_exit", "u32 reason", "int errno", print_fmt='"reason KVM_EXIT_IO (2)"'),
    "switch": event(24, "sched", "sched_switch", "pid_t prev_pid", "long prev_state", "pid_t next_pid"),
    "waking": event(25, "sched", "sched_waking", "pid_t pid", "int target_cpu"),
    "irq": event(27, "irq", "irq_handler_entry", "int irq"),
    "handled": event(28, "irq", "irq_handler_exit", "int irq"),
    "start": event(30, "timer", "hrtimer_start", "u64 hrtimer", "u64 function", "s64 expires", "s64 softexpires"),
    "expire": event(31, "timer", "hrtimer_expire_entry", "u64 hrtimer", "s64 now", "u64 function"),
    "expired": event(32, "timer", "hrtimer_expire_exit", "u64 hrtimer"),
    "spins": event(33, "lock", "contention_begin", "u64 lock_addr", "unsigned int flags"),
    "has": event(34, "lock", "contention_end", "u64 lock_addr", "int ret"),
}  # fmt: skip


@dataclass
class Recorder:
    """The events of one machine; ``ahead``: by so much its clock is."""

    ahead: int = 0
    rows: dict[int, list[tuple[int, str, int, dict[str, int]]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, cpu: int, at: int, name: str, by: int, /, **fields: int) -> None:
        self.rows[cpu].append((at + self.ahead, name, by, fields))

    def write(self, path: Path, **options: object) -> Path:
        file = TraceFile(events=list(EVENTS.values()), clock="x86-tsc", tsc2nsec=(1 << 31, 31, 0), **options)
        buffer = Buffer()
        for cpu, rows in sorted(self.rows.items()):
            mine = [
                (at, file.payload(EVENTS[name], pid, **fields))
                for at, name, pid, fields in sorted(rows, key=lambda r: r[0])
            ]
            buffer.cpus[cpu] = file.stream(mine)
        file.buffers = [buffer]
        return file.write(path)


class Vcpu:
    """One vCPU: its thread on the host's CPU of the same number, time going on as it does things."""

    def __init__(self, rng: random.Random, host: Recorder, guest: Recorder, cpu: int, at: int) -> None:
        self.rng, self.host, self.guest, self.cpu, self.tid, self.at = rng, host, guest, cpu, 147 + cpu, at
        self.task = OTHER if cpu == 0 else WAKER
        self.log: list[tuple[int, int, tuple[str, str]]] = []
        guest.add(cpu, at + 5, "switch", 0, prev_pid=0, prev_state=0, next_pid=self.task)
        host.add(cpu, at - 90, "switch", 0, prev_pid=0, prev_state=0, next_pid=self.tid)
        host.add(cpu, at, "entry", self.tid)

    def spend(self, ns: int, kind: str, name: str) -> None:
        self.log.append((self.at, self.at + ns, (kind, name)))
        self.at += ns

    def little(self, most: int = 900) -> int:
        return self.rng.randrange(most // 3, most)

    def run(self, ns: int) -> None:
        """In guest mode, whose task makes an event in the middle."""
        self.guest.add(self.cpu, self.at + ns // 2, "start", self.task, hrtimer=5)
        self.spend(ns, "guest task", NAMES[self.task])

    def run_quietly(self, ns: int, name: str | None = None) -> None:
        kind = "guest task" if name is None else "guest lock"
        self.spend(ns, kind, NAMES[self.task] if name is None else name)

    def leave(self, reason: int) -> None:
        self.host.add(self.cpu, self.at, "exit", self.tid, exit_reason=reason)

    def enter(self) -> None:
        self.host.add(self.cpu, self.at, "entry", self.tid)

    def exit(self, reason: int, ns: int) -> None:
        self.leave(reason)
        self.spend(ns, "exit", REASONS[reason])
        self.enter()

    def vmm(self, ns: int) -> None:
        self.leave(30)
        self.spend(self.little(), "exit", "IO")
        self.host.add(self.cpu, self.at, "user", self.tid, reason=2)
        self.spend(ns, "vmm", "IO")
        self.enter()

    def storm(self, number: int, each: int) -> None:
        self.leave(1)
        self.spend(self.little(), "exit", "IRQ")
        for _ in range(number):
            self.host.add(self.cpu, self.at, "irq", self.tid, irq=44)
            self.spend(each, "host irq", "44")
            self.host.add(self.cpu, self.at, "handled", self.tid, irq=44)
            self.spend(self.little(300), "exit", "IRQ")
        self.enter()

    def preempted(self, by: int, ns: int) -> None:
        self.leave(1)
        self.spend(self.little(), "exit", "IRQ")
        self.host.add(self.cpu, self.at, "switch", self.tid, prev_pid=self.tid, prev_state=256, next_pid=by)
        self.spend(ns, "host task", HOGS[by])
        self.host.add(self.cpu, self.at, "switch", by, prev_pid=by, prev_state=256, next_pid=self.tid)
        self.spend(self.little(), "exit", "IRQ")
        self.enter()

    def halted(self, ns: int, waits: int = 0, behind: int = 0) -> None:
        """Asleep for ``ns``, then woken, and after ``waits`` on its CPU, where ``behind`` ran."""
        self.guest.add(self.cpu, self.at - 40, "switch", self.task, prev_pid=self.task, prev_state=1, next_pid=0)
        self.log[-1:] = [(self.log[-1][0], self.at - 40, self.log[-1][2]), (self.at - 40, self.at, ("guest idle", ""))]
        self.leave(12)
        self.spend(self.little(), "exit", "HLT")
        self.host.add(self.cpu, self.at, "switch", self.tid, prev_pid=self.tid, prev_state=1, next_pid=behind)
        self.spend(ns, "halted", "HLT")
        self.host.add(1 - self.cpu, self.at, "waking", 0, pid=self.tid, target_cpu=self.cpu)
        self.spend(waits or self.little(), "host task", HOGS.get(behind, "<idle>"))
        self.host.add(self.cpu, self.at, "switch", behind, prev_pid=behind, prev_state=0, next_pid=self.tid)
        self.spend(self.little(), "exit", "HLT")
        self.enter()

    def back(self) -> None:
        """The guest's idle task gives the CPU back."""
        self.spend(60, "guest idle", "")
        self.guest.add(self.cpu, self.at, "switch", 0, prev_pid=0, prev_state=0, next_pid=self.task)

    def background(self, rounds: int) -> None:
        for _ in range(rounds):
            self.run(self.little(400))
            what = self.rng.random()
            if what < 0.5:
                self.exit(self.rng.choice([1, 32, 10, 48]), self.little(3000))
            elif what < 0.8:
                self.halted(self.rng.randrange(2_000, 9_000))
                self.back()
            else:
                self.vmm(self.little(3000))
        self.run(self.little())

    def until(self, when: int) -> None:
        """Go on as ever up to a time."""
        while self.at + 25_000 < when:
            self.background(1)
        self.run_quietly(when - self.at)


@dataclass
class Case:
    """A world: its files, the kind and the cause of the lateness ("", none), and what each cause took."""

    kind: str
    cause: tuple[str, str] | None
    host: Path
    guest: Path
    truth: dict[tuple[str, str], int]
    took: int


def make(seed: int, folder: Path, kind: str | None = None, *, quiet: bool = False) -> Case:
    """A case of ``kind`` (None: any)."""
    rng = random.Random(seed)
    kind = "quiet" if quiet else kind or KINDS[seed % len(KINDS)]
    host, guest = Recorder(), Recorder(rng.randrange(-10_000, 10_000_000))
    zero, one = (Vcpu(rng, host, guest, cpu, 100_000 + 7 * cpu) for cpu in (0, 1))
    zero.background(50)
    one.background(50)
    # both go on from one time
    for vcpu in (zero, one):
        vcpu.run_quietly(max(zero.at, one.at) + 400 - vcpu.at)
    guest.add(0, zero.at - 200, "switch", OTHER, prev_pid=LATE, prev_state=1, next_pid=OTHER)
    long = rng.randrange(150_000, 1_200_000)
    hog = rng.choice(list(HOGS))
    due = begun = zero.at - 20
    timer, cause = True, None
    match kind:
        case "preempted":
            zero.preempted(hog, long)
            cause = ("host task", HOGS[hog])
        case "slow exit":
            reason = rng.choice([48, 32, 10])
            zero.exit(reason, long)
            cause = ("exit", REASONS[reason])
        case "slow vmm":
            zero.vmm(long)
            cause = ("vmm", "IO")
        case "late wake-up":
            due = zero.at + 1_500
            zero.halted(long)
            zero.back()
            cause = ("halted", "HLT")
        case "irq storm":
            zero.storm(long // 4_000, 4_000)
            cause = ("host irq", "44")
        case "ipi":
            timer = False
            due = zero.at + 3_000
            guest.add(1, due, "waking", WAKER, pid=LATE, target_cpu=0)
            one.until(due + 700)
            zero.halted(4_000, long, hog)
            zero.back()
            cause = ("host task", HOGS[hog])
    zero.run_quietly(zero.little())
    if timer:
        zero.exit(1, zero.little(2500))
        zero.run_quietly(zero.little())
        if kind == "lock":
            guest.add(0, zero.at - 100, "spins", OTHER, lock_addr=77, flags=1)
            zero.log[-1] = (zero.log[-1][0], zero.at - 100, zero.log[-1][2])
            zero.log.append((zero.at - 100, zero.at, ("guest lock", "other [61] spins for a lock")))
        late = zero.at - due
        guest.add(0, zero.at, "expire", OTHER, hrtimer=9, now=1_000_000 + late)
        guest.add(0, begun - 150, "start", OTHER, hrtimer=9, expires=1_000_000, softexpires=1_000_000)
        guest.add(0, zero.at + 60, "waking", OTHER, pid=LATE, target_cpu=0)
        guest.add(0, zero.at + 90, "expired", OTHER, hrtimer=9)
        zero.run_quietly(100, "other [61] spins for a lock" if kind == "lock" else None)
    if kind == "lock":
        begin = zero.at + 500
        zero.run_quietly(500 + 900, "other [61] spins for a lock")
        one.until(begin - 300)
        one.leave(1)
        one.spend(300, "exit", "IRQ")
        host.add(1, one.at, "switch", one.tid, prev_pid=one.tid, prev_state=256, next_pid=hog)
        waits = f"other [61] spins for a lock while vCPU 1 waits for a CPU of host: {HOGS[hog]} [{hog}] runs"
        zero.log[-1] = (zero.log[-1][0], begin, zero.log[-1][2])
        zero.log.append((begin, zero.at, ("guest lock", waits)))
        while zero.at < begin + long:
            zero.exit(40, rng.randrange(5_000, 40_000))
            zero.log[-1] = (*zero.log[-1][:2], ("guest lock", waits))
            zero.run_quietly(20_000, waits)
        one.spend(zero.at - one.at, "host task", HOGS[hog])
        host.add(1, one.at, "switch", hog, prev_pid=hog, prev_state=256, next_pid=one.tid)
        one.spend(300, "exit", "IRQ")
        one.enter()
        zero.run_quietly(900, "other [61] spins for a lock")
        guest.add(0, zero.at, "has", OTHER, lock_addr=77)
        cause = ("guest lock", waits)
    zero.run_quietly(120)
    end = zero.at
    guest.add(0, end, "switch", OTHER, prev_pid=OTHER, prev_state=0, next_pid=LATE)
    zero.task = LATE
    zero.run_quietly(500)
    for vcpu in (zero, one):
        vcpu.until(max(zero.at, one.at) + 300)
        vcpu.background(60)
        vcpu.leave(1)
    truth: dict[tuple[str, str], int] = defaultdict(int)
    for begin, until, what in zero.log:
        truth[what] += max(0, min(until, end) - max(begin, due))
    return Case(
        kind, cause,
        host.write(folder / "host.dat", trace_id=1, cmdlines={147: "CPU 0/KVM", 148: "CPU 1/KVM", **HOGS}),
        guest.write(folder / "guest.dat", trace_id=2, cmdlines=NAMES),
        {what: ns for what, ns in truth.items() if ns}, end - due,
    )  # fmt: skip


def key(cause: Cause) -> tuple[str, str]:
    """A cause as the truth calls it."""
    if cause.kind == "host irq":
        return cause.kind, str(cause.number)
    return cause.kind, "" if cause.kind == "guest idle" else cause.name


def judge(case: Case) -> list[str]:
    """What ``why`` gets wrong of a case; nothing: all is right."""
    result = sync(case.host, case.guest)
    explainer = Explainer(result)
    found = explainer.tasks("guest").wakeups()
    mine = found.take(found.pid == LATE)
    if len(mine) != 1:
        return [f"{len(mine)} wakeups of the task found"]
    (one,) = explainer.explain("guest", mine, [0])
    shares = defaultdict(int)
    for cause, took in one.shares():
        shares[key(cause)] += took
    wrong = []
    # where host and guest events cut the time, each cut is right to within the bound
    cuts = 1 + sum(piece.cause.kind.startswith("guest") for piece in one.pieces)
    slack = max(one.bound, 0) * 2 * cuts
    if abs(one.took - case.took) > max(one.bound, 0) * 2:
        wrong.append(f"took {one.took}, not {case.took}")
    if case.cause is not None:
        first = key(one.shares()[0][0])
        if first != case.cause:
            wrong.append(f"{first} first, not {case.cause}")
    for what, ns in case.truth.items():
        if abs(shares[what] - ns) > slack + shares["unexplained", ""]:
            wrong.append(f"{what}: {shares[what]}, not {ns} (+-{slack})")
    wrong += [f"{what} is invented" for what in shares if what not in case.truth and what[0] != "unexplained"]
    if shares["unexplained", ""] > slack:
        wrong.append(f"{shares['unexplained', '']} unexplained")
    return wrong


def main() -> int:
    cases, quiet = (int(each) for each in (*sys.argv[1:3], "300", "100")[:2])
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cases + quiet):
            case = make(number, Path(folder), quiet=number >= cases)
            if wrong := judge(case):
                bad += 1
                print(number, case.kind, *wrong, sep="; ")  # noqa: T201
    print(f"{cases} cases and {quiet} quiet worlds: {bad} wrong")  # noqa: T201
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
