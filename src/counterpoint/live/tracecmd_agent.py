"""An agent for ``trace-cmd record -A``: trace-cmd's protocol, served from an instance of our own.

That protocol has no authentication, and its requests are arguments of ``trace-cmd record``. Of these the ones that say
which events, which clock and how large a buffer are understood; any other is refused. Nothing of a request is run.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Mapping, Sequence

from counterpoint.dat_layout import Option
from counterpoint.errors import UsageError
from counterpoint.live import wire
from counterpoint.live.links import Address, Link, Listener
from counterpoint.live.serving import EVERY, GREETING_SECONDS, OUTBOX, READABLE, Outbox, Over, Server, received
from counterpoint.live.tracedat import Facts, new_trace_id, pack
from counterpoint.live.tracer import Tracer, checked
from counterpoint.live.wire import Command, Message, WireError

CONNECT_SECONDS = 30.0
"""For a client that has its answer to connect to every CPU's port."""
DEFAULT_BUFFER_KB = 1408
"""As the kernel's own."""
_TAKE = 256 << 10


def understood(arguments: Sequence[str], clocks: Sequence[str]) -> tuple[list[str], str, int]:
    """Events, clock and KB of each CPU's buffer that ``trace-cmd record`` is asked for. UsageError for the rest."""
    events: list[str] = []
    clock, buffer_kb = "local", DEFAULT_BUFFER_KB
    at = 0
    while at < len(arguments):
        name = arguments[at]
        at += 1
        if name in ("-i", "-q", "--quiet", "record"):
            continue
        if name not in ("-e", "-C", "-b", "--file-version", "--compression", "--tsync-interval", "-o"):
            raise UsageError(f"{name[:40]!r}: this agent takes -e, -C and -b")
        if at == len(arguments):
            raise UsageError(f"{name}: a value is expected")
        value = arguments[at]
        at += 1
        if name == "-e":
            events.append("*" if value == "all" else value)
        elif name == "-C":
            clock = value
        elif name == "-b":
            if not re.fullmatch(r"\d{1,9}", value):
                raise UsageError(f"-b {value[:40]!r}: a number of KB is expected")
            buffer_kb = int(value)
        elif name == "--file-version" and value not in ("6", "7"):
            raise UsageError(f"--file-version {value[:10]!r}: 6 is what this agent writes, and any reader takes")
    return checked(expanded(events), clock if clock in clocks else "?", buffer_kb)


def expanded(events: Sequence[str]) -> list[str]:
    """trace-cmd's patterns as ours: a name alone is a system or an event of any system."""
    out = []
    for event in events:
        out.append(event)
        if ":" not in event and event != "*":
            out.append(f"*:{event}")
    return out


