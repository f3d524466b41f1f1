"""``counterpoint view HOST GUEST...|CAPTURE``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.commands.common import (
    LateWarnings,
    Progress,
    add_claims,
    add_hosts,
    add_recordings,
    run_sync,
    warn,
    warn_all,
)
from counterpoint.errors import UsageError

if TYPE_CHECKING:
    from counterpoint.timeline.sync import SyncResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The timeline, its proof, the worst latencies and the statistics as one HTML file, opened in the browser.\n"
        "The file needs no network, and no request leaves it: docs/page.md."
    )
    parser.epilog = (
        "examples:\n"
        "  counterpoint view host.dat guest.dat\n"
        "  counterpoint view capture/ -o report.html --no-open\n"
        "  counterpoint view capture/ --perfetto                 # Perfetto's interface, from this machine\n\n"
        "exit status: as for sync"
    )
    add_recordings(parser, guests="*")
    group = parser.add_argument_group("what to make")
    group.add_argument("-o", "--output", metavar="FILE.html", help="write it there (default: a temporary file)")
    group.add_argument("--no-open", action="store_true", help="open no browser")
    group.add_argument("--force", action="store_true", help="overwrite an existing file")
    group.add_argument(
        "--perfetto", action="store_true",
        help="serve Perfetto's interface with the trace on 127.0.0.1, to this machine alone, until interrupted",
    )  # fmt: skip
    group.add_argument("--port", type=int, default=0, help="of --perfetto (default: any that is free)")
    add_claims(parser)
    add_hosts(parser)


def run(args: argparse.Namespace) -> int:
    output = None if args.output is None else Path(args.output)
    if args.perfetto and output is not None:
        raise UsageError("--perfetto serves a trace, and -o writes a page: choose one (sync -o FILE.pftrace writes it)")
    if output is not None:
        if output.suffix != ".html":
            raise UsageError(f"-o {output}: the ending must be .html (sync -o takes others)")
        if not output.absolute().parent.is_dir():
            raise UsageError(f"-o {output}: the folder {output.absolute().parent} does not exist")
        if output.exists() and not args.force:
            raise UsageError(f"-o {output}: the file exists (--force overwrites it)")
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port}: a number below 65536 is expected")
    result = run_sync(args)
    warn_all(result)
    late = LateWarnings(m.recording for m in result.timeline.machines)
    if result.timeline.unplaced:
        warn(f"{result.timeline.unplaced} events are left out: no clock map is known for them")
    if args.perfetto:
        _perfetto(result, args)
    else:
        path = _page(result, output, overwrite=args.force)
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()
        if not args.no_open:
            _open(path.absolute().as_uri())
    late.say()
    return 0 if result.is_sound else 1


def _page(result: SyncResult, output: Path | None, *, overwrite: bool) -> Path:
    from counterpoint.outputs.page import write_page

    progress = Progress()
    # a folder of its own: nobody else can put a file in its place
    path = output or Path(tempfile.mkdtemp(prefix="counterpoint-")) / "report.html"
    try:
        write_page(result, path, overwrite=overwrite, progress=progress)
    finally:
        progress.done()
    return path


def _perfetto(result: SyncResult, args: argparse.Namespace) -> None:
    from counterpoint.outputs.perfetto import write_perfetto
    from counterpoint.outputs.perfetto_ui import serving, ui_folder

    ui = ui_folder()
    if ui is None:
        folder = Path(tempfile.mkdtemp(prefix="counterpoint-"))
        write_perfetto(result, folder / "merged.pftrace", overwrite=False)
        sys.stdout.write(
            f"{folder / 'merged.pftrace'}\n"
            "Perfetto's interface is not installed (pip install 'counterpoint[view]'). Open the file at\n"
            "https://ui.perfetto.dev: it stays on your machine.\n"
        )
        return
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as name:
        trace = Path(name) / "merged.pftrace"
        write_perfetto(result, trace, overwrite=False)
        with serving(ui, trace, args.port) as server:
            sys.stdout.write(f"{server.address}\nserved to this machine alone; Ctrl+C ends it\n")
            sys.stdout.flush()
            if not args.no_open:
                _open(server.address)
            try:
                server.wait()
            except KeyboardInterrupt:
                sys.stdout.write("\n")


def _open(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        warn(f"no browser was found: open {address}")
