"""A trace.dat file of version 7 copied with other options: its sections, and so its events, stay byte for byte.

The options of version 7 are a chain of sections that begins where the head says. The copy is the whole file, one more
section behind it that holds all options, and a head that points there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from counterpoint.dat_layout import MAGIC, Option
from counterpoint.traces.container import Container
from counterpoint.traces.write_options import RawOption, pack

BLOCK = 1 << 24
_NO_TITLE = -1


def can_copy(container: Container) -> bool:
    """Whether ``copy_with_options`` does for a file: version 7, all of whose buffers its options name."""
    return container.version == 7 and bool(container.buffers) and not any(b.recovered for b in container.buffers)


def copy_with_options(
    container: Container, options: Sequence[RawOption], file: BinaryIO, say: Callable[[int], None] = lambda _: None
) -> None:
    """Write ``container``'s file to ``file`` with ``options`` in place of its own. ``say`` is told of bytes written.

    ``options`` have to name its sections and buffers: take ``container.options`` and change what is to change.
    ValueError where the file cannot be copied so.
    """
    if not can_copy(container):
        raise ValueError("only whole files of version 7 can be copied with other options")
    data = container.mapped
    for begin in range(0, len(data), BLOCK):
        block = data[begin : begin + BLOCK]
        file.write(block.data)
        say(len(block))

    def packed(codes: str, *values: int) -> bytes:
        return pack(codes, *values, big_endian=container.big_endian)

    content = b"".join(packed("HI", one[0], len(one[1])) + one[1] for one in [*options, (Option.DONE, bytes(8))])
    at = file.tell()
    file.write(packed("HHIQ", Option.DONE, 0, _NO_TITLE, len(content)) + content)
    file.seek(_link(data.data))
    file.write(packed("Q", at))
    file.seek(0, 2)


def _link(data: memoryview) -> int:
    """Where the head says where the options begin: behind the name and the version of the compression."""
    at = len(MAGIC) + len(b"7\0") + 2 + 4
    for _ in range(2):
        while data[at]:
            at += 1
        at += 1
    return at