class _Cpu:
    """One CPU's pages: its port, then its connection."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.outbox: Outbox | None = None
        self.is_done = False

    def close(self) -> None:
        self.listener.close()
        if self.outbox is not None:
            self.outbox.link.close()


class TraceCmdClient:
    """One connection of trace-cmd's (a ``serving.Peer``)."""

    def __init__(
        self,
        link: Link,
        who: str,
        make_tracer: Callable[[], Tracer],
        make_listener: Callable[[], Listener],
        is_busy: Callable[[], bool],
    ) -> None:
        """Nothing was asked."""
        self.who = who
        self._link = link
        self._make = make_tracer
        self._make_listener = make_listener
        self._is_busy = is_busy
        self._reader = wire.Reader()
        self._outbox = Outbox(link)
        self._tracer: Tracer | None = None
        self._cpus: dict[int, _Cpu] = {}
        self._begun = time.monotonic()
        self._drained = 0.0
        self._ending = False
        self._meta: list[bytes] = []

    @property
    def is_stranger(self) -> bool:
        """Whether nothing is recorded for it."""
        return self._tracer is None

    def _all_connected(self) -> bool:
        return all(cpu.outbox is not None for cpu in self._cpus.values())

    def wants(self) -> Mapping[int, int]:
        """As the protocol has it."""
        out = {self._link.fileno(): select.POLLIN | self._outbox.wants()}
        pipes = {} if self._tracer is None or self._ending else self._tracer.pipes()
        by_cpu = {cpu: pipe for pipe, cpu in pipes.items()}
        for number, cpu in self._cpus.items():
            if cpu.outbox is None:
                out[cpu.listener.fileno()] = select.POLLIN
            elif not cpu.is_done:
                # (POLLHUP comes unasked: a recorder that went away)
                out[cpu.outbox.link.fileno()] = cpu.outbox.wants()
                if number in by_cpu and len(cpu.outbox) < OUTBOX:
                    out[by_cpu[number]] = select.POLLIN
        return out

    def deadline(self) -> float:
        """As the protocol has it."""
        if self._tracer is None:
            return self._begun + GREETING_SECONDS
        ends = [self._outbox.deadline()]
        ends += [cpu.outbox.deadline() for cpu in self._cpus.values() if cpu.outbox is not None]
        if not self._all_connected():
            ends.append(self._begun + CONNECT_SECONDS)
        return min(ends)

    def patience(self) -> float:
        """As the protocol has it."""
        if self._tracer is None:
            return float("inf")
        idle = any(cpu.outbox is not None and not cpu.is_done and not len(cpu.outbox) for cpu in self._cpus.values())
        return 0.0 if (self._ending and idle) or (self._meta and len(self._outbox) < OUTBOX) else EVERY

    def turn(self, ready: Mapping[int, int]) -> None:
        """As the protocol has it."""
        if ready.get(self._link.fileno(), 0) & READABLE:
            data = received(self._link)
            if data == b"":
                raise Over("")
            self._take(data or b"")
        for cpu in self._cpus.values():
            if cpu.outbox is None and cpu.listener.fileno() in ready:
                link, _ = cpu.listener.accept()
                if link is not None:
                    cpu.outbox = Outbox(link)
                    cpu.listener.close()
        while self._meta and len(self._outbox) < OUTBOX:
            self._outbox.put(self._meta.pop(0))
        self._fill(ready)
        self._outbox.flush()
        if self._ending and self._all_connected() and all(cpu.is_done for cpu in self._cpus.values()):
            self._send(Message(Command.CLOSE_RESP))
            self._outbox.flush()
            raise Over("")

    # -- requests

    def _take(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._answer(message)
        except WireError as err:
            raise Over(str(err)) from None

    def _answer(self, message: Message) -> None:
        if message.command == Command.TRACE_REQ and self._tracer is None:
            if self._is_busy():
                raise Over("another client is served")
            try:
                self._record(wire.read_request(message))
            except (UsageError, OSError) as err:
                self._refuse(str(err))
        elif message.command == Command.CLOSE and self._tracer is not None:
            if not self._ending:
                self._tracer.end()
                self._ending = True
        elif message.command != Command.NOT_SUPP:
            self._refuse(f"message {message.command} is not for this agent now")

    def _refuse(self, reason: str) -> None:
        self._send(Message(Command.NOT_SUPP))
        self._outbox.flush()
        raise Over(reason)

    def _send(self, message: Message) -> None:
        self._outbox.put(message.encode())

    def _record(self, request: wire.Request) -> None:
        tracer = self._make()
        self._tracer = tracer
        described = tracer.describe()
        tracer.begin(*understood(request.arguments, described["clocks"]))
        trace_id = new_trace_id()
        numbers = sorted(tracer.pipes().values())
        # (trace-cmd numbers a guest's CPUs from 0 without a gap)
        for number in numbers:
            self._cpus[number] = _Cpu(self._make_listener())
        ports = tuple(self._cpus[number].listener.port for number in numbers)
        # no protocol of time synchronisation: what it would measure is proved from the recordings
        self._send(wire.Response(tracer.page_size, trace_id, ports).message())
        facts = Facts(tracer.clock_line(), numbers[-1] + 1, trace_id, {})
        cmdlines = tracer.cmdlines()
        options = [pack("HI", number, len(data)) + data for number, data in facts.options()]
        head = b"".join(
            (
                tracer.head(), pack("Q", len(cmdlines)), cmdlines, pack("I", len(numbers)), b"options  \0",
                *options, pack("H", Option.DONE),
            )
        )  # fmt: skip
        for at in range(0, len(head), _TAKE):
            part = head[at : at + _TAKE]
            pieces = (part[i : i + wire.MAX_PAYLOAD] for i in range(0, len(part), wire.MAX_PAYLOAD))
            self._meta.append(b"".join(Message(Command.SEND_DATA, b"", piece).encode() for piece in pieces))
        self._meta.append(Message(Command.FIN_DATA).encode())
        self._begun = time.monotonic()

    # -- pages

    def _fill(self, ready: Mapping[int, int]) -> None:
        if self._tracer is None:
            return
        now = time.monotonic()
        everything = self._ending or now - self._drained >= EVERY
        by_cpu = {cpu: pipe for pipe, cpu in self._tracer.pipes().items()}
        for number, cpu in self._cpus.items():
            outbox = cpu.outbox
            if outbox is None or cpu.is_done:
                continue
            if (everything or by_cpu[number] in ready) and len(outbox) < OUTBOX:
                pages = self._tracer.take(number, _TAKE)
                outbox.put(pages)
                if self._ending and not pages and not len(outbox):
                    cpu.is_done = True
                    outbox.link.close()
                    continue
            outbox.flush()
        if everything:
            self._drained = now

    def close(self) -> None:
        """As the protocol has it."""
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.close()
        for cpu in self._cpus.values():
            cpu.close()
        self._link.close()


def tracecmd_agent(
    make_tracer: Callable[[], Tracer],
    address: Address,
    *,
    source: str | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Server, Listener]:
    """An agent that waits at ``address``; over TCP for ``source`` alone."""
    listener = Listener(address, source=source)
    any_port = 0 if address.kind == "tcp" else 0xFFFFFFFF

    def make(link: Link, who: str) -> TraceCmdClient:
        return TraceCmdClient(
            link, who, make_tracer, lambda: Listener(address.at(any_port), source=source), server.is_busy
        )

    server = Server(listener, make, say)
    return server, listener
