"""trace-cmd's messages: as trace-cmd itself sends them, and whatever else may come."""

from __future__ import annotations

import random

import pytest

from counterpoint.live import wire
from counterpoint.live.wire import Command, Message, Reader, Request, Response, WireError, read_request, read_response

MUTATIONS = 10_000

# what trace-cmd 3.1.6 sent (record -A 127.0.0.1:8230 -e sched --file-version 6), and what its agent answered
REQUEST = (
    b'\0\0\0K\0\0\0\6\0\0\0\20\0\0\0\0\0\0\0\0w-\35\333=\35\5"'
    b"\0\0\0\0\0\0\0'\0\0\0\6-C\0local\0-e\0sched\0--file-version\x006\0"
)
RESPONSE = (
    b"\0\0\0>\0\0\0\7\0\0\0(\0\0\0\0\0\0\0\2\0\0\20\0gBM\211<uU\223" + bytes(16) + b"\0\0\0\0" + b"1500\x001501\0"
)


def one(data: bytes) -> Message:
    (message,) = Reader().feed(data)
    return message


def test_what_trace_cmd_sends_is_read():
    assert read_request(one(REQUEST)) == Request(
        ("-C", "local", "-e", "sched", "--file-version", "6"), 0x772D1DDB3D1D0522, fifos=False
    )
    assert read_response(one(RESPONSE)) == Response(4096, 0x67424D893C755593, (1500, 1501))


def test_what_is_sent_is_what_trace_cmd_sends():
    asked = read_request(one(REQUEST))

    assert wire.request(asked.arguments, asked.trace_id).encode() == REQUEST
    assert read_response(one(RESPONSE)).message().encode() == RESPONSE
    assert Message(Command.CLOSE).encode() == bytes([0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0])


def test_messages_come_in_any_pieces_and_fixed_parts_may_grow():
    longer = Message(Command.TRACE_REQ, one(REQUEST).fixed + b"what a later version adds", one(REQUEST).payload)
    sent = [one(REQUEST), longer, Message(Command.SEND_DATA, b"", bytes(wire.MAX_PAYLOAD)), Message(99, b"", b"new")]
    stream = b"".join(message.encode() for message in sent)
    reader = Reader()

    got = [message for at in range(len(stream)) for message in reader.feed(stream[at : at + 1])]

    assert got == sent and len(reader) == 0
    assert read_request(got[1]) == read_request(got[0])


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ((11, 0, 0), "11 bytes"), ((8193, 3, 0), "8193 bytes"), ((0xFFFFFFFF, 3, 0), "bytes"),
        ((12, 3, 1), "fixed part has 1"), ((100, 3, 0xFFFFFFFF), "fixed part"), ((100, 6, 15), "fixed part of 15"),
        ((12, 7, 0), "TRACE_RESP"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused_before_its_body(header, said):
    with pytest.raises(WireError, match=said):
        Reader().feed(wire._HEADER.pack(*header))


@pytest.mark.parametrize(
    "payload",
    [
        b"\0", b"\0\0\0\0\0\0\0\xff", b"\0\0\0\0\0\0\0\3\0\0\0", b"\0\0\0\0\0\0\0\7\0\0\0\1abc",
        b"\0\0\0\0\0\0\0\6\0\0\0\2a\0", b"\0\0\0\0\0\0\0\6\xff\xff\xff\xffa\0", b"\0\0\0\0\0\0\0\6\0\0\0\1\xff\0",
        b"\0\0\0\1\0\0\0\1x",
    ],
)  # fmt: skip
def test_a_request_that_contradicts_itself_is_refused(payload):
    with pytest.raises(WireError):
        read_request(Message(Command.TRACE_REQ, bytes(16), payload))


def test_parameters_that_are_not_known_are_passed_over():
    payload = b"\0\0\0\7\0\0\0\4abcd" + one(REQUEST).payload + b"\0\0\0\1\0\0\0\5ptp\0\0"

    asked = read_request(Message(Command.TRACE_REQ, bytes(16), payload))

    assert asked.arguments[-1] == "6" and asked.protocols == ("ptp",)


@pytest.mark.parametrize(
    ("cpus", "page", "ports"),
    [(0, 4096, b""), (2, 4096, b"1500\0"), (1 << 20, 4096, b"1\0"), (1, 0, b"1\0"), (1, 4097, b"1\0"),
     (1, 1 << 30, b"1\0"), (1, 4096, b"15x\0"), (1, 4096, b"1500"), (1, 4096, b"99999999999\0")],
)  # fmt: skip
def test_a_response_that_cannot_be_is_refused(cpus, page, ports):
    with pytest.raises(WireError):
        read_response(Message(Command.TRACE_RESP, wire._RESPONSE.pack(0, cpus, page, 1, b"", 0), ports))


def test_a_message_that_is_too_long_is_not_sent():
    with pytest.raises(WireError, match="8193"):
        Message(Command.SEND_DATA, b"", bytes(wire.MAX_PAYLOAD + 1)).encode()


def test_mutated_messages_are_read_or_refused():
    draw = random.Random(6)
    counts = {"read": 0, "refused": 0, "waits": 0}
    for number in range(MUTATIONS):
        data = bytearray(draw.choice([REQUEST, RESPONSE, REQUEST + RESPONSE]))
        for _ in range(draw.choice([1, 2, 5])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if number % 5 == 0:
            del data[draw.randrange(len(data)) :]
        reader = Reader()
        try:
            messages = reader.feed(bytes(data))
            assert len(reader) <= wire.MAX_SIZE
            for message in messages:
                if message.command == Command.TRACE_REQ:
                    read_request(message)
                elif message.command == Command.TRACE_RESP:
                    read_response(message)
            counts["read" if messages else "waits"] += 1
        except WireError:
            counts["refused"] += 1

    assert min(counts.values()) > MUTATIONS // 20
