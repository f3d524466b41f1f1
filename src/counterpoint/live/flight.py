"""The condition of a flight recorder: an event, or SIGUSR1.

The event is watched in an instance of its own, which wakes at the first one. A trigger of the kernel's (traceoff) would
be quicker, but in kernels that lack its support for instances it switches the top-level buffer off.
(302e9edd5498 "tracing: Have traceon and traceoff trigger honor the instance")
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.live.ending import SNAPSHOT
from counterpoint.live.presets import EventSpec
from counterpoint.live.tracedat import chosen
from counterpoint.live.tracefs import Instance, instance

_BUFFER_KB = 64


class Condition:
    """``text`` is SIGUSR1, or SYSTEM:EVENT[:FILTER] of one event."""

    def __init__(self, text: str) -> None:
        """UsageError where it is neither."""
        self.text = text
        self.spec = None if text == SNAPSHOT else EventSpec.parse(text)
        self._watch: Instance | None = None
        self._pipes: list[int] = []

    def open(self, stack: ExitStack, root: Path, clock: str) -> list[int]:
        """Watch, until ``stack`` closes: the descriptors that are readable when it may have come."""
        if self.spec is None:
            return []
        pairs = chosen(root, [self.spec.pattern])
        if len(pairs) != 1:
            raise UsageError(f"--snapshot-on {self.text}: {len(pairs) or 'no'} events are called so, and one is needed")
        self._watch = stack.enter_context(instance(root, _BUFFER_KB, clock))
        with suppress(OSError):
            # wake at the first event (since Linux 5.0: 03329f993978 "tracing: Add tracefs file buffer_percentage")
            self._watch.write("buffer_percent", "0")
        for path in sorted((self._watch.folder / "per_cpu").glob("cpu*/trace_pipe_raw")):
            pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, pipe)
            self._pipes.append(pipe)
        try:
            self._watch.enable(*pairs[0], self.spec.filter)
        except OSError as err:
            raise UsageError(f"--snapshot-on {self.text}: the kernel refuses it: {err.strerror}") from None
        return self._pipes

    def came(self) -> dict[str, Any] | None:
        """The first event that fulfilled it, where one did: its stamp and its integers."""
        if self._watch is None:
            return None
        events, _ = self._watch.read()
        if not events:
            return None
        stamp, name, fields = events[0]
        return {"stamp": stamp, "event": name, "fields": fields}
