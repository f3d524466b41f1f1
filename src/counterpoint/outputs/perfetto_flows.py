"""Arrows from a host's interrupt injection to the guest's handler of that interrupt, where the two are certain.

The injection is the only one between two run windows of the vCPU's thread; from it to the end of the second window the
thread is on one CPU, and that lost no event. Only guest events that are proved to lie in that window are taken.

**x86.** ``kvm_inj_virq`` is KVM putting an interrupt into the next VM entry (vmx_inject_irq in arch/x86/kvm/vmx/vmx.c,
svm_inject_irq in svm/svm.c): the guest takes it before its first instruction. So the first event that the guest records
in that window is of its handler if it was recorded in a hardware interrupt (common_flags, TRACE_FLAG_HARDIRQ):

* no handler of another interrupt goes on in the window: handlers run with interrupts off (kernel/irq/handle.c), and
  with them off KVM does not inject. A soft interrupt (INT n) before the same entry leaves it open: no arrow;
* none is delivered in the window beside it: the vector is one that a local APIC accepted (``kvm_apic_accept_irq``), and
  KVM injects such only while APICv, which delivers them without an entry, is not in use (arch/x86/kvm/irq.c). Where
  that was not recorded, the handler's event has to have the same ``vector`` (irq_vectors:*_entry).

**arm64.** ``kvm_timer_update_irq`` with level 1 raises the line of one of the guest's timers (arch_timer.c): taken
where the vCPU's own thread recorded it, its line was low before, and so is that of the vCPU's other timer. The handler
``arch_timer`` (irq_handler_entry) is that of the timers alone, so the first one in the window that follows is of that
line. Which interrupts of the guest other numbers are is not recorded: no arrow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from counterpoint.analysis.steps import last_set
from counterpoint.clocks.counter import I64, Bools
from counterpoint.outputs.perfetto_lanes import Lane
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.recording import Recording

_HARDIRQ = 0x08
"""TRACE_FLAG_HARDIRQ (include/linux/trace_events.h)."""

_ENTRY, _EXIT, _INJECTION, _DOUBT = 0, 1, 2, 3


def find_flows(result: SyncResult, lanes: Mapping[str, Lane]) -> None:
    """Note in ``lanes`` at which events arrows begin and end."""
    begins: dict[str, list[I64]] = {}
    ends: dict[str, list[I64]] = {}
    count = 0
    for host in lanes.values():
        for tid, (guest, cpu) in vcpus_by_thread(result, host.machine.name).items():
            if guest not in lanes:
                continue
            pairs = _of_vcpu(host, tid, lanes[guest], cpu)
            numbers = np.arange(count + 1, count + 1 + pairs.shape[1])
            count += pairs.shape[1]
            begins.setdefault(host.machine.name, []).append(np.stack([pairs[0], numbers]))
            ends.setdefault(guest, []).append(np.stack([pairs[1], numbers]))
    for known, name in ((begins, "begins"), (ends, "ends")):
        for machine, parts in known.items():
            rows, numbers = np.concatenate(parts, axis=1)
            order = np.argsort(rows)
            setattr(lanes[machine].flows, name, (rows[order], numbers[order]))


def _of_vcpu(host: Lane, tid: int, guest: Lane, cpu: int) -> I64:
    """Rows i64[2, n] of injections in thread ``tid``, and of the guest's events on ``cpu`` that they lead to."""
    recording = host.machine.recording
    inject = recording.format_named("kvm", "kvm_inj_virq")
    raised = recording.format_named("kvm", "kvm_timer_update_irq")
    none = np.zeros((2, 0), np.int64)
    if inject is not None and inject.field("vector") is not None:
        rows = _of_thread(host, inject, tid)
        soft = _ints(recording, inject, "soft", rows)
        hard = np.ones(len(rows), np.bool_) if soft is None else soft == 0
        injected, entry, leave = _before_entries(host, tid, rows[hard], rows[~hard])
        events = _on_cpu(guest, cpu)
        events, inside = _first_within(guest, events, host.ts_ns[entry], host.ts_ns[leave])
        injected = injected[inside]
        good = _in_hardirq(guest.machine.recording, events)
        good &= _is_of_apic(recording, inject, injected) | _same_vector(recording, inject, injected, guest, events)
    elif raised is not None:
        rows = _of_thread(host, raised, tid)
        sure = _alone_raised(recording, raised, rows)
        injected, entry, leave = _before_entries(
            host, tid, rows[sure], rows[~sure & _is_raise(recording, raised, rows)]
        )
        events = _timer_handlers(guest, _on_cpu(guest, cpu))
        events, inside = _first_within(guest, events, host.ts_ns[entry], host.ts_ns[leave])
        injected = injected[inside]
        good = np.ones(len(injected), np.bool_)
    else:
        return none
    good &= guest.machine.proved[events] & guest.as_instant[events]
    return np.stack([injected[good], events[good]])


def _ints(recording: Recording, event: EventFormat | None, name: str, rows: I64) -> I64 | None:
    field = event.field(name) if event is not None else None
    if event is None or field is None or field.kind != "int" or field.dynamic:
        return None
    return recording.column(event, name, rows).astype(np.int64)


def _of_thread(host: Lane, event: EventFormat | None, tid: int) -> I64:
    """The rows of a thread's events of one kind, in the order of time."""
    recording = host.machine.recording
    rows = recording.rows(event)
    rows = rows[(recording.pid[rows] == tid) & host.machine.placed[rows]]
    return _by_time(host, rows)


