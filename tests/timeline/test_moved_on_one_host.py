"""A guest that another VMM of the same host takes over: a real recording, whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import counterpoint
from counterpoint.clocks.counter import to_signed
from counterpoint.timeline.sync import SyncResult

FOLDER = Path(__file__).parent.parent / "data" / "x86-migrate"


@pytest.fixture(scope="module")
def result() -> SyncResult:
    return counterpoint.sync(FOLDER / "host.dat", FOLDER / "guest.dat")


def test_each_vcpu_is_followed_into_its_new_thread(result):
    truth = json.loads((FOLDER / "truth.json").read_text())
    for vcpu, true in zip(result.guests[0].vcpus, truth["vcpus"], strict=True):
        found = [(vcpu.host_tid, None), *((epoch.host_tid, epoch.host) for epoch in vcpu.epochs[1:])]
        assert found == [(true["stays"][0]["host_tid"], None), (true["stays"][1]["host_tid"], "host")]
        for epoch, stay in zip(vcpu.epochs, true["stays"], strict=True):
            assert epoch.verdict.is_sound
            low, high = (to_signed(bound) for bound in epoch.feasible)
            assert low <= stay["offset"] <= high
            assert not epoch.unknown


def test_all_its_events_are_on_the_timeline(result):
    assert result.is_sound
    assert not any(vcpu.unplaced for vcpu in result.guests[0].vcpus)
    assert len(result.timeline.ts_ns) == len(result.host) + len(result.guests[0].recording)
