"""Run the cells of a script with cell marks, and write it as a Jupyter notebook with what they printed.

    python tools/notebook.py docs/notebooks/late.py [--check]

Writes the .ipynb beside the script; ``--check`` only says whether it is what would be written.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

MARK = re.compile(r"^# %%(.*)$", re.MULTILINE)


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell: "markdown" or "code"."""
    parts = MARK.split(text)[1:]
    found = []
    for head, body in zip(parts[::2], parts[1::2], strict=True):
        source = body.strip("\n")
        if "[markdown]" in head:
            source = "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.splitlines())
            found.append(("markdown", source))
        else:
            found.append(("code", source))
    return found


def notebook(script: Path) -> str:
    """The notebook's text: every code cell run in its turn, with its output."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    out: list[dict[str, Any]] = []
    number = 0
    for index, (kind, source) in enumerate(cells(script.read_text())):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}, "source": _lines(source)}
        if kind == "code":
            number += 1
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(ast.parse(source), f"{script.name}, cell {number}", "exec"), scope)  # noqa: S102
            cell["execution_count"] = number
            text = printed.getvalue()
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": _lines(text)}] if text else []
        out.append(cell)
    whole = {
        "cells": out,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> int:
    """Write or check the notebooks of the scripts that are named."""
    scripts = [Path(each) for each in sys.argv[1:] if each != "--check"]
    stale = 0
    for script in scripts:
        text, target = notebook(script), script.with_suffix(".ipynb")
        if "--check" not in sys.argv:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            print(f"{target} is not what {script} gives now", file=sys.stderr)  # noqa: T201
            stale += 1
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
