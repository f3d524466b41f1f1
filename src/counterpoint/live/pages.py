"""The few events of our own tracefs instance, from the ring buffer's own pages: exact stamps, no text to mistrust.

A sub-buffer: struct buffer_data_page (kernel/trace/ring_buffer.c), its events: include/linux/ring_buffer.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_HEADER = 16
_LENGTH = (1 << 27) - 1
_MISSED = 1 << 31
_TOP_BITS = ~((1 << 59) - 1) & (1 << 64) - 1


@dataclass(frozen=True)
class Format:
    """An event's format file: ``fields`` are name to (offset, size, signed)."""

    number: int
    fields: dict[str, tuple[int, int, bool]]

    def decode(self, payload: bytes) -> dict[str, int]:
        """The integers of an event by name; fields that are no integers of up to 8 bytes are left out."""
        out = {}
        for name, (offset, size, signed) in self.fields.items():
            if size in (1, 2, 4, 8) and offset + size <= len(payload):
                out[name] = int.from_bytes(payload[offset : offset + size], "little", signed=signed)
        return out


def parse_format(text: str) -> Format:
    """Read an event's format file. ValueError where it is none."""
    number = re.search(r"^ID:\s*(\d+)$", text, re.MULTILINE)
    if number is None:
        raise ValueError("an event's format has no ID")
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:([01]);", text)
    return Format(
        int(number[1]), {name: (int(offset), int(size), signed == "1") for name, offset, size, signed in found}
    )


def events_of(page: bytes) -> Iterator[tuple[int, bytes]]:
    """(stamp, payload) of each event in one sub-buffer, in order."""
    if len(page) < _HEADER:
        return
    stamp, commit = struct.unpack_from("<QQ", page)
    top = stamp & _TOP_BITS
    end = min(len(page), _HEADER + (commit & _LENGTH))
    at = _HEADER
    while at + 4 <= end:
        (word,) = struct.unpack_from("<I", page, at)
        kind, delta = word & 31, word >> 5
        at += 4
        if kind == _PADDING:
            if not delta or at + 4 > end:
                return
            # an event that was taken back: its time has passed all the same
            stamp += delta
            at += struct.unpack_from("<I", page, at)[0]
            continue
        if kind in (_TIME_EXTEND, _TIME_STAMP):
            if at + 4 > end:
                return
            long = (struct.unpack_from("<I", page, at)[0] << 27) + delta
            stamp = stamp + long if kind == _TIME_EXTEND else top | long
            at += 4
            continue
        stamp += delta
        if kind:
            length = kind * 4
        else:
            if at + 4 > end:
                return
            # the length counts itself
            length = struct.unpack_from("<I", page, at)[0] - 4
            at += 4
        if length <= 0 or at + length > end:
            return
        yield stamp & (1 << 64) - 1, page[at : at + length]
        at += -(-length // 4) * 4


def lost_before(page: bytes) -> bool:
    """Whether events were overwritten before this sub-buffer was read."""
    return len(page) >= _HEADER and bool(struct.unpack_from("<Q", page, 8)[0] & _MISSED)
