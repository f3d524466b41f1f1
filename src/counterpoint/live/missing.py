"""A source that does not answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """Which source, and why it does not answer."""

    source: str
    reason: str
