"""x86: values of the guest's TSC that KVM itself computed and wrote into its events. Only for TSC stamps on both sides.

``kvm_wait_lapic_expire`` (arch/x86/kvm/lapic.c, __kvm_wait_lapic_expire): ``delta`` is the guest's TSC minus the
deadline that it had written last, read on the way into the guest, after that entry's ``kvm_entry``; since 5.3 the
event itself follows the exit (x86.c, vcpu_enter_guest). ``kvm_pvclock_update`` (kvm_guest_time_update):
``tsc_timestamp`` is the guest's TSC at a moment before the event, in masterclock mode long before, else after the
thread's last exit.
"""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.proof.anchors.model import Anchor, Found, Side
from counterpoint.proof.anchors.unseen import unlost
from counterpoint.proof.feasible import Interval
from counterpoint.traces.recording import Recording

LAPIC, PVCLOCK = "kvm_wait_lapic_expire", "kvm_pvclock_update"
MSR_TSC_DEADLINE = 0x6E0

_LAPIC_CODE = (
    "KVM reads the guest's TSC after kvm_entry and before this event, and measures from the deadline that the guest"
    " wrote last before that entry"
)
_PVCLOCK_CODE = "KVM reads the guest's TSC before it writes this event (and, without masterclock, after the last exit)"
_SLOW_PATH = ("kvm_inj_virq", "kvm_vcpu_wakeup", "kvm_userspace_exit", "kvm_eoi", "kvm_pv_eoi", "kvm_page_fault")
_TSC_STABLE = 1  # PVCLOCK_TSC_STABLE_BIT: masterclock


def find(host: Recording, guest: Recording, tid: int, windows: Interval, span: Interval) -> tuple[Found, ...]:
    """The anchors of thread ``tid`` between the host stamps ``span``; none where a side is not stamped by its TSC."""
    if host.clock != "x86-tsc" or guest.clock != "x86-tsc":
        return ()
    kinds = (_lapic(host, tid, windows, span), _pvclock(host, tid, windows, span))
    return tuple(kind for kind in kinds if kind is not None)


class _Thread:
    """The events of one thread that lie in ``span``, by name: rows and stamps (from the host's base), by stamp."""

    def __init__(self, host: Recording, tid: int, span: Interval) -> None:
        self.host, self.tid = host, tid
        self.begin, self.end = span[0] - host.base, span[1] - host.base

    def rows(self, name: str, system: str = "kvm") -> tuple[I64, I64]:
        rows = self.host.rows(self.host.format_named(system, name))
        rows = rows[self.host.pid[rows] == self.tid]
        when = relative(self.host.stamp[rows], self.host.base)
        order = np.lexsort((rows, when))
        return rows[order], when[order]

    def inside(self, when: I64) -> Bools:
        return (when >= self.begin) & (when <= self.end)


def _before(when: I64, at: I64) -> I64:
    """The position of the last of ``when`` below each ``at``; -1: there is none."""
    return np.searchsorted(when, at, side="left") - 1


def _lapic(host: Recording, tid: int, windows: Interval, span: Interval) -> Found | None:
    thread = _Thread(host, tid, span)
    event, written = host.format_named("kvm", LAPIC), host.format_named("kvm", "kvm_msr")
    if event is None or written is None:
        return None
    rows, when = thread.rows(LAPIC)
    entry_rows, entries = thread.rows("kvm_entry")
    _, exits = thread.rows("kvm_exit")
    msr_rows, msr_when = thread.rows("kvm_msr")
    keep = host.column(written, "write", msr_rows) != 0
    keep &= host.column(written, "ecx", msr_rows) == MSR_TSC_DEADLINE
    if written.field("exception") is not None:
        keep &= host.column(written, "exception", msr_rows) == 0
    msr_rows, msr_when = msr_rows[keep], msr_when[keep]
    slow = np.sort(np.concatenate([thread.rows(name)[1] for name in _SLOW_PATH]))
    ok = thread.inside(when)
    rows, when = rows[ok], when[ok]
    if not len(rows) or not len(entries) or not len(msr_rows):
        return None
    entry = _before(entries, when)
    entered = entries[np.maximum(entry, 0)]
    deadline = _before(msr_when, entered)
    left = _before(exits, entered)
    # an entry right after an exit may be the second of one loop, and the reading that of the first
    slowly = _before(slow, entered)
    ok = (entry >= 0) & (deadline >= 0) & (left >= 0) & (slowly >= 0)
    ok &= slow[np.maximum(slowly, 0)] > exits[np.maximum(left, 0)] if len(slow) else False
    ok &= unlost(host, entered, when)
    rows, when, entry, deadline = rows[ok], when[ok], entry[ok], deadline[ok]
    if not len(rows):
        return None
    guest = host.column(written, "data", msr_rows[deadline]).view(np.uint64)
    guest = guest + host.column(event, "delta", rows).astype(np.int64).view(np.uint64)
    low, high = _offsets(guest, host, rows), _offsets(guest, host, entry_rows[entry])
    return _found(LAPIC, _LAPIC_CODE, host, low, rows, high, entry_rows[entry], windows)


def _pvclock(host: Recording, tid: int, windows: Interval, span: Interval) -> Found | None:
    thread = _Thread(host, tid, span)
    event = host.format_named("kvm", PVCLOCK)
    if event is None:
        return None
    rows, when = thread.rows(PVCLOCK)
    rows, when = rows[thread.inside(when)], when[thread.inside(when)]
    exit_rows, exits = thread.rows("kvm_exit")
    if not len(rows):
        return None
    guest = host.column(event, "tsc_timestamp", rows).astype(np.uint64)
    low = _offsets(guest, host, rows)
    left = _before(exits, when)
    fresh = (left >= 0) & (host.column(event, "flags", rows) & _TSC_STABLE == 0)
    fresh &= unlost(host, exits[np.maximum(left, 0)] if len(exits) else when, when)
    high_rows = exit_rows[left[fresh]]
    high = _offsets(guest[fresh], host, high_rows)
    # in masterclock mode the moment may be of before the epoch: its bound would be of another offset
    return _found(PVCLOCK, _PVCLOCK_CODE, host, low[fresh], rows[fresh], high, high_rows, windows)


def _offsets(guest: U64, host: Recording, rows: I64) -> I64:
    """Guest TSC minus the stamps of the host's ``rows``, signed."""
    return (guest - host.stamp[rows]).view(np.int64)


def _found(
    kind: str, code: str, host: Recording, low: I64, low_rows: I64, high: I64, high_rows: I64, windows: Interval
) -> Found | None:
    """The best of the bounds; a pair that windows exclude is of another deadline, or of another offset's time."""
    near_low, near_high = low <= windows[1], high >= windows[0]
    both = near_low & near_high
    if not len(both):
        return None
    if 2 * int(both.sum()) < len(both):
        # most of them: it is the assumption that does not hold, and that shall be seen
        both = ~both

    def anchor(side: Side, bounds: I64, rows: I64) -> Anchor:
        chosen = np.flatnonzero(both)
        at = chosen[int(bounds[both].argmax() if side is Side.LOW else bounds[both].argmin())]
        return Anchor(
            kind,
            side,
            int(bounds[at]),
            code,
            host_row=int(rows[at]),
            host_stamp=int(host.stamp[rows[at]]),
        )

    return Found(
        kind,
        anchor(Side.LOW, low, low_rows),
        anchor(Side.HIGH, high, high_rows),
        int(both.sum()),
        int((~both).sum()),
    )
