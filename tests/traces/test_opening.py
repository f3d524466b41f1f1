"""Recordings are known by what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.errors import BadFileError
from counterpoint.traces.opening import is_recording, read_contents
from counterpoint.traces.recording import Recording
from writers.tracedat import TraceFile


def test_a_name_says_nothing(tmp_path):
    path = TraceFile().write(tmp_path / "notes.txt")

    assert is_recording(path)
    assert Recording.open(path).format == "trace.dat"


def test_what_no_reader_takes_is_said(tmp_path):
    path = tmp_path / "host.dat"
    path.write_bytes(b"\x7fELF" + bytes(100))

    assert not is_recording(path)
    with pytest.raises(BadFileError, match=r"host\.dat, byte 0: not a recording in any format .*\(trace\.dat"):
        read_contents(path)


@pytest.mark.parametrize("path", [Path("none.dat"), Path()])
def test_what_cannot_be_looked_at_is_no_recording(tmp_path, path):
    assert not is_recording(tmp_path / path)
    with pytest.raises(BadFileError):
        read_contents(tmp_path / path)
