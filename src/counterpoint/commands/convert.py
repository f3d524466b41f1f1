"""``counterpoint convert``."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from counterpoint.commands.common import add_claims, add_hosts, run_sync, warn, warn_all
from counterpoint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from counterpoint.clocks.known_counter import ArchCounter
    from counterpoint.clocks.machines import MachineClock, Maps
    from counterpoint.clocks.pairs import ClockPair
    from counterpoint.clocks.wall import Wall
    from counterpoint.outputs.conversion import Conversion
    from counterpoint.traces.recording import Recording

MAX_WARNINGS = 20

CLAIM_FLAGS = ("offset", "claims", "no_claims", "tid", "parent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Stamps of a guest in host time, and back: an application's own RDTSC or CNTVCT values, lines of the guest's\n"
        "dmesg, a column of a CSV. Each with its bound, and a word on how far it may be relied on."
    )
    parser.epilog = (
        "examples:\n"
        "  counterpoint sync host.dat guest.dat -o map.json\n"
        "  counterpoint convert --map map.json --cpu 1 228869039494\n"
        "  counterpoint convert --map map.json --csv latency.csv --column tsc --cpu-column cpu -o latency-host.csv\n"
        "  counterpoint convert host.dat guest.dat --to guest 310762005000\n"
        "  counterpoint convert --map map.json '[   12.345678] eth0: link up'\n"
        "  dmesg | counterpoint convert --map map.json --dmesg - --realtime 310762005000=1795579690500000000\n\n"
        "verdicts: inside (both recordings saw it), outside (the bound has grown, and holds while the clock was not\n"
        "set), ambiguous (several instants), skipped (no instant), refused (the reason is given)\n"
        "exit status: 0 all inside or outside, 1 some are not, 2 bad input"
    )
    parser.add_argument(
        "arguments", metavar="RECORDING|VALUE", nargs="*",
        help="HOST GUEST... (trace.dat) or a capture folder, and values: 123, 0x7b, 12.345678901 (a clock in ns),"
        " '[ 12.345678] text', 2026-11-25T04:08:10.5Z or @SECONDS (--to guest); a file with such a name is ./123",
    )  # fmt: skip
    parser.add_argument("--map", metavar="FILE", help="what sync -o FILE.json wrote, in place of the recordings")
    group = parser.add_argument_group("what is converted")
    group.add_argument(
        "--to", choices=("host", "guest"), default="host", help="to host time (default), or to a guest's"
    )
    group.add_argument(
        "--on", metavar="HOST", help="of guests that moved: as they were on this host, in its time (default: the first)"
    )
    group.add_argument("--guest", metavar="NAME", help="the guest, where there are several")
    group.add_argument(
        "--cpu", type=int, metavar="N", help="the guest CPU that values are of (without it the bound is that of all)"
    )
    group.add_argument(
        "--unit", choices=("stamp", "ns", "counter"), default="stamp",
        help="what whole numbers count: units of the trace clock (default), ns of it, or arm64's counter",
    )  # fmt: skip
    group.add_argument(
        "--extrapolate", action="store_true",
        help="answer beyond the recordings even where they show that a clock was set",
    )  # fmt: skip
    files = parser.add_argument_group("many values")
    files.add_argument("--csv", metavar="FILE", help="a CSV (- is standard input); columns are appended to its rows")
    files.add_argument("--column", metavar="NAME|N", help="its column of values, by name or number (from 1)")
    files.add_argument("--cpu-column", metavar="NAME|N", help="its column of guest CPUs")
    files.add_argument("--no-header", action="store_true", help="its first row is one of values")
    files.add_argument("--delimiter", default=",", metavar="C", help="what is between its cells (default ,)")
    files.add_argument(
        "--dmesg", metavar="FILE", help="the guest's dmesg (- is standard input); stamps go before its lines"
    )
    files.add_argument("-o", "--output", metavar="FILE", help="write there instead of to standard output")
    files.add_argument("--force", action="store_true", help="overwrite an existing file")
    known = parser.add_argument_group("what is known of the clocks")
    known.add_argument(
        "--realtime", action="append", default=[], metavar="STAMP=TIME",
        help="the host's wall time at a host stamp: ns since 1970, @SECONDS or ISO 8601 (repeatable)",
    )  # fmt: skip
    known.add_argument("--sched-clock-offset", type=int, metavar="NS", help="of the guest's dmesg: see docs/convert.md")
    known.add_argument("--guest-k", type=int, metavar="K", help="arm64: guest ns = (counter * mult + K) >> shift")
    known.add_argument("--host-k", type=int, metavar="K", help="arm64: the same of the host")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each value")
    add_claims(parser)
    add_hosts(parser)


def run(args: argparse.Namespace) -> int:
    from counterpoint.outputs.conversion_files import convert_csv, convert_log, write_json
    from counterpoint.outputs.conversion_table import print_records
    from counterpoint.outputs.csv_columns import Table
    from counterpoint.timeline.stamps import is_stamp

    values = [text for text in args.arguments if is_stamp(text)]
    recordings = [text for text in args.arguments if not is_stamp(text)]
    _check(args, values, recordings)
    maps, sources = _maps(args, recordings)
    conversion = _conversion(args, maps, sources)
    with _output(args, [*recordings, *([args.map] if args.map else [])]) as out:
        if args.csv is not None:
            table, malformed = Table(args.csv, args.delimiter, has_header=not args.no_header), _Malformed(args.csv)
            with _input(args.csv) as source:
                columns = args.column, args.cpu_column
                convert_csv(conversion, source, out, table, columns, as_json=args.json, malformed=malformed)
            malformed.done()
        elif args.dmesg is not None:
            with _input(args.dmesg) as source:
                convert_log(conversion, source, out, as_json=args.json)
        else:
            records = conversion.records(values)
            for record in records:
                if record["verdict"] == "malformed":
                    raise UsageError(str(record["reason"]))
            if args.json:
                write_json(records, out)
            else:
                print_records(conversion, records, sys.stdout)
    _say_what_it_means(conversion)
    return 0 if conversion.tally.is_sound else 1


def _check(args: argparse.Namespace, values: list[str], recordings: list[str]) -> None:
    """Refuse what does not go together."""
    given = [name for name, there in (("values", values), ("--csv", args.csv), ("--dmesg", args.dmesg)) if there]
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given)}: one of them at a time" if given else "no values, --csv or --dmesg given"
        )
    if args.map and recordings:
        raise UsageError(f"{recordings[0]} is no value, and --map stands in place of recordings")
    if not args.map and len(recordings) < 2 and not (recordings and Path(recordings[0]).is_dir()):
        raise UsageError("the recordings of a host and a guest are needed, or a capture folder, or --map FILE")
    if args.map and (said := [name for name in CLAIM_FLAGS if getattr(args, name)]):
        raise UsageError(f"--{said[0].replace('_', '-')} is about recordings: give it to the sync that writes the map")
    if (args.csv is None) != (args.column is None):
        raise UsageError("--csv FILE and --column NAME go together")
    for flag in ("cpu_column", "no_header"):
        if getattr(args, flag) and args.csv is None:
            raise UsageError(f"--{flag.replace('_', '-')} is about --csv FILE")
    if args.cpu is not None and args.cpu_column is not None:
        raise UsageError("--cpu and --cpu-column: one of them at a time")
    if args.dmesg is not None and args.to == "guest":
        raise UsageError("--dmesg has stamps of the guest: they go --to host")
    if args.output and args.csv is None and args.dmesg is None:
        raise UsageError("-o is about --csv and --dmesg")
    if len(args.delimiter) != 1 or args.delimiter in '"\r\n':
        raise UsageError(f"--delimiter {args.delimiter!r}: one character is expected")


def _maps(args: argparse.Namespace, recordings: list[str]) -> tuple[Maps, dict[str, Recording]]:
    """Of a saved map, or of recordings that are proved; and the recordings by their names."""
    from dataclasses import replace

    from counterpoint.timeline.maps import maps_of, read_map

    sources: dict[str, Recording] = {}
    if args.map:
        maps = read_map(args.map)
    else:
        args.host, args.guests = recordings[0], recordings[1:]
        result = run_sync(args)
        warn_all(result)
        maps = maps_of(result)
        for text in maps.notes:
            warn(text)
        sources = {result.host_name: result.host} | {g.name: g.recording for g in result.guests}
        sources |= {h.name: h.recording for h in result.hosts}
    if args.on is not None:
        try:
            maps = maps.on(args.on)
        except KeyError as err:
            raise UsageError(f"--on: {err.args[0]}") from None
    return replace(maps, pairs=(*maps.pairs, *_pairs(args.realtime, maps.host))), sources


def _pairs(texts: Iterable[str], host: MachineClock) -> list[ClockPair]:
    """The wall times that were typed."""
    from counterpoint.clocks.pairs import ClockPair
    from counterpoint.timeline.stamps import Kind, read_stamps

    out = []
    for text in texts:
        stamp, _, time = text.partition("=")
        wanted = f"--realtime {text}: STAMP=TIME is expected, as in --realtime 310762005000=2026-11-25T04:08:10.5Z"
        at, when = read_stamps([stamp], is_ns=host.unit == "ns"), read_stamps([time], "ns", is_ns=True)
        if at.wrong or when.wrong or at.kind[0] != Kind.STAMP or when.kind[0] not in (Kind.NS, Kind.WALL):
            raise UsageError(f"{wanted}{''.join(f' ({why})' for why in (*at.wrong.values(), *when.wrong.values()))}")
        lo, hi = int(when.lo.view("i8")[0]), int(when.hi.view("i8")[0])
        apart = int(at.hi[0]) - int(at.lo[0])
        try:
            out.append(ClockPair(int(at.lo[0]), (lo + hi) // 2, (hi - lo + 1) // 2 + apart, "given"))
        except ValueError:
            raise UsageError(wanted) from None
    return out


def _conversion(args: argparse.Namespace, maps: Maps, sources: dict[str, Recording]) -> Conversion:
    from counterpoint.outputs.conversion import Conversion
    from counterpoint.timeline.stamps import printk_offset

    try:
        guest = maps.guest(args.guest)
        known = [clock.guest_cpu for clock in guest.cpus]
        if not known:
            raise UsageError(f"{guest.name}: its recording holds no events, so nothing is known of its clocks")
        if args.cpu is not None and args.cpu not in known:
            raise UsageError(f"--cpu {args.cpu}: {guest.name} has no such CPU ({', '.join(map(str, known))})")
    except KeyError as err:
        raise UsageError(f"--guest: {err.args[0]}") from None
    printk: int | str
    try:
        printk = printk_offset(guest.machine, args.sched_clock_offset)
    except ValueError as err:
        printk = str(err)
    counters = {
        "guest": _counter(args, guest.machine, args.guest_k, "--guest-k", sources),
        "host": _counter(args, maps.host, args.host_k, "--host-k", sources),
    }
    other = {"host": "guest", "guest": "host"}
    return Conversion(
        maps, guest.name, args.to, args.cpu, args.unit, printk, args.extrapolate, _wall(args, maps),
        counters[other[args.to]], counters[args.to],
    )  # fmt: skip


def _wall(args: argparse.Namespace, maps: Maps) -> Wall | None:
    from counterpoint.clocks.wall import Wall

    try:
        wall = Wall.of(maps.host, maps.pairs)
    except ValueError as err:
        raise UsageError(f"{'--realtime' if args.realtime else 'the clock pairs'}: {err}") from None
    if wall is None and maps.pairs:
        warn(f"how long a tick of {maps.host.name} is is not known: one wall time alone tells of no other")
    if wall is not None and wall.was_set is not None:
        one, two = wall.was_set
        warn(
            f"the host's wall clock was set between host stamps {one.counter} and {two.counter}: the bounds of times"
            " between them span both"
        )
    return wall


def _counter(
    args: argparse.Namespace, machine: MachineClock, k: int | None, flag: str, sources: dict[str, Recording]
) -> ArchCounter | None:
    """arm64's counter behind a machine's clock: as the proof knows it, or by the K that is given, which is checked."""
    from counterpoint.clocks.known_counter import ArchCounter
    from counterpoint.proof.lattices import lattice_of_recording

    known, frequency, recording = machine.counter, args.frequency, sources.get(machine.name)
    if known is not None and frequency not in (None, known.frequency):
        raise UsageError(f"--frequency {frequency}: the counter of {machine.name} runs at {known.frequency} Hz")
    if k is None:
        return known
    if known is not None:
        frequency = known.frequency
    elif frequency is None and recording is not None and (found := lattice_of_recording(recording)) is not None:
        frequency = found.scale.frequency if not found.multiples else None
    if frequency is None:
        raise UsageError(f"{flag} {k}: the counter's frequency is needed too (--frequency HZ)")
    try:
        counter = ArchCounter(frequency, k, machine.clock)  # type: ignore[arg-type]
    except ValueError as err:
        raise UsageError(f"{flag}: {err}") from None
    if recording is not None and not counter.explains(recording.stamp):
        raise UsageError(f"{flag} {k}: at {frequency} Hz no tick of the counter has the stamps of {machine.name}")
    if known is not None and not known.k <= k <= (known.k if known.k_hi is None else known.k_hi):
        raise UsageError(f"{flag} {k}: K of {machine.name} is from {known.k} to {known.k_hi} (by: {known.source})")
    return counter


# -- many values


@contextlib.contextmanager
def _output(args: argparse.Namespace, inputs: list[str]) -> Iterator[IO[str]]:
    """Standard output, or a file that is whole or absent."""
    if not args.output:
        if isinstance(sys.stdout, io.TextIOWrapper) and (args.csv is not None or args.dmesg is not None):
            # what passes through is anyone's text, and stays as it is
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield sys.stdout
        return
    from counterpoint.outputs.files import replacing

    path = Path(args.output)
    if path.exists() and any(
        Path(p).exists() and path.samefile(p) for p in (*inputs, args.csv or "", args.dmesg or "")
    ):
        raise UsageError(f"-o {path}: that is one of the inputs")
    if path.exists() and not args.force:
        raise UsageError(f"-o {path}: the file exists (--force overwrites it)")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"-o {path}: the folder {path.absolute().parent} does not exist")
    with replacing(path, overwrite=args.force) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        yield text
        text.flush()
        text.detach()


@contextlib.contextmanager
def _input(name: str) -> Iterator[IO[str]]:
    """A text file, or standard input; bytes that are no UTF-8 are kept as they are."""
    if name == "-":
        source = sys.stdin
        if isinstance(source, io.TextIOWrapper):
            source.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield source
        return
    with Path(name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield file


class _Malformed:
    """Cells that are no values: said with their lines, the first of them one by one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def __call__(self, line: int, text: str) -> None:
        self._count += 1
        if self._count <= MAX_WARNINGS:
            warn(f"{self._name}, line {line}: {text}")

    def done(self) -> None:
        if self._count > MAX_WARNINGS:
            warn(f"{self._name}: {self._count - MAX_WARNINGS} more lines have no value")


def _say_what_it_means(conversion: Conversion) -> None:
    """What is to be known of the answers, once."""
    count, late = conversion.tally.count, conversion.tally.late
    notes = (
        (
            count.get("outside"),
            "outside of what both recordings saw, where the bound holds while the clock was not set",
        ),
        (count.get("ambiguous"), "of several instants, which the bound spans"),
        (
            late,
            f"where {conversion.source.name}'s own recording is late, as its counter had stepped back: right for values"
            " of the counter, not for stamps of that recording",
        ),
    )
    for number, text in notes:
        if number:
            warn(f"{number} {'value is' if number == 1 else 'values are'} {text}")
