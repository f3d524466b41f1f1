"""A data stream of a CTF trace: its events in packets of bounded size, with what was lost between them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO
from uuid import UUID

import numpy as np

from counterpoint.clocks.counter import I64, U64
from counterpoint.outputs.ctf_metadata import MAGIC
from counterpoint.outputs.ctf_rows import Bytes

PACKET_BYTES = 1 << 18
"""Bytes of events in a packet, unless a single one has more."""

_HEAD = "I16sIQQQQQQQI"
"""magic, uuid, stream_id, stream_instance_id; begin, end, content and packet size in bits, number, lost, CPU."""


@dataclass(slots=True)
class PacketWriter:
    """Writes one stream of a machine: of one CPU and one buffer. ``instance`` is its number in the trace."""

    file: BinaryIO
    uuid: UUID
    instance: int
    cpu: int
    big_endian: bool
    _number: int = 0
    _lost: int = 0
    _last: int = 0

    def events(self, data: Bytes, starts: I64, time: U64, lost: dict[int, int]) -> None:
        """Write the records ``data`` u8, which begin at ``starts`` i64[n + 1], of the instants ``time`` u64[n].

        ``lost``: how many events were lost just before some of them. Such a one has a packet of its own that begins
        with the event before it: readers take what was lost to be between the ends of two packets.
        """
        if not len(time):
            return
        if not self._number:
            self._last = int(time[0])
            if 0 in lost:
                # a count is told from the packet before
                self._packet(data[:0], self._last, self._last)
        cuts = sorted({0, len(time), *lost, *(at + 1 for at in lost)})
        for begin, end in pairwise(cuts):
            self._lost += lost.get(begin, 0)
            at = begin
            while at < end:
                room = int(np.searchsorted(starts, starts[at] + PACKET_BYTES, side="right")) - 1
                stop = min(max(room, at + 1), end)
                since = self._last if at in lost else int(time[at])
                self._packet(data[starts[at] : starts[stop]], since, int(time[stop - 1]))
                at = stop

    def close(self, lost: int = 0) -> None:
        """Say how many events were lost after the last one; a stream without events gets a packet all the same."""
        self._lost += lost
        if lost or not self._number:
            self._packet(np.zeros(0, np.uint8), self._last, self._last)

    def _packet(self, content: Bytes, begin: int, end: int) -> None:
        head = struct.calcsize("=" + _HEAD)
        bits = 8 * (head + len(content))
        self.file.write(
            struct.pack(
                (">" if self.big_endian else "<") + _HEAD,
                MAGIC, self.uuid.bytes, 0, self.instance, begin, end, bits, bits, self._number, self._lost, self.cpu,
            )
        )  # fmt: skip
        self.file.write(content.data)
        self._number += 1
        self._last = end
