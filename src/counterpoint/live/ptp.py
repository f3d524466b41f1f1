"""Inside a guest: ptp_kvm's pairs of the host's CLOCK_REALTIME and this machine's counter, of one instant.

drivers/ptp/ptp_kvm_common.c; struct ptp_sys_offset_precise in include/uapi/linux/ptp_clock.h. Refused by hosts without
a master clock.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from counterpoint.live import counter
from counterpoint.live.missing import Missing

CLASS = Path("/sys/class/ptp")
_NAME = "KVM virtual PTP"
_PRECISE = struct.Struct("<qIIqIIqII16x")
PTP_SYS_OFFSET_PRECISE = 3 << 30 | _PRECISE.size << 16 | ord("=") << 8 | 8


@dataclass(frozen=True)
class HostPair:
    """At one instant the host's CLOCK_REALTIME was ``host_realtime_ns``, and this machine's own ``realtime_ns``.

    Its counter was between ``before`` and ``after`` then.
    """

    device: str
    host_realtime_ns: int
    realtime_ns: int
    before: int
    after: int


def devices() -> list[str]:
    """The devices of KVM, as /dev/ptpN."""
    out = []
    with suppress(OSError):
        for name in sorted(os.listdir(CLASS)):
            with suppress(OSError):
                if re.fullmatch(r"ptp\d+", name) and (CLASS / name / "clock_name").read_text().strip() == _NAME:
                    out.append(f"/dev/{name}")
    return out


def decode(device: str, content: bytes, before: int, after: int) -> HostPair:
    """Read a struct ptp_sys_offset_precise."""
    seconds, ns, _, own_seconds, own_ns, *_ = _PRECISE.unpack(content)
    return HostPair(device, seconds * 10**9 + ns, own_seconds * 10**9 + own_ns, before, after)


def read_pairs(rounds: int = 20) -> tuple[list[HostPair], Missing | None]:
    """The narrowest pair of each device; and why there is none."""
    found = devices()
    if not found:
        return [], Missing("ptp_kvm", "no such device here: this machine is no KVM guest, or: modprobe ptp_kvm")
    out: list[HostPair] = []
    read = counter.reader()
    for device in found:
        try:
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            return out, Missing("ptp_kvm", f"{device}: {err.strerror}")
        try:
            pairs = []
            for _ in range(rounds):
                buffer = bytearray(_PRECISE.size)
                before = read()
                fcntl.ioctl(descriptor, PTP_SYS_OFFSET_PRECISE, buffer)
                pairs.append(decode(device, bytes(buffer), before, read()))
            out.append(min(pairs, key=lambda pair: pair.after - pair.before))
        except OSError as err:
            return out, Missing("ptp_kvm", f"{device}: {err.strerror} (the host has no master clock)")
        finally:
            os.close(descriptor)
    return out, None
