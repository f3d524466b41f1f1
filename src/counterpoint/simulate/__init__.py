"""Worlds whose truth is known: a host, its guests and theirs, written as real trace.dat files.

    options   what a world is made of, and a draw of one
    counters  from the world's time to every machine's counter and trace clock
    plan      VMs, threads, rounds, and what happens to counters when
    schedule  who runs where: stints of threads on CPUs, run windows in them; times draws and places them
    activity  what guests do in their run windows
    events    the events' layouts; host_events, guest_events and exits make them
    machines  a machine's events as columns, and its file; file_options what the file claims
    truth     what is known: epochs, lines, the instant of every guest event
    world     all of it together

A world has one hidden time, an integer; every stamp is a function of it. Nothing here shares arithmetic with what
proves: a mistake in one would otherwise hide in the other.

Names are imported when first used: the command's help needs the options alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from counterpoint.simulate.options import WorldOptions, random_options

if TYPE_CHECKING:
    from counterpoint.simulate.truth import GuestCpuTruth
    from counterpoint.simulate.world import World

_HOMES = {"GuestCpuTruth": "truth", "World": "world"}

__all__ = ["GuestCpuTruth", "World", "WorldOptions", "random_options"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'counterpoint.simulate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"counterpoint.simulate.{_HOMES[name]}"), name)
