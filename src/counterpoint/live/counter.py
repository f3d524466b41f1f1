"""The host's counter, read by this process without a compiler: a few instructions in an executable page.

x86: RDTSC between two LFENCEs, as the kernel's rdtsc_ordered (arch/x86/include/asm/tsc.h). arm64: ISB, CNTVCT_EL0, as
its user space reads it; between CNTVCT_EL0 and CNTPCT_EL0 of a KVM host there is no offset.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Callable

from counterpoint.errors import UsageError
from counterpoint.live.libc import MACHINE

MASK = (1 << 64) - 1

_READ = {
    # lfence; rdtsc; lfence; shl rdx, 32; or rax, rdx; ret
    "x86_64": bytes.fromhex("0faee8 0f31 0faee8 48c1e220 4809d0 c3"),
    # isb; mrs x0, cntvct_el0; isb; ret
    "aarch64": struct.pack("<4I", 0xD5033FDF, 0xD53BE040, 0xD5033FDF, 0xD65F03C0),
}
_FREQUENCY = struct.pack("<2I", 0xD53BE000, 0xD65F03C0)
"""arm64: mrs x0, cntfrq_el0; ret."""

_PAGES: list[mmap.mmap] = []
"""Pages of code, kept as long as the process."""

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


def executable(code: bytes, result: Any, *arguments: Any) -> Callable[..., int]:  # noqa: ANN401
    """``code`` as a function of ctypes; OSError where this process may not have executable pages of its own."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "executable page")
    _PAGES.append(page)
    # PYFUNCTYPE keeps the interpreter's lock: no other thread can run between two readings of a bracket
    return ctypes.PYFUNCTYPE(result, *arguments)(address)


@cache
def reader() -> Callable[[], int]:
    """A function that returns the counter, u64. UsageError where it cannot be read here, with the reason."""
    code = _READ.get(MACHINE)
    if code is None:
        raise UsageError(f"the counter of {MACHINE} is not known (x86_64 and aarch64 are)")
    try:
        read: Callable[[], int] = executable(code, ctypes.c_uint64)
    except OSError as err:
        raise UsageError(f"the counter cannot be read: no executable page is allowed here ({err.strerror})") from None
    read()
    return read


def least_bracket(rounds: int = 200) -> int:
    """The least distance in ticks of two readings in a row: no bracket that this process takes is narrower."""
    read = reader()
    return min((-read() + read()) & MASK for _ in range(rounds))


@dataclass(frozen=True)
class Frequency:
    """Counts a second lie in the closed interval [``low_hz``, ``high_hz``], says ``source``."""

    low_hz: int
    high_hz: int
    source: str


@cache
def frequency() -> Frequency:
    """The counter's rate: what the hardware (arm64) or the kernel (x86) says, else measured, with its bound."""
    if MACHINE == "aarch64":
        with contextlib.suppress(OSError):
            hz = executable(_FREQUENCY, ctypes.c_uint64)() & 0xFFFFFFFF
            return Frequency(hz, hz, "CNTFRQ_EL0")
    factor = perf_factor()
    if factor is not None:
        mult, shift = factor
        # mult is rounded to a whole number
        low, high = ((1_000_000_000 << shift + 1) // (2 * mult + way) for way in (1, -1))
        return Frequency(low, high, "perf's time_mult")
    return _measured()


def _measured(seconds: float = 0.05) -> Frequency:
    """Held against CLOCK_MONOTONIC_RAW, which follows the counter by the kernel's own idea of its rate."""
    first = _pair()
    time.sleep(seconds)
    last = _pair()
    ns = last[1] - first[1]
    least, most = last[0] - first[2], last[2] - first[0]
    return Frequency(least * 10**9 // (ns + 1), -(-most * 10**9 // (ns - 1)), "measured against mono_raw")


def _pair(rounds: int = 50) -> tuple[int, int, int]:
    """(counter before, CLOCK_MONOTONIC_RAW in ns, counter after): the narrowest of some."""
    read = reader()
    found = [(read(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()) for _ in range(rounds)]
    return min(found, key=lambda pair: pair[2] - pair[0])


def perf_factor() -> tuple[int, int] | None:
    """(mult, shift) of ns = ticks * mult >> shift: struct perf_event_mmap_page (include/uapi/linux/perf_event.h)."""
    number = _PERF_EVENT_OPEN.get(MACHINE)
    if number is None:
        return None
    attributes = bytearray(128)
    # PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_DUMMY; disabled, exclude_kernel
    struct.pack_into("<IIQ", attributes, 0, 1, len(attributes), 9)
    struct.pack_into("<Q", attributes, 40, 1 | 1 << 5)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    descriptor = libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(buffer),
        ctypes.c_long(0),
        ctypes.c_long(-1),
        ctypes.c_long(-1),
        ctypes.c_long(0),
    )
    if descriptor < 0:
        return None
    try:
        with mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            # bit 3 of the capabilities is cap_user_time
            capabilities, _width, shift, mult = struct.unpack_from("<QHHI", page, 40)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return (mult, shift) if capabilities >> 3 & 1 and mult else None
