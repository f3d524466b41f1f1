"""What is to be seen over time, lane by lane: what each CPU of each machine ran, and what each vCPU's thread did.

for lane in lanes(explainer):
    print(lane.kind, lane.machine, lane.cpu, len(lane.begin))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from counterpoint.analysis.contexts import Context, ContextSteps, context_steps, softirq_name
from counterpoint.analysis.states import State, VcpuStates
from counterpoint.analysis.why import Explainer, irq_names
from counterpoint.clocks.counter import I64
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.traces.distinct import distinct_rows

CPU_CLASSES = ("unknown", "idle", "irq", "softirq", "vcpu", "task", "task1", "task2", "task3", "task4", "task5")
"""Of a CPU: a thread that runs a vCPU; other tasks, and the five of a machine that ran longest."""

VCPU_CLASSES = (
    "unknown", "guest-task", "guest-idle", "guest-irq", "guest", "kernel", "user", "outside", "polling", "halted",
    "blocked", "waiting",
)  # fmt: skip
"""Of a vCPU: in guest mode by what the guest ran (softirqs are with irqs; "guest": not known), else its ``State``."""

_BY_CONTEXT = {Context.UNKNOWN: 4, Context.IDLE: 2, Context.TASK: 1, Context.SOFTIRQ: 3, Context.IRQ: 3}
_BY_STATE = {State.UNKNOWN: 0} | {
    state: VCPU_CLASSES.index(state.name.lower()) for state in State if state not in (State.UNKNOWN, State.GUEST)
}


@dataclass(frozen=True, slots=True)
class Lane:
    """A function of time in steps.

    ``kind``: "cpu" (what ran on ``cpu`` of ``machine``, by its own recording), or "vcpu" (what the thread ``tid`` of
    ``machine`` did that runs the CPU ``cpu`` of ``guest``; both None where it is not known whose vCPU it is).
    ``begin`` i64[n], strictly increasing, from the timeline's base; the last step holds to ``end``. ``what`` i64[n]:
    an index into ``texts``, and into ``classes`` i64: which of ``names`` each is.
    """

    kind: Literal["cpu", "vcpu"]
    machine: str
    cpu: int | None
    guest: str | None
    tid: int | None
    begin: I64
    end: int
    what: I64
    texts: tuple[str, ...]
    classes: I64
    names: tuple[str, ...]

    @property
    def ends(self) -> I64:
        """Where each step ends i64[n]."""
        return np.r_[self.begin[1:], np.int64(self.end)] if len(self.begin) else self.begin


def lanes(explainer: Explainer, span: tuple[int, int]) -> Iterator[Lane]:
    """All lanes, each machine's CPUs and then its guests, within ``span``; each guest CPU after its vCPU."""
    machines = explainer.result.timeline.machines
    of_guest: dict[tuple[str, int], list[VcpuStates]] = {}
    others: dict[str, list[VcpuStates]] = {}
    for states in explainer.states:
        if states.guest is None or states.guest_cpu is None:
            others.setdefault(states.host, []).append(states)
        else:
            of_guest.setdefault((states.guest, states.guest_cpu), []).append(states)
    children: dict[str | None, list[int]] = {}
    for number, machine in enumerate(machines):
        children.setdefault(machine.parent, []).append(number)

    def tree(parent: str | None) -> Iterator[Lane]:
        for number in children.get(parent, []):
            machine = machines[number]
            cpus = dict.fromkeys(sorted(s.cpu for s in machine.recording.streams if s.last > s.first))
            cpus |= dict.fromkeys(sorted(cpu for name, cpu in of_guest if name == machine.name))
            described = _Described(explainer, number, span)
            for cpu in sorted(cpus):
                for states in of_guest.get((machine.name, cpu), []):
                    yield _of_vcpu(explainer, states, span)
                yield described.lane(cpu)
            for states in others.get(machine.name, []):
                yield _of_vcpu(explainer, states, span)
            yield from tree(machine.name)

    return tree(None)


