"""Real recordings of this kernel over both wires: our agent and trace-cmd's own, from either side."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import frames
from counterpoint.live.agent_guest import AgentGuest
from counterpoint.live.frames import Sender
from counterpoint.live.guests import GuestTracer, Wanted
from counterpoint.live.links import parse
from counterpoint.live.tracecmd_guest import TraceCmdGuest
from counterpoint.traces.recording import Recording
from helpers import need, need_tool
from live.test_agent import mutated
from live.test_zipapp import build

pytestmark = pytest.mark.usefixtures("alone", "as_root")

RUNS = 40
WANTED = Wanted(["sched", "irq:irq_handler_*", "no_such:event"], "mono_raw", 2048, 99)
_STATE = ("tracing_on", "buffer_size_kb", "trace_clock", "current_tracer", "set_event")
_BIND, _DETACH = 0x1000, 2


def instances(root: Path) -> set[str]:
    # (others' come and go)
    return {name for name in os.listdir(root / "instances") if name.startswith("counterpoint")}


def work() -> None:
    for _ in range(RUNS):
        subprocess.run(["/bin/true"], check=True)


def runs_in(path: Path) -> int:
    """How often the work's program was started, as trace-cmd reads the file."""
    text = subprocess.run([need_tool("trace-cmd"), "report", path], capture_output=True, text=True, check=True).stdout
    events = [line for line in text.splitlines() if not line.startswith(("cpus=", "CPU "))]
    assert len(events) == len(Recording.open(path)) > 0
    return sum("sched_process_exec:" in line and "filename=/bin/true" in line for line in events)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def take(guest: GuestTracer, folder: Path) -> Path:
    folder.mkdir()
    try:
        guest.start(folder, WANTED)
        time.sleep(0.3)
        work()
        time.sleep(0.3)
        found = guest.stop()
    finally:
        guest.abandon()
    assert found.lost == 0 and not found.notes and found.clock == "mono_raw"
    assert os.listdir(folder) == [f"{guest.name}.dat"]
    return found.path


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.touch(0o600)
    path.write_bytes(os.urandom(32).hex().encode())
    return path


@contextmanager
def agent_process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``counterpoint agent`` at a TCP port, from the zip file's modules; its process and URL."""
    url = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "counterpoint", "agent", "--listen", url, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "waits at" in process.stderr.readline()
        yield process, url
    finally:
        process.terminate()
        out = process.communicate(timeout=90)[1]
        assert "Traceback" not in out


def test_a_guest_over_our_agent(tmp_path, tracefs_root, secret):
    before, top = instances(tracefs_root), [(tracefs_root / name).read_text() for name in _STATE]
    with agent_process("--secret-file", secret) as (process, url):
        path = take(AgentGuest(url, "guest", secret.read_bytes()), tmp_path / "capture")
        assert instances(tracefs_root) == before
    assert process.returncode == 0

    assert runs_in(path) == RUNS
    assert [(tracefs_root / name).read_text() for name in _STATE] == top


def test_the_agent_runs_from_the_zip_file(tmp_path, tracefs_root, secret):
    file = build(tmp_path / "counterpoint.pyz")
    url = f"tcp://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", file, "agent", "--listen", url, "--secret-file", secret, "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    path = take(AgentGuest(url, "guest", secret.read_bytes()), tmp_path / "capture")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)

    assert process.returncode == 0 and runs_in(path) == RUNS


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_agent_that_ends_while_it_records_leaves_nothing(tmp_path, tracefs_root, secret, how):
    before = instances(tracefs_root)
    (tmp_path / "capture").mkdir()
    with agent_process("--secret-file", secret) as (process, url):
        guest = AgentGuest(url, "guest", secret.read_bytes())
        guest.start(tmp_path / "capture", WANTED)
        assert len(instances(tracefs_root) - before) == 1
        work()
        time.sleep(0.7)
        process.send_signal(how)
        process.wait(20)
        found = guest.stop()
    for _ in range(100):
        if instances(tracefs_root) == before:
            break
        time.sleep(0.05)

    assert instances(tracefs_root) == before
    assert "lost before the end" in found.notes[0]
    assert len(Recording.open(found.path)) > 0


def test_lost_events_are_counted(tmp_path, tracefs_root, secret):
    (tmp_path / "capture").mkdir()
    with agent_process("--secret-file", secret) as (_, url):
        guest = AgentGuest(url, "guest", secret.read_bytes())
        # in a circle of 64 KB
        guest.start(tmp_path / "capture", Wanted(["sched"], "mono_raw", 64, 5, flight=True))
        for _ in range(10):
            work()
        found = guest.stop()

    assert found.lost and found.lost > 1000
    assert found.events == len(Recording.open(found.path)) > 0


