"""Spans in which a value held: which instants lie in one of them for sure."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.claims.model import Held

MASK = (1 << 64) - 1
starts = st.sampled_from([0, 1, 10**12, (1 << 63) - 200, (1 << 64) - 200])
"""Also where stamps pass 2**63 and 2**64."""


@given(
    starts,
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(-20, 400), st.integers(0, 40)), min_size=1, max_size=30),
)
def test_both_ends_of_an_instants_bound_lie_in_one_span(
    start: int, spans: list[tuple[int, int]], instants: list[tuple[int, int]]
) -> None:
    at, edges = 50, []
    for gap, length in spans:
        edges.append((at + gap, at + gap + length))
        at += gap + length

    def stamps(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array([(start + v) & MASK for v in values], np.uint64)

    held = Held(stamps([a for a, _ in edges]), stamps([b for _, b in edges]))
    found = held.holds(stamps([a for a, _ in instants]), stamps([a + w for a, w in instants]))

    assert found.tolist() == [any(b <= a and a + w < e for b, e in edges) for a, w in instants]


def test_no_span_holds_nothing() -> None:
    none = np.zeros(0, np.uint64)
    assert not Held(none, none).holds(np.ones(3, np.uint64), np.ones(3, np.uint64)).any()
