"""One thread that serves connections without waiting for any: each has a time by which it must have moved."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from counterpoint.live.links import Link, Listener

GREETING_SECONDS = 5.0
"""For all that comes before somebody is known, or asks for something."""
STUCK_SECONDS = 30.0
"""For a client that takes nothing of what waits for it."""
MAX_STRANGERS = 8
"""Connections that have not proved or asked anything yet; one more, and the oldest goes."""
OUTBOX = 1 << 20
"""Bytes that wait for a client, beyond which no more pages are taken: what the kernel overwrites then is counted."""
EVERY = 0.5
"""Seconds after which whole pages are sent though no buffer is half full."""
READABLE = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Over(Exception):
    """A connection ends, and why ("": the other end closed it)."""


class Outbox:
    """What waits to be sent over one link."""

    def __init__(self, link: Link) -> None:
        """Nothing waits."""
        self.link = link
        self.moved = time.monotonic()
        self._held = bytearray()

    def __len__(self) -> int:
        """Bytes that wait."""
        return len(self._held)

    def put(self, data: bytes) -> None:
        """Let ``data`` wait."""
        if not self._held:
            self.moved = time.monotonic()
        self._held += data

    def wants(self) -> int:
        """What to wait for."""
        return select.POLLOUT if self._held else 0

    def deadline(self) -> float:
        """When it is stuck."""
        return self.moved + STUCK_SECONDS if self._held else float("inf")

    def flush(self) -> None:
        """Send what can be sent now. Over where nobody takes it any more."""
        while self._held:
            try:
                with memoryview(self._held) as view:
                    count = self.link.send(view[: 256 << 10])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as err:
                raise Over(err.strerror or str(err)) from None
            if not count:
                return
            del self._held[:count]
            self.moved = time.monotonic()


def received(link: Link) -> bytes | None:
    """What is there; None: nothing now. b"": nobody is at the other end. Over where the link is broken."""
    try:
        return link.recv(1 << 16)
    except (BlockingIOError, InterruptedError):
        return None
    except ConnectionResetError:
        return b""
    except OSError as err:
        raise Over(err.strerror or str(err)) from None


class Peer(Protocol):
    """One connection."""

    who: str

    @property
    def is_stranger(self) -> bool:
        """Whether nothing was made for it yet."""

    def wants(self) -> Mapping[int, int]:
        """Descriptors, and the events of poll(2) to wait for."""

    def deadline(self) -> float:
        """When it is over (time.monotonic), if nothing moves until then."""

    def patience(self) -> float:
        """Seconds after which it wants its turn though nothing is ready."""

    def turn(self, ready: Mapping[int, int]) -> None:
        """Do what can be done now. Over where it ends."""

    def close(self) -> None:
        """End it, and what was made for it."""


class Rationed:
    """Tells ``say`` of strangers, ``count`` times in ``seconds`` at most: none of them fills a log."""

    def __init__(self, say: Callable[[str], None], count: int = 20, seconds: float = 60.0) -> None:
        """Nothing was said."""
        self._say = say
        self._count = count
        self._seconds = seconds
        self._since = float("-inf")
        self._said = 0

    def __call__(self, text: str) -> None:
        """Say it, or count it."""
        now = time.monotonic()
        if now - self._since >= self._seconds:
            if self._said > self._count:
                self._say(f"{self._said - self._count} more like these")
            self._since, self._said = now, 0
        self._said += 1
        if self._said <= self._count:
            self._say(text)
        elif self._said == self._count + 1:
            self._say(f"more like these are counted for {self._seconds:g} s")


class Server:
    """Serves until ``stop``. ``make``: a connection from a link and whose it is; ``device``: one that is always there.

    ``say`` is told who comes and goes.
    """

    def __init__(
        self,
        listener: Listener | None,
        make: Callable[[Link, str], Peer] | None,
        say: Callable[[str], None] | None = None,
        device: Callable[[], Peer] | None = None,
    ) -> None:
        """Nobody is there yet."""
        self._listener = listener
        self._make = make
        self._device = device
        self._say = say or (lambda _text: None)
        self._say_of_strangers = Rationed(self._say)
        self._peers: list[Peer] = []
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False

    def is_busy(self) -> bool:
        """Whether something is done for somebody."""
        return any(not peer.is_stranger for peer in self._peers)

    def stop(self) -> None:
        """Let ``serve`` return; from any thread or a signal's handler."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._stop_write, b"x")

    def serve(self) -> None:
        """Until ``stop`` is called, or an error that is not a client's. Nothing is left behind then."""
        try:
            while not self._stopping:
                self._round()
        finally:
            for peer in list(self._peers):
                self._drop(peer, "the agent ends")
            for descriptor in (self._stop_read, self._stop_write):
                os.close(descriptor)

    def _round(self) -> None:
        if self._device is not None and not self._peers:
            self._peers.append(self._device())
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener.fileno(), select.POLLIN)
        now = time.monotonic()
        wait = 3600.0
        for peer in self._peers:
            wait = min(wait, peer.deadline() - now, peer.patience())
            for descriptor, events in peer.wants().items():
                poll.register(descriptor, events)
        ready = dict(poll.poll(max(0.0, wait) * 1000))
        for peer in list(self._peers):
            self._let(peer, ready)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)

    def _let(self, peer: Peer, ready: Mapping[int, int]) -> None:
        try:
            peer.turn(ready)
            if time.monotonic() >= peer.deadline():
                raise Over("it was silent, or took nothing, for too long")
        except Over as err:
            self._drop(peer, str(err))
        except OSError as err:
            # tracefs said no in the middle of it: the others are served on
            self._drop(peer, f"{err.filename or 'tracefs'}: {err.strerror or err}")

    def _accept(self, listener: Listener) -> None:
        link, who = listener.accept()
        if link is None or self._make is None:
            if who:
                self._say_of_strangers(f"{who} may not connect")
            return
        strangers = [peer for peer in self._peers if peer.is_stranger]
        if len(strangers) >= MAX_STRANGERS:
            self._drop(strangers[0], "too many that say nothing")
        self._peers.append(self._make(link, who))

    def _drop(self, peer: Peer, reason: str) -> None:
        self._peers.remove(peer)
        was_known = not peer.is_stranger
        peer.close()
        if reason or was_known:
            (self._say if was_known else self._say_of_strangers)(
                f"{peer.who}: the connection ends{': ' + reason if reason else ''}"
            )
