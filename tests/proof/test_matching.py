"""Which thread is which guest CPU: by hint, by vCPU id, by causality alone, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.errors import UsageError
from counterpoint.proof.verdicts import Verdict
from counterpoint.timeline.sync import SyncResult, sync
from writers.tracedat import GuestOption
from writers.worlds import GUEST_ID, OffsetChange, Truth, tiny_pair

ENOUGH = {"windows": 300, "guest_events": 900, "vcpus": 2, "decoys": 2}


def matched(result: SyncResult) -> dict[int, tuple[int | None, str]]:
    return {v.guest_cpu: (v.host_tid, v.matched_by) for v in result.guests[0].vcpus}


def made(path: Path, guests: list[GuestOption] | None = None, **how: Any) -> tuple[Path, Path, Truth]:
    host, guest, truth = tiny_pair(**(ENOUGH | how))
    if guests is not None:
        host.guests = guests
    return host.write(path / "host.dat"), guest.write(path / "guest.dat"), truth


def test_by_the_guest_option(tmp_path: Path) -> None:
    host, guest, truth = made(tmp_path)
    assert matched(sync(host, guest)) == {c: (t, "guest-option") for c, t in truth.threads.items()}


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_by_causality_alone_another_vms_threads_are_excluded(tmp_path: Path, arch: str) -> None:
    host, guest, truth = made(tmp_path, arch=arch, claims=False, vcpus=3, decoys=3, host_cpus=3)
    result = sync(host, guest)
    assert matched(result) == {c: (t, "causality") for c, t in truth.threads.items()}
    assert result.is_sound


def test_the_guest_option_of_another_vm_says_nothing(tmp_path: Path) -> None:
    other = [GuestOption("other", 0xBAD, [(0, 961), (1, 962)])]
    host, guest, truth = made(tmp_path, other, claims=False)
    assert matched(sync(host, guest)) == {c: (t, "causality") for c, t in truth.threads.items()}


@pytest.mark.parametrize("wrong", [(0, 961), (0, 148), (0, 4711), (0, -1), (0, 0)])
def test_a_wrong_guest_option_is_noticed(tmp_path: Path, wrong: tuple[int, int]) -> None:
    host, guest, truth = made(tmp_path, [GuestOption("vm", GUEST_ID, [wrong, (1, 148)])], claims=False)
    result = sync(host, guest)
    assert matched(result)[0] == (truth.threads[0], "causality")
    assert matched(result)[1] == (148, "guest-option")
    notes = result.guests[0].vcpus[0].notes
    if wrong[1] > 0:
        assert any(f"names thread {wrong[1]}" in note for note in notes)
        assert any(("no kvm events" if wrong[1] == 4711 else "excluded") in note for note in notes)


def test_a_guest_option_stays_where_nothing_speaks_for_another_thread(tmp_path: Path) -> None:
    # too little, and no one offset fits
    changes = [OffsetChange(3_000_000, None, at) for at in (0.3, 0.6)]
    host, guest, truth = made(tmp_path, arch="arm64", windows=30, guest_events=60, change=changes)
    result = sync(host, guest, use_claims=True)
    assert {c: t for c, (t, _) in matched(result).items()} == truth.threads


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_the_vcpu_id_decides_between_threads_that_are_possible(tmp_path: Path, arch: str) -> None:
    host, guest, truth = made(tmp_path, arch=arch, windows=40, guest_events=4, decoys=0, claims=False)
    found = matched(sync(host, guest))
    for cpu, (tid, by) in found.items():
        assert tid in (truth.threads[cpu], None)
        assert by in ("vcpu-id", "causality")
    assert "vcpu-id" in {by for _, by in found.values()}


def test_a_thread_whose_offset_changed_is_found_by_its_pieces(tmp_path: Path) -> None:
    change = OffsetChange(9_000_000, None)
    host, guest, truth = made(tmp_path, windows=700, guest_events=2100, change=change, claims=False)
    result = sync(host, guest, use_claims=False)
    assert matched(result) == {c: (t, "causality") for c, t in truth.threads.items()}
    assert [len(v.epochs) for v in result.guests[0].vcpus] == [2, 2]


def test_a_thread_given_by_hand(tmp_path: Path) -> None:
    host, guest, truth = made(tmp_path, claims=False)
    result = sync(host, guest, tids=["0=147", "guest:1=148"])
    assert matched(result) == {c: (t, "given") for c, t in truth.threads.items()}
    assert result.is_sound


def test_a_wrong_thread_given_by_hand_is_no_proof(tmp_path: Path) -> None:
    host, guest, _ = made(tmp_path)
    first = sync(host, guest, tids=["0=961"]).guests[0].vcpus[0]
    assert (first.host_tid, first.matched_by) == (961, "given")
    assert first.verdict is Verdict.REFUTED
    assert not sync(host, guest, tids=["0=961"], use_claims=False).is_sound


def test_a_thread_given_by_hand_must_be_a_vcpus(tmp_path: Path) -> None:
    host, guest, _ = made(tmp_path)
    with pytest.raises(UsageError, match="4711 has no kvm events"):
        sync(host, guest, tids=["0=4711"])


def test_a_vm_that_was_not_recorded_matches_no_thread(tmp_path: Path) -> None:
    host, _, _ = tiny_pair(seed=1, **ENOUGH)
    _, guest, _ = tiny_pair(seed=2, **(ENOUGH | {"start": 345_002_000_000}))
    result = sync(host.write(tmp_path / "h.dat"), guest.write(tmp_path / "g.dat"), use_claims=False)
    assert not any(v.verdict.is_sound for v in result.guests[0].vcpus)
    assert not result.is_sound
