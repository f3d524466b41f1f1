"""A CSV passed through, with columns appended: row by row, whatever its size."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO

from counterpoint.errors import BadFileError, UsageError

BLOCK = 1 << 14
MAX_FIELD = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of a CSV: ``name`` for messages, the ``delimiter``, whether its first row names the columns."""

    name: str
    delimiter: str = ","
    has_header: bool = True


Cells = Callable[[list[int], list[list[str]]], list[list[str]]]
"""What to append: of a block's line numbers and rows, the cells of each row (none: it stays as it is)."""

Start = Callable[[list[str] | None, int], tuple[list[str], Cells]]
"""Given the header (None: there is none) and the number of columns: the names of new columns, what makes cells."""


def column_of(header: list[str] | None, wanted: str, table: Table, flag: str) -> int:
    """The position of a column, by its name or, from 1, by its number; UsageError where there is none."""
    if header is not None and header.count(wanted) == 1:
        return header.index(wanted)
    if header is not None and header.count(wanted) > 1:
        raise UsageError(f"{flag} {wanted}: {table.name} has several columns of that name (say which by its number)")
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and int(wanted) > 0:
        number = int(wanted) - 1
        if header is None or number < len(header):
            return number
    there = "" if header is None else f" (there are: {', '.join(header)})"
    raise UsageError(f"{flag} {wanted}: {table.name} has no such column{there}")


def append_columns(source: IO[str], target: IO[str] | None, table: Table, start: Start) -> None:
    """Copy the rows of ``source`` to ``target`` (None: nowhere), with the cells appended that ``start``'s makes.

    Rows that are shorter than the first get empty cells, so that the new ones stand in their columns. BadFileError with
    the line where the source is no CSV.
    """
    csv.field_size_limit(MAX_FIELD)
    rows = _rows(csv.reader(source, delimiter=table.delimiter, strict=True), table)
    writer = None if target is None else csv.writer(target, delimiter=table.delimiter, lineterminator="\n")
    first = next(rows, None)
    if first is None:
        raise UsageError(f"{table.name} is empty")
    header, width = first[1] if table.has_header else None, len(first[1])
    names, cells = start(header, width)
    if header is None:
        rows = chain([first], rows)
    else:
        taken = [name for name in names if name in header]
        if taken:
            raise UsageError(f"{table.name} has a column {taken[0]} already: rename it, or take another file")
        if writer is not None:
            writer.writerow([*header, *names])
    while block := list(islice(rows, BLOCK)):
        lines, data = [line for line, _ in block], [row for _, row in block]
        appended = cells(lines, data)
        if writer is not None:
            for row, more in zip(data, appended, strict=True):
                writer.writerow([*row, *[""] * (width - len(row)), *more] if more else row)


def _rows(reader: Iterator[list[str]], table: Table) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each ends on."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as err:
            raise BadFileError(f"line {_line(reader)} is no CSV: {err}", table.name) from None
        if row is None:
            return
        yield _line(reader), row


def _line(reader: Iterator[list[str]]) -> int:
    return int(getattr(reader, "line_num", 0))
