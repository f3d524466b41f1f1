"""From each CPU's trace_pipe_raw into a file, page by page, without a copy through this process.

splice(2) moves whole sub-buffers into a pipe, and from there into the file (tracing_buffers_splice_read in
kernel/trace/trace.c). It takes none that is still being written: the last of each CPU is read once tracing is off.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from counterpoint.live import libc

PIPE_BYTES = 1 << 20
"""What a pipe may hold: what may be moved in one go. An unprivileged limit of many kernels."""

EVERY = 0.5
"""Seconds after which whole pages are taken though the buffer is not half full: what a kill leaves is that old."""

CPUS_A_THREAD = 16
_F_SETPIPE_SZ = 1031


class Pipe:
    """What pages pass through; one for all CPUs that a thread drains one after the other."""

    def __init__(self) -> None:
        """As large as may be."""
        self.read, self.write = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.fcntl(self.write, _F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read)
        os.close(self.write)


class CpuSpool:
    """One CPU: ``source`` is its trace_pipe_raw, ``target`` the file, which must not exist."""

    def __init__(self, cpu: int, source: Path, target: Path, page_size: int) -> None:
        """Open both."""
        self.cpu = cpu
        self.target = target
        self.bytes = 0
        self._page = page_size
        self._open: list[int] = []
        try:
            self.source = self._kept(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            self._file = self._kept(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except OSError:
            self.close()
            raise

    def _kept(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def drain(self, pipe: Pipe, limit: int) -> int:
        """Move the whole pages that are there, about ``limit`` bytes at most; how many bytes."""
        moved = 0
        while moved < limit:
            try:
                count = libc.splice(self.source, pipe.write, PIPE_BYTES, libc.SPLICE_MOVE | libc.SPLICE_NONBLOCK)
            except BlockingIOError:
                break
            if not count:
                break
            left = count
            while left:
                left -= libc.splice(pipe.read, self._file, left, libc.SPLICE_MOVE)
            moved += count
            if count < PIPE_BYTES // 2:
                break
        self.bytes += moved
        return moved

    def finish(self, pipe: Pipe) -> None:
        """Tracing is off: take all that is left, also pages that are not full."""
        while self.drain(pipe, 1 << 62):
            pass
        while True:
            try:
                page = os.read(self.source, self._page)
            except BlockingIOError:
                break
            if not page:
                break
            os.write(self._file, page)
            self.bytes += len(page)

    def close(self) -> None:
        """Close all that it has open."""
        while self._open:
            os.close(self._open.pop())


class Pump:
    """All CPUs' spools, drained by a thread for each ``CPUS_A_THREAD``.

    ``wake`` is called, in such a thread, when ``max_bytes`` are reached (``full``) or a file cannot be written
    (``error``): nothing is moved any more then.
    """

    def __init__(self, spools: Sequence[CpuSpool], wake: Callable[[], None], max_bytes: int | None = None) -> None:
        """Not started yet."""
        self.spools = spools
        self.full = False
        self.error: OSError | None = None
        self._wake = wake
        self._max = 1 << 62 if max_bytes is None else max_bytes
        self._ending = os.pipe2(os.O_CLOEXEC)
        self._groups = [(Pipe(), spools[at : at + CPUS_A_THREAD]) for at in range(0, len(spools), CPUS_A_THREAD)]
        self._threads = [threading.Thread(target=self._run, args=group, daemon=True) for group in self._groups]

    @property
    def bytes(self) -> int:
        """Moved so far."""
        return sum(spool.bytes for spool in self.spools)

    def start(self) -> None:
        """Begin to move pages."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what is in the buffers stays there. Again and again is no error."""
        if self._ending:
            os.close(self._ending[1])
            for thread in self._threads:
                if thread.is_alive():
                    thread.join()
            os.close(self._ending[0])
            self._ending = ()  # type: ignore[assignment]

    def finish(self) -> None:
        """``stop``, then take what is left; tracing must be off. OSError where a file cannot be written."""
        self.stop()
        if self.error is not None:
            raise self.error
        if not self.full:
            for pipe, spools in self._groups:
                for spool in spools:
                    spool.finish(pipe)

    def close(self) -> None:
        """``stop``, and close what it has open; its spools are their maker's."""
        self.stop()
        while self._groups:
            self._groups.pop()[0].close()

    def _run(self, pipe: Pipe, spools: Sequence[CpuSpool]) -> None:
        poll = select.poll()
        by_source = {spool.source: spool for spool in spools}
        for source in by_source:
            poll.register(source, select.POLLIN)
        poll.register(self._ending[0], select.POLLIN)
        looked = time.monotonic()
        try:
            while not self.full and self.error is None:
                ready = set()
                for descriptor, what in poll.poll(EVERY * 1000):
                    if descriptor == self._ending[0]:
                        return
                    if what & select.POLLIN:
                        ready.add(descriptor)
                    else:
                        # a CPU that was never there has no buffer (ring_buffer_poll_wait): it may get one, and is
                        # looked at with all others
                        poll.unregister(descriptor)
                now = time.monotonic()
                if now - looked >= EVERY:
                    looked, ready = now, set(by_source)
                for source in ready:
                    by_source[source].drain(pipe, self._room())
                if self.bytes >= self._max:
                    self.full = True
                    self._wake()
        except OSError as err:
            self.error = err
            self._wake()

    def _room(self) -> int:
        # one CPU that is never done must not starve the others
        return min(16 * PIPE_BYTES, max(self._max - self.bytes, 0))
