"""Counterpoint's agent: a guest's side of ``record``. It does what ``Session`` lists, for who has the secret.

Every connection has a time by which it must have spoken, and bounds on what is held for it (``serving``).
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import UsageError
from counterpoint.live import frames
from counterpoint.live.frames import FrameError, Receiver, Sender
from counterpoint.live.links import Device, Link, Listener
from counterpoint.live.serving import EVERY, GREETING_SECONDS, OUTBOX, READABLE, Outbox, Over, Server, received
from counterpoint.live.tracer import Tracer, checked

SILENCE_SECONDS = 30.0
"""A client says something at least that often (``ping``)."""


class Session:
    """What a client that has the secret may have done: describe, record, stop, ping. One at a time.

    ``answers`` are frames' headers and data, made as they are asked for.
    """

    def __init__(self, make_tracer: Callable[[], Tracer]) -> None:
        """Nothing is made yet."""
        self._make = make_tracer
        self._tracer: Tracer | None = None
        self._rest: Iterator[tuple[dict[str, Any], bytes]] | None = None
        self._flight = False
        self.recording = False

    def do(self, header: dict[str, Any]) -> list[tuple[dict[str, Any], bytes]]:
        """Answer one request."""
        what = header.get("do")
        try:
            if what == "ping":
                return [({"pong": True}, b"")]
            if what == "describe":
                return [({"machine": self._opened().describe(), "agent": __version__}, b"")]
            if what == "record":
                return [(self._record(header), b"")]
            if what == "stop" and self.recording:
                self._stop()
                return []
            reason = "nothing is recorded" if what == "stop" else "it does describe, record, stop and ping"
            return [({"error": reason}, b"")]
        except UsageError as err:
            self._close_unless_recording()
            return [({"error": str(err)[:2000]}, b"")]
        except OSError as err:
            self._close_unless_recording()
            return [({"error": f"{err.filename or 'tracefs'}: {err.strerror or err}"[:2000]}, b"")]

    def _close_unless_recording(self) -> None:
        # (a request that makes no sense ends no recording)
        if not self.recording:
            self.close()

    def _opened(self) -> Tracer:
        if self._tracer is None:
            self._tracer = self._make()
        return self._tracer

    def _record(self, header: dict[str, Any]) -> dict[str, Any]:
        if self.recording or self._rest is not None:
            raise UsageError("a recording is there already: one at a time")
        wanted = checked(header.get("events"), header.get("clock"), header.get("buffer_kb"))
        self._flight = header.get("flight") is True
        tracer = self._opened()
        count = tracer.begin(*wanted)
        self.recording = True
        # (what it costs to make the head is recorded too; a client that dies has it for the pages that it got)
        self._rest = _parts("head", tracer.head())
        return {"recording": count, "clock": tracer.clock_line()}

    def _stop(self) -> None:
        tracer = self._opened()
        self.recording = False
        tracer.end()
        head_left = self._rest
        self._rest = self._ending(tracer, head_left)

    def _ending(
        self, tracer: Tracer, head_left: Iterator[tuple[dict[str, Any], bytes]] | None
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        if head_left is not None:
            yield from head_left
        for cpu in sorted(tracer.pipes().values()):
            while True:
                pages = tracer.take(cpu, frames.MAX_DATA // 2)
                if not pages:
                    break
                yield {"cpu": cpu}, pages
        yield from _parts("cmdlines", tracer.cmdlines())
        stats = tracer.stats()
        self.close()
        for cpu, text in stats.items():
            yield {"stats": cpu}, text.encode()[: frames.MAX_DATA]
        yield {"stopped": True}, b""

    def pipes(self) -> dict[int, int]:
        """Descriptors to wait for, while it records."""
        return self._tracer.pipes() if self._tracer is not None and self.recording and not self._flight else {}

    @property
    def has_more(self) -> bool:
        """Whether ``next`` has something."""
        return self._rest is not None

    def next(self) -> tuple[dict[str, Any], bytes] | None:
        """One more frame of what has to be sent in order; None: nothing now."""
        if self._rest is not None:
            try:
                found = next(self._rest, None)
            except OSError as err:
                self.close()
                return {"error": f"{err.filename or 'tracefs'}: {err.strerror or err}"[:2000]}, b""
            if found is not None:
                return found
            self._rest = None
        return None

    def pages(self, cpu: int) -> tuple[dict[str, Any], bytes] | None:
        """What a CPU has."""
        if self._tracer is None or not self.recording:
            return None
        pages = self._tracer.take(cpu, frames.MAX_DATA // 4)
        return ({"cpu": cpu}, pages) if pages else None

    def close(self) -> None:
        """Whatever was made is gone; again is no error."""
        self.recording = False
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.close()


def _parts(name: str, text: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    for at in range(0, len(text), frames.MAX_DATA // 4):
        yield {"part": name, "of": len(text)}, text[at : at + frames.MAX_DATA // 4]


class Client:
    """One connection, from its greeting on (a ``serving.Peer``)."""

    def __init__(
        self, link: Link, who: str, secret: bytes, make_tracer: Callable[[], Tracer], is_busy: Callable[[], bool]
    ) -> None:
        """Nothing is known of it. A serial device has no beginning: there, the greeting may come after anything."""
        self.who = who
        self.begins_with = self.left_over = b""
        self._link = link
        self._secret = secret
        self._make = make_tracer
        self._is_busy = is_busy
        self._searches = isinstance(link, Device)
        self._session: Session | None = None
        self._outbox = Outbox(link)
        self._line = bytearray()
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._heard = self._begun = time.monotonic()
        self._drained = 0.0

    @property
    def is_stranger(self) -> bool:
        """Whether it has proved nothing yet."""
        return self._session is None

    def wants(self) -> Mapping[int, int]:
        """As the protocol has it."""
        out = {self._link.fileno(): select.POLLIN | self._outbox.wants()}
        if self._session is not None and len(self._outbox) < OUTBOX:
            out.update(dict.fromkeys(self._session.pipes(), select.POLLIN))
        return out

    def deadline(self) -> float:
        """As the protocol has it."""
        if self._session is not None:
            return min(self._heard + SILENCE_SECONDS, self._outbox.deadline())
        # at a serial device the first client may come at any time
        return self._begun + GREETING_SECONDS if self._receiver is not None or not self._searches else float("inf")

    def patience(self) -> float:
        """As the protocol has it."""
        if self.begins_with or (self._session is not None and self._session.has_more and len(self._outbox) < OUTBOX):
            return 0.0
        return EVERY if self._session is not None and self._session.recording else float("inf")

    def turn(self, ready: Mapping[int, int]) -> None:
        """As the protocol has it."""
        if self.begins_with:
            left, self.begins_with = self.begins_with, b""
            self.take(left)
        if ready.get(self._link.fileno(), 0) & READABLE:
            data = received(self._link)
            if data:
                self.take(data)
            elif data is not None:
                self._hung_up()
        self._fill(ready)
        self._outbox.flush()

    def _hung_up(self) -> None:
        if self._searches:
            # a virtio-serial port whose other end nobody holds is ready all the time
            time.sleep(0.2)
            if self.is_stranger and self._receiver is None:
                return
        raise Over("")

    def take(self, data: bytes) -> None:
        """What was received. Nothing is done before a frame whose tag is right."""
        if self._receiver is None:
            data = self._greeted(data)
        receiver = self._receiver
        if receiver is None:
            return
        try:
            for frame in receiver.feed(data):
                receiver.max_header = frames.MAX_HEADER
                self._heard = time.monotonic()
                self._ask(frame.header)
                # (what it asked for may have taken long)
                self._heard = time.monotonic()
        except FrameError as err:
            # on a serial device this may be the greeting of another client, whose predecessor is dead
            self.left_over = receiver.held() if self._searches else b""
            raise Over(str(err)) from None

    def _greeted(self, data: bytes) -> bytes:
        self._line += data
        if self._searches:
            at = self._line.find(frames.GREETING)
            # what may be its beginning stays
            del self._line[: at if at >= 0 else max(0, len(self._line) - len(frames.GREETING) + 1)]
        elif not self._line.startswith(frames.GREETING[: len(self._line)]):
            raise Over("it did not greet")
        if len(self._line) < frames.CLIENT_LINE:
            return b""
        nonce = frames.read_greeting(bytes(self._line[: frames.CLIENT_LINE]))
        if nonce is None:
            if not self._searches:
                raise Over("its greeting has no nonce")
            del self._line[: len(frames.GREETING)]
            return self._greeted(b"")
        rest = bytes(self._line[frames.CLIENT_LINE :])
        self._line.clear()
        own = frames.new_nonce()
        to_agent, to_client = frames.keys(self._secret, nonce, own)
        self._sender = Sender(to_client)
        self._receiver = Receiver(to_agent, frames.FIRST_HEADER, 0)
        self._begun = time.monotonic()
        self._outbox.put(frames.answer(nonce, own))
        return rest

    def _ask(self, header: dict[str, Any]) -> None:
        if self._session is None:
            if self._is_busy():
                self._put({"error": "another client is served: one at a time"})
                self._outbox.flush()
                raise Over("another client is served")
            self._session = Session(self._make)
        if len(self._outbox) > 2 * OUTBOX:
            raise Over("it asks, and does not take the answers")
        for answer, data in self._session.do(header):
            self._put(answer, data)

    def _put(self, header: dict[str, Any], data: bytes = b"") -> None:
        assert self._sender is not None
        self._outbox.put(self._sender.encode(header, data))

    def _fill(self, ready: Mapping[int, int]) -> None:
        session = self._session
        if session is None:
            return
        # a part of the head, then pages: neither keeps the other waiting
        self._put_next(session)
        now = time.monotonic()
        everything = now - self._drained >= EVERY
        for pipe, cpu in session.pipes().items():
            if not (everything or pipe in ready) or len(self._outbox) >= OUTBOX:
                continue
            pages = session.pages(cpu)
            if pages is not None:
                self._put(*pages)
        if everything:
            self._drained = now
        while session.has_more and len(self._outbox) < OUTBOX:
            self._put_next(session)

    def _put_next(self, session: Session) -> None:
        found = session.next() if len(self._outbox) < OUTBOX else None
        if found is not None:
            self._put(*found)

    def close(self) -> None:
        """As the protocol has it. A device stays open, for the next client."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        if not self._searches:
            self._link.close()


def agent(
    secret: bytes,
    make_tracer: Callable[[], Tracer],
    listener: Listener | None = None,
    device: Device | None = None,
    say: Callable[[str], None] | None = None,
) -> Server:
    """An agent that waits at ``listener`` or at ``device``."""
    last: list[Client] = []

    def make(link: Link, who: str) -> Client:
        return Client(link, who, secret, make_tracer, server.is_busy)

    def again() -> Client:
        assert device is not None
        client = make(device, "the serial device")
        client.begins_with = last.pop().left_over if last else b""
        last.append(client)
        return client

    server = Server(listener, make, say, None if device is None else again)
    return server
