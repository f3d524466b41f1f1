"""Fuzz the readers.

    python -m fuzz [TARGET...] [--runs N] [--seed N] [--engine mutate|atheris] [--seconds N]
    python -m fuzz TARGET --replay FILE...

An input that ends in anything but a CounterpointError, takes more than --patience seconds or more than --memory MB is
kept in fuzz/found/TARGET-HASH, and the exit status is 1. ``mutate`` (the default) makes the same inputs for the same
seed; ``atheris`` (pip install atheris) is guided by coverage, for --seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

from fuzz.mutate import mutated
from fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"


class TooLongError(Exception):
    """An input took longer than it may."""


def _too_long(*_: object) -> None:
    raise TooLongError


def keep(target: str, data: bytes) -> Path:
    """Keep an input that did harm."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path


def attempt(target: str, data: bytes, patience: int) -> str | None:
    """What harm an input did; None: none."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(patience)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            TARGETS[target].run(data)
    except Exception:  # whatever it is, it was not to come
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return None


def one_target(target: str, args: argparse.Namespace) -> int:
    """Fuzz one target in this process; how many inputs did harm."""
    limit = args.memory << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seeds = TARGETS[target].seeds()
    for number, data in enumerate(seeds):
        if harm := attempt(target, data, args.patience):
            print(f"{target}: seed {number}\n{harm}")
            return 1
    rng = random.Random(f"{args.seed} {target}")
    begin, bad = time.monotonic(), 0
    for _ in range(args.runs):
        data = mutated(rng, seeds)
        if harm := attempt(target, data, args.patience):
            bad += 1
            print(f"{target}: {keep(target, data)}\n{harm}", flush=True)
    took = time.monotonic() - begin
    print(f"{target:8} {args.runs} inputs from {len(seeds)} in {took:.1f} s: {bad or 'none'} did harm")
    return bad


def replay(target: str, files: list[str], patience: int) -> int:
    """Run inputs that were kept."""
    bad = 0
    for name in files:
        harm = attempt(target, Path(name).read_bytes(), patience)
        bad += harm is not None
        print(f"{name}: {harm or 'no harm'}")
    return bad


def guided(target: str, args: argparse.Namespace) -> int:
    """Fuzz one target by coverage, with atheris."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    corpus = FOUND / f"corpus-{target}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(TARGETS[target].seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    atheris.instrument_all()
    flags = [f"-max_total_time={args.seconds}", f"-rss_limit_mb={args.memory}", f"-timeout={args.patience}"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={FOUND}/{target}-", str(corpus)], TARGETS[target].run)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Parse the arguments, and fuzz each target in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (all)")
    parser.add_argument("--runs", type=int, default=1000, help="inputs for each target (1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--seconds", type=int, default=60, help="for how long atheris runs")
    parser.add_argument("--patience", type=int, default=20, help="seconds that an input may take (20)")
    parser.add_argument("--memory", type=int, default=4096, help="MB of address space (4096)")
    parser.add_argument("--replay", nargs="+", metavar="FILE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if wrong := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"no target {', '.join(wrong)} (there are: {', '.join(TARGETS)})")
    if args.replay:
        return bool(replay(args.targets[0], args.replay, args.patience))
    if args.inside:
        (target,) = args.targets
        return guided(target, args) if args.engine == "atheris" else bool(one_target(target, args))
    # each in a process of its own: memory is bounded there, and a crash is one target's
    status = 0
    for target in args.targets or TARGETS:
        command = [sys.executable, "-m", "fuzz", target, "--inside", *(a for a in sys.argv[1:] if a not in TARGETS)]
        status |= subprocess.run(command, check=False).returncode != 0
    return status


if __name__ == "__main__":
    sys.exit(main())
