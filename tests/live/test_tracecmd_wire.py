"""trace-cmd's protocol, spoken on both sides by us; with trace-cmd itself it is tried in test_guests.py."""

from __future__ import annotations

import random
import socket
import time
from contextlib import suppress

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import links, wire
from counterpoint.live.guests import Wanted
from counterpoint.live.links import Listener, parse
from counterpoint.live.serving import READABLE, Over
from counterpoint.live.tracecmd_agent import TraceCmdClient, understood
from counterpoint.live.tracecmd_guest import TraceCmdGuest, arguments_of, missed, split
from counterpoint.live.wire import Command, Message
from live.agents import hybrid, tracecmd_tcp_agent
from live.test_agent import WANTED, mutated, out_folder, recorded, same_events  # noqa: F401 (a fixture)

CLOCKS = ["local", "x86-tsc"]


@pytest.mark.parametrize("way", ["tcp", "hybrid vsock"])
def test_the_same_recording_arrives(tmp_path, recorded, way):  # noqa: F811
    first, tracer = recorded
    folder = out_folder(tmp_path)

    def take(url):
        guest = TraceCmdGuest(url, "guest")
        guest.start(folder, WANTED)
        return guest.stop()

    with tracecmd_tcp_agent(tracer) as inner:
        if way == "tcp":
            found = take(inner)
        else:
            with hybrid(tmp_path, inner) as url:
                found = take(url)

    same_events(found.path, first)
    assert (found.events, found.cpus, found.notes) == (None, 2, [])
    assert tracer.asked == (["sched", "*:sched", "irq:*"], "x86-tsc", 4096)
    assert tracer.journal == ["made", "described", "began", "ended", "closed"]
    assert [path.name for path in folder.iterdir()] == ["guest.dat"]


def test_what_is_understood_of_trace_cmd_record():
    asked = ["-C", "x86-tsc", "-e", "sched", "-e", "irq:irq_handler_*", "-b", "512", "-i", "--file-version", "7"]

    assert understood(asked, CLOCKS) == (["sched", "*:sched", "irq:irq_handler_*"], "x86-tsc", 512)
    assert understood(["-e", "all"], CLOCKS) == (["*"], "local", 1408)
    wanted = Wanted(["kvm", "sched:*"], "x86-tsc", 64, 5)
    assert understood(arguments_of(wanted), CLOCKS) == (["kvm", "*:kvm", "sched:*"], "x86-tsc", 64)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-e", "sched", "reboot"], ["-e", "sched", "--", "sh"], ["-p", "function"], ["-F", "ls"], ["-P", "1"],
        ["-e", "sched", "-f", "x"], ["-e", "sched", "-R", "stacktrace"], ["-l", "*"], ["-O", "x"], ["-B", "x"],
        ["--user", "root"], ["-e"], ["-e", "a b"], ["-e", "../x"], ["-C", "x86-tsc\n"], ["-e", "sched", "-C", "none"],
        ["-e", "sched", "-b", "-1"], ["-e", "sched", "-b", "99999999"], ["-e", "sched", "--file-version", "9"], [],
    ],
)  # fmt: skip
def test_nothing_else_is_understood(arguments):
    with pytest.raises(UsageError):
        understood(arguments, CLOCKS)


def test_a_request_that_is_refused_makes_nothing(tmp_path, recorded):  # noqa: F811
    _, tracer = recorded
    said: list[str] = []
    with tracecmd_tcp_agent(tracer, said) as url:
        link = links.connect(parse(url))
        link.sendall(wire.request(["-e", "sched", "reboot"], 5).encode())
        assert link.recv(100) == Message(Command.NOT_SUPP).encode() and link.recv(100) == b""
        link.close()
        with pytest.raises(UsageError, match="does not do what was asked"):
            guest = TraceCmdGuest(url, "guest")
            try:
                guest.start(out_folder(tmp_path), Wanted(["sched"], "sundial", 64, 5))
            finally:
                guest.abandon()

    assert "began" not in tracer.journal and tracer.journal.count("made") == tracer.journal.count("closed")
    assert any("reboot" in text for text in said)


