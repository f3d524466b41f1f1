"""``counterpoint doctor``."""

from __future__ import annotations

import argparse

from counterpoint.commands.common import print_json
from counterpoint.outputs.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What this machine can do, line by line, and what mends each lack. Nothing is changed."
        " Exit status: 0 all that is needed is there, 1 something lacks."
    )
    parser.epilog = "example:\n  sudo counterpoint doctor"
    parser.add_argument("--json", action="store_true", help="the findings as JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    from counterpoint.live.doctor import LACKING, examine

    found = examine()
    lacking = [finding for finding in found if finding.state == LACKING]
    if args.json:
        print_json({"schema": 1, "sound": not lacking, "findings": [vars(finding) for finding in found]})
        return 1 if lacking else 0
    width = max(len(finding.what) for finding in found)
    for finding in found:
        print(f"{finding.state:<7}  {finding.what:<{width}}  {printable(finding.text)}")  # noqa: T201
        if finding.cure:
            print(f"{'':<7}  {'':<{width}}  -> {printable(finding.cure)}")  # noqa: T201
    return 1 if lacking else 0
