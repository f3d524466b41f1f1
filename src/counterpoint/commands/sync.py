"""``counterpoint sync HOST GUEST...``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.commands.common import (
    LateWarnings,
    Progress,
    add_claims,
    add_hosts,
    add_recordings,
    expand,
    print_json,
    run_sync,
    warn,
    warn_all,
)
from counterpoint.errors import UsageError

if TYPE_CHECKING:
    from counterpoint.outputs.dat import DatFormat
    from counterpoint.outputs.dat_attach import Attached
    from counterpoint.outputs.tool_options import ToolOption
    from counterpoint.timeline.sync import SyncResult

ENDINGS = (".pftrace", ".dat", ".parquet", ".txt", ".html", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Put the recordings of a host and its guests on one timeline: gather what is claimed about each vCPU's\n"
        "offset, prove or derive it from the run windows, and merge."
    )
    parser.epilog = (
        "example:\n  counterpoint sync host.dat guest.dat -o merged.pftrace -o merged.txt\n"
        "  counterpoint sync host.dat guest.dat --attach synced       # copies for trace-cmd and KernelShark\n"
        "  counterpoint sync host.dat guest.dat --print-options       # what other tools are to be told\n"
        "  counterpoint sync trace.txt guest.txt --clock mono_raw     # ftrace's text does not name its clock\n\n"
        "exit status: 0 all proved or derived, 1 something is refuted, ambiguous or unbounded, 2 bad input"
    )
    add_recordings(parser, guests="*")
    add_claims(parser)
    add_hosts(parser)
    parser.add_argument(
        "-o", "--output", action="append", default=[], metavar="FILE",
        help=f"write the timeline; the ending says how: {' '.join(ENDINGS)}; NAME.parquet/ is a folder with a part a"
        " machine, any other FOLDER/ gets CTF 1.8 (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--attach", metavar="DIR",
        help="copies of the recordings into DIR that trace-cmd report -i HOST -i GUEST and KernelShark show in sync",
    )  # fmt: skip
    parser.add_argument(
        "--print-options", action="store_true",
        help="what trace-cmd attach, perf inject, babeltrace2 and Perfetto are to be told of each guest, or why they"
        " cannot be",
    )  # fmt: skip
    parser.add_argument(
        "--dat-version", type=int, choices=(6, 7), default=7, help="of .dat files: 7 (default), or 6 for older readers"
    )
    parser.add_argument(
        "--compression", choices=("none", "zlib", "zstd"), default=None,
        help="of .dat files of version 7 (default: zstd)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite existing output files")
    parser.add_argument("--json", action="store_true", help="the proof as JSON (schema 1) on standard output")


def run(args: argparse.Namespace) -> int:
    expand(args)
    _dat_format(args)
    _check_folder(args)
    outputs = [(Path(name), name.endswith("/")) for name in args.output]
    for path, is_folder in outputs:
        _check_output(path, is_folder=is_folder, force=args.force, inputs=[args.host, *args.guests, *args.further])
    result = run_sync(args)
    warn_all(result)
    late = LateWarnings(m.recording for m in result.timeline.machines)
    # files first: whoever reads the table or the JSON may rely on them
    progress = Progress()
    for path, is_folder in outputs:
        progress(f"writing {path}")
        try:
            _write(result, path, args, progress, is_folder=is_folder)
        finally:
            progress.done()
    more: dict[str, Any] = {}
    if args.attach is not None:
        more["attached"] = [file.as_json() for file in _attach(result, args, progress)]
    late.say()
    if result.timeline.unplaced:
        warn(f"{result.timeline.unplaced} events are left out of the timeline: no clock map is known for them")
    told = _tool_options(result) if args.print_options else []
    if args.json:
        from counterpoint.outputs.report import sync_report

        if args.print_options:
            more["tool_options"] = [option.as_json() for option in told]
        print_json(sync_report(result) | more)
    else:
        from counterpoint.outputs.table import print_options, print_sync

        print_sync(result)
        print_options(told)
    return 0 if result.is_sound else 1


def _check_folder(args: argparse.Namespace) -> None:
    """Refuse before any work what ``--attach`` would refuse after it."""
    if args.attach is None:
        return
    folder = Path(args.attach)
    if not folder.absolute().parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"--attach {folder}: that is no folder, and none can be made there")
    from counterpoint.outputs.dat_attach import check_free

    inputs = [Path(name) for name in [args.host, *args.guests, *args.further]]
    check_free([folder / path.name for path in inputs], inputs, overwrite=args.force)


def _tool_options(result: SyncResult) -> list[ToolOption]:
    from counterpoint.outputs.tool_options import options_of

    return options_of(result)


def _attach(result: SyncResult, args: argparse.Namespace, progress: Progress) -> list[Attached]:
    from counterpoint.outputs.dat_attach import attach

    folder = Path(args.attach)
    for one in (m.recording for m in result.timeline.machines):
        if not one.is_dat:
            raise UsageError(
                f"--attach: {one.path} is {one.format}, and copies are of trace.dat (-o FILE.dat takes all)"
            )
    folder.mkdir(exist_ok=True)
    try:
        files = attach(result, folder, overwrite=args.force, progress=progress)
    finally:
        progress.done()
    for file in files:
        if file.corrected:
            warn(f"{file.path}: its stamps are host time: TIME_SHIFT cannot say it ({file.corrected})")
        for note in file.notes:
            warn(f"{file.path}: {note}")
    return files


def _dat_format(args: argparse.Namespace) -> DatFormat:
    from counterpoint.outputs.dat import DatFormat

    if args.dat_version == 6 and args.compression not in (None, "none"):
        raise UsageError(f"--compression {args.compression}: version 6 of trace.dat has no compression")
    return DatFormat(args.dat_version, args.compression or "zstd")


def _check_output(path: Path, *, is_folder: bool, force: bool, inputs: list[str]) -> None:
    if path.suffix not in ENDINGS and not is_folder:
        raise UsageError(f"-o {path}: the ending must be one of {' '.join(ENDINGS)}, or / of a folder for CTF")
    if is_folder and path.suffix in ENDINGS and path.suffix != ".parquet":
        raise UsageError(f"-o {path}/: that is the name of a file; a folder with this ending can only be NAME.parquet/")
    if path.suffix == ".parquet":
        from counterpoint.outputs.parquet import check_installed

        check_installed()
    if not path.absolute().parent.is_dir():
        raise UsageError(f"-o {path}: the folder {path.absolute().parent} does not exist")
    if path.exists():
        if any(Path(name).exists() and path.samefile(name) for name in inputs):
            raise UsageError(f"-o {path}: that is one of the recordings")
        if not force:
            raise UsageError(f"-o {path}: the file exists (--force overwrites it)")


def _write(result: SyncResult, path: Path, args: argparse.Namespace, progress: Progress, *, is_folder: bool) -> None:
    force = args.force
    if is_folder and path.suffix != ".parquet":
        from counterpoint.outputs.ctf import write_ctf

        for note in write_ctf(result, path, overwrite=force, progress=progress):
            warn(f"{path}: {note}")
    elif path.suffix == ".pftrace":
        from counterpoint.outputs.perfetto import write_perfetto

        write_perfetto(result, path, overwrite=force)
    elif path.suffix == ".dat":
        from counterpoint.outputs.dat import write_dat

        for note in write_dat(result.timeline, path, overwrite=force, how=_dat_format(args), progress=progress):
            warn(f"{path}: {note}")
    elif path.suffix == ".parquet":
        from counterpoint.outputs.parquet import write_parquet

        for text in write_parquet(result, path, overwrite=force, partitioned=is_folder):
            warn(f"{path}: {text}")
    elif path.suffix == ".txt":
        from counterpoint.outputs.text import write_text

        for reason in write_text(result.timeline, path, overwrite=force):
            warn(f"{path}: shown by its fields: {reason}")
    elif path.suffix == ".html":
        from counterpoint.outputs.page import write_page

        write_page(result, path, overwrite=force, progress=progress)
    else:
        from counterpoint.outputs.files import replacing
        from counterpoint.outputs.report import sync_report

        with replacing(path, overwrite=force) as file:
            import json

            file.write((json.dumps(sync_report(result), indent=2) + "\n").encode())
