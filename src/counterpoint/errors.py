"""The errors of this package.

    CounterpointError
    ├── BadFileError      a file is not what it should be: carries the path and, where known, the byte
    └── UsageError        what was asked for cannot be done with these inputs

The command prints the message of either as one sentence and exits with status 2.
"""

from __future__ import annotations

from os import PathLike, fspath


class CounterpointError(Exception):
    """Base of all errors that are the caller's to handle."""


class BadFileError(CounterpointError):
    """A file cannot be read: ``what`` went wrong, in which ``path``, at which ``byte`` (None: not known)."""

    def __init__(self, what: str, path: str | PathLike[str], byte: int | None = None) -> None:
        """Join the parts to one sentence, the path first."""
        self.what = what
        self.path = fspath(path)
        self.byte = byte
        where = self.path if byte is None else f"{self.path}, byte {byte}"
        super().__init__(f"{where}: {what}")


class UsageError(CounterpointError):
    """A request that these inputs cannot answer."""
