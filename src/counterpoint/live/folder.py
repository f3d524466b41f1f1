"""The capture folder as it is made: capture.json from the first moment, and recordings in parts until they are whole.

While a machine is recorded its parts lie there: NAME.dat.head, NAME.dat.cpuN, and what else NAME.dat needs in
NAME.dat.parts. Whoever finds the recorder dead puts the file together from them (``assemble``).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.dat_layout import MAGIC
from counterpoint.errors import BadFileError, UsageError
from counterpoint.live import tracefs
from counterpoint.live.tracedat import Facts, cmdlines, write_dat

NAME = "capture.json"
SCHEMA = 1
MAX_HEAD = 256 << 20
"""A larger head is no head of ours."""
MAX_JSON = 64 << 20
MAX_PARTS = 1 << 12
MAX_SIDECAR = 16 << 20
PARTS = ".parts"

_TID = re.compile(r"[0-9]{1,10}")
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
    names: Mapping[int, str] = field(default_factory=dict)
    """Of threads, when it began: all that there is where nobody asks for them at the end."""

    def facts(self, stats: Mapping[int, str]) -> Facts:
        """The options of the file."""
        return Facts(self.clock, self.cpus, self.trace_id, stats, self.uname, self.tsc2nsec)


class CaptureFolder:
    """A folder that is being recorded into. ``content`` is capture.json's; ``save`` writes it, whole or not at all."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        """Use ``create``."""
        self.path = path
        self.content = content

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
        _clear(path)
        owner = {"pid": os.getpid(), "started": tracefs.started(os.getpid())}
        return cls(path, {"schema": SCHEMA, "host": "host.dat", "state": "recording", "recorder": owner})

    def discard(self) -> None:
        """Nothing was recorded: leave no trace of it."""
        _clear(self.path)
        with suppress(OSError):
            self.path.rmdir()

    def save(self) -> None:
        """Write capture.json."""
        _save(self.path / NAME, self.content)


def _clear(folder: Path) -> None:
    for entry in sorted(folder.iterdir()):
        # only what a recorder writes; what somebody put beside it stays
        if entry.name == NAME or re.search(r"\.dat(\.head|\.parts|\.cpu\d+)?$", entry.name):
            entry.unlink()


# -- a recording in parts --------------------------------------------------------------------------------------------


def begin(folder: Path, stem: str, head: bytes, parts: Parts) -> None:
    """A recording begins: its head, and what else it will need, are there before its first page."""
    with open(_head(folder, stem), "xb") as file:
        file.write(head)
    _save(
        _sidecar(folder, stem),
        {
            "clock": parts.clock, "cpus": parts.cpus, "trace_id": parts.trace_id, "uname": parts.uname,
            "tsc2nsec": list(parts.tsc2nsec) if parts.tsc2nsec else None,
            "names": {str(tid): name for tid, name in parts.names.items()},
        },
    )  # fmt: skip


def pages(folder: Path, stem: str, cpu: int) -> Path:
    """Where a CPU's pages go."""
    return folder / f"{stem}.dat.cpu{cpu}"


def end(
    folder: Path, stem: str, parts: Parts, cmdlines: bytes, stats: Mapping[int, str],
    more: Sequence[tuple[int, bytes]] = (),
) -> Path:  # fmt: skip
    """Put the recording together, with ``more`` options, after which its parts are gone; its file."""
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
        options = [*parts.facts(stats).options(), *more]
        write_dat(temporary, _head(folder, stem).read_bytes(), cmdlines, options, files, cpus=parts.cpus)
        temporary.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    for path in (_sidecar(folder, stem), *files.values(), _head(folder, stem)):
        path.unlink()
    return target


def _save(path: Path, content: dict[str, Any]) -> None:
    temporary = path.parent / f".{path.name}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    temporary.replace(path)


