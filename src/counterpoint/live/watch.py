"""Each change of an offset as it happens: writes that KVM logs, entries that a probe sees, what debugfs shows.

Writes and probes have the exact time of the change in the trace's clock; debugfs is asked again and again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from counterpoint.errors import UsageError
from counterpoint.live import debugfs, probes, tracefs
from counterpoint.live.missing import Missing
from counterpoint.live.model import L1, Reading
from counterpoint.live.offsets import Request, debugfs_reading, readings_of, vm_of_thread
from counterpoint.live.vmm import signed
from counterpoint.live.vms import Vcpu, Vm, find_vms

WRITES = "kvm_write_tsc_offset"
POLL = 0.1
"""Seconds between two polls."""
RESCAN = 1.0
"""Seconds between two looks for new VMs."""


@dataclass(frozen=True)
class Change:
    """A source says that a vCPU's offset is now that of ``reading`` (before: ``before``, None: not known).

    ``what``: "write" (KVM logged it), "entry" (a probe), "seen" (debugfs), "disagree" (a write was logged, but
    ``other``, read after it, says what cannot hold beside it), "vm" and "gone" (a VM began, ended: no reading), "lost"
    (events were overwritten: changes may be missing). ``vm`` and ``vcpu_number`` are None where a thread's VM is not
    known (any more).
    """

    what: str
    vm: Vm | None
    vcpu_number: int | None
    tid: int | None
    reading: Reading | None = None
    before: int | None = None
    other: Reading | None = None


class Watch:
    """Sources of changes; ``poll`` returns what came since. Use as a context manager."""

    def __init__(self, request: Request) -> None:
        """UsageError where tracefs is missing: nothing tells of changes then."""
        self._request = request
        self._root = tracefs.require_root()
        self._stack = ExitStack()
        self._probe: probes.Probe | None = None
        self._seen: dict[tuple[int, int, int], tuple[int, str]] = {}
        self._scanned = 0.0
        self.vms: list[Vm] = []
        self.missing: list[Missing] = []

    def __enter__(self) -> Watch:
        """Make the instance, and the probe where this kernel takes one."""
        self._stack.__enter__()
        try:
            self._writes = self._stack.enter_context(tracefs.instance(self._root))
            try:
                self._writes.enable("kvm", WRITES)
            except OSError:
                self.missing.append(
                    Missing(WRITES, "this kernel's kvm has no such event (x86 only, or kvm is not loaded)")
                )
            if self._request.probes:
                # entries are many: in a buffer of their own they overwrite no write
                entries = self._stack.enter_context(tracefs.instance(self._root, 1024))
                self._probe, missing = probes.open_probe(self._stack, self._root, entries)
                if missing:
                    self.missing.append(missing)
            if self._probe:
                self._probe.enable()
            why = debugfs.absence()
            if why:
                self.missing.append(Missing("debugfs", why))
            if {m.source for m in self.missing} >= {WRITES, "debugfs"} and self._probe is None:
                raise UsageError(
                    "nothing tells of changes here: " + "; ".join(f"{m.source}: {m.reason}" for m in self.missing)
                )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove both."""
        self._stack.close()

    def poll(self) -> list[Change]:
        """What changed since the last call."""
        out: list[Change] = []
        if time.monotonic() - self._scanned >= RESCAN:
            out += self._rescan()
        events, lost = self._writes.read()
        if lost:
            out.append(Change("lost", None, None, None))
        if any(vm_of_thread(self.vms, fields["common_pid"]) is None for _, _, fields in events):
            out += self._rescan()
        written: dict[tuple[int, int | None], Change] = {}
        for stamp, _, fields in events:
            change = self._write(stamp, fields)
            out.append(change)
            if change.vm is not None:
                written[change.vm.pid, change.vcpu_number] = change
        if self._probe is not None:
            out += self._entries(self._probe)
        for change in written.values():
            out += self._hold(change)
        out += self._debugfs()
        return [change for change in out if self._wanted(change)]

    def _wanted(self, change: Change) -> bool:
        return not self._request.pids or change.vm is None or change.vm.pid in self._request.pids

    def _rescan(self) -> list[Change]:
        self._scanned = time.monotonic()
        now, _ = find_vms(self._request.pids or None)
        before = {(vm.pid, vm.descriptor): vm for vm in self.vms}
        after = {(vm.pid, vm.descriptor): vm for vm in now}
        out = [Change("vm", vm, None, None) for key, vm in after.items() if key not in before]
        out += [Change("gone", vm, None, None) for key, vm in before.items() if key not in after]
        self._seen = {key: value for key, value in self._seen.items() if key[:2] in after}
        self.vms = now
        return out

    def _write(self, stamp: int, fields: dict[str, int]) -> Change:
        tid, number = fields["common_pid"], fields["vcpu_id"]
        vm = vm_of_thread(self.vms, tid)
        value = signed(fields["next_tsc_offset"])
        at = stamp if self._writes.clock == "x86-tsc" else None
        reading = Reading(WRITES, L1, value, value, at, time.time_ns())
        return Change("write", vm, number, tid, reading, signed(fields["previous_tsc_offset"]))

    def _hold(self, change: Change) -> Iterator[Change]:
        """Hold the last write of a vCPU against what can be read after it."""
        assert change.vm is not None and change.reading is not None
        vcpu = next((each for each in change.vm.vcpus if each.number == change.vcpu_number), None)
        if vcpu is None or not self._wanted(change):
            return
        for other in readings_of(change.vm, vcpu, self._request):
            if other.level == L1 and not other.low <= change.reading.low <= other.high:
                yield replace(change, what="disagree", before=None, other=other)

    def _entries(self, probe: probes.Probe) -> list[Change]:
        # (overwritten entries are no loss: the last of each thread says what holds)
        events, _ = probe.instance.read()
        out = [change for stamp, _, fields in events for change in self._entry(probe, stamp, fields)]
        if out:
            probe.only_changes()
        return out

    def _entry(self, probe: probes.Probe, stamp: int, fields: dict[str, int]) -> Iterator[Change]:
        tid = fields["common_pid"]
        before = probe.known.get(tid)
        value = fields[probe.recipe.key]
        if before == value:
            return
        probe.known[tid] = value
        vm = vm_of_thread(self.vms, tid)
        number = fields.get("vcpu_id")
        if number is None and vm is not None:
            number = next((vcpu.number for vcpu in vm.vcpus if vcpu.tid == tid), None)
        reading = probe.readings(stamp, fields)[0]
        # arm64 logs CNTVOFF, whose negative is the offset
        sign = 1 if "l1" in fields else -1
        yield Change("entry", vm, number, tid, reading, None if before is None else sign * signed(before))

    def _debugfs(self) -> Iterator[Change]:
        for vm in self.vms:
            if vm.folder is None:
                continue
            for vcpu in vm.vcpus:
                yield from self._look(vm, vcpu)

    def _look(self, vm: Vm, vcpu: Vcpu) -> Iterator[Change]:
        assert vm.folder is not None
        begun = time.monotonic_ns()
        active = debugfs.read_active(vm.folder, vcpu.number, tries=1)
        if active is None:
            return
        key = (vm.pid, vm.descriptor, vcpu.number)
        reading = debugfs_reading(active, time.monotonic_ns() - begun)
        before = self._seen.get(key)
        if before == (reading.low, reading.level):
            return
        self._seen[key] = reading.low, reading.level
        if active.nested:
            reading = replace(reading, note="guest_mode is 1: this may be L2's offset")
        yield Change("seen", vm, vcpu.number, vcpu.tid, reading, before[0] if before else None)
