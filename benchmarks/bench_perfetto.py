"""Events a second of the whole Perfetto output after the merge, on one core.

    python benchmarks/bench_perfetto.py [--events N] [RECORDING ...]

of a simulated world of about N events, and of the recordings (a host and its guests). CPU seconds of the best of three,
part by part, the peak of memory beyond the merged timeline, and the floor: what writing as many bytes takes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from counterpoint.outputs import perfetto
from counterpoint.outputs.perfetto_vcpus import VcpuTracks
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync

REPEATS = 3
PARTS: Sequence[tuple[Any, str, str]] = (
    (VcpuTracks, "__init__", "vCPU states"),
    (VcpuTracks, "write", "vCPU tracks"),
    (perfetto, "write_sched", "scheduler"),
    (perfetto, "write_instants", "instants"),
    (perfetto, "find_flows", "arrows"),
)


def timed(seconds: Counter[str], name: str, job: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: object) -> Any:  # noqa: ANN401
        begin = time.process_time()
        try:
            return job(*args)
        finally:
            seconds[name] += time.process_time() - begin  # type: ignore[assignment]

    return run


def floor(path: Path, size: int) -> float:
    data = bytes(1 << 20)
    begin = time.process_time()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(data)
    return time.process_time() - begin


def measure(label: str, result: SyncResult, folder: Path) -> None:
    path = folder / "out.pftrace"
    events = len(result.timeline)
    assert len(result.timeline.ts_ns) == events  # what the merge gives
    best: tuple[float, Counter[str]] = (float("inf"), Counter())
    for _ in range(REPEATS):
        parts: Counter[str] = Counter()
        saved = [(owner, name, getattr(owner, name)) for owner, name, _ in PARTS]
        for owner, name, what in PARTS:
            setattr(owner, name, timed(parts, what, getattr(owner, name)))
        begin = time.process_time()
        perfetto.write_perfetto(result, path, overwrite=True)
        seconds = time.process_time() - begin
        for owner, name, job in saved:
            setattr(owner, name, job)
        best = min(best, (seconds, parts), key=lambda one: one[0])
    seconds, parts = best
    size = path.stat().st_size
    print(
        f"{label}: {events} events, {events / seconds / 1e6:.2f} million/s, {size / events:.0f} bytes an event;"
        f" writing zeros alone: {events / floor(path, size) / 1e6:.0f} million/s"
    )
    rest = seconds - sum(parts.values())
    print("   ns an event: " + ", ".join(f"{k} {v / events * 1e9:.0f}" for k, v in [*parts.items(), ("rest", rest)]))
    written = (seconds - parts["vCPU states"]) / events
    print(f"   without working out the vCPUs' states: {1e-6 / written:.2f} million/s")
    tracemalloc.start()
    perfetto.write_perfetto(result, path, overwrite=True)
    print(f"   peak of memory: {tracemalloc.get_traced_memory()[1] / events:.0f} bytes an event")
    tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", type=Path)
    parser.add_argument("--events", type=int, default=2_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.events:
            World(WorldOptions(events=args.events, vcpus=4)).write(folder / "world")
            measure("simulated world", sync(folder / "world" / "host.dat", folder / "world" / "guest.dat"), folder)
        if args.recordings:
            measure(args.recordings[0].parent.name, sync(*args.recordings), folder)


if __name__ == "__main__":
    main()
