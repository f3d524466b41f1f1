"""Converted stamps as a table for a terminal."""

from __future__ import annotations

from typing import Any, TextIO

from counterpoint.outputs.conversion import Conversion, Record
from counterpoint.outputs.printable import printable
from counterpoint.outputs.table import console

PIPE_WIDTH = 1000


def print_records(conversion: Conversion, records: list[Record], file: TextIO) -> None:
    """Print a row for each value, or for each instant that an ambiguous one may be, and why others have none."""
    from rich.table import Table

    unit, wall = conversion.target.unit, conversion.wall is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("value", overflow="fold")
    stamps = (f"{conversion.to} stamp ({unit})", "earliest", "latest", "bound")
    for name in (*stamps, *(("ns",) if unit != "ns" else ())):
        table.add_column(name, justify="right", overflow="fold")
    for name in (*(("wall time",) if wall else ()), "epoch", "verdict"):
        table.add_column(name, overflow="fold")
    for record in records:
        for index, instant in enumerate(record.get("others") or [record]):
            cells = [instant["stamp"], instant["earliest"], instant["latest"], _bound(conversion, instant)]
            cells += [instant["ns"]] if unit != "ns" else []
            cells += [record["wall"] if index == 0 else None] if wall else []
            epoch = instant["epoch"]
            if "others" in record and epoch is not None:
                epoch = f"{epoch} (cpu {instant['cpu']})"
            cells += [epoch, record["verdict"]]
            value = printable(record["value"]) if index == 0 else ""
            table.add_row(value, *("" if cell is None else str(cell) for cell in cells))
    out = console(file)
    if not file.isatty():
        # a pipe has no width, and stamps are not to be broken
        out.width = PIPE_WIDTH
    out.print(table)
    for text in dict.fromkeys(f"{r['value']}: {r['reason']}" for r in records if r["reason"]):
        out.print(printable(text), soft_wrap=True)


def _bound(conversion: Conversion, instant: dict[str, Any]) -> str | None:
    """The width of an instant's bound."""
    if instant["stamp"] is None:
        return None
    width, rate = (instant["latest"] - instant["earliest"]) % (1 << 64), conversion.target.rate
    return f"{width} {conversion.target.unit}" if rate is None else f"{-rate.to_ns(-width)} ns"
