"""What an arm64 host's KVM tells of its guests' virtual timers: their CVALs on the host's clock.

``armed`` (arch/arm64/kvm/arch_timer.c, kvm_timer_vcpu_put and kvm_timer_blocking): ``kvm_timer_save_state`` shows the
CVAL of a vCPU that blocks, ``kvm_get_timer_map`` follows, then X = ktime_get() + (CVAL - counter) in ns, the counter
read first, then ``hrtimer_start`` of kvm_bg_timer_expire at X. So by the host's clock the counter reaches CVAL at X, or
earlier by what passed between the two readings, at most from ``kvm_get_timer_map`` to ``hrtimer_start``.

``compared`` (kvm_timer_vcpu_load): ``kvm_get_timer_map``, then the counter is compared with CVAL, then
``kvm_timer_update_irq`` with level 1 where CVAL was reached, then ``kvm_timer_restore_state`` with that CVAL.

``emulated`` (timer_emulate): while a guest at EL2 runs a guest of its own, KVM emulates its timer: compares the counter
with the CVAL that it saved, and says in ``kvm_timer_emulate`` whether it was reached.

The last two need kvm events alone. They bound one side each, by chance: where CVAL was just, or not yet, reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.proof.anchors.marks import MAX_WAIT_NS, NO_MARKS, Marks, Saved, factor_slack
from counterpoint.proof.anchors.mono import Domain, MonoClock
from counterpoint.proof.anchors.unseen import unbroken
from counterpoint.traces.formats import EventFormat

_VTIMER, _HVTIMER = 1, 2  # arch_timer_ctx_index (include/kvm/arm_arch_timer.h)
_ENABLED, _MASKED = 1, 2
_SAVE, _MAP, _START, _UPDATE, _RESTORE, _EMULATE = range(6)
_EVENTS = (
    *(("kvm", "kvm_timer_save_state"), ("kvm", "kvm_get_timer_map"), ("timer", "hrtimer_start")),
    *(("kvm", "kvm_timer_update_irq"), ("kvm", "kvm_timer_restore_state"), ("kvm", "kvm_timer_emulate")),
)
BACKGROUND = "kvm_bg_timer_expire"


@dataclass(frozen=True, slots=True)
class _Events:
    """A thread's events that matter, by stamp: ``row``, ``kind`` i64[n] as above, timer ``index`` (-1: none), ``cval``.

    ``ctl`` of an update is the level, of an emulation whether CVAL was reached.
    """

    row: I64
    kind: I64
    ctl: I64
    index: I64
    cval: U64

    @property
    def own(self) -> int:
        """The virtual timer of a thread's guest itself: at EL2 it has one of its own, the other is its guest's."""
        return _HVTIMER if (self.index == _HVTIMER).any() else _VTIMER

    @property
    def live(self) -> Bools:
        """Of those that show a timer: whether it can fire."""
        live: Bools = (self.ctl & (_ENABLED | _MASKED)) == _ENABLED
        return live


def _before(mapped: I64, rows: I64) -> I64:
    """Of many rows ``mapped``, in order, the last two before each of ``rows``."""
    at = np.searchsorted(mapped, rows)
    keep = np.zeros(len(mapped), np.bool_)
    keep[at[at >= 1] - 1] = keep[at[at >= 2] - 2] = True
    return mapped[keep]


class HostTimers:
    """What a host's recording tells of the virtual timers of its vCPU threads, in the numbers of ``domain``."""

    def __init__(self, clock: MonoClock, domain: Domain, *, trust_boot: bool) -> None:
        """Take the host's clock."""
        self.clock, self.domain, self.host, self.trust_boot = clock, domain, clock.recording, trust_boot
        self._threads: dict[int, _Events] = {}

    @cached_property
    def is_usable(self) -> bool:
        """Whether the recording holds the events at all."""
        return self._parts is not None and (self.clock.is_usable or self.domain.lattice is not None)

    @cached_property
    def _parts(self) -> tuple[list[EventFormat | None], list[I64]] | None:
        """The formats and rows of the events that matter; None where KVM's are not there."""
        host = self.host
        named = [host.format_named(system, name) for system, name in _EVENTS]
        if named[_MAP] is None or not len(host.rows(named[_SAVE])):
            return None
        rows = [host.rows(event) for event in named]
        started = named[_START]
        if started is not None:
            rows[_START] = rows[_START][self.clock.functions(started, rows[_START], (BACKGROUND,))]
        return named, rows

    def _of(self, tid: int) -> _Events:
        if tid not in self._threads:
            self._threads[tid] = self._gather(tid)
        return self._threads[tid]

    def _gather(self, tid: int) -> _Events:
        assert self._parts is not None
        host = self.host
        named, rows = self._parts
        parts = [part[host.pid[part] == tid] for part in rows]
        parts[_MAP] = _before(parts[_MAP], np.r_[parts[_START], parts[_UPDATE]])
        row = np.concatenate(parts)
        kind = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        ctl, index, cval = np.zeros(len(row), np.int64), np.full(len(row), -1), np.zeros(len(row), np.uint64)
        fields = {_SAVE: "ctl", _RESTORE: "ctl", _UPDATE: "level", _EMULATE: "should_fire"}
        for which, name in fields.items():
            event, at = named[which], kind == which
            if event is not None:
                ctl[at] = host.column(event, name, parts[which]).astype(np.int64)
        for which in (_SAVE, _RESTORE, _EMULATE):
            event, at = named[which], kind == which
            if event is not None:
                index[at] = host.column(event, "timer_idx", parts[which])
                if which != _EMULATE:
                    cval[at] = host.column(event, "cval", parts[which]).astype(np.uint64)
        order = np.argsort(row)
        order = order[np.argsort(relative(host.stamp[row[order]], host.base), kind="stable")]
        return _Events(row[order], kind[order], ctl[order], index[order], cval[order])

    def _emulates(self, rows: I64) -> Bools:
        """Whether KVM emulates a timer, by these maps: it may end a wait as well, and is not saved."""
        event = self.host.format_named("kvm", "kvm_get_timer_map")
        emulated = np.zeros(len(rows), np.bool_)
        for name in ("emul_vtimer", "emul_ptimer"):
            if event is not None and event.field(name) is not None:
                emulated |= self.host.column(event, name, rows).astype(np.int64) >= 0
        return emulated

    def saved(self, tid: int) -> Saved:
        """Every CVAL of an enabled virtual timer that KVM saved for ``tid``, by stamp."""
        events = self._of(tid)
        at = np.flatnonzero((events.kind == _SAVE) & events.live & (events.index == events.own))
        return Saved(events.cval[at], relative(self.host.stamp[events.row[at]], self.host.base))

    def armed(self, tid: int) -> Marks:
        """The CVALs that the thread blocked on, by the timers that KVM set for them."""
        event = self.host.format_named("timer", "hrtimer_start")
        if event is None or not self.clock.is_usable:
            return NO_MARKS
        events = self._of(tid)
        rows, kind, host, domain = events.row, events.kind, self.host, self.domain
        at = np.flatnonzero(kind == _START)
        at = at[at >= 2]
        save = at - 2
        # two timers are saved (one where KVM emulates the other): the one before may be the virtual one
        pair = np.maximum(at - 3, 0)
        two = (at >= 3) & (kind[pair] == _SAVE)
        ok = (kind[at - 1] == _MAP) & (kind[save] == _SAVE)
        at, save, pair, two = (part[ok] for part in (at, save, pair, two))
        first, second = events.live[save], two & events.live[pair]
        chosen = np.where(first, save, pair)
        ok = (first ^ second) & ~self._emulates(rows[at - 1])
        ok &= (events.index[chosen] == events.own) & unbroken(host, rows[chosen], rows[at])
        at, chosen = at[ok], chosen[ok]
        expires = host.column(event, "expires", rows[at]).astype(np.int64)
        start, before = domain.stamps(host.stamp[rows[at]]), domain.stamps(host.stamp[rows[at - 1]])
        low, high = self.clock.distance(domain, start, trust_boot=self.trust_boot)
        # X is two values cut off to ns, the second of which carries a fraction over: up to 1 above and 2 below
        latest, earliest = domain.clock(expires + 2), domain.clock(expires - 1)
        # KVM counts with the factors of CLOCK_MONOTONIC: exact in its ticks
        slack = np.zeros(len(at), np.int64) if domain.mono is not None else factor_slack(latest - low - start) + 1
        measured = domain.clock(expires - MAX_WAIT_NS) - low <= before
        return Marks(
            events.cval[chosen],
            earliest - high - (start - before) - slack,
            latest - low + slack,
            # a wait of 0 is no measure: CVAL may have been long ago
            measured & (earliest - high > start + 1),
            measured,
            rows[at],
            relative(host.stamp[rows[at]], host.base),
        )

    def compared(self, tid: int) -> Marks:
        """The CVALs that KVM compared with the counter when it loaded the vCPU."""
        events = self._of(tid)
        rows, kind = events.row, events.kind
        at = np.flatnonzero((kind == _RESTORE) & (events.index == events.own) & events.live)
        at = at[at >= 3]
        # the virtual timer's comes first of one or two that are compared
        two = kind[at - 2] == _UPDATE
        update, before = np.where(two, at - 2, at - 1), np.where(two, at - 3, at - 2)
        ok = (kind[at - 1] == _UPDATE) & (kind[before] == _MAP) & unbroken(self.host, rows[before], rows[at])
        return self._outcomes(events, at[ok], rows[before[ok]], rows[update[ok]], events.ctl[update[ok]] != 0)

    def emulated(self, tid: int) -> Marks:
        """The CVALs of a guest at EL2 that KVM compared with the counter while a guest of that guest ran."""
        events = self._of(tid)
        rows, kind = events.row, events.kind
        place = np.arange(len(rows))
        # what showed the timer last, and what this thread wrote last outside of interrupts
        shown = ((kind == _SAVE) | (kind == _RESTORE)) & (events.index == events.own)
        last = np.maximum.accumulate(np.where(shown, place, -1))
        plain = np.maximum.accumulate(np.where((kind == _RESTORE) | (kind == _EMULATE), place, -1))
        at = np.flatnonzero((kind == _EMULATE) & (events.index == events.own))
        at = at[at >= 1]
        save, before = last[at - 1], plain[at - 1]
        at, save, before = (part[(save >= 0) & (before > save)] for part in (at, save, before))
        # one that was restored since may have another CVAL by now
        ok = (kind[save] == _SAVE) & events.live[save] & unbroken(self.host, rows[save], rows[at])
        at, save, before = at[ok], save[ok], before[ok]
        return self._outcomes(events, save, rows[before], rows[at], events.ctl[at] != 0)

    def _outcomes(self, events: _Events, shown: I64, before: I64, after: I64, reached: Bools) -> Marks:
        """Marks of comparisons made between the rows ``before`` and ``after``, of the timers ``shown``."""
        stamp = self.host.stamp
        return Marks(
            events.cval[shown],
            self.domain.stamps(stamp[before]) + 1,
            self.domain.stamps(stamp[after]),
            ~reached,
            reached,
            after,
            relative(stamp[after], self.host.base),
        )