def _before_entries(host: Lane, tid: int, injected: I64, doubted: I64) -> tuple[I64, I64, I64]:
    """Injections that are alone before an entry, and the rows of that entry and of its exit."""
    recording = host.machine.recording
    parts = [
        _of_thread(host, recording.format_named("kvm", "kvm_entry"), tid),
        _of_thread(host, recording.format_named("kvm", "kvm_exit"), tid),
        injected,
        doubted,
    ]
    kind = np.repeat([_ENTRY, _EXIT, _INJECTION, _DOUBT], [len(rows) for rows in parts])
    rows = np.concatenate(parts)
    order = np.lexsort((rows, host.ts_ns[rows]))
    kind, rows = kind[order], rows[order]
    # an exit is recorded after an interrupt of the host's that ended the window, in which the timer's line was raised
    steps = np.flatnonzero(kind != _EXIT)
    entries, exits = np.r_[np.flatnonzero(kind == _ENTRY), len(kind)], np.r_[np.flatnonzero(kind == _EXIT), len(kind)]
    between = (kind[steps[:-2]] == _ENTRY) & (kind[steps[1:-1]] == _INJECTION) & (kind[steps[2:]] == _ENTRY)
    which = np.flatnonzero(between)
    again = steps[which + 2]
    left = exits[np.searchsorted(exits, again)]
    ended = left < entries[np.searchsorted(entries, again, side="right")]
    which, again, left = which[ended], again[ended], left[ended]
    before, at, entry, leave = rows[steps[which]], rows[steps[which + 1]], rows[again], rows[left]
    stream = recording.stream_of
    good = (stream[before] == stream[at]) & (stream[at] == stream[entry]) & (stream[entry] == stream[leave])
    lost = np.sort(recording.losses.row)
    good &= np.searchsorted(lost, before, side="right") == np.searchsorted(lost, leave, side="right")
    return at[good], entry[good], leave[good]


def _on_cpu(guest: Lane, cpu: int) -> I64:
    """The rows of a CPU's events in the order of time."""
    recording = guest.machine.recording
    rows = np.concatenate(
        [np.zeros(0, np.int64), *(np.arange(s.first, s.last) for s in recording.streams if s.cpu == cpu)]
    )
    return _by_time(guest, rows[guest.machine.placed[rows]])


def _by_time(lane: Lane, rows: I64) -> I64:
    ordered: I64 = rows[np.argsort(lane.ts_ns[rows], kind="stable")]
    return ordered


def _first_within(guest: Lane, events: I64, begin: I64, end: I64) -> tuple[I64, Bools]:
    """The first of the events in each span that has one, and which spans bool[n] do."""
    stamps = guest.ts_ns[events]
    place = np.searchsorted(stamps, begin)
    there = place < len(events)
    there[there] = stamps[place[there]] <= end[there]
    return events[place[there]], there


def _in_hardirq(guest: Recording, rows: I64) -> Bools:
    out = np.zeros(len(rows), np.bool_)
    for event_id in np.unique(guest.event_id[rows]).tolist():
        these = np.flatnonzero(guest.event_id[rows] == event_id)
        flags = _ints(guest, guest.formats.get(event_id), "common_flags", rows[these])
        if flags is not None:
            out[these] = (flags & _HARDIRQ) != 0
    return out


def _is_of_apic(host: Recording, inject: EventFormat, injected: I64) -> Bools:
    """Which vectors a local APIC is known to have accepted."""
    accept = host.format_named("kvm", "kvm_apic_accept_irq")
    known = _ints(host, accept, "vec", host.rows(accept))
    vector = _ints(host, inject, "vector", injected)
    if known is None or vector is None:
        return np.zeros(len(injected), np.bool_)
    return np.isin(vector, np.unique(known))


def _same_vector(host: Recording, inject: EventFormat, injected: I64, guest: Lane, rows: I64) -> Bools:
    """Where the guest's event has the vector that was injected."""
    out = np.zeros(len(rows), np.bool_)
    said = _ints(host, inject, "vector", injected)
    recording = guest.machine.recording
    for event_id in np.unique(recording.event_id[rows]).tolist() if said is not None else []:
        event = recording.formats.get(event_id)
        these = np.flatnonzero(recording.event_id[rows] == event_id)
        vector = _ints(recording, event, "vector", rows[these])
        if event is not None and event.system == "irq_vectors" and vector is not None and said is not None:
            out[these] = vector == said[these]
    return out


def _is_raise(host: Recording, event: EventFormat, rows: I64) -> Bools:
    level = _ints(host, event, "level", rows)
    raises: Bools = np.zeros(len(rows), np.bool_) if level is None else level != 0
    return raises


def _alone_raised(host: Recording, event: EventFormat, rows: I64) -> Bools:
    """Which of a vCPU's updates raise a line that was low while all its other lines are, as far as that is known."""
    level, irq = _ints(host, event, "level", rows), _ints(host, event, "irq", rows)
    if level is None or irq is None:
        return np.zeros(len(rows), np.bool_)
    sure: Bools = level != 0
    for number in np.unique(irq).tolist():
        at = last_set(np.where(irq == number, np.arange(len(rows)), -1))
        before = np.r_[np.int64(-1), at[:-1]][: len(rows)]
        sure &= (before >= 0) & (level[before] == 0)
    return sure


def _timer_handlers(guest: Lane, rows: I64) -> I64:
    """Those of the events that are the beginning of the arch_timer's handler."""
    recording = guest.machine.recording
    event = recording.format_named("irq", "irq_handler_entry")
    field = event.field("name") if event is not None else None
    if event is None or field is None or field.kind != "string":
        return rows[:0]
    rows = rows[recording.event_id[rows] == event.id]
    texts, index = recording.batch(event, rows).distinct_text(field)
    is_timer = np.array([text == "arch_timer" for text in texts], np.bool_)
    handlers: I64 = rows[is_timer[index]]
    return handlers
