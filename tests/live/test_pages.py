"""The small decoder of sub-buffers against pages from the tests' own writer."""

from __future__ import annotations

import random

import pytest

from counterpoint.live.pages import events_of, lost_before, parse_format
from writers.ringbuffer import UNKNOWN, AbsoluteTime, Data, Discarded, Padding, Page, TimeExtend, pack_stream

WRITE = """name: kvm_write_tsc_offset
ID: 83
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;
\tfield:char name[16];\toffset:32;\tsize:16;\tsigned:0;
\tfield:__u64 next_tsc_offset;\toffset:24;\tsize:8;\tsigned:0;

print fmt: "vcpu=%u", REC->vcpu_id
"""


def test_a_format_is_read_and_an_event_decoded_by_it():
    read = parse_format(WRITE)

    fields = read.decode(
        (83).to_bytes(4, "little") + (-7).to_bytes(4, "little", signed=True) + bytes([1]) + bytes(15) + b"\xff" * 8
    )

    assert read.number == 83
    assert fields == {"common_type": 83, "common_pid": -7, "vcpu_id": 1, "next_tsc_offset": (1 << 64) - 1}
    with pytest.raises(ValueError, match="no ID"):
        parse_format("nothing")


def test_pages_as_the_kernel_packs_them():
    chance = random.Random(5)
    stamp, events = 1 << 50, []
    for _ in range(2000):
        stamp += chance.choice((0, 1, 500, 1 << 26, 1 << 40))
        events.append((stamp, bytes(chance.choices(range(256), k=4 * chance.randrange(2, 40)))))

    found = [event for page in pack_stream(events) for event in events_of(page)]

    assert [(s, p[: len(want)]) for (s, p), (_, want) in zip(found, events, strict=True)] == events


def test_records_of_every_kind():
    top = 5 << 59
    page = Page(top + 1000, [
        Data(0, b"a" * 8), TimeExtend(1 << 30), Data(5, b"b" * 8), Discarded(7, b"c" * 8),
        Data(1, b"d" * 120, long_form=True),
        AbsoluteTime(99), Data(0, b"e" * 8), Padding(16), Data(2, b"f" * 8), Padding(),
    ])  # fmt: skip

    found = [(stamp - top, payload[:1]) for stamp, payload in events_of(page.to_bytes())]

    late = 1000 + (1 << 30) + 5
    assert found == [(1000, b"a"), (late, b"b"), (late + 8, b"d"), (99, b"e"), (102, b"f")]


def test_loss_is_seen():
    assert lost_before(Page(1, [], missed=UNKNOWN).to_bytes())
    assert lost_before(Page(1, [], missed=3).to_bytes())
    assert not lost_before(Page(1, []).to_bytes())


def test_nonsense_does_no_harm():
    chance = random.Random(6)
    for _ in range(3000):
        page = bytes(chance.choices(range(256), k=chance.randrange(0, 200)))
        assert all(0 <= stamp < 1 << 64 for stamp, _ in events_of(page))
