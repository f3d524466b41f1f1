"""Wall time by pairs: bounds that hold a clock that NTP slews, both ways; what cannot be told is not."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings

from clocks.cases import PERIOD, randoms
from counterpoint.clocks.machines import MachineClock
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.wall import MEASURED_PPM, NTP_PPM, Wall

Y2026 = 1_795_579_690_000_000_000


def tsc(rate: Rate | None = None, span: tuple[int, int] = (10**12, 10**12 + 10**10)) -> MachineClock:
    return MachineClock("host", "x86-tsc", "ticks", rate, span, "x86_64")


def in_ns(clock: str, date_us: int | None = None) -> MachineClock:
    return MachineClock("host", clock, "ns", Rate.ns(), (10**12, 10**12 + 10**10), "aarch64", date_us)


def column(*values: int) -> np.ndarray:
    return np.array([v % PERIOD for v in values], np.uint64)


@given(randoms)
@settings(max_examples=300)
def test_a_clock_that_ntp_slews_lies_in_its_bound_and_back(random: Random) -> None:
    khz = random.choice([24_000, 1_000_000, 2_400_001, 3_700_000])
    rate = Rate.of_ratio(1_000_000, khz, "tsc2nsec")
    assert rate is not None
    start = random.choice([10**12, (1 << 63) - 10**9, PERIOD - 10**9])
    step = random.randrange(10**6, 10**11)
    truth = [(0, Y2026)]
    for _ in range(random.randrange(1, 8)):
        # each stretch at a rate of its own
        ppm = random.randrange(-NTP_PPM + 1, NTP_PPM)
        at, wall = truth[-1]
        truth.append((at + step, wall + rate.to_ns(step) + rate.to_ns(step) * ppm // 1_000_000))

    def wall_at(tick: int) -> int:
        for (a, x), (b, y) in pairwise(truth):
            if a <= tick <= b:
                return x + (y - x) * (tick - a) // (b - a)
        raise AssertionError

    pairs = []
    for _ in range(random.randrange(1, 6)):
        tick, bound = random.randrange(0, truth[-1][0]), random.choice((0, 5, 40_000))
        pairs.append(ClockPair((start + tick) % PERIOD, wall_at(tick) + random.randint(-bound, bound), bound, "test"))
    pairs = list({p.counter: p for p in pairs}.values())
    wall = Wall.of(tsc(rate), tuple(pairs))
    assert wall is not None
    assert wall.was_set is None
    ticks = [random.randrange(0, truth[-1][0]) for _ in range(20)]
    host = column(*(start + t for t in ticks))
    times = wall.at((host, host, host))
    assert times.known.all()
    for at, tick in enumerate(ticks):
        assert times.earliest[at] <= wall_at(tick) <= times.latest[at]
        assert times.earliest[at] <= times.ns[at] <= times.latest[at]
    asked = np.array([wall_at(t) for t in ticks], np.int64)
    (early, middle, late), known = wall.stamps(asked, asked)
    assert known.all()
    for at, stamp in enumerate(host.tolist()):
        assert (stamp - int(early[at])) % PERIOD < PERIOD // 2
        assert (int(late[at]) - stamp) % PERIOD < PERIOD // 2
        assert (int(middle[at]) - int(early[at])) % PERIOD < PERIOD // 2


def test_the_bound_is_that_of_the_nearest_pair_and_grows_with_the_distance() -> None:
    wall = Wall.of(in_ns("mono_raw"), (ClockPair(10**12, Y2026, 100),))
    assert wall is not None
    times = wall.at((column(10**12, 10**12 + 10**9),) * 3)
    assert times.ns.tolist() == [Y2026, Y2026 + 10**9]
    widths = (times.latest - times.earliest).tolist()
    assert widths[0] < 2 * (100 + NTP_PPM + 5)
    assert 2 * 10**9 * NTP_PPM // 10**6 < widths[1] < 2 * (10**9 * NTP_PPM // 10**6 + 1000)


@pytest.mark.parametrize("clock", ["mono", "boot", "tai"])
def test_a_clock_that_is_slewed_with_wall_time_is_as_far_from_it_at_all_times(clock: str) -> None:
    wall = Wall.of(in_ns(clock), (ClockPair(10**12, Y2026, 7),))
    assert wall is not None
    far = column(10**12 + 10**15)
    times = wall.at((far, far, far))
    assert times.latest[0] - times.earliest[0] < 30


def test_a_rate_that_was_measured_is_trusted_less() -> None:
    for source, ppm in (("tsc2nsec", NTP_PPM), ("hrtimer_expire_entry", MEASURED_PPM)):
        wall = Wall.of(tsc(Rate(1, 1, source)), (ClockPair(10**12, Y2026),))
        assert wall is not None
        assert wall.ppm == ppm


def test_two_pairs_tell_how_long_a_tick_is() -> None:
    one, two = ClockPair(10**12, Y2026), ClockPair(10**12 + 2 * 10**9, Y2026 + 10**9)
    assert Wall.of(tsc(), (one,)) is None
    wall = Wall.of(tsc(), (two, one))
    assert wall is not None
    half = column(10**12 + 10**9)
    assert abs(int(wall.at((half, half, half)).ns[0]) - Y2026 - 5 * 10**8) < 2000


def test_a_rate_between_rough_pairs_is_as_rough() -> None:
    near, far = (ClockPair(10**12 + after, Y2026 + after, 5000) for after in (0, 10**7))
    wall = Wall.of(tsc(), (near, far))
    assert wall is not None
    assert wall.ppm == MEASURED_PPM + 1000
    assert Wall.of(tsc(), (near, ClockPair(10**12 + 10**4, Y2026 + 10**4, 5000))) is None


def test_a_clock_that_was_set_is_seen_and_both_sides_are_in_the_bound() -> None:
    pairs = ClockPair(10**12, Y2026), ClockPair(10**12 + 10**9, Y2026 + 10**9 + 3_600_000_000_000)
    wall = Wall.of(in_ns("mono_raw"), pairs)
    assert wall is not None
    assert wall.was_set == pairs
    middle = column(10**12 + 5 * 10**8)
    times = wall.at((middle, middle, middle))
    assert times.earliest[0] <= Y2026 + 5 * 10**8
    assert times.latest[0] >= Y2026 + 5 * 10**8 + 3_600_000_000_000
    with pytest.raises(ValueError, match="was set"):
        wall.stamps(np.array([Y2026]), np.array([Y2026]))


def test_the_date_of_a_recording_has_no_bound_of_its_own() -> None:
    wall = Wall.of(in_ns("local", Y2026 // 1000), ())
    assert wall is not None
    assert (wall.source, wall.is_bounded) == ("date", False)
    at = column(10**12 + 5)
    assert abs(int(wall.at((at, at, at)).ns[0]) - (Y2026 + 10**12 + 5)) < 10
    # of ticks trace-cmd takes the number for ns: there is no such sum
    assert Wall.of(MachineClock("host", "x86-tsc", "ticks", Rate(1, 1, "x"), (1, 2), "", Y2026 // 1000), ()) is None
    assert Wall.of(in_ns("local"), ()) is None
    assert Wall.of(in_ns("local", 1 << 70), ()) is None


@pytest.mark.parametrize(
    "pairs",
    [
        (ClockPair(5, 1), ClockPair(5, 2)),
        (ClockPair(5, (1 << 63) - 1),),
        (ClockPair(5, 1, 1 << 62),),
        (ClockPair(0, 1), ClockPair(1 << 62, 2)),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(pairs: tuple[ClockPair, ...]) -> None:
    with pytest.raises(ValueError, match="wall time"):
        Wall.of(in_ns("mono_raw"), pairs)


def test_what_is_too_far_is_not_known() -> None:
    wall = Wall.of(tsc(Rate(1, 0, "tsc2nsec")), (ClockPair(10**12, Y2026),))
    assert wall is not None
    far = column(10**12 + (1 << 62))
    assert not wall.at((far, far, far)).known.any()
    late = np.array([(1 << 63) - 1], np.int64)
    assert not wall.stamps(late, late)[1].any()
