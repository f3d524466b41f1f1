"""What a capture says of the machine that was recorded: CPUs, kernel, counter, clocks, its VMs and their offsets."""

from __future__ import annotations

import os
import platform
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.live import counter, vdso
from counterpoint.live.model import L1, HostOffsets
from counterpoint.live.offsets import Request, gather
from counterpoint.live.report import claim_values, report
from counterpoint.live.vms import Vm

_CPUS = Path("/sys/devices/system/cpu")
_BRACKETS = 50


def machine() -> dict[str, Any]:
    """Names, CPUs and the counter of this machine."""
    uname = os.uname()
    clocksource = _text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    out: dict[str, Any] = {
        "hostname": uname.nodename, "kernel": uname.release, "kernel_version": uname.version,
        "architecture": uname.machine, "clocksource": clocksource,
        "cpu_model": _cpu_model(), "python": platform.python_version(), "cpus": _cpus(),
    }  # fmt: skip
    with suppress(UsageError):
        rate = counter.frequency()
        out["counter"] = {"hz": [rate.low_hz, rate.high_hz], "source": rate.source}
    return out


def clock_line(clock: str) -> dict[str, Any]:
    """What is known of the trace clock as a line of the counter: ns = (counter * mult + base) >> shift.

    With x86-tsc, stamps are the counter itself, and ``mult`` and ``shift`` are perf's.
    """
    out: dict[str, Any] = {"name": clock}
    factor = counter.perf_factor() if clock == "x86-tsc" else None
    line = vdso.raw_line() if clock == "mono_raw" else None
    if factor is not None:
        out.update(mult=factor[0], shift=factor[1], base=0, source="perf's time_mult, time_shift")
    if line is not None:
        out.update(mult=line[0], shift=line[1], base=line[2], source="the vDSO's page")
    return out


def readings() -> dict[str, Any]:
    """One instant by three clocks: CLOCK_REALTIME and CLOCK_MONOTONIC_RAW, each between two readings of the counter."""
    read = counter.reader()
    found: dict[str, Any] = {}
    for name, clock in (("realtime_ns", time.CLOCK_REALTIME), ("mono_raw_ns", time.CLOCK_MONOTONIC_RAW)):
        tries = [(read(), time.clock_gettime_ns(clock), read()) for _ in range(_BRACKETS)]
        before, ns, after = min(tries, key=lambda each: each[2] - each[0])
        found[name] = {"before": before, "ns": ns, "after": after}
    return found


