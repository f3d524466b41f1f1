"""Files of stamps, converted as they stream through: a CSV's column, the lines of a kernel's log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import IO

from counterpoint.outputs.conversion import MALFORMED, Conversion, Record
from counterpoint.outputs.csv_columns import Cells, Table, append_columns, column_of
from counterpoint.timeline.stamps import is_stamp, printk_offset, sched_clock_offset

BLOCK = 4096
MAX_LINE = 1 << 16


def write_json(records: Iterable[Record], out: IO[str]) -> None:
    """One JSON object a line for each record."""
    for record in records:
        out.write(json.dumps(record) + "\n")


def convert_csv(
    conversion: Conversion,
    source: IO[str],
    out: IO[str],
    table: Table,
    columns: tuple[str, str | None],
    *,
    as_json: bool,
    malformed: Callable[[int, str], None],
) -> None:
    """Append columns to a CSV, or write its values as JSON, a line each.

    ``columns``: that of values and that of guest CPUs, by name or number. ``malformed`` is told the line of each row
    whose value is none, and why.
    """

    def start(header: list[str] | None, width: int) -> tuple[list[str], Cells]:
        column = column_of(header, columns[0], table, "--column")
        cpu_column = None if columns[1] is None else column_of(header, columns[1], table, "--cpu-column")

        def cells(lines: list[int], rows: list[list[str]]) -> list[list[str]]:
            records = _records(conversion, rows, (column, cpu_column), width)
            for line, record in zip(lines, records, strict=True):
                if record is not None and record["verdict"] == MALFORMED:
                    malformed(line, record["reason"])
            if as_json:
                numbered = zip(lines, records, strict=True)
                write_json(({"line": line} | record for line, record in numbered if record is not None), out)
            # a row that is too long has no place for more
            keep = (record is not None and len(row) <= width for record, row in zip(records, rows, strict=True))
            return [conversion.cells(r) if r is not None and k else [] for r, k in zip(records, keep, strict=True)]

        return conversion.columns(), cells

    append_columns(source, None if as_json else out, table, start)


def _records(
    conversion: Conversion, rows: list[list[str]], columns: tuple[int, int | None], width: int
) -> list[Record | None]:
    """A record of each row; None of those with nothing in them."""
    column, cpu_column = columns
    known = [clock.guest_cpu for clock in conversion.maps.guest(conversion.guest).cpus]
    out: list[Record | None] = [None] * len(rows)
    texts: list[str] = []
    cpus: list[int | None] = []
    at: list[int] = []
    for index, row in enumerate(rows):
        if not row:
            continue
        text, cpu = _cell(row, column), conversion.cpu
        if len(row) > width:
            out[index] = conversion.malformed(text, f"there are {len(row)} cells, in the first row {width}")
            continue
        if cpu_column is not None:
            said = _cell(row, cpu_column).strip()
            cpu = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None
            if cpu not in known:
                out[index] = conversion.malformed(text, f"{said[:20]!r} is no CPU of {conversion.guest}")
                continue
        texts.append(text)
        cpus.append(cpu)
        at.append(index)
    for index, record in zip(at, conversion.records(texts, cpus), strict=True):
        out[index] = record
    return out


def _cell(row: list[str], column: int) -> str:
    return row[column] if column < len(row) else ""


def convert_log(conversion: Conversion, source: IO[str], out: IO[str], *, as_json: bool) -> None:
    """Put host stamp, bound, wall time and verdict before each line of printk's log that has a stamp."""
    lines = (line.rstrip("\r\n") for line in iter(lambda: source.readline(MAX_LINE), ""))
    number = 0
    while block := list(islice(lines, BLOCK)):
        if isinstance(conversion.printk, str):
            # the log itself may say what its stamps are
            offsets = (offset for line in block if (offset := sched_clock_offset(line)) is not None)
            with contextlib.suppress(ValueError, StopIteration):
                conversion.printk = printk_offset(conversion.source, next(offsets))
        stamped = [line.startswith(("[", "<")) and is_stamp(line) for line in block]
        texts = [line for line, is_one in zip(block, stamped, strict=True) if is_one]
        records = iter(conversion.records(texts))
        for line, is_one in zip(block, stamped, strict=True):
            number += 1
            record = next(records) if is_one else None
            if not as_json:
                out.write(f"{_prefix(record)}{line}\n")
            elif record is not None:
                write_json([{"line": number} | record], out)


def _prefix(record: Record | None) -> str:
    """Host stamps, bound, wall time where it is known, and verdict, with a tab after each."""
    if record is None:
        return "-\t"
    if record["stamp"] is None:
        return f"{record['verdict']}\t"
    stamps = "|".join(str(instant["stamp"]) for instant in record.get("others") or [record])
    bound = f"{record['bound']} ticks" if record["bound_ns"] is None else f"{record['bound_ns']} ns"
    return "".join(f"{cell}\t" for cell in (stamps, bound, record["wall"], record["verdict"]) if cell is not None)
