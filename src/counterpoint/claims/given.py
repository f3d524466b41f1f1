"""Claims typed by hand, or handed over in a file: ``--offset [GUEST:]CPU=TICKS``, ``--claims FILE``.

A claims file has one JSON object a line::

    {"guest": "vm1", "cpu": 0, "offset": -81892957611, "source": "my-vmm", "host_from": null, "host_to": null}

``cpu`` and ``offset`` are required; ``guest`` is a recording's file stem (all guests where it is absent).
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from counterpoint.claims.model import Claim
from counterpoint.errors import BadFileError, UsageError

SOURCE = "given"


def parse_offset(text: str) -> tuple[str | None, Claim]:
    """Read ``[GUEST:]CPU=TICKS``: (guest or None, claim). UsageError where it is not that."""
    guest, cpu, value = parse_assignment(text, "--offset", "[GUEST:]CPU=TICKS")
    return guest, Claim(SOURCE, value, guest_cpu=cpu)


def parse_assignment(text: str, flag: str, shape: str) -> tuple[str | None, int, int]:
    """Read ``[GUEST:]CPU=INTEGER`` (decimal or 0x): (guest or None, CPU, integer)."""
    left, equals, right = text.rpartition("=")
    guest, _, cpu = left.rpartition(":")
    try:
        if not equals:
            raise ValueError
        return guest or None, int(cpu), int(right, 0)
    except ValueError:
        raise UsageError(f"{flag} {text}: {shape} is expected, as in {flag} 0=-81892957611") from None


def read_claims(path: str | PathLike[str]) -> list[tuple[str | None, Claim]]:
    """Read a claims file: (guest or None, claim) of each line. BadFileError says which line is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise BadFileError(f"cannot be read: {err}", path) from None
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            out.append(_claim(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise BadFileError(f"line {number} is no claim ({err!r})", path) from None
    return out


def _claim(entry: dict[str, Any]) -> tuple[str | None, Claim]:
    def integer(name: str) -> int:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is no integer")
        return value

    def optional(name: str) -> int | None:
        return None if entry.get(name) is None else integer(name)

    guest = entry.get("guest")
    claim = Claim(
        str(entry.get("source", "claims-file")),
        integer("offset"),
        guest_cpu=integer("cpu"),
        host_from=optional("host_from"),
        host_to=optional("host_to"),
    )
    return (None if guest is None else str(guest)), claim
