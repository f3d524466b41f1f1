"""Rows a second of Parquet and Arrow after the merge, on one core.

    python benchmarks/bench_parquet.py [--rows N] [--host FILE --guest FILE]

The recordings' own timeline is repeated, block for block, until N rows are written. CPU seconds are counted, of all of
pyarrow's threads too; the file goes to memory.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from counterpoint.outputs.parquet import write_events
from counterpoint.timeline.arrow import ArrowEvents
from counterpoint.timeline.merge import Timeline
from counterpoint.timeline.sync import sync

DATA = Path(__file__).parent.parent / "tests" / "data" / "x86-agent"


class Repeated(ArrowEvents):
    """The same batches again and again."""

    rounds = 1

    def batches(self, machine: int | None = None):  # type: ignore[no-untyped-def] # noqa: ANN201
        return itertools.chain.from_iterable(super(Repeated, self).batches(machine) for _ in range(self.rounds))


def build(events: ArrowEvents) -> int:
    return sum(batch.num_rows for batch in events.batches()) and 0


def write(events: ArrowEvents) -> int:
    out = pa.BufferOutputStream()
    write_events(events, "{}", out, None)
    return int(out.getvalue().size)


def measured(timeline: Timeline, rows: int, job: Callable[[ArrowEvents], int], *, fields: bool) -> str:
    events = Repeated(timeline, fields=fields)
    events.rounds = max(1, rows // len(timeline))
    begin = time.process_time()
    size = job(events)
    seconds = time.process_time() - begin
    total = events.rounds * len(timeline)
    return f"{total / seconds / 1e6:8.2f} million rows/s{f', {size / total:.1f} bytes a row' if size else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--host", type=Path, default=DATA / "host.dat")
    parser.add_argument("--guest", type=Path, default=DATA / "guest.dat")
    args = parser.parse_args()
    pa.set_cpu_count(1)
    timeline = sync(args.host, args.guest).timeline
    _ = timeline.details
    for fields in (False, True):
        for name, job in (("batches", build), ("Parquet", write)):
            text = measured(timeline, args.rows, job, fields=fields)
            print(f"{name}, {'with' if fields else 'without'} fields: {text}")


if __name__ == "__main__":
    main()
