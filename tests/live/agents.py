"""Agents that run in a thread, with a recording as their guest; and a guest's VMM, serial cable and network."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from counterpoint.live.agent import agent
from counterpoint.live.links import Device, Listener, parse
from counterpoint.live.serving import Server
from counterpoint.live.tracecmd_agent import tracecmd_agent
from counterpoint.live.tracer import Tracer

SECRET = b"a secret of this test"


@contextmanager
def served(server: Server) -> Iterator[Server]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def tcp_agent(make: Callable[[], Tracer], said: list[str] | None = None) -> Iterator[str]:
    """Our agent at a port; its URL."""
    listener = Listener(parse("tcp://127.0.0.1:0"))
    with served(agent(SECRET, make, listener, say=(said if said is not None else []).append)):
        yield f"tcp://127.0.0.1:{listener.port}"
    listener.close()


@contextmanager
def tracecmd_tcp_agent(make: Callable[[], Tracer], said: list[str] | None = None) -> Iterator[str]:
    """Our agent that speaks trace-cmd's protocol."""
    say = (said if said is not None else []).append
    server, listener = tracecmd_agent(make, parse("tcp://127.0.0.1:0"), source="127.0.0.1", say=say)
    with served(server):
        yield f"tcp://127.0.0.1:{listener.port}"
    listener.close()


def _relay(one: int, other: int, ended: threading.Event) -> None:
    while not ended.is_set():
        for source in select.select([one, other], [], [], 0.05)[0]:
            with suppress(OSError):
                data = os.read(source, 4096)
                target = other if source == one else one
                while data:
                    data = data[os.write(target, data) :]


@contextmanager
def cable() -> Iterator[tuple[str, str]]:
    """Two terminals, each the other's far end: their paths."""
    masters, slaves = zip(os.openpty(), os.openpty(), strict=True)
    for slave in slaves:
        # raw from the start: no echo of what comes first
        Device(os.ttyname(slave)).close()
    ended = threading.Event()
    thread = threading.Thread(target=_relay, args=(*masters, ended))
    thread.start()
    try:
        yield os.ttyname(slaves[0]), os.ttyname(slaves[1])
    finally:
        ended.set()
        thread.join()
        for descriptor in (*masters, *slaves):
            os.close(descriptor)


@contextmanager
def serial_agent(make: Callable[[], Tracer], said: list[str] | None = None) -> Iterator[str]:
    """Our agent at one end of a cable; the URL of the other."""
    with cable() as (far, near), ExitStack() as stack:
        device = Device(far)
        stack.callback(device.close)
        stack.enter_context(served(agent(SECRET, make, device=device, say=(said if said is not None else []).append)))
        yield f"serial://{near}"


@contextmanager
def hybrid(folder: Path, url: str) -> Iterator[str]:
    """A VMM like Firecracker whose guest's ports are those of the machine of ``url``; the URL to reach ``url`` by."""
    host, port = parse(url).place, parse(url).port
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "v.sock"))
    listener.listen(8)
    listener.settimeout(0.05)
    ended = threading.Event()

    def connect(link: socket.socket) -> None:
        with link, suppress(OSError):
            line = b""
            while not line.endswith(b"\n"):
                line += link.recv(1)
            with socket.create_connection((host, int(line.split()[1]))) as guest:
                link.sendall(b"OK 1073741824\n")
                both = {link: guest, guest: link}
                while both and not ended.is_set():
                    for source in select.select(list(both), [], [], 0.05)[0]:
                        data = source.recv(1 << 16)
                        target = both[source]
                        if data:
                            target.sendall(data)
                        else:
                            del both[source]
                            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        threads = []
        while not ended.is_set():
            with suppress(socket.timeout):
                link, _ = listener.accept()
                link.settimeout(None)
                threads.append(threading.Thread(target=connect, args=(link,)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"unix://{folder}/v.sock:{port}"
    finally:
        ended.set()
        thread.join()
        listener.close()
