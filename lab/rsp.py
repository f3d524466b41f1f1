"""A client of the gdb stub of QEMU: system registers of every CPU of an emulated machine, read behind Linux's back.

The machine stands still while a client is connected, and all its clocks with it. Each connection costs the emulator
its translated code, so samples are to be few. GDB's remote serial protocol: "Remote Protocol" in GDB's manual.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from lab.packages import LabError

_SECONDS = 60
_CHUNK = 0xFF0
_REPLIES = 1 << 20
"""Bytes of one reply, at most."""


class StubError(LabError):
    """The stub does not answer, or not as the protocol says."""


class Stub:
    """A connection to the stub at a UNIX socket: the machine is stopped until it is closed.

    Register numbers are learnt once and kept in `numbers`, for later connections to the same machine.
    """

    def __init__(self, path: Path, numbers: dict[str, int] | None = None) -> None:
        """Connect; StubError where nothing listens there."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SECONDS)
        self._pending = b""
        self.numbers = {} if numbers is None else numbers
        try:
            self._socket.connect(str(path))
            self._ask("qSupported:multiprocess+;xmlRegisters=arm,aarch64,i386")
        except OSError as err:
            self._socket.close()
            raise StubError(f"{path}: {err}") from None

    def __enter__(self) -> Stub:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Detach: only then does the machine run on."""
        try:
            self._ask("D;1")
        finally:
            self._socket.close()

    def registers(self, names: Iterable[str]) -> list[dict[str, int | None]]:
        """Return the named registers of each CPU, in the CPUs' order; None where a CPU has no such register."""
        if not self.numbers:
            self._learn()
        wanted = [(name, self.numbers.get(name)) for name in names]
        out = []
        for thread in self._threads():
            self._ask(f"Hg{thread}")
            out.append({name: None if number is None else self._register(number) for name, number in wanted})
        return out

    def _register(self, number: int) -> int | None:
        reply = self._ask(f"p{number:x}").decode("latin1")
        return int.from_bytes(bytes.fromhex(reply), "little") if re.fullmatch("([0-9a-f]{2})+", reply) else None

    def _threads(self) -> list[str]:
        out, reply = [], self._ask("qfThreadInfo")
        while reply[:1] == b"m":
            out += reply[1:].decode("latin1").split(",")
            reply = self._ask("qsThreadInfo")
        return out

    def _learn(self) -> None:
        """Number all registers: in the order of the target's description, or as it says (`regnum`)."""
        following = 0
        todo = ["target.xml"]
        while todo:
            # (by pattern: target.xml has a prefix that it does not declare)
            for tag, text in re.findall(r"<(xi:include|reg)\s([^>]*)>", self._document(todo.pop(0))):
                attributes = {key: a or b for key, a, b in re.findall(r"""([\w:]+)=(?:"([^"]*)"|'([^']*)')""", text)}
                if tag == "reg":
                    following = int(attributes.get("regnum", following))
                    self.numbers[attributes["name"]] = following
                    following += 1
                else:
                    todo.append(attributes["href"])

    def _document(self, name: str) -> str:
        out = b""
        while True:
            reply = self._ask(f"qXfer:features:read:{name}:{len(out):x},{_CHUNK:x}")
            if reply[:1] not in (b"m", b"l"):
                raise StubError(f"no description {name} ({reply[:20]!r})")
            out += reply[1:]
            if reply[:1] == b"l":
                return out.decode("latin1")

    def _ask(self, request: str) -> bytes:
        data = request.encode("latin1")
        self._socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 255))
        while True:
            found = re.search(rb"\$([^#]*)#[0-9a-f]{2}", self._pending, re.DOTALL)
            if found:
                self._pending = self._pending[found.end() :]
                self._socket.sendall(b"+")
                # a stop that the machine reports by itself is no reply
                if re.match(rb"[TS][0-9a-f]{2}", found[1]):
                    continue
                return re.sub(rb"\}(.)", lambda m: bytes([m[1][0] ^ 0x20]), found[1], flags=re.DOTALL)
            if len(self._pending) > _REPLIES:
                raise StubError("a reply without an end")
            try:
                got = self._socket.recv(65536)
            except OSError as err:
                raise StubError(f"{request[:40]}: {err}") from None
            if not got:
                raise StubError(f"{request[:40]}: the connection was closed")
            self._pending += got
