"""KVM's debugfs: what is *active* in a vCPU at this moment. While an L1 runs its own guest, that is L2's offset.

/sys/kernel/debug/kvm/PID-FD/vcpuN/ has ``pid``, ``guest_mode``, x86 ``tsc-offset``, ``tsc-scaling-ratio``,
``tsc-scaling-ratio-frac-bits`` (arch/x86/kvm/debugfs.c; the two of scaling only where the CPU scales), and on arm64
kernels that have the RFC of 2021, ``cntvoff``.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/kernel/debug/kvm")

_TRIES = 50


@dataclass(frozen=True)
class Active:
    """One reading: the offset in use, signed ticks (arm64: the negative of CNTVOFF).

    ``nested`` is guest_mode: 1 where the offset may be L2's, 0 where it was 0 before and after, None where it is not
    shown. Between two zeros the vCPU may all the same have been in L2 for a moment.
    """

    offset: int
    ratio: int | None
    frac_bits: int | None
    nested: int | None
    reads: int


def folders() -> dict[tuple[int, int], Path]:
    """The folder of each VM, by (the thread that made it, its descriptor there)."""
    out = {}
    with suppress(OSError):
        for name in os.listdir(ROOT):
            match = re.fullmatch(r"(\d+)-(\d+)", name)
            if match:
                out[int(match[1]), int(match[2])] = ROOT / name
    return out


def absence() -> str | None:
    """Why KVM's debugfs cannot be read, with the cure; None: it can."""
    # (not Path.is_dir, which raises where the folder above may not be entered)
    if os.path.isdir(ROOT):
        return None
    if os.geteuid():
        return "debugfs cannot be read: run as root"
    if not os.path.isdir(ROOT.parent):
        return "this kernel has no debugfs (CONFIG_DEBUG_FS)"
    with suppress(OSError):
        if os.listdir(ROOT.parent):
            return "debugfs has no kvm folder: KVM is not loaded"
    return f"debugfs is not mounted: mount -t debugfs nodev {ROOT.parent}"


def vcpu_numbers(folder: Path) -> list[int]:
    """The vCPUs that a VM's folder has."""
    with suppress(OSError):
        return sorted(int(name[4:]) for name in os.listdir(folder) if re.fullmatch(r"vcpu\d+", name))
    return []


def vcpu_pid(folder: Path, number: int) -> int | None:
    """The thread that runs the vCPU.

    (since Linux 5.19: e36de87d34a7 "KVM: debugfs: expose pid of vcpu threads")
    """
    return _integer(folder / f"vcpu{number}" / "pid")


def read_active(folder: Path, number: int, tries: int = _TRIES) -> Active | None:
    """Read the offset in use, again and again until the vCPU was not in L2 before and after; None: it is not shown."""
    vcpu = folder / f"vcpu{number}"
    ratio, bits = _integer(vcpu / "tsc-scaling-ratio"), _integer(vcpu / "tsc-scaling-ratio-frac-bits")
    found = None
    for reads in range(1, tries + 1):
        before = _integer(vcpu / "guest_mode")
        offset = _integer(vcpu / "tsc-offset")
        if offset is None:
            cntvoff = _integer(vcpu / "cntvoff")
            offset = None if cntvoff is None else -cntvoff
        if offset is None:
            return None
        after = _integer(vcpu / "guest_mode")
        nested = None if before is None or after is None else max(before, after)
        found = Active(offset, ratio, bits, nested, reads)
        if not nested:
            break
    return found


def _integer(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text().strip())
    return None
