"""Output files that are whole or absent: written under a temporary name, renamed at the end."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from counterpoint.errors import UsageError


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that takes ``path``'s name when the block ends well, and is removed when it does not.

    UsageError where ``path`` exists and ``overwrite`` is False, at the beginning and at the end.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: the file exists")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if overwrite:
            temporary.replace(path)
        else:
            # a link, unlike a rename, fails where somebody made the file meanwhile
            try:
                os.link(name, path)
            except FileExistsError:
                raise UsageError(f"{path}: the file exists") from None
            temporary.unlink()
    except BaseException as err:
        if isinstance(err, OSError) and err.filename is None:
            # a full disk: say of which file
            err.filename = str(path)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