class _Described:
    """The CPUs of one machine."""

    def __init__(self, explainer: Explainer, number: int, span: tuple[int, int]) -> None:
        timeline = explainer.result.timeline
        self._machine = timeline.machines[number]
        self._called = explainer.called(number)
        self._span = span
        self._vcpus = vcpus_by_thread(explainer.result, self._machine.name)
        self._irqs = irq_names(self._machine.recording)
        self._steps: dict[int, ContextSteps] = {}
        took: dict[int, int] = {}
        # without its switches nobody knows what a CPU ran after its first event
        known = self._machine.recording.rows(self._machine.recording.format_named("sched", "sched_switch"))
        for cpu in {s.cpu for s in self._machine.recording.streams} if len(known) else ():
            steps = self._steps[cpu] = context_steps(self._machine, cpu, timeline.base)
            tasks = np.flatnonzero(steps.context[:-1] == Context.TASK)
            pids, at = np.unique(steps.what[tasks], return_inverse=True)
            ran = np.zeros(len(pids), np.int64)
            np.add.at(ran, at, steps.begin[tasks + 1] - steps.begin[tasks])
            for pid, units in zip(pids.tolist(), ran.tolist(), strict=True):
                took[pid] = took.get(pid, 0) + units
        longest = sorted((pid for pid in took if pid not in self._vcpus), key=lambda pid: -took[pid])
        first = CPU_CLASSES.index("task1")
        self._ranks = {pid: first + n for n, pid in enumerate(longest[: len(CPU_CLASSES) - first])}

    def lane(self, cpu: int) -> Lane:
        steps = self._steps.get(cpu)
        if steps is None or not len(steps.begin):
            return self._lane(cpu, np.zeros(0, np.int64), np.zeros(0, np.int64), [])
        # of steps that begin at one time the last one counts
        keep = np.r_[steps.begin[1:] != steps.begin[:-1], True]
        begin, context, what = steps.begin[keep], steps.context[keep].astype(np.int64), steps.what[keep]
        tasks = np.flatnonzero(context == Context.TASK)
        name = np.full(len(begin), -1, np.int64)
        name[tasks], names = self._called.of_many(what[tasks], begin[tasks])
        keys = np.stack([context, what, name], axis=1)
        first, at = distinct_rows(keys.view(np.uint64))
        said = [self._said(Context(c), w, names[n] if n >= 0 else "") for c, w, n in keys[first].tolist()]
        return self._lane(cpu, begin, at, said)

    def _lane(self, cpu: int, begin: I64, what: I64, said: list[tuple[str, int]]) -> Lane:
        begin, what, texts, classes = _whole(begin, what, said, self._span)
        return Lane(
            "cpu", self._machine.name, cpu, None, None, begin, self._span[1], what, texts, classes, CPU_CLASSES
        )  # fmt: skip

    def _said(self, context: Context, what: int, name: str) -> tuple[str, int]:
        match context:
            case Context.IDLE:
                return "idle", CPU_CLASSES.index("idle")
            case Context.IRQ:
                return f"interrupt {what} {self._irqs.get(what, '')}".rstrip(), CPU_CLASSES.index("irq")
            case Context.SOFTIRQ:
                return f"softirq {softirq_name(what) or what}", CPU_CLASSES.index("softirq")
            case Context.TASK if what in self._vcpus:
                guest, cpu = self._vcpus[what]
                return f"{name} [{what}]: vCPU {cpu} of {guest}", CPU_CLASSES.index("vcpu")
            case Context.TASK:
                return f"{name} [{what}]", self._ranks.get(what, CPU_CLASSES.index("task"))
        return "unknown", 0


def _of_vcpu(explainer: Explainer, states: VcpuStates, span: tuple[int, int]) -> Lane:
    machines = explainer.result.timeline.machines
    reason, _ = states.causes()
    name = np.full(len(states), -1, np.int64)
    for number in np.unique(states.machine).tolist():
        waits = np.flatnonzero((states.by >= 0) & (states.machine == number))
        name[waits], _ = explainer.called(number).of_many(states.by[waits], states.begin[waits])
    if states.guest is not None:
        number = next(n for n, m in enumerate(machines) if m.name == states.guest)
        tasks = np.flatnonzero((states.context == Context.TASK) & (states.state == State.GUEST))
        name[tasks], _ = explainer.called(number).of_many(states.what[tasks], states.begin[tasks])
    columns = (states.state, states.machine, reason, states.by, states.context, states.what, name)
    keys = np.stack([c.astype(np.int64) for c in columns], axis=1)
    first, at = distinct_rows(keys.view(np.uint64))
    said = []
    for (state, _, _, _, context, _, _), step in zip(keys[first].tolist(), first.tolist(), strict=True):
        text = str(explainer.cause(states, step)) if state != State.UNKNOWN else "unknown: the host did not see"
        if state == State.GUEST:
            said.append((text if context else "in guest mode", _BY_CONTEXT[Context(context)]))
        else:
            said.append((text, _BY_STATE[State(state)]))
    begin, what, texts, classes = _whole(states.begin, at, said, span)
    return Lane(
        "vcpu", states.host, states.guest_cpu, states.guest, states.tid, begin, span[1], what, texts, classes,
        VCPU_CLASSES,
    )  # fmt: skip


def _whole(
    begin: I64, what: I64, said: list[tuple[str, int]], span: tuple[int, int]
) -> tuple[I64, I64, tuple[str, ...], I64]:
    """Steps cut to the span, beginning with it, and neighbours that are the same joined; then texts and classes."""
    keys = dict.fromkeys([("unknown", 0), *said])
    number = {key: n for n, key in enumerate(keys)}
    same = np.array([number[key] for key in said] or [0], np.int64)
    first = int(np.searchsorted(begin, span[0], side="right")) - 1
    last = int(np.searchsorted(begin, span[1], side="left"))
    inner = slice(max(first, 0), max(last, 0))
    begin, what = np.maximum(begin[inner], span[0]), same[what[inner]]
    if first < 0:
        begin, what = np.r_[np.int64(span[0]), begin], np.r_[np.int64(0), what]
    fresh = np.r_[True, what[1:] != what[:-1]]
    texts, classes = tuple(text for text, _ in keys), np.array([c for _, c in keys], np.int64)
    return begin[fresh], what[fresh], texts, classes
