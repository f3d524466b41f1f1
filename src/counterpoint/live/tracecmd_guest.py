"""A guest that is recorded by trace-cmd's own agent (``trace-cmd agent``), in its protocol: the host's side.

What is asked for is a file of version 6, whose head is complete before the first event. Time synchronisation is not
asked for: causality relates the clocks. The agent records in the guest's top-level buffer, and resets that at the end.
"""

from __future__ import annotations

import mmap
import select
import struct
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from counterpoint.dat_layout import MAGIC, Option
from counterpoint.errors import UsageError
from counterpoint.live import folder as parts_of
from counterpoint.live import links, wire
from counterpoint.live.agent_guest import check_order
from counterpoint.live.folder import Parts
from counterpoint.live.guests import GuestFile, Wanted
from counterpoint.live.links import Link
from counterpoint.live.wire import Command, Message, WireError

ANSWER_SECONDS = 30.0
"""The agent reads all formats and symbols before it sends the first of them."""
FLUSH_SECONDS = 30.0
"""After CLOSE: without a byte."""
MAX_META = 256 << 20
_CHUNK = 1 << 18


class TraceCmdGuest:
    """One guest."""

    def __init__(self, url: str, name: str) -> None:
        """Nothing is sent yet. UsageError where ``url`` is none, or cannot carry this protocol."""
        self.url = url
        self.name = name
        self._address = links.parse(url, wire.DEFAULT_PORT)
        if self._address.port is None:
            raise UsageError(
                f"{url}: trace-cmd's agent listens at ports (vsock, Firecracker's unix://PATH:PORT, tcp); over a serial"
                " device use counterpoint agent"
            )
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._bytes = 0
        self._heard = 0.0
        self._stopping = False

    # -- GuestTracer

    def start(self, folder: Path, wanted: Wanted) -> None:
        """As the protocol has it. The agent does not say when it begins: some ms after this returns."""
        if wanted.flight:
            raise UsageError(f"{self.url}: trace-cmd's agent cannot record in a circle: counterpoint agent can")
        self._folder = folder
        self._wanted = wanted
        arguments = arguments_of(wanted)
        try:
            try:
                self._open(arguments)
            except EOFError:
                # an agent from before --file-version ends at an option that it does not know, and writes version 6
                self._open([text for text in arguments if text not in ("--file-version", "6")])
        except EOFError:
            self._close()
            raise UsageError(
                f"{self.url}: trace-cmd's agent closed the connection: it serves another client, does not let this"
                " machine in (-N), or failed (its own output says why)"
            ) from None
        except (OSError, WireError, UsageError) as err:
            self._close()
            raise UsageError(str(err) if isinstance(err, UsageError) else f"{self.url}: {err}") from None
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"guest {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> GuestFile:
        """As the protocol has it."""
        assert self._thread is not None
        notes = []
        self._heard = time.monotonic()
        self._stopping = True
        try:
            self._link.settimeout(ANSWER_SECONDS)
            self._link.sendall(Message(Command.CLOSE).encode())
            self._thread.join()
            if self._error is None:
                self._until(Command.CLOSE_RESP)
        except (EOFError, OSError, WireError) as err:
            self._error = self._error or str(err)
        self._thread.join()
        self._close()
        if self._error is not None:
            notes.append(f"the guest was lost before the end: {self._error}")
        cpus = len(self._response.ports)
        lost = missed((self._part(cpu) for cpu in range(cpus)), self._response.page_size)
        path = parts_of.end(self._folder, self.name, self._parts, self._cmdlines, {})
        return GuestFile(path, self._wanted.clock, cpus, None, lost, self._bytes, notes, self._parts.trace_id)

    def abandon(self) -> None:
        """As the protocol has it: an agent whose client is gone ends its recording."""
        self._error = self._error or "it was abandoned"
        if self._thread is not None and self._thread.is_alive():
            with suppress(OSError):
                self._link.settimeout(1.0)
                self._link.sendall(Message(Command.CLOSE).encode())
            self._thread.join(ANSWER_SECONDS)
        self._close()

    def _close(self) -> None:
        self._stack.close()

    # -- talk

    def _open(self, arguments: list[str]) -> None:
        self._close()
        self._link = links.connect(self._address)
        self._stack.callback(self._link.close)
        self._link.sendall(wire.request(arguments, self._wanted.trace_id).encode())
        message = self._message()
        if message.command == Command.NOT_SUPP:
            raise WireError("the agent does not do what was asked (its own output says why)")
        if message.command != Command.TRACE_RESP:
            raise WireError(f"it answers with message {message.command} instead of TRACE_RESP")
        self._response = wire.read_response(message)
        if self._response.fifos:
            raise WireError("it wants to send through virtio-serial ports, which was not asked for")
        if self._response.protocol:
            raise WireError(f"it wants to measure time by {self._response.protocol[:16]!r}, which was not offered")
        head, self._cmdlines, cpus, options = split(self._meta(), self.url)
        if cpus != len(self._response.ports):
            raise WireError(f"its file is of {cpus} CPUs, and it has {len(self._response.ports)} ports")
        self._data: dict[int, Link] = {}
        for cpu, port in enumerate(self._response.ports):
            link = links.connect(self._address.at(port))
            self._stack.callback(link.close)
            self._data[cpu] = link
        texts = {number: data.rstrip(b"\0").decode("utf-8", "replace") for number, data in options}
        clock = texts.get(Option.TRACECLOCK, f"[{self._wanted.clock}]")
        trace_id = self._response.trace_id
        self._parts = Parts(clock[:4096], cpus, trace_id, texts.get(Option.UNAME, "unknown")[:4096])
        parts_of.begin(self._folder, self.name, head, self._parts)

    def _message(self) -> Message:
        deadline = time.monotonic() + ANSWER_SECONDS
        header = links.receive(self._link, wire.HEADER_SIZE, deadline)
        return wire.decode(header, links.receive(self._link, wire.body_size(header), deadline))

    def _meta(self) -> bytes:
        out = bytearray()
        while True:
            message = self._message()
            if message.command == Command.FIN_DATA:
                return bytes(out)
            if message.command != Command.SEND_DATA:
                raise WireError(f"message {message.command} amid the head of its file")
            out += message.payload
            if len(out) > MAX_META:
                raise WireError(f"a head of more than {MAX_META >> 20} MB")

    def _until(self, command: Command) -> None:
        # (at most so many: an agent that never says it is not waited for)
        for _ in range(1000):
            if self._message().command == command:
                return
        raise WireError(f"no {command.name}")

    def _part(self, cpu: int) -> Path:
        return parts_of.pages(self._folder, self.name, cpu)

    def _run(self) -> None:
        # in a thread: each CPU's pages, until the agent closes all of them
        try:
            with ExitStack() as stack:
                files = {cpu: stack.enter_context(self._part(cpu).open("xb", buffering=_CHUNK)) for cpu in self._data}
                poll = select.poll()
                by_link = {link.fileno(): cpu for cpu, link in self._data.items()}
                for descriptor in by_link:
                    poll.register(descriptor, select.POLLIN)
                while by_link:
                    ready = poll.poll(500)
                    for descriptor, _ in ready:
                        cpu = by_link[descriptor]
                        data = self._received(cpu)
                        if not data:
                            poll.unregister(descriptor)
                            del by_link[descriptor]
                        files[cpu].write(data)
                        self._bytes += len(data)
                    if ready:
                        self._heard = time.monotonic()
                    else:
                        for file in files.values():
                            file.flush()
                    if self._stopping and time.monotonic() - self._heard > FLUSH_SECONDS:
                        raise TimeoutError("the agent does not end its recording")
                    if self._error is not None and not ready:
                        return
        except OSError as err:
            self._error = self._error or str(err)

    def _received(self, cpu: int) -> bytes:
        try:
            return self._data[cpu].recv(_CHUNK)
        except ConnectionError:
            return b""


