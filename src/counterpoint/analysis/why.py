"""Why a guest's task was late: each latency cut into what its vCPU did meanwhile, and each piece given to a cause.

A latency lies on one vCPU until the task is woken (that of the timer, or of whoever woke it) and on the task's own from
then on. What those vCPUs did is known at every instant (``states``); so the pieces add up to the latency exactly.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from counterpoint.analysis.contexts import Context, ContextSteps, context_steps, softirq_name
from counterpoint.analysis.injections import NEVER, InGuest, interrupts_of
from counterpoint.analysis.latency import GuestTasks, Latencies
from counterpoint.analysis.names import NamesAt
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import State, VcpuStates, vcpu_states
from counterpoint.analysis.steps import step_at
from counterpoint.clocks.counter import I64, Bools
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.recording import Recording

UNEXPLAINED = "unexplained"

QUIET_NS = 1_000_000
"""A guest's idle task that is in guest mode for longer, while something is due, is not accounted for by any event."""


_PAUSES = ("pause", "pause_instruction", "wfx")
"""Exits of a guest that spins: PAUSE of x86 (SVM and VMX), WFE of arm64."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What a piece of time is given to.

    ``kind``: "host task" (it ran on the CPU that the vCPU's thread waited for), "exit" (handled in the kernel), "vmm",
    "outside" (either of them), "host irq", "host softirq", "polling", "halted", "blocked", "guest task", "guest idle",
    "guest softirq", "guest irq", "guest lock" (it spins for one), "asleep" (the task itself, in the guest) or
    "unexplained". ``machine``: whose task, interrupt or exit it is. ``name``: the task, the reason. ``number``: the
    thread's id, the interrupt, the softirq; -1: none.
    """

    kind: str
    machine: str = ""
    name: str = ""
    number: int = -1

    def __str__(self) -> str:
        """In words."""
        match self.kind:
            case "host task" if not self.number:
                return f"waits for a CPU of {self.machine} that is idle"
            case "host task":
                return f"waits for a CPU of {self.machine}: {self.name} [{self.number}] runs"
            case "guest lock":
                return f"{self.machine}: {self.name}"
            case "guest task":
                return f"{self.machine}: {self.name} [{self.number}] runs"
            case "guest idle":
                return f"{self.machine}: idle, in guest mode"
            case "guest irq" | "host irq" | "guest softirq" | "host softirq":
                what = "interrupt" if self.kind.endswith(" irq") else "softirq"
                return f"{self.machine}: handles {what} {self.number}{f' ({self.name})' if self.name else ''}"
            case "exit":
                return f"{self.machine}: handles exit {self.name}"
            case "vmm":
                return f"{self.machine}: the VMM handles {self.name}"
            case "outside":
                return f"{self.machine}: kernel or VMM handles {self.name}"
            case "halted":
                return f"halted ({self.name}): nothing has woken it yet"
            case "polling":
                return f"halted ({self.name}), polling"
            case "blocked":
                return f"{self.machine}: the thread sleeps in {self.name}"
            case "asleep":
                return f"{self.machine}: {self.name} [{self.number}] sleeps"
        return f"{self.kind}: {self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a latency: [``begin``, ``end``), times as of ``Latencies``, on a guest's CPU, and what it is given to.

    ``event``: (machine, row) of the event that begins what the vCPU did there: the proof. None: it began before.
    """

    begin: int
    end: int
    cpu: int
    cause: Cause
    event: tuple[str, int] | None

    @property
    def took(self) -> int:
        """How long it is."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Explanation:
    """One latency of ``guest``: its pieces in order add up to it. ``bound``: of a guest event's place, in host units.

    ``bound`` is -1 where it is not known. ``at``: its place in the ``Latencies``.
    """

    guest: str
    at: int
    begin: int
    end: int
    pieces: tuple[Piece, ...]
    bound: int

    @property
    def took(self) -> int:
        """How long the latency is."""
        return self.end - self.begin

    def shares(self) -> list[tuple[Cause, int]]:
        """How long each cause took in all, the greatest first."""
        return blame([self])


