"""Events a second of CTF after the merge, on one core.

    python benchmarks/bench_ctf.py [--events N] [--host FILE --guest FILE]

Of a simulated host and guest of N events, or of two recordings. CPU seconds are counted; the files go to memory, where
there is /dev/shm. What is read and written once, formats and metadata, shows in short recordings.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from counterpoint.outputs.ctf import write_traces
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.merge import Timeline
from counterpoint.timeline.sync import sync

MEMORY = Path("/dev/shm")


def measured(timeline: Timeline, out: Path) -> str:
    out.mkdir()
    begin = time.process_time()
    write_traces(timeline, out, out)
    seconds = time.process_time() - begin
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return f"{len(timeline) / seconds / 1e6:8.2f} million events/s, {size / len(timeline):.1f} bytes an event"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--host", type=Path)
    parser.add_argument("--guest", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        files = [args.host, args.guest]
        if None in files:
            World(WorldOptions(events=args.events)).write(folder / "world")
            files = [folder / "world" / "host.dat", folder / "world" / "guest.dat"]
        timeline = sync(*files).timeline
        print(f"CTF: {measured(timeline, folder / 'out')}")


if __name__ == "__main__":
    main()
