"""``counterpoint offsets``."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from counterpoint.commands.common import print_json, warn
from counterpoint.errors import UsageError
from counterpoint.outputs.files import replacing
from counterpoint.outputs.printable import printable

if TYPE_CHECKING:
    from counterpoint.live.model import HostOffsets
    from counterpoint.live.offsets import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Every VM and vCPU of this host, and its counter's offset (guest = host + offset, in ticks) by each source that"
        " works here, side by side. Nothing is installed, and nothing stays."
        " Exit status: 0 the sources agree, 1 two exclude each other, 2 nothing can be read."
    )
    parser.epilog = (
        "examples:\n  sudo counterpoint offsets\n  sudo counterpoint offsets --vmm --claims claims.jsonl\n"
        "  sudo counterpoint offsets --watch\n"
        "  sudo counterpoint offsets --openmetrics /var/lib/node_exporter/textfile/counterpoint.prom --force"
    )
    parser.add_argument("--pid", type=int, action="append", default=[], help="this VMM only (repeatable)")
    parser.add_argument(
        "--vmm", action="store_true",
        help="ask KVM from inside the VMM (ptrace): exact, but each vCPU stands still for a moment",
    )  # fmt: skip
    parser.add_argument(
        "--brackets", type=int, default=8, metavar="N", help="with --vmm: readings of the guest's counter (default 8)"
    )
    parser.add_argument("--no-probes", action="store_true", help="make no dynamic event")
    parser.add_argument("--watch", action="store_true", help="show each change as it happens, until Ctrl-C")
    parser.add_argument("--for", type=float, dest="seconds", metavar="SECONDS", help="with --watch: end after so long")
    parser.add_argument("--json", action="store_true", help="as JSON (schema 1); with --watch an object a line")
    parser.add_argument(
        "--openmetrics", metavar="FILE", help="for a node exporter's textfile folder; - is standard output"
    )
    parser.add_argument("--claims", metavar="FILE", help="exact offsets as claims for sync and verify, as JSON lines")
    parser.add_argument("--force", action="store_true", help="overwrite files")


def run(args: argparse.Namespace) -> int:
    from counterpoint.live.offsets import Request, gather
    from counterpoint.live.report import claims, openmetrics, report, table

    if not 0 <= args.brackets <= 10_000:
        raise UsageError(f"--brackets {args.brackets}: 0 to 10000 are possible")
    if args.seconds is not None and not args.watch:
        raise UsageError("--for is for --watch")
    if args.openmetrics == "-" and (args.json or args.watch):
        raise UsageError(f"--openmetrics - and {'--json' if args.json else '--watch'} both want the standard output")
    for name in (args.openmetrics, args.claims):
        if name and name != "-" and not args.force and Path(name).exists():
            raise UsageError(f"{name}: the file exists (--force overwrites it)")
    request = Request(tuple(args.pid), args.vmm, args.brackets, not args.no_probes)
    with _ended_by_signals():
        if args.watch:
            return _watch(args, request)
        found = gather(request)
        if args.openmetrics and args.openmetrics != "-":
            _put(args.openmetrics, openmetrics(found), args.force)
        if args.claims:
            _put(args.claims, "".join(f"{line}\n" for line in claims(found)), args.force)
        if args.json:
            print_json(report(found))
        elif args.openmetrics == "-":
            sys.stdout.write(openmetrics(found))
        else:
            _say(table(found))
        return _status(found)


def _status(found: HostOffsets) -> int:
    return 1 if any(each.agree() is False for each in found.vcpus) else 0


def _put(name: str, text: str, overwrite: bool) -> None:
    with replacing(Path(name), overwrite=overwrite) as file:
        file.write(text.encode())


def _say(lines: list[str]) -> None:
    for line in lines:
        print(printable(line))  # noqa: T201


def _watch(args: argparse.Namespace, request: Request) -> int:
    try:
        _watch_on(args, request)
    except KeyboardInterrupt:
        # the ordinary end of a watch
        warn("ended")
    return 0


def _watch_on(args: argparse.Namespace, request: Request) -> None:
    from counterpoint.live.offsets import gather
    from counterpoint.live.report import change_claims, change_line, change_values, claims, missing_lines, report, table
    from counterpoint.live.watch import POLL, Watch

    end = None if args.seconds is None else time.monotonic() + args.seconds
    with contextlib.ExitStack() as stack:
        # first the watch, then the look: what changes between the two is seen twice, never missed
        watch = stack.enter_context(Watch(request))
        found = gather(request)
        written = stack.enter_context(Path(args.claims).open("w" if args.force else "x")) if args.claims else None
        if args.json:
            _line({"schema": 1, "now": report(found)})
        else:
            _say([*table(found), *missing_lines(m for m in watch.missing if m not in found.missing), "", "watching:"])
        _keep(written, claims(found))
        _metrics(args, found)
        while end is None or time.monotonic() < end:
            sys.stdout.flush()
            time.sleep(POLL)
            changes = watch.poll()
            for change in changes:
                if args.json:
                    _line(change_values(change))
                else:
                    _say([change_line(change)])
            _keep(written, change_claims(changes, named=len(watch.vms) > 1))
            if changes and args.openmetrics:
                _metrics(args, gather(request))


def _keep(file: TextIO | None, lines: list[str]) -> None:
    if file is not None and lines:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()


def _metrics(args: argparse.Namespace, found: HostOffsets) -> None:
    from counterpoint.live.report import openmetrics

    if args.openmetrics:
        # a file that was there was asked for with --force before this
        _put(args.openmetrics, openmetrics(found), overwrite=True)


def _line(value: dict[str, Any]) -> None:
    print(json.dumps(value))  # noqa: T201


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: what was made is removed on the way."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
