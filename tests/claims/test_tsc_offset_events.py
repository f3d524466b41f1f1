"""Whose offset a kvm_write_tsc_offset event speaks of, and when."""

from __future__ import annotations

import pytest

from counterpoint.claims.tsc_offset_events import claims_of
from counterpoint.proof.verdicts import Verdict
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from writers.events import KVM_ENTRY_X86, KVM_EXIT_X86, KVM_WRITE_TSC_OFFSET
from writers.tracedat import Buffer, TraceFile

ONE_VM = {101: 0, 102: 1}
TWO_VMS = {101: 0, 102: 1, 201: 0, 202: 1}


def host(tmp_path, writes, clock="x86-tsc", ran=(), **options) -> Recording:
    """``writes``: (stamp, pid, vCPU id, offset before, offset after); ``ran``: (stamp, pid) of entries and exits."""
    file = TraceFile(events=[KVM_WRITE_TSC_OFFSET, KVM_ENTRY_X86, KVM_EXIT_X86], clock=clock)
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
    kinds = {True: KVM_ENTRY_X86, False: KVM_EXIT_X86}
    rows += [(stamp, file.payload(kinds[stamp % 2 == 0], pid)) for stamp, pid in ran]
    file.buffers = [Buffer("", cpus={0: file.stream(sorted(rows), **options)})]
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


def test_a_vcpu_that_is_created_had_no_offset_before(tmp_path):
    recording = host(tmp_path, [(1000, 101, 0, 0, -7)], ran=[(1100, 101), (1201, 101)])

    assert said(claims_of(recording, ONE_VM)) == [(101, -7, None, None)]


def test_an_offset_of_0_at_which_the_guest_ran_counts(tmp_path):
    for ran in ([(900, 101), (951, 101), (1100, 101)], [(951, 101), (1100, 101)]):
        recording = host(tmp_path, [(1000, 101, 0, 0, -7)], ran=ran)

        assert said(claims_of(recording, ONE_VM)) == [(101, 0, None, 1000), (101, -7, 1000, None)]


def test_a_restore_that_writes_twice_claims_what_the_guest_ran_with(tmp_path):
    # as cloud-hypervisor does it: each vCPU has two writes before it runs
    writes = [(1000, 101, 0, 0, -7), (1010, 101, 0, -7, -9), (1020, 102, 1, 0, -9), (1030, 102, 1, -9, -9)]
    recording = host(tmp_path, writes, ran=[(1100, 101), (1100, 102)])

    assert said(claims_of(recording, ONE_VM)) == [(101, -9, None, None), (102, -9, None, None)]


def test_what_was_written_between_two_runs_is_no_epoch(tmp_path):
    writes = [(1000, 101, 0, -5, -7), (1010, 101, 0, -7, -9)]
    recording = host(tmp_path, writes, ran=[(900, 101), (1100, 101)])

    assert said(claims_of(recording, ONE_VM)) == [(101, -5, None, 1000), (101, -9, 1000, None)]


def test_where_events_were_lost_the_guest_may_have_run(tmp_path):
    ran = [(800, 55), (900, 55), (1100, 101)]
    lossy = {"missed": {1: 3}}

    recording = host(tmp_path, [(1000, 101, 0, -5, -7)], ran=ran, **lossy)
    assert said(claims_of(recording, ONE_VM)) == [(101, -5, None, 1000), (101, -7, 1000, None)]

    # a vCPU of which nothing was seen before is taken as created; what held before the write is not said
    recording = host(tmp_path, [(1000, 101, 0, 0, -7)], ran=ran, **lossy)
    assert said(claims_of(recording, ONE_VM)) == [(101, -7, 1000, None)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hotplugged_vcpu_has_no_epoch_before_it_was_created(tmp_path, seed):
    truth = World(WorldOptions(seed=seed, vcpus=3, hotplug=True, events=8000)).write(tmp_path / "world")
    result = sync(tmp_path / "world" / "host.dat", tmp_path / "world" / "guest.dat")

    assert result.is_sound
    (created,) = [v for v in result.guests[0].vcpus if v.guest_cpu == 2]
    (known,) = truth["guests"][0]["vcpus"][2]["epochs"]
    (epoch,) = created.epochs
    assert (epoch.offset, epoch.source) == (known["offset"], "kvm_write_tsc_offset")
    assert [c.verdict for c in created.claims] == [Verdict.PROVED]
