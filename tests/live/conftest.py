"""A VMM to look at (vmm.py); tracefs and debugfs, mounted in a mount namespace of our own where they are not."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import need
from live.mounts import mount, unshare
from live.vmm import BRACKETS, RING, STRIDE

HERE = Path(__file__).parent
LIVE = {
    "test_guests.py", "test_inject.py", "test_kvm.py", "test_offsets.py", "test_record.py", "test_tracefs.py",
    "test_vms.py",
}  # fmt: skip
"""What looks at the running kernel, and stops other processes' threads, runs when it is asked for: make test-live."""
ASKED = os.environ.get("COUNTERPOINT_LIVE") == "1"
collect_ignore = [path.name for path in HERE.glob("test_*.py") if (path.name in LIVE) != ASKED]
"""Then the others do not: make test has run them."""

FULL = os.environ.get("COUNTERPOINT_FULL") == "1"
"""The long versions of the tests."""


@dataclass
class RunningVmm:
    """A VMM of vmm.py that runs: what its threads report, and a way to speak to it."""

    process: subprocess.Popen[str]
    report: Path
    vcpus: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def counts(self, vcpu: int) -> dict[str, int]:
        with self.report.open("rb") as file:
            file.seek(vcpu * STRIDE)
            words = memoryview(file.read(96)).cast("Q")
        return {
            "rounds": words[1],
            "mismatches": words[2],
            "eintr": words[3],
            "unexpected": words[4],
            "brackets": words[11],
        }

    def brackets(self, vcpu: int) -> list[tuple[int, int, int]]:
        """(host before, guest, host after) of the last exits, at least 100."""
        found: set[tuple[int, ...]] = set()
        # an entry that is being written while it is read differs from what the next look finds
        while len(found) < 100:
            found = self._ring(vcpu) & self._ring(vcpu)
        return [each[:3] for each in sorted(found, key=lambda each: each[3])]

    def _ring(self, vcpu: int) -> set[tuple[int, ...]]:
        with self.report.open("rb") as file:
            file.seek(vcpu * STRIDE + RING)
            words = memoryview(file.read(BRACKETS * 32)).cast("Q").tolist()
        return {tuple(words[n : n + 4]) for n in range(0, len(words), 4) if words[n]}

    def end(self) -> None:
        """Stop it: everything was as it should be to the end."""
        out, _ = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, out


@pytest.fixture
def run_vmm(tmp_path) -> Iterator[Callable[..., RunningVmm]]:
    """Start a VMM: ``run_vmm(guest="exits", vcpus=2, *arguments)``; it is ended, and found sound, at the end."""
    need(os.access("/dev/kvm", os.R_OK | os.W_OK), "/dev/kvm cannot be used")
    flags = Path("/proc/cpuinfo").read_text()
    need(" avx " in flags, "the VMM of these tests is x86 with AVX")
    running: list[RunningVmm] = []

    def start(guest: str = "exits", vcpus: int = 2, *arguments: str) -> RunningVmm:
        report = tmp_path / f"report-{len(running)}"
        command = [
            sys.executable,
            str(HERE / "vmm.py"),
            str(report),
            "--guest",
            guest,
            "--vcpus",
            str(vcpus),
            *arguments,
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        running.append(RunningVmm(process, report, vcpus))
        assert process.stdout.readline() == "ready\n"
        return running[-1]

    yield start
    try:
        for vmm in running:
            if vmm.process.poll() is None:
                vmm.end()
    finally:
        for vmm in running:
            vmm.process.kill()
            vmm.process.wait()


@pytest.fixture
def alone() -> Iterator[None]:
    """No other process of these tests is in tracefs meanwhile: it is the whole machine's."""
    with (Path(tempfile.gettempdir()) / "counterpoint-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def own_mounts() -> None:
    """This process's own mount namespace."""
    need(os.geteuid() == 0, "root is needed")
    need(unshare(), "no mount namespace of our own can be had")


@pytest.fixture
def tracefs_root(own_mounts) -> Path:
    """Where tracefs is."""
    need(mount("tracefs", "/sys/kernel/tracing", "instances"), "tracefs cannot be mounted")
    return Path("/sys/kernel/tracing")


@pytest.fixture
def debugfs_root(own_mounts) -> Path:
    """Where KVM's debugfs is."""
    need(mount("debugfs", "/sys/kernel/debug", "kvm"), "debugfs cannot be mounted")
    return Path("/sys/kernel/debug/kvm")


@pytest.fixture
def as_root() -> None:
    """The test needs root."""
    need(os.geteuid() == 0, "root is needed")
