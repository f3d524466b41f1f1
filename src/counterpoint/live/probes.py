"""Dynamic events that log each vCPU's offset in the host's trace, on the vCPU's own thread.

Stock kernels, root and tracefs; nothing is built or loaded. Tried in this order, and refused by kernels that lack it:

* x86: the tracepoint kvm_entry with its argument's fields by BTF: at every entry, right for L1 and for L2.
  (since Linux 6.5: e2d0d7b2f42d "tracing/probes: Add tracepoint support on fprobe_events";
  6.6: c440adfbe302 "tracing/probes: Support BTF based data structure field access")
* x86: kvm_arch_vcpu_load, at every load of the vCPU, as a function probe or a kprobe.
* arm64: kvm_timer_vcpu_load with BTF fields: CNTVOFF and CNTPOFF of a VM. Of an L1 with vEL2 its voffset is stale.
* arm64: __kvm_timer_set_cntvoff, whose first register is what CNTVOFF_EL2 gets: at load the offset, at put 0. VHE hosts
  only: elsewhere it is in the hypervisor's image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from counterpoint.live import libc
from counterpoint.live.missing import Missing
from counterpoint.live.model import ACTIVE, L1, PHYSICAL, Reading
from counterpoint.live.tracefs import Instance, dynamic_event, last_error
from counterpoint.live.vmm import signed

_X86 = (
    "vcpu_id=vcpu->vcpu_id:s32 off=vcpu->arch.tsc_offset:u64 l1=vcpu->arch.l1_tsc_offset:u64"
    " ratio=vcpu->arch.tsc_scaling_ratio:u64 l1_ratio=vcpu->arch.l1_tsc_scaling_ratio:u64"
)
_ARM64 = (
    "vcpu_id=vcpu->vcpu_id:s32 voff=vcpu->kvm->arch.timer_data.voffset:u64 poff=vcpu->kvm->arch.timer_data.poffset:u64"
)


@dataclass(frozen=True)
class Recipe:
    """A dynamic event: its kind and its place, its arguments, and the field whose change matters."""

    kind: str
    place: str
    arguments: str
    key: str
    skip_zero: bool = False
    """0 in ``key`` says that nothing is in use."""
    of_vm: bool = False
    """What it logs is kept once for the VM, so that what one vCPU's thread logs holds for all."""


RECIPES = {
    "x86_64": (
        Recipe("t", "kvm_entry", _X86, "l1"),
        Recipe("f", "kvm_arch_vcpu_load", _X86, "l1"),
        Recipe("p", "kvm_arch_vcpu_load", _X86, "l1"),
    ),
    "aarch64": (
        Recipe("p", "kvm_timer_vcpu_load", _ARM64, "voff", of_vm=True),
        Recipe("f", "kvm_timer_vcpu_load", _ARM64, "voff", of_vm=True),
        Recipe("p", "__kvm_timer_set_cntvoff", "voff=%x0:u64", "voff", skip_zero=True),
    ),
}
NAME = "offset"
_FILTER_LIMIT = 3500
"""Bytes of a filter: the kernel takes less than a page."""


class Probe:
    """A recipe that the kernel took, recorded in an instance of ours."""

    def __init__(self, instance: Instance, group: str, recipe: Recipe) -> None:
        """Use ``open_probe``. ``group``: the event's system."""
        self.instance = instance
        self.recipe = recipe
        self.group = group
        self.known: dict[int, int] = {}
        """Of each thread: the last value of the recipe's key."""

    def enable(self) -> None:
        """Record every event."""
        self.instance.enable(self.group, NAME, f"{self.recipe.key} != 0" if self.recipe.skip_zero else "")

    def disable(self) -> None:
        """Record no more."""
        self.instance.disable(self.group, NAME)

    def only_changes(self) -> None:
        """Let the kernel drop the events that say what is known already."""
        text = change_filter(self.recipe, self.known)
        with suppress(OSError):
            self.instance.filter(self.group, NAME, text)

    def readings(self, stamp: int, fields: dict[str, int], cost_ns: int = 0) -> list[Reading]:
        """What one event says; ``stamp`` is the instance's clock."""
        at = stamp if self.instance.clock == "x86-tsc" else None
        source = f"probe:{self.recipe.place}"
        now = time.time_ns()

        def one(level: str, offset: int, ratio: int | None = None) -> Reading:
            # (the number of bits after the ratio's point is a variable of kvm, not of a vCPU: debugfs has it)
            return Reading(source, level, offset, offset, at, now, cost_ns, ratio=ratio)

        if "l1" in fields:
            out = [one(L1, signed(fields["l1"]), fields.get("l1_ratio"))]
            if fields["off"] != fields["l1"]:
                out.append(one(ACTIVE, signed(fields["off"]), fields.get("ratio")))
            return out
        out = [one(L1, -signed(fields["voff"]))]
        if "poff" in fields:
            out.append(one(PHYSICAL, -signed(fields["poff"])))
        return out


