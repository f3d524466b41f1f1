"""What is known of the counter behind two recordings: its frequency, and K of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.arch_counter import Clock, scale_of
from counterpoint.errors import UsageError
from counterpoint.proof.counters import Counters, KnownK, by_compare_values
from counterpoint.traces.recording import Recording
from writers.events import KVM_EXIT_ARM64, KVM_EXIT_X86, MARK, Event, FieldSpec
from writers.tracedat import Buffer, TraceFile

SAVE = Event(
    906, "kvm", "kvm_timer_save_state",
    [FieldSpec("unsigned long", "ctl"), FieldSpec("u64", "cval"), FieldSpec("int", "timer_idx")],
)  # fmt: skip
HOST_K, GUEST_K = -(10**17) - 7, 3 * 10**16 + 5


def machine(
    path: Path, name: str, hz: int, k: int, *, clock: Clock = "mono_raw", step: int = 1, count: int = 400,
    arm64: bool = True, cval_hz: int = 0, seed: int = 1,
) -> Recording:  # fmt: skip
    """Marks at ticks of a counter that moves by ``step``; with ``cval_hz``, timers saved a little ahead of them."""
    scale = scale_of(hz, clock)
    assert scale is not None
    rng = np.random.default_rng(seed)
    ticks = (np.cumsum(rng.integers(3, 40_000, count)) + 10**10).astype(np.uint64) * np.uint64(step)
    file = TraceFile(events=[MARK, SAVE, KVM_EXIT_ARM64 if arm64 else KVM_EXIT_X86], clock=clock)
    rows = []
    for tick, stamp in zip(ticks.tolist(), scale.to_ns(ticks, k).tolist(), strict=True):
        if cval_hz:
            cval = (tick - 10**9) * cval_hz // hz + int(rng.integers(0, 2_000))
            rows.append((stamp, file.payload(SAVE, 5, ctl=1, cval=cval, timer_idx=1)))
        else:
            rows.append((stamp, file.payload(MARK, 5)))
    file.buffers = [Buffer("", cpus={0: file.stream(rows)})]
    file.write(path / f"{name}.dat")
    return Recording.open(path / f"{name}.dat")


def pair(path: Path, hz: int = 24_000_000, guest_hz: int | None = None, **how: Any) -> dict[str, Recording]:
    return {
        "host": machine(path, "host", hz, HOST_K, **how),
        "guest": machine(path, "guest", guest_hz or hz, GUEST_K, seed=2, **(how | {"cval_hz": 0})),
    }


# -- the frequency


def test_the_stamps_tell_the_frequency(tmp_path: Path) -> None:
    info = Counters(pair(tmp_path)).info("host", "guest")
    assert info is not None
    assert (info.hz, info.source, info.pair is None) == (24_000_000, "lattice", False)
    assert info.reason.startswith("K of host and guest is not known (--k host=K --k guest=K says it)")


def test_a_recording_of_few_events_takes_it_from_the_other(tmp_path: Path) -> None:
    recordings = pair(tmp_path) | {"guest": machine(tmp_path, "few", 24_000_000, GUEST_K, count=3)}
    info = Counters(recordings).info("host", "guest")
    assert info is not None
    assert (info.hz, info.source) == (24_000_000, "lattice")


def test_where_the_stamps_do_not_tell_all_is_in_ns(tmp_path: Path) -> None:
    recordings = pair(tmp_path, 1_000_000_000)
    info = Counters(recordings).info("host", "guest")
    assert info is not None
    assert info.pair is None
    assert "all is in ns (--frequency HZ says it)" in info.reason
    given = Counters(recordings, 1_000_000_000).info("host", "guest")
    assert given is not None
    assert (given.hz, given.source, given.pair is None) == (1_000_000_000, "given", False)


def test_a_frequency_that_the_stamps_belie_is_said_to(tmp_path: Path) -> None:
    info = Counters(pair(tmp_path), 25_000_000).info("host", "guest")
    assert info is not None
    assert (info.hz, info.pair) == (None, None)
    assert info.reason == "the stamps of host or guest are not those of a counter of 25000000 Hz"


def test_two_frequencies_have_no_cntvoff(tmp_path: Path) -> None:
    info = Counters(pair(tmp_path, 24_000_000, 25_000_000)).info("host", "guest")
    assert info is not None
    assert info.pair is None
    assert "of different frequencies" in info.reason


@pytest.mark.parametrize("frequency", [0, -5, 1_000_000_001])
def test_frequencies_that_ns_cannot_show_are_refused(frequency: int) -> None:
    with pytest.raises(UsageError, match="--frequency"):
        Counters({}, frequency)


@pytest.mark.parametrize(("clock", "arm64"), [("mono", True), ("mono_raw", False)])
def test_other_stamps_are_no_counters(tmp_path: Path, clock: Any, arm64: bool) -> None:
    recordings = {n: machine(tmp_path, n, 24_000_000, 5, arm64=arm64) for n in ("host", "guest")}
    for recording in recordings.values():
        recording.__dict__["clock"] = clock
    counters = Counters(recordings, 24_000_000, [("host", (5, 5))])
    assert counters.info("host", "guest") is None
    assert len(counters.unused()) == 2
    assert all("are not those of arm64's counter" in text for text in counters.unused())


def test_compare_values_tell_a_counter_that_steps_by_several_ticks(tmp_path: Path) -> None:
    """ARMv8.6's counters run at 1 GHz, and many step by 40: their stamps are those of one of 25 MHz."""
    recordings = pair(tmp_path, 1_000_000_000, step=40, cval_hz=1_000_000_000)
    info = Counters(recordings).info("host", "guest")
    assert info is not None
    assert (info.hz, info.others) == (1_000_000_000, ())
    assert info.pair is not None
    recordings = pair(tmp_path, 25_000_000, cval_hz=25_000_000)
    info = Counters(recordings).info("host", "guest")
    assert info is not None
    assert (info.hz, info.others) == (25_000_000, ())


