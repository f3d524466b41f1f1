"""The clocks of a host, its guests and theirs: stamps of any of them taken to the host's and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from counterpoint.clocks.answers import Answers, Candidates, Reasons, Status, settle
from counterpoint.clocks.counter import I64, U64, Bools, add
from counterpoint.clocks.cpu_clock import CpuClock, Span, part_of
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate


@dataclass(frozen=True, slots=True)
class MachineClock:
    """A machine's trace clock: its name, unit ("ticks" or "ns"), and how long a unit is (None: not known).

    ``span``: the first and the last stamp of the recording (None: it has none). ``arch``: the machine's as the kernel
    calls it ("": not known). ``date_us``: what trace-cmd's ``--date`` adds to stamps in ns to make them wall time.
    ``counter``: arm64's counter behind a clock in ns, where K of the clock is known.
    """

    name: str
    clock: str
    unit: str
    rate: Rate | None = None
    span: tuple[int, int] | None = None
    arch: str = ""
    date_us: int | None = None
    counter: ArchCounter | None = None


@dataclass(frozen=True, slots=True)
class GuestClock:
    """A guest's clocks, CPU by CPU, against those of its parent."""

    machine: MachineClock
    parent: str
    cpus: tuple[CpuClock, ...]

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.machine.name


@dataclass(frozen=True)
class Maps:
    """What recordings tell of how the clocks of machines relate: all that a conversion needs, and no events.

    ``pairs``: host trace-clock stamps (as ``counter``) at known times of the host's CLOCK_REALTIME. ``further``: of the
    hosts that guests went to, each with those guests as they were there. ``notes``: what was left out, and why.
    """

    host: MachineClock
    guests: tuple[GuestClock, ...]
    pairs: tuple[ClockPair, ...] = ()
    further: tuple[Maps, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def on(self, host: str) -> Maps:
        """The maps of guests on one of the hosts; KeyError: none is called so."""
        found = [m for m in (self, *self.further) if m.host.name == host]
        if not found:
            known = ", ".join(m.host.name for m in (self, *self.further))
            raise KeyError(f"no host is called {host!r} (there are: {known})")
        return found[0]

    def guest(self, name: str | None = None) -> GuestClock:
        """The guest called ``name``, or the only one (None); KeyError: none such, or several."""
        found = [g for g in self.guests if name in (None, g.name)]
        if len(found) != 1:
            known = ", ".join(g.name for g in self.guests)
            said = "which guest?" if name is None else f"no guest is called {name!r}"
            raise KeyError(f"{said} (there are: {known})")
        return found[0]

    def to_host(
        self,
        stamps: U64,
        guest: str | None = None,
        cpu: int | None = None,
        *,
        upto: U64 | None = None,
        extrapolate: bool = False,
    ) -> Answers:
        """Host stamps of guest stamps u64[n] of CPU ``cpu`` (None: it may be any of the guest's).

        ``upto`` u64[n]: a stamp is known to be anything from ``stamps`` to this. ``extrapolate``: answer beyond the
        recording even where it shows that the clock was set. KeyError for a guest or a CPU that is not there.
        """
        machine, clocks = self._chosen(guest, cpu)
        span, reasons = (stamps, stamps, stamps if upto is None else upto), Reasons()
        found = Candidates.join([c.to_host(span, extrapolate=extrapolate, reasons=reasons) for c in clocks])
        while machine.parent != self.host.name:
            found = self._above(machine, found, extrapolate=extrapolate, reasons=reasons)
            machine = self.guest(machine.parent)
        return settle(found, len(stamps), reasons)

    def to_guest(
        self,
        stamps: U64,
        guest: str | None = None,
        cpu: int | None = None,
        *,
        upto: U64 | None = None,
        extrapolate: bool = False,
    ) -> Answers:
        """Guest stamps of host stamps u64[n], on CPU ``cpu`` (None: on any of the guest's); the rest as ``to_host``."""
        machine, clocks = self._chosen(guest, cpu)
        reasons = Reasons()
        span = (stamps, stamps, stamps if upto is None else upto)
        found = self._below(machine, clocks, span, extrapolate=extrapolate, reasons=reasons)
        return settle(found, len(stamps), reasons)

    def _chosen(self, guest: str | None, cpu: int | None) -> tuple[GuestClock, Sequence[CpuClock]]:
        machine = self.guest(guest)
        clocks = [c for c in machine.cpus if cpu in (None, c.guest_cpu)]
        if not clocks:
            known = ", ".join(str(c.guest_cpu) for c in machine.cpus)
            raise KeyError(f"{machine.name} has no CPU {cpu} (there are: {known})")
        return machine, clocks

    # -- nested guests

    def _above(self, machine: GuestClock, found: Candidates, *, extrapolate: bool, reasons: Reasons) -> Candidates:
        """Instants in the time of ``machine``'s parent, in that of the parent's own host."""
        parent = self.guest(machine.parent)
        parts = [found.take(~found.is_answer)]
        for clock in machine.cpus:
            through = clock.through
            mine = found.take(found.is_answer & ((found.on == clock.guest_cpu) | (found.on < 0)))
            if through is not None and through.clock == "reference":
                parts.append(_moved(mine, -through.constant))
                continue
            span = mine.earliest, mine.stamp, mine.latest
            lying = {c.guest_cpu: _lies(clock, c.guest_cpu, mine.earliest, mine.latest) for c in parent.cpus}
            nowhere = ~np.logical_or.reduce(list(lying.values())) if lying else np.ones(len(mine), np.bool_)
            for above in parent.cpus:
                # where it was on no CPU as far as is known, it may have been on any
                rows = np.flatnonzero(lying[above.guest_cpu] | nowhere)
                part = part_of(span, rows)
                parts.append(_after(mine, rows, above.to_host(part, extrapolate=extrapolate, reasons=reasons)))
        return Candidates.join(parts)

    def _below(
        self, machine: GuestClock, clocks: Sequence[CpuClock], host: Span, *, extrapolate: bool, reasons: Reasons
    ) -> Candidates:
        """The stamps of these CPUs of ``machine`` at host stamps."""
        if machine.parent == self.host.name:
            return Candidates.join([c.to_guest(host, extrapolate=extrapolate, reasons=reasons) for c in clocks])
        parent = self.guest(machine.parent)
        above = self._below(parent, parent.cpus, host, extrapolate=extrapolate, reasons=reasons)
        parts = []
        for clock in clocks:
            mine, through = above, clock.through
            if through is not None and through.clock == "reference":
                mine = _moved(
                    self._time_of(parent.parent, host, extrapolate=extrapolate, reasons=reasons), through.constant
                )
            else:
                lies = np.zeros(len(mine), np.bool_)
                for number in (c.guest_cpu for c in parent.cpus):
                    lies |= (mine.on == number) & _lies(clock, number, mine.earliest, mine.latest)
                lies &= mine.is_answer
                # a thread that was on no CPU has its counter all the same: on any of them
                somewhere = np.bincount(mine.row[lies], minlength=len(host[0])) > 0
                mine = mine.take(lies | ~somewhere[mine.row])
            parts.append(mine.take(~mine.is_answer))
            mine = mine.take(mine.is_answer)
            span = mine.earliest, mine.stamp, mine.latest
            below = clock.to_guest(span, extrapolate=extrapolate, reasons=reasons)
            parts.append(_after(mine, np.arange(len(mine)), below, keep_epoch=False))
        return Candidates.join(parts)

    def _time_of(self, name: str, host: Span, *, extrapolate: bool, reasons: Reasons) -> Candidates:
        """Host stamps in the time of the machine called ``name``."""
        if name == self.host.name:
            return Candidates.of(np.arange(len(host[0])), host, Status.INSIDE, cpu=-1)
        machine = self.guest(name)
        return self._below(machine, machine.cpus, host, extrapolate=extrapolate, reasons=reasons)


def _lies(clock: CpuClock, cpu: int, earliest: U64, latest: U64) -> Bools:
    """Whether the thread of a nested guest's CPU may have been on ``cpu`` within each of these spans."""
    if clock.through is None:
        return np.ones(len(earliest), np.bool_)
    return clock.through.may_hold(cpu, earliest, latest)


def _moved(found: Candidates, by: int) -> Candidates:
    """The same instants in a clock that is ahead by ``by`` of a machine's own, whichever its CPU."""
    at, early, late = (add(stamps, by) for stamps in (found.stamp, found.earliest, found.latest))
    return replace(found, stamp=at, earliest=early, latest=late, on=np.full(len(found), -1, np.int64))


def _after(first: Candidates, rows: I64, then: Candidates, *, keep_epoch: bool = True) -> Candidates:
    """Candidates ``then`` that were made of ``first.take(rows)``: as doubtful as the worse of both."""
    of = rows[then.row]
    return replace(
        then,
        row=first.row[of],
        status=np.maximum(first.status[of], then.status),
        epoch=first.epoch[of] if keep_epoch else then.epoch,
        cpu=first.cpu[of] if keep_epoch else then.cpu,
    )
