"""``counterpoint sql CAPTURE|HOST GUEST... "SELECT ..."``."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from counterpoint.commands.common import add_claims, add_hosts, add_recordings, run_sync, warn_all
from counterpoint.errors import UsageError
from counterpoint.outputs.printable import printable

TABLE_ROWS = 1000
"""Rows of which a table's columns take their width; what is wider further on sticks out."""

MAX_CELL = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ask the merged timeline by SQL (DuckDB). Views: events (a row an event), sched (what ran on each CPU), exits\n"
        "(each kvm_exit with the kvm_entry after it), proof (a row an epoch of each vCPU's clock map);\n"
        "DESCRIBE events lists a view's columns. A query reads the views and nothing else, and changes nothing.\n"
        "Needs pip install 'counterpoint[sql]'."
    )
    parser.epilog = (
        "examples:\n"
        '  counterpoint sql host.dat guest.dat "SELECT machine, event, count(*) FROM events GROUP BY ALL"\n'
        '  counterpoint sql capture/ --csv "SELECT exit_reason, max(handled_ns) FROM exits GROUP BY 1"\n\n'
        "exit status: as for sync"
    )
    add_recordings(parser, guests="*")
    parser.add_argument("query", metavar="QUERY", help="one SELECT, DESCRIBE, SHOW or EXPLAIN")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line for each row")
    form.add_argument("--csv", action="store_true", help="rows as CSV, the names first")
    add_claims(parser)
    add_hosts(parser)


def run(args: argparse.Namespace) -> int:
    from counterpoint.outputs.sql import database, duckdb, shown, text_of

    duckdb()
    if os.path.exists(args.query):  # noqa: PTH110 (a query may be longer than a name can be)
        raise UsageError(f"{args.query} is a file: the query is the last argument, in quotes")
    result = run_sync(args)
    warn_all(result)
    with database(result) as views:
        names, rows = views.ask(args.query)
        if args.json:
            if len(set(names)) < len(names):
                raise UsageError(f"two columns are called the same ({', '.join(names)}): name them with AS for --json")
            for row in rows:
                sys.stdout.write(json.dumps({n: shown(v) for n, v in zip(names, row, strict=True)}) + "\n")
        elif args.csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([text_of(value) for value in row] for row in rows)
        else:
            _table(names, ([printable(text_of(v)) for v in row] for row in rows))
        sys.stdout.flush()
    return 0 if result.is_sound else 1


def _is_number(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = [row[column] for row in rows if row[column]]
    return bool(cells) and all(cell.lstrip("-").replace(".", "", 1).isdigit() for cell in cells)


def _table(names: list[str], rows: Iterator[list[str]]) -> None:
    first = list(islice(rows, TABLE_ROWS))
    right = [_is_number(first, column) for column in range(len(names))]
    width = [min(max(map(len, (name, *(r[n] for r in first)))), MAX_CELL) for n, name in enumerate(names)]
    for row in chain([[printable(name) for name in names]], first, rows):
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
