"""Columns of numbers as one compressed block of text, for a page that unpacks it in the browser.

Small numbers are two planes of bytes, low and high: the high one is nearly constant, which a compressor likes. What
does not fit into 16 bits is marked by 0xFFFF and stands in a third column of 64-bit floats.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64

_MARK = 0xFFFF


class Pack:
    """Sections of bytes, one after another; ``where`` tells their places: name to [offset, length]."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._parts: list[bytes] = []
        self._size = 0
        self.where: dict[str, list[int]] = {}

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """A column as it is, little-endian, from a multiple of eight bytes on."""
        data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        self.where[name] = [self._size, len(data)]
        data += bytes(-len(data) % 8)
        self._parts.append(data)
        self._size += len(data)

    def add_small(self, name: str, values: I64) -> None:
        """Numbers i64[n] from 0 on that are mostly below 2**16."""
        far = values >= _MARK
        near = np.where(far, _MARK, values)
        self.add(f"{name}.low", (near & 0xFF).astype(np.uint8))
        self.add(f"{name}.high", (near >> 8).astype(np.uint8))
        self.add(f"{name}.far", values[far].astype(np.float64))

    def text(self) -> str:
        """All of it, deflated (RFC 1950), in base64."""
        return base64.b64encode(zlib.compress(b"".join(self._parts), 6)).decode("ascii")
