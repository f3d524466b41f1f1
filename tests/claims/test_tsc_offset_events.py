"""Whose offset a kvm_write_tsc_offset event speaks of, and when."""

from __future__ import annotations

from counterpoint.claims.tsc_offset_events import claims_of
from counterpoint.traces.recording import Recording
from writers.events import KVM_WRITE_TSC_OFFSET
from writers.tracedat import Buffer, TraceFile

ONE_VM = {101: 0, 102: 1}
TWO_VMS = {101: 0, 102: 1, 201: 0, 202: 1}


def host(tmp_path, writes, clock="x86-tsc") -> Recording:
    """``writes``: (stamp, pid, vCPU id, offset before, offset after)."""
    file = TraceFile(events=[KVM_WRITE_TSC_OFFSET], clock=clock)
    rows = [
        (
            stamp,
            file.payload(
                KVM_WRITE_TSC_OFFSET,
                pid,
                vcpu_id=vcpu,
                previous_tsc_offset=before % 2**64,
                next_tsc_offset=after % 2**64,
            ),
        )
        for stamp, pid, vcpu, before, after in writes
    ]
    file.buffers = [Buffer("", cpus={0: file.stream(rows)})]
    file.write(tmp_path / "host.dat")
    return Recording.open(tmp_path / "host.dat")


def said(claims) -> list[tuple[int | None, int, int | None, int | None]]:
    return [(c.tid, c.offset, c.host_from, c.host_to) for c in claims]


def test_a_write_says_what_held_before_and_after_it(tmp_path):
    claims = claims_of(host(tmp_path, [(1000, 101, 0, -5, -7)]), ONE_VM)

    assert said(claims) == [(101, -5, None, 1000), (101, -7, 1000, None)]


def test_writes_follow_each_other(tmp_path):
    claims = claims_of(host(tmp_path, [(1000, 101, 0, -5, -7), (2000, 101, 0, -7, 9)]), ONE_VM)

    assert said(claims) == [(101, -5, None, 1000), (101, -7, 1000, 2000), (101, 9, 2000, None)]


def test_where_a_write_was_lost_nothing_is_said(tmp_path):
    claims = claims_of(host(tmp_path, [(1000, 101, 0, -5, -7), (2000, 101, 0, 3, 9)]), ONE_VM)

    assert said(claims) == [(101, -5, None, 1000), (101, 9, 2000, None)]


def test_another_threads_write_is_the_one_vcpus_of_that_id(tmp_path):
    writes = [(1000, 101, 0, -5, -7), (2000, 99, 0, -7, 9)]

    assert said(claims_of(host(tmp_path, writes), ONE_VM)) == [
        (101, -5, None, 1000),
        (101, -7, 1000, 2000),
        (101, 9, 2000, None),
    ]


def test_another_threads_write_may_be_of_any_of_two_vms(tmp_path):
    writes = [(1000, 99, 0, -5, -7), (2000, 202, 1, 1, 2)]

    assert said(claims_of(host(tmp_path, writes), TWO_VMS)) == [(202, 1, None, 2000), (202, 2, 2000, None)]


def test_ticks_say_nothing_of_a_clock_in_ns(tmp_path):
    assert claims_of(host(tmp_path, [(1000, 101, 0, -5, -7)], clock="mono_raw"), ONE_VM) == []
