"""A tracer whose pages and texts are those of a recording that was written before; it keeps a journal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.live.tracedat import cmdlines_of, head_of

CLOCKS = ["local", "mono_raw", "x86-tsc"]


class FakeTracer:
    """Use as ``make_tracer``: the instance is its own factory."""

    def __init__(self, root: Path, pages: dict[int, bytes], *, page_size: int = 4096, endless: bool = False) -> None:
        self.root = root
        self.page_size = page_size
        self.journal: list[str] = []
        self.asked: tuple[Any, ...] = ()
        self.more: dict[str, Any] = {}
        self._pages = pages
        self._endless = endless
        self._left: dict[int, bytes] = {}
        self._pipes: dict[int, int] = {}
        self._open: list[int] = []

    def __call__(self) -> FakeTracer:
        self.journal.append("made")
        return self

    def describe(self) -> dict[str, Any]:
        self.journal.append("described")
        return {
            "system": "Linux", "node": "guest", "release": "6", "machine": "x86_64", "cpus": len(self._pages),
            "clocks": CLOCKS, "max_buffer_kb": 65536, **self.more,
        }  # fmt: skip

    def begin(self, events: Sequence[str], clock: str, buffer_kb: int) -> int:
        if clock not in CLOCKS:
            raise UsageError(f"this kernel has no trace clock {clock}")
        self.journal.append("began")
        self.asked = (list(events), clock, buffer_kb)
        self._left = dict(self._pages)
        for cpu in self._pages:
            out, into = os.pipe()
            os.write(into, b"x")
            self._open += [out, into]
            self._pipes[out] = cpu
        return 3

    def pipes(self) -> dict[int, int]:
        return dict(self._pipes)

    def take(self, cpu: int, limit: int) -> bytes:
        if self._endless and "ended" not in self.journal:
            return self._pages[cpu]
        count = max(self.page_size, limit - limit % self.page_size)
        out, self._left[cpu] = self._left[cpu][:count], self._left[cpu][count:]
        return out

    def end(self) -> None:
        self.journal.append("ended")

    def head(self) -> bytes:
        return head_of(self.root)

    def cmdlines(self) -> bytes:
        return cmdlines_of(self.root)

    def clock_line(self) -> str:
        return " ".join(f"[{name}]" if name == self.asked[1] else name for name in CLOCKS)

    def stats(self) -> dict[int, str]:
        return {cpu: f"entries: 0\noverrun: {cpu}\ndropped events: 0\nread events: 5\n" for cpu in self._pages}

    def close(self) -> None:
        self.journal.append("closed")
        for descriptor in self._open:
            os.close(descriptor)
        self._open, self._pipes = [], {}