@pytest.mark.parametrize("command", [Command.TRACE_PROXY, Command.TIME_SYNC, Command.TINIT, Command.CLOSE, 77])
def test_other_messages_are_not_supported(recorded, command):  # noqa: F811
    _, tracer = recorded
    with tracecmd_tcp_agent(tracer) as url:
        link = links.connect(parse(url))
        link.sendall(Message(command, bytes(24), b"x").encode())
        assert link.recv(100) == Message(Command.NOT_SUPP).encode() and link.recv(100) == b""
        link.close()
    assert tracer.journal == []


def test_what_trace_cmd_cannot_do_is_said(tmp_path):
    with pytest.raises(UsageError, match="listens at ports"):
        TraceCmdGuest("serial:///dev/ttyS0", "guest")


def test_a_client_that_never_connects_to_the_cpus_is_dropped(recorded, monkeypatch):  # noqa: F811
    _, tracer = recorded
    monkeypatch.setattr("counterpoint.live.tracecmd_agent.CONNECT_SECONDS", 0.2)
    with tracecmd_tcp_agent(tracer) as url:
        link = links.connect(parse(url))
        link.sendall(wire.request(["-e", "sched"], 5).encode())
        for _ in range(200):
            if "closed" in tracer.journal:
                break
            time.sleep(0.02)
        link.close()
    assert tracer.journal[-1] == "closed"


def test_mutated_messages_make_no_traceback(recorded):  # noqa: F811
    _, tracer = recorded
    draw = random.Random(7)
    ended = 0
    for _ in range(300):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        client = TraceCmdClient(far, "attacker", tracer, lambda: Listener(parse("tcp://127.0.0.1:0")), lambda: False)
        try:
            near.send(mutated(draw, wire.request(["-e", "sched", "-C", "local"], 5).encode()) or b"x")
            client.turn({far.fileno(): READABLE})
            near.send(mutated(draw, Message(draw.choice([0, 3, 4, 9, 10]), b"", b"data").encode()) or b"x")
            client.turn({far.fileno(): READABLE})
        except Over:
            ended += 1
        finally:
            with suppress(OSError):
                client.close()
            near.close()

    assert ended > 90
    assert tracer.journal.count("made") == tracer.journal.count("closed")
    # whatever was asked, if it was understood, was a list of events
    assert all(text in {"made", "described", "began", "ended", "closed"} for text in tracer.journal)


def test_the_head_of_another_machine_is_refused(recorded):  # noqa: F811
    _, tracer = recorded
    tracer.asked = (["sched"], "local", 64)
    whole = tracer.head() + b"\0" * 8 + b"\2\0\0\0" + b"options  \0\0\0"
    head, cmdlines, cpus, options = split(whole, "url")
    assert (head, cmdlines, cpus, options) == (tracer.head(), b"", 2, [])

    for cut in range(0, len(whole), 97):
        with pytest.raises(UsageError, match="url: "):
            split(whole[:cut], "url")
    other = bytearray(whole)
    other[12] ^= 1
    with pytest.raises(UsageError, match="byte order"):
        split(bytes(other), "url")
    draw = random.Random(8)
    for _ in range(500):
        with suppress(UsageError):
            split(mutated(draw, whole), "url")


def test_missed_events_are_counted(tmp_path):
    def page(commit: int, count: int | None) -> bytes:
        data = bytearray(4096)
        data[8:16] = commit.to_bytes(8, "little")
        if count is not None:
            end = 16 + (commit & 0xFFFF)
            data[end : end + 8] = count.to_bytes(8, "little")
        return bytes(data)

    one, other, none = tmp_path / "one", tmp_path / "other", tmp_path / "none"
    one.write_bytes(page(100, None) + page(1 << 31 | 1 << 30 | 200, 7) + page(1 << 31 | 1 << 30 | 8, 5))
    other.write_bytes(page(1 << 31 | 4080, None))
    none.touch()

    assert missed([one, none], 4096) == 12
    assert missed([one, other], 4096) is None
