"""Work in a child process: its answers, its errors, and its end."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from counterpoint.errors import BadFileError, UsageError
from counterpoint.traces.child import in_child

MIB = 1 << 20


def test_values_and_vectors_come_back():
    columns = [np.arange(5, dtype=np.uint64), np.zeros(0, np.int64), np.frombuffer(b"abc", np.uint8)]

    value, arrays = in_child(lambda: ({"a": [1, None, "é"]}, columns), "x", MIB)

    assert value == {"a": [1, None, "é"]}
    assert [(a.dtype, a.tolist()) for a in arrays] == [(c.dtype, c.tolist()) for c in columns]


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [BadFileError("is broken", "the/file", 7), BadFileError("is broken", "f"), UsageError("install it")]
)
def test_errors_are_raised_again(error):
    with pytest.raises(type(error)) as caught:
        in_child(lambda: fail(error), "x", MIB)

    assert str(caught.value) == str(error)


def crash() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (crash, r"x: the process that read it was ended by signal 15"),
        (lambda: np.ones(1 << 30, np.uint8), r"x: it cannot be read \(.*MemoryError"),
        (lambda: fail(KeyError("k")), r"x: it cannot be read \(KeyError: 'k'\)"),
        (lambda: os._exit(3), r"x: the process that read it failed"),
    ],
)
def test_nobody_else_is_taken_with_it(work, said):
    with pytest.raises(BadFileError, match=said):
        in_child(work, "x", MIB)
