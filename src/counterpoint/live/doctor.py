"""What this machine can do for Counterpoint, line by line, and what mends each lack. Nothing is changed."""

from __future__ import annotations

import os
import platform
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from counterpoint.errors import UsageError
from counterpoint.live import counter, debugfs, libc, ptp, tracefs, vms

GOOD, LACKING, INFO = "ok", "lacking", "info"


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is "ok", "lacking" (``cure`` says what to do) or "info" (nothing that is needed)."""

    what: str
    state: str
    text: str
    cure: str = ""


def examine() -> list[Finding]:
    """All findings, in the order of what they build on."""
    out: list[Finding] = []
    for check in _CHECKS:
        out += check()
    return out


def _read(path: str | Path) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return None


def _system() -> list[Finding]:
    known = libc.MACHINE in ("x86_64", "aarch64")
    return [
        Finding(
            "machine", GOOD if known else LACKING, f"{platform.system()} {platform.release()} on {libc.MACHINE}",
            "" if known else "offsets are read on x86_64 and aarch64 only",
        ),
        Finding("root", GOOD, "yes") if os.geteuid() == 0 else Finding("root", LACKING, "no", "sudo counterpoint ..."),
    ]  # fmt: skip


def _kvm() -> list[Finding]:
    if not os.path.exists("/dev/kvm"):
        module = {"x86_64": "modprobe kvm_intel, or kvm_amd"}.get(libc.MACHINE, "boot a kernel with CONFIG_KVM, at EL2")
        return [Finding("kvm", LACKING, "there is no /dev/kvm: this is no KVM host", module)]
    return [Finding("kvm", GOOD, "/dev/kvm is there")]


def _counter() -> list[Finding]:
    out = []
    try:
        counter.reader()
        rate, bracket = counter.frequency(), counter.least_bracket()
        out.append(Finding(
            "counter", GOOD,
            f"{'TSC' if libc.MACHINE == 'x86_64' else 'CNTVCT_EL0'}, {_hz(rate)} ({rate.source});"
            f" two readings in a row are {bracket} ticks apart",
        ))  # fmt: skip
    except UsageError as err:
        out.append(Finding("counter", LACKING, str(err), "allow executable anonymous memory to this process"))
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source is None:
        out.append(Finding("clocksource", INFO, "unknown"))
    elif libc.MACHINE == "x86_64" and source not in ("tsc", "kvm-clock"):
        cure = "boot with clocksource=tsc tsc=reliable if the TSC is sound; dmesg says why it was given up"
        out.append(Finding("clocksource", LACKING, f"{source}: the kernel does not trust the TSC", cure))
    else:
        out.append(Finding("clocksource", GOOD, source))
    if libc.MACHINE == "x86_64":
        flags = set((re.search(r"^flags\s*:(.*)$", _read("/proc/cpuinfo") or "", re.MULTILINE) or ["", ""])[1].split())
        lacks = [name for name in ("constant_tsc", "nonstop_tsc") if name not in flags]
        state = INFO if lacks else GOOD
        out.append(Finding("tsc", state, f"without {', '.join(lacks)}" if lacks else "constant_tsc, nonstop_tsc"))
    return out


def _hz(rate: counter.Frequency) -> str:
    if rate.low_hz == rate.high_hz:
        return f"{rate.low_hz} Hz"
    return f"{rate.low_hz}..{rate.high_hz} Hz"


def _tracefs() -> list[Finding]:
    root = tracefs.find_root()
    if root is None:
        try:
            tracefs.require_root()
        except UsageError as err:
            cure = str(err).partition(": ")[2]
            return [Finding("tracefs", LACKING, str(err).partition(": ")[0], cure)]
    assert root is not None
    out = [Finding("tracefs", GOOD, str(root))]
    clocks = (_read(root / "trace_clock") or "").replace("[", "").replace("]", "").split()
    exact = "x86-tsc" if libc.MACHINE == "x86_64" else "mono_raw"
    out.append(
        Finding("trace clock", GOOD, f"{exact} (of {', '.join(clocks)})")
        if exact in clocks
        else Finding("trace clock", LACKING, f"no {exact} (there are {', '.join(clocks)})", "boot a newer kernel")
    )
    events = root / "events" / "kvm"
    names = {"x86_64": ("kvm_entry", "kvm_exit", "kvm_write_tsc_offset")}.get(libc.MACHINE, ("kvm_entry", "kvm_exit"))
    lacks = [name for name in names if not (events / name).is_dir()]
    if lacks:
        out.append(Finding("kvm events", LACKING, f"no {', '.join(lacks)}", "modprobe kvm (with its vendor's module)"))
    else:
        out.append(Finding("kvm events", GOOD, ", ".join(names)))
    out += _dynamic(root)
    left = tracefs.leftovers(root)
    if left:
        out += [
            Finding("left behind", LACKING, f"{x.kind} {x.name} of a process that was killed", x.cure) for x in left
        ]
    else:
        out.append(Finding("left behind", GOOD, "nothing of ours"))
    return out


def _dynamic(root: Path) -> list[Finding]:
    out = []
    btf = os.path.exists("/sys/kernel/btf/vmlinux")
    out.append(
        Finding("BTF", GOOD if btf else INFO, "yes" if btf else "no (CONFIG_DEBUG_INFO_BTF): no fields in probes")
    )
    readme = _read(root / "README") or ""
    # what this kernel takes is what its own help says (tracing_readme_fops in kernel/trace/trace.c)
    kinds = [
        name
        for name, pattern in (
            ("kprobe", r"place \(kretprobe\)|place \(kprobe\)"), ("fprobe", r"^\s*f\[:\[<group>"),
            ("tracepoint", r"^\s*t\[:\[<group>"), ("uprobe", r"place \(uprobe\)"),
        )
        if re.search(pattern, readme, re.MULTILINE)
    ]  # fmt: skip
    fields = "->field" in readme
    text = f"{', '.join(kinds) or 'none'}{', BTF fields' if fields else ''}"
    useful = bool(fields and {"kprobe", "fprobe", "tracepoint"} & set(kinds))
    note = "" if useful else "; none that could show an offset (CONFIG_KPROBE_EVENTS, CONFIG_FPROBE_EVENTS)"
    if not useful and libc.MACHINE == "aarch64" and "kprobe" in kinds:
        # __kvm_timer_set_cntvoff has it in a register (``probes``)
        useful, note = True, "; by a register: CNTVOFF, if this host has VHE"
    out.append(Finding("dynamic events", GOOD if useful else INFO, text + note))
    return out


def _debugfs() -> list[Finding]:
    why = debugfs.absence()
    if why is None:
        return [Finding("debugfs", GOOD, str(debugfs.ROOT))]
    what, _, cure = why.partition(": ")
    return [Finding("debugfs", LACKING, what, cure)]


def _security() -> list[Finding]:
    out = []
    lockdown = _read("/sys/kernel/security/lockdown")
    chosen = (re.search(r"\[(\w+)\]", lockdown or "") or ["", "none"])[1]
    if lockdown is None:
        out.append(Finding("lockdown", INFO, "not shown (securityfs is not mounted, or the kernel has none)"))
    elif chosen == "confidentiality":
        cure = "boot with lockdown=integrity or without it"
        out.append(Finding("lockdown", LACKING, "confidentiality: tracefs and kprobes are closed", cure))
    else:
        out.append(Finding("lockdown", GOOD, chosen))
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    if scope == "3":
        out.append(
            Finding("ptrace", LACKING, "forbidden until reboot (ptrace_scope 3)", "reboot with ptrace_scope below 3")
        )
    else:
        text = "not restricted" if scope in (None, "0") else f"ptrace_scope {scope}: root may"
        out.append(Finding("ptrace", GOOD, text))
    return out


def _links() -> list[Finding]:
    out = []
    host, guest = os.path.exists("/dev/vhost-vsock"), os.path.exists("/dev/vsock")
    if host or guest:
        out.append(
            Finding("vsock", GOOD, ", ".join(n for n, is_there in (("host", host), ("socket", guest)) if is_there))
        )
    else:
        out.append(Finding("vsock", INFO, "none (modprobe vhost_vsock); only needed to record guests over it"))
    found = ptp.devices()
    out.append(Finding("ptp_kvm", INFO, ", ".join(found) or "none: this machine is no KVM guest, or: modprobe ptp_kvm"))
    path = shutil.which("trace-cmd")
    out.append(Finding("trace-cmd", INFO, path or "not installed (not needed)"))
    return out


def _vms() -> list[Finding]:
    found, notes = vms.find_vms()
    out = [
        Finding(
            "VM", INFO,
            f"{vm.label}: {vm.vmm}, process {vm.pid}, {len(vm.vcpus)} vCPUs"
            f" ({sum(vcpu.tid is not None for vcpu in vm.vcpus)} with a known thread)",
        )
        for vm in found
    ]  # fmt: skip
    out += [Finding("VM", LACKING, note.partition(": ")[0], note.partition(": ")[2]) for note in notes]
    return out or [Finding("VM", INFO, "none runs here")]


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _system,
    _kvm,
    _counter,
    _tracefs,
    _debugfs,
    _security,
    _links,
    _vms,
)
