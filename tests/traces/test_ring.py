"""Ring-buffer pages to columns, against a reader that takes one record at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterpoint.traces.ring import MISSED_UNKNOWN, Scan, scan_pages
from writers.ringbuffer import (
    MAX_DELTA,
    MISSED_EVENTS,
    MISSED_STORED,
    UNKNOWN,
    AbsoluteTime,
    Data,
    Discarded,
    Padding,
    Page,
    Record,
    TimeExtend,
)

ABI = [(big_endian, long_size) for big_endian in (False, True) for long_size in (4, 8)]
SIZES = (4096, 8192, 16384, 32768, 65536)
FAR = 2**59
U64 = (1 << 64) - 1


@dataclass
class Plain:
    """What the slow reader found in one page: (stamp, place, length) of each record."""

    records: list[tuple[int, int, int]] = field(default_factory=list)
    missed: int = 0
    damaged: bool = False


def read_page(page: bytes, big_endian: bool, long_size: int) -> Plain:
    """Read one page as the kernel's comments describe it, word by word."""
    out = Plain()

    def number(at: int, size: int) -> int:
        return int.from_bytes(page[at : at + size], "big" if big_endian else "little")

    start = 8 + long_size
    if len(page) < start:
        out.damaged = True
        return out
    now = number(0, 8)
    commit = number(8, long_size)
    end = start + commit % (1 << 27)
    if end > len(page):
        out.damaged = True
        end = len(page)
    if commit & MISSED_EVENTS:
        count = -1
        if commit & MISSED_STORED and end + long_size <= len(page):
            count = number(end, long_size)
        half = 1 << (8 * long_size - 1)
        out.missed = count if 0 < count < half else MISSED_UNKNOWN
    at = start
    while at + 4 <= end:
        word = number(at, 4)
        kind, delta = (word >> 27, word % MAX_DELTA) if big_endian else (word % 32, word >> 5)
        at += 4
        if kind == 29:
            now = (now + delta) & U64
            if delta == 0:
                break
            length = max(4, number(at, 4) & ~3)  # it counts its own word
            if at + length > end:
                out.damaged = True
                break
            at += length
            continue
        if 1 <= kind <= 28:
            now = (now + delta) & U64
            length = 4 * kind
            if at + length > end:
                out.damaged = True
                break
            out.records.append((now, at, length))
            at += length
            continue
        if at + 4 > end:
            out.damaged = True
            break
        word = number(at, 4)
        at += 4
        if kind == 30:
            now = (now + (word << 27) + delta) & U64
        elif kind == 31:
            stamp = (now >> 59 << 59) + (word << 27) + delta
            if now - stamp > FAR // 2:
                stamp += FAR
            now = stamp & U64
        else:
            now = (now + delta) & U64
            length = max(0, (word - 4 + 3) // 4 * 4)
            if at + length > end:
                out.damaged = True
                break
            out.records.append((now, at, length))
            at += length
    return out


def scan(pages: list[bytes], big_endian: bool = False, long_size: int = 8) -> Scan:
    data = np.frombuffer(b"".join(pages), np.uint8)
    ends = np.cumsum([len(page) for page in pages], dtype=np.int64)
    starts = ends - np.array([len(page) for page in pages], np.int64)
    return scan_pages(data, starts, ends, long_size=long_size, big_endian=big_endian)


def check(pages: list[bytes], big_endian: bool, long_size: int) -> None:
    """Hold a scan of ``pages`` against the slow reader, page by page."""
    found = scan(pages, big_endian, long_size)
    at = 0
    for number, page in enumerate(pages):
        expected = read_page(page, big_endian, long_size)
        first, last = found.page_row[number : number + 2].tolist()
        rows = zip(
            found.stamp[first:last].tolist(),
            (found.offset[first:last] - at).tolist(),
            found.length[first:last].tolist(),
            strict=True,
        )
        assert list(rows) == expected.records
        assert found.missed[number] == expected.missed
        assert found.damaged[number] == expected.damaged
        at += len(page)
    assert len(found.stamp) == found.page_row[-1]


def stamps(records: list[Record], timestamp: int = 1000, abi: tuple[bool, int] = (False, 8)) -> list[int]:
    """The stamps of one page's records."""
    page = Page(timestamp, records).to_bytes(*abi)
    found = scan([page], *abi)
    assert not found.damaged.any()
    check([page], *abi)
    return found.stamp.tolist()


@pytest.mark.parametrize("abi", ABI)
class TestEachRecord:
    def test_data_of_every_short_length(self, abi):
        payloads = [bytes(range(4 * n)) for n in range(1, 29)]
        page = Page(7, [Data(1, payload) for payload in payloads]).to_bytes(*abi)

        found = scan([page], *abi)

        assert found.stamp.tolist() == list(range(8, 36))
        assert found.length.tolist() == [4 * n for n in range(1, 29)]
        parts = zip(found.offset.tolist(), found.length.tolist(), strict=True)
        assert [page[o : o + n] for o, n in parts] == payloads

    @pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 111, 112, 113, 116, 2000])
    def test_data_with_its_length_in_a_word(self, abi, length):
        payload = bytes(i % 251 for i in range(length))
        page = Page(7, [Data(5, payload, long_form=True), Data(1, b"next")]).to_bytes(*abi)

        found = scan([page], *abi)

        start, size = int(found.offset[0]), int(found.length[0])
        assert found.stamp.tolist() == [12, 13]
        assert page[start : start + size] == payload.ljust(-(-length // 4) * 4, b"\0")
        assert page[found.offset[1] : found.offset[1] + 4] == b"next"

    def test_largest_delta(self, abi):
        assert stamps([Data(MAX_DELTA - 1, b"abcd")], 10, abi) == [10 + MAX_DELTA - 1]

    def test_padding_ends_the_page(self, abi):
        assert stamps([Data(0, b"abcd"), Padding()], 10, abi) == [10]

    def test_what_lies_behind_the_last_padding_is_not_read(self, abi):
        page = bytearray(Page(10, [Data(0, b"abcd"), Padding()]).to_bytes(*abi))
        page[-8:] = Data(1, b"efgh").encode(abi[0], 8)

        assert scan([bytes(page)], *abi).stamp.tolist() == [10]

    def test_padding_with_a_delta_is_skipped(self, abi):
        assert stamps([Padding(24, delta=3), Data(2, b"abcd")], 10, abi) == [15]

    def test_discarded_event_keeps_its_time(self, abi):
        assert stamps([Discarded(9, b"x" * 20), Discarded(0, b"y" * 4), Data(2, b"abcd")], 10, abi) == [22]

    @pytest.mark.parametrize("delta", [0, 1, MAX_DELTA - 1, MAX_DELTA, 2**40 + 7, FAR - 1])
    def test_time_extend(self, abi, delta):
        assert stamps([TimeExtend(delta), Data(3, b"abcd")], 10, abi) == [13 + delta]

    def test_time_extends_add_up(self, abi):
        assert stamps([TimeExtend(2**30), TimeExtend(2**31), Data(0, b"abcd")], 10, abi) == [10 + 2**30 + 2**31]

    def test_absolute_stamp_replaces_the_time_so_far(self, abi):
        assert stamps([Data(5, b"abcd"), AbsoluteTime(2**40 + 3), Data(1, b"efgh")], 10, abi) == [15, 2**40 + 4]

    def test_absolute_stamp_may_step_back(self, abi):
        assert stamps([Data(500, b"abcd"), AbsoluteTime(1200), Data(0, b"efgh")], 1000, abi) == [1500, 1200]

    @pytest.mark.parametrize("top", [1, 2, 17, 31])
    def test_absolute_stamp_gets_the_top_bits_of_the_time_so_far(self, abi, top):
        base = top * FAR + 12345

        assert stamps([AbsoluteTime(base + 99), Data(1, b"abcd")], base, abi) == [base + 100]

    @pytest.mark.parametrize("top", [0, 1, 17, 30])
    def test_absolute_stamp_after_59_bits_ran_over(self, abi, top):
        before, after = (top + 1) * FAR - 5, (top + 1) * FAR + 5

        assert stamps([Data(0, b"abcd"), AbsoluteTime(after), Data(1, b"efgh")], before, abi) == [before, after + 1]

    def test_small_step_back_below_the_top_bits_is_no_overflow(self, abi):
        base = 3 * FAR + 1000

        assert stamps([AbsoluteTime(base - 400), Data(0, b"abcd")], base, abi) == [base - 400]

    def test_stamps_run_over_64_bits(self, abi):
        assert stamps([Data(0, b"abcd"), Data(10, b"efgh")], U64 - 4, abi) == [U64 - 4, 5]


@pytest.mark.parametrize("abi", ABI)
class TestLosses:
    @pytest.mark.parametrize("count", [1, 3, 2**31 - 1])
    def test_with_a_count(self, abi, count):
        found = scan([Page(1, [Data(0, b"abcd")], missed=count).to_bytes(*abi)], *abi)

        assert found.missed.tolist() == [count]
        assert len(found.stamp) == 1

    def test_without_a_count(self, abi):
        found = scan([Page(1, [Data(0, b"abcd")], missed=UNKNOWN).to_bytes(*abi)], *abi)

        assert found.missed.tolist() == [MISSED_UNKNOWN]

    def test_count_that_finds_no_room(self, abi):
        room = 4096 - 8 - abi[1]
        page = Page(1, [Data(0, bytes(room - 8), long_form=True)], missed=9)

        found = scan([page.to_bytes(*abi)], *abi)

        assert found.missed.tolist() == [MISSED_UNKNOWN]
        assert found.length.tolist() == [room - 8]

    def test_count_that_just_fits(self, abi):
        room = 4096 - 8 - 2 * abi[1]
        page = Page(1, [Data(0, bytes(room - 8), long_form=True)], missed=9)

        assert scan([page.to_bytes(*abi)], *abi).missed.tolist() == [9]

    def test_only_the_page_behind_the_loss_is_marked(self, abi):
        pages = [Page(i, [Data(0, b"abcd")], missed=5 if i == 2 else None).to_bytes(*abi) for i in range(4)]

        assert scan(pages, *abi).missed.tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize("abi", ABI)
@pytest.mark.parametrize("size", SIZES)
def test_full_pages_of_every_size(abi, size):
    room = (size - 8 - abi[1]) // 12
    pages = [Page(k * 10**6, [Data(1, b"12345678")] * room, size=size).to_bytes(*abi) for k in range(3)]

    found = scan(pages, *abi)

    assert np.diff(found.page_row).tolist() == [room] * 3
    assert found.stamp.tolist() == [k * 10**6 + i for k in range(3) for i in range(1, room + 1)]
    check(pages, *abi)


class TestDamage:
    def test_no_pages(self):
        assert len(scan([]).stamp) == 0

    def test_page_without_records(self):
        found = scan([Page(5).to_bytes(), Page(9, [Data(0, b"abcd")]).to_bytes()])

        assert found.page_row.tolist() == [0, 0, 1]
        assert not found.damaged.any()

    @pytest.mark.parametrize("length", [0, 1, 8, 15])
    def test_page_shorter_than_its_header(self, length):
        pages = [Page(5, [Data(0, b"abcd")]).to_bytes(), Page(6, [Data(0, b"abcd")]).to_bytes()[:length]]

        found = scan(pages)

        assert found.page_row.tolist() == [0, 1, 1]
        assert found.damaged.tolist() == [False, True]

    def test_page_cut_in_a_record_keeps_those_before_it(self):
        page = Page(5, [Data(1, b"abcd"), Data(1, b"efgh" * 4), Data(1, b"ijkl")]).to_bytes()

        found = scan([page[:32]])

        assert found.stamp.tolist() == [6]
        assert found.damaged.tolist() == [True]

    def test_length_past_the_end_of_the_page(self):
        page = bytearray(Page(5, [Data(1, b"abcd"), Data(1, b"efgh", long_form=True)]).to_bytes())
        page[28:32] = (5000).to_bytes(4, "little")

        found = scan([bytes(page)])

        assert found.stamp.tolist() == [6]
        assert found.damaged.tolist() == [True]

    def test_data_longer_than_the_page(self):
        found = scan([Page(5, [Data(1, b"abcd")], commit=70_000).to_bytes()])

        assert found.stamp[:1].tolist() == [6]
        assert found.damaged.tolist() == [True]


payloads = st.binary(min_size=0, max_size=160)
deltas = st.one_of(st.integers(0, 50), st.integers(0, MAX_DELTA - 1))
records = st.one_of(
    st.builds(Data, deltas, payloads, st.booleans()),
    st.builds(TimeExtend, st.one_of(st.integers(0, 2**31), st.integers(0, FAR - 1))),
    st.builds(AbsoluteTime, st.integers(0, U64)),
    st.builds(Padding, st.integers(2, 10).map(lambda n: 4 * n), st.integers(1, 100)),
    st.builds(Discarded, deltas, st.binary(min_size=4, max_size=40)),
)
pages = st.builds(
    Page,
    st.one_of(st.integers(0, 2**40), st.integers(0, U64)),
    st.lists(records, max_size=20),
    st.one_of(st.none(), st.just(UNKNOWN), st.integers(1, 2**31 - 1)),
    st.sampled_from((4096, 8192)),
)
words = st.integers(0, 31).flatmap(
    lambda kind: st.tuples(st.just(kind), st.integers(0, 3), st.integers(0, 40), st.integers(0, 2**32 - 1))
)


class TestAgainstTheSlowReader:
    @given(st.lists(pages, max_size=5), st.sampled_from(ABI))
    def test_pages_of_all_records(self, made, abi):
        check([page.to_bytes(*abi) for page in made], *abi)

    @given(st.lists(pages, min_size=1, max_size=3), st.sampled_from(ABI), st.data())
    def test_pages_cut_anywhere(self, made, abi, data):
        whole = [page.to_bytes(*abi) for page in made]
        cut = data.draw(st.integers(0, 400))
        whole[-1] = whole[-1][:cut]

        check(whole, *abi)

    @given(st.lists(words, max_size=30), st.integers(0, U64), st.integers(0, U64), st.sampled_from(ABI))
    @example([(1, 0, 0, 0), (29, 1, 0, 0)], 0, 12, (False, 8))
    @example([(0, 0, 0, 0), (30, 0, 0, 0)], 0, 12, (True, 4))
    def test_any_words_at_all(self, made, stamp, commit, abi):
        order = "big" if abi[0] else "little"
        room = bytearray()
        for kind, delta, small, large in made:
            word = kind << 27 | delta if abi[0] else delta << 5 | kind
            room += word.to_bytes(4, order) + (large if small == 40 else small).to_bytes(4, order)
        flags, size = commit & (MISSED_EVENTS | MISSED_STORED), commit % (len(room) + 9)
        head = stamp.to_bytes(8, order) + (flags | size).to_bytes(abi[1], order)

        check([head + bytes(room), Page(9, [Data(1, b"abcd")]).to_bytes(*abi)], *abi)
