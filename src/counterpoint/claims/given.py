"""Claims typed by hand, or handed over in a file: ``--offset [GUEST:]CPU=TICKS``, ``--claims FILE``.

A claims file has one JSON object a line::

    {"guest": "vm1", "cpu": 0, "offset": -81892957611, "source": "my-vmm", "host_from": null, "host_to": null}

``cpu`` and ``offset`` are required; ``guest`` is a recording's file stem (all guests where it is absent). ``ratio`` and
``frac_bits`` are those of a scaled counter. Other keys are the writer's own (docs/vmm-authors.md).
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from counterpoint.claims.model import Claim
from counterpoint.errors import BadFileError, UsageError

SOURCE = "given"
LIMIT = (1 << 64) - 1


def parse_offset(text: str) -> tuple[str | None, Claim]:
    """Read ``[GUEST:]CPU=TICKS``: (guest or None, claim). UsageError where it is not that."""
    guest, cpu, value = parse_assignment(text, "--offset", "[GUEST:]CPU=TICKS", "0=-81892957611")
    if not -LIMIT <= value <= LIMIT:
        raise UsageError(f"--offset {text}: an offset has 64 bits")
    return guest, Claim(SOURCE, value, guest_cpu=cpu)


def parse_assignment(text: str, flag: str, shape: str, example: str) -> tuple[str | None, int, int]:
    """Read ``[GUEST:]CPU=INTEGER`` (decimal or 0x): (guest or None, CPU, integer)."""
    left, equals, right = text.rpartition("=")
    guest, _, cpu = left.rpartition(":")
    try:
        if not equals or int(cpu) < 0:
            raise ValueError
        return guest or None, int(cpu), int(right, 0)
    except ValueError:
        raise UsageError(f"{flag} {text}: {shape} is expected, as in {flag} {example}") from None


def read_claims(path: str | PathLike[str]) -> list[tuple[str | None, Claim]]:
    """Read a claims file: (guest or None, claim) of each line. BadFileError says which line is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    except UnicodeDecodeError as err:
        raise BadFileError("is no text in UTF-8, a claims file has one JSON object a line", path, err.start) from None
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            out.append(_claim(json.loads(line)))
        except (ValueError, RecursionError) as err:
            reason = "nested too deep" if isinstance(err, RecursionError) else str(err)
            raise BadFileError(f"line {number} is no claim: {reason}", path) from None
    return out


def _claim(entry: object) -> tuple[str | None, Claim]:
    if not isinstance(entry, dict):
        raise ValueError('an object is expected, as in {"cpu": 0, "offset": -81892957611}')

    def integer(name: str, low: int = -LIMIT) -> int:
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= LIMIT:
            raise ValueError(f"its {name!r} is no integer of 64 bits" if name in entry else f"it has no {name!r}")
        return value

    def optional(name: str) -> int | None:
        return None if entry.get(name) is None else integer(name, 0)

    ratio, bits = optional("ratio"), optional("frac_bits")
    if (ratio is None) is not (bits is None) or ratio == 0 or (bits or 0) > 63:
        raise ValueError("its 'ratio' and 'frac_bits' are no scale: both are needed, frac_bits up to 63")
    guest = entry.get("guest")
    claim = Claim(
        str(entry.get("source", "claims-file")),
        integer("offset"),
        guest_cpu=integer("cpu", 0),
        host_from=optional("host_from"),
        host_to=optional("host_to"),
        ratio=1 if ratio is None else ratio,
        frac_bits=0 if bits is None else bits,
    )
    return (None if guest is None else str(guest)), claim
