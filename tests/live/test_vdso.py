"""The kernel's own line from the counter to CLOCK_MONOTONIC_RAW."""

from __future__ import annotations

import struct
import time

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import counter, vdso
from helpers import need

HZ = 24_000_000
MULT, SHIFT = 699050667, 24
"""arm64 at 24 MHz."""


def page(*, overflow: bool, at: int = 256) -> bytes:
    """A data page as the kernel lays it out: cycle_last, (max_cycles,) mask, mult, shift, bases of clocks."""
    out = bytearray(4096)
    head = struct.pack("=QQQ", 10**12, 5, 1 << 56) if overflow else struct.pack("=QQ", 10**12, 1 << 56)
    out[at - len(head) : at] = head
    struct.pack_into("=II", out, at, MULT, SHIFT)
    struct.pack_into("=QQ", out, at + 8 + 16 * 4, 41666, 777 << SHIFT)
    return bytes(out)


@pytest.mark.parametrize("overflow", [False, True])
def test_the_line_is_among_what_the_page_may_say(overflow):
    base = (41666 * 10**9 << SHIFT) + (777 << SHIFT) - 10**12 * MULT

    found = vdso.candidates(page(overflow=overflow), HZ)

    assert (MULT, SHIFT, base) in found
    ns = 10**12 * MULT + base >> SHIFT
    assert ns == 41666 * 10**9 + 777
    assert vdso.holds((MULT, SHIFT, base), (10**12, ns, 10**12 + 3))
    assert not vdso.holds((MULT, SHIFT, base), (10**12, ns - 1, 10**12 + 3))
    assert not vdso.holds((MULT, SHIFT, base), (10**12, ns + 200, 10**12 + 3))


def test_a_page_that_says_nothing():
    assert vdso.candidates(b"", HZ) == vdso.candidates(bytes(4096), HZ) == []


def test_nothing_is_believed_that_the_clock_does_not_bear_out(monkeypatch):
    monkeypatch.setattr(vdso, "_page", lambda: page(overflow=False))
    monkeypatch.setattr(vdso.counter, "frequency", lambda: counter.Frequency(HZ, HZ, "test"))

    assert vdso.raw_line() is None


def test_of_this_machine():
    try:
        read = counter.reader()
    except UsageError as err:
        need(False, str(err))
    first = vdso.raw_line()
    need(first is not None, "this kernel's page is not understood, or its clock is not the counter")
    time.sleep(0.05)

    assert vdso.raw_line() == first
    for _ in range(100):
        assert vdso.holds(first, (read(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()))
