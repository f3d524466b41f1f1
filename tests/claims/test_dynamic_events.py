"""Probes that log an offset: which are known, whose vCPU they speak of, and when each value held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.claims.dynamic_events import MAX_VALUES, Log, Probe, check_probes, logs_of, parse_probe, recognised
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import to_signed
from counterpoint.errors import UsageError
from counterpoint.traces.recording import Recording
from writers.events import KVM_EXIT_ARM64, KVM_EXIT_X86, Event, FieldSpec
from writers.tracedat import Buffer, TraceFile

IP = FieldSpec("unsigned long", "__probe_ip")
SET_CNTVOFF = Event(2200, "lab", "set_cntvoff", [IP, FieldSpec("u64", "off")])
VCPU_LOAD = Event(
    2201, "lab", "vcpu_load", [IP, FieldSpec("s32", "vcpu_id"), FieldSpec("u64", "voff"), FieldSpec("u64", "poff")]
)
OTHERS = [
    Event(2300, "kprobes", "p___kvm_timer_set_cntvoff_0", [IP, FieldSpec("u64", "arg1")]),
    Event(2301, "kprobes", "p_two_wide", [IP, FieldSpec("u64", "off"), FieldSpec("u64", "voff")]),
    Event(2302, "kprobes", "p_narrow", [IP, FieldSpec("u32", "voff")]),
    Event(2303, "kprobes", "p_some_off", [IP, FieldSpec("u64", "off")]),
    Event(2304, "sched", "no_probe", [FieldSpec("u64", "voff")]),
    Event(2305, "kprobes", "p_set_cntvoff_two", [IP, FieldSpec("u64", "off"), FieldSpec("u64", "arg2")]),
    Event(2306, "kprobes", "p_text", [IP, FieldSpec("char", "voff", dynamic="data_loc")]),
]
OFF = Probe("lab", "set_cntvoff", "off")
VCPUS = {101: 0, 102: 1}

Row = tuple[int, int, Event, dict[str, int]]


def host(
    path: Path, rows: Sequence[Row], *, arm64: bool = True, clock: str = "mono_raw", cpus: int = 1, **options: Any
) -> Recording:
    """``rows``: (stamp, pid, event, fields), on one of ``cpus`` CPUs."""
    leave = KVM_EXIT_ARM64 if arm64 else KVM_EXIT_X86
    file = TraceFile(events=[leave, SET_CNTVOFF, VCPU_LOAD, *OTHERS], clock=clock)
    file.cpu_count = cpus
    records = [
        (stamp, file.payload(event, pid, **{k: v % (1 << 64) for k, v in fields.items()}))
        for stamp, pid, event, fields in rows
    ]
    file.buffers = [Buffer("", cpus={0: file.stream(records, **options)})]
    file.write(path / "host.dat")
    return Recording.open(path / "host.dat")


def sets(*events: tuple[int, int], pid: int = 101) -> list[Row]:
    """set_cntvoff events: (stamp, value)."""
    return [(stamp, pid, SET_CNTVOFF, {"off": value}) for stamp, value in events]


def runs(recording: Recording, named: Sequence[Probe] = (), tid: int = 101) -> list[tuple[int, int, int | None]]:
    """(value, begin, end) of what one thread's probe logged; None: to the end of the recording."""
    logs, _ = logs_of(recording, named, list(VCPUS), VCPUS)
    (log,) = [log for log in logs if log.tid == tid]
    end = int(recording.stamp.max()) + 1
    ends = [None if stamp == end else stamp for stamp in log.end.tolist()]
    return list(zip(log.value.tolist(), log.begin.tolist(), ends, strict=True))


# -- which probes


def test_known_probes_are_told_by_their_fields(tmp_path: Path) -> None:
    every = [SET_CNTVOFF, VCPU_LOAD, *OTHERS]
    recording = host(tmp_path, [(1000 + i, 101, event, {}) for i, event in enumerate(every)])

    assert {str(probe) for probe in recognised(recording)} == {
        "lab:set_cntvoff:off",
        "lab:vcpu_load:voff",
        "kprobes:p___kvm_timer_set_cntvoff_0:arg1",
        "kprobes:p_two_wide:voff",
    }


def test_no_probe_of_x86_is_known(tmp_path: Path) -> None:
    assert recognised(host(tmp_path, sets((1000, 5)), arm64=False, clock="x86-tsc")) == []


def test_a_probe_that_logged_nothing_is_none(tmp_path: Path) -> None:
    assert [str(p) for p in recognised(host(tmp_path, sets((1000, 5))))] == ["lab:set_cntvoff:off"]


