"""perf.data files of recordings, as perf record writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from counterpoint.traces.recording import Recording

IP, TID, TIME, CALLCHAIN, ID, CPU, PERIOD, RAW, IDENTIFIER = (1 << n for n in (0, 1, 2, 5, 6, 7, 8, 10, 16))
USUAL = IP | TID | TIME | CPU | PERIOD | RAW | IDENTIFIER
CLOCKIDS = {"mono": 1, "mono_raw": 4, "boot": 7, "tai": 11}
HEADER = struct.Struct("<8s2Q6Q32s")
ATTR_SIZE = 128


@dataclass
class PerfData:
    """A file of what ``recording`` holds. ``sample_type``: of all its events; ``round``: samples of a CPU at a time."""

    recording: Recording
    sample_type: int = USUAL
    period: int = 1
    freq: bool = False
    lost_at_end: int = 0
    round: int = 7
    records: list[bytes] = field(default_factory=list)

    def write(self, path: Path) -> Path:
        ids = {e: 100 + n for n, e in enumerate(sorted(self.recording.counts_by_id()))}
        attrs_at = HEADER.size + 16 * len(ids)
        begin = attrs_at + (ATTR_SIZE + 16) * len(ids)
        data = b"".join(self._data(ids))
        tables = {1: _tracing_data(self.recording), 3: _string("host"), 4: _string("6.1"), 6: _string("x86_64")}
        tables[7] = struct.pack("<2I", self.recording.cpus, self.recording.cpus)
        at, places, body = begin + len(data) + 16 * len(tables), b"", b""
        for _, table in sorted(tables.items()):
            places += struct.pack("<2Q", at + len(body), len(table))
            body += table
        bits = sum(1 << n for n in tables).to_bytes(32, "little")
        attrs_size = (ATTR_SIZE + 16) * len(ids)
        head = HEADER.pack(b"PERFILE2", HEADER.size, ATTR_SIZE + 16, attrs_at, attrs_size, begin, len(data), 0, 0, bits)
        listed = b"".join(struct.pack("<2Q", i, 0) for i in ids.values())
        attrs = b"".join(self._attr(e, HEADER.size + 16 * n) for n, e in enumerate(ids))
        path.write_bytes(head + listed + attrs + data + places + body)
        return path

    def _attr(self, event: int, ids_at: int) -> bytes:
        clockid = CLOCKIDS.get(self.recording.clock)
        flags = 1 << 18 | (1 << 25 if clockid is not None else 0) | (1 << 10 if self.freq else 0)
        attr = bytearray(ATTR_SIZE)
        struct.pack_into("<2I5Q", attr, 0, 2, ATTR_SIZE, event, self.period, self.sample_type, 0, flags)
        struct.pack_into("<i", attr, 92, clockid or 0)
        return bytes(attr) + struct.pack("<2Q", ids_at, 8)

    def _data(self, ids: dict[int, int]) -> list[bytes]:
        """The records: some of one CPU, some of the next, as buffers are emptied."""
        recording = self.recording
        out = [*self.records]
        for tid, comm in recording.cmdlines.items():
            out.append(_record(3, struct.pack("<2I16s", tid, tid, comm.encode()[:15]) + self._trailer(0, 0, 0, 0)))
        losses = {int(r): int(c) for r, c in zip(recording.losses.row, recording.losses.count, strict=True)}
        at = {s: s.first for s in recording.streams}
        while any(at[s] < s.last for s in recording.streams):
            for stream in recording.streams:
                for row in range(at[stream], min(at[stream] + self.round, stream.last)):
                    number, stamp = ids[int(recording.event_id[row])], int(recording.stamp[row])
                    pid = int(recording.pid[row])
                    if row in losses:
                        body = struct.pack("<2Q", number, max(losses[row], 1))
                        out.append(_record(2, body + self._trailer(pid, stamp + 50, number, stream.cpu)))
                    out.append(_record(9, self._sample(number, pid, stamp, stream.cpu, recording.payload(row))))
                at[stream] = min(at[stream] + self.round, stream.last)
            out.append(_record(68, b""))
        if self.lost_at_end:
            known = sum(max(c, 1) for c in losses.values())
            out.append(_record(13, struct.pack("<Q", known + self.lost_at_end) + self._trailer(0, 0, 0, 0)))
        return out

    def _sample(self, number: int, pid: int, stamp: int, cpu: int, raw: bytes) -> bytes:
        kind = self.sample_type
        parts = [(IDENTIFIER, number), (IP, 0xFF), (TID, pid | pid << 32), (TIME, stamp), (ID, number), (CPU, cpu)]
        out = b"".join(struct.pack("<Q", value & (1 << 64) - 1) for bit, value in [*parts, (PERIOD, 1)] if kind & bit)
        if kind & CALLCHAIN:
            out += struct.pack("<3Q", 2, 0xFFFF, 0xEE)
        size = -(-(len(raw) + 4) // 8) * 8 - 4
        return out + struct.pack("<I", size) + raw.ljust(size, b"\0")

    def _trailer(self, pid: int, stamp: int, number: int, cpu: int) -> bytes:
        parts = [(TID, pid | pid << 32), (TIME, stamp), (ID, number), (CPU, cpu), (IDENTIFIER, number)]
        return b"".join(struct.pack("<Q", value) for bit, value in parts if self.sample_type & bit)


def _record(kind: int, body: bytes) -> bytes:
    body = body.ljust(-(-len(body) // 8) * 8, b"\0")
    return struct.pack("<I2H", kind, 0, 8 + len(body)) + body


def _string(text: str) -> bytes:
    raw = text.encode().ljust(64, b"\0")
    return struct.pack("<I", len(raw)) + raw


def _tracing_data(recording: Recording) -> bytes:
    """tools/perf/util/trace-event-info.c."""

    def sized(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    texts = [recording.formats.text(i) for i in recording.formats]
    sizes = (("u64 timestamp", 0, 8), ("local_t commit", 8, 8), ("int overwrite", 8, 1), ("char data", 16, 4080))
    page = "".join(f"\tfield: {n};\toffset:{at};\tsize:{size};\tsigned:1;\n" for n, at, size in sizes).encode()
    out = b"\x17\x08\x44tracing0.6\0\0\x08" + struct.pack("<I", 4096)
    out += b"header_page\0" + sized(page) + b"header_event\0" + sized(b"")
    out += struct.pack("<2I", 0, len({s for s, _ in texts}))
    for system in dict.fromkeys(s for s, _ in texts):
        mine = [text for s, text in texts if s == system]
        out += system.encode() + b"\0" + struct.pack("<I", len(mine)) + b"".join(map(sized, mine))
    comms = "".join(f"{pid} {comm}\n" for pid, comm in recording.cmdlines.items()).encode()
    return out + struct.pack("<2I", 0, 0) + sized(comms)
