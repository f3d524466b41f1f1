"""An emulated machine: QEMU, its console in a file, its monitor, and commands into it and into guests inside it.

Commands go over virtio-serial ports. The host machine has some; a guest inside is started with one of them as the
other end of its own port, so that the lab talks to it directly: no process of the host relays, nothing is polled, and
little of it is seen in traces.

    -device virtio-serial-pci -chardev stdio,id=lab,signal=off -device virtserialport,chardev=lab,name=lab.0 \
        <>$(lab-port 1) >&0
"""

from __future__ import annotations

import base64
import ctypes
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.packages import LabError

PORTS = 4


class CommandError(LabError):
    """A command in a machine ended with a status that is not 0; `output` is what it said."""

    def __init__(self, what: str, status: int, output: str) -> None:
        super().__init__(f"{what}: exit status {status}\n{output[-4000:]}")
        self.status, self.output = status, output


class Job:
    """A command that runs in a machine."""

    def __init__(self, channel: Channel, script: str) -> None:
        self._channel, self._script = channel, script
        self._answer: queue.Queue[tuple[int, str]] = queue.Queue()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._answer.empty()

    def wait(self, timeout: float, check: bool = True) -> str:
        """Return what it said, when it has ended; status 0 is demanded with `check`."""
        timeout *= self._channel.machine.patience
        ends = time.monotonic() + timeout
        while True:
            self._channel.machine.check()
            try:
                status, output = self._answer.get(timeout=min(0.5, max(0.01, ends - time.monotonic())))
                break
            except queue.Empty:
                if time.monotonic() > ends:
                    text = f"{self._channel.name}: no answer in {timeout:.0f} s to: {self._script[:300]}"
                    raise LabError(f"{text}\nits console: {self._channel.machine.console}") from None
        self._answer.put((status, output))
        if check and status:
            raise CommandError(f"{self._channel.name}: {self._script[:300]}", status, output)
        return output


class Channel:
    """Commands into one machine, over one port."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.number = machine, number
        self.name = f"{machine.name}:lab.{number}"
        self._ups: queue.Queue[str] = queue.Queue()
        self._socket: socket.socket | None = None

    def connect(self, path: Path) -> None:
        """Open the port's end on this side, and begin to hear it."""
        self._socket = _connect(path)
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        assert self._socket is not None
        with self._socket.makefile("rb") as lines:
            for line in lines:
                words = line.decode(errors="replace").split()
                if words[:2] == ["@lab", "up"]:
                    self._ups.put(words[2] if len(words) > 2 else "")
                elif words[:1] == ["@done"] and len(words) >= 3 and (job := self.machine.jobs.pop(words[1], None)):
                    text = base64.b64decode(words[3]).decode(errors="replace") if len(words) > 3 else ""
                    job._answer.put((int(words[2]), text))

    def up(self, timeout: float) -> str:
        """Wait until the machine (the next one at this port) says that it is up; return its kernel's release."""
        timeout *= self.machine.patience
        ends = time.monotonic() + timeout
        while True:
            self.machine.check()
            try:
                return self._ups.get(timeout=0.5)
            except queue.Empty:
                if time.monotonic() > ends:
                    text = f"{self.name}: not up after {timeout:.0f} s; console: {self.machine.console}"
                    raise LabError(text) from None

    def start(self, script: str) -> Job:
        """Begin a shell script in the machine; several may run at a time."""
        assert self._socket is not None
        job = Job(self, script)
        name = f"j{next(self.machine.ids)}"
        self.machine.jobs[name] = job
        self._socket.sendall(f"@run {name} {base64.b64encode(script.encode()).decode()}\n".encode())
        return job

    def run(self, script: str, timeout: float = 60, check: bool = True) -> str:
        """Run a shell script in the machine; return what it said."""
        return self.start(script).wait(timeout, check)

    def fetch(self, name: str, timeout: float = 120) -> bytes:
        """Return a file of the machine."""
        part = 256 << 10
        pieces = [
            self.run(f"tail -c +{at + 1} {name} | head -c {part} | base64 -w 0", timeout)
            for at in range(0, int(self.run(f"stat -c %s {name}")), part)
        ]
        return b"".join(map(base64.b64decode, pieces))