def test_a_probe_is_named_by_system_name_and_field() -> None:
    assert parse_probe("lab:set_cntvoff:off") == OFF
    assert parse_probe("mine:entry:off=tsc_offset") == Probe("mine", "entry", "off", "tsc_offset")
    assert str(parse_probe("a:b:c=cntvoff")) == "a:b:c"


@pytest.mark.parametrize("text", ["", "lab", "lab:a", "lab:a:", ":a:b", "lab:a:b:c", "lab:a:b=", "lab:a:b=ticks", "=x"])
def test_what_names_no_field_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SYSTEM:NAME:FIELD"):
        parse_probe(text)


def test_a_named_event_must_be_there_with_that_field(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1000, 5)))
    check_probes([OFF], [recording])
    with pytest.raises(UsageError, match="no host has an event lab:other"):
        check_probes([Probe("lab", "other", "off")], [recording])
    with pytest.raises(UsageError, match="its integer fields are __probe_ip, off"):
        check_probes([Probe("lab", "set_cntvoff", "x")], [recording])
    with pytest.raises(UsageError, match="its integer fields are __probe_ip"):
        check_probes([Probe("kprobes", "p_text", "voff")], [recording])


# -- when a value held


def test_a_value_holds_over_puts_and_to_the_end(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1000, 0), (1100, 7), (1200, 0), (1300, 7), (1400, 0)))
    assert runs(recording) == [(7, 1100, None)]


def test_a_change_ends_one_value_and_begins_the_next(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1100, 7), (1200, 0), (1500, 9), (1600, 0), (1700, 9), (1800, 12)))
    assert runs(recording) == [(7, 1100, 1500), (9, 1500, 1800), (12, 1800, None)]


def test_zero_is_a_value_where_there_is_no_other(tmp_path: Path) -> None:
    assert runs(host(tmp_path, sets((1100, 0), (1200, 0)))) == [(0, 1100, None)]


def test_values_are_signed(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1100, -5)))
    (claim,) = logs_of(recording, [], [101], VCPUS)[0][0].claims
    assert isinstance(claim, CounterClaim)
    assert claim.cntvoff == -5


def test_where_events_were_lost_nobody_says_what_held(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1100, 7), (1200, 7), (1500, 9)), missed={2: 5})
    assert runs(recording) == [(7, 1100, 1201), (9, 1500, None)]


def test_a_value_that_is_there_again_after_a_loss_is_a_run_of_its_own(tmp_path: Path) -> None:
    """A nested guest may have run meanwhile."""
    recording = host(tmp_path, sets((1100, 7), (1200, 7), (1500, 7), (1600, 9)), missed={2: 5})
    assert runs(recording) == [(7, 1100, 1201), (7, 1500, 1600), (9, 1600, None)]


def test_what_was_lost_after_the_last_value_ends_it(tmp_path: Path) -> None:
    rows = [*sets((1100, 7)), *sets((1200, 5), (1300, 5), pid=102)]
    assert runs(host(tmp_path, rows, missed={2: 5})) == [(7, 1100, 1201)]


def test_where_a_cpu_is_not_seen_a_value_holds_until_it_is_put(tmp_path: Path) -> None:
    """The vCPU may have been loaded there with another."""
    rows = sets((1100, 7), (1200, 0), (1300, 7), (1400, 0), (1500, 9), (1600, 0), (1700, 7))
    recording = host(tmp_path, rows, cpus=2)
    assert runs(recording) == [(7, 1100, 1200), (7, 1300, 1400), (9, 1500, 1600), (7, 1700, None)]
    # of a probe that logs no puts, what never comes back held from first to last
    assert runs(host(tmp_path, sets((1100, 7), (1200, 7), (1300, 9)), cpus=2)) == [(7, 1100, 1201), (9, 1300, None)]
    assert runs(host(tmp_path, sets((1100, 7), (1200, 7), (1300, 9), (1400, 7), (1500, 1)), cpus=2)) == [
        (7, 1100, 1101), (7, 1200, 1201), (9, 1300, 1301), (7, 1400, 1401), (1, 1500, None),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0, 3, 5, 1 << 63])), min_size=1, max_size=40))
def test_runs_are_what_a_walk_over_the_events_finds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    stamp, events = 1000, []
    for step, value in steps:
        stamp += step
        events.append((stamp, value))
    found = runs(host(tmp_path_factory.mktemp("runs"), sets(*events)))
    values = [e for e in events if e[1]] or events
    changes = [e for before, e in zip([None, *values], values, strict=False) if before is None or before[1] != e[1]]
    ends = [*(at for at, _ in changes[1:]), None]
    assert found == [(to_signed(value), at, end) for (at, value), end in zip(changes, ends, strict=True)]


