"""Arguments and steps that several subcommands share."""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.errors import UsageError
from counterpoint.outputs.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from counterpoint.timeline.sync import SyncResult
    from counterpoint.traces.capture import Capture
    from counterpoint.traces.recording import Recording


def add_recordings(parser: argparse.ArgumentParser, *, guests: str) -> None:
    """HOST GUEST...; ``guests`` is argparse's count of guests."""
    parser.add_argument(
        "host",
        metavar="HOST",
        help="the host's recording (trace.dat, perf.data or ftrace's text), or a capture folder alone",
    )
    parser.add_argument("guests", metavar="GUEST", nargs=guests, help="a guest's recording")


def add_claims(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is claimed, and about whom."""
    group = parser.add_argument_group("claims and matching")
    group.add_argument(
        "--offset", action="append", default=[], metavar="[GUEST:]CPU=TICKS",
        help="claim: guest = host + TICKS on this guest CPU (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--cntvoff", action="append", default=[], metavar="[GUEST:]CPU=TICKS",
        help="claim, arm64: guest = host - TICKS in ticks of the counter (repeatable)",
    )  # fmt: skip
    group.add_argument("--claims", metavar="FILE", help="claims as JSON lines, e.g. from a VMM")
    group.add_argument(
        "--claim-event", action="append", default=[], metavar="SYSTEM:NAME:FIELD",
        help="an event of the host, e.g. a kprobe, whose field logs the vCPU's offset: CNTVOFF on arm64, KVM's TSC"
        " offset on x86, unless =cntvoff or =tsc_offset follows (repeatable)",
    )  # fmt: skip
    group.add_argument("--no-claims", action="store_true", help="ignore every claim and derive")
    group.add_argument(
        "--tid", action="append", default=[], metavar="[GUEST:]CPU=TID",
        help="the host thread that runs this guest CPU (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--parent", action="append", default=[], metavar="CHILD=PARENT",
        help="CHILD is PARENT's guest (file stems); without it every guest is HOST's",
    )  # fmt: skip
    group.add_argument(
        "--clock", action="append", default=[], metavar="[NAME=]CLOCK",
        help="the trace clock of a recording that does not name it, as ftrace's text does not: x86-tsc, mono_raw, local"
        " ... (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--frequency", type=int, metavar="HZ", help="arm64: the counter's frequency, where the stamps do not tell"
    )
    group.add_argument(
        "--k", action="append", default=[], metavar="NAME=K",
        help="arm64: a machine's stamps are (counter * mult + K) >> shift; or NAME=LO..HI (repeatable)",
    )  # fmt: skip


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """``--host``: the hosts that guests went to."""
    parser.add_argument(
        "--host", dest="further", action="append", default=[], metavar="HOST_B",
        help="a further host's recording, that a guest went to while it was recorded (repeatable, in their order)",
    )  # fmt: skip


class Progress:
    """A line on standard error that each step overwrites; nothing where that is no terminal."""

    def __init__(self) -> None:
        """Look whether anybody watches."""
        self._shown = sys.stderr.isatty()

    def __call__(self, step: str) -> None:
        """Show what is being done."""
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{printable(step)} ...")
            sys.stderr.flush()

    def done(self) -> None:
        """Clear the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def is_capture(args: argparse.Namespace) -> bool:
    """Whether a folder is all that was named, and it is no recording itself."""
    if not Path(args.host).is_dir() or args.guests:
        return False
    from counterpoint.traces.opening import is_recording

    return not is_recording(args.host)


def expand(args: argparse.Namespace) -> dict[str, Any]:
    """Take the recordings, threads and parents of a capture folder into ``args``; returns the rest for ``sync``."""
    if is_capture(args):
        args.captured = _captured(args)
    found: dict[str, Any] = getattr(args, "captured", {})
    return found


def open_capture(folder: str) -> Capture:
    """A capture folder; what its recorder left in parts, because it was killed, is put together first."""
    from counterpoint.live.folder import assemble, is_unfinished
    from counterpoint.traces.capture import Capture

    capture = Capture.open(folder)
    if not is_unfinished(capture.folder):
        return capture
    for text in assemble(capture.folder):
        warn(text)
    return Capture.open(folder)


def _captured(args: argparse.Namespace) -> dict[str, Any]:
    from counterpoint.claims.given import claim_of
    from counterpoint.errors import BadFileError
    from counterpoint.timeline.join import HostPairs
    from counterpoint.traces.capture import NAME

    capture = open_capture(args.host)
    if not capture.guests:
        raise BadFileError("names no guests: there is nothing to relate to the host", capture.folder / NAME)
    claims = []
    for guest in capture.guests:
        for number, entry in enumerate(guest.claims, 1):
            where = f"claim {number} of {guest.file.stem}"
            claims.append((guest.file.stem, claim_of(entry, capture.folder / NAME, where)[1]))
        args.tid += [f"{guest.file.stem}:{cpu}={tid}" for cpu, tid in guest.threads]
        args.parent += [f"{guest.file.stem}={guest.parent}"] if guest.parent is not None else []
    args.k += [f"{stem}={low}..{high}" for stem, (low, high) in capture.ks.items()]
    args.host, args.guests = str(capture.host), [str(g.file) for g in capture.guests]
    args.further = [*map(str, capture.hosts), *args.further]
    return {"claims": claims, "wall": HostPairs(capture.clock_pairs, capture.realtime_within_ns)}


def run_sync(args: argparse.Namespace) -> SyncResult:
    """Read the recordings that ``args`` names and prove them."""
    from counterpoint.timeline.sync import sync

    parents = {}
    captured = expand(args)
    if not args.guests:
        raise UsageError("a guest's recording is needed beside the host's, or a capture folder alone")
    for text in args.parent:
        child, equals, parent = text.partition("=")
        if not equals or not child or not parent:
            raise UsageError(f"--parent {text}: CHILD=PARENT is expected, as in --parent l2=l1")
        parents[child] = parent
    files = [args.host, *args.guests, *args.further]
    for one, other in combinations(files, 2):
        if Path(one).exists() and Path(other).exists() and Path(one).samefile(other):
            raise UsageError(f"{one} and {other} are the same file: each machine has a recording of its own")
    progress = Progress()
    try:
        return sync(
            args.host,
            *args.guests,
            offsets=args.offset,
            claims_file=args.claims,
            use_claims=not args.no_claims,
            tids=args.tid,
            parents=parents,
            cntvoffs=args.cntvoff,
            claim_events=args.claim_event,
            frequency=args.frequency,
            ks=args.k,
            clocks=args.clock,
            hosts=args.further,
            **captured,
            progress=progress,
        )
    finally:
        progress.done()


def warn(text: str) -> None:
    """One line on standard error."""
    print(f"counterpoint: {printable(text)}", file=sys.stderr)  # noqa: T201


def warn_all(result: SyncResult) -> None:
    """What was noticed while reading and matching."""
    for text in (*result.warnings, *(w for g in result.guests for w in g.warnings)):
        warn(text)


class LateWarnings:
    """What is noticed of recordings while their text is made: names and symbols are read only then."""

    def __init__(self, recordings: Iterable[Recording]) -> None:
        """Take what is known of them so far as said."""
        self._recordings = list(recordings)
        self._said = {text for recording in self._recordings for text in recording.warnings}

    def say(self) -> None:
        """Warn of what came since."""
        for text in dict.fromkeys(text for recording in self._recordings for text in recording.warnings):
            if text not in self._said:
                warn(text)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def host_time(text: str | None, unit: str, flag: str) -> int | None:
    """A host stamp as typed: an integer, or seconds with a point for a clock whose ``unit`` is ns."""
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,99}|0x[0-9a-fA-F]{1,99}", text):
        return int(text, 0)
    parts = re.fullmatch(r"([0-9]{1,99})\.([0-9]{1,9})", text)
    if parts and unit == "ns":
        return int(parts[1]) * 1_000_000_000 + int(parts[2].ljust(9, "0"))
    raise UsageError(f"{flag} {text}: a host stamp is expected, as the first column of show has them")
