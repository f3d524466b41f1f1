"""arm64's virtual timer: one compare value, CVAL, that the guest writes and its host reads, as a mark on both clocks.

Guest (kernel/time/hrtimer.c, clockevents.c, drivers/clocksource/arm_arch_timer.c): ``hrtimer_rearm`` names the expiry
Y on CLOCK_MONOTONIC that it is about to program, with interrupts off: delta = Y - ktime_get(), then
CVAL = counter + delta in ticks, both read before that CPU's next event. So by the guest's clock the counter reaches
CVAL at Y, or later by what passed between the two readings, at most from ``hrtimer_rearm`` to the next event.

Host (arch/arm64/kvm/arch_timer.c, kvm_timer_vcpu_put and kvm_timer_blocking): ``kvm_timer_save_state`` shows the CVAL
of a vCPU that blocks, ``kvm_get_timer_map`` follows, then X = ktime_get() + (CVAL - counter) in ns, the counter read
first, then ``hrtimer_start`` of kvm_bg_timer_expire at X. So by the host's clock the counter reaches CVAL at X, or
earlier by what passed between the two readings, at most from ``kvm_get_timer_map`` to ``hrtimer_start``.

Host again (kvm_timer_vcpu_load): ``kvm_get_timer_map``, then the counter is compared with CVAL, then
``kvm_timer_update_irq`` with level 1 where CVAL was reached, then ``kvm_timer_restore_state`` with that CVAL. That
needs kvm events alone, and bounds one side by chance: where CVAL was just, or not yet, reached.

Y and X count CLOCK_MONOTONIC; ``mono.MonoClock`` says how far that is from the trace clocks. With the counter's
frequency known CVAL is a ruler: every pair bounds one number a side, however far apart the CVALs. Else only pairs of
one CVAL are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from counterpoint.clocks.arch_counter import Lattice
from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.proof.anchors.model import Anchor, Found, Side
from counterpoint.proof.anchors.mono import Domain, MonoClock, unbroken
from counterpoint.proof.feasible import Interval

KIND = "virtual timer"

_VTIMER, _HVTIMER = 1, 2  # arch_timer_ctx_index (include/kvm/arm_arch_timer.h)
_ENABLED, _MASKED = 1, 2
_SAVE, _MAP, _START, _UPDATE, _RESTORE = range(5)
_EVENTS = (
    *(("kvm", "kvm_timer_save_state"), ("kvm", "kvm_get_timer_map"), ("timer", "hrtimer_start")),
    *(("kvm", "kvm_timer_update_irq"), ("kvm", "kvm_timer_restore_state")),
)
_SLOPE_BITS = 24  # the kernel's factors to and from ticks are right to better than 1 in 2**24
_MIN_DELTA_NS = 2000  # shorter waits are lengthened to the clock event's shortest, 1000 ns

_CODE = (
    "the guest programs its timer only after hrtimer_rearm and before the CPU's next event; KVM reads the counter"
    " between kvm_get_timer_map and hrtimer_start and no other timer or WFIT ends the wait earlier"
)
_COMPARED = (
    "the guest programs its timer only after hrtimer_rearm and before the CPU's next event; KVM compares the counter"
    " with CVAL between kvm_get_timer_map and kvm_timer_update_irq"
)
_BOOT = "; CLOCK_MONOTONIC and mono_raw have not parted since boot on {}"
_SLEW = "; CLOCK_MONOTONIC is slewed by no more than 500 ppm on {}"


@dataclass(frozen=True, slots=True)
class Marks:
    """When a machine's clock shows that the counter reaches ``cval`` u64[n]: between ``lo`` and ``hi`` i64[n].

    ``lo``, ``hi`` are numbers of the machine's domain; ``lo_known``, ``hi_known`` bool[n] tell which of them hold.
    ``row`` i64[n] is the event that says so. ``when`` i64[n]: its stamp from the recording's base.
    """

    cval: U64
    lo: I64
    hi: I64
    lo_known: Bools
    hi_known: Bools
    row: I64
    when: I64

    @property
    def columns(self) -> tuple[U64, I64, I64, Bools, Bools, I64, I64]:
        """All of them."""
        return self.cval, self.lo, self.hi, self.lo_known, self.hi_known, self.row, self.when

    def take(self, chosen: Bools | I64) -> Marks:
        """Those chosen."""
        cval, lo, hi, lo_known, hi_known, row, when = self.columns
        return Marks(
            cval[chosen], lo[chosen], hi[chosen], lo_known[chosen], hi_known[chosen], row[chosen], when[chosen]
        )


def joined(parts: Sequence[Marks]) -> Marks:
    """The marks of several parts as one."""
    return Marks(*(np.concatenate(columns) for columns in zip(*(part.columns for part in parts), strict=True)))


_NONE, _NEVER = np.zeros(0, np.int64), np.zeros(0, np.bool_)
NO_MARKS = Marks(np.zeros(0, np.uint64), _NONE, _NONE, _NEVER, _NEVER, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class Saved:
    """The CVAL u64[n] of an enabled virtual timer that KVM saved for a thread at ``when`` i64[n] (host's base)."""

    cval: U64
    when: I64


class HostTimers:
    """What a host's recording tells of the virtual timers of its vCPU threads, in the numbers of ``domain``."""

    def __init__(self, clock: MonoClock, domain: Domain, *, trust_boot: bool) -> None:
        """Take the host's clock."""
        self.clock, self.domain, self.host, self.trust_boot = clock, domain, clock.recording, trust_boot

    @cached_property
    def is_usable(self) -> bool:
        """Whether the recording holds the events at all."""
        return self._events is not None and (self.clock.is_usable or self.domain.lattice is not None)

    @cached_property
    def _events(self) -> tuple[I64, I64, I64, I64, U64] | None:
        """(row, kind, ctl, timer index, CVAL) of the events that matter, by thread and stamp.

        ctl of a map: whether KVM emulates a timer; of an update: the level.
        """
        host = self.host
        named = [host.format_named(system, name) for system, name in _EVENTS]
        updated, mapped = named[_UPDATE], named[_MAP]
        if named[_SAVE] is None or mapped is None or not len(host.rows(named[_SAVE])):
            return None
        parts = [host.rows(event) for event in named]
        started = named[_START]
        if started is not None:
            function = host.column(started, "function", parts[_START]).astype(np.uint64)
            background = self.clock.symbols.address("kvm_bg_timer_expire") if len(function) else 0
            parts[_START] = parts[_START][(function == np.uint64(background)) & (background != 0)]
        rows = np.concatenate(parts)
        kind = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        ctl, index, cval = np.zeros(len(rows), np.int64), np.full(len(rows), -1), np.zeros(len(rows), np.uint64)
        for which in (_SAVE, _RESTORE):
            event, own, at = named[which], parts[which], kind == which
            if event is not None:
                ctl[at] = host.column(event, "ctl", own).astype(np.int64)
                index[at] = host.column(event, "timer_idx", own)
                cval[at] = host.column(event, "cval", own).astype(np.uint64)
        if updated is not None:
            ctl[kind == _UPDATE] = host.column(updated, "level", parts[_UPDATE])
        # a timer that KVM emulates may end the wait as well, and is not saved: such puts are left out
        emulated = np.zeros(len(parts[_MAP]), np.bool_)
        for name in ("emul_vtimer", "emul_ptimer"):
            if mapped.field(name) is not None:
                emulated |= host.column(mapped, name, parts[_MAP]).astype(np.int64) >= 0
        ctl[kind == _MAP] = emulated
        order = np.lexsort((rows, relative(host.stamp[rows], host.base), host.pid[rows]))
        return rows[order], kind[order], ctl[order], index[order], cval[order]

    def marks(self, tid: int) -> Marks:
        """The CVALs of thread ``tid`` on the host's clock; call only where ``is_usable``."""
        parts = [self._compared(tid)] if self.domain.lattice is not None else []
        if self.clock.is_usable:
            parts.append(self._armed(tid))
        return joined(parts)

    def _compared(self, tid: int) -> Marks:
        """The CVALs that KVM compared with the counter when it loaded the vCPU."""
        rows, kind, ctl, index, cval = self._of(tid)
        at = np.flatnonzero((kind == _RESTORE) & (index == _own(index)) & _live(ctl))
        at = at[at >= 3]
        # the virtual timer's comes first of one or two that are compared
        two = kind[at - 2] == _UPDATE
        update, before = np.where(two, at - 2, at - 1), np.where(two, at - 3, at - 2)
        ok = (kind[at - 1] == _UPDATE) & (kind[before] == _MAP) & unbroken(self.host, rows[before], rows[at])
        at, update, before = at[ok], update[ok], before[ok]
        stamp = self.host.stamp
        reached = ctl[update] != 0
        return Marks(
            cval[at],
            self.domain.stamps(stamp[rows[before]]) + 1,
            self.domain.stamps(stamp[rows[update]]),
            ~reached,
            reached,
            rows[update],
            relative(stamp[rows[update]], self.host.base),
        )

    def _armed(self, tid: int) -> Marks:
        """The CVALs that the thread blocked on, by the timers that KVM set for them."""
        rows, kind, ctl, index, cval = self._of(tid)
        at = np.flatnonzero(kind == _START)
        at = at[at >= 2]
        save = at - 2
        # two timers are saved (one where KVM emulates the other): the one before may be the virtual one
        pair = np.maximum(at - 3, 0)
        two = (at >= 3) & (kind[pair] == _SAVE)
        ok = (kind[at - 1] == _MAP) & (ctl[at - 1] == 0) & (kind[save] == _SAVE)
        live = _live(ctl)
        first, second = live[save], two & live[pair]
        ok &= first ^ second
        chosen = np.where(first, save, pair)
        ok &= (index[chosen] == _own(index)) & unbroken(self.host, rows[chosen], rows[at])
        at, chosen = at[ok], chosen[ok]
        host, domain = self.host, self.domain
        event = host.format_named("timer", "hrtimer_start")
        if event is None:
            return NO_MARKS
        expires = host.column(event, "expires", rows[at]).astype(np.int64)
        start, before = domain.stamps(host.stamp[rows[at]]), domain.stamps(host.stamp[rows[at - 1]])
        low, high = self.clock.distance(domain, start, trust_boot=self.trust_boot)
        # X is two values cut off to ns, the second of which carries a fraction over: up to 1 above and 2 below
        latest, earliest = domain.clock(expires + 2), domain.clock(expires - 1)
        slack = _slack(latest - low - start)
        return Marks(
            cval[chosen],
            earliest - high - (start - before) - slack - 1,
            latest - low + slack + 1,
            # a wait of 0 is no measure: CVAL may have been long ago
            earliest - high > start + 1,
            np.ones(len(at), np.bool_),
            rows[at],
            relative(host.stamp[rows[at]], host.base),
        )

    def saved(self, tid: int) -> Saved:
        """Every CVAL of an enabled virtual timer that KVM saved for ``tid``, by stamp."""
        rows, kind, ctl, index, cval = self._of(tid)
        at = np.flatnonzero((kind == _SAVE) & _live(ctl) & (index == _own(index)))
        return Saved(cval[at], relative(self.host.stamp[rows[at]], self.host.base))

    def _of(self, tid: int) -> tuple[I64, I64, I64, I64, U64]:
        assert self._events is not None
        rows, kind, ctl, index, cval = self._events
        pid = self.host.pid[rows]
        part = slice(int(np.searchsorted(pid, tid, "left")), int(np.searchsorted(pid, tid, "right")))
        return rows[part], kind[part], ctl[part], index[part], cval[part]


def _own(index: I64) -> int:
    """The virtual timer of a thread's guest itself: at EL2 it has one of its own, and the other is its guest's."""
    return _HVTIMER if (index == _HVTIMER).any() else _VTIMER


def _live(ctl: I64) -> Bools:
    live: Bools = (ctl & (_ENABLED | _MASKED)) == _ENABLED
    return live


def _slack(distance: I64) -> I64:
    """By how much the factors' own rounding may shift what lies ``distance`` ahead."""
    return (np.abs(distance) >> _SLOPE_BITS) + 1


class GuestTimers:
    """What a guest's recording tells of when it programmed its timers, in the numbers of ``domain``."""

    def __init__(self, clock: MonoClock, domain: Domain, *, trust_boot: bool) -> None:
        """Take the guest's clock."""
        self.clock, self.domain, self.guest, self.trust_boot = clock, domain, clock.recording, trust_boot

    @cached_property
    def is_usable(self) -> bool:
        """Whether the recording holds the events at all."""
        event = self.guest.format_named("timer", "hrtimer_rearm")
        return event is not None and len(self.guest.rows(event)) > 0 and self.clock.is_usable

    def marks(self, cpu: int, saved: Saved, windows: Interval, host_base: int) -> Marks:
        """The CVALs of ``saved``, each with the last ``hrtimer_rearm`` of guest CPU ``cpu`` before it was saved.

        Only those are taken of which this is the same at all offsets of ``windows``, with no event lost since.
        """
        guest, domain = self.guest, self.domain
        event = guest.format_named("timer", "hrtimer_rearm")
        assert event is not None
        rows = guest.rows(event)
        streams = [(s.first, s.last) for s in guest.streams if s.cpu == cpu]
        inside = np.zeros(len(rows), np.bool_)
        for first, last in streams:
            # the last event of a CPU has no next one
            inside |= (rows >= first) & (rows < last - 1)
        rows = rows[inside]
        when = relative(guest.stamp[rows], guest.base)
        order = np.argsort(when, kind="stable")
        rows, when = rows[order], when[order]
        early, late = (
            np.searchsorted(when, saved.when + (host_base - guest.base) + offset, side="right") - 1
            for offset in windows
        )
        known = (early >= 0) & (early == late)
        at, cval = early[known], saved.cval[known]
        until = rows[np.minimum(at + 1, len(rows) - 1)]
        whole = unbroken(guest, rows[at], np.where(until > rows[at], until, rows[at] + 1))
        at, cval = at[whole], cval[whole]
        rows, when = rows[at], when[at]
        expires = guest.column(event, "next_event", rows).astype(np.int64)
        begin, end = domain.stamps(guest.stamp[rows]), domain.stamps(guest.stamp[rows + 1])
        low, high = self.clock.distance(domain, begin, trust_boot=self.trust_boot)
        target = domain.clock(expires)
        slack = _slack(target - low - begin) + domain.tick + 1
        shortest = domain.clock(expires - _MIN_DELTA_NS)
        return Marks(
            cval,
            target - high - slack,
            target - low + (end - begin) + slack,
            np.ones(len(rows), np.bool_),
            (shortest - high > end) & (end >= begin),
            rows,
            when,
        )


def timers(host: MonoClock, guest: MonoClock, *, trust_boot: bool) -> tuple[HostTimers, GuestTimers]:
    """Both sides, in ticks where both clocks can be counted in ticks of one frequency, else in ns."""
    scale = guest.lattice.scale if guest.lattice else None
    # a host with kvm events alone says nothing of its CLOCK_MONOTONIC, nor needs it
    first, second = host.ticks if host.is_usable else host.stamp_ticks, guest.ticks
    if first is None or second is None or first.lattice is None or first.lattice.scale != scale:
        first, second = host.ns, guest.ns
    return HostTimers(host, first, trust_boot=trust_boot), GuestTimers(guest, second, trust_boot=trust_boot)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The marks of one epoch of one vCPU: those of the host's thread and those of the guest's CPU."""

    armed: Marks
    programmed: Marks


def gather(
    host: HostTimers, guest: GuestTimers, tid: int, cpu: int, windows: Interval, span: Interval
) -> Gathered | None:
    """The virtual timer's marks of an epoch; None where the recordings hold none.

    ``windows``: the offsets (trace-clock units) that the run windows allow. ``span``: host stamps that surely belong to
    the epoch.
    """
    if not host.is_usable or not guest.is_usable:
        return None
    begin, end = span[0] - host.host.base, span[1] - host.host.base
    armed = host.marks(tid)
    armed = armed.take((armed.when >= begin) & (armed.when <= end))
    saved = host.saved(tid)
    keep = (saved.when >= begin) & (saved.when <= end)
    return Gathered(armed, guest.marks(cpu, Saved(saved.cval[keep], saved.when[keep]), windows, host.host.base))


def find(host: HostTimers, guest: GuestTimers, own: Gathered, others: Sequence[Gathered]) -> Found | None:
    """The virtual timer's anchors of the epoch whose marks are ``own``; None where it has none.

    ``others``: what was gathered of other epochs and vCPUs of the guest. All its CPUs turn the counter that they see
    into stamps by one K, so every CVAL that any of them programmed bounds it.
    """
    frame = _Frame.of(host, guest)
    if not len(own.armed.cval):
        return None
    if frame.lattices is None:
        return frame.by_pairs(own.armed, own.programmed)
    return frame.by_ruler(own.armed, joined([own.programmed, *(other.programmed for other in others)]))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Two machines' domains put together: how their numbers become an offset of the two trace clocks."""

    host: HostTimers
    guest: GuestTimers
    lattices: tuple[Lattice, Lattice] | None

    @classmethod
    def of(cls, host: HostTimers, guest: GuestTimers) -> _Frame:
        first, second = host.domain.lattice, guest.domain.lattice
        return cls(host, guest, (first, second) if first is not None and second is not None else None)

    def offprogrammedrange(self, lo: int, hi: int) -> Interval:
        """The trace clocks' offset for guest minus host numbers from ``lo`` to ``hi``, both from their bases."""
        base = self.guest.domain.base - self.host.domain.base
        if self.lattices is None:
            return lo + base - 1, hi + base + 1
        host, guest = self.lattices
        mult, shift = host.scale.mult, host.scale.shift
        # each stamp is cut off to ns: their difference is off by less than one either way
        low = ((lo + base) * mult + guest.k_lo - host.k_hi >> shift) - 1
        high = -(-((hi + base) * mult + guest.k_hi - host.k_lo) >> shift) + 1
        return low, high

    def by_ruler(self, armed: Marks, programmed: Marks) -> Found | None:
        """The best anchors of the host's marks ``armed`` and the guest's ``programmed``, with CVAL as the ruler."""
        if not len(programmed.cval):
            return None
        zero = armed.cval[:1]
        ruler_host, ruler_guest = relative(armed.cval, int(zero[0])), relative(programmed.cval, int(zero[0]))
        a_lo, a_hi = armed.lo - ruler_host, armed.hi - ruler_host
        b_lo, b_hi = programmed.lo - ruler_guest, programmed.hi - ruler_guest
        low = _best(b_lo, programmed.lo_known, a_hi, armed.hi_known)
        high = _best(-b_hi, programmed.hi_known, -a_lo, armed.lo_known)
        whole = None
        if programmed.hi_known.any():
            origin = self.guest.domain.base - int(zero[0])
            whole = int(b_lo.max()) + origin, int(b_hi[programmed.hi_known].min()) + origin
        return Found(
            KIND,
            None if low is None else self._anchor(Side.LOW, low, armed, programmed),
            None if high is None else self._anchor(Side.HIGH, (-high[0], *high[1:]), armed, programmed),
            len(armed.cval) + len(programmed.cval),
            0,
            whole,
        )

    def by_pairs(self, armed: Marks, programmed: Marks) -> Found | None:
        """Anchors of marks with one CVAL, where the counter's frequency is not known."""
        order = np.argsort(programmed.cval, kind="stable")
        at = np.searchsorted(programmed.cval[order], armed.cval)
        ok = at < len(order)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else at
        if len(order):
            ok &= programmed.cval[at] == armed.cval
        armed, programmed = armed.take(ok), programmed.take(at[ok])
        if not len(armed.cval):
            return None
        base = self.guest.domain.base - self.host.domain.base
        lows, highs = programmed.lo - armed.hi + base, programmed.hi - armed.lo + base
        both = programmed.hi_known & armed.lo_known
        index = int(lows.argmax())
        low = self._anchor(Side.LOW, (int(lows[index]) - base, index, index), armed, programmed)
        high = None
        if both.any():
            index = int(np.where(both, highs, np.iinfo(np.int64).max).argmin())
            high = self._anchor(Side.HIGH, (int(highs[index]) - base, index, index), armed, programmed)
        return Found(KIND, low, high, len(armed.cval))

    def _anchor(self, side: Side, best: tuple[int, int, int], armed: Marks, programmed: Marks) -> Anchor:
        number, guest_at, host_at = best
        bound = self.offprogrammedrange(number, number)[0 if side is Side.LOW else 1]
        guest_row, host_row = int(programmed.row[guest_at]), int(armed.row[host_at])
        return Anchor(
            KIND,
            side,
            bound,
            self._assumption(host_row),
            guest_row,
            int(self.guest.guest.stamp[guest_row]),
            host_row,
            int(self.host.host.stamp[host_row]),
        )

    def _assumption(self, host_row: int) -> str:
        """What is assumed of the code, and of the two machines' CLOCK_MONOTONIC."""
        compared = self.host.host.event_name(int(self.host.host.event_id[host_row])) == _EVENTS[_UPDATE][1]
        text = _COMPARED if compared else _CODE
        for side, name in ((self.host, "the host"), (self.guest, "the guest")):
            if compared and side is self.host:
                continue
            if side.clock.ticks is None:
                text += _SLEW.format(name)
            elif side.domain.mono is not None and side.trust_boot and side.clock.is_mono_raw:
                text += _BOOT.format(name)
        return text


def _best(guest: I64, guest_ok: Bools, host: I64, host_ok: Bools) -> tuple[int, int, int] | None:
    """The greatest ``guest`` minus the least ``host`` of those that hold, and where they are; None: there is none."""
    if not guest_ok.any() or not host_ok.any():
        return None
    least = np.iinfo(np.int64).min
    first = int(np.where(guest_ok, guest, least).argmax())
    second = int(np.where(host_ok, host, np.iinfo(np.int64).max).argmin())
    return int(guest[first]) - int(host[second]), first, second
