"""Pages packed by arrays: read back exactly, and byte for byte what the slow writer makes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.traces.ring import scan_pages
from counterpoint.traces.write_pages import Batch, gathered, pack_pages, reserved
from writers.ringbuffer import pack_stream

BIG = [0, 1, 5, 1 << 20, (1 << 27) - 1, 1 << 27, (1 << 27) + 1, 1 << 40, (1 << 59) - 1]
LENGTHS = [4, 8, 12, 16, 17, 40, 109, 112, 113, 116, 200]


def batches_of(payloads):
    data = np.frombuffer(b"".join(payloads), np.uint8)
    length = np.array([len(p) for p in payloads], np.int64)
    return gathered(data, np.cumsum(length) - length, length)


def scanned(pages, size, **abi):
    first = np.arange(0, len(pages.data), size, dtype=np.int64)
    return scan_pages(pages.data, first, first + size, **abi)


@st.composite
def streams(draw):
    start = draw(st.sampled_from([0, 10**9, (1 << 59) - 5, (1 << 63) - 100, (1 << 64) - 1000]))
    steps = draw(st.lists(st.sampled_from(BIG), max_size=60))
    stamps = [start]
    for step in steps:
        stamps.append((stamps[-1] + step) % (1 << 64))
    sizes = draw(st.lists(st.sampled_from(LENGTHS), min_size=len(stamps), max_size=len(stamps)))
    payloads = [bytes((i + j) % 256 for j in range(n)) for i, n in enumerate(sizes)]
    lost = draw(st.dictionaries(st.integers(0, len(stamps) - 1), st.sampled_from([-1, 1, 70_000]), max_size=4))
    return stamps, payloads, dict(sorted(lost.items()))


@given(streams(), st.sampled_from([1024, 4096]), st.sampled_from([4, 8]), st.booleans())
def test_pages_are_those_of_the_slow_writer(stream, size, long_size, big_endian):
    stamps, payloads, lost = stream
    grows = [b >= a for a, b in pairwise(stamps)]
    if not all(grows):  # the slow writer does not know of the end of the 64 bits
        cut = grows.index(False) + 1
        stamps, payloads, lost = stamps[:cut], payloads[:cut], {k: v for k, v in lost.items() if k < cut}
    slow = pack_stream(
        zip(stamps, payloads, strict=True), size=size, long_size=long_size, big_endian=big_endian, missed=lost
    )

    pages = pack_pages(
        np.array(stamps, np.uint64),
        batches_of(payloads),
        page_size=size,
        long_size=long_size,
        big_endian=big_endian,
        lost_row=list(lost),
        lost_count=list(lost.values()),
    )

    assert pages.data.tobytes() == b"".join(slow)


@given(streams(), st.sampled_from([4, 8]), st.booleans())
def test_what_is_packed_is_read_back(stream, long_size, big_endian):
    stamps, payloads, lost = stream
    abi = {"long_size": long_size, "big_endian": big_endian}
    given_stamps = np.array(stamps, np.uint64)

    pages = pack_pages(
        given_stamps, batches_of(payloads), page_size=1024, lost_row=list(lost), lost_count=list(lost.values()), **abi
    )

    scan = scanned(pages, 1024, **abi)
    assert scan.stamp.tolist() == stamps
    assert pages.stamp.tolist() == stamps
    assert scan.page_row.tolist() == pages.first_row.tolist()
    assert not scan.damaged.any()
    for i, payload in enumerate(payloads):
        found = pages.data[scan.offset[i] : scan.offset[i] + scan.length[i]].tobytes()
        assert found == payload.ljust(reserved(len(payload)), b"\0")
    marked = np.flatnonzero(scan.missed)
    assert scan.page_row[marked].tolist() == list(lost)
    for page, count in zip(marked.tolist(), lost.values(), strict=True):
        used = int(scan.offset[scan.page_row[page + 1] - 1] + scan.length[scan.page_row[page + 1] - 1]) - 1024 * page
        assert scan.missed[page] == (count if used + long_size <= 1024 else -1)


@given(
    st.integers(0, (1 << 64) - 1),
    st.lists(st.one_of(st.sampled_from(BIG), st.integers(-(1 << 62), 1 << 40)), min_size=1, max_size=50),
)
def test_a_step_back_is_stamped_absolutely(start, steps):
    stamps = np.cumsum(np.array([start, *(s % (1 << 64) for s in steps)], np.uint64))
    pages = pack_pages(stamps, [Batch(np.arange(len(stamps)), np.zeros((len(stamps), 12), np.uint8))])

    assert scanned(pages, 4096).stamp.tolist() == stamps.tolist()


def test_a_step_back_written_as_the_kernel_does_makes_the_rest_of_the_page_late():
    stamps = np.r_[np.arange(1000, 1400, 4), np.arange(500, 2500, 4)].astype(np.uint64)
    payloads = [bytes(range(12))] * len(stamps)
    pages = pack_pages(stamps, batches_of(payloads), page_size=1024, backwards="late")

    slow = pack_stream(zip(stamps.tolist(), payloads, strict=True), size=1024, backwards="late")
    assert pages.data.tobytes() == b"".join(slow)
    found = scanned(pages, 1024).stamp
    assert found.tolist() == pages.stamp.tolist()
    late = np.flatnonzero(found != stamps)
    assert late.tolist() == list(range(100, int(pages.first_row[pages.first_row > 100][0])))
    assert set((found - stamps)[late].tolist()) == {1396 - 500}


def test_structured_rows_are_payloads():
    rows = np.zeros(3, [("a", "<u2"), ("b", "<i4"), ("c", "<u8")])
    rows["c"] = [7, 8, 9]
    pages = pack_pages(np.arange(3, dtype=np.uint64), [Batch(np.arange(3), rows)])

    scan = scanned(pages, 4096)
    assert scan.length.tolist() == [16, 16, 16]
    assert [pages.data[o : o + 14].tobytes() for o in scan.offset] == [row.tobytes() for row in rows]


def test_no_events_are_no_pages():
    pages = pack_pages(np.zeros(0, np.uint64), [])

    assert len(pages.data) == 0
    assert pages.first_row.tolist() == [0]


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([Batch(np.array([0]), np.zeros((1, 8), np.uint8))], "do not hold each of the 2 events once"),
        ([Batch(np.array([0, 0]), np.zeros((2, 8), np.uint8))], "do not hold each of the 2 events once"),
        ([Batch(np.array([0, 1]), np.zeros((3, 8), np.uint8))], "3 payloads for 2 events"),
        ([Batch(np.array([0, 1]), np.zeros((2, 4096), np.uint8))], "has no room in a page"),
    ],
)
def test_what_cannot_be_packed_is_refused(batches, why):
    with pytest.raises(ValueError, match=why):
        pack_pages(np.array([1, 2], np.uint64), batches)
