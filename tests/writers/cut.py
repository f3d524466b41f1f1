"""Cut a recording to a span of time: whole sub-buffers, and only the symbols that its events name.

    python tests/writers/cut.py IN.dat OUT.dat FROM TO      (trace-clock values)

The bundled recordings in tests/data were made with it from full ones. Only version 7 files with one buffer.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
from backports import zstd

from counterpoint.dat_layout import Option
from counterpoint.traces.container import Container, open_container
from counterpoint.traces.dat import Reader
from counterpoint.traces.recording import Recording
from counterpoint.traces.symbols import parse_kallsyms

CHUNK_PAGES = 10
KEPT = (
    Option.HEADER_INFO, Option.FTRACE_EVENTS, Option.EVENT_FORMATS, Option.KALLSYMS, Option.PRINTK, Option.CMDLINES
)  # fmt: skip


def _block(data: bytes) -> bytes:
    packed = zstd.compress(data, 19)
    return struct.pack("<II", len(packed), len(data)) + packed


def _section(kind: int, body: bytes, compressed: bool) -> bytes:
    return struct.pack("<HHiQ", kind, int(compressed), -1, len(body)) + body


def _used_symbols(recording: Recording, rows: np.ndarray) -> bytes:
    """The lines of kallsyms around every pointer that the kept events hold."""
    text = recording.kallsyms()
    table = parse_kallsyms(text)
    if not len(table.addresses):
        return b""
    used: set[int] = set()
    for event_id in set(recording.event_id[rows].tolist()):
        event = recording.formats[event_id]
        mine = rows[recording.event_id[rows] == event_id]
        for field in event.fields:
            if field.kind == "int" and field.size == 8:
                values = np.unique(recording.column(event, field.name, mine).astype(np.uint64))
                at = np.searchsorted(table.addresses, values, side="right") - 1
                near = (at >= 0) & (at < len(table.addresses) - 1)
                close = values[near] - table.addresses[at[near]] < np.uint64(1 << 20)
                used.update(at[near][close].tolist())
    keep = sorted(used | {i + 1 for i in used} | {len(table.addresses) - 1})
    lines = "".join(f"{int(table.addresses[i]):016x} T {table.name(i)}\n" for i in keep).encode()
    return struct.pack("<I", len(lines)) + lines


def cut(source: Path, target: Path, begin: int, end: int) -> None:
    container: Container = open_container(source)
    recording, reader = Recording.open(source), Reader(container)
    buffer = container.buffers[0]
    assert container.version == 7 and len(container.buffers) == 1 and not container.big_endian
    size = buffer.sub_buffer_size
    pages: dict[int, bytes] = {}
    rows: list[np.ndarray] = []
    for stream, cpu in zip(recording.streams, buffer.cpus, strict=True):
        data = reader.cpu_bytes(buffer, cpu).tobytes()
        kept = []
        for at in range(0, len(data), size):
            first = struct.unpack_from("<Q", data, at)[0]
            following = struct.unpack_from("<Q", data, at + size)[0] if at + size < len(data) else end
            if following >= begin and first <= end:
                kept.append(data[at : at + size])
        pages[cpu.cpu] = b"".join(kept)
        stamps = recording.stamp[stream.first : stream.last]
        # whole pages are kept: take in what may lie up to a page's length outside
        rows.append(stream.first + np.flatnonzero((stamps >= begin - (end - begin)) & (stamps <= end + (end - begin))))
    out = bytearray(
        b"\x17\x08\x44tracing7\0" + bytes([0, container.long_size]) + struct.pack("<I", container.page_size)
    )
    out += b"zstd\x001.5.5\x00"
    pointer = len(out)
    out += bytes(8)
    places = {}
    for kind in KEPT:
        body = container.piece(kind)
        if kind == Option.KALLSYMS:
            body = _used_symbols(recording, np.concatenate(rows))
        places[kind] = len(out)
        out += _section(kind, _block(body), True)
    options = bytearray()

    def option(kind: int, data: bytes) -> None:
        options.extend(struct.pack("<HI", kind, len(data)) + data)

    for raw in container.options:
        if raw.id in places:
            option(raw.id, struct.pack("<Q", places[Option(raw.id)]))
        elif raw.id not in (Option.BUFFER, Option.CPUSTAT):
            option(raw.id, raw.data)
    buffer_at = len(out)
    out += bytes(16)
    table = []
    for cpu, data in pages.items():
        out += bytes(-len(out) % container.page_size)
        chunks = [data[i : i + CHUNK_PAGES * size] for i in range(0, len(data), CHUNK_PAGES * size)]
        body = struct.pack("<I", len(chunks)) + b"".join(map(_block, chunks))
        table.append((cpu, len(out), len(body)))
        out += body
    out[buffer_at : buffer_at + 16] = struct.pack("<HHiQ", Option.BUFFER, 1, -1, len(out) - buffer_at - 16)
    entry = struct.pack("<Q", buffer_at) + b"\0" + buffer.clock.encode() + b"\0" + struct.pack("<II", size, len(table))
    option(Option.BUFFER, entry + b"".join(struct.pack("<IQQ", *row) for row in table))
    option(Option.DONE, bytes(8))
    out[pointer : pointer + 8] = struct.pack("<Q", len(out))
    out += _section(Option.DONE, bytes(options), False)
    target.write_bytes(out)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
