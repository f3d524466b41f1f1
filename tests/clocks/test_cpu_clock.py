"""Conversions by one guest CPU's clock map: against plain integers, and against worlds made to fit the map."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings

from clocks.cases import EDGES, PERIOD, Tally, randoms
from clocks.map_oracle import Part, signed, to_host
from counterpoint.clocks.answers import Answers, Reasons, Status, settle
from counterpoint.clocks.band import Band
from counterpoint.clocks.cpu_clock import CpuClock, End, Reach, Span, Through
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.spans import Spans

tally = Tally()


def u64(values: list[int]) -> np.ndarray:
    return np.array([v % PERIOD for v in values], np.uint64)


def span(values: list[int]) -> Span:
    column = u64(values)
    return column, column, column


def host_of(clock: CpuClock, guest: list[int], *, extrapolate: bool = False) -> Answers:
    reasons = Reasons()
    found = clock.to_host(span(guest), extrapolate=extrapolate, reasons=reasons)
    return settle(found, len(guest), reasons)


def guest_of(clock: CpuClock, host: list[int], *, extrapolate: bool = False) -> Answers:
    reasons = Reasons()
    found = clock.to_guest(span(host), extrapolate=extrapolate, reasons=reasons)
    return settle(found, len(host), reasons)


def verdicts(answers: Answers) -> list[str]:
    return [Status(s).name.lower() for s in answers.status.tolist()]


def bounds(answers: Answers) -> list[tuple[int, int]]:
    return list(zip(answers.earliest.tolist(), answers.latest.tolist(), strict=True))


class MadeMap:
    """A map and the world that it was made of: epochs one after the other, events and doubt between them."""

    def __init__(self, random: Random, *, scaled: bool = False) -> None:
        self.base = random.choice([0, *EDGES, random.getrandbits(64)])
        if scaled:
            # where the host's counter wraps, a scaled one jumps: no world runs over that
            self.base = random.randrange(1 << 20, PERIOD - (1 << 20))
        count = random.choice((1, 1, 2, 2, 3, 4))
        width = random.choice((0, 3, 40))
        ratio, frac = (random.randrange(1 << 31, 3 << 31), 32) if scaled else (1, 0)
        offset = random.choice([0, random.getrandbits(64), -random.getrandbits(40)])
        parts, reaches, epochs = [], [], []
        self.changes: list[int] = []
        self.times: list[tuple[int, int]] = []
        self.offsets: list[int] = []
        at, begin = self.base, None
        for index in range(count):
            first, last = at + random.randrange(1, 100), 0
            last = first + random.randrange(2, 2000)
            true = offset % PERIOD
            lo, hi = true - random.randint(0, width), true + random.randint(0, width)
            used = random.randint(lo, hi)
            # the guest may run in some windows until the change, and in some after it
            windows, now = [], last + random.randrange(1, 50)
            for _ in range(random.randrange(4)):
                windows.append((now, now + random.randrange(30)))
                now = windows[-1][1] + random.randrange(2, 60)
            change = now + random.randrange(1, 20)
            at = change + random.randrange(1, 60)
            is_last = index == count - 1
            spans: list[tuple[int | None, int | None]] = [] if begin is None else list(begin)
            own_begin = None if begin is None else first - random.randrange(1, 9)
            own_end = None if is_last else last + random.randrange(1, 9)
            spans.append((own_begin, own_end))
            if not is_last:
                spans += [w for w in windows if w[0] > (own_end or 0)]
                begin = [w for w in windows if w[0] > (own_end or 0)] if random.random() < 0.7 else []
                self.changes.append(change)
            spans = _fixed(spans)
            stamps = [(t % PERIOD) * ratio >> frac for t in (first, last)]
            seen = (stamps[0] + true) % PERIOD, (stamps[1] + true) % PERIOD
            near = first % PERIOD
            parts.append(Part(lo, hi, used, seen, spans, ratio, frac, near))
            pairs = tuple((None if a is None else a % PERIOD, None if b is None else b % PERIOD) for a, b in spans)
            reaches.append(Reach(seen, Spans(pairs)))
            epochs.append(Epoch(used, None, None, (lo, hi), ratio, frac, None, near))
            self.times.append((first, last))
            self.offsets.append(true)
            offset += random.choice((1, -1)) * random.choice((3, 100, 1500, 10**6, 1 << 40, 1 << 62))
        self.parts = parts
        self.rounding = random.choice((0, 0, 1))
        limits = [random.choice((None, self.times[0][0] - 30)), random.choice((None, self.times[-1][1] + 30))]
        self.before, self.after = limits
        ends = [End(None if t is None else t % PERIOD, "it may have changed") for t in limits]
        self.clock = CpuClock(1, tuple(epochs), tuple(reaches), *ends, self.rounding)
        self.ratio, self.frac = ratio, frac

    def guest_at(self, index: int, time: int) -> int:
        """What the guest's clock says at a host time in an epoch."""
        return (((time % PERIOD) * self.ratio >> self.frac) + self.offsets[index]) % PERIOD


