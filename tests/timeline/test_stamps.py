"""Stamps as they are written: what is read of each form, and why others are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from counterpoint.clocks.counter import MASK
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.machines import MachineClock
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.wall import Wall
from counterpoint.timeline.stamps import (
    Kind,
    is_stamp,
    pairs_of_counter,
    printk_offset,
    read_stamps,
    resolve,
    sched_clock_offset,
    wall_text,
)

NS = 1_000_000_000
TSC = MachineClock("vm", "x86-tsc", "ticks", Rate(1, 1, "tsc2nsec"), (10**9, 10**10), "x86_64")
LOCAL = MachineClock("vm", "local", "ns", Rate.ns(), (10**9, 10**10), "aarch64")


def read(text: str, unit: str = "stamp", *, is_ns: bool = True) -> tuple[Kind, int, int]:
    written = read_stamps([text], unit, is_ns=is_ns)
    assert not written.wrong, written.wrong
    return Kind(int(written.kind[0])), int(written.lo[0]), int(written.hi[0])


class TestForms:
    @pytest.mark.parametrize(
        ("text", "kind", "lo", "hi"),
        [
            ("123", Kind.STAMP, 123, 123),
            (" 0x7b ", Kind.STAMP, 123, 123),
            ("0XFFFFFFFFFFFFFFFF", Kind.STAMP, MASK, MASK),
            ("12.345678901", Kind.STAMP, 12_345_678_901, 12_345_678_901),
            # cut or rounded to whole us
            ("12.345678", Kind.STAMP, 12_345_677_500, 12_345_678_999),
            ("[   12.345678] usb 1-1: new device", Kind.PRINTK, 12_345_678_000, 12_345_678_999),
            ("<6>[   12.345678] usb", Kind.PRINTK, 12_345_678_000, 12_345_678_999),
            ("[   12.345678][  T123] usb", Kind.PRINTK, 12_345_678_000, 12_345_678_999),
            ("1970-01-01T00:00:10.000000001Z", Kind.WALL, 10 * NS + 1, 10 * NS + 1),
            ("1970-01-01 02:00:10.000000001+02:00", Kind.WALL, 10 * NS + 1, 10 * NS + 1),
            ("1969-12-31T23:00:10.000000001-0100", Kind.WALL, 10 * NS + 1, 10 * NS + 1),
            ("1970-01-01T00:00:10", Kind.WALL, 10 * NS - NS // 2, 11 * NS - 1),
            ("@10.000000001", Kind.WALL, 10 * NS + 1, 10 * NS + 1),
        ],
    )
    def test_each_is_read(self, text: str, kind: Kind, lo: int, hi: int) -> None:
        assert is_stamp(text)
        assert read(text) == (kind, lo, hi)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "host.dat",
            "-5",
            "1e9",
            "12.",
            ".5",
            "0x",
            "0x1ffffffffffffffff",
            "[12.345] x",
            "[ abc] x",
            "2026-11-25",
            "@",
            "１２",
        ],
    )
    def test_others_are_none(self, text: str) -> None:
        assert not is_stamp(text)
        assert read_stamps([text], is_ns=True).wrong.keys() == {0}

    @pytest.mark.parametrize("text", ["99999999999999999999", "2026-13-45T00:00:00Z", "2026-11-25T04:08:10+99:99"])
    def test_some_are_written_like_one_and_are_none(self, text: str) -> None:
        assert read_stamps([text], is_ns=True).wrong

    def test_seconds_are_of_clocks_in_ns(self) -> None:
        assert "ticks" in read_stamps(["12.5"], is_ns=False).wrong[0]
        assert read("12.000000001", "ns", is_ns=False) == (Kind.NS, 12 * NS + 1, 12 * NS + 1)
        assert read_stamps(["12.5"], "counter", is_ns=True).wrong

    def test_a_few_wrong_ones_leave_the_others(self) -> None:
        written = read_stamps(["1", "x", "3"], is_ns=True)
        assert written.lo.tolist() == [1, 0, 3]
        assert written.wrong == {1: "'x' is no stamp"}


def test_wall_times_are_written_as_they_are_read() -> None:
    for ns in (0, 1, 1_795_579_690_123_456_789, -1, (1 << 63) - 1, -(1 << 63)):
        text = wall_text(ns)
        assert np.int64(np.uint64(read(text)[1])) == ns


class TestPrintk:
    def test_what_is_local_clock_needs_nothing(self) -> None:
        assert printk_offset(replace(TSC, clock="perf"), None) == 0
        assert printk_offset(LOCAL, None) == 0

    def test_x86_adds_a_constant_that_its_log_tells(self) -> None:
        local = replace(LOCAL, arch="x86_64")
        with pytest.raises(ValueError, match="Marking stable"):
            printk_offset(local, None)
        line = "[    1.061448] sched_clock: Marking stable (1046001012, 9563)->(1061447842, -15437267)"
        found = sched_clock_offset(line)
        assert found == -15_437_267
        assert printk_offset(local, found) == -15_437_267
        assert sched_clock_offset("[    0.1] something else") is None

    @pytest.mark.parametrize("clock", ["x86-tsc", "mono_raw", "mono", "global"])
    def test_other_clocks_are_not_tied_to_it(self, clock: str) -> None:
        with pytest.raises(ValueError, match="nothing ties"):
            printk_offset(replace(TSC, clock=clock), None)

    def test_a_line_is_a_stamp_to_the_microsecond(self) -> None:
        stamps = resolve(read_stamps(["[    5.000001] x"], is_ns=True), LOCAL, printk=-15_437_267)
        assert (stamps.lo.tolist(), stamps.hi.tolist()) == ([5_015_438_267], [5_015_439_266])
        refused = resolve(read_stamps(["[    5.000001] x"], is_ns=True), TSC, printk="no way")
        assert refused.why == {0: "no way"}


class TestCounter:
    # K of the guest of a real arm64 recording
    counter = ArchCounter(24_000_000, -214955950111149651)

    def test_without_k_the_reason_is_given(self) -> None:
        written = read_stamps(["5"], "counter", is_ns=True)
        assert "constant K" in resolve(written, replace(LOCAL, clock="mono_raw")).why[0]
        assert "-C x86-tsc" in resolve(written, replace(LOCAL, clock="mono")).why[0]
        assert resolve(written, TSC).lo.tolist() == [5]

    def test_pairs_of_a_counter_become_pairs_of_stamps(self) -> None:
        pair = ClockPair(1_681_891_984, NS, 40)
        assert pairs_of_counter([pair], TSC) == [pair]
        (moved,) = pairs_of_counter([pair], replace(LOCAL, clock="mono_raw"), self.counter)
        assert moved.counter == int(self.counter.stamps(np.array([pair.counter], np.uint64))[0][0])
        assert moved.bound_ns == 41
        rough = replace(self.counter, k_hi=self.counter.k + (700 << 24))
        (moved,) = pairs_of_counter([pair], replace(LOCAL, clock="mono_raw"), rough)
        assert moved.bound_ns == 741
        with pytest.raises(ValueError, match="constant K"):
            pairs_of_counter([pair], replace(LOCAL, clock="mono_raw"))
        assert pairs_of_counter([], replace(LOCAL, clock="mono")) == []


class TestNsAndWall:
    def test_ns_are_all_the_ticks_that_have_them(self) -> None:
        stamps = resolve(read_stamps(["100"], "ns", is_ns=False), TSC)
        assert (stamps.lo.tolist(), stamps.hi.tolist()) == ([200], [201])
        assert resolve(read_stamps(["100"], "ns", is_ns=True), LOCAL).lo.tolist() == [100]
        assert "how long a tick" in resolve(read_stamps(["100"], "ns", is_ns=False), replace(TSC, rate=None)).why[0]

    def test_wall_times_need_one_that_is_known(self) -> None:
        written = read_stamps(["@10.000000000"], is_ns=False)
        assert "--realtime" in resolve(written, TSC).why[0]
        wall = Wall.of(TSC, (ClockPair(10**9, 10 * NS, 5),))
        stamps = resolve(written, TSC, wall=wall)
        assert stamps.lo[0] <= 10**9 <= stamps.hi[0]
        assert stamps.hi[0] - stamps.lo[0] < 3000
        far = resolve(read_stamps(["@9999999999"], is_ns=False), TSC, wall=wall)
        assert "too far" in far.why[0]
