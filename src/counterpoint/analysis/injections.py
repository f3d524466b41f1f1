"""Interrupts across the boundary: from the host's request to the injection, the entry and the guest's handler.

Three rules pair them; what none makes certain is not paired.

x86, where KVM injects (``kvm_inj_virq``): a requested interrupt is a bit of the vCPU's IRR (``kvm_apic_accept_irq``):
an injection answers all requests of its vector since that vector's injection before, and waited since the first. KVM
injects while the guest's interrupts are on, so no handler is under way, and the guest takes the interrupt with the next
``kvm_entry``: the first event after it that is marked as made by a hard interrupt's handler is that interrupt's, if it
comes before the next injection's entry. An injection that had to be repeated counts once.

x86 with APICv or AVIC (``kvm_apicv_accept_irq``): the processor itself delivers interrupts, some of which no event
tells of, and none is injected. There the guest's own events that carry the vector (``irq_vectors``) answer the requests
of that vector since the one before.

arm64: the vCPU's timer (``kvm_timer_update_irq``, level 1) with the guest's ``irq_handler_entry`` of the name
"arch_timer" (drivers/clocksource/arm_arch_timer.c), where KVM raises one timer interrupt alone on that vCPU. Other
interrupts have other numbers in the guest than in the host, and are not paired.

Nothing is paired across lost events, nor where the bound of the guest's event leaves open which side of an entry it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed, Rows, first_since
from counterpoint.analysis.steps import last_set
from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.matching import vcpu_ids

NEVER = np.int64(-(1 << 62))
"""Stands for a time that is not known."""

_HANDLER = "arch_timer"


class Source(IntEnum):
    """Who asked for an interrupt."""

    UNKNOWN = 0
    """The request was not found."""
    OTHER = 1
    """KVM's own devices, such as the local APIC's timer; or what tells of itself by no event."""
    IPI = 2
    """Another vCPU, by its ICR (``kvm_apic_ipi``)."""
    MSI = 3
    """A device, by ``kvm_msi_set_irq``."""
    TIMER = 4
    """arm64's timer."""


