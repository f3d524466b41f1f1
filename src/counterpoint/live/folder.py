"""The capture folder as it is made: capture.json from the first moment, and recordings in parts until they are whole.

While a machine is recorded its parts lie there: NAME.dat.head, NAME.dat.cpuN, and what else NAME.dat needs in
capture.json's "parts". Whoever finds the recorder dead puts the file together from them (``assemble``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.dat_layout import MAGIC
from counterpoint.errors import BadFileError, UsageError
from counterpoint.live import tracefs
from counterpoint.live.tracedat import Facts, write_dat

NAME = "capture.json"
SCHEMA = 1
MAX_HEAD = 256 << 20
"""A larger head is no head of ours."""
MAX_JSON = 64 << 20

_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}")


def is_stem(name: str) -> bool:
    """Whether a recording may be called ``name``: a plain file's name, no path."""
    return bool(_STEM.fullmatch(name))


@dataclass(frozen=True)
class Parts:
    """What a recording needs besides its head and pages, known when it begins."""

    clock: str
    cpus: int
    trace_id: int
    uname: str = ""
    tsc2nsec: tuple[int, int] | None = None

    def facts(self, stats: Mapping[int, str]) -> Facts:
        """The options of the file."""
        return Facts(self.clock, self.cpus, self.trace_id, stats, self.uname, self.tsc2nsec)


class CaptureFolder:
    """A folder that is being recorded into. ``content`` is capture.json's; ``save`` writes it, whole or not at all."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        """Use ``create``."""
        self.path = path
        self.content = content
        self._parts: dict[str, Parts] = {}

    @classmethod
    def create(cls, path: Path, *, overwrite: bool) -> CaptureFolder:
        """Make the folder. UsageError where it holds a capture (without ``overwrite``) or something else."""
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path}: is no folder")
        path.mkdir(parents=True, exist_ok=True)
        there = sorted(entry.name for entry in path.iterdir())
        if there and NAME not in there:
            raise UsageError(f"{path}: the folder is not empty and holds no capture: name another")
        if there and not overwrite:
            raise UsageError(f"{path}: the folder holds a capture (--force replaces it)")
        for name in there:
            # only what a recorder writes; what somebody put beside it stays
            if name == NAME or re.search(r"\.dat(\.head|\.cpu\d+)?$", name):
                (path / name).unlink()
        owner = {"pid": os.getpid(), "started": tracefs.started(os.getpid())}
        return cls(path, {"schema": SCHEMA, "host": "host.dat", "state": "recording", "recorder": owner})

    def dat(self, stem: str) -> Path:
        """The file of a recording."""
        return self.path / f"{stem}.dat"

    def begin(self, stem: str, head: bytes, parts: Parts) -> None:
        """A recording begins: its head, and what else it will need, are there before its first page."""
        with open(_head(self.path, stem), "xb") as file:
            file.write(head)
        self._parts[stem] = parts
        self.save()

    def pages(self, stem: str, cpu: int) -> Path:
        """Where a CPU's pages go."""
        return _pages(self.path, stem, cpu)

    def end(self, stem: str, cmdlines: bytes, stats: Mapping[int, str]) -> Path:
        """Put the recording together; its parts are gone afterwards, and ``save`` says so."""
        parts = self._parts.pop(stem)
        head = _head(self.path, stem).read_bytes()
        _write(self.path, stem, head, cmdlines, parts, stats)
        return self.dat(stem)

    def save(self) -> None:
        """Write capture.json."""
        content = dict(self.content)
        if self._parts:
            content["parts"] = {stem: _values(parts) for stem, parts in self._parts.items()}
        _save(self.path, content)


def _values(parts: Parts) -> dict[str, Any]:
    return {
        "clock": parts.clock, "cpus": parts.cpus, "trace_id": parts.trace_id, "uname": parts.uname,
        "tsc2nsec": list(parts.tsc2nsec) if parts.tsc2nsec else None,
    }  # fmt: skip


def _save(folder: Path, content: dict[str, Any]) -> None:
    temporary = folder / f".{NAME}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    temporary.replace(folder / NAME)


