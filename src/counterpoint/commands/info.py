"""``counterpoint info FILE...``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from counterpoint.commands.common import open_capture, print_json, warn
from counterpoint.outputs.printable import printable

SHOWN_EVENTS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "What a recording holds: clock, CPUs, events, losses, options that bear on time."
    parser.epilog = (
        "examples:\n  counterpoint info host.dat\n  counterpoint info perf.data\n  counterpoint info trace.txt\n"
        "  counterpoint info capture/"
    )
    parser.add_argument("file", metavar="FILE", help="a recording (trace.dat), or a capture folder: each of its own")
    parser.add_argument("--json", action="store_true", help="all of it as JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    from counterpoint.traces.opening import is_recording

    path = Path(args.file)
    if not path.is_dir() or is_recording(path):
        report = _report(path)
        if args.json:
            print_json(report)
        else:
            _print(report)
        return 0
    capture = open_capture(args.file)
    reports = [_report(file) for file in (capture.host, *capture.hosts, *(guest.file for guest in capture.guests))]
    if args.json:
        print_json({"schema": 1, "capture": args.file, "recordings": reports})
        return 0
    for report in reports:
        _print(report)
        print()  # noqa: T201
    return 0


def _report(path: Path) -> dict[str, Any]:
    from counterpoint.outputs.report import info_report
    from counterpoint.traces.recording import Recording

    recording = Recording.open(path)
    # all there is to read of it, for what may be wrong with it
    _ = recording.cmdlines, recording.kallsyms(), recording.printk_formats()
    report = info_report(recording)
    for text in recording.warnings:
        warn(text)
    return report


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from counterpoint.outputs.table import console

    out = console()
    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    endian = "big-endian" if report["big_endian"] else "little-endian"

    def fact(name: str, value: object) -> None:
        facts.add_row(printable(name), printable(str(value)))

    fact("file", report["file"])
    container = f" v{report['version']}, compression {report['compression']}" if report["version"] else ""
    fact("format", f"{report['format']}{container}, {endian}, {report['long_size'] * 8}-bit kernel")
    fact(
        "clock",
        report["clock"] + (f" ({report['khz']} kHz by {report['khz_source']})" if report["khz"] else ""),
    )
    if "rounding" in report:
        before, after = report["rounding"]
        fact("rounding", f"the true stamps lie up to {before} ns before and {after} ns after these")
    if report["uname"]:
        fact("machine", report["uname"])
    fact("cpus", report["cpus"])
    fact("events", report["events"])
    if report["lost_marks"]:
        fact(
            "lost",
            f"{report['lost_events']} events at {report['lost_marks']} places (some may carry no count)",
        )
    if report["from"] is not None:
        fact("from", report["from"])
        fact("to", report["to"])
    if report["trace_id"] is not None:
        fact("trace id", f"{report['trace_id']:#x}")
    for guest in report["guests"]:
        pairs = ", ".join(f"cpu {v['cpu']} = thread {v['tid']}" for v in guest["vcpus"])
        fact("guest", f"{guest['name']} (trace id {guest['trace_id']:#x}): {pairs}")
    if report["time_shift"]:
        shift = report["time_shift"]
        samples = sum(len(c) for c in shift["cpus"])
        fact("time shift", f"{samples} samples on {len(shift['cpus'])} CPUs, peer {shift['peer_trace_id']:#x}")
    for buffer in report["buffers"]:
        counts = ", ".join(f"cpu {c['cpu']}: {c['events']}" for c in buffer["cpus"])
        size = f"{buffer['sub_buffer_size']} B sub-buffers; " if buffer["sub_buffer_size"] else ""
        fact(f"buffer {buffer['name'] or '(top)'}", size + counts)
    out.print(facts)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("event")
    table.add_column("count", justify="right")
    names = list(report["events_by_name"].items())
    for name, count in names[:SHOWN_EVENTS]:
        table.add_row(printable(name), str(count))
    if len(names) > SHOWN_EVENTS:
        table.add_row(f"and {len(names) - SHOWN_EVENTS} more (--json lists all)", "")
    out.print()
    out.print(table)
