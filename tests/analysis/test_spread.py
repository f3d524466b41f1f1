"""Counts, sums, quantiles and histograms of groups, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from counterpoint.analysis.spread import BUCKETS, bucket_of, spread


def test_against_sorted_lists():
    random = np.random.default_rng(5)
    values = np.r_[random.integers(-5, 1 << 40, 300), random.integers(-3, 60, 300)]
    group = random.integers(-1, 4, len(values))
    group[group == 2] = 3
    known = random.random(len(values)) < 0.8

    found = spread(values, group, 5, known)

    for number in range(5):
        own = sorted(values[(group == number) & known].tolist())
        assert found.count[number] == (group == number).sum()
        assert found.known[number] == len(own)
        assert found.total[number] == sum(own)
        for per_cent, column in ((50, found.p50), (99, found.p99), (100, found.most)):
            # the least value that at least so many of a hundred do not pass
            least = next((v for n, v in enumerate(own, 1) if n * 100 >= per_cent * len(own)), 0)
            assert column[number] == least
        assert found.least[number] == (own[0] if own else 0)
        for bucket in range(BUCKETS):
            assert found.buckets[number, bucket] == sum(max(v, 0).bit_length() == bucket for v in own)


def test_of_nothing():
    found = spread(np.zeros(0, np.int64), groups=2)

    assert found.count.tolist() == found.known.tolist() == found.most.tolist() == [0, 0]


@pytest.mark.parametrize("bits", [1, 31, 32, 33, 53, 54, 62])
def test_buckets_at_their_edges(bits):
    edge = 1 << bits
    values = np.array([-1, 0, edge - 1, edge, edge + 1], np.int64)

    assert bucket_of(values).tolist() == [max(v, 0).bit_length() for v in values.tolist()]
