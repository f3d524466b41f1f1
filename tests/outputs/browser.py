"""A real browser, driven by the WebDriver protocol with the standard library alone.

with Browser.start(folder) as browser:
    browser.open(page.as_uri())
    browser.run("return document.title")
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """One session of headless Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._root = f"http://127.0.0.1:{port}"
        self._session = ""

    @classmethod
    def start(cls, folder: Path) -> Browser:
        assert DRIVER and CHROMIUM
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        browser = cls(process, port)
        until = time.monotonic() + 60
        while True:
            try:
                if browser._ask("GET", "/status")["ready"]:
                    break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        capabilities = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": 60_000, "pageLoad": 120_000},
        }
        try:
            told = browser._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        except BaseException:
            process.kill()
            process.wait()
            raise
        browser._session = f"/session/{told['sessionId']}"
        return browser

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait(timeout=30)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as err:
            raise AssertionError(err.read().decode("utf-8", "replace")[:2000]) from None

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", self._session + path, body)

    def open(self, address: str) -> None:
        self.ask("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, seconds: float = 60) -> Any:
        """Until ``condition``, an expression of the page, is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(f"return ({condition});")):
            assert time.monotonic() < until, f"not within {seconds} s: {condition}"
            time.sleep(0.02)
        return value

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def scheme(self, name: str) -> None:
        """What the user prefers: "dark" or "light"."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def key(self, *keys: str) -> None:
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def drag(self, x: int, y: int, by: int) -> None:
        steps = [
            {"type": "pointerMove", "x": x, "y": y, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": x + by // 2, "y": y, "duration": 20},
            {"type": "pointerMove", "x": x + by, "y": y, "duration": 20},
            {"type": "pointerUp", "button": 0},
        ]
        self.ask("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def wheel(self, x: int, y: int, by: int) -> None:
        steps = [{"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": by, "duration": 0}]
        self.ask("/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": steps}]})

    def log(self, kind: str = "browser") -> list[dict[str, Any]]:
        """What was logged since the last call; "performance": the events of the network."""
        found: list[dict[str, Any]] = self.ask("/se/log", {"type": kind})
        return found

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        data = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
