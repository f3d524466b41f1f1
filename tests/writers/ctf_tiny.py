"""The smallest CTF 1.8 trace: one stream of bare stamps in ns."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from pathlib import Path

_METADATA = """/* CTF 1.8 */
typealias integer {{ size = 32; align = 8; signed = false; }} := uint32_t;
typealias integer {{ size = 64; align = 8; signed = false; map = clock.c.value; }} := stamp_t;
trace {{ major = 1; minor = 8; byte_order = le; uuid = "{uuid}";
  packet.header := struct {{ uint32_t magic; }}; }};
clock {{ name = c; freq = 1000000000; }};
stream {{ event.header := struct {{ stamp_t timestamp; }}; }};
event {{ name = "{name}"; }};
"""


def write_ctf(folder: Path, name: str, stamps: Sequence[int]) -> Path:
    """Write a trace of events called ``name`` at ``stamps`` into ``folder``."""
    folder.mkdir()
    (folder / "metadata").write_text(_METADATA.format(uuid=uuid.uuid4(), name=name))
    (folder / "stream").write_bytes(struct.pack(f"<I{len(stamps)}Q", 0xC1FC1FC1, *stamps))
    return folder
