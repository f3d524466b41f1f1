"""A guest CPU's events, and parts of them."""

from __future__ import annotations

import numpy as np

from counterpoint.proof.tracks import Track


def test_a_part_keeps_the_sub_buffers_that_the_counter_stepped_back_in():
    track = Track(0, np.arange(100, 120), np.arange(20), 7, ((2, 5), (8, 12), (15, 18)))

    whole, middle, none = track.part(0, 20), track.part(3, 11), track.part(12, 15)

    assert whole.late == track.late
    # one was begun before the part, one is not ended in it: their events may be late all the same
    assert middle.late == ((0, 2), (5, 8))
    assert middle.late_ends == (2, 8)
    assert none.late == ()
    assert middle.rows.tolist() == list(range(103, 111))
    assert (middle.cpu, middle.base) == (0, 7)
