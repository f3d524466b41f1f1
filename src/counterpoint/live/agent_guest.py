"""A guest that is recorded by Counterpoint's own agent (``agent.py``): the host's side."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from counterpoint.dat_layout import MAGIC
from counterpoint.errors import UsageError
from counterpoint.live import folder as parts_of
from counterpoint.live import frames, links
from counterpoint.live.folder import Parts
from counterpoint.live.frames import Frame, FrameError, Receiver, Sender
from counterpoint.live.guests import GuestFile, Wanted
from counterpoint.live.stats import total
from counterpoint.live.tracedat import new_trace_id

ANSWER_SECONDS = 20.0
"""For a greeting; also: without a byte while it records and answers pings."""
BEGIN_SECONDS = 90.0
"""For an answer to a request: a small guest on a busy host takes long to switch its events on."""
PING_SECONDS = 5.0
GREET_AGAIN = 3.0
"""On a serial device, whose agent may be busy with a client that died."""
MAX_CPUS = 4096
MAX_BASE = 1 << 96
"""Of a clock's line: a counter of 64 bits and a mult of 32."""
MAX_TEXT = 256 << 20
"""Of a head, of command lines and of options."""


class AgentGuest:
    """One guest. Its agent has the same ``secret``."""

    def __init__(self, url: str, name: str, secret: bytes) -> None:
        """Nothing is sent yet. UsageError where ``url`` is none."""
        self.url = url
        self.name = name
        self._address = links.parse(url, frames.DEFAULT_PORT)
        self._secret = secret
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._error: str | None = None
        self._is_whole = self._has_head = False
        self._texts: dict[str, bytearray] = {"head": bytearray(), "cmdlines": bytearray()}
        self._stats: dict[int, str] = {}
        self._parts: Parts | None = None
        self._files: dict[int, BinaryIO] = {}
        self._bytes = 0
        self.machine: dict[str, Any] = {}
        """What the agent says of the guest: system, node, release, machine, cpus, clocks, mono_raw, max_buffer_kb."""

    # -- GuestTracer

    def start(self, folder: Path, wanted: Wanted) -> None:
        """As the protocol has it."""
        self._folder = folder
        self._wanted = wanted
        self._link = links.connect(self._address)
        self._stack.callback(self._link.close)
        try:
            self._greet()
            described = self._ask({"do": "describe"}, "machine")
            machine = described["machine"]
            if not isinstance(machine, dict) or not _is_count(machine.get("cpus"), MAX_CPUS):
                raise UsageError(f"{self.url}: the agent says {str(described)[:200]}")
            self.machine = machine
            size = machine.get("max_buffer_kb")
            kb = min(wanted.buffer_kb, int(size)) if size and _is_count(size, 1 << 30) else wanted.buffer_kb
            answer = self._ask(
                {
                    "do": "record", "events": list(wanted.events), "clock": wanted.clock, "buffer_kb": kb,
                    "flight": wanted.flight,
                },
                "recording",
            )  # fmt: skip
            uname = " ".join(str(machine.get(key, ""))[:100] for key in ("system", "node", "release", "machine"))
            self._parts = Parts(str(answer.get("clock"))[:4096], int(machine["cpus"]), new_trace_id(), uname)
        except (EOFError, OSError, FrameError) as err:
            self._close()
            raise UsageError(f"{self.url}: {err}") from None
        except UsageError:
            self._close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"guest {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> GuestFile:
        """As the protocol has it."""
        assert self._thread is not None
        self._stopping = True
        if self._error is None:
            with suppress(OSError):
                self._send({"do": "stop"})
        self._thread.join()
        self._close()
        if not self._has_head:
            raise UsageError(f"{self.url}: {self._error}: it was lost before its head was here")
        assert self._parts is not None
        notes = [] if self._is_whole else [f"the guest was lost before the end: {self._error}"]
        counts = total(self._stats) if self._stats else {"events": None, "lost": None}
        path = parts_of.end(self._folder, self.name, self._parts, bytes(self._texts["cmdlines"]), self._stats)
        return GuestFile(
            path, self._wanted.clock, self._parts.cpus, counts["events"], counts["lost"], self._bytes, notes,
            self._parts.trace_id, self._line(),
        )  # fmt: skip

    def _line(self) -> dict[str, Any] | None:
        """What the guest's kernel turns its counter into stamps by, where the clock is mono_raw (arm64's)."""
        said = self.machine.get("mono_raw")
        if self._wanted.clock != "mono_raw" or self.machine.get("machine") != "aarch64" or not isinstance(said, dict):
            return None
        mult, shift, base = (said.get(key) for key in ("mult", "shift", "base"))
        if not _is_count(mult, (1 << 32) - 1) or not _is_count(shift, 32):
            return None
        if not isinstance(base, int) or isinstance(base, bool) or abs(base) >= MAX_BASE:
            return None
        return {"name": "mono_raw", "mult": mult, "shift": shift, "base": base, "source": "the guest's vDSO page"}

    def abandon(self) -> None:
        """As the protocol has it: an agent whose client is gone removes what it made."""
        self._stopping = True
        link = getattr(self, "_link", None)
        if isinstance(link, socket.socket):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        if self._thread is not None and self._thread.is_alive():
            self._error = self._error or "it was abandoned"
            self._thread.join(ANSWER_SECONDS)
        self._close()

    def _close(self) -> None:
        self._stack.close()

    # -- talk

    def _greet(self) -> None:
        nonce = frames.new_nonce()
        serial = self._address.kind == "serial"
        deadline = time.monotonic() + ANSWER_SECONDS
        got = bytearray()
        self._link.sendall(frames.greet(nonce))
        asked = time.monotonic()
        while True:
            self._link.settimeout(0.5)
            with suppress(socket.timeout):
                part = self._link.recv(1 << 16)
                if not part and not serial:
                    raise EOFError("the other end closed the connection: is it a counterpoint agent?")
                if not part:
                    time.sleep(0.1)
                got += part
            at = got.find(frames.GREETING + nonce) if serial else 0
            if at < 0:
                # what a dead client has left unread
                del got[: -len(frames.GREETING + nonce)]
            elif len(got) - at >= frames.AGENT_LINE:
                own = frames.read_answer(bytes(got[at : at + frames.AGENT_LINE]), nonce)
                break
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError("no agent answers there")
            if serial and now - asked > GREET_AGAIN:
                self._link.sendall(frames.greet(nonce))
                asked = now
        if own is None:
            raise EOFError("what answers there is no counterpoint agent of this version")
        to_agent, to_client = frames.keys(self._secret, nonce, own)
        self._sender, self._receiver = Sender(to_agent), Receiver(to_client)
        self._waiting = list(self._receiver.feed(bytes(got[at + frames.AGENT_LINE :])))

    def _send(self, header: dict[str, Any]) -> None:
        with self._lock:
            self._link.settimeout(ANSWER_SECONDS)
            self._link.sendall(self._sender.encode(header))
            self._sent = time.monotonic()

    def _ask(self, header: dict[str, Any], expected: str) -> dict[str, Any]:
        self._send(header)
        deadline = time.monotonic() + BEGIN_SECONDS
        while time.monotonic() < deadline:
            while self._waiting:
                frame = self._waiting.pop(0)
                if "error" in frame.header:
                    raise UsageError(f"{self.url}: the agent says: {str(frame.header['error'])[:2000]}")
                if expected in frame.header:
                    return frame.header
            self._link.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                part = self._link.recv(1 << 18)
            except socket.timeout:
                break
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError("the agent closed the connection: does it have the same secret?")
            self._waiting += self._receiver.feed(part)
        raise TimeoutError("the agent is silent")

    def _run(self) -> None:
        # in a thread: what the agent sends, until it says that this was all
        try:
            for frame in self._waiting:
                self._take(frame)
            self._waiting = []
            heard = time.monotonic()
            while not self._is_whole:
                if time.monotonic() - self._sent > PING_SECONDS:
                    self._send({"do": "ping"})
                self._link.settimeout(1.0)
                try:
                    part = self._link.recv(1 << 20)
                except (socket.timeout, BlockingIOError):
                    if time.monotonic() - heard > ANSWER_SECONDS:
                        raise TimeoutError("the agent is silent") from None
                    continue
                if not part:
                    raise EOFError("the agent closed the connection")
                heard = time.monotonic()
                for frame in self._receiver.feed(part):
                    self._take(frame)
        except (OSError, EOFError, FrameError, UsageError) as err:
            self._error = self._error or str(err)

    def _take(self, frame: Frame) -> None:
        header = frame.header
        if "cpu" in header:
            self._pages(self._cpu(header["cpu"]), frame.data)
        elif "part" in header:
            text = self._texts.get(str(header["part"]))
            if text is None or len(text) + len(frame.data) > MAX_TEXT:
                raise FrameError("the agent sends what nobody asked for")
            text += frame.data
            if header["part"] == "head" and header.get("of") == len(text) and not self._has_head:
                self._begin(bytes(text))
        elif "stats" in header:
            self._stats[self._cpu(header["stats"])] = frame.data[:4096].decode("utf-8", "replace")
        elif "error" in header:
            raise FrameError(f"the agent says: {str(header['error'])[:2000]}")
        elif "stopped" in header:
            self._is_whole = True

    def _begin(self, head: bytes) -> None:
        # from here on a recorder that is killed leaves what can be put together
        check_order(head, self.url)
        assert self._parts is not None
        parts_of.begin(self._folder, self.name, head, self._parts)
        self._has_head = True

    def _cpu(self, cpu: object) -> int:
        assert self._parts is not None
        if isinstance(cpu, bool) or not isinstance(cpu, int) or not 0 <= cpu < self._parts.cpus:
            raise FrameError(f"the agent speaks of CPU {str(cpu)[:20]}, and has {self._parts.cpus}")
        return cpu

    def _pages(self, cpu: int, data: bytes) -> None:
        if cpu not in self._files:
            path = parts_of.pages(self._folder, self.name, cpu)
            self._files[cpu] = self._stack.enter_context(path.open("xb", buffering=0))
        self._files[cpu].write(data)
        self._bytes += len(data)


def check_order(head: bytes, url: str) -> None:
    """UsageError where ``head`` is none that can be written here."""
    at = len(MAGIC) + 2
    if len(head) < at + 6 or not head.startswith(MAGIC + b"6\0"):
        raise UsageError(f"{url}: what the guest sent is no head of a trace.dat of version 6")
    if bool(head[at]) != (sys.byteorder == "big"):
        raise UsageError(f"{url}: the guest's byte order is not this machine's: record it there, and copy the file")


def _is_count(value: object, top: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= top
