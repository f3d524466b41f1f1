"""Every exit of every vCPU: why, how long it took to handle, and what the guest was doing when it came.

for vcpu in vcpu_exits(result):
    print(vcpu.guest, vcpu.guest_cpu, len(vcpu), vcpu.took[vcpu.took >= 0].sum())
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.contexts import ContextSteps, context_steps
from counterpoint.analysis.exit_spans import exit_spans
from counterpoint.analysis.exits import ExitNames
from counterpoint.analysis.guest_symbols import GuestSymbols
from counterpoint.analysis.nested_exits import Level, Nesting
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.steps import step_at
from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.proof.windows import HostActivity
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult

_ADDRESSES = ("guest_rip", "vcpu_pc")
"""Where the guest was, in kvm_exit of x86 and arm64."""

_COLUMNS = ("row", "when", "took", "reason", "address", "level", "context", "what")
NEVER = np.int64(-(1 << 62))


@dataclass(frozen=True)
class VcpuExits:
    """The exits of one vCPU's thread ``tid`` of ``host`` in order of time; ``guest`` None: not known whose vCPU it is.

    ``row`` i64[n]: the kvm_exit in the host's recording; ``when`` i64[n], from ``Timeline.base``; ``took`` i64[n]: to
    the kvm_entry after it in the first host's units, -1: not seen. ``reason`` i64[n]: an index into ``reasons``.
    ``address`` u64[n]: where the guest was, 0: not known, or in another kernel than the guest's. ``level`` u8[n]: a
    ``Level``.

    ``context`` u8[n], a ``contexts.Context``, and ``what`` i64[n]: what the guest ran as the exit came, by its own
    recording; UNKNOWN and -1 where that does not tell.
    """

    host: str
    tid: int
    guest: str | None
    guest_cpu: int | None
    row: I64
    when: I64
    took: I64
    reason: I64
    address: U64
    level: npt.NDArray[np.uint8]
    context: npt.NDArray[np.uint8]
    what: I64
    reasons: tuple[str, ...]
    symbols: GuestSymbols | None

    def __len__(self) -> int:
        """Number of exits."""
        return len(self.row)

    def take(self, at: npt.NDArray[np.integer] | Bools) -> VcpuExits:
        """Those at the places ``at``."""
        return replace(self, **{name: getattr(self, name)[at] for name in _COLUMNS})

    def functions(self) -> tuple[I64, list[str]]:
        """The guest's function that each exit came in: an index i64[n] (-1: not known) into the names."""
        index = np.full(len(self), -1, np.int64)
        if self.symbols is None:
            return index, []
        mine = np.flatnonzero(self.address)
        index[mine], names = self.symbols.of(self.address[mine])
        return index, names


def vcpu_exits(result: SyncResult) -> list[VcpuExits]:
    """The exits of every vCPU thread of every host, further host and guest with guests, in the machines' order."""
    parents = {h.name for h in result.hosts} | {g.parent for g in result.guests}
    by_name = {m.name: m for m in result.timeline.machines}
    return [
        vcpu
        for machine in result.timeline.machines
        if machine.name in parents
        for vcpu in _of_host(result, machine, by_name)
    ]


def _of_host(result: SyncResult, machine: Machine, by_name: dict[str, Machine]) -> Iterator[VcpuExits]:
    placed = Placed(machine, result.timeline.base)
    recording = machine.recording
    event = recording.format_named("kvm", "kvm_exit")
    if event is None:
        return
    activity = HostActivity(recording)
    spans = exit_spans(machine, activity)
    nesting = Nesting(placed, activity)
    tid = recording.pid[spans.exit_row].astype(np.int64)
    when = placed.when(spans.exit_row)
    order = np.lexsort((spans.exit_row, when, tid))
    row, entry, when, tid = spans.exit_row[order], spans.entry_row[order], when[order], tid[order]
    took = np.where(entry >= 0, placed.when(entry) - when, -1)
    reason, reasons = ExitNames(recording).of(row)
    field = next((name for name in _ADDRESSES if (f := event.field(name)) and f.kind == "int"), None)
    zero = np.zeros(len(row), np.uint64)
    address = zero if field is None else recording.column(event, field, row).astype(np.uint64)
    hypervisors = {g.parent for g in result.guests}
    vcpus = vcpus_by_thread(result, machine.name)
    threads, starts = np.unique(tid, return_index=True)
    for number, begin, end in zip(threads.tolist(), starts.tolist(), [*starts.tolist(), len(tid)][1:], strict=True):
        part = slice(begin, end)
        guest, cpu = vcpus.get(number, (None, None))
        ended = np.where(took[part] >= 0, when[part] + took[part], NEVER)
        level = nesting.levels(number, row[part], when[part], ended)
        inside = by_name.get(guest) if guest is not None else None
        context, what = np.zeros(end - begin, np.uint8), np.full(end - begin, -1, np.int64)
        own = np.isin(level, (Level.OWN, Level.ENTERS, Level.BOUNCED))
        if not nesting.any and guest not in hypervisors:
            own[:] = True
        if inside is not None and cpu is not None:
            context, what = _doing(context_steps(inside, cpu, result.timeline.base), when[part])
        yield VcpuExits(
            machine.name, number, guest, cpu, row[part], when[part], took[part], reason[part],
            np.where(own, address[part], np.uint64(0)), level, context, what, tuple(reasons),
            None if inside is None else GuestSymbols(inside.recording),
        )  # fmt: skip


def _doing(steps: ContextSteps, when: I64) -> tuple[npt.NDArray[np.uint8], I64]:
    """What the guest did at the times ``when`` i64[n]."""
    at = step_at(steps.begin, when)
    if not len(steps.begin):
        return np.zeros(len(when), np.uint8), np.full(len(when), -1, np.int64)
    return np.where(at >= 0, steps.context[at], 0).astype(np.uint8), np.where(at >= 0, steps.what[at], -1)
