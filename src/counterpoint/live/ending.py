"""What ends a recording: a signal, a time, a command's end, a full file. The first of them counts."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

SNAPSHOT = "SIGUSR1"


class Ending:
    """``reason`` is None until ``because`` is called, from any thread or a signal's handler."""

    def __init__(self) -> None:
        """Nothing ends yet."""
        self.reason: str | None = None
        self.recording = False
        """A signal ends the recording in good order; while this is False it ends the program at once."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def because(self, reason: str) -> None:
        """End for ``reason``, unless there is one already."""
        if self.reason is None:
            self.reason = reason
        self.wake()

    def wake(self) -> None:
        """Let ``wait`` return."""
        with suppress(BlockingIOError):
            os.write(self._write, b"x")

    def wait(self, seconds: float | None, others: Sequence[int] = ()) -> list[int]:
        """Wait until something happens, or ``seconds`` are over; the descriptors among ``others`` that are readable."""
        poll = select.poll()
        for descriptor in (self._read, *others):
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)]
        if self._read in ready:
            with suppress(BlockingIOError):
                os.read(self._read, 4096)
        return [descriptor for descriptor in ready if descriptor != self._read]

    @contextmanager
    def signals(self, *, snapshot: bool = False) -> Iterator[None]:
        """Take Ctrl-C, SIGTERM and SIGHUP; SIGUSR1 too, where that is to end a flight recording; and SIGCHLD wakes."""

        def end(number: int, _frame: object) -> None:
            if self.recording and self.reason is None:
                self.because(signal.Signals(number).name)
            elif number == signal.SIGINT:
                raise KeyboardInterrupt
            else:
                raise SystemExit(128 + number)

        def woken(number: int, _frame: object) -> None:
            if number == signal.SIGUSR1 and self.recording:
                self.because(SNAPSHOT)
            self.wake()

        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), end)
        handlers[signal.SIGCHLD] = woken
        if snapshot:
            handlers[signal.SIGUSR1] = woken
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Nothing may end any more."""
        os.close(self._read)
        os.close(self._write)
