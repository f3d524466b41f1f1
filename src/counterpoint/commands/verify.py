"""``counterpoint verify HOST GUEST...``."""

from __future__ import annotations

import argparse

from counterpoint.commands.common import add_claims, add_hosts, add_recordings, print_json, run_sync, warn_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Hold every claim about the guests' offsets against causality; merge nothing."
    parser.epilog = (
        "example:\n  counterpoint verify host.dat guest.dat --offset 0=-81892957611\n\n"
        "exit status: 0 all proved or derived, 1 something is refuted, ambiguous or unbounded, 2 bad input"
    )
    add_recordings(parser, guests="*")
    add_claims(parser)
    add_hosts(parser)
    parser.add_argument("--json", action="store_true", help="the proof as JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    result = run_sync(args)
    warn_all(result)
    if args.json:
        from counterpoint.outputs.report import sync_report

        print_json(sync_report(result, merged=False))
    else:
        from counterpoint.outputs.table import print_sync

        print_sync(result, merged=False)
    return 0 if result.is_sound else 1
