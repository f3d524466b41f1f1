"""The command's entry: parses the name of a subcommand and imports only that one."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import CounterpointError

COMMANDS = {
    "sync": "put a host's and its guests' recordings on one timeline, with proof",
    "verify": "only the proof: hold what the files claim against causality",
    "show": "the merged timeline as text, like trace-cmd report",
    "why": "what made a guest's tasks late: each latency cut into its causes",
    "stats": "what vCPUs spent their time on: states, exits, steal, interrupts, timers, wakeups",
    "view": "the timeline, its proof and what was late as pictures in the browser",
    "sql": "ask the merged timeline by SQL (DuckDB)",
    "convert": "a stamp or a column of them, guest to host and back, with its bound",
    "info": "what a recording holds",
    "offsets": "live: every VM and vCPU of this host, its offset by every source that works here",
    "record": "live: this host and guests beside it, into a capture folder",
    "agent": "a guest's side of record: serves this machine's trace to its host",
    "doctor": "what this machine can do, and what mends each lack",
    "simulate": "make a world whose truth is known, as recordings",
}

_EPILOG = "start with:  counterpoint sync host.dat guest.dat -o merged.pftrace"


class _Parser(argparse.ArgumentParser):
    """Takes options between other arguments, wherever they stand."""

    _is_inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]  # noqa: ANN401 (as its base has it)
        # parse_known_intermixed_args calls this again, for each of its two passes
        if self._is_inside:
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command itself; a subcommand's own arguments are added when it is named."""
    parser = argparse.ArgumentParser(
        prog="counterpoint",
        description="Kernel traces of a KVM host, its guests and their guests on one timeline, exactly, with proof.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"counterpoint {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 sound, 1 in doubt, 2 bad input or usage."""
    # numpy starts a thread per CPU for linear algebra, of which there is none here: 50 ms of each run
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    named = next((a for a in arguments if not a.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == named:
            module = _module(name)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
            if getattr(module, "RUNS_A_COMMAND", False) and "--" in arguments:
                # all that follows is another program's: none of it is looked at here
                at = arguments.index("--")
                sub.set_defaults(run_command=arguments[at + 1 :])
                del arguments[at:]
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names in a trace are anyone's: a terminal that lacks a letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args))
    except CounterpointError as err:
        _say(str(err))
        return 2
    except OSError as err:
        if isinstance(err, BrokenPipeError):
            # the reader has seen enough; do not let the interpreter's own flush complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        _say(f"{err.filename or 'output'}: {err.strerror or err}")
        return 2
    except MemoryError:
        _say("not enough memory for these recordings (record for a shorter time, or fewer events)")
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"counterpoint.commands.{name}")
    except ModuleNotFoundError as err:
        if err.name != f"counterpoint.commands.{name}":
            raise
        # the zip file for bare machines holds the live commands alone
        _say(f"{name} is not in this file: it needs the whole package (pip install counterpoint)")
        sys.exit(2)


def _say(text: str) -> None:
    from counterpoint.commands.common import warn

    warn(text)


def entry() -> None:
    """The console script."""
    sys.exit(main())
