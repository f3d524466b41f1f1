"""Every vCPU of this host, its offset by each source that works here, side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from counterpoint.errors import UsageError
from counterpoint.live import counter, debugfs, probes, ptp, tracefs, vmm
from counterpoint.live.inject import Injector
from counterpoint.live.missing import Missing
from counterpoint.live.model import ACTIVE, L1, HostOffsets, Reading, VcpuOffsets
from counterpoint.live.vms import Vcpu, Vm, find_vms


@dataclass(frozen=True)
class Request:
    """What is asked for. ``pids``: of these VMMs only. ``vmm``: inject calls. ``brackets``: how many of each kind."""

    pids: Sequence[int] = ()
    vmm: bool = False
    brackets: int = 8
    probes: bool = True


def gather(request: Request) -> HostOffsets:
    """Read all that can be read, once. UsageError where nothing can."""
    vms, notes = find_vms(request.pids or None)
    for pid in request.pids:
        if not any(vm.pid == pid for vm in vms):
            raise UsageError(
                f"process {pid} has no VM{'' if os.path.isdir(f'/proc/{pid}') else ': there is no such process'}"
            )
    out = HostOffsets([VcpuOffsets(vm, vcpu) for vm in vms for vcpu in vm.vcpus], vms, notes=notes)
    if not vms and os.geteuid():
        raise UsageError("no VM can be seen: run as root (other users' descriptors may not be read)")
    root = tracefs.find_root()
    if root is not None:
        out.notes += [
            f"removed the {left.kind} {left.name} of a process that was killed" for left in tracefs.sweep(root)
        ]
    _read(out, request)
    if any(each.conflicts() for each in out.vcpus):
        # the offset may have changed between two sources: what is no such change contradicts again
        for each in out.vcpus:
            each.readings, each.missing = [], []
        out.missing = []
        _read(out, request)
    if vms and not request.vmm:
        out.missing.append(
            Missing("vmm", "off: --vmm asks KVM from inside the VMM; each vCPU stands still for a moment")
        )
    out.pairs, missing = ptp.read_pairs() if ptp.devices() else ([], None)
    if missing:
        out.missing.append(missing)
    if out.vcpus and not any(each.readings for each in out.vcpus):
        reasons = [
            f"{m.source}: {m.reason}" for m in dict.fromkeys([*out.missing, *(m for v in out.vcpus for m in v.missing)])
        ]
        raise UsageError("no source of offsets answers here. " + "; ".join(reasons))
    return out


def _read(out: HostOffsets, request: Request) -> None:
    _from_debugfs(out)
    with ExitStack() as stack:
        probe = _from_probes(out, stack) if request.probes else None
        if request.vmm:
            lacking = [each for each in out.vcpus if _NOT_PASSED in each.missing]
            if probe is None or not lacking:
                _from_vmms(out, request.brackets)
                return
            # the thread of an idle vCPU passes the probe when it is made to do a call
            with probes.watching(probe) as said:
                _from_vmms(out, request.brackets)
            _take_probe(probe, lacking, said)


def _from_debugfs(out: HostOffsets) -> None:
    why = debugfs.absence()
    if why:
        out.missing.append(Missing("debugfs", why))
        return
    for each in out.vcpus:
        _debugfs_of(each)


def _debugfs_of(each: VcpuOffsets) -> None:
    begun = time.monotonic_ns()
    if each.vm.folder is None:
        each.missing.append(Missing("debugfs", "KVM's debugfs has no folder of this VM"))
        return
    active = debugfs.read_active(each.vm.folder, each.vcpu.number)
    if active is None:
        each.missing.append(Missing("debugfs", "this kernel's debugfs does not show the offset"))
        return
    each.readings.append(debugfs_reading(active, time.monotonic_ns() - begun))


def readings_of(vm: Vm, vcpu: Vcpu, request: Request) -> list[Reading]:
    """What debugfs and, where it is asked for, the VMM say of one vCPU now."""
    out = HostOffsets([VcpuOffsets(vm, vcpu)], [vm])
    _from_debugfs(out)
    if request.vmm:
        _from_vmms(out, request.brackets)
    return out.vcpus[0].readings


def debugfs_reading(active: debugfs.Active, cost_ns: int) -> Reading:
    """What debugfs said, as a reading."""
    at: int | None = None
    with suppress(UsageError):
        at = counter.reader()()
    level, note = L1, ""
    if active.nested:
        level, note = ACTIVE, f"guest_mode was 1 in all of {active.reads} readings: this may be L2's offset"
    elif active.reads > 1:
        note = f"guest_mode was 1 in {active.reads - 1} readings before"
    return Reading(
        "debugfs", level, active.offset, active.offset, at, time.time_ns(), cost_ns,
        ratio=active.ratio, frac_bits=active.frac_bits, note=note,
    )  # fmt: skip


_NOT_PASSED = Missing("probe", "the vCPU's thread did not pass the probe while it was on")


def _from_probes(out: HostOffsets, stack: ExitStack) -> probes.Probe | None:
    """Add what a probe says; the probe, there and disabled, until ``stack`` closes."""
    root = tracefs.find_root()
    if root is None:
        out.missing.append(Missing("probe", _no_tracefs()))
        return None
    if not out.vcpus:
        return None
    try:
        probe, missing = _open(stack, root)
    except (UsageError, OSError) as err:
        probe, missing = None, Missing("probe", str(err))
    if probe is None:
        out.missing.append(missing or Missing("probe", "none"))
        return None
    tids = {each.vcpu.tid for each in out.vcpus if each.vcpu.tid is not None}
    for each in out.vcpus:
        each.missing.append(_NOT_PASSED)
    _take_probe(probe, out.vcpus, probes.read_once(probe, tids))
    return probe


def _take_probe(probe: probes.Probe, vcpus: Sequence[VcpuOffsets], said: dict[int, list[Reading]]) -> None:
    for each in vcpus:
        found, note = said.get(each.vcpu.tid or 0), ""
        if found is None and probe.recipe.of_vm:
            other = next((o for o in vcpus if o.vm is each.vm and o.vcpu.tid in said), None)
            if other is not None:
                found, note = said[other.vcpu.tid or 0], f"the whole VM's, by the thread of vCPU {other.vcpu.number}"
        if found is not None:
            each.readings += [replace(reading, note=note) for reading in found]
            each.missing.remove(_NOT_PASSED)


def _open(stack: ExitStack, root: Path) -> tuple[probes.Probe | None, Missing | None]:
    return probes.open_probe(stack, root, stack.enter_context(tracefs.instance(root)))


def _no_tracefs() -> str:
    try:
        tracefs.require_root()
    except UsageError as err:
        return str(err)
    return ""


def _from_vmms(out: HostOffsets, brackets: int) -> None:
    injectors: dict[int, Injector] = {}
    for each in out.vcpus:
        pid = each.vm.pid
        try:
            if pid not in injectors:
                injectors[pid] = Injector(pid)
            injector = injectors[pid]
        except (UsageError, OSError) as err:
            each.missing.append(Missing("vmm", str(err)))
            continue
        readings, missing, clock = vmm.read_vcpu(each.vm, each.vcpu, injector, brackets, scale_of(each))
        each.readings += readings
        each.missing += missing
        if clock is not None:
            out.clocks[each.vm.pid, each.vm.descriptor] = clock


def scale_of(each: VcpuOffsets) -> tuple[int | None, int | None]:
    """The ratio and its bits where debugfs says both; a CPU that does not scale has neither file."""
    for reading in each.readings:
        if reading.ratio is not None and reading.frac_bits is not None and reading.level == L1:
            return reading.ratio, reading.frac_bits
    return None, None


def vm_of_thread(vms: Sequence[Vm], tid: int) -> Vm | None:
    """The VM whose process has this thread; None where that is none or more than one VM."""
    found = [vm for vm in vms if vm.pid == tid or os.path.isdir(f"/proc/{vm.pid}/task/{tid}")]
    return found[0] if len(found) == 1 else None
