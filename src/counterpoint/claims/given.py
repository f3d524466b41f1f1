"""Claims typed by hand, or handed over in a file: ``--offset``, ``--cntvoff [GUEST:]CPU=TICKS``, ``--claims FILE``.

A claims file has one JSON object a line::

    {"guest": "vm1", "cpu": 0, "offset": -81892957611, "source": "my-vmm", "host_from": null, "host_to": null}
    {"cpu": 0, "cntvoff": 13991199888, "source": "my-vmm"}
    {"machine": "host", "k": -51935628879218171}

``cpu`` and ``offset``, or arm64's ``cntvoff``, are required; ``guest`` is a recording's file stem (all guests where it
is absent). A line with ``k`` says what relates the stamps of a recording to its counter, as ``--k NAME=K`` does.
``ratio`` and ``frac_bits`` are those of a scaled counter. Other keys are the writer's own (docs/vmm-authors.md).
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TypeGuard

from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.known_counter import K_LIMIT
from counterpoint.errors import BadFileError, UsageError

SOURCE = "given"
LIMIT = (1 << 64) - 1
K_WIDTH = 1 << 90
"""An interval of K wider than this, of some 2**60 ticks, tells nothing."""


def parse_offset(text: str) -> tuple[str | None, Claim]:
    """Read ``[GUEST:]CPU=TICKS``: (guest or None, claim). UsageError where it is not that."""
    guest, cpu, value = parse_assignment(text, "--offset", "[GUEST:]CPU=TICKS", "0=-81892957611")
    if not -LIMIT <= value <= LIMIT:
        raise UsageError(f"--offset {text}: an offset has 64 bits")
    return guest, Claim(SOURCE, value, guest_cpu=cpu)


def parse_cntvoff(text: str) -> tuple[str | None, CounterClaim]:
    """Read ``[GUEST:]CPU=TICKS`` of ``--cntvoff``: (guest or None, claim). UsageError where it is not that."""
    guest, cpu, value = parse_assignment(text, "--cntvoff", "[GUEST:]CPU=TICKS", "0=13991199888")
    if not -LIMIT <= value <= LIMIT:
        raise UsageError(f"--cntvoff {text}: CNTVOFF has 64 bits")
    return guest, CounterClaim(SOURCE, to_signed(value), guest_cpu=cpu)


def parse_k(text: str) -> tuple[str, tuple[int, int]]:
    """Read ``NAME=K`` or ``NAME=LO..HI`` of ``--k``: the machine, and K as a closed interval. UsageError else."""
    name, equals, value = text.rpartition("=")
    first, dots, second = value.partition("..")
    try:
        if not equals or not name:
            raise ValueError
        lo, hi = int(first, 0), int(second if dots else first, 0)
        if not -K_LIMIT <= lo <= hi <= K_LIMIT or hi - lo > K_WIDTH:
            raise ValueError
    except ValueError:
        raise UsageError(f"--k {text}: NAME=K or NAME=LO..HI is expected, as in --k host=-51935628879218171") from None
    return name, (lo, hi)


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


def read_claims(path: str | PathLike[str]) -> list[tuple[str | None, Claim | CounterClaim]]:
    """Read a claims file: (guest or None, claim) of each line. BadFileError says which line is wrong."""
    return [_claim(entry) for entry in _entries(path) if "k" not in entry]


def read_ks(path: str | PathLike[str]) -> list[tuple[str, tuple[int, int]]]:
    """What a claims file says of K: (machine, closed interval) of each line that does."""
    return [_k(entry) for entry in _entries(path) if "k" in entry]


class _Entry(dict[str, object]):
    """One line of a claims file, or the like: ``where`` says which."""

    def __init__(self, path: str | PathLike[str], where: str, values: dict[str, object]) -> None:
        super().__init__(values)
        self.path, self.where = path, where

    def wrong(self, reason: str) -> BadFileError:
        """What to raise."""
        return BadFileError(f"{self.where} is no claim: {reason}", self.path)

    def integer(self, name: str, low: int = -LIMIT, high: int = LIMIT) -> int:
        """A required integer."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(f"its {name!r} is no integer of 64 bits" if name in self else f"it has no {name!r}")
        return value

    def optional(self, name: str) -> int | None:
        """An integer of 0 or more that may be absent or null."""
        return None if self.get(name) is None else self.integer(name, 0)


def _entries(path: str | PathLike[str]) -> list[_Entry]:
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
            values = json.loads(line)
        except (ValueError, RecursionError) as err:
            reason = "nested too deep" if isinstance(err, RecursionError) else str(err)
            raise BadFileError(f"line {number} is no claim: {reason}", path) from None
        if not isinstance(values, dict):
            raise BadFileError(
                f'line {number} is no claim: an object is expected, as in {{"cpu": 0, "offset": -81892957611}}', path
            )
        out.append(_Entry(path, f"line {number}", values))
    return out


def claim_of(
    values: dict[str, object], path: str | PathLike[str], where: str
) -> tuple[str | None, Claim | CounterClaim]:
    """(guest or None, claim) of one object as in a claims file, at a place in a file; BadFileError where it is none."""
    return _claim(_Entry(path, where, values))


def _claim(entry: _Entry) -> tuple[str | None, Claim | CounterClaim]:
    guest = entry.get("guest")
    source, cpu = str(entry.get("source", "claims-file")), entry.integer("cpu", 0)
    begin, end = entry.optional("host_from"), entry.optional("host_to")
    claim: Claim | CounterClaim
    if entry.get("cntvoff") is None:
        ratio, bits = entry.optional("ratio"), entry.optional("frac_bits")
        if (ratio is None) is not (bits is None) or ratio == 0 or (bits or 0) > 63:
            raise entry.wrong("its 'ratio' and 'frac_bits' are no scale: both are needed, frac_bits up to 63")
        claim = Claim(
            source, entry.integer("offset"), guest_cpu=cpu, host_from=begin, host_to=end,
            ratio=1 if ratio is None else ratio, frac_bits=bits or 0,
        )  # fmt: skip
    elif "offset" in entry:
        raise entry.wrong("it has both 'offset' and 'cntvoff': they are two claims")
    else:
        value = to_signed(entry.integer("cntvoff"))
        claim = CounterClaim(source, value, guest_cpu=cpu, host_from=begin, host_to=end)
    return (None if guest is None else str(guest)), claim


def _k(entry: _Entry) -> tuple[str, tuple[int, int]]:
    machine, value = entry.get("machine"), entry["k"]
    if not isinstance(machine, str):
        raise entry.wrong("it has no 'machine', whose K it is")
    ends = [k for k in (value if isinstance(value, list) else [value, value]) if _is_k(k)]
    if len(ends) != 2 or (isinstance(value, list) and len(value) != 2):
        raise entry.wrong("its 'k' is neither an integer nor a list of the least and the greatest")
    if ends[0] > ends[1]:
        raise entry.wrong("the least of its 'k' is above the greatest")
    if ends[1] - ends[0] > K_WIDTH:
        raise entry.wrong("its 'k' is so wide that it tells nothing")
    return machine, (ends[0], ends[1])


def _is_k(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= K_LIMIT
