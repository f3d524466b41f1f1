"""Packets a second that the Perfetto writer makes, into memory that is thrown away and into a file.

python benchmarks/bench_pftrace.py [MILLIONS_OF_ROWS]
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from counterpoint.outputs.pftrace import Addresses, Annotations, PerfettoWriter

REPEATS = 3


class Nowhere(io.RawIOBase):
    """A file that forgets what is written."""

    def write(self, data: object, /) -> int:
        return memoryview(data).nbytes  # type: ignore[arg-type]


def main() -> None:
    rows = int(float(sys.argv[1] if len(sys.argv) > 1 else 2) * 1e6)
    rng = np.random.default_rng(1)
    begin = 10**13 + np.cumsum(rng.integers(500, 50_000, rows))
    end = begin + 400
    names = [f"reason {i}" for i in range(300)]
    index = rng.integers(0, len(names), rows)
    small, address = rng.integers(0, 1 << 20, rows), rng.integers(0, 1 << 63, rows).astype(np.uint64)
    results = rng.integers(-40, 4000, rows)
    plain: Annotations = [
        ("vcpu", index),
        ("ip", Addresses(address)),
        ("len", small),
        ("comm", (names, index)),
    ]
    mixed: Annotations = [*plain[:3], ("ret", results)]
    sparse: Annotations = [*plain[:3], ("ret", np.ma.array(results, mask=results < 1000))]
    inner_begin, inner_end = begin + 100, begin + 300
    nested = np.stack((begin, inner_begin), 1).ravel(), np.stack((end, inner_end), 1).ravel()
    twice = np.repeat(index, 2)

    cases: list[tuple[str, int, Callable[[PerfettoWriter, int], object]]] = [
        ("slices, one after the other", 2 * rows, lambda w, t: w.slices(t, begin, end, index, names)),
        ("slices, nested", 4 * rows, lambda w, t: w.slices(t, *nested, twice, names)),
        ("instants, no annotation", rows, lambda w, t: w.instants(t, begin, index, names)),
        ("instants, 4 annotations", rows, lambda w, t: w.instants(t, begin, index, names, plain)),
        ("instants, 4, one of mixed sign", rows, lambda w, t: w.instants(t, begin, index, names, mixed)),
        ("instants, 4, one sparse", rows, lambda w, t: w.instants(t, begin, index, names, sparse)),
        ("counter", rows, lambda w, t: w.counter(t, begin, small)),
    ]
    print(f"{'':32}{'M packets/s':>12}{'to a file':>12}{'bytes each':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for label, packets, write in cases:
            rates = []
            for target in (Nowhere(), Path(folder) / "x.pftrace"):
                seconds = []
                for _ in range(REPEATS):
                    with PerfettoWriter(target, overwrite=True) as writer:  # type: ignore[arg-type]
                        track = writer.track("track")
                        before = writer.bytes_written
                        start = time.perf_counter()
                        write(writer, track)
                        seconds.append(time.perf_counter() - start)
                rates.append(packets / min(seconds) / 1e6)
            size = (writer.bytes_written - before) / packets
            print(f"{label:32}{rates[0]:12.1f}{rates[1]:12.1f}{size:12.1f}")


if __name__ == "__main__":
    main()
