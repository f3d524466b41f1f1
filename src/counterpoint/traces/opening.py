"""Which reader a recording is for: by what it holds, never by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from counterpoint.dat_layout import MAGIC
from counterpoint.errors import BadFileError
from counterpoint.traces import ctf, dat, perf, text
from counterpoint.traces.contents import Contents

HEAD = 4096
"""Bytes of a file's beginning that a reader is chosen by."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format that recordings may be in: ``fits`` looks at the path and the first bytes (b"" of a folder)."""

    name: str
    fits: Callable[[Path, bytes], bool]
    read: Callable[[str], Contents]


FORMATS = (
    Format("trace.dat", lambda _, head: head.startswith(MAGIC), dat.read),
    Format("CTF", lambda path, head: not head and ctf.is_trace(path), ctf.read),
    Format("perf.data", lambda _, head: head.startswith((perf.MAGIC, perf.SWAPPED)), perf.read),
    Format("ftrace text", text.fits, text.read),
)
"""Asked in this order. ``info`` calls a recording's format by its name here."""


def read_contents(path: str | PathLike[str]) -> Contents:
    """Read the recording at ``path``, whichever format it is in; BadFileError where it is in none that is known."""
    name = fspath(path)
    head = _head(name)
    found = _format_of(name, head)
    if found is None:
        names = ", ".join(one.name for one in FORMATS)
        raise BadFileError(f"not a recording in any format that is understood ({names})", name, 0 if head else None)
    return found.read(name)


def is_recording(path: str | PathLike[str]) -> bool:
    """Whether a reader takes ``path``, a file or a folder; False where it cannot be looked at."""
    try:
        return _format_of(fspath(path), _head(fspath(path))) is not None
    except BadFileError:
        return False


def _format_of(path: str, head: bytes) -> Format | None:
    return next((one for one in FORMATS if one.fits(Path(path), head)), None)


def _head(path: str) -> bytes:
    """The first bytes of a file, b"" of a folder."""
    if Path(path).is_dir():
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (as container)
            head = file.read(HEAD)
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    if not head:
        raise BadFileError("the file is empty", path, 0)
    return head
