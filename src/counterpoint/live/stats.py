"""What per_cpu/cpuN/stats says: events that can be read, and events that nobody will read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_LOSSES = ("overrun", "commit overrun", "dropped events")


def read_stats(folder: Path, cpus: Sequence[int]) -> dict[int, str]:
    """per_cpu/cpuN/stats of each CPU."""
    out = {}
    for cpu in cpus:
        with suppress(OSError):
            out[cpu] = (folder / "per_cpu" / f"cpu{cpu}" / "stats").read_text(encoding="utf-8", errors="replace")
    return out


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^([a-z ]+): (\d{1,20})$", text, re.MULTILINE)}


def total(stats: Mapping[int, str]) -> dict[str, int]:
    """Of all CPUs: ``events`` that were or can be read, ``lost`` ones (tracing_stats_read in kernel/trace/trace.c)."""
    out = {"events": 0, "lost": 0}
    for text in stats.values():
        numbers = _numbers(text)
        out["events"] += numbers.get("entries", 0) + numbers.get("read events", 0)
        out["lost"] += sum(numbers.get(name, 0) for name in _LOSSES)
    return out