def _fixed(spans: list[tuple[int | None, int | None]]) -> list[tuple[int | None, int | None]]:
    """The spans in order, without those that others overlap."""
    out: list[tuple[int | None, int | None]] = []
    for begin, end in sorted(spans, key=lambda s: (s[0] is not None, s[0] or 0)):
        if out and (out[-1][1] is None or begin is None or begin <= out[-1][1]):
            continue
        out.append((begin, end))
    return out


@tally.property(600, 40)
@given(randoms)
def test_every_answer_is_that_of_plain_integers(random: Random) -> None:
    made = MadeMap(random, scaled=random.random() < 0.3)
    stamps = []
    for _ in range(40):
        index = random.randrange(len(made.parts))
        seen = made.parts[index].seen
        near = random.choice(seen) + random.choice((-1, 0, 1, random.randrange(-3000, 3000)))
        stamps.append(random.choice([near, near, near, random.getrandbits(64), *EDGES]) % PERIOD)
    extrapolate = random.random() < 0.3
    # a scaled map has no inverse beyond its counter's ends: those stamps have no host
    answers = host_of(made.clock, stamps, extrapolate=extrapolate)
    for at, stamp in enumerate(stamps):
        wanted = to_host(made.parts, stamp, made.before, made.after, made.rounding, extrapolate=extrapolate)
        got = Status(int(answers.status[at])).name.lower()
        assert got == wanted.verdict, (stamp, wanted)
        if wanted.bound is not None:
            assert (int(answers.earliest[at]), int(answers.latest[at])) == wanted.bound
            assert (
                signed(int(answers.stamp[at]) - wanted.bound[0])
                >= 0
                >= signed(int(answers.stamp[at]) - wanted.bound[1])
            )
            assert int(answers.epoch[at]) == (wanted.epochs[0] if len(set(wanted.epochs)) == 1 else -1)
        else:
            assert answers.why(at) or got == "skipped"
    tally.checked += len(stamps)