def _head(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.dat.head"


def _pages(folder: Path, stem: str, cpu: int) -> Path:
    return folder / f"{stem}.dat.cpu{cpu}"


def _write(folder: Path, stem: str, head: bytes, cmdlines: bytes, parts: Parts, stats: Mapping[int, str]) -> None:
    files = {}
    for entry in folder.iterdir():
        match = re.fullmatch(re.escape(stem) + r"\.dat\.cpu(\d{1,5})", entry.name)
        if match and entry.is_file() and not entry.is_symlink():
            files[int(match[1])] = entry
    files = {cpu: files[cpu] for cpu in sorted(files) if cpu < parts.cpus}
    target = folder / f"{stem}.dat"
    temporary = folder / f".{stem}.dat.new"
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        write_dat(temporary, head, cmdlines, parts.facts(stats).options(), files, cpus=parts.cpus)
        temporary.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    for path in (*files.values(), _head(folder, stem)):
        path.unlink()


# -- what a dead recorder left ---------------------------------------------------------------------------------------


def assemble(folder: Path) -> list[str]:
    """Put together what lies in parts in ``folder``, whose recorder was killed; what was done, a line each.

    The folder may be from anywhere: BadFileError where it is not as described. UsageError where it is still recorded.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadFileError("is too large for a capture.json", path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    except (ValueError, RecursionError):
        raise BadFileError("is no JSON", path) from None
    listed = content.get("parts") if isinstance(content, dict) else None
    if not listed:
        return []
    if not isinstance(listed, dict) or not all(isinstance(one, dict) for one in listed.values()):
        raise BadFileError('"parts" is no object of objects', path)
    owner = content.get("recorder")
    pid = owner.get("pid") if isinstance(owner, dict) else None
    if isinstance(pid, int) and 0 < pid < 1 << 31 and tracefs.started(pid) == owner.get("started"):
        raise UsageError(f"{folder}: is being recorded by process {pid}: end it first (kill -INT {pid})")
    said = []
    for stem, values in listed.items():
        if not is_stem(stem):
            raise BadFileError(f'"parts" names {stem[:80]!r}: a file\'s stem is expected', path)
        said.append(_recover(folder, stem, _parts(values, path)))
    _save(folder, {**{key: value for key, value in content.items() if key != "parts"}, "state": "recovered"})
    return said


def _parts(values: dict[str, Any], path: Path) -> Parts:
    clock, uname, factors = values.get("clock"), values.get("uname", ""), values.get("tsc2nsec")
    cpus, trace_id = (_integer(values.get(key), top) for key, top in (("cpus", 1 << 16), ("trace_id", (1 << 64) - 1)))
    if not isinstance(clock, str) or not isinstance(uname, str) or cpus is None or trace_id is None:
        raise BadFileError('"parts" is not as described: clock, cpus, trace_id', path)
    known: tuple[int, int] | None = None
    if isinstance(factors, list) and len(factors) == 2:
        mult, shift = _integer(factors[0], (1 << 32) - 1), _integer(factors[1], 63)
        known = (mult, shift) if mult is not None and shift is not None else None
    return Parts(clock[:4096], cpus, trace_id, uname[:4096] or "unknown", known)


def _integer(value: object, top: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= top else None


def _recover(folder: Path, stem: str, parts: Parts) -> str:
    path = _head(folder, stem)
    if not path.exists() and (folder / f"{stem}.dat").exists():
        return f"{stem}.dat was whole already"
    try:
        if path.stat().st_size > MAX_HEAD:
            raise BadFileError("is too large for a recording's head", path)
        head = path.read_bytes()
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    if head[: len(MAGIC)] != MAGIC or len(head) < len(MAGIC) + 8 or not head[len(MAGIC) + 4 :].strip(b"\0"):
        raise BadFileError("is no head of a recording", path)
    # (the names of threads were known to the recorder alone, who would have asked for them at the end)
    _write(folder, stem, head, b"", parts, {})
    return f"{stem}.dat was put together from its parts: its recorder was killed"
