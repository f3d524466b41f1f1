"""The messages of trace-cmd's agent, protocol 3: big-endian headers over fixed parts that may grow, then a payload.

lib/trace-cmd/trace-msg.c. It has no authentication: what is sent are the arguments of ``trace-cmd record``, which its
own agent runs as root.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

MAX_SIZE = 8192
"""MSG_MAX_LEN: of a whole message."""
DEFAULT_PORT = 823
MAX_CPUS = 4096
FIFOS = 1
"""A flag of TRACE_REQ and TRACE_RESP: the pages come through virtio-serial ports."""

_HEADER = struct.Struct(">III")
_REQUEST = struct.Struct(">IIQ")
_RESPONSE = struct.Struct(">IIIQ16sI")
_PARAMETER = struct.Struct(">II")
HEADER_SIZE = _HEADER.size
MAX_PAYLOAD = MAX_SIZE - HEADER_SIZE


class Command(IntEnum):
    """What a message is."""

    CLOSE = 0
    TINIT = 1
    RINIT = 2
    SEND_DATA = 3
    FIN_DATA = 4
    NOT_SUPP = 5
    TRACE_REQ = 6
    TRACE_RESP = 7
    CLOSE_RESP = 8
    TIME_SYNC = 9
    TRACE_PROXY = 10
    CONT = 11


_FIXED = {
    Command.TINIT: 12, Command.RINIT: 4, Command.TRACE_REQ: _REQUEST.size, Command.TRACE_RESP: _RESPONSE.size,
    Command.TIME_SYNC: 20, Command.TRACE_PROXY: _REQUEST.size + 8,
}  # fmt: skip


class WireError(ValueError):
    """What was received is no message of this protocol."""


@dataclass(frozen=True)
class Message:
    """``command`` is the number as it was sent (Command, or one not known); ``fixed`` has at least its known length."""

    command: int
    fixed: bytes = b""
    payload: bytes = b""

    def encode(self) -> bytes:
        """The bytes on the wire."""
        size = _HEADER.size + len(self.fixed) + len(self.payload)
        if size > MAX_SIZE:
            raise WireError(f"a message of {size} bytes: {MAX_SIZE} are possible")
        return _HEADER.pack(size, self.command, len(self.fixed)) + self.fixed + self.payload


def body_size(header: bytes) -> int:
    """How many bytes follow a header of ``HEADER_SIZE`` bytes, at most ``MAX_PAYLOAD``. WireError where it is none."""
    size, command, fixed = _HEADER.unpack(header)
    if not _HEADER.size <= size <= MAX_SIZE:
        raise WireError(f"a message of {size} bytes ({_HEADER.size} to {MAX_SIZE} are possible)")
    if fixed > size - _HEADER.size:
        raise WireError(f"a message of {size} bytes whose fixed part has {fixed}")
    if command in _FIXED and fixed < _FIXED[Command(command)]:
        raise WireError(f"{Command(command).name} with a fixed part of {fixed} bytes")
    return int(size - _HEADER.size)


def decode(header: bytes, body: bytes) -> Message:
    """A message from its header and as many bytes as ``body_size`` says."""
    _, command, fixed = _HEADER.unpack(header)
    return Message(command, body[:fixed], body[fixed:])


class Reader:
    """Messages from pieces of a stream; what it holds is bounded by two messages."""

    def __init__(self) -> None:
        """Nothing was received yet."""
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that end in ``data``. WireError where there is none."""
        self._held += data
        out = []
        at = 0
        while len(self._held) - at >= HEADER_SIZE:
            header = bytes(self._held[at : at + HEADER_SIZE])
            size = body_size(header)
            if len(self._held) - at < HEADER_SIZE + size:
                break
            out.append(decode(header, bytes(self._held[at + HEADER_SIZE : at + HEADER_SIZE + size])))
            at += HEADER_SIZE + size
        del self._held[:at]
        return out

    def __len__(self) -> int:
        """Bytes of a message whose end has not come yet."""
        return len(self._held)