@tally.property(600, 30)
@given(randoms)
def test_every_instant_of_a_world_lies_in_its_answer_and_back(random: Random) -> None:
    made = MadeMap(random, scaled=random.random() < 0.3)
    times: list[tuple[int, int]] = []
    for index, part in enumerate(made.parts):
        first, last = made.times[index]
        times += [(index, random.randint(first, last)) for _ in range(10)]
        for begin, end in part.spans:
            if begin is not None and end is not None:
                # what the epoch may hold in, it holds in as far as the change allows
                inner = [t for t in (begin, end) if index == 0 or t > made.changes[index - 1]]
                times += [(index, t) for t in inner if index == len(made.parts) - 1 or t < made.changes[index]]
    times += [
        (0, made.times[0][0] - random.randrange(1, 25)),
        (len(made.parts) - 1, made.times[-1][1] + random.randrange(1, 25)),
    ]
    times = [(i, t) for i, t in times if made.ratio == 1 or 0 <= t < PERIOD]
    guest = [made.guest_at(index, t) for index, t in times]
    answers = host_of(made.clock, guest, extrapolate=True)
    for at, (index, time) in enumerate(times):
        early, late = int(answers.earliest[at]), int(answers.latest[at])
        inner = made.times[index][0] <= time <= made.times[index][1]
        if not inner and answers.status[at] == Status.INSIDE:
            # a stamp that the recorded span shows is taken as of it
            continue
        assert answers.status[at] <= Status.AMBIGUOUS
        if inner or len(made.parts) == 1:
            assert signed(time - early) >= 0, (index, time)
            assert signed(late - time) >= 0, (index, time)
    # back: the host's stamps within the epoch's own events
    inner_times = [(i, t) for i, t in times if made.times[i][0] <= t <= made.times[i][1]]
    back = guest_of(made.clock, [t for _, t in inner_times], extrapolate=True)
    for at, (index, time) in enumerate(inner_times):
        stamp = made.guest_at(index, time)
        assert back.status[at] <= Status.AMBIGUOUS
        assert signed(stamp - int(back.earliest[at])) >= 0
        assert signed(int(back.latest[at]) - stamp) >= 0
    tally.checked += max(30, len(times))


@given(randoms)
@settings(max_examples=200)
def test_there_and_back_is_within_the_bound(random: Random) -> None:
    made = MadeMap(random, scaled=random.random() < 0.3)
    guest = [random.choice(p.seen) + random.randrange(-500, 500) for p in made.parts for _ in range(8)]
    there = host_of(made.clock, guest, extrapolate=True)
    at = np.flatnonzero(there.status <= Status.OUTSIDE)
    reasons = Reasons()
    host = there.earliest[at], there.stamp[at], there.latest[at]
    back = settle(made.clock.to_guest(host, extrapolate=True, reasons=reasons), len(at), reasons)
    for k, row in enumerate(at.tolist()):
        assert back.status[k] <= Status.AMBIGUOUS
        assert signed(guest[row] - int(back.earliest[k])) >= 0
        assert signed(int(back.latest[k]) - guest[row]) >= 0


def clock_of(*parts: tuple[int, int, int], within: list[Spans] | None = None, **more: object) -> CpuClock:
    """Epochs (offset, first, last guest stamp), each bounded to +-5."""
    epochs = tuple(Epoch(offset, feasible=(offset - 5, offset + 5)) for offset, _, _ in parts)
    reaches = tuple(Reach((first, last), *([within[i]] if within else ())) for i, (_, first, last) in enumerate(parts))
    return CpuClock(0, epochs, reaches, **more)  # type: ignore[arg-type]


class TestOneEpoch:
    clock = clock_of((1000, 5000, 6000))

    def test_between_the_events_it_is_inside(self) -> None:
        answers = host_of(self.clock, [5000, 5500, 6000])
        assert verdicts(answers) == ["inside"] * 3
        assert bounds(answers) == [(3995, 4005), (4495, 4505), (4995, 5005)]
        assert answers.stamp.tolist() == [4000, 4500, 5000]
        assert answers.is_sure

    def test_beyond_them_it_is_outside_with_the_same_bound(self) -> None:
        answers = host_of(self.clock, [4999, 6001])
        assert verdicts(answers) == ["outside"] * 2
        assert bounds(answers) == [(3994, 4004), (4996, 5006)]

    def test_where_the_recording_shows_that_it_may_have_ended_it_is_refused(self) -> None:
        clock = clock_of((1000, 5000, 6000), before=End(4000, "it changed"), after=End(5100, "a claim ends"))
        answers = host_of(clock, [4999, 6090, 6096])
        assert verdicts(answers) == ["refused", "outside", "refused"]
        assert [answers.why(i) for i in range(3)] == ["it changed", "", "a claim ends"]
        assert not answers.is_sure
        assert verdicts(host_of(clock, [4999, 6090, 6096], extrapolate=True)) == ["outside"] * 3

    def test_decades_away_there_is_no_answer(self) -> None:
        answers = host_of(self.clock, [5000 + (1 << 62), 5000 - (1 << 62)])
        assert verdicts(answers) == ["refused"] * 2
        assert "too far" in answers.why(0)

    def test_nothing_is_asked_and_answered(self) -> None:
        assert len(host_of(self.clock, [])) == len(guest_of(self.clock, [])) == 0

    def test_host_to_guest(self) -> None:
        answers = guest_of(self.clock, [4005, 4500, 4995, 4004, 4996])
        assert verdicts(answers) == ["inside"] * 3 + ["outside"] * 2
        assert bounds(answers)[1] == (5495, 5505)

    def test_two_clocks_that_round_down_differ_by_one_more(self) -> None:
        clock = clock_of((1000, 5000, 6000), rounding=1)
        assert bounds(host_of(clock, [5500])) == [(4494, 4506)]
        assert bounds(guest_of(clock, [4500])) == [(5494, 5506)]


