"""Events a second of CTF after the merge, on one core.

    python benchmarks/bench_ctf.py [--events N] [--host FILE --guest FILE]

The recordings' own timeline is written again and again until N events are; to memory, where there is /dev/shm.
CPU seconds are counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from counterpoint.outputs.ctf import write_traces
from counterpoint.timeline.merge import Timeline
from counterpoint.timeline.sync import sync

DATA = Path(__file__).parent.parent / "tests" / "data" / "x86-agent"
MEMORY = Path("/dev/shm")


def measured(timeline: Timeline, events: int, folder: Path) -> str:
    rounds = max(1, events // len(timeline))
    begin = time.process_time()
    for number in range(rounds):
        out = folder / str(number % 2)
        out.mkdir(exist_ok=True)
        write_traces(timeline, out, out)
        size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
        for file in [*out.rglob("*")][::-1]:
            file.rmdir() if file.is_dir() else file.unlink()
    seconds = time.process_time() - begin
    total = rounds * len(timeline)
    return f"{total / seconds / 1e6:8.2f} million events/s, {size / len(timeline):.1f} bytes an event"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--host", type=Path, default=DATA / "host.dat")
    parser.add_argument("--guest", type=Path, default=DATA / "guest.dat")
    args = parser.parse_args()
    timeline = sync(args.host, args.guest).timeline
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        print(f"CTF: {measured(timeline, args.events, Path(folder))}")


if __name__ == "__main__":
    main()
