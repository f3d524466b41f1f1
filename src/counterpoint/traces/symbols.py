"""The names a recording brings for the kernel's addresses: /proc/kallsyms and printk_formats.

Which name an address gets follows libtraceevent (tep_parse_kallsyms, find_func): the symbol at or next below
it, of symbols with one address the one its binary search meets, and no name past the last symbol. Nothing is
read before an event asks for a name: the text has some 200,000 lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

_LINE = re.compile(rb"^[ \t]*(?:0[xX])?([0-9a-fA-F]{1,16}) +(\S) +(\S+)", re.MULTILINE)
_NEWLINE, _SPACE = 10, 32
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
_NAME_END = re.compile(rb"\s")

MAX_NAME = 512
"""Bytes shown of a symbol's name (KSYM_NAME_LEN of the kernel)."""


class Kallsyms:
    """The symbols of one kernel, by address; ``starts`` are the places of their names in the text."""

    def __init__(self, text: bytes, addresses: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]) -> None:
        """Sort the symbols, given in the order of the text."""
        self._text = text
        # libtraceevent collects them last first and sorts stably
        order = np.argsort(addresses[::-1], kind="stable")
        self.addresses = addresses[::-1][order]
        self._starts = starts[::-1][order]

    def __len__(self) -> int:
        """Count the symbols."""
        return len(self.addresses)

    def name(self, row: int) -> str:
        """Return the name of one symbol, by its place in ``addresses``."""
        start = int(self._starts[row])
        end = _NAME_END.search(self._text, start, start + MAX_NAME)
        return self._text[start : end.start() if end else start + MAX_NAME].decode("utf-8", "replace")

    def find(self, address: int) -> tuple[str, int] | None:
        """Return the name and start of the symbol that holds ``address``."""
        if not 0 <= address < 1 << 64:
            return None
        key = np.uint64(address)
        low = int(np.searchsorted(self.addresses, key, "left"))
        high = int(np.searchsorted(self.addresses, key, "right"))
        if low == high:
            # between two symbols: the last of those below; what is past the last symbol has no name
            if low == 0 or low == len(self.addresses):
                return None
            return self.name(low - 1), int(self.addresses[low - 1])
        first, after = 0, len(self.addresses)
        while True:
            middle = (first + after) // 2
            if middle < low:
                first = middle + 1
            elif middle >= high:
                after = middle
            else:
                return self.name(middle), address

    def address(self, name: str) -> int:
        """Return the address of the symbol called ``name``, or 0."""
        word = b" " + name.encode("utf-8", "replace")
        found = []
        for line in (word + b"\n", word + b"\t", word + b" "):
            at = self._text.find(line)
            while at >= 0:
                found.append(at + 1)
                at = self._text.find(line, at + 1)
        rows = np.flatnonzero(np.isin(self._starts, found))
        return int(self.addresses[rows[0]]) if rows.size else 0


def parse_kallsyms(text: bytes) -> Kallsyms:
    """Read the lines ``address type name [module]``; absolute symbols and ARM's ``$x`` are no functions."""
    if not text.endswith(b"\n"):
        text += b"\n"
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)
    width = text.find(b" ")
    if width in (8, 16):
        # every line as the kernel writes it: address, space, type, space, name
        rows = starts[ends - starts > width + 3]
        plain = (data[rows + width] == _SPACE) & (data[rows + width + 2] == _SPACE)
        plain &= data[rows + width + 3] > _SPACE
        addresses = np.zeros(len(rows), np.uint64)
        for column in range(width):
            digits = _HEX[data[rows + column]]
            plain &= digits < 16
            addresses = (addresses << np.uint64(4)) | digits
        if plain.all():
            kinds, names = data[rows + width + 1], rows + width + 3
            keep = (kinds != ord("A")) & (kinds != ord("a")) & (data[names] != ord("$"))
            return Kallsyms(text, addresses[keep], names[keep])
    found = [m for m in _LINE.finditer(text) if m[2] not in b"Aa" and m[3][:1] != b"$"]
    addresses = np.array([int(m[1], 16) for m in found], np.uint64)
    return Kallsyms(text, addresses, np.array([m.start(3) for m in found], np.int64))


def parse_printk(text: bytes) -> dict[int, str]:
    r"""Read the lines ``0xADDRESS : "text\n"``; the quotes and the last newline are not part of the text."""
    strings: dict[int, str] = {}
    for line in text.split(b"\n"):
        address, colon, rest = line.partition(b":")
        match = re.match(rb"\s*(?:0[xX])?([0-9a-fA-F]{1,16})", address)
        if not colon or match is None:
            continue
        rest = rest[1:].removeprefix(b'"')
        if rest.endswith(b'"'):
            rest = rest[:-1].removesuffix(b"\\n")
        strings[int(match[1], 16)] = rest.decode("utf-8", "replace")
    return strings


class Symbols:
    """What a recording knows of its kernel: names of addresses, strings by address, word size, byte order.

    ``kallsyms`` and ``printk`` are the texts of the recording, or functions that fetch them; neither is
    touched before a name is asked for.
    """

    def __init__(
        self,
        kallsyms: bytes | Callable[[], bytes] = b"",
        printk: bytes | Callable[[], bytes] = b"",
        *,
        long_size: int = 8,
        big_endian: bool = False,
    ) -> None:
        """Keep the texts."""
        self._kallsyms = kallsyms
        self._printk = printk
        self.long_size = long_size
        self.big_endian = big_endian

    @cached_property
    def table(self) -> Kallsyms:
        """The symbols, read once."""
        return parse_kallsyms(self._kallsyms() if callable(self._kallsyms) else self._kallsyms)

    @cached_property
    def printk(self) -> dict[int, str]:
        """Strings of the kernel by their address, read once."""
        return parse_printk(self._printk() if callable(self._printk) else self._printk)

    def find(self, address: int) -> tuple[str, int] | None:
        """Return the name and start of the function that holds ``address``."""
        return self.table.find(address)

    def function(self, address: int) -> str | None:
        """Return the name of the function that holds ``address``."""
        found = self.table.find(address)
        return None if found is None else found[0]

    def address(self, name: str) -> int:
        """Return the address of the symbol called ``name``, or 0."""
        return self.table.address(name)