@dataclass(frozen=True, slots=True)
class Interrupts:
    """Interrupts of a host's vCPUs in order of the thread and time; times i64[n] from the timeline's base.

    ``tid`` i64[n]; ``number`` i64[n]: the vector, on arm64 the interrupt's number; ``source`` u8[n]: a ``Source``;
    ``sender`` i64[n]: the thread that asked, -1: not known. ``requested``, ``injected``, ``entered``, ``handled``: the
    times of the first request, the injection (of arm64 none), the kvm_entry and the handler's first event, ``NEVER``
    where one is not certain. ``handler`` i64[n]: that event's row in the guest, -1: none; ``width`` i64[n]: of its
    bound.
    """

    tid: I64
    number: I64
    source: npt.NDArray[np.uint8]
    sender: I64
    requested: I64
    injected: I64
    entered: I64
    handled: I64
    handler: I64
    width: I64

    def __len__(self) -> int:
        """Number of interrupts."""
        return len(self.tid)

    def take(self, at: npt.NDArray[np.integer] | Bools) -> Interrupts:
        """Those at the places ``at``."""
        return Interrupts(*(getattr(self, f.name)[at] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class InGuest:
    """A guest as its vCPUs' interrupts need it: its events, the widths i64 of their bounds, and a thread's CPU."""

    placed: Placed
    width: I64
    cpu: int


def interrupts_of(host: Placed, guests: Mapping[int, InGuest]) -> list[Interrupts]:
    """The interrupts of a host's vCPUs, ``guests`` by thread, by each rule that its recording has the events for."""
    ids = vcpu_ids(host.recording)
    found = (find(host, guests, ids) for find in (x86_interrupts, apicv_interrupts, arm64_timers))
    return [each for each in found if each is not None]


def x86_interrupts(host: Placed, guests: Mapping[int, InGuest], ids: Mapping[int, int]) -> Interrupts | None:
    """The injected interrupts of a host; None where kvm_inj_virq was not recorded.

    ``guests``: by thread; ``ids``: the vCPU's id by thread.
    """
    injected = host.of("kvm", "kvm_inj_virq", ("vector",))
    entry = host.of("kvm", "kvm_entry")
    if injected is None or entry is None:
        return None
    injected = _once(host, injected)
    order = np.lexsort((injected.row, injected.when, injected.pid))
    injected = injected.take(order)
    tid, number, when = injected.pid, injected["vector"], injected.when
    n = len(injected)
    accepted = _accepted(host, ids)
    requested, source, sender = np.full(n, NEVER), np.zeros(n, np.uint8), np.full(n, -1, np.int64)
    if accepted is not None:
        of, target, kind = accepted
        request, before = first_since(target << 8 | of["vec"], of.when, tid << 8 | (number & 0xFF), when)
        at = np.flatnonzero(request >= 0)
        at = at[~host.lost_within(when[before[at]], when[at])]
        requested[at], sender[at] = of.when[request[at]], of.pid[request[at]]
        source[at] = kind[request[at]]
    entered = _next_entry(host, entry, tid, when)
    handled, handler, width = np.full(n, NEVER), np.full(n, -1, np.int64), np.zeros(n, np.int64)
    bypassed = _bypassed(host, ids)
    for thread in np.unique(tid).tolist():
        guest = guests.get(thread)
        if guest is None or thread in bypassed:
            continue
        mine = np.flatnonzero((tid == thread) & (entered > NEVER))
        found, row, wide = _handlers(host, guest, when[mine], entered[mine])
        handled[mine], handler[mine], width[mine] = found, row, wide
    return Interrupts(tid, number, source, sender, requested, when, entered, handled, handler, width)


def _once(host: Placed, injected: Rows) -> Rows:
    """Without software interrupts, and what was injected again as the entry before did not deliver it."""
    keep = np.ones(len(injected), np.bool_)
    for name in ("soft", "reinjected"):
        marked = host.of("kvm", "kvm_inj_virq", (name,))
        if marked is not None:
            keep &= marked[name] == 0
    return injected.take(keep)


def _accepted(
    host: Placed, ids: Mapping[int, int], name: str = "kvm_apic_accept_irq"
) -> tuple[Rows, I64, npt.NDArray[np.uint8]] | None:
    """The requests of vCPUs that one thread alone can be, their threads i64[n] and ``Source`` u8[n]."""
    rows = host.of("kvm", name, ("apicid", "dm", "vec"))
    if rows is None:
        return None
    by_id: dict[int, list[int]] = {}
    for tid, number in ids.items():
        by_id.setdefault(number, []).append(tid)
    target = np.full(len(rows), -1, np.int64)
    for number, tids in by_id.items():
        if len(tids) == 1:
            target[rows["apicid"] == number] = tids[0]
    # fixed or lowest priority (APIC_DM_FIXED, APIC_DM_LOWEST in arch/x86/include/asm/apicdef.h)
    good = (target >= 0) & ((rows["dm"] >> 8 & 7) <= 1)
    return rows.take(good), target[good], _sources(host, rows)[good]


def _sources(host: Placed, rows: Rows) -> npt.NDArray[np.uint8]:
    """Who asked: what the same thread told last before each request, if it is of the same vector.

    An IPI and an MSI are delivered by the thread that sends them, before it goes on (kvm_apic_send_ipi, kvm_set_msi).
    """
    kinds: list[tuple[Rows, int, I64]] = [(rows, -1, rows["vec"])]
    for name, field, sender in (("kvm_apic_ipi", "icr_low", Source.IPI), ("kvm_msi_set_irq", "data", Source.MSI)):
        sent = host.of("kvm", name, (field,))
        if sent is not None:
            kinds.append((sent, int(sender), sent[field] & 0xFF))
    for name in ("kvm_entry", "kvm_exit"):
        edge = host.of("kvm", name)
        if edge is not None:
            kinds.append((edge, int(Source.OTHER), np.full(len(edge), -1, np.int64)))
    pid, when, row = (np.concatenate([getattr(r, n) for r, _, _ in kinds]) for n in ("pid", "when", "row"))
    source = np.concatenate([np.full(len(r), s) for r, s, _ in kinds])
    vector = np.concatenate([v for _, _, v in kinds])
    order = np.lexsort((row, when, pid))
    last = last_set(source[order])
    at = order[np.maximum(last, 0)]
    same = (last >= 0) & (pid[at] == pid[order]) & (vector[at] == vector[order])
    found = np.empty(len(order), np.uint8)
    found[order] = np.where(same, source[at], Source.OTHER)
    return found[: len(rows)]


def _bypassed(host: Placed, ids: Mapping[int, int]) -> set[int]:
    """The threads whose vCPU the processor itself delivers interrupts to."""
    rows = host.of("kvm", "kvm_apicv_accept_irq", ("apicid",))
    told = set() if rows is None else set(np.unique(rows["apicid"]).tolist())
    return {tid for tid, number in ids.items() if number in told}


def _next_entry(host: Placed, entry: Rows, tid: I64, when: I64) -> I64:
    """The time of each thread's next kvm_entry; ``NEVER`` where there is none, or it may be lost."""
    out = np.full(len(when), NEVER)
    for thread in np.unique(tid).tolist():
        mine, own = np.flatnonzero(tid == thread), entry.when[entry.pid == thread]
        at = np.searchsorted(own, when[mine])
        some = at < len(own)
        out[mine[some]] = own[at[some]]
    known = out > NEVER
    out[known & host.lost_within(when, np.where(known, out, when))] = NEVER
    return out


def _handlers(host: Placed, guest: InGuest, injected: I64, entered: I64) -> tuple[I64, I64, I64]:
    """The first handler's event of each injection of one vCPU, its row, and the width of its bound."""
    n = len(entered)
    handled, handler, width = np.full(n, NEVER), np.full(n, -1, np.int64), np.zeros(n, np.int64)
    events = guest.placed.in_interrupt(guest.cpu)
    wide = guest.width[events.row]
    at = np.searchsorted(events.when, entered)
    some = np.flatnonzero(at < len(events))
    at = at[some]
    # before the next injection
    following = np.r_[entered[1:], np.int64(1 << 62)][some]
    good = (events.when[at] < following) & (wide[at] >= 0)
    # the guest did not run between the exit before an injection and its entry: an event is on one side beyond doubt
    # where its bound does not reach over what lies between
    early = events.when[at] - wide[at] >= injected[some]
    late = events.when[at] + wide[at] < np.r_[injected[1:], np.int64(1 << 62)][some]
    previous = np.maximum(at - 1, 0)
    clear = (at == 0) | (events.when[previous] + np.maximum(wide[previous], 0) < entered[some])
    good &= early & late & clear & ~guest.placed.lost_within(entered[some], events.when[at])
    good &= ~host.lost_within(entered[some], events.when[at])
    at, some = at[good], some[good]
    handled[some], handler[some], width[some] = events.when[at], events.row[at], wide[at]
    return handled, handler, width


def apicv_interrupts(host: Placed, guests: Mapping[int, InGuest], ids: Mapping[int, int]) -> Interrupts | None:
    """The interrupts that the processor delivered and whose handlers are certain; None where it delivered none.

    ``guests``: by thread; ``ids``: the vCPU's id by thread.
    """
    accepted = _accepted(host, ids, "kvm_apicv_accept_irq")
    if accepted is None or not len(accepted[0]):
        return None
    requests, target, source = accepted
    parts = []
    for tid in np.unique(target).tolist():
        guest = guests.get(tid)
        if guest is not None:
            mine = np.flatnonzero(target == tid)
            asked = requests.take(mine)
            handlers, vector = _vectors(guest)
            first, at = _answers(host, guest, asked["vec"], asked.when, vector, handlers)
            parts.append(_paired(guest, tid, vector[at], asked.take(first), handlers.take(at), source[mine[first]]))
    return _together(parts)


def _vectors(guest: InGuest) -> tuple[Rows, I64]:
    """The guest's events at the beginning of an interrupt's handler that carry its vector, and the vectors."""
    found = []
    for event in guest.placed.recording.formats.values():
        if event.system == "irq_vectors" and event.name.endswith("_entry"):
            rows = guest.placed.of("irq_vectors", event.name, ("vector",), proved=True)
            if rows is not None:
                found.append(rows.take(rows.cpu == guest.cpu))
    none = np.zeros(0, np.int64)
    row, when, cpu, pid = (
        np.concatenate([none, *(getattr(r, n) for r in found)]) for n in ("row", "when", "cpu", "pid")
    )
    vector = np.concatenate([none, *(r["vector"] for r in found)])
    order = np.lexsort((row, when))
    return Rows(row[order], when[order], cpu[order], pid[order], {}), vector[order]


def arm64_timers(host: Placed, guests: Mapping[int, InGuest], ids: Mapping[int, int]) -> Interrupts | None:
    """The timer interrupts of a host's vCPUs; None where kvm_timer_update_irq was not recorded.

    ``guests``: by thread; ``ids``: the vCPU's id by thread.
    """
    rows = host.of("kvm", "kvm_timer_update_irq", ("vcpu_id", "irq", "level"))
    entry = host.of("kvm", "kvm_entry")
    if rows is None or entry is None:
        return None
    rows = rows.take(rows["level"] != 0)
    parts = []
    for tid, number in sorted(ids.items()):
        guest = guests.get(tid)
        # another VM's vCPU may have that id
        if guest is None or list(ids.values()).count(number) > 1:
            continue
        raised = rows.take(rows["vcpu_id"] == number)
        if len(np.unique(raised["irq"])) != 1:
            continue
        handlers = _timer_handlers(guest)
        zero = np.zeros(max(len(raised), len(handlers)), np.int64)
        first, at = _answers(host, guest, zero[: len(raised)], raised.when, zero[: len(handlers)], handlers)
        asked = raised.take(first)
        part = _paired(guest, tid, asked["irq"], asked, handlers.take(at), np.full(len(at), Source.TIMER, np.uint8))
        # an entry lies between the two: what was requested in guest mode is taken after the next one
        own = np.r_[entry.when[entry.pid == tid], np.int64(1 << 62)]
        entered = own[np.searchsorted(own, part.requested)]
        parts.append(
            replace(part, entered=np.where(entered <= part.handled, entered, NEVER), sender=np.full(len(entered), -1))
        )
    return _together(parts)


def _answers(host: Placed, guest: InGuest, key: I64, requested: I64, answer: I64, handlers: Rows) -> tuple[I64, I64]:
    """Which of the ``requested`` each of some of the handlers answers: places among the ones and the others."""
    request, before = first_since(key, requested, answer, handlers.when)
    at = np.flatnonzero(request >= 0)
    first, previous = request[at], before[at]
    wide, when = guest.width[handlers.row], handlers.when
    # which of the two came first has to be beyond doubt, at both ends
    good = (wide[at] >= 0) & (when[at] - wide[at] > requested[first])
    good &= when[previous] + wide[previous] < requested[first]
    good &= ~host.lost_within(when[previous], when[at]) & ~guest.placed.lost_within(when[previous], when[at])
    return first[good], at[good]


def _paired(
    guest: InGuest, tid: int, number: I64, asked: Rows, handlers: Rows, source: npt.NDArray[np.uint8]
) -> Interrupts:
    never = np.full(len(number), NEVER)
    return Interrupts(
        np.full(len(number), tid, np.int64), number, source, asked.pid, asked.when, never, never, handlers.when,
        handlers.row, guest.width[handlers.row],
    )  # fmt: skip


def _together(parts: list[Interrupts]) -> Interrupts:
    none = np.zeros(0, np.int64)
    empty = {f.name: none.astype(np.uint8) if f.name == "source" else none for f in fields(Interrupts)}
    columns = {name: np.concatenate([first, *(getattr(p, name) for p in parts)]) for name, first in empty.items()}
    return Interrupts(**columns)


def _timer_handlers(guest: InGuest) -> Rows:
    """The guest's irq_handler_entry events of its timer, on the vCPU's CPU."""
    rows = guest.placed.of("irq", "irq_handler_entry", ("irq",), proved=True)
    recording = guest.placed.recording
    event = recording.format_named("irq", "irq_handler_entry")
    none = np.zeros(0, np.int64)
    if rows is None or event is None or event.field("name") is None:
        return Rows(none, none, none, none, {})
    rows = rows.take(rows.cpu == guest.cpu)
    numbers, first = np.unique(rows["irq"], return_index=True)
    names = recording.batch(event, rows.row[first]).text("name")
    return rows.take(np.isin(rows["irq"], numbers[[name == _HANDLER for name in names]]))
