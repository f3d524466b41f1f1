"""Counterpoint's agent: a guest's side of ``record``. It does what ``Session`` lists, for who has the secret.

One thread, no waiting: every connection has a time by which it must have spoken, and bounds on what is held for it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import UsageError
from counterpoint.live import frames
from counterpoint.live.frames import FrameError, Receiver, Sender
from counterpoint.live.links import Device, Link, Listener
from counterpoint.live.tracer import Tracer, checked

GREETING_SECONDS = 5.0
"""For all that comes before the first frame."""
SILENCE_SECONDS = 30.0
"""A client says something at least that often (``ping``)."""
STUCK_SECONDS = 30.0
"""For a client that takes nothing of what waits for it."""
MAX_STRANGERS = 8
"""Connections that have not proved anything yet; one more, and the oldest goes."""
OUTBOX = 1 << 20
"""Bytes that wait for the client, beyond which no more pages are taken: what the kernel overwrites then is counted."""
EVERY = 0.5
"""Seconds after which whole pages are sent though no buffer is half full."""
_TEMPORARY = (errno.EAGAIN, errno.EINTR)


class _Over(Exception):
    """A connection ends, and why."""


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
        self._trace_id = 0
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
            self.close()
            return [({"error": str(err)[:2000]}, b"")]
        except OSError as err:
            self.close()
            return [({"error": f"{err.filename or 'tracefs'}: {err.strerror or err}"[:2000]}, b"")]

    def _opened(self) -> Tracer:
        if self._tracer is None:
            self._tracer = self._make()
        return self._tracer

    def _record(self, header: dict[str, Any]) -> dict[str, Any]:
        if self.recording or self._rest is not None:
            raise UsageError("a recording is there already: one at a time")
        wanted = checked(header.get("events"), header.get("clock"), header.get("buffer_kb"))
        trace_id = header.get("trace_id")
        if isinstance(trace_id, bool) or not isinstance(trace_id, int) or not 0 < trace_id < 1 << 64:
            raise UsageError("trace_id: a number of 64 bits is expected")
        self._trace_id = trace_id
        self._flight = header.get("flight") is True
        tracer = self._opened()
        count = tracer.begin(*wanted)
        self.recording = True
        # (what it costs to make the head is recorded too; a client that dies has it for the pages that it got)
        self._rest = _parts("head", tracer.head())
        return {"recording": count, "page_size": tracer.page_size, "clock": wanted[1]}

    def _stop(self) -> None:
        tracer = self._opened()
        tracer.end()
        self.recording = False
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
        facts = tracer.facts(self._trace_id)
        self.close()
        for number, data in facts.options():
            yield {"option": int(number)}, data[: frames.MAX_DATA]
        yield {"stopped": True, "cpus": facts.cpus}, b""

    def pipes(self) -> dict[int, int]:
        """Descriptors to wait for, while it records."""
        return self._tracer.pipes() if self._tracer is not None and self.recording and not self._flight else {}

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
        yield {"part": name}, text[at : at + frames.MAX_DATA // 4]


class Peer:
    """One connection, from its greeting on."""

    def __init__(self, link: Link, who: str, secret: bytes, *, searches: bool = False) -> None:
        """``searches``: the greeting may come after anything else (a serial device has no beginning)."""
        self.link = link
        self.who = who
        self.session: Session | None = None
        self.outbox = bytearray()
        self.left_over = b""
        self._secret = secret
        self._searches = searches
        self._line = bytearray()
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self.heard = self.moved = time.monotonic()
        self._begun = self.heard

    @property
    def is_stranger(self) -> bool:
        """Whether it has proved nothing yet."""
        return self.session is None

    def deadline(self) -> float:
        """When it is over, if nothing comes or goes until then."""
        if self.session is None:
            # a serial device waits for its first client for ever
            return self._begun + GREETING_SECONDS if self._receiver is not None or not self._searches else float("inf")
        if self.outbox:
            return min(self.heard + SILENCE_SECONDS, self.moved + STUCK_SECONDS)
        return self.heard + SILENCE_SECONDS

    def take(self, data: bytes) -> list[dict[str, Any]]:
        """Requests that end in ``data``; the first of them proves who sends. _Over where it ends."""
        if self._receiver is None:
            data = self._greeted(data)
            if self._receiver is None:
                return []
        out = []
        try:
            for frame in self._receiver.feed(data):
                self._receiver.max_header = 16 << 10
                out.append(frame.header)
        except FrameError as err:
            # on a serial device this may be the greeting of another client, whose predecessor is dead
            self.left_over = self._receiver.held() if self._searches else b""
            raise _Over(str(err)) from None
        if out:
            self.heard = time.monotonic()
        return out

    def _greeted(self, data: bytes) -> bytes:
        self._line += data[: 1 << 16]
        if self._searches:
            at = self._line.find(frames.GREETING)
            # what may be its beginning stays
            del self._line[: at if at >= 0 else max(0, len(self._line) - len(frames.GREETING) + 1)]
        if not self._line.startswith(frames.GREETING[: len(self._line)]):
            raise _Over("it did not greet")
        if len(self._line) < frames.CLIENT_LINE:
            return b""
        nonce = frames.read_greeting(bytes(self._line[: frames.CLIENT_LINE]))
        rest = bytes(self._line[frames.CLIENT_LINE :])
        self._line.clear()
        if nonce is None:
            if self._searches:
                return self._greeted(rest)
            raise _Over("its greeting has no nonce")
        own = frames.new_nonce()
        to_agent, to_client = frames.keys(self._secret, nonce, own)
        self._sender = Sender(to_client)
        self._receiver = Receiver(to_agent, frames.FIRST_HEADER, 0)
        self._begun = time.monotonic()
        self.outbox += frames.answer(nonce, own)
        return rest

    def put(self, header: dict[str, Any], data: bytes = b"") -> None:
        """Let a frame wait to be sent."""
        assert self._sender is not None
        if not self.outbox:
            self.moved = time.monotonic()
        self.outbox += self._sender.encode(header, data)

    def flush(self) -> None:
        """Send what can be sent now. _Over where nobody takes it."""
        while self.outbox:
            try:
                with memoryview(self.outbox) as view:
                    count = self.link.send(view[: 256 << 10])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as err:
                raise _Over(err.strerror or str(err)) from None
            if not count:
                return
            del self.outbox[:count]
            self.moved = time.monotonic()

    def close(self) -> None:
        """End it, and what it had done."""
        session, self.session = self.session, None
        if session is not None:
            session.close()


class Agent:
    """Serves until ``stop``. ``listener`` or ``device``: where clients come from."""

    def __init__(
        self,
        secret: bytes,
        make_tracer: Callable[[], Tracer],
        listener: Listener | None = None,
        device: Device | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Nobody is there yet."""
        self._secret = secret
        self._make = make_tracer
        self._listener = listener
        self._device = device
        self._say = say or (lambda _text: None)
        self._peers: list[Peer] = []
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._drained = 0.0
        self._left_over = b""

    def stop(self) -> None:
        """Let ``serve`` return; from any thread or a signal's handler."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._stop_write, b"x")

    def serve(self) -> None:
        """Until ``stop`` is called, or an error that is not a client's."""
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
            peer = Peer(self._device, "the serial device", self._secret, searches=True)
            left, self._left_over = self._left_over, b""
            peer.take(left)
            self._peers.append(peer)
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener.fileno(), select.POLLIN)
        by_link = {peer.link.fileno(): peer for peer in self._peers}
        pipes: dict[int, int] = {}
        waits = [peer.deadline() - time.monotonic() for peer in self._peers]
        for descriptor, peer in by_link.items():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if peer.outbox else 0))
            if peer.session is not None and len(peer.outbox) < OUTBOX:
                pipes.update(peer.session.pipes())
        for pipe in pipes:
            poll.register(pipe, select.POLLIN)
        if pipes:
            waits.append(EVERY)
        patience = min(waits, default=3600.0)
        ready = dict(poll.poll(max(0.0, min(patience, 3600.0)) * 1000))
        for descriptor, peer in by_link.items():
            self._serve_peer(peer, ready.get(descriptor, 0), ready)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept()

    def _accept(self) -> None:
        assert self._listener is not None
        link, who = self._listener.accept()
        if link is None:
            if who:
                self._say(f"{who} may not connect")
            return
        strangers = [peer for peer in self._peers if peer.is_stranger]
        if len(strangers) >= MAX_STRANGERS:
            self._drop(strangers[0], "too many that say nothing")
        self._peers.append(Peer(link, who, self._secret))

    def _serve_peer(self, peer: Peer, events: int, ready: dict[int, int]) -> None:
        if peer not in self._peers:
            return
        try:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._read(peer)
            self._fill(peer, ready)
            peer.flush()
            if time.monotonic() >= peer.deadline():
                raise _Over("it was silent, or took nothing, for too long")
        except _Over as err:
            self._drop(peer, str(err))

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.link.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as err:
            raise _Over(err.strerror or str(err)) from None
        if not data:
            if peer.link is self._device:
                # nobody holds the other end of a virtio-serial port: it polls as ready all the time
                time.sleep(0.2)
                if peer.is_stranger:
                    return
            raise _Over("")
        for request in peer.take(data):
            if peer.session is None:
                if any(other.session is not None for other in self._peers):
                    peer.put({"error": "another client is served: one at a time"})
                    peer.flush()
                    raise _Over("another client is served")
                peer.session = Session(self._make)
                self._say(f"{peer.who}: a client with the secret")
            if len(peer.outbox) > 4 * OUTBOX:
                raise _Over("it asks, and does not take the answers")
            for header, more in peer.session.do(request):
                peer.put(header, more)

    def _fill(self, peer: Peer, ready: dict[int, int]) -> None:
        session = peer.session
        if session is None:
            return
        while len(peer.outbox) < OUTBOX:
            found = session.next()
            if found is None:
                break
            peer.put(*found)
        now = time.monotonic()
        everything = now - self._drained >= EVERY
        for pipe, cpu in session.pipes().items():
            if not (everything or pipe in ready) or len(peer.outbox) >= OUTBOX:
                continue
            pages = session.pages(cpu)
            if pages is not None:
                peer.put(*pages)
        if everything:
            self._drained = now

    def _drop(self, peer: Peer, reason: str) -> None:
        self._peers.remove(peer)
        self._left_over = peer.left_over
        had = not peer.is_stranger
        peer.close()
        if peer.link is not self._device:
            peer.link.close()
        if reason or had:
            self._say(f"{peer.who}: the connection ends{': ' + reason if reason else ''}")