def test_ten_thousand_mutated_messages_over_tcp(tmp_path, tracefs_root, secret):
    """From without, against the process: it makes nothing, grows by nothing, and serves who has the secret."""
    draw = random.Random(9)
    before = instances(tracefs_root)
    with agent_process("--secret-file", secret) as (process, url):
        port = parse(url).port

        def attack() -> None:
            nonce = frames.new_nonce()
            with socket.create_connection(("127.0.0.1", port)) as link, suppress(OSError):
                link.settimeout(2)
                if draw.random() < 0.3:
                    link.sendall(mutated(draw, frames.greet(nonce)) or b"x")
                    return
                link.sendall(frames.greet(nonce))
                own = frames.read_answer(link.recv(1000), nonce)
                key = frames.keys(secret.read_bytes(), nonce, own or b"")[0]
                whole = Sender(key).encode({"do": "record", "events": ["sched"], "clock": "local", "buffer_kb": 64})
                frame = mutated(draw, whole)
                if not frame.startswith(whole):
                    link.sendall(frame or b"x")

        for _ in range(1000):
            attack()
        grown = -_resident(process.pid)
        for _ in range(9000):
            attack()
        grown += _resident(process.pid)
        assert grown < 2 << 20
        assert instances(tracefs_root) == before
        path = take(AgentGuest(url, "guest", secret.read_bytes()), tmp_path / "capture")

    assert runs_in(path) == RUNS


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- with trace-cmd itself -------------------------------------------------------------------------------------------


@pytest.fixture
def trace_cmd(tracefs_root, tmp_path) -> Iterator[str]:
    """trace-cmd, which works on the top-level buffer: what it leaves there is put back.

    Where files that it writes in passing are closed (sandboxes), plain ones lie over them, in our own mount namespace.
    """
    path = need_tool("trace-cmd")
    help_text = subprocess.run([path, "agent", "-h"], capture_output=True, text=True, check=False).stdout
    need("-N" in help_text, "this trace-cmd's agent has no TCP")
    libc = ctypes.CDLL(None)
    covered = []
    names = [f"{root}/set_ftrace_{name}" for root in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
             for name in ("filter", "notrace", "pid", "notrace_pid")]  # fmt: skip
    for name in ("/proc/sys/kernel/ftrace_enabled", *names):
        if not _is_open(name):
            plain = tmp_path / name.replace("/", "_")
            plain.write_text("1\n" if "proc" in name else "")
            need(libc.mount(str(plain).encode(), name.encode(), None, _BIND, None) == 0, f"{name} is closed")
            covered.append(name)
    state = {name: (tracefs_root / name).read_text() for name in ("tracing_on", "buffer_size_kb", "trace_clock")}
    try:
        yield path
    finally:
        for name in covered:
            libc.umount2(name.encode(), _DETACH)
        (tracefs_root / "set_event").write_text("\n")
        (tracefs_root / "trace_clock").write_text(state["trace_clock"].partition("[")[2].partition("]")[0])
        (tracefs_root / "buffer_size_kb").write_text(state["buffer_size_kb"].split()[0])
        (tracefs_root / "tracing_on").write_text(state["tracing_on"])


def _is_open(name: str) -> bool:
    if not os.path.exists(name):
        return True
    with suppress(OSError):
        text = Path(name).read_text()
        if name.startswith("/proc"):
            Path(name).write_text(text)
        return True
    return False


@contextmanager
def trace_cmd_agent(path: str) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([path, "agent", "-N", "127.0.0.1", "-p", str(port)], start_new_session=True)
    try:
        for _ in range(100):
            # (it listens at all addresses; a connection would be a session)
            if f":{port:04X} " in Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text():
                break
            time.sleep(0.05)
        yield f"tcp://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stock_client(path: str, url: str, folder: Path) -> Path:
    """What ``trace-cmd record -A`` makes of the guest at ``url``."""
    folder.mkdir()
    place = url.partition("://")[2]
    code = (
        "import subprocess, time\ntime.sleep(0.3)\n"
        f"for _ in range({RUNS}): subprocess.run(['/bin/true'])\ntime.sleep(0.3)"
    )
    subprocess.run(
        [path, "record", "--tsync-interval", "-1", "-o", folder / "host.dat", "-e", "sched:sched_switch",
         "-C", "mono_raw", "-A", place, "-e", "sched", "-e", "irq:irq_handler_entry", "-C", "mono_raw",
         sys.executable, "-c", code],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    (found,) = folder.glob("host-*.dat")
    return found


def test_the_real_agent_with_our_client_and_with_its_own(tmp_path, trace_cmd):
    with trace_cmd_agent(trace_cmd) as url:
        ours = take(TraceCmdGuest(url, "guest"), tmp_path / "ours")
        its = stock_client(trace_cmd, url, tmp_path / "its")

    assert runs_in(ours) == runs_in(its) == RUNS
    one, other = Recording.open(ours), Recording.open(its)
    assert (one.clock, one.cpus) == (other.clock, other.cpus) == ("mono_raw", os.cpu_count())


def test_the_real_client_with_our_agent(tmp_path, trace_cmd, tracefs_root):
    before = instances(tracefs_root)
    with agent_process("--trace-cmd", "--from", "127.0.0.1") as (process, url):
        its = stock_client(trace_cmd, url, tmp_path / "its")
        ours = take(TraceCmdGuest(url, "guest"), tmp_path / "ours")
    assert process.returncode == 0 and instances(tracefs_root) == before

    assert runs_in(its) == runs_in(ours) == RUNS
    assert Recording.open(its).clock == "mono_raw"


def test_what_the_real_agent_refuses_is_said(tmp_path, trace_cmd):
    with trace_cmd_agent(trace_cmd) as url:
        guest = TraceCmdGuest(url, "guest")
        with pytest.raises(UsageError, match=r"closed the connection|no answer|silent"):
            guest.start(tmp_path, Wanted(["sched"], "sundial", 64, 5))
        guest.abandon()
