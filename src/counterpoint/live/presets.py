"""Which events are recorded: what is named by hand, and presets for what one looks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from counterpoint.errors import UsageError
from counterpoint.live.tracedat import chosen
from counterpoint.live.tracefs import Instance

PROOF = ("kvm:kvm_entry", "kvm:kvm_exit", "kvm:kvm_write_tsc_offset")
"""What the proof stands on: a host's recording has these whatever else is asked for."""

_TASKS = ("sched:sched_switch", "sched:sched_waking", "sched:sched_wakeup*", "sched:sched_migrate_task")
_NAMES = ("sched:sched_process_fork", "sched:sched_process_exec", "sched:sched_process_exit", "task:task_rename")
_IRQ = ("irq:*", "irq_vectors:*")
_TIMER = ("timer:hrtimer_*", "timer:timer_expire_*")

PRESETS: dict[str, tuple[str, ...]] = {
    "latency": (*PROOF, "kvm:kvm_halt_poll_ns", "kvm:kvm_vcpu_wakeup", "kvm:*inj*", "kvm:*wait_lapic_expire",
                "kvm:kvm_timer_*", *_TASKS, *_NAMES, *_IRQ, *_TIMER, "power:cpu_idle", "power:cpu_frequency"),
    "exits": ("kvm:*", "kvmmmu:*", "sched:sched_switch", *_NAMES),
    "io": (*PROOF, "kvm:kvm_mmio", "kvm:kvm_fast_mmio", "kvm:kvm_pio", "kvm:kvm_msi_set_irq", "kvm:kvm_set_irq",
           "kvm:*eventfd*", *_TASKS, *_NAMES, "irq:*", "block:*", "net:*", "napi:*", "vhost:*", "virtio*:*", "scsi:*",
           "nvme:*", "io_uring:*", "workqueue:workqueue_execute_*"),
    "all": ("kvm:*", "kvmmmu:*", "sched:*", "task:*", "irq:*", "irq_vectors:*", "ipi:*", "timer:*", "power:*",
            "block:*", "net:*", "napi:*", "vhost:*", "virtio*:*", "scsi:*", "nvme:*", "io_uring:*", "workqueue:*",
            "signal:*", "exceptions:*", "rcu:rcu_utilization", "tlb:*", "vmscan:*", "compaction:*", "csd:*"),
}  # fmt: skip
"""Systems and events that a kernel lacks are left out: a guest has few of the host's."""


@dataclass(frozen=True)
class EventSpec:
    """An event named by hand: ``pattern`` SYSTEM or SYSTEM:EVENT (* as in a shell), and a filter of the kernel's."""

    pattern: str
    filter: str = ""

    @classmethod
    def parse(cls, text: str) -> EventSpec:
        """SYSTEM, SYSTEM:EVENT or SYSTEM:EVENT:FILTER; UsageError where it is none of them."""
        system, _, rest = text.partition(":")
        event, _, filter_ = rest.partition(":")
        if not re.fullmatch(r"[\w*?\[\]-]+", system) or (event and not re.fullmatch(r"[\w*?\[\]-]+", event)):
            raise UsageError(f"{text!r} is no event: SYSTEM, SYSTEM:EVENT or SYSTEM:EVENT:FILTER is expected")
        if filter_ and not event:
            raise UsageError(f"{text!r}: a filter needs an event, as in 'sched:sched_switch:next_prio < 100'")
        return cls(f"{system}:{event or '*'}", filter_.strip())


def patterns(preset: str | None, specs: Sequence[EventSpec]) -> list[str]:
    """All patterns together, each once."""
    asked = [*(PRESETS[preset] if preset else ()), *(spec.pattern for spec in specs)]
    return list(dict.fromkeys([*PROOF, *asked]))


def is_missing(root: Path, preset: str | None, specs: Sequence[EventSpec], pattern: str) -> bool:
    """Whether some event of ``pattern`` is not recorded by all that is asked for."""
    return not set(chosen(root, [pattern])) <= set(chosen(root, patterns(preset, specs)))


def enable(
    instance: Instance, preset: str | None, specs: Sequence[EventSpec]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Record them in ``instance``: the (system, event) pairs, and what is to be said.

    UsageError where something that was named by hand is not there, or the kernel refuses it or its filter.
    """
    notes = []
    pairs = chosen(instance.root, patterns(preset, specs))
    for spec in specs:
        found = chosen(instance.root, [spec.pattern])
        if not found:
            raise UsageError(f"this kernel has no event {spec.pattern} ({instance.root}/available_events lists all)")
        if spec.filter:
            for system, event in found:
                _filter(instance, system, event, spec.filter)
    if ("kvm", "kvm_entry") not in pairs or ("kvm", "kvm_exit") not in pairs:
        notes.append("there are no kvm_entry and kvm_exit here (kvm is not loaded): nothing can be proved of guests")
    by_system: dict[str, set[str]] = {}
    for system, event in pairs:
        by_system.setdefault(system, set()).add(event)
    refused = []
    for system, events in by_system.items():
        refused += _enable(instance, system, events)
    if refused:
        notes.append(f"the kernel does not record: {', '.join(refused)}")
    return [pair for pair in pairs if ":".join(pair) not in refused], notes


def _enable(instance: Instance, system: str, events: Iterable[str]) -> list[str]:
    """Enable events of one system, all at once where that is all of them; those that were refused."""
    wanted = set(events)
    if wanted == {event for _, event in chosen(instance.root, [system])}:
        with suppress(OSError):
            instance.write(os.path.join("events", system, "enable"), "1")
            return []
    refused = []
    for event in sorted(wanted):
        try:
            instance.write(os.path.join("events", system, event, "enable"), "1")
        except OSError:
            refused.append(f"{system}:{event}")
    return refused


def _filter(instance: Instance, system: str, event: str, text: str) -> None:
    try:
        instance.filter(system, event, text)
    except OSError:
        said = ""
        with suppress(OSError):
            # the kernel writes what it found wrong into the filter's own file
            path = instance.folder / "events" / system / event / "filter"
            said = " ".join(path.read_text(errors="replace").split())
        raise UsageError(
            f"{system}:{event} takes no filter {text!r}{f': the kernel says {said!r}' if said else ''}"
        ) from None
