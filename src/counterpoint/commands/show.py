"""``counterpoint show HOST [GUEST...]``."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from counterpoint.commands.common import (
    LateWarnings,
    add_claims,
    add_hosts,
    add_recordings,
    host_time,
    is_capture,
    open_capture,
    run_sync,
    warn,
    warn_all,
)
from counterpoint.errors import UsageError
from counterpoint.outputs.printable import printable

if TYPE_CHECKING:
    from counterpoint.timeline.merge import Timeline
    from counterpoint.timeline.sync import SyncResult

BLOCK = 4096
AROUND = 10

KEYS = ("machine", "host_stamp", "since", "stamp", "cpu", "task", "tid", "event", "text")
"""What a line's form may name; ``since`` is the host stamp less that of --relative."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The merged timeline as text, in host time. A recording alone is shown as trace-cmd report shows it.\n"
        "Times are the host's trace-clock values: ticks of a counter, or seconds (12.000345678) of a clock in ns."
    )
    parser.epilog = (
        "examples:\n"
        "  counterpoint show host.dat guest.dat --event 'kvm:*' --cpu guest:0 --last 20\n"
        "  counterpoint show host.dat guest.dat --around 310782733393 --relative\n"
        "  counterpoint show host.dat guest.dat --machine host --task 'CPU 0/KVM' --from 310782733393\n"
        "  counterpoint show host.dat guest.dat --event sched_switch --json --fields\n"
        "  counterpoint show host.dat guest.dat --format '{since} {machine} {event} {text}'\n"
        "  counterpoint show host.dat guest.dat --lanes --from 310782733393 --to 310882733393\n\n"
        "exit status: as for sync"
    )
    add_recordings(parser, guests="*")
    group = parser.add_argument_group("what to show")
    group.add_argument("--machine", action="append", default=[], metavar="NAME", help="events of this machine")
    group.add_argument(
        "--cpu",
        action="append",
        default=[],
        metavar="[MACHINE:]CPU",
        help="events of this CPU (of one machine)",
    )
    group.add_argument("--task", action="append", default=[], metavar="COMM|TID", help="events of this task (* and ?)")
    group.add_argument(
        "--event", action="append", default=[], metavar="[SYSTEM:]NAME", help="events of this name (* and ?)"
    )
    group.add_argument("--from", dest="begin", metavar="T", help="events from host time T on")
    group.add_argument("--to", dest="end", metavar="T", help="events up to host time T")
    group.add_argument("--around", metavar="T", help="the events before and after host time T")
    group.add_argument(
        "--context", type=int, default=AROUND, metavar="N", help=f"events on each side of --around ({AROUND})"
    )
    group.add_argument("--last", type=int, metavar="N", help="only the last N of them")
    group.add_argument("--raw", action="store_true", help="list the fields instead of the print formats' text")
    group.add_argument(
        "--relative", action="store_true",
        help="host times since the first event shown (with --around: since that time)",
    )  # fmt: skip
    group.add_argument("--fields", action="store_true", help="the events' own fields too (with --json)")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line for each event")
    form.add_argument(
        "--format", metavar="TEXT",
        help=f"a line of this form for each event, with {' '.join(f'{{{n}}}' for n in KEYS)}",
    )  # fmt: skip
    form.add_argument(
        "--lanes", action="store_true",
        help="no events: a line for each vCPU that shows what it did (with --from, --to; docs/states.md)",
    )  # fmt: skip
    add_claims(parser)
    add_hosts(parser)


def _lanes(args: argparse.Namespace) -> int:
    """What each vCPU did, between two times."""
    from counterpoint.outputs.lanes import WIDTH, print_lanes

    _, result = _timeline(args)
    if result is None:
        raise UsageError("--lanes: a guest's recording is needed beside the host's")
    unit = result.timeline.machines[0].recording.unit
    begin, end = host_time(args.begin, unit, "--from"), host_time(args.end, unit, "--to")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    print_lanes(result, sys.stdout, begin=begin, end=end, width=width)
    sys.stdout.flush()
    return 0 if result.is_sound else 1


