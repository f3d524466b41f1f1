"""Interrupts and IPIs across the boundary, as ``stats --json`` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from counterpoint.analysis.injections import NEVER, InGuest, Interrupts, Source, interrupts_of
from counterpoint.analysis.ipis import ipis
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.states import VcpuStates
from counterpoint.clocks.counter import I64, Bools
from counterpoint.outputs.stats_measure import Json, Measure, kinds
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.sync import SyncResult

# vectors that Linux gives no device on x86 (arch/x86/include/asm/irq_vectors.h)
_VECTORS = {0xEC: "timer", 0xF6: "irq work", 0xFB: "call one", 0xFC: "call", 0xFD: "reschedule"}


class Boundary:
    """The interrupts of all hosts' vCPUs."""

    def __init__(
        self,
        result: SyncResult,
        measure: Measure,
        placed: Mapping[str, Placed],
        width: Mapping[str, I64],
        within: Callable[[I64], Bools],
    ) -> None:
        """``width`` i64: of the bounds of each machine's events; ``within``: which times are asked for."""
        self._result = result
        self._measure = measure
        self._placed = placed
        self._width = width
        self._within = within
        self._found: dict[str, list[Interrupts]] = {}

    def _of_host(self, host: str) -> list[Interrupts]:
        if host not in self._found:
            vcpus = vcpus_by_thread(self._result, host)
            guests = {tid: InGuest(self._placed[name], self._width[name], cpu) for tid, (name, cpu) in vcpus.items()}
            self._found[host] = interrupts_of(self._placed[host], guests)
        return self._found[host]

    def _of_vcpus(self, states: list[VcpuStates]) -> list[Interrupts]:
        """The interrupts asked for of some vCPUs."""
        out = []
        for host in dict.fromkeys(v.host for v in states):
            for each in self._of_host(host):
                when = np.where(each.injected > NEVER, each.injected, each.requested)
                mine = np.isin(each.tid, [v.tid for v in states if v.host == host])
                out.append(each.take(mine & self._within(when)))
        return out

    def interrupts(self, name: str, states: list[VcpuStates], notes: list[str]) -> Json | None:
        """By the interrupt's number; None, with a note, where nothing is certain."""
        found = self._of_vcpus(states)
        if not found:
            hosts = ", ".join(dict.fromkeys(v.host for v in states))
            notes.append(f"interrupts: {hosts} recorded neither kvm:kvm_inj_virq nor kvm:kvm_timer_update_irq")
            return None
        if not any(len(each) for each in found):
            notes.append(f"interrupts of {name}: of none is certain which of the guest's handlers took it")
            return None
        rows = [
            self._by_number(self._placed[name], each.take(each.number == number), number)
            for each in found
            for number in np.unique(each.number).tolist()
        ]
        rows.sort(key=lambda row: (-row["count"], row["number"]))
        return {"bound": max(self._bound(each) for each in found), "by_number": rows}

    def _bound(self, rows: Interrupts) -> int:
        return self._measure.one(int(rows.width[rows.handler >= 0].max(initial=0)))

    def _by_number(self, guest: Placed, rows: Interrupts, number: int) -> Json:
        handlers = rows.handler[rows.handler >= 0]
        ids, counts = np.unique(guest.recording.event_id[handlers], return_counts=True)
        first = guest.recording.event_name(int(ids[counts.argmax()])) if len(ids) else None
        is_timer = bool((rows.source == Source.TIMER).any())
        name = "arch_timer" if is_timer else _VECTORS.get(number)
        sources = np.bincount(rows.source, minlength=len(Source))
        return {
            "number": number,
            "name": name or self._handler_names(guest, handlers),
            "first_event": first,
            "count": len(rows),
            "handled": len(handlers),
            "sources": {s.name.lower(): int(sources[s]) for s in Source if sources[s]},
            "requested_to_injected": self._between(rows.requested, rows.injected),
            "injected_to_entered": self._between(rows.injected, rows.entered),
            "requested_to_entered": self._between(rows.requested, rows.entered),
            "entered_to_handled": self._between(rows.entered, rows.handled),
            "requested_to_handled": self._between(rows.requested, rows.handled),
        }

    def _handler_names(self, guest: Placed, handlers: I64) -> str | None:
        """What the guest calls the device, by the handlers that were its first events."""
        recording = guest.recording
        event = recording.format_named("irq", "irq_handler_entry")
        if event is None or event.field("name") is None or event.field("irq") is None:
            return None
        mine = handlers[recording.event_id[handlers] == event.id]
        mine = mine[np.unique(recording.column(event, "irq", mine), return_index=True)[1]]
        return ", ".join(dict.fromkeys(recording.batch(event, mine).text("name"))) or None

    def _between(self, begin: I64, end: I64) -> Json:
        return self._measure.between(begin, end, (begin > NEVER) & (end > NEVER))

    def ipis(self, name: str, states: list[VcpuStates], notes: list[str]) -> Json | None:
        """From one guest CPU to another: by the guest's own events, or by its host's."""
        own = ipis(self._placed[name], self._width[name])
        if own is not None:
            keep = self._within(own.raised) & np.isin(own.cpu, [v.guest_cpu for v in states if v.guest_cpu is not None])
            pairs, at = kinds(np.stack([own.sender[keep], own.cpu[keep]]))
            rows = self._measure.spread((own.entered - own.raised)[keep], at, max(len(pairs), 1))
            listed = [
                {"from": one, "to": other, "raised_to_injected": None, "raised_to_handled": row}
                for (one, other), row in zip(pairs, rows, strict=False)
            ]
            return {
                "told_by": name, "bound": self._measure.one(int(own.width[keep].max(initial=0))), "by_pair": listed,
            }  # fmt: skip
        hosts = list(dict.fromkeys(v.host for v in states))
        if not any(self._placed[host].is_listed("kvm", "kvm_apic_ipi") for host in hosts):
            notes.append(
                f"IPIs: {name} recorded no ipi:ipi_raise and ipi_entry, and {', '.join(hosts)} no kvm:kvm_apic_ipi"
            )
            return None
        cpu_of = {v.tid: v.guest_cpu for v in states}
        listed, bound = [], 0
        for each in self._of_vcpus(states):
            sent = each.take(each.source == Source.IPI)
            pairs, at = kinds(np.stack([sent.sender, sent.tid]))
            for index, (sender, tid) in enumerate(pairs):
                rows_of = sent.take(at == index)
                bound = max(bound, self._bound(rows_of))
                listed.append(
                    {
                        "from": cpu_of.get(sender),
                        "to": cpu_of.get(tid),
                        "raised_to_injected": self._between(rows_of.requested, rows_of.injected),
                        "raised_to_handled": self._between(rows_of.requested, rows_of.handled),
                    }
                )
        return {"told_by": ", ".join(hosts), "bound": bound, "by_pair": listed}