def test_without_compare_values_it_is_said_what_else_the_frequency_may_be(tmp_path: Path) -> None:
    info = Counters(pair(tmp_path, 25_000_000)).info("host", "guest")
    assert info is not None
    assert info.hz == 25_000_000
    assert {50_000_000, 100_000_000, 1_000_000_000} <= set(info.others)


def test_few_compare_values_tell_nothing(tmp_path: Path) -> None:
    host = machine(tmp_path, "host", 25_000_000, 5, count=10, cval_hz=25_000_000)
    assert by_compare_values(host, (25_000_000, 50_000_000)) is None
    assert by_compare_values(host, (25_000_000,)) is None


# -- K


def test_k_that_is_given_gives_cntvoff(tmp_path: Path) -> None:
    given = [("host", (HOST_K, HOST_K)), ("guest", (GUEST_K, GUEST_K))]
    info = Counters(pair(tmp_path), None, given).info("host", "guest")
    assert info is not None
    assert info.reason == ""
    assert (info.host_k, info.guest_k) == (KnownK(HOST_K, HOST_K, "given"), KnownK(GUEST_K, GUEST_K, "given"))
    assert info.pair is not None
    assert info.pair.host_whole is not None
    assert info.pair.host_whole[0] == info.pair.host_whole[1]


def test_a_k_that_the_stamps_exclude_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--k host=.*: no K in it suits the stamps of host"):
        Counters(pair(tmp_path), None, [("host", (HOST_K + 10**8, HOST_K + 10**8))]).info("host", "guest")


def test_two_words_on_k_must_have_something_in_common(tmp_path: Path) -> None:
    counters = Counters(pair(tmp_path), None, [("host", (HOST_K - 9, HOST_K)), ("host", (HOST_K, HOST_K + 9))])
    info = counters.info("host", "guest")
    assert info is not None
    assert info.host_k == KnownK(HOST_K, HOST_K, "given")
    with pytest.raises(UsageError, match="nothing in common"):
        Counters({}, None, [("host", (1, 2)), ("host", (3, 4))])


def test_a_guests_k_by_its_recording_is_its_guests_hosts(tmp_path: Path) -> None:
    recordings = pair(tmp_path) | {"l2": machine(tmp_path, "l2", 24_000_000, 77, seed=5)}
    counters = Counters(recordings)
    info = counters.info("host", "guest")
    assert info is not None
    assert info.pair is not None
    whole = info.pair.guest.whole((GUEST_K, GUEST_K))
    assert whole is not None
    info = counters.with_guest(info, "host", "guest", (whole[0] - 5, whole[1] + 5))
    assert info.guest_k is not None
    assert info.guest_k.source == "recording"
    assert info.guest_k.lo <= GUEST_K <= info.guest_k.hi
    assert "K of host is not known" in info.reason
    counters.learn("host", "guest", info)
    below = counters.info("guest", "l2")
    assert below is not None
    assert below.host_k == info.guest_k


def test_a_given_k_and_the_recording_may_contradict_each_other(tmp_path: Path) -> None:
    counters = Counters(pair(tmp_path), None, [("guest", (GUEST_K, GUEST_K))])
    info = counters.info("host", "guest")
    assert info is not None
    assert info.pair is not None
    whole = info.pair.guest.whole((GUEST_K, GUEST_K))
    assert whole is not None
    info = counters.with_guest(info, "host", "guest", (whole[0] + 3, whole[1] + 9))
    assert info.guest_k is None
    assert f"K of guest is given as {GUEST_K}, but its timers tell that it is" in info.reason


def test_the_anchors_word_counts_only_in_its_own_ticks(tmp_path: Path) -> None:
    counters = Counters(pair(tmp_path, 25_000_000), 50_000_000)
    info = counters.info("host", "guest")
    assert info is not None
    assert counters.with_guest(info, "host", "guest", (5, 9)) == info
    assert counters.with_guest(info, "host", "guest", (9, 5)) == info


def test_guests_of_one_host_must_agree_on_its_k(tmp_path: Path) -> None:
    recordings = pair(tmp_path) | {"other": machine(tmp_path, "other", 24_000_000, 99, seed=4)}
    counters = Counters(recordings, None, [("guest", (GUEST_K, GUEST_K)), ("other", (99, 99))])

    def learned(guest: str, distance: int) -> Any:
        info = counters.info("host", guest)
        assert info is not None
        return counters.learn("host", guest, replace(info, agreed=(("probe", (distance - 4, distance + 4)),)))

    first = learned("guest", 1000)
    assert first.pair.guest_whole is not None
    ((source, interval),) = first.host_k_by_claims
    assert source == "probe"
    other = counters.info("host", "other")
    assert other is not None
    assert other.pair is not None
    assert other.pair.guest_whole is not None
    same = 1000 + first.pair.guest_whole[0] - other.pair.guest_whole[0]
    second = learned("other", same + 3)
    ((_, narrowed),) = second.host_k_by_claims
    assert interval[0] < narrowed[0] <= narrowed[1] <= interval[1]
    assert counters.warnings == []
    learned("other", same + 100)
    assert len(counters.warnings) == 1
    assert "probe of host cannot be right of both other and other" in counters.warnings[0]
