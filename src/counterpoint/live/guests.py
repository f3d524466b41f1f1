"""How a guest is recorded beside its host: what a source of guests has to do, whatever it speaks with the guest by.

A source is made from its URL (``ssh://user@host``, ...), started before the first event and stopped after the last. It
writes the guest's recording, a whole trace.dat, into the capture folder by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from counterpoint.errors import UsageError


@dataclass(frozen=True)
class Wanted:
    """What a guest is asked to record.

    ``events``: patterns SYSTEM or SYSTEM:EVENT, of which a guest takes those that it has. ``clock``: the host's, for
    the guest to take too. ``buffer_kb``: of each CPU. ``trace_id``: the host's recording's.
    ``flight``: record in a circle, and keep what is there at the end.
    """

    events: Sequence[str]
    clock: str
    buffer_kb: int
    trace_id: int
    flight: bool = False


@dataclass
class GuestFile:
    """A guest's recording. ``lost``: events overwritten before they were read; None: not known."""

    path: Path
    clock: str
    cpus: int
    events: int | None = None
    lost: int | None = None
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    trace_id: int | None = None
    """TRACEID of its file, by which its host's GUEST option names it."""
    line: dict[str, Any] | None = None
    """What the guest says its clock is of its counter (``machine.clock_line``); None: it says nothing."""


class GuestTracer(Protocol):
    """One guest. ``name``: the stem of its file. Errors are UsageError (what, where, what to do) or OSError."""

    name: str
    url: str

    def start(self, folder: Path, wanted: Wanted) -> None:
        """Begin to record; when it returns, the guest records. What has to be kept goes to ``folder``."""

    def stop(self) -> GuestFile:
        """End the recording, write ``folder``/NAME.dat, and leave the guest as it was."""

    def abandon(self) -> None:
        """Leave the guest as it was, whatever has happened; again and again is no error."""


def make(text: str, *, ssh_command: str = "ssh", secret_file: str | None = None) -> GuestTracer:
    """The source that ``[NAME=]URL`` names. UsageError where there is none of that kind, or the URL is not its.

    ``secret_file``: what Counterpoint's own agents have too; without it an agent is trace-cmd's.
    """
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        name, url = "", text
    scheme, colon, _ = url.partition("://")
    if colon and scheme == "ssh":
        from counterpoint.live.ssh import SshGuest

        return SshGuest(url, name, ssh_command)
    from counterpoint.live.wired import is_wired, wired

    if is_wired(url):
        return wired(url, name, secret_file)
    raise UsageError(
        f"--guest {text}: ssh://[USER@]HOST[:PORT] is expected, or an agent's vsock://CID[:PORT], unix://PATH[:PORT],"
        " tcp://HOST[:PORT] or serial:///dev/DEVICE"
    )
