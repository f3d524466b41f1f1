"""What anchors of a hypervisor's own clock leave of its guest's offset: simulated worlds of three levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.proof.anchors import hypervisor
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync


def made(folder: Path, arch: Any) -> tuple[dict[str, Any], SyncResult]:
    options = WorldOptions(arch=arch, nested=1, vtimers=True, events=3000, seed=2, vcpus=1, latency="emulated")
    truth = World(options).write(folder)
    files = folder / "host.dat", folder / "guest.dat", folder / "l2.dat"
    return truth, sync(*files, parents={"l2": "guest"}, use_claims=False)


@pytest.mark.parametrize("arch", ["arm64", "x86"])
def test_a_nested_guest_is_narrowed_by_its_hypervisors_anchors(tmp_path, arch):
    truth, result = made(tmp_path, arch)

    l1, l2 = (guest.vcpus[0].epochs[0] for guest in result.guests)

    entry = truth["guests"][1]["vcpus"][0]["epochs"][0]
    low, high = entry.get("offset_range") or (entry["offset"], entry["offset"])
    assert l2.feasible is not None and l2.by_windows is not None and l1.feasible is not None
    assert l2.by_windows[0] <= l2.feasible[0] <= low <= high <= l2.feasible[1] <= l2.by_windows[1]
    assert l2.feasible != l2.by_windows
    assert {(a.kind, a.assumption) for a in l2.anchors} == {
        (hypervisor.KIND, "what the anchors of guest's own clock assume")
    }
    assert l2.feasible[1] - l2.feasible[0] >= l1.feasible[1] - l1.feasible[0]


def test_a_nested_guests_windows_rest_on_no_anchor(tmp_path):
    _, result = made(tmp_path, "x86")
    nested = result.guests[1].pool
    assert nested is not None and nested.guest_host is not None

    other = nested.anchored

    assert other is not None and other.guest_host is not None
    assert other.anchored is None
    tid = result.guests[1].vcpus[0].host_tid
    assert tid is not None
    wide, sharp = (pool.thread(tid).windows for pool in (nested, other))
    assert (sharp.hi - sharp.lo)[sharp.is_run].sum() < (wide.hi - wide.lo)[wide.is_run].sum()


def test_anchors_of_the_hypervisor_that_no_event_can_bear_are_not_used(tmp_path):
    _, result = made(tmp_path, "x86")
    guest = result.guests[1]
    epoch = guest.vcpus[0].epochs[0]
    assert guest.pool is not None and guest.vcpus[0].host_tid is not None and epoch.by_windows is not None
    thread = guest.pool.thread(guest.vcpus[0].host_tid)
    far = epoch.by_windows[1] + 10**6
    elsewhere = replace(epoch, feasible=(far, far + 1000))

    found = hypervisor.tighten_by(guest.recording, elsewhere, thread, "guest")

    assert found.interval == elsewhere.feasible
    assert found.contradictions and "none of them is used" in found.notes[0]
