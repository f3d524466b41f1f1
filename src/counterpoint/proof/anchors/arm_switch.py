"""arm64's world switch: what a host's CPU writes between ``kvm_entry`` and ``kvm_exit`` it writes outside of the guest.

Its interrupts are off from before ``kvm_entry`` until the guest was left, and on before ``kvm_exit``
(arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_run): an ``irq_handler_entry`` in between comes after the guest's run. On VHE
hosts that have FEAT_ECV's CNTPOFF both __activate_traps and __deactivate_traps (arch/arm64/kvm/hyp/vhe/switch.c) call
get_timer_map: the first ``kvm_get_timer_map`` after ``kvm_entry`` comes before the guest's run, the second after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from counterpoint.clocks.counter import I64, relative, to_signed
from counterpoint.proof.anchors.model import Anchor, Found, Side
from counterpoint.proof.anchors.unseen import unbroken
from counterpoint.proof.feasible import Interval, IntervalSet, TooManyError, narrow
from counterpoint.proof.windows import RunWindows
from counterpoint.traces.recording import Recording

KIND = "world switch"

_HARDIRQ, _SOFTIRQ, _NMI = 0x08, 0x10, 0x40  # of common_flags (include/linux/trace_events.h)
_MAP, _IRQ = "kvm_get_timer_map", "irq_handler_entry"

_CODE = {
    _MAP: "KVM writes a kvm_get_timer_map after kvm_entry before the guest runs, and one after that before kvm_exit",
    _IRQ: "interrupts of the host are off from kvm_entry until the guest has been left",
}


@dataclass(frozen=True, slots=True)
class _Inner:
    """Run windows within the thread's own, and the host rows i64[k] that bound them now (those of before: -1)."""

    windows: RunWindows
    first_row: I64
    last_row: I64


def find(host: Recording, guest: Recording, windows: RunWindows, rows: I64, allowed: Interval) -> Found | None:
    """The world switch's anchors of the guest's ``rows`` i64[n], which lie in ``windows``; None: the host shows none.

    ``allowed``: the offsets that the windows leave.
    """
    inner = _inner(host, windows)
    if inner is None or not len(rows):
        return None
    shift = guest.base - windows.base
    when = relative(guest.stamp[rows], guest.base)
    order = np.argsort(when, kind="stable")
    rows, when = rows[order], when[order]
    # offsets are modulo 2**64
    shift = allowed[0] - to_signed(allowed[0] - shift)
    searched = IntervalSet.of(allowed[0] - shift, allowed[1] - shift)
    both = _left(inner.windows, when, searched)
    if both is None:
        return None
    count = int((inner.first_row >= 0).sum() + (inner.last_row >= 0).sum())
    if len(both):
        return Found(
            KIND,
            _anchor(Side.LOW, int(both.lo[0]), inner, host, guest, rows, when, shift),
            _anchor(Side.HIGH, int(both.hi[-1]), inner, host, guest, rows, when, shift),
            count,
        )
    # nothing is left: what either side alone leaves
    sides = replace(inner.windows, lo=windows.lo), replace(inner.windows, hi=windows.hi)
    low, high = (_left(side, when, searched) for side in sides)
    ends = int(low.lo[0]) + shift if low else allowed[1] + 1, int(high.hi[-1]) + shift if high else allowed[0] - 1
    first, second = (Anchor(KIND, side, end, _CODE[_MAP]) for side, end in zip(Side, ends, strict=True))
    return Found(KIND, first, second, count, at_odds=True)


def _left(windows: RunWindows, when: I64, searched: IntervalSet) -> IntervalSet | None:
    """The offsets that ``windows`` leave of those searched; None: too many to tell."""
    lo, hi = windows.allowed()
    try:
        return narrow(searched, when, hi[:-1], lo[1:])
    except TooManyError:
        return None


def _inner(host: Recording, windows: RunWindows) -> _Inner | None:
    """The windows cut to what the world switch leaves; None where it was not recorded."""
    leave = host.format_named("kvm", "kvm_exit")
    if leave is None or leave.field("esr_ec") is None:
        return None
    base = windows.base
    at = np.flatnonzero(windows.is_run & (windows.entry_row >= 0) & (windows.exit_row >= 0))
    entry, left = windows.entry_row[at], windows.exit_row[at]
    # pieces, and windows in another clock, are no whole runs
    whole = relative(host.stamp[entry], base) == windows.lo[at]
    whole &= (relative(host.stamp[left], base) == windows.hi[at]) & unbroken(host, entry, left)
    at, entry, left = at[whole], entry[whole], left[whole]
    if not len(at):
        return None
    first, last = np.full(len(at), -1, np.int64), np.full(len(at), -1, np.int64)
    handled = _rows(host, windows.tid, "irq", _IRQ, _HARDIRQ | _NMI, _HARDIRQ)
    begin = np.searchsorted(handled, entry)
    some = np.searchsorted(handled, left) > begin
    last[some] = handled[begin[some]]
    mapped = _rows(host, windows.tid, "kvm", _MAP, _HARDIRQ | _SOFTIRQ | _NMI, 0)
    begin = np.searchsorted(mapped, entry)
    if (np.searchsorted(mapped, left) - begin == 2).all():
        first, second = mapped[begin], mapped[begin + 1]
        last = np.where(last < 0, second, np.minimum(last, second))
    if (first < 0).all() and (last < 0).all():
        return None
    lo, hi = windows.lo.copy(), windows.hi.copy()
    # stamps in ns are cut off, so that what lies this close may seem to lie the other way round
    cut = 1 if host.unit == "ns" else 0
    begins, ends = (relative(host.stamp[np.maximum(row, 0)], base) for row in (first, last))
    lo[at] = np.where(first >= 0, np.maximum(begins - cut, lo[at]), lo[at])
    hi[at] = np.where(last >= 0, np.minimum(ends + cut, hi[at]), hi[at])
    of_first, of_last = np.full(len(lo), -1, np.int64), np.full(len(lo), -1, np.int64)
    of_first[at], of_last[at] = first, last
    return _Inner(replace(windows, lo=lo, hi=hi), of_first, of_last)


def _rows(host: Recording, tid: int, system: str, name: str, mask: int, flags: int) -> I64:
    """The rows of a thread's events of one name whose context is that of ``flags``."""
    event = host.format_named(system, name)
    rows = host.rows(event)
    if event is None or event.field("common_flags") is None:
        return rows[:0]
    rows = rows[host.pid[rows] == tid]
    context = host.column(event, "common_flags", rows).astype(np.int64)
    chosen: I64 = rows[(context & mask) == flags]
    return chosen


def _anchor(
    side: Side, bound: int, inner: _Inner, host: Recording, guest: Recording, rows: I64, when: I64, shift: int
) -> Anchor | None:
    """The anchor at one end of the offsets that are left: an event that the next offset puts outside."""
    windows = inner.windows
    at = when - (bound - 1 if side is Side.LOW else bound + 1)
    span = np.searchsorted(windows.lo, at, side="right") - 1
    # past the end of one window, before the beginning of the next
    outside = at > windows.hi[span]
    bounding = inner.last_row[span] if side is Side.LOW else inner.first_row[np.minimum(span + 1, len(windows.lo) - 1)]
    found = np.flatnonzero(outside & (bounding >= 0))
    if not len(found):
        return None
    place = int(found[0])
    guest_row, host_row = int(rows[place]), int(bounding[place])
    return Anchor(
        KIND,
        side,
        bound + shift,
        _CODE[host.event_name(int(host.event_id[host_row]))],
        guest_row,
        int(guest.stamp[guest_row]),
        host_row,
        int(host.stamp[host_row]),
    )
