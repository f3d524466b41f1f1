"""Work in a child process of bounded memory: a library that some file makes crash takes nobody with it."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from counterpoint.errors import BadFileError, UsageError

Array = npt.NDArray[Any]
Answer = tuple[dict[str, Any], Sequence[Array]]
"""What work gives: a value of JSON's kinds, and vectors."""

_ALIGN = 64
_SLACK = 256 << 20


def in_child(work: Callable[[], Answer], path: str, most: int) -> tuple[dict[str, Any], list[Array]]:
    """What ``work`` gives, done in a child process that may take ``most`` bytes more than this one has.

    The vectors are read-only, mapped from a file that has no name. BadFileError and UsageError are raised here again;
    BadFileError of ``path`` where the child dies or has too little memory.
    """
    with tempfile.TemporaryFile() as file:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: numpy's are idle, and the child uses none
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _work(work, file, path, most)
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        code = os.waitstatus_to_exitcode(status)
        if code:
            what = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else "failed"
            raise BadFileError(
                f"the process that read it {what}: it is damaged, or needs more than {most >> 20} MiB of memory", path
            )
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(mapped[-8:], "little")
    said: dict[str, Any] = json.loads(mapped[-8 - size : -8])
    if (failed := said.get("failed")) is not None:
        raise (
            BadFileError(failed["what"], failed["path"], failed["byte"])
            if "path" in failed
            else UsageError(failed["what"])
        )
    arrays = [np.frombuffer(mapped, kind, count, at) for kind, count, at in said["arrays"]]
    return said["value"], arrays


def _work(work: Callable[[], Answer], file: BinaryIO, path: str, most: int) -> None:
    """The child's life."""
    code = 1
    try:
        # what a library says of a damaged file is no message of ours
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        limit = _taken() + most + _SLACK
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _answer(work, file, path)
        code = 0
    finally:
        os._exit(code)


def _answer(work: Callable[[], Answer], file: BinaryIO, path: str) -> None:
    said: dict[str, Any] = {}
    try:
        value, arrays = work()
        places = []
        for one in arrays:
            file.write(bytes(-file.tell() % _ALIGN))
            places.append((one.dtype.str, len(one), file.tell()))
            file.write(np.ascontiguousarray(one).data)
        said = {"value": value, "arrays": places}
    except BadFileError as err:
        said = {"failed": {"what": err.what, "path": err.path, "byte": err.byte}}
    except UsageError as err:
        said = {"failed": {"what": str(err)}}
    except Exception as err:
        said = {"failed": {"what": f"it cannot be read ({type(err).__name__}: {err})", "path": path, "byte": None}}
    text = json.dumps(said).encode()
    file.write(text + len(text).to_bytes(8, "little"))
    file.flush()


def _taken() -> int:
    """Bytes of address space of this process (proc(5): statm)."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
