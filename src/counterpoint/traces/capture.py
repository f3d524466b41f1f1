"""A capture: a folder of recordings that belong together, and ``capture.json``, which says how.

docs/capture.md describes the file. It may come from anywhere: names may not lead out of the folder, and what is not as
described is a BadFileError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from counterpoint.clocks.pairs import ClockPair
from counterpoint.errors import BadFileError

NAME = "capture.json"
SCHEMA = 1

MAX_BYTES = 64 << 20
"""A larger capture.json is refused before it is read."""

MAX_ENTRIES = 1 << 16
"""More hosts, guests, threads or pairs than this in one list are refused."""

_K_LIMIT = 1 << 127


@dataclass(frozen=True, slots=True)
class CapturedGuest:
    """A guest's recording ``file``; ``parent``: the stem of its host's (None: the first host).

    ``threads``: the host threads of its CPUs, where the recorder knew them. ``claims``: JSON objects as in a claims
    file, without their key ``guest``.
    """

    file: Path
    parent: str | None = None
    threads: tuple[tuple[int, int], ...] = ()
    claims: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Capture:
    """What ``capture.json`` says. ``clock_pairs``: by a recording's stem, in the order given.

    ``ks``: by a recording's stem, K of arm64's stamps (docs/proof.md) as a closed interval.
    ``realtime_within_ns``: by how much the hosts' CLOCK_REALTIME may differ (None: not said).
    """

    folder: Path
    host: Path
    hosts: tuple[Path, ...]
    guests: tuple[CapturedGuest, ...]
    clock_pairs: Mapping[str, tuple[ClockPair, ...]]
    realtime_within_ns: int | None = None
    ks: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Capture:
        """Read ``folder``'s capture.json; BadFileError where there is none, or it is not as described."""
        path = Path(folder) / NAME
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise BadFileError(f"has {size} bytes: no capture.json is that large", path)
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadFileError(f"a capture folder has a {NAME}, and this one has none", folder) from None
        except OSError as err:
            raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
        except (ValueError, RecursionError) as err:
            reason = "nested too deep" if isinstance(err, RecursionError) else str(err)
            raise BadFileError(f"is no JSON: {reason}", path) from None
        try:
            return _capture(Path(folder), loaded)
        except ValueError as err:
            raise BadFileError(str(err), path) from None


def _capture(folder: Path, loaded: object) -> Capture:
    top = _object(loaded, "the file")
    schema = top.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f'"schema" is {str(schema)[:40]!r}, and only {SCHEMA} is known here')
    pairs = {}
    for stem, listed in _object(top.get("clock_pairs", {}), '"clock_pairs"').items():
        pairs[stem] = tuple(_pair(p, stem) for p in _list(listed, f'"clock_pairs" of {stem[:40]!r}'))
    within = top.get("realtime_within_ns")
    ks = {stem: _k(ends, stem) for stem, ends in _object(top.get("k", {}), '"k"').items()}
    return Capture(
        folder,
        _file(folder, top.get("host"), '"host"'),
        tuple(_file(folder, name, '"hosts"') for name in _list(top.get("hosts", []), '"hosts"')),
        tuple(_guest(folder, g) for g in _list(top.get("guests", []), '"guests"')),
        pairs,
        None if within is None else _integer(within, '"realtime_within_ns"', 0, 1 << 62),
        ks,
    )


def _guest(folder: Path, loaded: object) -> CapturedGuest:
    guest = _object(loaded, "a guest")
    file = _file(folder, guest.get("file"), '"file" of a guest')
    what = f"of guest {file.stem[:40]!r}"
    parent = guest.get("parent")
    if parent is not None and not isinstance(parent, str):
        raise ValueError(f'"parent" {what} is no name')
    threads = []
    for cpu, tid in _object(guest.get("threads", {}), f'"threads" {what}').items():
        if not cpu.isascii() or not cpu.isdigit() or len(cpu) > 9:
            raise ValueError(f'"threads" {what} has the CPU {cpu[:40]!r}: a number is expected')
        threads.append((int(cpu), _integer(tid, f"a thread {what}", 1, (1 << 31) - 1)))
    claims = tuple(_object(c, f"a claim {what}") for c in _list(guest.get("claims", []), f'"claims" {what}'))
    return CapturedGuest(file, parent, tuple(threads), claims)


def _pair(loaded: object, stem: str) -> ClockPair:
    what = f"of a clock pair of {stem[:40]!r}"
    pair = _object(loaded, f"a clock pair of {stem[:40]!r}")
    return ClockPair(
        _integer(pair.get("counter"), f'"counter" {what}', 0, (1 << 64) - 1),
        _integer(pair.get("realtime_ns"), f'"realtime_ns" {what}', -(1 << 63), (1 << 63) - 1),
        _integer(pair.get("bound_ns", 0), f'"bound_ns" {what}', 0, 1 << 62),
        str(pair.get("source", "kvm_get_clock"))[:80],
    )


def _k(loaded: object, stem: str) -> tuple[int, int]:
    what = f'"k" of {stem[:40]!r}'
    ends = [_integer(end, what, -_K_LIMIT, _K_LIMIT) for end in _list(loaded, what)]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(f"{what} is not the least and the greatest")
    return ends[0], ends[1]


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    if len(value) > MAX_ENTRIES:
        raise ValueError(f"{what} has {len(value)} entries: more than {MAX_ENTRIES}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    if len(value) > MAX_ENTRIES:
        raise ValueError(f"{what} has {len(value)} entries: more than {MAX_ENTRIES}")
    return value


def _integer(value: object, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} is no integer from {low} to {high}")
    return value


def _file(folder: Path, name: object, what: str) -> Path:
    """A file of the folder itself: a name from elsewhere may not lead out of it."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} names no file")
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{what} names {name[:80]!r}: a file of this folder is expected")
    return folder / name
