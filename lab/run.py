"""What a case is, what it gives back, and the folder that holds everything of one run of it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lab.packages import LabError

REPOSITORY = Path(__file__).parent.parent


@dataclass
class Row:
    """What came out for one epoch of one vCPU, beside the truth.

    `interval` and `truth` are offsets in `unit` (guest - host; x86: ticks), the truth an interval where it was
    bracketed. `sources`: what each source said, with how it stands to the truth. `ok` is false with a `reason`.
    """

    case: str
    architecture: str
    kernel: str
    vmm: str
    clock: str
    guest: str
    vcpu: int | None
    truth: tuple[int, int] | None
    truth_by: str
    interval: tuple[int, int] | None
    unit: str
    width_ns: int | None
    verdict: str
    sources: dict[str, str] = field(default_factory=dict)
    ok: bool = False
    reason: str = ""
    seconds: int = 0


class Case(Protocol):
    """A case: `name` begins with its architecture ("x86-plain"), `about` is one line."""

    name: str
    about: str

    def run(self, lab: Lab) -> list[Row]:
        """Do it all: boot, record, read the truth, judge."""

    def judge(self, lab: Lab) -> list[Row]:
        """Judge what is in the folder of an earlier run."""


@dataclass
class Lab:
    """One run of one case: its folder, and what it is run with."""

    case: str
    cache: Path
    folder: Path
    keep: bool = False
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the time since the case began, into the case's log too."""
        line = f"{time.monotonic() - self.began:6.1f} s  {self.case}: {text}"
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")

    def counterpoint(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run this repository's command on this machine; statuses 0 and 1 are answers, 2 is an error with `check`."""
        command = [sys.executable, "-m", "counterpoint", *map(str, arguments)]
        path = f"{REPOSITORY / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        if check and done.returncode not in (0, 1):
            raise LabError(f"counterpoint {' '.join(map(str, arguments))[:200]}: {done.stderr.strip()}")
        return done

    def zipapp(self) -> Path:
        """Return the live commands in one file, as `make zipapp` makes it."""
        target = self.folder / "counterpoint.pyz"
        subprocess.run([sys.executable, REPOSITORY / "tools/zipapp.py", target], check=True, stdout=subprocess.DEVNULL)
        return target

    def write(self, name: str, content: object) -> Path:
        """Write text, or anything else as JSON, into the case's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1, default=asdict) + "\n")
        return path

    def eventually(self, what: Callable[[], object], timeout: float, text: str) -> Any:  # noqa: ANN401
        """Return what `what` returns as soon as that is true."""
        ends = time.monotonic() + timeout
        while not (found := what()):
            if time.monotonic() > ends:
                raise LabError(f"not within {timeout:.0f} s: {text}")
            time.sleep(0.3)
        return found


def holds(interval: Sequence[int] | None, truth: Sequence[int] | None) -> bool:
    """Whether an interval and what the truth was bracketed to have something in common."""
    return interval is not None and truth is not None and interval[0] <= truth[1] and truth[0] <= interval[1]


def known_cases() -> dict[str, Case]:
    """Return every case of the folder `cases`, by name."""
    from lab import cases  # they import this module

    found: dict[str, Case] = {}
    for module in pkgutil.iter_modules(cases.__path__):
        loaded = importlib.import_module(f"lab.cases.{module.name}")
        for case in getattr(loaded, "CASES", None) or [loaded.CASE]:
            found[case.name] = case
    return found


def run_case(case: Case, cache: Path, results: Path, keep: bool = False) -> list[Row]:
    """Run one case and write rows.json. What goes wrong is a row that says so; the folder keeps what there was."""
    folder = results / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lab = Lab(case.name, cache, folder, keep)
    lab.say(case.about)
    rows = _guarded(lab, case.run)
    for row in rows:
        row.seconds = round(time.monotonic() - lab.began)
    for file in (folder / "share").glob("*.txt"):
        file.rename(folder / file.name)
    if not keep and all(row.ok for row in rows):
        shutil.rmtree(folder / "share", ignore_errors=True)
        (folder / "counterpoint.pyz").unlink(missing_ok=True)
    return _written(lab, rows)


def judge_case(case: Case, cache: Path, results: Path) -> list[Row]:
    """Hold what an earlier run brought home against the truth once more, with the code as it is now."""
    lab = Lab(case.name, cache, results / case.name)
    before = json.loads((lab.folder / "rows.json").read_text())
    rows = _guarded(lab, case.judge)
    for row in rows:
        row.seconds = before[0]["seconds"]
    return _written(lab, rows)


def _guarded(lab: Lab, make: Callable[[Lab], list[Row]]) -> list[Row]:
    try:
        rows = make(lab)
        if not rows:
            raise LabError("the case gave no result")
    except (LabError, OSError, subprocess.SubprocessError, KeyError, ValueError, StopIteration) as error:
        lab.write("error.txt", traceback.format_exc())
        architecture, unknown = lab.case.split("-")[0], "?"
        row = Row(lab.case, architecture, unknown, unknown, unknown, unknown, None, None, "", None, "", None, "none")
        row.reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        lab.say(f"{error}\n{'':10}what there is: {lab.folder}")
        return [row]
    return rows


def _written(lab: Lab, rows: list[Row]) -> list[Row]:
    lab.write("rows.json", [asdict(row) for row in rows])
    for row in rows:
        lab.say(f"{'ok    ' if row.ok else 'FAILED'} {_told(row)}")
    return rows


def _told(row: Row) -> str:
    text = f"{row.guest} vCPU {row.vcpu}: {row.verdict}, truth {_span(row.truth)} in {_span(row.interval)} {row.unit}"
    text += f" ({row.width_ns} ns)" if row.width_ns is not None else ""
    return f"{text}; {row.reason}" if row.reason else text


def _span(interval: Sequence[int] | None) -> str:
    if interval is None:
        return "-"
    return str(interval[0]) if interval[0] == interval[1] else f"{interval[0]}..{interval[1]}"


def table(results: Path) -> str:
    """Return the results of all cases that were run as a Markdown page: every row, those that failed as well."""
    rows: list[Mapping[str, Any]] = []
    for file in sorted(results.glob("*/rows.json")):
        rows += json.loads(file.read_text())
    good = sum(row["ok"] for row in rows)
    lines = [
        "# Results of the lab",
        "",
        f"{good} of {len(rows)} rows hold. Written by `python -m lab --table`; what a row is: [the lab](lab.md).",
        "",
        "| case | kernel | VMM | clock | guest, vCPU | truth | by | interval | width | verdict | sources | holds | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sources = "<br>".join(f"{name}: {value}" for name, value in row["sources"].items())
        width = "-" if row["width_ns"] is None else f"{row['width_ns']} ns"
        cells = [
            *(row[key] for key in ("case", "kernel", "vmm", "clock")),
            f"{row['guest']}, {'-' if row['vcpu'] is None else row['vcpu']}",
            _span(row["truth"]),
            row["truth_by"],
            f"{_span(row['interval'])} {row['unit']}",
            width,
            row["verdict"],
            sources,
            "yes" if row["ok"] else f"**no**: {row['reason']}",
            row["seconds"],
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
