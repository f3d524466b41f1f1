"""Only who has the secret can make a frame, each counts once, and nothing of the secret is on the wire."""

from __future__ import annotations

import random

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import frames
from counterpoint.live.frames import FrameError, Receiver, Sender

SECRET = b"sixteen bytes at least"


def pair(**limits):
    nonce, own = frames.new_nonce(), frames.new_nonce()
    key, _ = frames.keys(SECRET, nonce, own)
    return Sender(key), Receiver(key, **limits)


def test_frames_arrive_in_any_pieces():
    sender, receiver = pair()
    sent = [({"cpu": n}, bytes([n]) * n * 100) for n in range(20)]
    stream = b"".join(sender.encode(header, data) for header, data in sent)
    draw = random.Random(1)
    got = []
    at = 0
    while at < len(stream):
        step = draw.choice([1, 3, 50, 5000])
        got += [(frame.header, frame.data) for frame in receiver.feed(stream[at : at + step])]
        at += step

    assert got == sent
    assert receiver.held() == b""


@pytest.mark.parametrize("what", ["flipped", "twice", "left out", "other key", "back to the sender"])
def test_a_frame_that_is_not_the_next_one_of_this_session_is_refused(what):
    sender, receiver = pair()
    first, second = sender.encode({"do": "record"}, b"pages"), sender.encode({"do": "stop"})
    assert len(list(receiver.feed(first))) == 1
    bad = {
        "flipped": second[:-1] + bytes([second[-1] ^ 1]),
        "twice": first,
        "left out": sender.encode({"do": "stop"}),
        "other key": Sender(b"k" * 32, 1).encode({"do": "stop"}),
        "back to the sender": Sender(frames.keys(SECRET, b"n", b"o")[1], 1).encode({"do": "stop"}),
    }[what]

    with pytest.raises(FrameError, match="tag"):
        list(receiver.feed(bad))


def test_every_single_flipped_bit_is_seen():
    sender, _ = pair()
    key = sender.key
    whole = Sender(key).encode({"do": "describe"}, b"12345")
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        receiver = Receiver(key, 1 << 10, 1 << 10)
        try:
            assert list(receiver.feed(bytes(changed))) == []
        except FrameError:
            continue
        # a length that grew: it waits for the rest, and takes nothing
        assert bit < 64


def test_lengths_are_bounded_before_anything_is_held():
    _, receiver = pair(max_header=256, max_data=0)
    for header, data in ((257, 0), (1, 0), (0, 0), (16, 1), (1 << 31, 0), (16, (1 << 32) - 1)):
        with pytest.raises(FrameError, match="a frame of"):
            list(Receiver(receiver.key, 256, 0).feed(header.to_bytes(4, "big") + data.to_bytes(4, "big") + bytes(16)))


@pytest.mark.parametrize("text", [b"[1]", b'"x"', b"{ ", b"\xff\xff", b"[" * 5000])
def test_a_header_with_a_right_tag_that_is_no_object_is_refused(text):
    _, receiver = pair()
    prefix = len(text).to_bytes(4, "big") + bytes(4)
    tag = frames._tag(receiver.key, 0, prefix, text, b"")

    with pytest.raises(FrameError, match="JSON"):
        list(receiver.feed(prefix + tag + text))


def test_greetings():
    nonce, own = frames.new_nonce(), frames.new_nonce()

    assert len(frames.greet(nonce)) == frames.CLIENT_LINE and len(frames.answer(nonce, own)) == frames.AGENT_LINE
    assert frames.read_greeting(frames.greet(nonce)) == nonce
    assert frames.read_answer(frames.answer(nonce, own), nonce) == own
    assert frames.read_answer(frames.answer(own, nonce), nonce) is None
    assert frames.read_greeting(b"counterpoint-agent 2 " + nonce + b"\n") is None
    to_agent, to_client = frames.keys(SECRET, nonce, own)
    assert len({to_agent, to_client, frames.keys(SECRET, own, nonce)[0], frames.keys(b"other", nonce, own)[0]}) == 4


def test_a_secret_is_read_from_a_file_of_its_owners(tmp_path):
    path = tmp_path / "secret"
    with pytest.raises(UsageError, match=r"No such file.*urandom"):
        frames.read_secret(path)
    path.write_bytes(b" 0123456789abcdef\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        frames.read_secret(path)
    path.chmod(0o600)
    assert frames.read_secret(path) == b"0123456789abcdef"
    path.write_bytes(b"short\n")
    with pytest.raises(UsageError, match="has 5"):
        frames.read_secret(path)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(UsageError, match="16 to 4096"):
        frames.read_secret(path)
