"""The lattice that a whole recording's stamps lie on: suggested by some of them, held against all."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from counterpoint.clocks.arch_counter import Clock, Lattice, find_lattice
from counterpoint.clocks.counter import U64
from counterpoint.traces.recording import Recording

_SUGGESTING = 1 << 16  # stamps that the search begins with; and that are held against the lattice at a time


_found: WeakKeyDictionary[Recording, Lattice | None] = WeakKeyDictionary()


def lattice_of_recording(recording: Recording) -> Lattice | None:
    """The lattice of the recording's stamps, found once; None where its clock has none.

    As ``arch_counter.find_lattice`` of all stamps, but that ``multiples`` are those of some of them alone.
    """
    if recording not in _found:
        _found[recording] = _search(recording)
    return _found[recording]


def _search(recording: Recording) -> Lattice | None:
    clocks: dict[str, Clock] = {"mono_raw": "mono_raw", "local": "local"}
    clock, stamp = clocks.get(recording.clock), recording.stamp
    if clock is None:
        return None
    step = max(1, len(stamp) // _SUGGESTING)
    found = find_lattice(stamp[::step], clock)
    if step > 1:
        found = (found and _narrowed(found, stamp)) or find_lattice(stamp, clock)
    return found


def _narrowed(lattice: Lattice, stamps: U64) -> Lattice | None:
    """The lattice with what all ``stamps`` leave of its K; None where one does not lie on it.

    The stamp ns allows the K with ``ns * 2**shift <= K < (ns + 1) * 2**shift`` modulo mult.
    """
    mult, shift, unit = lattice.scale.mult, np.uint64(lattice.scale.shift), 1 << lattice.scale.shift
    # what each is ahead of the middle of the circle before k_lo
    most, least = 0, mult
    for begin in range(0, len(stamps), _SUGGESTING):
        residue = _modulo(_modulo(stamps[begin : begin + _SUGGESTING], mult) << shift, mult)
        ahead = _modulo(residue + np.uint64(mult + mult // 2 - lattice.k_lo), mult)
        most, least = max(most, int(ahead.max())), min(least, int(ahead.min()))
    lo = lattice.k_lo + max(0, most - mult // 2)
    hi = min(lattice.k_hi, lattice.k_lo + least - mult // 2 + unit - 1)
    return None if lo > hi else replace(lattice, k_lo=lo % mult, k_hi=lo % mult + hi - lo)


def _modulo(values: U64, by: int) -> U64:
    """``values % by``: numpy divides by a constant much faster than it takes the rest."""
    return values - values // np.uint64(by) * np.uint64(by)
