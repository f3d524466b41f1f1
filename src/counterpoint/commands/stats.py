"""``counterpoint stats HOST GUEST...``."""

from __future__ import annotations

import argparse
import sys

from counterpoint.commands.common import (
    LateWarnings,
    Progress,
    add_claims,
    add_hosts,
    add_recordings,
    host_time,
    print_json,
    run_sync,
    warn,
    warn_all,
)
from counterpoint.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What every vCPU spent its time on: its states, the exits by reason and by what of\n"
        "the guest caused them, time stolen by the host, halts, interrupts and IPIs up to the\n"
        "guest's handler, wakeups, timers."
    )
    parser.epilog = (
        "examples:\n"
        "  counterpoint stats host.dat guest.dat\n"
        "  counterpoint stats capture/ --guest web --vcpu 0 --task 'nginx*' --json\n\n"
        "exit status: as for sync; docs/stats.md says how each number is found"
    )
    add_recordings(parser, guests="*")
    group = parser.add_argument_group("what to count")
    group.add_argument("--guest", action="append", default=[], metavar="NAME", help="this guest alone (repeatable)")
    group.add_argument(
        "--vcpu", action="append", default=[], metavar="CPU", help="this guest CPU alone (repeatable)"
    )  # fmt: skip
    group.add_argument("--from", dest="begin", metavar="T", help="from host time T on, as show has them")
    group.add_argument("--to", dest="end", metavar="T", help="up to host time T")
    group.add_argument(
        "--task", action="append", default=[], metavar="COMM|PID",
        help="exits and wakeups of this task of the guest alone (* and ?; repeatable)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="all of it as JSON (docs/stats.md)")
    add_claims(parser)
    add_hosts(parser)


def run(args: argparse.Namespace) -> int:
    vcpus = []
    for text in args.vcpu:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise UsageError(f"--vcpu {text}: the number of a guest CPU is expected, such as 0")
        vcpus.append(int(text))
    result = run_sync(args)
    warn_all(result)
    from counterpoint.outputs.stats_report import Wanted, stats_report

    late = LateWarnings(m.recording for m in result.timeline.machines)
    unit = result.host.unit
    wanted = Wanted(
        args.guest, vcpus, host_time(args.begin, unit, "--from"), host_time(args.end, unit, "--to"), args.task
    )
    if wanted.begin is not None and wanted.end is not None and wanted.begin > wanted.end:
        raise UsageError(f"--from {args.begin} is after --to {args.end}")
    if result.timeline.unplaced:
        warn(f"{result.timeline.unplaced} events are left out: no clock map is known for them")
    progress = Progress()
    progress("counting")
    try:
        report = stats_report(result, wanted)
    finally:
        progress.done()
    late.say()
    if args.json:
        print_json(report)
    else:
        from counterpoint.outputs.stats_text import stats_lines

        for line in stats_lines(report, ascii_only=not _draws()):
            sys.stdout.write(line + "\n")
    return 0 if result.is_sound else 1


def _draws() -> bool:
    """Whether the terminal, or the file, takes the signs that bars are drawn with."""
    try:
        "█▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
