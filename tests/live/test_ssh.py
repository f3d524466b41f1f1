"""A guest with nothing but a shell, as far as it can be told without one: what it sends, right and wrong."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import ssh
from counterpoint.live.guests import Wanted
from counterpoint.live.ssh import SCRIPT, SshGuest, formats_of
from counterpoint.traces.recording import Recording
from helpers import need_tool
from live.fake_tracefs import cpu_files, fake_tracefs
from writers.worlds import tiny_pair

WANTED = Wanted(["sched:*", "kvm:kvm_entry"], "x86-tsc", 1024, 5)
FAKE = Path(__file__).parent / "fake_guest.py"
STATS = "entries: 0\noverrun: 3\ncommit overrun: 0\ndropped events: 1\nread events: 10\n"


@pytest.fixture
def guest(tmp_path):
    """(what the guest recorded, a folder for the capture, SshGuest of what goes wrong)."""
    first = Recording.open(tiny_pair(version=6)[1].write(tmp_path / "first.dat"))
    root = fake_tracefs(tmp_path / "tracefs", first)
    folder = tmp_path / "guest"
    cpu_files(folder, first)
    for name in ("header_page", "header_event"):
        (folder / name).write_bytes((root / "events" / name).read_bytes())
    formats = sorted(root.glob("events/*/*/format"))
    (folder / "formats").write_text("".join(f"{p}:{line}\n" for p in formats for line in p.read_text().splitlines()))
    (folder / "kallsyms").write_text("ffffffff81000000 T last\n")
    (folder / "printk_formats").write_bytes(b"")
    (folder / "trace_clock").write_text("local [x86-tsc]\n")
    (folder / "uname").write_text("Linux\nguest\n6.1\nx86_64\n")
    (folder / "stats").write_text(
        "".join(f"/t/per_cpu/cpu{c}/stats:{x}\n" for c in range(1) for x in STATS.splitlines())
    )
    (folder / "saved_cmdlines").write_text("7 seven\n")
    (folder / "comms").write_text("/proc/5/task/7/comm:other\n/proc/5/task/9/comm:nine: of\n")
    capture = tmp_path / "capture"
    capture.mkdir()

    def make(wrong: str = "nothing") -> SshGuest:
        return SshGuest("ssh://there", "vm1", shlex.join([sys.executable, str(FAKE), str(folder), wrong]))

    return first, capture, make


def test_what_it_sends_becomes_its_recording(guest):
    first, capture, make = guest
    source = make()

    source.start(capture, WANTED)
    found = source.stop()
    source.abandon()

    again = Recording.open(found.path)
    assert again.stamp.tolist() == first.stamp.tolist()
    assert all("dropped 1 events" in text for text in again.warnings)
    assert sorted(f.name for f in again.formats.values()) == sorted(f.name for f in first.formats.values())
    assert again.cmdlines == {7: "seven", 9: "nine: of"} and again.options.uname == "Linux guest 6.1 x86_64"
    assert (found.clock, found.cpus, found.events, found.lost, found.notes) == ("x86-tsc", 1, 10, 4, [])
    assert os.listdir(capture) == ["vm1.dat"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("refused", "Connection refused"),
        ("no root", "it needs root there"),
        ("noise", "Welcome"),
        ("huge", "99999999999 bytes"),
        ("cpus", "1000000 CPUs"),
    ],
)
def test_one_that_cannot_be_recorded_says_why(guest, wrong, said):
    _, capture, make = guest

    with pytest.raises(UsageError, match=said):
        make(wrong).start(capture, WANTED)


@pytest.mark.parametrize(("wrong", "said"), [("cut", "ended in the middle"), ("foreign CPU", "pages of CPU 77")])
def test_one_that_is_lost_leaves_what_came_until_then(guest, wrong, said):
    first, capture, make = guest
    source = make(wrong)

    source.start(capture, WANTED)
    found = source.stop()

    assert len(found.notes) == 1 and said in found.notes[0]
    assert 0 < len(Recording.open(found.path)) <= len(first)
    assert found.lost is None


def test_an_abandoned_one_ends(guest):
    _, capture, make = guest
    source = make()
    source.start(capture, WANTED)
    process = source._process

    source.abandon()
    source.abandon()

    assert process.returncode is not None


def test_a_program_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="cannot be run"):
        SshGuest("ssh://there", "vm1", "/no/such/ssh").start(tmp_path, WANTED)


def test_only_names_of_events_reach_the_shell(guest, monkeypatch):
    _, capture, make = guest
    seen = []
    monkeypatch.setattr(
        ssh.subprocess, "Popen", lambda line, **_: seen.append(line) or (_ for _ in ()).throw(OSError(2, "x"))
    )

    with pytest.raises(UsageError):
        make().start(capture, Wanted(["sched:*", "kvm:$(reboot)", "a;b:c"], "x86-tsc", 8, 1))

    words = shlex.split(seen[0][-1])
    assert words[:2] == ["sh", "-c"] and words[3] == SCRIPT
    assert words[4:] == ["x86-tsc", "8", "0", "sched:*"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_shell_can_parse_the_script(shell):
    done = subprocess.run([need_tool(shell), "-n", "-c", SCRIPT], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_formats_that_two_patterns_name_come_once():
    one = b"/t/events/kvm/kvm_exit/format:name: kvm_exit\n/t/events/kvm/kvm_exit/format:ID: 5\n"
    other = b"/t/events/irq/irq_x/format:name: irq_x\n/t/events/irq/irq_x/format:\n"

    found = formats_of(one + other + one + one + b"noise\n")

    assert found == [("irq", b"name: irq_x\n\n"), ("kvm", b"name: kvm_exit\nID: 5\n")]