def clock_pair(found: dict[str, Any]) -> dict[str, Any]:
    """The reading of CLOCK_REALTIME as a pair (docs/capture.md), whose bound is the bracket's width."""
    real = found["realtime_ns"]
    width = -(-(real["after"] - real["before"]) * 10**9 // counter.frequency().low_hz)
    return {"counter": real["before"], "realtime_ns": real["ns"], "bound_ns": width, "source": "clock_gettime"}


class VmLook:
    """The VMs of this host and what each source said of their offsets, at the beginning and at the end."""

    def __init__(self, *, vmm: bool, probes: bool) -> None:
        """``vmm``, ``probes``: as of ``offsets.Request``."""
        self._request = Request(vmm=vmm, probes=probes)
        self.found: list[HostOffsets] = []
        self.values: list[dict[str, Any]] = []
        """All that was read, as JSON values, a look each."""
        self.notes: list[str] = []
        self.in_recording = False
        """The recording has a probe of its own, which says when an offset changes."""

    def look(self) -> None:
        """Read all of it once."""
        try:
            found = gather(self._request)
            self.found.append(found)
            self.values.append({key: value for key, value in report(found).items() if key != "schema"})
        except (UsageError, OSError) as err:
            self.notes.append(f"offsets: {err}")

    @property
    def vms(self) -> list[Vm]:
        """Those that were seen, each once."""
        return list({(vm.pid, vm.descriptor): vm for found in self.found for vm in found.vms}.values())

    def pairs(self) -> list[dict[str, Any]]:
        """What KVM_GET_CLOCK said, as clock pairs."""
        return [
            {"counter": clock.host_tsc, "realtime_ns": clock.realtime_ns, "bound_ns": 0, "source": "kvm_get_clock"}
            for found in self.found
            for clock in found.clocks.values()
            if clock.host_tsc is not None and clock.realtime_ns is not None
        ]

    def vm_of(self, name: str, url: str = "") -> Vm | None:
        """The VM that a guest is: that of its ``name`` or process id, or of the CID in its ``url``, or the only one."""
        vms = self.vms
        found = [vm for vm in vms if name in (vm.label, vm.name, str(vm.pid))]
        cid = re.match(r"vsock://(\d+)", url)
        if not found and cid:
            found = [vm for vm in vms if has_cid(command_line(vm.pid), int(cid[1]))]
        if len(found) == 1:
            return found[0]
        return vms[0] if len(vms) == 1 else None

    def claims(self, vm: Vm) -> list[dict[str, Any]]:
        """Each exact offset of an L1 that was read of ``vm``, once.

        Not one that was another one at another look, where the recording says itself which held when.
        """
        out: dict[tuple[int, str, int], dict[str, Any]] = {}
        for found in self.found:
            for each in found.vcpus:
                if (each.vm.pid, each.vm.descriptor) != (vm.pid, vm.descriptor):
                    continue
                for reading in each.readings:
                    if reading.exact and reading.level == L1:
                        key = each.vcpu.number, reading.source, reading.low
                        out.setdefault(key, claim_values(vm, each.vcpu, reading))
        of_source = [key[:2] for key in out]
        return [value for key, value in out.items() if not (self.in_recording and of_source.count(key[:2]) > 1)]

    def threads(self, vm: Vm, cpus: int) -> dict[str, int]:
        """The threads of guest CPUs 0 to ``cpus`` - 1, where vCPU numbers are those of CPUs and all are known."""
        known = {vcpu.number: vcpu.tid for vcpu in vm.vcpus if vcpu.tid is not None}
        # (numbers with gaps are APIC ids: which CPU such a vCPU is only causality tells)
        return {str(n): tid for n, tid in sorted(known.items())} if sorted(known) == list(range(cpus)) else {}


def command_line(pid: int) -> str:
    """A process's arguments, with spaces in between; "" where they cannot be read."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()[: 1 << 20].replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def has_cid(line: str, cid: int) -> bool:
    """Whether a VMM's arguments give its guest this CID: guest-cid=3 (QEMU), cid=3, --cid 3, --vsock 3 (others)."""
    return bool(re.search(rf"(?:^|[\s,-])(?:(?:guest-)?cid[=\s]|-vsock\s){cid}(?:[\s,]|$)", line))


def thread_names() -> dict[int, str]:
    """The names of all threads of this machine."""
    out: dict[int, str] = {}
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with suppress(OSError):
                for tid in os.listdir(f"/proc/{pid}/task"):
                    with suppress(OSError):
                        name = Path(f"/proc/{pid}/task/{tid}/comm").read_bytes()
                        out[int(tid)] = name.decode("utf-8", "replace").rstrip("\n")
    return out


def _text(path: str | Path) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return None


def _cpu_model() -> str | None:
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU part"):
            return value.strip()
    return None


def _cpus() -> list[dict[str, Any]]:
    out = []
    with suppress(OSError):
        numbers = sorted(int(name[3:]) for name in os.listdir(_CPUS) if name[:3] == "cpu" and name[3:].isdigit())
        for number in numbers:
            folder = _CPUS / f"cpu{number}"
            values: dict[str, Any] = {"cpu": number, "online": _text(folder / "online") != "0"}
            for key, name in (("package", "physical_package_id"), ("core", "core_id")):
                text = _text(folder / "topology" / name)
                if text is not None and text.lstrip("-").isdigit():
                    values[key] = int(text)
            siblings = _text(folder / "topology" / "thread_siblings_list")
            if siblings:
                values["siblings"] = siblings
            fastest = _text(folder / "cpufreq" / "cpuinfo_max_freq")
            if fastest and fastest.isdigit():
                values["max_khz"] = int(fastest)
            out.append(values)
    return out
