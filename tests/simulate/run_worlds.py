"""Judge many simulated worlds: ``make worlds`` takes 500, some ten minutes on two cores.

python tests/simulate/run_worlds.py 0..500 [SEED ...] [--write docs/accuracy.md]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulate.judge import Judgement, judge
from simulate.report import report, seeds_of

BEGIN, END = "<!-- worlds: made by make worlds -->\n", "<!-- end of worlds -->\n"


def one(seed: int) -> Judgement:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return judge(seed, Path(folder))
        except Exception as err:
            raise RuntimeError(f"seed {seed}") from err


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--write", type=Path, help="the page whose part between the two marks is replaced")
    options = parser.parse_args()
    seeds, found, begin = seeds_of(options.seeds), [], time.monotonic()
    with ProcessPoolExecutor(options.jobs) as pool:
        for judgement in pool.map(one, seeds):
            found.append(judgement)
            for text in judgement.complaints:
                print(f"seed {judgement.seed}: {text}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(found)}/{len(seeds)} worlds", end="", file=sys.stderr, flush=True)
    text = report(found)
    print(text)
    slowest = max(found, key=lambda j: j.seconds)
    print(f"{time.monotonic() - begin:.0f} s; the slowest proof took {slowest.seconds:.1f} s (seed {slowest.seed})")
    if options.write:
        page = options.write.read_text()
        head, _, rest = page.partition(BEGIN)
        _, _, tail = rest.partition(END)
        options.write.write_text(head + BEGIN + text + END + tail)
    return any(j.complaints for j in found)


if __name__ == "__main__":
    raise SystemExit(main())
