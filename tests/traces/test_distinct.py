"""The distinct among byte strings, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.traces.distinct import distinct_bytes, distinct_rows


@given(st.lists(st.binary(min_size=9, max_size=9).map(lambda b: bytes(x & 1 for x in b)), max_size=40))
def test_each_row_is_one_of_the_distinct(texts):
    data = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, 9)
    first, index = distinct_bytes(data)
    assert [texts[first[i]] for i in index.tolist()] == texts
    assert sorted(texts[i] for i in first.tolist()) == sorted(set(texts))


@pytest.mark.parametrize("values", [1, 300, 10**6])
def test_many_rows_with_few_and_with_many_distinct_ones(values):
    rng = np.random.default_rng(values)
    words = rng.integers(0, values, (300_000, 2)).astype(np.uint64)
    words[:, 1] = words[:, 0] * np.uint64(1 << 40)
    first, index = distinct_rows(words)
    assert len(first) == len(np.unique(words[:, 0]))
    assert (words[first][index] == words).all()


def test_no_rows_and_empty_ones():
    words = np.zeros((3, 1), np.uint64)
    assert distinct_rows(words)[0].tolist() == [2]
    assert [column.tolist() for column in distinct_rows(np.zeros((0, 2), np.uint64))] == [[], []]
    assert distinct_bytes(np.zeros((4, 0), np.uint8))[1].tolist() == [0, 0, 0, 0]