def run(args: argparse.Namespace) -> int:
    if args.lanes:
        return _lanes(args)
    from counterpoint.clocks.counter import to_signed
    from counterpoint.outputs.text import TimelineText
    from counterpoint.timeline.select import Selection, around, select

    if args.fields and not args.json:
        raise UsageError("--fields goes with --json (--raw lists the fields in lines of text)")
    for flag, count in (("--last", args.last), ("--context", args.context)):
        if count is not None and count < 0:
            raise UsageError(f"{flag} {count}: a number of events is expected")
    form = None if args.format is None else _form(args.format)
    timeline, result = _timeline(args)
    late = LateWarnings(m.recording for m in timeline.machines)
    wanted = Selection(
        machines=args.machine,
        cpus=[_cpu(text) for text in args.cpu],
        tasks=args.task,
        events=args.event,
        begin=host_time(args.begin, timeline.machines[0].recording.unit, "--from"),
        end=host_time(args.end, timeline.machines[0].recording.unit, "--to"),
    )
    positions = select(timeline, wanted)
    middle = host_time(args.around, timeline.machines[0].recording.unit, "--around")
    if middle is not None:
        positions = around(timeline, positions, middle, args.context)
    if args.last is not None:
        positions = positions[max(0, len(positions) - args.last) :] if args.last > 0 else positions[:0]
    origin = None
    if args.relative and len(positions):
        origin = int(timeline.host_ticks[positions[0]]) if middle is None else middle
    text = TimelineText(timeline, raw=args.raw, origin=origin)
    lines: Iterator[str]
    if args.json or form is not None:
        start = origin if origin is not None or not len(positions) else int(timeline.host_ticks[positions[0]])
        records = (
            one | {"since": to_signed(one["host_stamp"] - (start or 0))} if args.relative or form else one
            for one in text.records(positions, fields=args.fields)
        )
        lines = map(json.dumps, records) if form is None else (form(one) for one in records)
    else:
        lines = text.lines(positions)
    while block := list(itertools.islice(lines, BLOCK)):
        sys.stdout.write("\n".join(block) + "\n")
    sys.stdout.flush()
    late.say()
    for reason in text.fallbacks:
        warn(f"shown by its fields: {reason}")
    return 0 if result is None or result.is_sound else 1


def _timeline(args: argparse.Namespace) -> tuple[Timeline, SyncResult | None]:
    if is_capture(args):
        capture = open_capture(args.host)
        # a host that was recorded alone
        args.host = args.host if capture.guests else str(capture.host)
    if args.guests or is_capture(args):
        result = run_sync(args)
        warn_all(result)
        if result.timeline.unplaced:
            warn(f"{result.timeline.unplaced} events are left out: no clock map is known for them")
        return result.timeline, result
    import numpy as np

    from counterpoint.timeline.merge import Machine, Timeline
    from counterpoint.traces.rates import rate_of
    from counterpoint.traces.recording import Recording

    recording = Recording.open(args.host)
    for text in recording.warnings:
        warn(text)
    all_of_it = np.ones(len(recording), np.bool_)
    alone = Machine(recording.name, recording, None, recording.stamp, all_of_it, all_of_it)
    return Timeline([alone], rate_of(recording)), None


def _form(text: str) -> Callable[[dict[str, Any]], str]:
    """What makes a line of an event, by a form with names in braces; UsageError where it has others."""
    try:
        parts = [(before, name) for before, name, spec, how in string.Formatter().parse(text) if not spec and not how]
        whole = sum(1 for _ in string.Formatter().parse(text)) == len(parts)
    except ValueError:
        whole = False
    if not whole or any(name is not None and name not in KEYS for _, name in parts):
        known = " ".join(f"{{{name}}}" for name in KEYS)
        raise UsageError(f"--format {text}: only {known} may stand in braces; {{{{ and }}}} are braces themselves")
    return lambda event: "".join(
        before + ("" if name is None else printable(str(event[name]))) for before, name in parts
    )


def _cpu(text: str) -> tuple[str | None, int]:
    machine, _, cpu = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,9}", cpu):
        raise UsageError(f"--cpu {text}: [MACHINE:]CPU is expected, as in --cpu guest:0")
    return machine or None, int(cpu)