class TestACounterThatSteppedBack:
    """100 units back, between host times 5000 and 5010."""

    clock = clock_of(
        (1000, 5000, 6000), (900, 5912, 7000),
        within=[Spans(((None, 5003),)), Spans(((5008, None),))],
    )  # fmt: skip

    def test_a_stamp_that_both_show_is_answered_with_both(self) -> None:
        answers = host_of(self.clock, [5950])
        assert verdicts(answers) == ["ambiguous"]
        assert bounds(answers) == [(4945, 5055)]
        assert answers.epoch.tolist() == [-1]
        assert answers.others.stamp.tolist() == [4950, 5050]
        assert answers.others.epoch.tolist() == [0, 1]
        assert not answers.is_sure

    def test_a_stamp_that_one_shows_is_that_one(self) -> None:
        answers = host_of(self.clock, [5900, 6100])
        assert verdicts(answers) == ["inside", "inside"]
        assert answers.epoch.tolist() == [0, 1]

    def test_host_time_in_the_doubt_has_both(self) -> None:
        answers = guest_of(self.clock, [5005])
        assert verdicts(answers) == ["ambiguous"]
        assert bounds(answers) == [(5900, 6010)]

    def test_only_where_the_guest_may_have_run_is_there_an_instant(self) -> None:
        # by the second map 5902 is host time 4997 to 5007, where it did not hold yet
        answers = host_of(self.clock, [5902, 5903, 6006])
        assert verdicts(answers) == ["inside", "ambiguous", "ambiguous"]
        assert bounds(answers) == [(4897, 4907), (4898, 5008), (5001, 5111)]
        assert answers.others.latest.tolist() == [4908, 5008, 5003, 5111]


def test_a_counter_that_jumped_ahead_skips_stamps() -> None:
    clock = clock_of(
        (0, 5000, 6000), (10**6, 10**6 + 6010, 10**6 + 7000), within=[Spans(((None, 6003),)), Spans(((6008, None),))]
    )
    answers = host_of(clock, [5999, 500_000, 10**6 + 6020])
    assert verdicts(answers) == ["inside", "skipped", "inside"]
    assert "never showed" in answers.why(1)


def test_a_change_that_was_announced_is_exact() -> None:
    epochs = Epoch(0, feasible=(-5, 5)), Epoch(1000, feasible=(995, 1005))
    reaches = Reach((5000, 6000)), Reach((7010, 8000), began_at=6004)
    clock = CpuClock(0, epochs, reaches)
    answers = guest_of(clock, [6003, 6004])
    assert verdicts(answers) == ["inside", "inside"]
    assert answers.epoch.tolist() == [0, 1]


def test_a_map_that_is_refused_says_why() -> None:
    clock = CpuClock(3, refusal="its thread was not found")
    for answers in (host_of(clock, [1, 2]), guest_of(clock, [1, 2])):
        assert verdicts(answers) == ["refused"] * 2
        assert answers.why(1) == "its thread was not found"


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": (), "reaches": ()},
        {"epochs": (Epoch(5),), "reaches": (Reach((1, 2)),)},
        {"epochs": (Epoch(5, feasible=(4, 6)),), "reaches": ()},
        {"epochs": (Epoch(5, feasible=(4, 6)),), "reaches": (Reach((1, 2)),), "refusal": "no"},
    ],
)
def test_maps_that_could_not_be_used_are_none(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="epoch"):
        CpuClock(0, **wrong)  # type: ignore[arg-type]