def change_filter(recipe: Recipe, known: dict[int, int]) -> str:
    """A filter of the event that lets through what is not ``known``: {thread: value of the key}."""
    parts = [f"(common_pid == {tid} && {recipe.key} == {value})" for tid, value in sorted(known.items())]
    text = f"!({' || '.join(parts)})" if parts else ""
    if len(text) > _FILTER_LIMIT:
        # too many threads: by value alone; a thread that takes another's value is not seen then
        values = sorted(set(known.values()))
        text = " && ".join(f"{recipe.key} != {value}" for value in values)
    if recipe.skip_zero:
        text = f"{recipe.key} != 0" + (f" && {text}" if text else "")
    return text if len(text) <= _FILTER_LIMIT else ""


def open_probe(
    stack: ExitStack, root: Path, instance: Instance, recipes: Sequence[Recipe] | None = None
) -> tuple[Probe | None, Missing | None]:
    """The first recipe that this kernel takes, removed when ``stack`` closes; or why there is none.

    ``stack`` must have been entered after the instance: an event that is enabled cannot be removed.
    """
    if not os.access(root / "dynamic_events", os.W_OK):
        return None, Missing("probe", "this kernel has no dynamic events (CONFIG_DYNAMIC_EVENTS)")
    reasons: dict[str, list[str]] = {}
    for recipe in RECIPES.get(libc.MACHINE, ()) if recipes is None else recipes:
        try:
            group, _ = stack.enter_context(dynamic_event(root, NAME, recipe.kind, f"{recipe.place} {recipe.arguments}"))
        except OSError as err:
            reasons.setdefault(last_error(root) or err.strerror or "", []).append(f"{recipe.kind} {recipe.place}")
            continue
        probe = Probe(instance, group, recipe)
        stack.callback(_disable, probe)
        return probe, None
    text = "; ".join(f"{', '.join(places)}: {reason}" for reason, places in reasons.items())
    return None, Missing("probe", f"this kernel takes no dynamic event that shows the offset ({text})")


def _disable(probe: Probe) -> None:
    with suppress(OSError):
        probe.disable()


def read_once(probe: Probe, tids: set[int], seconds: float = 0.2) -> dict[int, list[Reading]]:
    """What the events said last of each thread, after ``seconds`` or once all of ``tids`` were seen."""
    begun = time.monotonic()
    with watching(probe) as out:
        while time.monotonic() - begun < seconds and not tids <= set(out):
            time.sleep(0.01)
            _take(probe, out, begun)
    return out


@contextmanager
def watching(probe: Probe) -> Iterator[dict[int, list[Reading]]]:
    """Record events meanwhile; what they said last of each thread is in the dict when it ends."""
    begun = time.monotonic()
    out: dict[int, list[Reading]] = {}
    probe.enable()
    try:
        yield out
    finally:
        probe.disable()
    _take(probe, out, begun)


def _take(probe: Probe, out: dict[int, list[Reading]], begun: float) -> None:
    for stamp, name, fields in probe.instance.read()[0]:
        if name == NAME:
            tid = fields["common_pid"]
            probe.known[tid] = fields[probe.recipe.key]
            out[tid] = probe.readings(stamp, fields, int((time.monotonic() - begun) * 1e9))
