"""Mounts of one process alone: what it mounts nobody else sees, and it ends with the process."""

from __future__ import annotations

import ctypes
from pathlib import Path

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare() -> bool:
    """Begin a mount namespace of this process's own; whether that is allowed."""
    return _LIBC.unshare(_CLONE_NEWNS) == 0 and _LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) == 0


def mount(kind: str, folder: str, inside: str) -> bool:
    """Mount ``kind`` at ``folder`` unless ``inside`` is there already; whether it is there then."""
    if not Path(folder, inside).exists():
        _LIBC.mount(b"nodev", folder.encode(), kind.encode(), 0, None)
    return Path(folder, inside).exists()
