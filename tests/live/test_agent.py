"""A guest over our own agent: the same recording at the other end, and nothing for who does not have the secret."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import socket
import threading
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from counterpoint.errors import UsageError
from counterpoint.live import folder as parts_of
from counterpoint.live import frames, links, serving, tracedat
from counterpoint.live.agent import Client
from counterpoint.live.agent_guest import AgentGuest
from counterpoint.live.frames import Receiver, Sender
from counterpoint.live.guests import Wanted
from counterpoint.live.serving import MAX_STRANGERS, READABLE, Over
from counterpoint.traces.recording import Recording
from live.agents import SECRET, hybrid, serial_agent, tcp_agent
from live.fake_tracefs import cpu_files, fake_tracefs
from live.fake_tracer import FakeTracer
from writers.worlds import tiny_pair

WANTED = Wanted(["sched", "irq:*"], "x86-tsc", 4096, 77)
MUTATIONS = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 2_000


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """(a recording, a tracer whose machine it is from)."""
    monkeypatch.setitem(tracedat._SOURCE, "kallsyms", tmp_path / "kallsyms")
    first = Recording.open(tiny_pair(lost=5, version=6)[0].write(tmp_path / "first.dat"))
    root = fake_tracefs(tmp_path / "tracing", first)
    pages = {cpu: path.read_bytes() for cpu, path in cpu_files(tmp_path / "pages", first).items()}
    return first, FakeTracer(root, pages, page_size=first.page_size if hasattr(first, "page_size") else 4096)


def same_events(path: Path, first: Recording) -> None:
    other = Recording.open(path)
    assert len(other) == len(first) > 0
    assert np.array_equal(other.stamp, first.stamp) and other.cmdlines == first.cmdlines
    assert np.array_equal(other.event_id, first.event_id)


def out_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "capture"
    folder.mkdir(exist_ok=True)
    return folder


def take(url: str, folder: Path, secret: bytes = SECRET):
    guest = AgentGuest(url, "guest", secret)
    guest.start(folder, WANTED)
    return guest.stop()


@pytest.mark.parametrize("way", ["tcp", "serial", "hybrid vsock"])
def test_the_same_recording_arrives(tmp_path, recorded, way):
    first, tracer = recorded
    folder = out_folder(tmp_path)

    if way == "serial":
        with serial_agent(tracer) as url:
            found = take(url, folder)
    else:
        with tcp_agent(tracer) as inner:
            if way == "tcp":
                found = take(inner, folder)
            else:
                with hybrid(tmp_path, inner) as url:
                    found = take(url, folder)

    same_events(found.path, first)
    assert (found.events, found.lost, found.cpus, found.notes) == (10, 1, 2, [])
    assert tracer.asked == (["sched", "irq:*"], "x86-tsc", 4096)
    assert tracer.journal == ["made", "described", "began", "ended", "closed"]
    assert [path.name for path in folder.iterdir()] == ["guest.dat"]


def test_a_wrong_secret_does_nothing(tmp_path, recorded):
    _, tracer = recorded
    said: list[str] = []
    with tcp_agent(tracer, said) as url, pytest.raises(UsageError, match="the same secret"):
        take(url, out_folder(tmp_path), b"another secret, as long")

    assert tracer.journal == []
    assert any("tag is wrong" in text for text in said)


def test_what_is_no_agent_is_said_to_be_none(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(1000)
                link.sendall(b"SSH-2.0-something" + b"x" * 200)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UsageError, match="no counterpoint agent"):
            take(f"tcp://127.0.0.1:{listener.getsockname()[1]}", out_folder(tmp_path))
        thread.join()


def test_one_client_at_a_time_and_the_next_afterwards(tmp_path, recorded):
    first, tracer = recorded
    folder = out_folder(tmp_path)
    with tcp_agent(tracer) as url:
        one = AgentGuest(url, "one", SECRET)
        one.start(folder, WANTED)
        with pytest.raises(UsageError, match="one at a time"):
            take(url, folder)
        one.abandon()
        one.abandon()
        # it needs a moment to see that the first is gone
        for _ in range(50):
            with suppress(UsageError):
                found = take(url, folder)
                break
            time.sleep(0.02)
    same_events(found.path, first)
    assert tracer.journal.count("made") == tracer.journal.count("closed") == 2


def test_a_client_that_dies_leaves_nothing(tmp_path, recorded):
    _, tracer = recorded
    with tcp_agent(tracer) as url:
        guest = AgentGuest(url, "guest", SECRET)
        guest.start(out_folder(tmp_path), WANTED)
        guest._link.close()
        for _ in range(100):
            if "closed" in tracer.journal:
                break
            time.sleep(0.02)
        assert tracer.journal[-1] == "closed"


def test_a_guest_that_dies_leaves_what_was_received(tmp_path, recorded):
    first, tracer = recorded
    folder = out_folder(tmp_path)
    with tcp_agent(tracer) as url:
        guest = AgentGuest(url, "guest", SECRET)
        guest.start(folder, WANTED)
        size = sum(len(data) for data in tracer._pages.values())
        for _ in range(200):
            if guest._bytes == size and guest._has_head:
                break
            time.sleep(0.02)
        # what a recorder that is killed now leaves can be put together
        assert parts_of.is_unfinished(folder)
    found = guest.stop()

    assert "lost before the end" in found.notes[0]
    assert len(Recording.open(found.path)) == len(first)


def test_after_a_client_died_amid_a_session_a_serial_device_takes_the_next(tmp_path, recorded):
    first, tracer = recorded
    with serial_agent(tracer) as url:
        guest = AgentGuest(url, "gone", SECRET)
        guest.start(out_folder(tmp_path), WANTED)
        # it stops to speak, and nothing tells the agent so
        guest._is_whole = True
        guest._thread.join()
        guest._close()
        found = take(url, out_folder(tmp_path))

    same_events(found.path, first)
    assert tracer.journal.count("made") == tracer.journal.count("closed") == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"events": ["sched; rm -rf /"]}, "no SYSTEM"),
        ({"events": ["../../etc/passwd"]}, "no SYSTEM"),
        ({"events": []}, "1 to 256"),
        ({"events": ["a"] * 257}, "1 to 256"),
        ({"clock": "x86-tsc\n"}, "no name of a trace clock"),
        ({"clock": "sundial"}, "no trace clock sundial"),
        ({"buffer_kb": 1}, "KB for each CPU"),
        ({"buffer_kb": True}, "a number"),
        ({"buffer_kb": 1e9}, "a number"),
        ({"do": "exec"}, "describe, record, stop and ping"),
        ({"do": ["record"]}, "describe, record, stop and ping"),
        ({"do": "stop"}, "nothing is recorded"),
    ],
)
def test_what_a_client_with_the_secret_may_not_ask(recorded, changed, said):
    _, tracer = recorded
    session = Talk(tracer)
    assert session.ask({"do": "ping"}) == [{"pong": True}]
    request = {"do": "record", "events": ["sched"], "clock": "local", "buffer_kb": 64, **changed}

    answers = session.ask(request)

    assert said in answers[0]["error"]
    assert "began" not in tracer.journal
    session.end()


class Talk:
    """A client that speaks frame by frame with an agent, which has its turn when this says so."""

    def __init__(self, tracer, secret: bytes = SECRET) -> None:
        self.near, far = socket.socketpair()
        far.setblocking(False)
        self.near.setblocking(False)
        self.client = Client(far, "test", SECRET, tracer, lambda: False)
        self.far = far
        nonce = frames.new_nonce()
        line = self.say(frames.greet(nonce))
        self.greetings = frames.greet(nonce) + line
        own = frames.read_answer(line, nonce)
        assert own is not None
        to_agent, to_client = frames.keys(secret, nonce, own)
        self.sender, self.receiver = Sender(to_agent), Receiver(to_client)

    def say(self, data: bytes) -> bytes:
        self.near.send(data)
        self.client.turn({self.far.fileno(): READABLE})
        with suppress(BlockingIOError):
            return self.near.recv(1 << 16)
        return b""

    def ask(self, header) -> list[dict]:
        return [frame.header for frame in self.receiver.feed(self.say(self.sender.encode(header)))]

    def end(self) -> None:
        self.client.close()
        self.near.close()


def mutated(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(out)) if out else 0
        kind = draw.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and out:
            out[at] = draw.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = draw.randbytes(draw.choice([1, 4, 100]))
        elif kind == 4:
            out += out[: draw.choice([8, 64])]
        elif out:
            out[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"])
    return bytes(out)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_mutated_messages_do_nothing_and_hold_nothing():
    """Greetings and first frames of all kinds of wrongness: no traceback, no memory, no tracer."""
    draw = random.Random(4)
    done: list[str] = []

    def attack() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        client = Client(far, "attacker", SECRET, lambda: done.append("made"), lambda: False)
        nonce = frames.new_nonce()
        greeting = frames.greet(nonce)
        if draw.random() < 0.3:
            greeting = mutated(draw, greeting)
        try:
            near.send(greeting or b"x")
            client.turn({far.fileno(): READABLE})
            line = b""
            with suppress(BlockingIOError):
                line = near.recv(1000)
            own = frames.read_answer(line, nonce)
            # half of them have another secret; the others change what somebody with the right one has sent
            is_changed = own is not None and draw.random() < 0.5
            key = frames.keys(SECRET if is_changed else b"some other secret", nonce, own or b"0" * 64)[0]
            text = {"do": "record", "events": ["sched"], "clock": "local", "buffer_kb": 64}
            whole = Sender(key).encode(text)
            frame = mutated(draw, whole)
            if is_changed and frame.startswith(whole):
                # (a change behind it: the frame itself is sound)
                return
            near.send(frame or b"x")
            client.turn({far.fileno(): READABLE})
            client.turn({})
        except Over:
            pass
        finally:
            assert len(client._line) < 1 << 17 and (client._receiver is None or len(client._receiver.held()) < 1 << 10)
            client.close()
            near.close()

    for _ in range(300):
        attack()
    tracemalloc.start()
    before, held = resident(), tracemalloc.get_traced_memory()[0]
    for _ in range(MUTATIONS // 10):
        attack()
    grown = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    for _ in range(MUTATIONS - MUTATIONS // 10):
        attack()

    assert done == []
    assert grown < 64 << 10
    assert resident() - before < 8 << 20


def test_mutated_requests_of_a_friend_are_answered_or_refused(recorded):
    """Frames with a right tag whose requests are any JSON: an answer each, or the end; never more than the list."""
    _, tracer = recorded
    draw = random.Random(5)
    values = [None, True, 0, -1, 1 << 70, 1.5, "", "sched", "\0", "x" * 3000, [], ["sched"], [[]], {}, {"do": "stop"}]
    talk = Talk(tracer)
    talk.ask({"do": "ping"})
    for _ in range(2000):
        keys = ["do", "events", "clock", "buffer_kb", "flight"]
        request = {draw.choice(keys): draw.choice(values) for _ in range(draw.randrange(6))}
        if draw.random() < 0.7:
            request["do"] = draw.choice(["record", "describe", "ping", "stop", "Record"])
        answers = talk.ask(request)
        assert len(answers) == 1 and ("error" in answers[0] or answers[0].keys() & {"pong", "machine"}), request
    talk.end()

    assert set(tracer.journal) <= {"made", "described", "closed"}
    assert tracer.journal.count("made") == tracer.journal.count("closed")


def test_oversized_messages_end_the_connection(recorded):
    _, tracer = recorded
    big = json.dumps({"do": "describe", "x": "y" * 300})
    for make in (
        lambda talk: talk.say(b"\0\x10\0\0" + bytes(100_000)),
        lambda talk: talk.say(b"\0\0\0\x10\xff\xff\xff\xff" + bytes(32)),
        lambda talk: talk.ask(json.loads(big)),
        lambda talk: talk.say(talk.sender.encode({"do": "describe"}, b"data")),
    ):
        talk = Talk(tracer)
        with pytest.raises(Over, match="a frame of"):
            make(talk)
        talk.end()
    assert tracer.journal == []


def test_strangers_that_say_nothing_keep_nobody_out(tmp_path, recorded):
    first, tracer = recorded
    said: list[str] = []
    with tcp_agent(tracer, said) as url:
        port = links.parse(url).port
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * MAX_STRANGERS)]
        for link in silent[:5]:
            with suppress(OSError):
                link.sendall(frames.GREETING)
        # while they are there
        found = take(url, out_folder(tmp_path))
        for link in silent:
            link.close()
    same_events(found.path, first)
    assert sum("too many" in text for text in said) >= 2 * MAX_STRANGERS


def test_what_strangers_do_fills_no_log():
    said: list[str] = []
    now = [0.0]
    rationed = serving.Rationed(said.append, 3, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.time, "monotonic", lambda: now[0])
        for _ in range(1000):
            rationed("a stranger")
        now[0] = 11
        rationed("another")

    assert said == ["a stranger"] * 3 + ["more like these are counted for 10 s", "997 more like these", "another"]


def test_a_slow_greeting_ends_in_time(recorded, monkeypatch):
    _, tracer = recorded
    monkeypatch.setattr("counterpoint.live.agent.GREETING_SECONDS", 0.3)
    with tcp_agent(tracer) as url:
        link = socket.create_connection(("127.0.0.1", links.parse(url).port))
        begun = time.monotonic()
        with suppress(OSError):
            for byte in frames.greet(frames.new_nonce()):
                link.sendall(bytes([byte]))
                time.sleep(0.02)
        link.settimeout(5)
        with suppress(ConnectionError):
            assert link.recv(1) == b""
        assert time.monotonic() - begun < 4
        link.close()
    assert tracer.journal == []


@pytest.mark.parametrize("how", ["says nothing more", "takes nothing more"])
def test_a_friend_that_falls_silent_is_dropped_and_its_instance_removed(tmp_path, recorded, monkeypatch, how):
    _, tracer = recorded
    tracer._endless = how == "takes nothing more"
    tracer._pages = {0: bytes(1 << 18)} if tracer._endless else tracer._pages
    monkeypatch.setattr("counterpoint.live.agent.SILENCE_SECONDS", 0.25 if how == "says nothing more" else 60)
    monkeypatch.setattr(serving, "STUCK_SECONDS", 0.25)
    said: list[str] = []
    with tcp_agent(tracer, said) as url:
        guest = AgentGuest(url, "guest", SECRET)
        guest._run = lambda: None
        guest.start(out_folder(tmp_path), WANTED)
        for _ in range(400):
            if "closed" in tracer.journal:
                break
            time.sleep(0.02)
        guest.abandon()
    assert tracer.journal[-1] == "closed" and any("for too long" in text for text in said)


def test_what_waits_for_a_slow_client_is_bounded(recorded):
    _, tracer = recorded
    tracer._endless = True
    tracer._pages = {0: bytes(1 << 18)}
    talk = Talk(tracer)
    talk.ask({"do": "record", "events": ["sched"], "clock": "local", "buffer_kb": 64})
    for _ in range(200):
        talk.client.turn(dict.fromkeys(tracer.pipes(), READABLE))
        assert len(talk.client._outbox) < serving.OUTBOX + frames.MAX_DATA
    talk.end()
    assert tracer.journal[-1] == "closed"


def test_the_secret_is_not_on_the_wire(recorded):
    _, tracer = recorded
    talk = Talk(tracer)
    seen = talk.greetings
    for request in ({"do": "describe"}, {"do": "ping"}, {"do": "stop"}):
        sent = talk.sender.encode(request)
        seen += sent + talk.say(sent)
    talk.end()

    assert len(seen) > 500
    for derived in (SECRET, talk.sender.key, talk.receiver.key, hashlib.sha256(SECRET).digest()):
        for form in (derived, derived.hex().encode(), base64.b64encode(derived)):
            assert form not in seen and form[:8] not in seen


def test_a_request_that_makes_no_sense_ends_no_recording(recorded):
    _, tracer = recorded
    talk = Talk(tracer)
    talk.ask({"do": "ping"})
    request = {"do": "record", "events": ["sched"], "clock": "local", "buffer_kb": 64}
    assert talk.ask(request)[0]["recording"] == 3
    for _ in range(20):
        talk.client.turn({})
        with suppress(BlockingIOError):
            list(talk.receiver.feed(talk.near.recv(1 << 22)))

    assert "one at a time" in talk.ask(request)[0]["error"]
    assert "describe, record" in talk.ask({"do": "exec"})[0]["error"]
    assert tracer.journal[-1] == "began"
    talk.ask({"do": "stop"})
    assert "ended" in tracer.journal
    talk.end()
    assert tracer.journal[-1] == "closed"


ARM64_LINE = {"name": "mono_raw", "mult": 699050667, "shift": 24, "base": -13219025047689989}


@pytest.mark.parametrize(
    ("machine", "said", "expected"),
    [
        ("aarch64", ARM64_LINE, {**ARM64_LINE, "source": "the guest's vDSO page"}),
        ("x86_64", ARM64_LINE, None),
        ("aarch64", {"name": "mono_raw"}, None),
        ("aarch64", {**ARM64_LINE, "base": 1 << 100}, None),
        ("aarch64", {**ARM64_LINE, "base": True}, None),
        ("aarch64", {**ARM64_LINE, "mult": "699050667"}, None),
        ("aarch64", {**ARM64_LINE, "shift": 1000}, None),
        ("aarch64", [1, 2, 3], None),
    ],
)
def test_what_an_arm64_guest_says_of_its_stamps_is_kept_if_it_is_that(tmp_path, recorded, machine, said, expected):
    _, tracer = recorded
    tracer.more = {"machine": machine, "mono_raw": said}
    with tcp_agent(tracer) as url:
        guest = AgentGuest(url, "guest", SECRET)
        guest.start(out_folder(tmp_path), replace(WANTED, clock="mono_raw"))
        assert guest.stop().line == expected


def test_an_agent_that_takes_long_to_begin_has_not_been_left_alone_meanwhile(tmp_path, recorded, monkeypatch):
    _, tracer = recorded
    monkeypatch.setattr("counterpoint.live.agent.SILENCE_SECONDS", 0.4)
    begin = tracer.begin
    monkeypatch.setattr(tracer, "begin", lambda *wanted: (time.sleep(0.6), begin(*wanted))[1])

    with tcp_agent(tracer) as url:
        found = take(url, out_folder(tmp_path))

    assert found.notes == [] and found.lost == 1
