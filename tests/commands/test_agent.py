"""``counterpoint agent``: what it refuses, before it serves anybody."""

from __future__ import annotations

import pytest

from counterpoint.commands.main import main


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef")
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--secret-file is needed"),
        (["--secret-file", "/nowhere/secret"], "No such file"),
        (["--secret-file", "SECRET", "--listen", "127.0.0.1:5"], "is expected"),
        (["--secret-file", "SECRET", "--listen", "tcp://127.0.0.1"], "tcp://HOST:PORT"),
        (["--secret-file", "SECRET", "--listen", "vsock://2:5"], "tcp://HOST:PORT"),
        (["--secret-file", "SECRET", "--from", "10.0.0.1"], "--from is for --listen"),
        (["--secret-file", "SECRET", "--vsock", "0"], "no such port"),
        (["--secret-file", "SECRET", "--max-buffer", "1"], "8 to"),
        (["--secret-file", "SECRET", "--trace-cmd"], "knows no secret"),
        (["--trace-cmd", "--serial", "/dev/null"], "not over a serial device"),
        (["--trace-cmd", "--listen", "tcp://127.0.0.1:5"], "--from ADDRESS is needed"),
    ],
)
def test_what_it_refuses(capsys, secret, arguments, said):
    assert main(["agent", *(secret if text == "SECRET" else text for text in arguments)]) == 2

    assert said in capsys.readouterr().err


def test_without_tracefs_it_is_said_what_to_do(capsys, secret, monkeypatch, tmp_path):
    monkeypatch.setattr("counterpoint.live.tracefs.ROOTS", (tmp_path,))

    assert main(["agent", "--secret-file", secret]) == 2
    error = capsys.readouterr().err
    assert "mount -t tracefs" in error or "run as root" in error
