"""A bounds-checked reader over the bytes of a file: every read says where it failed."""

from __future__ import annotations

from os import PathLike, fspath

from counterpoint.errors import BadFileError

Bytes = bytes | memoryview


class Cursor:
    """Reads numbers and strings in a file's byte order from ``data``, whose first byte is at ``base``."""

    __slots__ = ("base", "big_endian", "data", "path", "pos")

    def __init__(self, data: Bytes, path: str | PathLike[str], *, big_endian: bool = False, base: int = 0) -> None:
        """Start at the first byte of ``data``."""
        self.data = data
        self.path = fspath(path)
        self.big_endian = big_endian
        self.base = base
        self.pos = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.pos

    def error(self, what: str) -> BadFileError:
        """An error at the present place."""
        return BadFileError(what, self.path, self.base + self.pos)

    def take(self, size: int, what: str) -> bytes:
        """Read ``size`` bytes; BadFileError where fewer are left."""
        if size < 0 or size > self.left:
            raise self.error(f"the file ends inside {what} ({size} bytes wanted, {self.left} there)")
        self.pos += size
        return bytes(self.data[self.pos - size : self.pos])

    def uint(self, size: int, what: str) -> int:
        """Read an unsigned integer of ``size`` bytes in the file's byte order."""
        return int.from_bytes(self.take(size, what), "big" if self.big_endian else "little")

    def sint(self, size: int, what: str) -> int:
        """Read a signed integer of ``size`` bytes in the file's byte order."""
        return int.from_bytes(self.take(size, what), "big" if self.big_endian else "little", signed=True)

    def string(self, what: str, limit: int = 4096) -> str:
        """Read a NUL-terminated string of at most ``limit`` bytes."""
        window = bytes(self.data[self.pos : self.pos + limit])
        end = window.find(b"\0")
        if end < 0:
            raise self.error(f"{what} has no end (no NUL within {len(window)} bytes)")
        self.pos += end + 1
        return window[:end].decode("utf-8", "replace")