def arguments_of(wanted: Wanted) -> list[str]:
    """What ``trace-cmd record`` is asked: -i lets it pass over events that the guest does not have."""
    out = ["-i", "-C", wanted.clock, "-b", str(wanted.buffer_kb)]
    for event in wanted.events:
        out += ["-e", "all" if event in ("*", "*:*") else event]
    return [*out, "--file-version", "6"]


def missed(files: Iterable[Path], page_size: int) -> int | None:
    """Events that the kernel says were overwritten before pages; None: it says that some were, and not how many.

    (RB_MISSED_EVENTS, RB_MISSED_STORED in kernel/trace/ring_buffer.c: the count stands behind the page's data)
    """
    code = "<Q" if sys.byteorder == "little" else ">Q"
    lost = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as data:
            for at in range(0, size - page_size + 1, page_size):
                (commit,) = struct.unpack_from(code, data, at + 8)
                if not commit >> 31 & 1:
                    continue
                end = 16 + (commit & ((1 << 27) - 1))
                if not commit >> 30 & 1 or end + 8 > page_size:
                    return None
                lost += struct.unpack_from(code, data, at + end)[0]
    return lost


# -- the head that the agent sends -----------------------------------------------------------------------------------


class _Cursor:
    def __init__(self, data: bytes, url: str) -> None:
        self.data = data
        self.at = 0
        self.url = url
        self.order = "<" if sys.byteorder == "little" else ">"

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise UsageError(f"{self.url}: the head of the guest's file ends at byte {len(self.data)}, within a part")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))[0])

    def expect(self, text: bytes) -> None:
        at = self.at
        if self.take(len(text)) != text:
            raise UsageError(f"{self.url}: the head of the guest's file has no {text!r} at byte {at}")

    def name(self) -> None:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise UsageError(f"{self.url}: the head of the guest's file has a name without end at byte {self.at}")
        self.at = end + 1


def split(data: bytes, url: str) -> tuple[bytes, bytes, int, list[tuple[int, bytes]]]:
    """A version 6 file up to its options: head, command lines, CPUs, options. UsageError where it is none."""
    check_order(data, url)
    cursor = _Cursor(data, url)
    cursor.take(len(MAGIC) + len("6\0") + 2 + 4)
    for text in (b"header_page\0", b"header_event\0"):
        cursor.expect(text)
        cursor.take(cursor.number("Q"))
    for _ in range(cursor.number("I")):
        cursor.take(cursor.number("Q"))
    for _ in range(cursor.number("I")):
        cursor.name()
        for _ in range(cursor.number("I")):
            cursor.take(cursor.number("Q"))
    cursor.take(cursor.number("I"))
    cursor.take(cursor.number("I"))
    head = data[: cursor.at]
    cmdlines = cursor.take(cursor.number("Q"))
    cpus = cursor.number("I")
    cursor.expect(b"options  \0")
    options = []
    while True:
        number = cursor.number("H")
        if number == Option.DONE:
            break
        options.append((number, cursor.take(cursor.number("I"))))
    if not 0 < cpus <= wire.MAX_CPUS:
        raise UsageError(f"{url}: the guest's file is of {cpus} CPUs")
    return head, cmdlines, cpus, options
