"""How a guest is reached: vsock, Firecracker's hybrid vsock, TCP, a UNIX socket, a serial device; and who may come in.

vsock://CID:PORT            AF_VSOCK, from the host
unix://PATH:PORT            Firecracker's and Cloud Hypervisor's: a UNIX socket that is told CONNECT PORT
unix://PATH                 a UNIX socket that is the other end itself (QEMU's chardev of a virtio-serial port)
tcp://HOST:PORT
serial:///dev/DEVICE        a virtio-serial port, a terminal, any character device
"""

from __future__ import annotations

import os
import re
import select
import socket
import stat
import time
import tty
from contextlib import suppress
from dataclasses import dataclass
from typing import Union

from counterpoint.errors import UsageError

HOST_CID = 2
"""VMADDR_CID_HOST of linux/vm_sockets.h: the machine that runs this one."""
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Address:
    """A parsed URL. ``kind``: "vsock", "unix", "tcp" or "serial"; ``port`` is None where there is none."""

    kind: str
    place: str
    port: int | None = None

    def at(self, port: int) -> Address:
        """The same machine, at another port."""
        return Address(self.kind, self.place, port)

    def __str__(self) -> str:
        """The URL."""
        place = f"[{self.place}]" if self.kind == "tcp" and ":" in self.place else self.place
        return f"{self.kind}://{place}" + ("" if self.port is None else f":{self.port}")


def parse(url: str, default_port: int | None = None) -> Address:
    """Read a URL. UsageError where it is none of those above."""
    kind, _, rest = url.partition("://")
    if kind == "serial" and rest.startswith("/"):
        return Address(kind, rest)
    if kind == "unix" and rest:
        match = re.fullmatch(r"(.+?)(?::(\d{1,10}))?", rest)
        assert match is not None
        return Address(kind, match[1], None if match[2] is None else _port(url, match[2], 32))
    if kind == "vsock":
        match = re.fullmatch(r"(\d{1,10})(?::(\d{1,10}))?", rest)
        if match and int(match[1]) < 1 << 32:
            return Address(kind, match[1], default_port if match[2] is None else _port(url, match[2], 32))
    if kind == "tcp":
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([\w.-]+))(?::(\d{1,10}))?", rest)
        if match:
            port = default_port if match[3] is None else _port(url, match[3], 16)
            return Address(kind, match[1] or match[2], port)
    raise UsageError(
        f"{url}: vsock://CID:PORT, unix://PATH:PORT (Firecracker), unix://PATH, tcp://HOST:PORT or serial:///dev/DEVICE"
        " is expected"
    )


def _port(url: str, text: str, bits: int) -> int:
    port = int(text)
    if not port < (1 << bits) - 1:
        raise UsageError(f"{url}: there is no port {port}")
    return port


class Device:
    """A character device with a socket's methods."""

    def __init__(self, path: str) -> None:
        """Open it; a terminal becomes one that leaves bytes alone."""
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._timeout: float | None = None
        if not stat.S_ISCHR(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise UsageError(f"{path}: it is no character device")
        if os.isatty(self._fd):
            tty.setraw(self._fd)

    def fileno(self) -> int:
        """Its descriptor; -1 once it is closed."""
        return self._fd

    def settimeout(self, seconds: float | None) -> None:
        """As socket.settimeout; 0: never wait."""
        self._timeout = seconds

    def setblocking(self, flag: bool) -> None:
        """As socket.setblocking."""
        self._timeout = None if flag else 0.0

    def recv(self, count: int) -> bytes:
        """As socket.recv. b"": nobody is at the other end."""
        self._wait(select.POLLIN)
        return os.read(self._fd, count)

    def send(self, data: bytes | memoryview) -> int:
        """As socket.send."""
        self._wait(select.POLLOUT)
        return os.write(self._fd, data)

    def sendall(self, data: bytes) -> None:
        """As socket.sendall."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def _wait(self, what: int) -> None:
        if self._timeout == 0:
            return
        poll = select.poll()
        poll.register(self._fd, what)
        if not poll.poll(None if self._timeout is None else self._timeout * 1000):
            raise socket.timeout("timed out")

    def close(self) -> None:
        """Close it; again is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Link = Union[socket.socket, Device]


def connect(address: Address, timeout: float = CONNECT_TIMEOUT) -> Link:
    """A connection, with ``timeout`` for what follows. UsageError where there is none, with the reason."""
    try:
        return _connect(address, timeout)
    except socket.timeout:
        raise UsageError(f"{address}: no answer within {timeout:g} s") from None
    except OSError as err:
        hint = ""
        if address.kind == "vsock" and not os.path.exists("/dev/vsock"):
            hint = " (modprobe vhost_vsock; Firecracker's and Cloud Hypervisor's guests are unix://PATH:PORT)"
        raise UsageError(f"{address}: {err.strerror or err}{hint}") from None


def _connect(address: Address, timeout: float) -> Link:
    if address.kind == "serial":
        device = Device(address.place)
        device.settimeout(timeout)
        return device
    if address.kind != "unix" and address.port is None:
        raise UsageError(f"{address}: a port is needed")
    if address.kind == "tcp":
        link = socket.create_connection((address.place, address.port), timeout=timeout)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link
    family = socket.AF_UNIX if address.kind == "unix" else _af_vsock()
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout)
        link.connect(address.place if address.kind == "unix" else (int(address.place), address.port))
        if address.kind == "unix" and address.port is not None:
            _ask_vmm(link, address)
    except BaseException:
        link.close()
        raise
    return link