# -- claims


def test_a_value_that_comes_back_is_one_claim_of_several_spans(tmp_path: Path) -> None:
    rows = sets((1000, 7), (1100, 9), (1200, 7), (1300, 9), (1400, 7))
    (log,) = logs_of(host(tmp_path, rows), [], [101], VCPUS)[0]
    seven, nine = log.claims
    assert isinstance(seven, CounterClaim)
    assert (seven.source, seven.cntvoff, seven.tid) == ("lab:set_cntvoff:off", 7, 101)
    assert (seven.host_from, seven.host_to, nine.host_from, nine.host_to) == (1000, 1401, 1100, 1400)
    assert seven.held is not None
    assert nine.held is not None
    assert (seven.held.begin.tolist(), seven.held.end.tolist()) == ([1000, 1200, 1400], [1100, 1300, 1401])
    assert (nine.held.begin.tolist(), nine.held.end.tolist()) == ([1100, 1300], [1200, 1400])
    assert (seven.detail, nine.detail) == ("3 spans", "2 spans")


def test_the_probe_of_a_recorder_is_called_by_its_field() -> None:
    span = np.array([5], np.uint64), np.array([9], np.uint64), np.array([7])
    sources = [
        Log(Probe(system, "offset", "voff"), "cntvoff", 101, *span).claims[0].source
        for system in ("counterpoint_276_16246_1", "lab")
    ]

    assert sources == ["probe:voff", "lab:offset:voff"]


def test_another_threads_event_is_the_one_vcpus_of_that_id(tmp_path: Path) -> None:
    rows: list[Row] = [
        (1000, 101, VCPU_LOAD, {"vcpu_id": 0, "voff": 7}),
        (1100, 55, VCPU_LOAD, {"vcpu_id": 1, "voff": 9}),
    ]
    logs, warnings = logs_of(host(tmp_path, rows), [], [101, 102], VCPUS)
    assert {(log.tid, *log.value.tolist()) for log in logs} == {(101, 7), (102, 9)}
    assert warnings == []


def test_an_event_of_no_vcpus_thread_is_left_out_and_said(tmp_path: Path) -> None:
    recording = host(tmp_path, [*sets((1000, 7)), *sets((1100, 9), pid=55)])
    logs, warnings = logs_of(recording, [], [101, 102], VCPUS)
    assert [log.value.tolist() for log in logs] == [[7]]
    assert warnings == ["host: 1 events of lab:set_cntvoff:off are of no vCPU's thread: left out"]
    # two vCPUs of that id: it may be either's
    rows: list[Row] = [(1100, 55, VCPU_LOAD, {"vcpu_id": 0, "voff": 9})]
    logs, warnings = logs_of(host(tmp_path, rows), [], [101, 201], {101: 0, 201: 0})
    assert logs == []
    assert len(warnings) == 1


def test_what_changes_all_the_time_is_no_offset(tmp_path: Path) -> None:
    recording = host(tmp_path, sets(*((1000 + n, n + 1) for n in range(MAX_VALUES + 1))))
    logs, warnings = logs_of(recording, [], [101], VCPUS)
    assert logs == []
    assert warnings == [f"host: lab:set_cntvoff:off logs {MAX_VALUES + 1} values of thread 101, no offsets: left out"]


def test_on_x86_a_named_field_is_kvms_offset(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1000, -7), (1100, 9)), arm64=False, clock="x86-tsc")
    (log,) = logs_of(recording, [OFF], [101], VCPUS)[0]
    first, second = log.claims
    assert isinstance(first, Claim)
    assert isinstance(second, Claim)
    assert (first.offset, first.host_from, first.host_to) == (-7, 1000, 1100)
    assert (second.offset, second.host_from, second.host_to) == (9, 1100, 1101)
    assert logs_of(recording, [], [101], VCPUS)[0] == []


def test_ticks_of_the_tsc_say_nothing_of_stamps_in_ns(tmp_path: Path) -> None:
    recording = host(tmp_path, sets((1000, -7)), arm64=False, clock="mono")
    logs, warnings = logs_of(recording, [OFF], [101], VCPUS)
    assert logs == []
    assert "the stamps are in mono" in warnings[0]


def test_a_probe_that_is_named_is_not_taken_twice(tmp_path: Path) -> None:
    logs, _ = logs_of(host(tmp_path, sets((1000, 7))), [OFF], [101], VCPUS)
    assert len(logs) == 1
