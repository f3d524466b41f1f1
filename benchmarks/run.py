"""Timings of whole processes, side by side in one run with trace-cmd, and of the proof alone.

    python benchmarks/run.py [--recordings DIR] [--runs N]

Prints a table of medians and ratios (ours / theirs: below 1 is faster). The recordings default to the folder that
COUNTERPOINT_RECORDINGS names, else ../shared/data, else the bundled ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
COUNTERPOINT = [sys.executable, "-m", "counterpoint"]


def folder_of_recordings() -> Path:
    for name in (os.environ.get("COUNTERPOINT_RECORDINGS"), ROOT.parent / "shared" / "data", ROOT / "tests" / "data"):
        if name and Path(name).is_dir():
            return Path(name)
    raise SystemExit("no recordings found")


def timed(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return time.perf_counter() - begin


def side_by_side(ours: list[str], theirs: list[str] | None, runs: int) -> tuple[float, float | None]:
    """Median seconds of both, taken in turn."""
    pairs = [(timed(ours), timed(theirs) if theirs else 0.0) for _ in range(runs + 1)][1:]
    mine = statistics.median(p[0] for p in pairs)
    return mine, statistics.median(p[1] for p in pairs) if theirs else None


def row(name: str, ours: float, theirs: float | None = None, note: str = "") -> None:
    ratio = "" if theirs is None else f"{ours / theirs:8.2f}"
    other = "" if theirs is None else f"{theirs * 1000:12.0f}"
    print(f"{name:44} {ours * 1000:10.0f} {other:>12} {ratio:>8}  {note}")


def proof_alone(runs: int) -> tuple[float, str]:
    """90,000 guest events against 5,000 windows, blind: seconds, and what was found."""
    from counterpoint.proof.fit import Thread, fit
    from counterpoint.proof.windows import FOREVER, RunWindows

    rng = np.random.default_rng(1)
    windows, events, offset = 5_000, 90_000, -2_887_716_760_370
    edges = np.cumsum(rng.integers(2_000, 400_000, 2 * windows))
    lo, hi = edges[0::2], edges[1::2]
    which = np.sort(rng.integers(0, windows, events))
    host = lo[which] + ((hi - lo)[which] * rng.random(events)).astype(np.int64)
    host.sort()
    spans = RunWindows(
        1, 0,
        np.r_[-FOREVER, lo, hi[-1]], np.r_[lo[0], hi, FOREVER],
        np.r_[False, np.ones(windows, np.bool_), False],
        np.full(windows + 2, -1), np.full(windows + 2, -1),
    )  # fmt: skip
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        found = fit(host + offset, Thread(spans))
        taken.append(time.perf_counter() - begin)
    best = found.candidates[0]
    assert len(found.candidates) == 1 and best.lo <= offset <= best.hi
    return statistics.median(taken), f"one interval, {best.hi - best.lo} ticks wide"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, default=folder_of_recordings())
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    trace_cmd = shutil.which("trace-cmd")
    print(f"recordings: {args.recordings}; {os.cpu_count()} CPUs; medians of {args.runs} runs in turn, after one more")
    print(f"{'':44} {'ours ms':>10} {'trace-cmd ms':>12} {'ratio':>8}")
    for pair in ("x86-busy", "x86-agent", "arm64-monoraw", "arm64-nested"):
        place = args.recordings / pair
        host, guest = (
            place / n for n in (("l0.dat", "l1.dat") if pair == "arm64-nested" else ("host.dat", "guest.dat"))
        )
        if not host.exists():
            continue
        report = [trace_cmd, "report", "-i", str(host), "-i", str(guest)] if trace_cmd else None
        runs = 1 if pair == "arm64-nested" else args.runs
        row(
            f"sync --json, {pair}",
            *side_by_side([*COUNTERPOINT, "sync", "--json", str(host), str(guest)], report, runs),
        )
        one = [trace_cmd, "report", "-t", "-N", "-i", str(host)] if trace_cmd else None
        row(f"info --json, {pair} host", *side_by_side([*COUNTERPOINT, "info", "--json", str(host)], one, runs))
        if pair != "arm64-nested":
            row(f"show, {pair} host", *side_by_side([*COUNTERPOINT, "show", str(host)], one, runs))
    seconds, found = proof_alone(args.runs)
    row("proof alone, 90,000 events x 5,000 windows", seconds, note=found)
    row("--help", side_by_side([*COUNTERPOINT, "--help"], None, args.runs)[0])


if __name__ == "__main__":
    main()