class Machine:
    """A QEMU process, and its ways in. `share` is a folder that the machine sees as /lab/share."""

    def __init__(
        self, name: str, command: list[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.folder = name, folder
        self.share = folder / "share"
        self.console = folder / f"{name}-console.txt"
        self._run = Path(tempfile.mkdtemp(prefix="lab-"))  # sockets: their names have 108 bytes at most
        self.gdb = self._run / "gdb"
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._channels = [Channel(self, number) for number in range(PORTS)]
        self._monitor: _Monitor | None = None
        # of all channels: a guest that is moved to another port answers there
        self.jobs: dict[str, Job] = {}
        self.ids = itertools.count(1)
        # a factor of every timeout: how much slower than usual the emulation is, among other busy processes
        self.patience = 1.0
        self._began = 0.0

    def _arguments(self) -> list[str]:
        arguments = [
            *("-name", f"{self.name},debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-no-reboot", "-serial", f"file:{self.console}"),
            *("-chardev", f"socket,id=qmp,path={self._run}/qmp,server=on,wait=off", "-mon", "qmp,mode=control"),
            *("-chardev", f"socket,id=gdb,path={self.gdb},server=on,wait=off", "-gdb", "chardev:gdb"),
            *("-virtfs", f"local,path={self.share},mount_tag=lab,security_model=none,multidevs=remap"),
            *("-device", "virtio-serial-pci,id=ports"),
        ]
        for number in range(PORTS):
            arguments += ["-chardev", f"socket,id=port{number},path={self._run}/port{number},server=on,wait=off"]
            arguments += ["-device", f"virtserialport,bus=ports.0,chardev=port{number},name=lab.{number}"]
        return arguments

    def start(self) -> None:
        """Start the emulation; it ends when this process does."""
        self.share.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        with (self.folder / f"{self.name}-qemu.txt").open("wb") as said:
            self._process = subprocess.Popen(
                [*self._command, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=None if self._environment is None else dict(self._environment),
                preexec_fn=_die_with_parent,
            )
        ends = time.monotonic() + 30
        while not all((self._run / name).exists() for name in ("qmp", "gdb", *(f"port{n}" for n in range(PORTS)))):
            self.check()
            if time.monotonic() > ends:
                raise LabError(f"{self.name}: QEMU did not begin in 30 s")
            time.sleep(0.05)
        self._monitor = _Monitor(self._run / "qmp")
        for channel in self._channels:
            channel.connect(self._run / f"port{channel.number}")

    def check(self) -> None:
        """Fail if the emulation has ended."""
        if self._process is None or self._process.poll() is not None:
            status = None if self._process is None else self._process.returncode
            said = (self.folder / f"{self.name}-qemu.txt").read_text(errors="replace")[-2000:]
            raise LabError(f"{self.name}: QEMU ended with status {status}\n{said}\nits console: {self.console}")

    @property
    def pid(self) -> int:
        """The emulator's process."""
        assert self._process is not None
        return self._process.pid

    def up(self, timeout: float, usual: float = 12) -> str:
        """Wait until the machine is up, which `usual`ly takes so many seconds; return its kernel's release."""
        found = self.channel(0).up(timeout)
        self.patience = max(1.0, (time.monotonic() - self._began) / usual)
        return found

    def channel(self, number: int) -> Channel:
        """Return the commands' way to the machine (0), or to the guest that has its port `number`."""
        return self._channels[number]

    def run(self, script: str, timeout: float = 60, check: bool = True) -> str:
        """Run a shell script in the machine; return what it said."""
        return self.channel(0).run(script, timeout, check)

    def qmp(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  what the monitor answers
        """Ask the emulator's monitor."""
        assert self._monitor is not None
        return self._monitor.ask(command, arguments)

    def stop(self) -> None:
        """End the emulation."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._run, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Monitor:
    """QEMU's machine protocol, one command at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._socket.settimeout(60)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities", {})

    def ask(self, command: str, arguments: Mapping[str, object]) -> Any:  # noqa: ANN401
        text = json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        self._socket.sendall(text.encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QMP {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"QMP {command}: the monitor is gone")


def _connect(path: Path) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(path))
    return end


def _die_with_parent() -> None:
    """In the child: be polite, and do not outlive the lab (PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.nice(5)
