"""Output files that are whole or absent: written under a temporary name, renamed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        _name(err, path)
        raise


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Make a folder that takes ``path``'s name when the block ends well, and is removed when it does not.

    UsageError where ``path`` exists and ``overwrite`` is False, or is no folder of which ``is_ours`` says that it may
    be removed.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise UsageError(f"{path}: the folder exists")
        if path.is_symlink() or not path.is_dir() or not is_ours(path):
            raise UsageError(f"{path}: it holds other things, and is not replaced: remove it, or take another name")
    parent = path.absolute().parent
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    old = None
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if overwrite and path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=parent))
            path.rename(old / "was")
        # a rename onto a folder that somebody made meanwhile fails unless it is empty
        temporary.rename(path)
    except BaseException as err:
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and (old / "was").exists():
            (old / "was").rename(path)
        _name(err, path)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _name(err: BaseException, path: Path) -> None:
    """A failed write says of which file: of the final name, for nobody knows the temporary one."""
    if isinstance(err, OSError):
        err.filename, err.filename2 = os.fspath(path), None
