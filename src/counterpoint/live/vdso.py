"""What the kernel itself turns the counter into CLOCK_MONOTONIC_RAW by: ns = (counter * mult + base) >> shift.

From the data page that the kernel shares with every process, [vvar] (include/vdso/datapage.h). Its layout is nobody's
promise: each way of reading it is tried, and believed only if it says what the clock said between two readings of the
counter. ``base`` is the K of ``--k``: it does not change while the machine runs.
"""

from __future__ import annotations

import ctypes
import re
import struct
import time
from pathlib import Path

from counterpoint.errors import UsageError
from counterpoint.live import counter

_PAGE = 4096
_BRACKETS = 20
_RAW = 4
"""CLOCK_MONOTONIC_RAW, the index of its base."""
_NS = 10**9


def raw_line() -> tuple[int, int, int] | None:
    """(mult, shift, base); None where no reading of the page bears it out."""
    try:
        rate = counter.frequency()
        brackets = _brackets()
    except UsageError:
        return None
    # (the kernel may be writing while it is read)
    for _ in range(5):
        for line in candidates(_page(), (rate.low_hz + rate.high_hz) // 2):
            if all(holds(line, bracket) for bracket in brackets):
                return line
    return None


def candidates(page: bytes, hz: int) -> list[tuple[int, int, int]]:
    """All that the page may say, for a counter of about ``hz``."""
    out = []
    for at in range(24, len(page) - 8 - 16 * (_RAW + 1), 4):
        mult, shift = struct.unpack_from("=II", page, at)
        # one count lasts mult / 2**shift ns: within 1 in 500, as NTP may slew other clocks of the page
        if not 1 <= shift <= 32 or not mult or abs(mult * hz - (_NS << shift)) * 500 > _NS << shift:
            continue
        seconds, fraction = struct.unpack_from("=QQ", page, at + 8 + 16 * _RAW)
        for before in (16, 24):
            # cycle_last, mask, mult; or with max_cycles in between (CONFIG_GENERIC_VDSO_OVERFLOW_PROTECT)
            (last,) = struct.unpack_from("=Q", page, at - before)
            out.append((mult, shift, (seconds * _NS << shift) + fraction - last * mult))
    return out


def holds(line: tuple[int, int, int], bracket: tuple[int, int, int]) -> bool:
    """Whether a clock's reading between two of the counter can be by ``line``."""
    mult, shift, base = line
    before, ns, after = bracket
    return before * mult + base >> shift <= ns <= after * mult + base >> shift


def _brackets() -> list[tuple[int, int, int]]:
    read = counter.reader()
    return [(read(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()) for _ in range(_BRACKETS)]


def _page() -> bytes:
    """The first page of [vvar], which holds the clocks; b"" where there is none."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^([0-9a-f]+)-[0-9a-f]+ r.* \[vvar\]$", maps, re.MULTILINE)
    # (through /proc/self/mem it cannot be read)
    return ctypes.string_at(int(match[1], 16), _PAGE) if match else b""
