"""How long the statistics of a simulated world take beyond reading and proving, on one core.

python benchmarks/bench_stats.py [--events N] [--vcpus N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from counterpoint.outputs.stats_report import stats_report
from counterpoint.outputs.stats_text import stats_lines
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--vcpus", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        World(WorldOptions(events=args.events, vcpus=args.vcpus, decoys=2, cpus=8)).write(folder)
        begin = time.process_time()
        result = sync(Path(folder) / "host.dat", Path(folder) / "guest.dat")
        events = len(result.timeline)
        proved = time.process_time()
        for _ in stats_lines(stats_report(result)):
            pass
        done = time.process_time()
    print(f"{events} events: {proved - begin:.2f} s to read, prove and merge, {done - proved:.2f} s for the statistics")


if __name__ == "__main__":
    main()