class TestBands:
    @given(randoms)
    @settings(max_examples=300)
    def test_a_clock_within_its_band_lies_in_every_answer(self, random: Random) -> None:
        start = random.choice([10**12, (1 << 63) - 40_000, PERIOD - 40_000])
        count = random.choice((1, 3, 8))
        edges = [0]
        for _ in range(count):
            edges.append(edges[-1] + random.randrange(500, 9000))
        # the true distance from the map at each edge; it runs straight between two
        apart = [random.randrange(-40, 40) for _ in edges]
        lo = tuple(min(pair) - random.randrange(4) for pair in pairwise(apart))
        hi = tuple(max(pair) + random.randrange(4) for pair in pairwise(apart))
        band = Band(tuple((start + e) % PERIOD for e in edges), lo, hi, 20_000_000, 20_000_000)
        offset = random.getrandbits(64)
        epoch = Epoch(offset, None, None, None, 1, 0, band, start % PERIOD)

        def truth(time: int) -> int:
            at = max(0, min(count - 1, sum(e <= time for e in edges) - 1))
            if time < 0:
                drift = apart[0] + time // 100
            elif time > edges[-1]:
                drift = apart[-1] + (time - edges[-1]) // 100
            else:
                drift = apart[at] + (apart[at + 1] - apart[at]) * (time - edges[at]) // (edges[at + 1] - edges[at])
            return (start + time + offset + drift) % PERIOD

        seen = truth(0), truth(edges[-1])
        clock = CpuClock(0, (epoch,), (Reach(seen),))
        times = [e + d for e in edges for d in (-2, -1, 0, 1, 2)] + [
            random.randrange(-4000, edges[-1] + 4000) for _ in range(20)
        ]
        answers = host_of(clock, [truth(t) for t in times])
        back = guest_of(clock, [start + t for t in times])
        for at, time in enumerate(times):
            assert answers.status[at] <= Status.OUTSIDE
            assert signed(start + time - int(answers.earliest[at])) >= 0, time
            assert signed(int(answers.latest[at]) - start - time) >= 0, time
            assert signed(truth(time) - int(back.earliest[at])) >= 0, time
            assert signed(int(back.latest[at]) - truth(time)) >= 0, time

    def test_the_bound_grows_beyond_the_recording(self) -> None:
        band = Band((1000, 2000), (-5,), (5,), 1_000_000, 1_000_000)
        clock = CpuClock(0, (Epoch(0, band=band),), (Reach((1000, 2000)),))
        answers = host_of(clock, [2000, 102_000])
        assert verdicts(answers) == ["inside", "outside"]
        near, far = (late - early for early, late in bounds(answers))
        assert 10 <= near <= 12
        assert far >= 10 + 2 * 100


class TestThrough:
    through = Through(stays=((0, Spans(((None, 10), (20, 30)))), (2, Spans(((15, 16), (40, None))))))

    def test_where_a_thread_may_have_been(self) -> None:
        early, late = u64([0, 11, 30, 31, 100]), u64([5, 19, 30, 39, 200])
        assert self.through.may_hold(0, early, late).tolist() == [True, False, True, False, False]
        assert self.through.may_hold(2, early, late).tolist() == [False, True, False, False, True]
        assert self.through.may_hold(1, early, late).tolist() == [False] * 5


def test_an_interval_of_stamps_is_bounded_by_its_ends() -> None:
    clock = clock_of((1000, 5000, 6000))
    reasons = Reasons()
    found = clock.to_host(
        (u64([5500, 5990, 4990]), u64([5500, 5990, 4990]), u64([5509, 6010, 5010])), extrapolate=False, reasons=reasons
    )
    answers = settle(found, 3, reasons)
    assert verdicts(answers) == ["inside", "outside", "outside"]
    assert bounds(answers)[0] == (4495, 4514)