def blame(explanations: Iterable[Explanation]) -> list[tuple[Cause, int]]:
    """How long each cause took in all of them, the greatest first."""
    sums: dict[Cause, int] = {}
    for one in explanations:
        for piece in one.pieces:
            sums[piece.cause] = sums.get(piece.cause, 0) + piece.took
    return sorted(sums.items(), key=lambda item: (-item[1], str(item[0])))


class Explainer:
    """Explains latencies of a ``sync``'s guests."""

    def __init__(self, result: SyncResult) -> None:
        """Nothing is worked out yet."""
        self.result = result
        self._timeline = result.timeline
        self._names = [m.name for m in self._timeline.machines]
        self._contexts: dict[tuple[int, int], ContextSteps] = {}
        self._reasons: dict[int, tuple[I64, list[str]]] = {}
        self._tasks: dict[str, GuestTasks] = {}
        self._spins: dict[tuple[str, int], tuple[I64, I64]] = {}
        self._irqs: dict[int, dict[int, str]] = {}
        self._called = [NamesAt(m, self._timeline.base) for m in self._timeline.machines]
        rate = self._timeline.rate
        self._quiet = int(rate.from_ns(np.array([QUIET_NS]))[0][0]) if rate is not None else 1 << 62

    @cached_property
    def states(self) -> list[VcpuStates]:
        """The states of all vCPUs."""
        return vcpu_states(self.result)

    @cached_property
    def _of_vcpu(self) -> dict[tuple[str, int], list[VcpuStates]]:
        out: dict[tuple[str, int], list[VcpuStates]] = {}
        for states in self.states:
            if states.guest is not None and states.guest_cpu is not None:
                out.setdefault((states.guest, states.guest_cpu), []).append(states)
        return out

    def tasks(self, guest: str) -> GuestTasks:
        """A guest's recording as its tasks see it."""
        if guest not in self._tasks:
            machine = self._timeline.machines[self._names.index(guest)]
            self._tasks[guest] = GuestTasks(machine, self._timeline.base, self._timeline.rate)
        return self._tasks[guest]

    def called(self, number: int) -> NamesAt:
        """The names of a machine's threads; ``number``: its place in ``Timeline.machines``."""
        return self._called[number]

    def interrupts(self, guest: str) -> Latencies:
        """Each interrupt of a guest's vCPUs whose request and handler are certain (``injections``), between the two.

        ``pid`` is the task that the handler interrupts, ``waker`` and ``cpu`` the vCPU.
        """
        columns: list[list[I64]] = [[], [], [], [], []]  # begin, end, pid, cpu, row
        of = self.tasks(guest).recording
        width = self._width(guest)
        for machine in self._timeline.machines:
            vcpus = vcpus_by_thread(self.result, machine.name)
            guests = {
                tid: InGuest(self.tasks(name).placed, width, cpu) for tid, (name, cpu) in vcpus.items() if name == guest
            }
            if not guests:
                continue
            host = Placed(machine, self._timeline.base)
            for found in interrupts_of(host, guests):
                found = found.take((found.requested > NEVER) & (found.handled > NEVER) & (found.handler >= 0))
                cpu = np.array([guests[tid].cpu for tid in found.tid.tolist()], np.int64)
                pid = of.pid[found.handler].astype(np.int64)
                for column, part in zip(
                    columns, (found.requested, found.handled, pid, cpu, found.handler), strict=True
                ):
                    column.append(part)
        begin, end, pid, cpu, row = (np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in columns)
        none = np.full(len(row), -1, np.int64)
        end = np.maximum(end, begin)
        return Latencies("interrupt", begin, begin, end, pid, cpu, cpu, none, row, row, np.zeros_like(none))

    def name(self, guest: str, pid: int, when: int) -> str:
        """What a guest's task was called."""
        return self._called[self._names.index(guest)].of(pid, when)

    def is_task(self, guest: str, latencies: Latencies, wanted: Sequence[str]) -> Bools:
        """Which latencies bool[n] are of tasks that are called so (with * and ?), or have such an id."""
        pids, at = np.unique(latencies.pid, return_inverse=True)
        called = self._called[self._names.index(guest)]
        fits = [
            any(
                text == str(pid) or any(fnmatch.fnmatchcase(name, text) for name in called.all_of(pid))
                for text in wanted
            )
            for pid in pids.tolist()
        ]
        found: Bools = np.array(fits or [False], np.bool_)[at]
        return found

    def explain(self, guest: str, latencies: Latencies, chosen: Sequence[int]) -> list[Explanation]:
        """The ``chosen`` of a guest's latencies, each in pieces."""
        width = self._width(guest)
        out = []
        for at in chosen:
            begin, end = int(latencies.begin[at]), int(latencies.end[at])
            bound = int(width[latencies.last[at]])
            pieces: list[Piece] = []
            for lo, hi, cpu in self._spans(guest, latencies, at):
                if cpu >= 0:
                    pieces += self.pieces(guest, cpu, lo, hi, bound)
                elif hi > lo:
                    pid = int(latencies.pid[at])
                    pieces.append(Piece(lo, hi, -1, Cause("asleep", guest, self.name(guest, pid, lo), pid), None))
            out.append(Explanation(guest, at, begin, end, _joined(pieces), bound))
        return out

    def _spans(self, guest: str, latencies: Latencies, at: int) -> list[tuple[int, int, int]]:
        """(from, to, the guest's CPU; -1: the task sleeps): where a latency lies."""
        begin, woken, end = (int(column[at]) for column in (latencies.begin, latencies.woken, latencies.end))
        if latencies.kind == "between":
            return self.tasks(guest).where(int(latencies.pid[at]), begin, end)
        woken = min(woken, end)
        return [(begin, woken, int(latencies.waker[at])), (woken, end, int(latencies.cpu[at]))]

    def interval(self, guest: str, cpu: int, begin: int, end: int) -> Explanation:
        """What one vCPU did from ``begin`` to ``end``."""
        width = self._width(guest)
        bound = int(width.max(initial=-1))
        return Explanation(guest, -1, begin, end, _joined(self.pieces(guest, cpu, begin, end, bound)), bound)

    def _width(self, guest: str) -> I64:
        details = self._timeline.details
        number = self._names.index(guest)
        if details is None:
            return np.full(len(self._timeline.machines[number].recording), -1, np.int64)
        return details[number].width

    def pieces(self, guest: str, cpu: int, begin: int, end: int, bound: int) -> list[Piece]:
        """What a vCPU did from ``begin`` to ``end``, piece by piece without a gap."""
        if end <= begin:
            return []
        states = self._covering(guest, cpu, begin, end)
        if states is None:
            return [Piece(begin, end, cpu, Cause(UNEXPLAINED), None)]
        first = int(step_at(states.begin, np.array([begin]))[0])
        out: list[Piece] = []
        if first < 0:
            first = 0
            out.append(Piece(begin, min(int(states.begin[0]), end), cpu, Cause(UNEXPLAINED), None))
        last = int(np.searchsorted(states.begin, end, side="left"))
        for step in range(first, last):
            lo, hi = max(begin, int(states.begin[step])), min(end, int(states.ends[step]))
            if hi > lo:
                out += self._step(states, step, lo, hi, bound)
        covered = out[-1].end if out else begin
        if covered < end:
            out.append(Piece(covered, end, cpu, Cause(UNEXPLAINED), None))
        return out

    def _covering(self, guest: str, cpu: int, begin: int, end: int) -> VcpuStates | None:
        """The vCPU's states on the host that tells most of the span."""
        best, known = None, -1
        for states in self._of_vcpu.get((guest, cpu), []):
            lo, hi = np.maximum(states.begin, begin), np.minimum(states.ends, end)
            told = int(np.where((states.state != State.UNKNOWN) & (hi > lo), hi - lo, 0).sum())
            if told > known:
                best, known = states, told
        return best

    def _step(self, states: VcpuStates, step: int, lo: int, hi: int, bound: int) -> list[Piece]:
        """One step of a vCPU's states, cut by what the host's CPU did beside where that is known."""
        cpu = states.guest_cpu if states.guest_cpu is not None else -1
        cause = self._cause(states, step, lo)
        number, row = int(states.machine[step]), int(states.cause[step])
        event = (self._names[number], row) if row >= 0 else None
        state = State(states.state[step])
        if state is State.WAITING:
            # that it waits is told by the switch to whoever runs
            switch = self._called[number].switch_to(int(states.by[step]), lo)
            event = event if switch is None else (self._names[number], switch)
        if state is State.GUEST and self._is_vague(states, step, lo, hi, bound):
            cause = Cause(UNEXPLAINED)
        if cause.kind == "guest idle" and hi - lo > self._quiet:
            cause = Cause(UNEXPLAINED, cause.machine, "the guest is idle and in guest mode")
        if state is State.GUEST and cause.kind != UNEXPLAINED:
            return self._spinning(states, lo, hi, cause, event, cause)
        if state is State.KERNEL and cause.name.lower() in _PAUSES and step and states.state[step - 1] == State.GUEST:
            # it leaves guest mode for spinning
            return self._spinning(states, lo, hi, cause, event, self._cause(states, step - 1, lo))
        if state not in (State.KERNEL, State.USER, State.OUTSIDE, State.POLLING) or states.cpu[step] < 0:
            return [Piece(lo, hi, cpu, cause, event)]
        steps = self._context(number, int(states.cpu[step]))
        first, last = step_at(steps.begin, np.array([lo, hi - 1])).tolist()
        out = []
        for at in range(first, last + 1):
            begin = max(lo, int(steps.begin[at])) if at >= 0 else lo
            end = min(hi, int(steps.begin[at + 1])) if at + 1 < len(steps.begin) else hi
            if end <= begin:
                continue
            handled = Context(steps.context[at]) if at >= 0 else Context.UNKNOWN
            if handled in (Context.IRQ, Context.SOFTIRQ):
                irq = self._handling("host", number, handled, int(steps.what[at]))
                out.append(Piece(begin, end, cpu, irq, (self._names[number], int(steps.row[at]))))
            else:
                out.append(Piece(begin, end, cpu, cause, event))
        return out

    def _spinning(
        self, states: VcpuStates, lo: int, hi: int, cause: Cause, event: tuple[str, int] | None, who: Cause
    ) -> list[Piece]:
        """A piece, cut by when ``who`` spins for a lock there, and by which other vCPU does not run meanwhile.

        Whether that one holds the lock no event tells; that it cannot give one back is certain.
        """
        guest, cpu = states.guest or "", states.guest_cpu if states.guest_cpu is not None else -1
        if (guest, cpu) not in self._spins:
            self._spins[guest, cpu] = self.tasks(guest).spins(cpu)
        begins, ends = self._spins[guest, cpu]
        if not len(begins):
            return [Piece(lo, hi, cpu, cause, event)]
        out, at = [], lo
        spinner = f"{who.name} [{who.number}]" if who.kind == "guest task" else who.kind.removeprefix("guest ")
        for n in range(int(np.searchsorted(ends, lo, side="right")), int(np.searchsorted(begins, hi, side="left"))):
            begin, end = max(lo, int(begins[n])), min(hi, int(ends[n]))
            if at < begin:
                out.append(Piece(at, begin, cpu, cause, event))
            out += [
                Piece(a, b, cpu, Cause("guest lock", guest, f"{spinner} spins for a lock{text}"), event)
                for a, b, text in self._held_up(guest, cpu, begin, end)
            ]
            at = end
        if at < hi:
            out.append(Piece(at, hi, cpu, cause, event))
        return out

    def _held_up(self, guest: str, cpu: int, begin: int, end: int) -> list[tuple[int, int, str]]:
        """(from, to, words): which other vCPU of the guest waits for a CPU meanwhile; "": none does."""
        others = [(c, s) for (g, c), many in self._of_vcpu.items() if g == guest and c != cpu for s in many]
        cuts = {begin, end}
        for _, states in others:
            first, last = np.searchsorted(states.begin, [begin, end], side="right").tolist()
            cuts |= {int(t) for t in states.begin[first:last] if begin < t < end}
        edges = sorted(cuts)
        out = []
        for lo, hi in pairwise(edges):
            words = []
            for other, states in others:
                step = int(step_at(states.begin, np.array([lo]))[0])
                if step >= 0 and lo < states.end and states.state[step] == State.WAITING:
                    words.append(f"vCPU {other} {self._cause(states, step, lo)}")
            out.append((lo, hi, f" while {' and '.join(words)}" if words else ""))
        return out

    def _is_vague(self, states: VcpuStates, step: int, lo: int, hi: int, bound: int) -> bool:
        """Whether a piece in guest mode is shorter than the bound, and only one of its ends is an event of the guest.

        Then what the guest ran there may have been what it ran before or after.
        """
        inner = states.state == State.GUEST
        before = lo > int(states.begin[step]) or (step > 0 and bool(inner[step - 1]))
        after = hi < int(states.ends[step]) or (step + 1 < len(states) and bool(inner[step + 1]))
        return before != after and hi - lo < bound

    def _context(self, number: int, cpu: int) -> ContextSteps:
        key = number, cpu
        if key not in self._contexts:
            self._contexts[key] = context_steps(self._timeline.machines[number], cpu, self._timeline.base)
        return self._contexts[key]

    def cause(self, states: VcpuStates, step: int) -> Cause:
        """What the step of a vCPU's states is given to, whatever else its CPU did meanwhile."""
        return self._cause(states, step, int(states.begin[step]))

    def _cause(self, states: VcpuStates, step: int, when: int) -> Cause:
        number = int(states.machine[step])
        machine = self._names[number]
        reason = self._reason(states, step)
        match State(states.state[step]):
            case State.WAITING if states.by[step] >= 0:
                by = int(states.by[step])
                return Cause("host task", machine, self._called[number].of(by, when), by)
            case State.KERNEL:
                return Cause("exit", machine, reason)
            case State.USER:
                if states.context[step] == Context.SYSCALL:
                    reason += f", in system call {int(states.what[step])}"
                return Cause("vmm", machine, reason)
            case State.OUTSIDE:
                return Cause("outside", machine, reason)
            case State.POLLING:
                return Cause("polling", machine, reason)
            case State.HALTED:
                return Cause("halted", machine, reason)
            case State.BLOCKED:
                return Cause("blocked", machine, reason)
            case State.GUEST:
                return self._in_guest(states, step, when)
        return Cause(UNEXPLAINED)

    def _in_guest(self, states: VcpuStates, step: int, when: int) -> Cause:
        guest = states.guest or ""
        what = int(states.what[step])
        match Context(states.context[step]):
            case Context.TASK:
                return Cause("guest task", guest, self.name(guest, what, when), what)
            case Context.IDLE:
                return Cause("guest idle", guest)
            case Context.SOFTIRQ | Context.IRQ as handled:
                return self._handling("guest", self._names.index(guest), handled, what)
        return Cause(UNEXPLAINED)

    def _handling(self, whose: str, number: int, context: Context, what: int) -> Cause:
        """A softirq or an interrupt, by its name."""
        if context is Context.SOFTIRQ:
            return Cause(f"{whose} softirq", self._names[number], softirq_name(what), what)
        if number not in self._irqs:
            self._irqs[number] = irq_names(self._timeline.machines[number].recording)
        return Cause(f"{whose} irq", self._names[number], self._irqs[number].get(what, ""), what)

    def _reason(self, states: VcpuStates, step: int) -> str:
        key = id(states)
        if key not in self._reasons:
            self._reasons[key] = states.causes()
        index, names = self._reasons[key]
        return names[index[step]] if index[step] >= 0 else "?"


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one cause and CPU as one."""
    out: list[Piece] = []
    for piece in pieces:
        if out and out[-1].cause == piece.cause and out[-1].cpu == piece.cpu and out[-1].end == piece.begin:
            out[-1] = Piece(out[-1].begin, piece.end, piece.cpu, piece.cause, out[-1].event)
        else:
            out.append(piece)
    return tuple(out)


def irq_names(recording: Recording) -> dict[int, str]:
    """The names of interrupts, as their handlers' events have them first."""
    event = recording.format_named("irq", "irq_handler_entry")
    if event is None or (f := event.field("name")) is None or f.kind != "string":
        return {}
    rows = recording.rows(event)
    numbers, first = np.unique(recording.column(event, "irq", rows), return_index=True)
    return dict(zip(numbers.tolist(), recording.batch(event, rows[first]).text("name"), strict=True))
