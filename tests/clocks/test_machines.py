"""Maps of several machines: any CPU of a guest, and guests of guests."""

from __future__ import annotations

import numpy as np
import pytest

from counterpoint.clocks.answers import Status
from counterpoint.clocks.cpu_clock import CpuClock, End, Reach, Through
from counterpoint.clocks.machines import GuestClock, MachineClock, Maps
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.spans import Spans

SEEN = 1_000, 9_000


def clock(cpu: int, offset: int, through: Through | None = None, *, width: int = 5, **more: object) -> CpuClock:
    """One epoch, seen at host stamps 1000 to 9000."""
    epoch = Epoch(offset, feasible=(offset - width, offset + width))
    reach = Reach((SEEN[0] + offset, SEEN[1] + offset))
    return CpuClock(cpu, (epoch,), (reach,), through=through, **more)  # type: ignore[arg-type]


def machine(name: str) -> MachineClock:
    return MachineClock(name, "x86-tsc", "ticks", Rate(1, 1, "tsc2nsec"), SEEN, "x86_64")


def maps(*guests: tuple[str, str, list[CpuClock]]) -> Maps:
    return Maps(machine("host"), tuple(GuestClock(machine(n), p, tuple(c)) for n, p, c in guests))


def stamps(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


class TestAnyCpu:
    def test_cpus_that_agree_have_one_answer_with_the_bound_of_both(self) -> None:
        both = maps(("vm", "host", [clock(0, 100), clock(1, 103, width=9)]))
        answers = both.to_host(stamps(5_000))
        assert answers.status.tolist() == [Status.INSIDE]
        assert (answers.earliest.tolist(), answers.latest.tolist()) == ([4_888], [4_906])
        assert both.to_host(stamps(5_000), "vm", 0).earliest.tolist() == [4_895]

    def test_cpus_that_differ_have_two(self) -> None:
        both = maps(("vm", "host", [clock(0, 0), clock(1, 2_000)]))
        answers = both.to_host(stamps(5_000))
        assert answers.status.tolist() == [Status.AMBIGUOUS]
        assert answers.others.cpu.tolist() == [0, 1]
        assert answers.others.stamp.tolist() == [5_000, 3_000]
        back = both.to_guest(stamps(5_000))
        assert sorted(back.others.stamp.tolist()) == [5_000, 7_000]

    def test_one_that_is_refused_leaves_no_answer_for_any(self) -> None:
        both = maps(("vm", "host", [clock(0, 0), CpuClock(1, refusal="nothing is known")]))
        answers = both.to_host(stamps(5_000, 6_000))
        assert answers.status.tolist() == [Status.REFUSED] * 2
        assert answers.why(0) == "nothing is known"
        assert both.to_host(stamps(5_000), cpu=0).status.tolist() == [Status.INSIDE]

    def test_a_stamp_beyond_one_cpus_events_is_outside(self) -> None:
        late = clock(1, 0)
        short = CpuClock(0, (Epoch(0, feasible=(-5, 5)),), (Reach((1_000, 2_000)),))
        answers = maps(("vm", "host", [short, late])).to_host(stamps(1_500, 5_000))
        assert answers.status.tolist() == [Status.INSIDE, Status.OUTSIDE]

    @pytest.mark.parametrize(("guest", "cpu", "said"), [("x", None, "'x'"), (None, 7, "CPU 7"), ("vm2", 3, "CPU 3")])
    def test_what_is_not_there_is_said(self, guest: str | None, cpu: int | None, said: str) -> None:
        one = maps(("vm2" if guest == "vm2" else "vm", "host", [clock(0, 0)]))
        with pytest.raises(KeyError, match=said):
            one.to_host(stamps(1), guest, cpu)
        with pytest.raises(KeyError, match="which guest"):
            maps(("a", "host", [clock(0, 0)]), ("b", "host", [clock(0, 0)])).to_host(stamps(1))


class TestNested:
    def l2(self, through: Through | None, *l1: CpuClock) -> Maps:
        return maps(("l1", "host", list(l1)), ("l2", "l1", [clock(0, 50, through)]))

    def test_bounds_add_up(self) -> None:
        shared = Through(stays=((0, Spans(((None, None),))),))
        answers = self.l2(shared, clock(0, 100)).to_host(stamps(5_150), "l2", 0)
        assert answers.status.tolist() == [Status.INSIDE]
        assert (answers.earliest[0], answers.stamp[0], answers.latest[0]) == (4_990, 5_000, 5_010)
        back = self.l2(shared, clock(0, 100)).to_guest(stamps(5_000), "l2", 0)
        assert (back.earliest[0], back.stamp[0], back.latest[0]) == (5_140, 5_150, 5_160)

    def test_each_event_goes_by_the_cpu_that_its_thread_was_on(self) -> None:
        stays = (0, Spans(((None, 4_000),))), (1, Spans(((7_000, None),)))
        own = self.l2(Through("own", stays=stays), clock(0, 0), clock(1, 2_000))
        answers = own.to_host(stamps(3_050, 8_050), "l2")
        assert answers.stamp.tolist() == [3_000, 6_000]
        assert answers.status.tolist() == [Status.INSIDE] * 2
        back = own.to_guest(stamps(3_000, 6_000), "l2")
        assert back.stamp.tolist() == [3_050, 8_050]
        assert back.status.tolist() == [Status.INSIDE] * 2

    def test_where_that_is_not_known_both_are_answered(self) -> None:
        open_both = (0, Spans(((None, None),))), (1, Spans(((None, None),)))
        for through in (Through("own", stays=open_both), Through("own", stays=((0, Spans(())), (1, Spans(()))))):
            both = self.l2(through, clock(0, 0), clock(1, 2_000))
            answers = both.to_host(stamps(5_050), "l2")
            assert answers.status.tolist() == [Status.AMBIGUOUS]
            assert sorted(answers.others.stamp.tolist()) == [3_000, 5_000]
            assert both.to_guest(stamps(5_000), "l2").status.tolist() == [Status.AMBIGUOUS]

    def test_a_reference_clock_passes_the_middle_machine_by(self) -> None:
        both = self.l2(Through("reference", 70), clock(0, 0), CpuClock(1, refusal="not known"))
        answers = both.to_host(stamps(5_120), "l2")
        assert (answers.earliest[0], answers.latest[0]) == (4_995, 5_005)
        back = both.to_guest(stamps(5_000), "l2")
        assert (back.stamp[0], back.latest[0]) == (5_120, 5_125)

    def test_the_worse_of_both_levels_counts(self) -> None:
        shared = Through(stays=((0, Spans(((None, None),))),))
        stops = clock(0, 100, after=End(9_000, "l1 changed"))
        both = self.l2(shared, stops)
        # l2's own events end at l1 stamp 9000, which is host stamp 8900
        assert both.to_host(stamps(9_100), "l2").status.tolist() == [Status.OUTSIDE]
        answers = both.to_host(stamps(9_300), "l2")
        assert answers.status.tolist() == [Status.REFUSED]
        assert answers.why(0) == "l1 changed"
        assert both.to_host(stamps(9_300), "l2", extrapolate=True).status.tolist() == [Status.OUTSIDE]

    def test_three_levels(self) -> None:
        any_time = Spans(((None, None),))
        first = Through(stays=((0, any_time), (1, any_time)))
        for through, wanted in ((first, 4_970), (Through("reference", 40), 5_020)):
            deep = maps(
                ("l1", "host", [clock(0, 0), clock(1, 0)]),
                ("l2", "l1", [clock(0, 90, first), clock(1, 90, first)]),
                ("l3", "l2", [clock(0, 0, through)]),
            )
            stamp = wanted + (90 if through is first else 40)
            answers = deep.to_host(stamps(stamp), "l3")
            assert answers.stamp.tolist() == [wanted]
            assert answers.status.tolist() == [Status.INSIDE]
            assert deep.to_guest(stamps(wanted), "l3").stamp.tolist() == [stamp]