def _af_vsock() -> int:
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        raise UsageError("this Python has no vsock")
    return int(family)


def _ask_vmm(link: socket.socket, address: Address) -> None:
    # Firecracker, docs/vsock.md: "CONNECT PORT\n" is answered by "OK HOST_PORT\n", or the connection is closed
    link.sendall(f"CONNECT {address.port}\n".encode())
    answer = b""
    # byte by byte: what follows the line is the guest's
    while not answer.endswith(b"\n"):
        byte = link.recv(1)
        if not byte or len(answer) > 32:
            raise UsageError(f"{address}: the VMM made no connection: nothing in the guest listens at that port")
        answer += byte
    if not re.fullmatch(rb"OK \d+\n", answer):
        raise UsageError(f"{address}: the VMM answered {answer[:32]!r} instead of OK")


# -- the guest's side ------------------------------------------------------------------------------------------------


class Listener:
    """A listening socket, and who may come in: over vsock only ``allowed_cid``, over TCP only ``source``."""

    def __init__(self, address: Address, *, allowed_cid: int = HOST_CID, source: str | None = None) -> None:
        """Listen. UsageError where that cannot be."""
        self.address = address
        self._cid = allowed_cid
        self._sources: set[str] | None = None
        try:
            if source is not None:
                self._sources = {str(found[4][0]) for found in socket.getaddrinfo(source, None)}
            if address.kind == "vsock":
                self.socket = socket.socket(_af_vsock(), socket.SOCK_STREAM)
                self.socket.bind((socket.VMADDR_CID_ANY, address.port))
            elif address.kind == "tcp":
                family = socket.AF_INET6 if ":" in address.place else socket.AF_INET
                self.socket = socket.socket(family, socket.SOCK_STREAM)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind((address.place, address.port or 0))
            else:
                raise UsageError(f"{address}: one listens at vsock://, tcp:// or a serial device")
            self.socket.listen(64)
            self.socket.setblocking(False)
        except OSError as err:
            hint = (
                " (this kernel has no vsock: --serial and --listen are other ways)" if address.kind == "vsock" else ""
            )
            raise UsageError(
                f"{address}: {err.strerror or err}{hint if not os.path.exists('/dev/vsock') else ''}"
            ) from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.socket.getsockname()[1])

    def fileno(self) -> int:
        """Of the socket."""
        return self.socket.fileno()

    def accept(self) -> tuple[socket.socket | None, str]:
        """A connection and whose it is; None where who came in may not, or went again."""
        try:
            link, peer = self.socket.accept()
        except OSError:
            return None, ""
        who = f"CID {peer[0]}" if self.address.kind == "vsock" else str(peer[0])
        if self.may_enter(peer):
            link.setblocking(False)
            return link, who
        link.close()
        return None, who

    def may_enter(self, peer: tuple[object, ...]) -> bool:
        """Whether one with this address may come in."""
        if self.address.kind == "vsock":
            return peer[0] == self._cid
        return self._sources is None or str(peer[0]) in self._sources

    def close(self) -> None:
        """Stop to listen."""
        with suppress(OSError):
            self.socket.close()


def receive(link: Link, count: int, deadline: float) -> bytes:
    """Exactly ``count`` bytes. TimeoutError after ``deadline`` (time.monotonic), EOFError where the link ends."""
    parts = []
    while count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other end is silent")
        link.settimeout(left)
        try:
            part = link.recv(min(count, 1 << 20))
        except socket.timeout:
            continue
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError("the other end closed the connection")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
