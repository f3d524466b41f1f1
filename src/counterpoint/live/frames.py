"""The wire of Counterpoint's own agent: two greetings, then frames that only who has the secret can make.

    client   counterpoint-agent 1 NONCE\\n                      32 random bytes, as hexadecimal digits
    agent    counterpoint-agent 1 NONCE NONCE2\\n               the client's, and 32 random bytes of its own
    then     frames, either way (big-endian):
             u32 length of the header, u32 length of the data, 16 bytes tag, header (a JSON object), data

Keys of the two directions: HMAC-SHA256(secret, label NONCE NONCE2). The tag of a frame: keyed BLAKE2b over its number
in its direction, both lengths, header and data. So the first frame of each side proves, to the other, that it has the
secret; none can be forged, changed, left out, sent twice or sent back; and nothing of the secret is on the wire. It is
not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError

DEFAULT_PORT = 824
"""Below 1024: in a guest, only root can listen there."""

GREETING = b"counterpoint-agent 1 "
NONCE_BYTES = 32
CLIENT_LINE = len(GREETING) + 2 * NONCE_BYTES + 1
AGENT_LINE = CLIENT_LINE + 2 * NONCE_BYTES + 1
_NONCE = rb"([0-9a-f]{%d})" % (2 * NONCE_BYTES)
_CLIENT = re.compile(GREETING + _NONCE + rb"\n")
_AGENT = re.compile(GREETING + _NONCE + b" " + _NONCE + rb"\n")

_PREFIX = struct.Struct(">II")
_TAG = 16
PREFIX_SIZE = _PREFIX.size + _TAG
MAX_HEADER = 64 << 10
MAX_DATA = 1 << 20
FIRST_HEADER = 256
"""Of a client's first frame, before anything is known of it."""

MIN_SECRET, MAX_SECRET = 16, 4096


class FrameError(ValueError):
    """What was received is no frame of this session."""


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """A secret's file, without white space around it. UsageError where others may read it, or it is too short."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise UsageError(f"{path}: others may read the secret: chmod 600 {path}")
            secret = file.read(MAX_SECRET + 1).strip()
    except OSError as err:
        raise UsageError(
            f"{path}: {err.strerror}: a secret is made by  (umask 077; head -c 32 /dev/urandom | base64 > {path})"
        ) from None
    if not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise UsageError(f"{path}: a secret has {MIN_SECRET} to {MAX_SECRET} bytes; this one has {len(secret)}")
    return secret


# -- greetings -------------------------------------------------------------------------------------------------------


def new_nonce() -> bytes:
    """As it stands in a greeting."""
    return os.urandom(NONCE_BYTES).hex().encode()


def greet(nonce: bytes) -> bytes:
    """The client's line."""
    return GREETING + nonce + b"\n"


def read_greeting(line: bytes) -> bytes | None:
    """The client's nonce; None: the line is no greeting."""
    match = _CLIENT.fullmatch(line)
    return match[1] if match else None


def answer(nonce: bytes, own: bytes) -> bytes:
    """The agent's line."""
    return GREETING + nonce + b" " + own + b"\n"


def read_answer(line: bytes, nonce: bytes) -> bytes | None:
    """The agent's nonce; None: the line does not answer ``nonce``."""
    match = _AGENT.fullmatch(line)
    return match[2] if match and match[1] == nonce else None


def keys(secret: bytes, nonce: bytes, own: bytes) -> tuple[bytes, bytes]:
    """The keys of frames to the agent, and to the client."""
    return (
        hmac.new(secret, b"to the agent 1 " + nonce + b" " + own, hashlib.sha256).digest(),
        hmac.new(secret, b"to the client 1 " + nonce + b" " + own, hashlib.sha256).digest(),
    )


# -- frames ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What was received."""

    header: dict[str, Any]
    data: bytes = b""


@dataclass
class Sender:
    """Makes the frames of one direction."""

    key: bytes
    _count: int = 0

    def encode(self, header: dict[str, Any], data: bytes = b"") -> bytes:
        """The next frame's bytes."""
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= MAX_HEADER and len(data) <= MAX_DATA
        prefix = _PREFIX.pack(len(text), len(data))
        tag = _tag(self.key, self._count, prefix, text, data)
        self._count += 1
        return b"".join((prefix, tag, text, data))


@dataclass
class Receiver:
    """Takes the frames of one direction apart; holds one frame at most. The limits are of what is taken."""

    key: bytes
    max_header: int = MAX_HEADER
    max_data: int = MAX_DATA
    _count: int = 0
    _held: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that end in ``data``. FrameError where there is none."""
        self._held += data
        while len(self._held) >= PREFIX_SIZE:
            header, length = _PREFIX.unpack_from(self._held)
            if not 2 <= header <= self.max_header or length > self.max_data:
                raise FrameError(f"a frame of {header} and {length} bytes")
            end = PREFIX_SIZE + header + length
            if len(self._held) < end:
                return
            whole = bytes(self._held[:end])
            del self._held[:end]
            yield self._frame(whole, header)

    def _frame(self, whole: bytes, header: int) -> Frame:
        text, data = whole[PREFIX_SIZE : PREFIX_SIZE + header], whole[PREFIX_SIZE + header :]
        tag = _tag(self.key, self._count, whole[: _PREFIX.size], text, data)
        # nothing is read of a frame before it is known whose it is
        if not hmac.compare_digest(tag, whole[_PREFIX.size : PREFIX_SIZE]):
            raise FrameError("a frame whose tag is wrong")
        self._count += 1
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise FrameError("a header that is no JSON") from None
        if not isinstance(value, dict):
            raise FrameError("a header that is no JSON object")
        return Frame(value, data)

    def held(self) -> bytes:
        """What was received of a frame whose end has not come, or that is none."""
        return bytes(self._held)


def _tag(key: bytes, number: int, prefix: bytes, text: bytes, data: bytes) -> bytes:
    digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=_TAG, key=key)
    digest.update(prefix)
    digest.update(text)
    digest.update(data)
    return digest.digest()
