"""Compressed pieces of a trace.dat file: one block, or a buffer cut in chunks.

trace-cmd (lib/trace-cmd/trace-compress.c) writes a block as ``u32 compressed size, u32 size, data`` and
a buffer as ``u32 count`` such blocks. zlib data is a zlib stream, zstd data a plain frame.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BLOCK = 1 << 30
"""A block that claims to hold more than this is refused before anything is allocated."""

MAX_RATIO = 1 << 15
"""A block may claim at most this many times its compressed size (zstd frames reach some 20,000:1)."""


def _zstd() -> Any:  # noqa: ANN401 (two modules of one shape)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _inflate_zlib(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error as err:
        raise ValueError(f"bad zlib data ({err})") from None


def _inflate_zstd(data: bytes, size: int) -> bytes:
    zstd = _zstd()
    try:
        return bytes(zstd.ZstdDecompressor().decompress(data, size))
    except zstd.ZstdError as err:
        raise ValueError(f"bad zstd data ({err})") from None


_ALGORITHMS: dict[str, Callable[[bytes, int], bytes]] = {"zlib": _inflate_zlib, "zstd": _inflate_zstd}


def is_known(algorithm: str) -> bool:
    """Whether blocks of ``algorithm`` ("none", "zlib", "zstd") can be read."""
    return algorithm == "none" or algorithm in _ALGORITHMS


def inflate(algorithm: str, data: bytes, size: int) -> bytes:
    """Inflate one block to exactly ``size`` bytes; ValueError where it does not hold them."""
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"compressed with {algorithm!r}, which is not known here")
    if size > MAX_BLOCK or size > max(len(data), 16) * MAX_RATIO:
        raise ValueError(f"{len(data)} compressed bytes claim to hold {size}: refused")
    if size == 0:
        return b""
    plain = _ALGORITHMS[algorithm](data, size)
    if len(plain) != size:
        raise ValueError(f"holds {len(plain)} bytes where {size} are claimed")
    return plain