# -- TRACE_REQ -------------------------------------------------------------------------------------------------------

_ARGUMENTS, _PROTOCOLS = 0, 1


def request(arguments: Sequence[str], trace_id: int) -> Message:
    """TRACE_REQ: record with these arguments, offering no protocol of time synchronisation."""
    text = struct.pack(">I", len(arguments)) + b"".join(argument.encode() + b"\0" for argument in arguments)
    return Message(Command.TRACE_REQ, _REQUEST.pack(0, 0, trace_id), _PARAMETER.pack(_ARGUMENTS, len(text)) + text)


@dataclass(frozen=True)
class Request:
    """A TRACE_REQ that was received. ``protocols``: of time synchronisation, that the other end knows."""

    arguments: tuple[str, ...]
    trace_id: int
    fifos: bool
    protocols: tuple[str, ...] = ()


def read_request(message: Message) -> Request:
    """Read a TRACE_REQ. WireError where it contradicts itself; parameters that are not known are passed over."""
    flags, _, trace_id = _REQUEST.unpack_from(message.fixed)
    arguments: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    at, data = 0, message.payload
    while at < len(data):
        if len(data) - at < _PARAMETER.size:
            raise WireError("a request that ends within a parameter")
        number, length = _PARAMETER.unpack_from(data, at)
        at += _PARAMETER.size
        if length > len(data) - at:
            raise WireError(f"a parameter of {length} bytes where {len(data) - at} are left")
        value = data[at : at + length]
        at += length
        if number == _ARGUMENTS:
            arguments = _arguments(value)
        elif number == _PROTOCOLS:
            protocols = tuple(text for text in _texts(value) if text)
    return Request(arguments, trace_id, bool(flags & FIFOS), protocols)


def _arguments(value: bytes) -> tuple[str, ...]:
    if len(value) < 4:
        raise WireError("arguments without their number")
    count = int.from_bytes(value[:4], "big")
    texts = _texts(value[4:])
    if len(texts) != count:
        raise WireError(f"{len(texts)} arguments where {count} were announced")
    return texts


def _texts(value: bytes) -> tuple[str, ...]:
    if value and not value.endswith(b"\0"):
        raise WireError("a text without an end")
    try:
        return tuple(text.decode() for text in value.split(b"\0")[:-1])
    except UnicodeDecodeError:
        raise WireError("a text that is no UTF-8") from None


# -- TRACE_RESP ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """TRACE_RESP: the port of each CPU. ``protocol``: of time synchronisation, "" for none."""

    page_size: int
    trace_id: int
    ports: tuple[int, ...]
    fifos: bool = False
    protocol: str = ""
    protocol_port: int = 0

    def message(self) -> Message:
        """The message."""
        fixed = _RESPONSE.pack(
            FIFOS if self.fifos else 0, len(self.ports), self.page_size, self.trace_id, self.protocol.encode(),
            self.protocol_port,
        )  # fmt: skip
        return Message(Command.TRACE_RESP, fixed, b"".join(b"%d\0" % port for port in self.ports))


def read_response(message: Message) -> Response:
    """Read a TRACE_RESP. WireError where it contradicts itself."""
    flags, cpus, page_size, trace_id, protocol, protocol_port = _RESPONSE.unpack_from(message.fixed)
    if not 0 < cpus <= MAX_CPUS:
        raise WireError(f"a guest of {cpus} CPUs")
    if not 1024 <= page_size <= 1 << 20 or page_size & (page_size - 1):
        raise WireError(f"pages of {page_size} bytes")
    fifos = bool(flags & FIFOS)
    texts = _texts(message.payload)
    if len(texts) < cpus or any(not text.isdigit() or len(text) > 10 for text in texts[:cpus]):
        raise WireError(f"{len(texts)} ports for {cpus} CPUs")
    return Response(
        page_size, trace_id, tuple(int(text) for text in texts[:cpus]), fifos,
        protocol.split(b"\0")[0].decode("ascii", "replace"), protocol_port,
    )  # fmt: skip
