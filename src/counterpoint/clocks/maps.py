"""Clock maps: a vCPU's stamps in guest time and in host time, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import U64, Bools, add, relative, to_signed


@dataclass(frozen=True, slots=True)
class Epoch:
    """A span with one offset: ``guest = host + offset`` modulo 2**64, in trace-clock units.

    ``guest_from``, ``host_from``: where it begins (None: open). ``feasible``: the closed interval that the offset was
    proved to lie in (None: not bounded).
    """

    offset: int
    guest_from: int | None = None
    host_from: int | None = None
    feasible: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ClockMap:
    """One guest CPU's map: its epochs in the order of time, at least one."""

    guest_cpu: int
    epochs: tuple[Epoch, ...]

    def to_host(self, guest: U64) -> U64:
        """Host stamps u64[n] of guest stamps u64[n].

        A stamp goes by the last epoch that begins at or before it: where the guest's counter stepped back, the same
        stamp occurs twice, and the later occurrence is meant.
        """
        out = add(guest, -self.epochs[0].offset)
        for epoch in self.epochs[1:]:
            begun = self._begun(guest, epoch.guest_from)
            out[begun] = add(guest[begun], -epoch.offset)
        return out

    def to_guest(self, host: U64) -> U64:
        """Guest stamps u64[n] of host stamps u64[n], by the last epoch that begins at or before each."""
        out = add(host, self.epochs[0].offset)
        for epoch in self.epochs[1:]:
            begun = self._begun(host, epoch.host_from)
            out[begun] = add(host[begun], epoch.offset)
        return out

    def bound(self, guest: U64) -> tuple[U64, U64]:
        """The earliest and the latest host stamp u64[n] that the proof allows for each guest stamp u64[n].

        ValueError where an epoch is not bounded.
        """
        if any(epoch.feasible is None for epoch in self.epochs):
            raise ValueError(f"guest CPU {self.guest_cpu}: the offset is not bounded")
        used = self.to_host(guest)
        early, late = used.copy(), used.copy()
        for index, epoch in enumerate(self.epochs):
            begun = np.ones(len(guest), np.bool_) if index == 0 else self._begun(guest, epoch.guest_from)
            lo, hi = epoch.feasible or (epoch.offset, epoch.offset)
            early[begun] = add(guest[begun], -hi)
            late[begun] = add(guest[begun], -lo)
        return early, late

    @staticmethod
    def _begun(stamps: U64, begin: int | None) -> Bools:
        if begin is None:
            return np.ones(len(stamps), np.bool_)
        return relative(stamps, begin) >= 0

    def __str__(self) -> str:
        """The offsets, in order."""
        return f"guest CPU {self.guest_cpu}: " + ", ".join(str(to_signed(e.offset)) for e in self.epochs)