def _head(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.dat.head"


def _sidecar(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.dat{PARTS}"


# -- what a dead recorder left ---------------------------------------------------------------------------------------


def is_unfinished(folder: Path) -> bool:
    """Whether some recording lies there in parts."""
    with suppress(OSError):
        return any(folder.glob(f"*.dat{PARTS}"))
    return False


def assemble(folder: Path) -> list[str]:
    """Put together what lies in parts in ``folder``, whose recorder was killed; what was done, a line each.

    The folder may be from anywhere: BadFileError where it is not as described. UsageError where it is still recorded.
    """
    path = folder / NAME
    content = _load(path, MAX_JSON)
    owner = content.get("recorder")
    owner = owner if isinstance(owner, dict) else {}
    pid = owner.get("pid")
    if isinstance(pid, int) and 0 < pid < 1 << 31 and tracefs.started(pid) == owner.get("started"):
        raise UsageError(f"{folder}: is being recorded by process {pid}: end it first (kill -INT {pid})")
    said = []
    guests = content.get("guests", [])
    known = {guest.get("file") for guest in guests if isinstance(guest, dict)} if isinstance(guests, list) else set()
    for sidecar in sorted(folder.glob(f"*.dat{PARTS}"))[:MAX_PARTS]:
        stem = sidecar.name[: -len(f".dat{PARTS}")]
        if not is_stem(stem):
            raise BadFileError("is not the name of a recording's part", sidecar)
        said.append(_recover(folder, stem, sidecar))
        file = f"{stem}.dat"
        if file != content.get("host") and file not in known and isinstance(guests, list):
            guests.append({"file": file})
    _save(path, {**content, "guests": guests, "state": "recovered"})
    return said


def _load(path: Path, limit: int) -> dict[str, Any]:
    try:
        if path.stat().st_size > limit:
            raise BadFileError(f"is larger than {limit} bytes: refused", path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    except (ValueError, RecursionError):
        raise BadFileError("is no JSON", path) from None
    if not isinstance(content, dict):
        raise BadFileError("is no JSON object", path)
    return content


def _parts(values: dict[str, Any], path: Path) -> Parts:
    clock, uname, factors = values.get("clock"), values.get("uname", ""), values.get("tsc2nsec")
    cpus, trace_id = (_integer(values.get(key), top) for key, top in (("cpus", 1 << 16), ("trace_id", (1 << 64) - 1)))
    if not isinstance(clock, str) or not isinstance(uname, str) or cpus is None or trace_id is None:
        raise BadFileError("is not as described: clock, uname, cpus, trace_id", path)
    known: tuple[int, int] | None = None
    if isinstance(factors, list) and len(factors) == 2:
        mult, shift = _integer(factors[0], (1 << 32) - 1), _integer(factors[1], 63)
        known = (mult, shift) if mult and shift is not None else None
    names = values.get("names", {})
    if not isinstance(names, dict) or not all(_TID.fullmatch(tid) and isinstance(n, str) for tid, n in names.items()):
        raise BadFileError("is not as described: names", path)
    texts = {int(tid): name for tid, name in names.items()}
    return Parts(clock[:4096], cpus, trace_id, uname[:4096] or "unknown", known, texts)


def _integer(value: object, top: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= top else None


def _recover(folder: Path, stem: str, sidecar: Path) -> str:
    parts = _parts(_load(sidecar, MAX_SIDECAR), sidecar)
    path = _head(folder, stem)
    try:
        if path.is_symlink():
            raise BadFileError("is a link: refused", path)
        if path.stat().st_size > MAX_HEAD:
            raise BadFileError(f"is larger than {MAX_HEAD} bytes: refused", path)
        with open(path, "rb") as file:
            begun = file.read(len(MAGIC) + 8)
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    order, size = begun[len(MAGIC) + 2 : len(MAGIC) + 3], begun[len(MAGIC) + 4 :]
    page = int.from_bytes(size, sys.byteorder)
    if begun[: len(MAGIC) + 2] != MAGIC + b"6\0" or order != bytes([sys.byteorder == "big"]) or not 0 < page <= 1 << 20:
        raise BadFileError("is no head of a recording that this machine could have made", path)
    # (its recorder would have asked for names and counts at the end)
    end(folder, stem, parts, cmdlines(b"", parts.names), {})
    return f"{stem}.dat was put together from its parts: its recorder was killed"
