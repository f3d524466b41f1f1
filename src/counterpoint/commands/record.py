"""``counterpoint record``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.commands.common import print_json, warn
from counterpoint.errors import UsageError
from counterpoint.outputs.printable import printable

if TYPE_CHECKING:
    from counterpoint.live.record import MachineSummary, Request, Summary

SCHEMA = 1
RUNS_A_COMMAND = True
"""What stands behind -- is a command to run."""

_SECONDS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Record this host, and guests beside it, into a capture folder: host.dat, a .dat for each guest, and"
        " capture.json with what is known of VMs, threads, offsets and clocks. Then `counterpoint sync FOLDER` needs no"
        " other argument. In a tracefs instance of its own, in the exact clock; nothing that it makes there stays."
        " Exit status: 0 recorded, 1 the condition of --snapshot-on never came or a guest is missing, 2 not recorded."
    )
    parser.epilog = (
        "examples:\n"
        "  sudo counterpoint record -d 10s -o capture\n"
        "  sudo counterpoint record --for exits -o capture -- ./reproduce-it\n"
        "  sudo counterpoint record -e sched -e 'kvm:kvm_exit:exit_reason == 12' -d 5s -o capture\n"
        "  sudo counterpoint record --snapshot-on 'sched:sched_switch:next_prio == 0' --buffer-size 64M -o capture\n"
        "  sudo counterpoint record -d 10s --guest vm1=ssh://root@192.168.122.10 -o capture"
    )
    parser.usage = "counterpoint record [options] [-- CMD ...]"
    parser.set_defaults(run_command=[])
    parser.add_argument("-o", "--output", metavar="FOLDER", default="capture", help="the capture folder (capture)")
    parser.add_argument("--force", action="store_true", help="replace a capture that is in the folder")
    group = parser.add_argument_group("what")
    group.add_argument(
        "--for", dest="preset", choices=("latency", "exits", "io", "all"),
        help="a preset of events (latency, unless -e names some)",
    )  # fmt: skip
    group.add_argument(
        "-e", "--event", action="append", default=[], metavar="EVENT",
        help="SYSTEM, SYSTEM:EVENT or SYSTEM:EVENT:FILTER, * as in a shell (repeatable; kvm_entry, kvm_exit and"
        " kvm_write_tsc_offset are always recorded)",
    )  # fmt: skip
    group.add_argument("--clock", metavar="NAME", help="a trace clock other than the exact one")
    group.add_argument("--no-kallsyms", action="store_true", help="without the kernel's symbols: a smaller file")
    group = parser.add_argument_group("how long, how much")
    group.add_argument(
        "-d", "--duration", metavar="TIME", help="e.g. 10s, 500ms, 2m; else until Ctrl-C, or until CMD ends"
    )
    group.add_argument("--buffer-size", metavar="SIZE", default="4M", help="the kernel's buffer of each CPU (4M)")
    group.add_argument("--max-size", metavar="SIZE", help="end when so much of the host was recorded, e.g. 2G")
    group.add_argument(
        "--snapshot-on", metavar="CONDITION",
        help="flight recorder: keep in memory, in a circle, and write what is there when this happens:"
        " SYSTEM:EVENT[:FILTER] or SIGUSR1",
    )  # fmt: skip
    group.add_argument("--after", metavar="TIME", default="0", help="with --snapshot-on: record so much longer")
    group = parser.add_argument_group("guests and offsets")
    group.add_argument(
        "--guest", action="append", default=[], metavar="[NAME=]URL",
        help="record this guest too: ssh://[USER@]HOST[:PORT] needs nothing but a shell there; vsock://CID[:PORT],"
        " unix://PATH:PORT (Firecracker), tcp://HOST[:PORT], serial:///dev/DEVICE: an agent (repeatable). NAME, the"
        " VM's name or its VMM's process id, says which VM it is where there are several",
    )  # fmt: skip
    group.add_argument(
        "--guest-secret", metavar="FILE",
        help="what counterpoint agent in the guests has too; without it, or with trace-cmd+URL, it is trace-cmd agent",
    )  # fmt: skip
    group.add_argument("--ssh-command", metavar="CMD", default="ssh", help="in place of ssh, e.g. 'ssh -i key'")
    group.add_argument(
        "--vmm", action="store_true", help="ask KVM for offsets from inside the VMM too (see counterpoint offsets)"
    )
    group.add_argument("--no-probes", action="store_true", help="make no dynamic event to read offsets")
    parser.add_argument("--json", action="store_true", help="how it went as JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    from counterpoint.live.ending import Ending
    from counterpoint.live.record import record

    ending = Ending()
    line = _Line()
    with ending.signals(snapshot=args.snapshot_on == "SIGUSR1"):
        try:
            summary = record(_request(args), ending, line if line.shown else None)
        finally:
            line.done()
    for note in (*summary.notes, *(f"{m.name}: {note}" for m in summary.machines for note in m.notes)):
        warn(note)
    if args.json:
        print_json(_values(summary))
    else:
        _say(summary)
    is_whole = len(summary.machines) == 1 + len(args.guest)
    return 0 if is_whole and (summary.snapshot is None or summary.snapshot["happened"]) else 1


def _request(args: argparse.Namespace) -> Request:
    from counterpoint.live.flight import Condition
    from counterpoint.live.guests import make
    from counterpoint.live.presets import EventSpec
    from counterpoint.live.record import Request

    seconds = None if args.duration is None else parse_time(args.duration, "--duration")
    after = parse_time(args.after, "--after")
    if after and not args.snapshot_on:
        raise UsageError("--after is for --snapshot-on: how much longer to record when it happens")
    size = parse_size(args.buffer_size, "--buffer-size")
    return Request(
        folder=Path(args.output),
        preset=args.preset or (None if args.event else "latency"),
        events=[EventSpec.parse(text) for text in args.event],
        seconds=seconds,
        command=args.run_command,
        buffer_kb=max(8, size >> 10),
        max_bytes=None if args.max_size is None else parse_size(args.max_size, "--max-size"),
        condition=None if args.snapshot_on is None else Condition(args.snapshot_on),
        after=after,
        clock=args.clock,
        guests=[make(text, ssh_command=args.ssh_command, secret_file=args.guest_secret) for text in args.guest],
        vmm=args.vmm,
        probes=not args.no_probes,
        kallsyms=not args.no_kallsyms,
        overwrite=args.force,
    )


def parse_time(text: str, flag: str) -> float:
    """Seconds of "10s", "500ms", "2m", "10"; UsageError where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _SECONDS:
        raise UsageError(f"{flag} {text}: a time is expected, as in 10s, 500ms, 2m")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str, flag: str) -> int:
    """Bytes of "4M", "512k", "1G", "1048576"; UsageError where it is none, or 0."""
    match = re.fullmatch(r"(\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None or not int(match[1]):
        raise UsageError(f"{flag} {text}: a size is expected, as in 4M, 512k, 1G")
    return int(match[1]) * _BYTES[match[2]]


class _Line:
    """Events a second, lost events and bytes, on a terminal; each call overwrites the last."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self._last = (0.0, 0)

    def __call__(self, seconds: float, counts: dict[str, int], size: int) -> None:
        before, events = self._last
        rate = (counts["events"] - events) / (seconds - before) if seconds > before else 0
        self._last = seconds, counts["events"]
        text = (
            f"{seconds:.0f} s: {counts['events']} events ({rate:.0f}/s), {counts['lost']} lost, {_size(size)} written"
        )
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def done(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _say(summary: Summary) -> None:
    for machine in summary.machines:
        print(printable(f"{machine.name}: {_described(machine)}"))  # noqa: T201
    if summary.snapshot is not None:
        came = "came" if summary.snapshot["happened"] else "never came: what was there at the end is kept"
        print(printable(f"snapshot: {summary.snapshot['on']} {came}"))  # noqa: T201
    text = f"{summary.folder}: {summary.seconds:.1f} s, ended by {summary.stopped_by}"
    if summary.command_status is not None:
        text += f" (exit status {summary.command_status})"
    print(printable(text))  # noqa: T201
    if len(summary.machines) > 1:
        print(printable(f"next: counterpoint sync {summary.folder}"))  # noqa: T201


def _described(machine: MachineSummary) -> str:
    def known(count: int | None) -> str:
        return "an unknown number of" if count is None else str(count)

    text = f"{known(machine.events)} events on {machine.cpus} CPUs, {known(machine.lost)} lost, {_size(machine.bytes)}"
    return f"{text}, clock {machine.clock}"


def _values(summary: Summary) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "capture": str(summary.folder),
        "stopped_by": summary.stopped_by,
        "seconds": round(summary.seconds, 3),
        "cpu_seconds": round(summary.cpu_ns / 1e9, 3),
        "command_status": summary.command_status,
        "snapshot": summary.snapshot,
        "machines": [
            {
                "name": each.name, "file": each.file, "clock": each.clock, "cpus": each.cpus, "events": each.events,
                "lost_events": each.lost, "lost_by_cpu": each.lost_by_cpu, "bytes": each.bytes, "notes": each.notes,
            }
            for each in summary.machines
        ],
        "notes": summary.notes,
        "realtime_ns": time.time_ns(),
    }  # fmt: skip
