"""The functions of a guest's kernel by address, as its recording names them: where that very kernel was loaded."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from counterpoint.clocks.counter import I64, U64
from counterpoint.traces.recording import Recording
from counterpoint.traces.symbols import Kallsyms, parse_kallsyms

USER, UNNAMED = "[user]", "[no symbol]"
"""Stand for a function: an address of the lower half, and one of the kernel's that its recording has no name for."""

MAX_INSIDE = 1 << 20
"""Further than this from a symbol an address is not said to be in it: symbols have no end, and much lies between."""


class GuestSymbols:
    """The functions of one guest."""

    def __init__(self, recording: Recording) -> None:
        """Nothing is read yet."""
        self._recording = recording

    @cached_property
    def _table(self) -> Kallsyms:
        return parse_kallsyms(self._recording.kallsyms())

    def of(self, addresses: U64) -> tuple[I64, list[str]]:
        """The function of each address u64[n]: an index i64[n] (-1: the recording has no symbols) into the names."""
        if not len(addresses) or not len(self._table):
            return np.full(len(addresses), -1, np.int64), []
        distinct, at = np.unique(addresses, return_inverse=True)
        names: dict[str, int] = {}
        numbers = [names.setdefault(self._name(address), len(names)) for address in distinct.tolist()]
        return np.array(numbers, np.int64)[at], list(names)

    def _name(self, address: int) -> str:
        # the kernels of x86-64 and arm64 have the upper half
        if self._recording.long_size == 8 and address < 1 << 63:
            return USER
        found = self._table.find(address)
        return UNNAMED if found is None or address - found[1] > MAX_INSIDE else found[0]
