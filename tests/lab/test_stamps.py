"""Marks bracket a clock, whatever the clock is."""

from fractions import Fraction

import pytest

from lab.stamps import Bracket, at, brackets, parse


@pytest.mark.parametrize(
    ("shown", "stamp"),
    [
        ("95885717824", 95885717824),
        ("...1. 95885717824", 95885717824),
        ("...1.100007405648", 100007405648),
        ("   225.959523732", 225959523732),
        ("...1.225.959523732", 225959523732),
    ],
)
def test_a_mark_is_read_however_its_stamp_is_shown(shown, stamp):
    line = f" python3-953   [000] {shown}: print:   tracing_mark_write: lab cpu=0 n=172 counter=6341709204\n"

    assert parse(line) == {0: {172: (stamp, 6341709204)}}


def test_the_second_mark_of_two_is_between_their_stamps():
    marks = {0: (1000, 2400), 1: (1050, 2520), 2: (9000, 21000), 4: (12000, 31000), 5: (12020, 31100)}

    assert brackets(marks) == [Bracket(2520, 1000, 1050), Bracket(31100, 12000, 12020)]


def test_between_brackets_the_clock_runs_at_about_its_rate():
    rate = Fraction(1, 2)
    known = [Bracket(10_000, 5000, 5010), Bracket(20_000, 10_002, 10_009)]

    low, high = at(known, 15_000, rate)

    assert 7498 <= low <= 7502
    assert 7509 <= high <= 7513
    assert at(known, 9_999, rate) is None
    assert at(known, 20_001, rate) is None
