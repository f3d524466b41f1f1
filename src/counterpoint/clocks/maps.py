"""Clock maps: a vCPU's stamps in guest time and in host time, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.band import Band
from counterpoint.clocks.counter import U64, Bools, add, relative, to_signed
from counterpoint.clocks.scaling import Scale


@dataclass(frozen=True, slots=True)
class Epoch:
    """A span with one map: ``guest = ((host * ratio) >> frac_bits) + offset`` modulo 2**64, in trace-clock units.

    ``guest_from``, ``host_from``: where it begins (None: open). ``feasible``: the closed interval that the offset was
    proved to lie in (None: not bounded). ``band``: where a line was fitted, the bounds about it over time. ``near``: a
    host stamp near those of the epoch, which tells a scaled stamp that has wrapped from one that has not (None:
    ``host_from``, or else 0). ValueError for ratios outside Scale's.
    """

    offset: int
    guest_from: int | None = None
    host_from: int | None = None
    feasible: tuple[int, int] | None = None
    ratio: int = 1
    frac_bits: int = 0
    band: Band | None = None
    near: int | None = None

    def __post_init__(self) -> None:
        """Refuse ratios that cannot be (ValueError)."""
        Scale(self.ratio, self.frac_bits)

    @property
    def scale(self) -> Scale:
        """The map without its offset."""
        return Scale(self.ratio, self.frac_bits)

    @property
    def is_bounded(self) -> bool:
        """Something was proved of the map: an interval, or a band."""
        return self.feasible is not None or self.band is not None

    def to_guest(self, host: U64) -> U64:
        """Guest stamps u64[n] of host stamps u64[n]."""
        return add(self.scale.apply(host), self.offset)

    def to_host(self, guest: U64) -> U64:
        """Host stamps u64[n] of guest stamps u64[n]: the first of each exact inverse (see Scale.inverse)."""
        return self.scale.inverse(add(guest, -self.offset), self._reference)[0]

    def bound(self, guest: U64) -> tuple[U64, U64]:
        """The earliest and the latest host stamps u64[n] that the proof allows; the epoch must be bounded."""
        if self.band is not None:
            return self._bound_by(self.band, guest)
        lo, hi = self.feasible or (self.offset, self.offset)
        if self.scale.is_identity:
            return add(guest, -hi), add(guest, -lo)
        return self._inverse(guest, self.ratio, self.offset, to_signed(hi - self.offset), to_signed(self.offset - lo))

    def bound_guest(self, host: U64) -> tuple[U64, U64]:
        """The least and the greatest guest stamps u64[n], modulo 2**64, that the proof allows; it must be bounded."""
        used = self.to_guest(host)
        if self.band is not None:
            low, high = self.band.at(host)
            return used + low.view(np.uint64), used + high.view(np.uint64)
        lo, hi = self.feasible or (self.offset, self.offset)
        return add(used, lo - self.offset), add(used, hi - self.offset)

    def _bound_by(self, band: Band, guest: U64) -> tuple[U64, U64]:
        """``bound`` by a band: by its bounds where the map puts a stamp and where they put it, the wider of both."""
        mapped = add(guest, -self.offset)
        low, high = band.at(self.to_host(guest))
        for _ in range(2):
            early = self.scale.inverse(mapped - high.view(np.uint64), self._reference)[0]
            late = self.scale.inverse(mapped - low.view(np.uint64), self._reference)[1]
            # one unit further: on an edge the bounds of both sides count
            for end in (add(early, -1), add(late, 1)):
                least, greatest = band.at(end)
                low, high = np.minimum(low, least), np.maximum(high, greatest)
        return early, late

    def __str__(self) -> str:
        """The offset, and the ratio where scaled."""
        offset = str(to_signed(self.offset))
        return offset if self.scale.is_identity else f"{self.ratio}/2^{self.frac_bits} {offset}"

    @property
    def _reference(self) -> int:
        return next((stamp for stamp in (self.near, self.host_from) if stamp is not None), 0)

    def _inverse(self, guest: U64, ratio: int, offset: int, below: int, above: int) -> tuple[U64, U64]:
        return Scale(ratio, self.frac_bits).inverse(add(guest, -offset), self._reference, below, above)


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
        out = self.epochs[0].to_host(guest)
        for epoch in self.epochs[1:]:
            begun = self._begun(guest, epoch.guest_from)
            out[begun] = epoch.to_host(guest[begun])
        return out

    def to_guest(self, host: U64) -> U64:
        """Guest stamps u64[n] of host stamps u64[n], by the last epoch that begins at or before each."""
        out = self.epochs[0].to_guest(host)
        for epoch in self.epochs[1:]:
            begun = self._begun(host, epoch.host_from)
            out[begun] = epoch.to_guest(host[begun])
        return out

    def bound(self, guest: U64) -> tuple[U64, U64]:
        """The earliest and the latest host stamp u64[n] that the proof allows for each guest stamp u64[n].

        ValueError where an epoch is not bounded.
        """
        self._check_bounded()
        early, late = self.epochs[0].bound(guest)
        for epoch in self.epochs[1:]:
            begun = self._begun(guest, epoch.guest_from)
            early[begun], late[begun] = epoch.bound(guest[begun])
        return early, late

    def bound_guest(self, host: U64) -> tuple[U64, U64]:
        """The least and the greatest guest stamp u64[n] that the proof allows for each host stamp u64[n].

        ValueError where an epoch is not bounded.
        """
        self._check_bounded()
        least, greatest = self.epochs[0].bound_guest(host)
        for epoch in self.epochs[1:]:
            begun = self._begun(host, epoch.host_from)
            least[begun], greatest[begun] = epoch.bound_guest(host[begun])
        return least, greatest

    def _check_bounded(self) -> None:
        if not all(epoch.is_bounded for epoch in self.epochs):
            raise ValueError(f"guest CPU {self.guest_cpu}: the offset is not bounded")

    @staticmethod
    def _begun(stamps: U64, begin: int | None) -> Bools:
        if begin is None:
            return np.ones(len(stamps), np.bool_)
        return relative(stamps, begin) >= 0

    def __str__(self) -> str:
        """The maps, in order: offsets, and ratios where scaled."""
        return f"guest CPU {self.guest_cpu}: " + ", ".join(map(str, self.epochs))
