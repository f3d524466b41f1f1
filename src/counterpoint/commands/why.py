"""``counterpoint why HOST GUEST... [--task T] [--over 100us] [--top N] ...``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from counterpoint.commands.common import add_claims, add_hosts, add_recordings, host_time, run_sync, warn_all
from counterpoint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from counterpoint.analysis.latency import Latencies
    from counterpoint.analysis.why import Explainer, Explanation
    from counterpoint.outputs.explained import Found
    from counterpoint.timeline.sync import SyncResult

_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the worst latencies of guests' tasks, and give every nanosecond of each to a cause: another thread on\n"
        "the host's CPU, an exit, the VMM, the guest itself. What nothing accounts for is 'unexplained'."
    )
    parser.epilog = (
        "examples:\n"
        "  counterpoint why host.dat guest.dat --task cyc5ms --top 5\n"
        "  counterpoint why capture/ --over 1ms --json\n"
        "  counterpoint why host.dat guest.dat --begin raw_syscalls:sys_enter --end raw_syscalls:sys_exit\n\n"
        "exit status: as for sync"
    )
    add_recordings(parser, guests="*")
    what = parser.add_argument_group("which latencies")
    what.add_argument(
        "--timers", action="store_true", help="timers that expire late, not tasks that run late (the default)"
    )
    what.add_argument(
        "--interrupts", action="store_true", help="interrupts, from the host's request to the guest's handler"
    )
    what.add_argument("--begin", metavar="[SYSTEM:]EVENT", help="from such an event of a task ...")
    what.add_argument("--end", metavar="[SYSTEM:]EVENT", help="... to its next one of this kind")
    what.add_argument(
        "--sample", metavar="[SYSTEM:]EVENT:FIELD",
        help="an event whose field holds the ns that it tells of and ends: ftrace:timerlat:timer_latency,"
        " osnoise:sample_threshold:duration",
    )  # fmt: skip
    what.add_argument(
        "--interval", metavar="[GUEST:]CPU=FROM..TO", action="append", default=[],
        help="explain what this vCPU did between two host stamps (repeatable)",
    )  # fmt: skip
    what.add_argument("--guest", metavar="NAME", help="of this guest only")
    what.add_argument("--task", metavar="COMM|TID", action="append", default=[], help="of this task (* and ?)")
    what.add_argument("--over", metavar="TIME", help="those that are longer: 250us, 1ms; all of them are explained")
    what.add_argument("--at", metavar="T", help="those that were going on at host stamp T")
    what.add_argument("--top", type=int, metavar="N", help="the N longest (10; with --over all)")
    form = parser.add_argument_group("output")
    form.add_argument("--pieces", action="store_true", help="each latency's pieces in their order, with their events")
    form.add_argument("--json", action="store_true", help="one JSON object, with all pieces")
    add_claims(parser)
    add_hosts(parser)


def run(args: argparse.Namespace) -> int:
    from counterpoint.analysis.why import Explainer
    from counterpoint.outputs.explained import print_why, why_report

    if (args.begin is None) != (args.end is None):
        raise UsageError("--begin and --end belong together")
    if sum(map(bool, (args.begin, args.timers, args.interrupts, args.sample, args.interval))) > 1:
        raise UsageError("--timers, --interrupts, --sample, --begin with --end, --interval: choose one")
    if args.top is not None and args.top < 1:
        raise UsageError(f"--top {args.top}: 1 or more is expected")
    over = _duration(args.over)
    result = run_sync(args)
    warn_all(result)
    explainer = Explainer(result)
    found = _intervals(args, explainer) if args.interval else _find(args, explainer, over)
    if args.json:
        sys.stdout.write(json.dumps(why_report(explainer, found), indent=1) + "\n")
    else:
        print_why(explainer, found, sys.stdout, pieces=args.pieces)
    sys.stdout.flush()
    return 0 if result.is_sound else 1


def _duration(text: str | None) -> int | None:
    """A time as typed, in ns."""
    if text is None:
        return None
    parts = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?(ns|us|ms|s)", text)
    if not parts:
        raise UsageError(f"--over {text}: a time such as 250us or 1.5ms is expected")
    decimals = parts[2] or ""
    ns: int = int(parts[1] + decimals) * _UNITS[parts[3]] // 10 ** len(decimals)
    return ns


def _guests(args: argparse.Namespace, result: SyncResult) -> list[str]:
    names = [g.name for g in result.guests]
    if args.guest is None:
        return names
    if args.guest not in names:
        raise UsageError(f"no guest is called {args.guest!r} (there are: {', '.join(names)})")
    return [args.guest]


def _find(args: argparse.Namespace, explainer: Explainer, over: int | None) -> Found:
    """The latencies that are asked for, and the longest of them explained."""
    import numpy as np

    from counterpoint.outputs.explained import Found

    timeline = explainer.result.timeline
    what, search = _search(args, explainer)
    at = host_time(args.at, timeline.machines[0].recording.unit, "--at")
    moment = None if at is None else (at - timeline.base + (1 << 63)) % (1 << 64) - (1 << 63)
    if over is not None and timeline.rate is None:
        raise UsageError("--over: how long a tick of the host's clock is, is not known")
    least = 0 if over is None or timeline.rate is None else int(timeline.rate.from_ns(np.array([over]))[1][0])
    found: dict[str, Latencies] = {}
    chosen: list[tuple[int, str, int]] = []
    for guest in _guests(args, explainer.result):
        every = search(guest)
        keep = every.took >= least if over is None else every.took > least
        if moment is not None:
            keep &= (every.begin <= moment) & (every.end >= moment)
        if args.task:
            keep &= explainer.is_task(guest, every, args.task)
        found[guest] = every.take(np.flatnonzero(keep))
        took = found[guest].took
        order = np.argsort(-took, kind="stable")[: args.top or (None if over is not None else 10)]
        chosen += [(-int(took[n]), guest, n) for n in order.tolist()]
    chosen.sort()
    chosen = chosen[: args.top or (None if over is not None else 10)]
    explained: list[Explanation] = []
    for _, guest, n in chosen:
        explained += explainer.explain(guest, found[guest], [n])
    return Found(what, found, explained)


def _search(args: argparse.Namespace, explainer: Explainer) -> tuple[str, Callable[[str], Latencies]]:
    """What is looked for, and how it is found in a guest."""
    tasks = explainer.tasks
    if args.begin is not None:
        return (
            f"times from {args.begin} to {args.end}",
            lambda guest: tasks(guest).between(tasks(guest).rows_named(args.begin), tasks(guest).rows_named(args.end)),
        )
    if args.sample is not None:
        name, colon, field = args.sample.rpartition(":")
        if not colon or not name or not field:
            raise UsageError(f"--sample {args.sample}: [SYSTEM:]EVENT:FIELD is expected")
        return f"samples of {name}", lambda guest: tasks(guest).samples(name, field)
    if args.interrupts:
        return "interrupts", explainer.interrupts
    if args.timers:
        return "timers", lambda guest: tasks(guest).timers()
    return "wakeups", lambda guest: tasks(guest).wakeups()


def _intervals(args: argparse.Namespace, explainer: Explainer) -> Found:
    from counterpoint.outputs.explained import Found

    timeline = explainer.result.timeline
    unit = timeline.machines[0].recording.unit
    names = [g.name for g in explainer.result.guests]
    out = []
    for text in args.interval:
        parts = re.fullmatch(r"(?:(.+):)?([0-9]{1,5})=([0-9.x]+?)\.\.([0-9.x]+)", text)
        guest = parts[1] or (names[0] if len(names) == 1 else None) if parts else None
        if not parts or guest not in names:
            raise UsageError(f"--interval {text}: [GUEST:]CPU=FROM..TO is expected, with one of {', '.join(names)}")
        begin, end = (host_time(each, unit, "--interval") for each in (parts[3], parts[4]))
        assert begin is not None and end is not None
        if end <= begin:
            raise UsageError(f"--interval {text}: it ends before it begins")
        out.append(explainer.interval(guest, int(parts[2]), begin - timeline.base, end - timeline.base))
    return Found("intervals", {}, out)
