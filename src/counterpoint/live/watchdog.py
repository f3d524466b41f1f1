"""A child that outlives a SIGKILL of this process, and removes then what this process made in tracefs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from counterpoint.live import tracefs

PATIENCE = 10.0
"""Seconds for the killed process to be gone, and for what it had open to be closed."""


@contextmanager
def watchdog(root: Path) -> Iterator[int]:
    """A child process (its id) that watches until the block ends. To be entered before any thread is started."""
    watched, alive = os.pipe2(os.O_CLOEXEC)
    owner = os.getpid()
    with tracefs.uninterrupted():
        child = os.fork()
        if not child:
            with suppress(BaseException):
                os.close(alive)
                _watch(root, watched, owner)
            os._exit(0)
    os.close(watched)
    try:
        yield child
    finally:
        # it is told that all is well: it has nothing to do
        with suppress(OSError):
            os.write(alive, b"x")
        os.close(alive)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _watch(root: Path, watched: int, owner: int) -> None:
    # of no terminal and no group of its owner: what ends those does not end it
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != watched:
            with suppress(OSError):
                os.close(int(name))
    # (the mask is its owner's, who blocked signals while it forked)
    begun = tracefs.started(owner)
    while True:
        try:
            if os.read(watched, 1):
                return
            break
        except InterruptedError:
            continue
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and begun is not None and tracefs.started(owner) == begun:
        time.sleep(0.01)
    while time.monotonic() < end:
        tracefs.sweep(root)
        if not tracefs.leftovers(root):
            return
        time.sleep(0.05)
