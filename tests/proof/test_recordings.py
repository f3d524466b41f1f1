"""Full-size recordings with known truth: what is proved, derived and refuted of each."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from counterpoint.commands.main import main
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.masked import without

pytestmark = pytest.mark.recordings

NOTHING = {"x86-no-overlap"}
"""Pairs of which nothing can be said: they do not overlap."""

BIG = {"arm64-nested"}
NAMES = sorted(p.parent.name for p in RECORDINGS.glob("*/truth.json"))
CLAIMED = ["x86-agent", "x86-vcpus-differ", "x86-offset-change", "x86-guest-wrmsr"]
USUAL = [n for n in NAMES if n not in NOTHING | BIG]


def pairs(names: list[str]) -> Any:
    """Parametrize by the recordings that are there; one that is skipped where there is no folder."""
    there = [n for n in names if n in NAMES]
    if not NAMES:
        return pytest.mark.parametrize(
            "name",
            [pytest.param("", marks=pytest.mark.skip(reason="no folder of recordings (COUNTERPOINT_RECORDINGS)"))],
        )
    if os.environ.get("COUNTERPOINT_NO_SKIP") == "1":
        there = names
    return pytest.mark.parametrize("name", there)


@cache
def truth_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RECORDINGS / name / "truth.json").read_text())
    return loaded


def files(name: str) -> list[str]:
    truth = truth_of(name)
    return [str(RECORDINGS / name / file) for file in (truth["host"], *(g["file"] for g in truth["guests"]))]


def parents(name: str) -> dict[str, str]:
    return {Path(g["file"]).stem: g["parent"] for g in truth_of(name)["guests"]}


@cache
def proved(name: str, use_claims: bool) -> SyncResult:
    return sync(*files(name), use_claims=use_claims, parents=parents(name))


def expected(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(guest, what is true of one of its CPUs)."""
    return [(Path(g["file"]).stem, vcpu) for g in truth_of(name)["guests"] for vcpu in g["vcpus"]]


def of(result: SyncResult, guest: str, cpu: int) -> VcpuProof:
    (found,) = [g for g in result.guests if g.name == guest]
    return next(v for v in found.vcpus if v.guest_cpu == cpu)


def true_range(epoch: dict[str, Any]) -> tuple[int, int]:
    lo, hi = epoch.get("offset_range") or (epoch["offset"], epoch["offset"])
    return lo, hi


def holds_truth(epoch: EpochProof, truth: dict[str, Any]) -> bool:
    """Whether the proved interval meets what is known (an exact offset, or a range that holds it)."""
    lo, hi = true_range(truth)
    return epoch.feasible is not None and epoch.feasible[0] <= hi and lo <= epoch.feasible[1]


@pairs(USUAL)
@pytest.mark.parametrize("use_claims", [True, False])
def test_every_vcpu_is_matched_and_its_epochs_hold_the_truth(name: str, use_claims: bool) -> None:
    result = proved(name, use_claims)
    for guest, truth in expected(name):
        vcpu = of(result, guest, truth["guest_cpu"])
        assert vcpu.host_tid == truth["host_tid"]
        assert len(vcpu.epochs) == len(truth["epochs"])
        for epoch, known in zip(vcpu.epochs, truth["epochs"], strict=True):
            assert holds_truth(epoch, known)
            assert epoch.violations == 0
            assert epoch.inside > 0
            if known["unit"] == "ticks" and known["from_host"] and known["to_host"] is None and use_claims:
                assert epoch.host_from == known["from_host"]


@pairs(USUAL)
def test_without_claims_every_vcpu_is_derived_with_the_same_matching(name: str) -> None:
    blind, told = proved(name, False), proved(name, True)
    assert blind.is_sound
    for guest, truth in expected(name):
        vcpu = of(blind, guest, truth["guest_cpu"])
        assert [e.verdict for e in vcpu.epochs] == [Verdict.DERIVED] * len(truth["epochs"])
        assert vcpu.host_tid == of(told, guest, truth["guest_cpu"]).host_tid == truth["host_tid"]


@pairs(CLAIMED)
def test_right_claims_in_the_files_are_proved(name: str) -> None:
    result = proved(name, True)
    assert result.is_sound
    claims = [c for g in result.guests for v in g.vcpus for c in v.claims]
    assert claims
    assert {c.verdict for c in claims} == {Verdict.PROVED}


@pairs(["x86-agent", "x86-busy", "x86-lossy", "arm64-monoraw"])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_claim_off_by_more_than_the_width_is_refuted_and_can_be_looked_up(
    name: str, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    guest, truth = expected(name)[0]
    epoch = of(proved(name, False), guest, truth["guest_cpu"]).epochs[0]
    windows = epoch.by_windows or epoch.feasible
    assert windows is not None
    wrong = (windows[1] if side > 0 else windows[0]) + side
    claim = f"{truth['guest_cpu']}={wrong}"
    assert main(["verify", *files(name), "--offset", claim, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    vcpu = report["guests"][0]["vcpus"][0]
    assert vcpu["verdict"] == "refuted"
    proof = next(c for c in vcpu["claims"] if c["source"] == "given")
    assert (proof["verdict"], proof["offset"]) == ("refuted", wrong)
    assert proof["violations"] > 0
    example = proof["counterexample"]
    assert example["host_gap"][0] < example["host_stamp"] < example["host_gap"][1]
    assert example["guest_stamp"] - wrong == example["host_stamp"]
    main(["show", files(name)[0], "--around", str(example["host_stamp"]), "--context", "400", "--event", "kvm:*"])
    shown = capsys.readouterr().out
    assert str(truth["host_tid"]) in shown
    for stamp in example["host_gap"]:
        text = str(stamp) if truth["epochs"][0]["unit"] == "ticks" else f"{stamp // 10**9}.{stamp % 10**9:09}"
        assert text in shown


@pairs(["x86-agent-monoraw"])
def test_a_measured_sample_that_is_far_off_is_refuted(name: str) -> None:
    result = proved(name, True)
    assert not result.is_sound
    far = [c for g in result.guests for v in g.vcpus for c in v.claims if c.claim.offset > -19_208_000_000]
    assert far
    assert all(c.verdict is Verdict.REFUTED and "where it was measured" in c.reason for c in far)


@pairs(["x86-agent-monoraw"])
def test_measured_samples_that_the_rates_allow_are_not_refuted(name: str) -> None:
    near = [c for g in proved(name, True).guests for v in g.vcpus for c in v.claims if c.claim.offset < -19_208_000_000]
    assert len(near) == 3
    assert all(c.verdict is not Verdict.REFUTED for c in near)


@pairs(["x86-agent", "x86-busy", "arm64-monoraw", "arm64-pause"])
def test_anchors_narrow_what_windows_leave_five_times(name: str) -> None:
    for guest, truth in expected(name):
        for epoch, known in zip(
            of(proved(name, False), guest, truth["guest_cpu"]).epochs, truth["epochs"], strict=True
        ):
            assert epoch.by_windows is not None
            assert epoch.feasible is not None
            lo, hi = epoch.feasible
            assert 5 * (hi - lo) < epoch.by_windows[1] - epoch.by_windows[0]
            assert epoch.by_windows[0] <= lo <= hi <= epoch.by_windows[1]
            low, high = known.get("offset_range") or [known["offset"]] * 2
            assert low <= hi
            assert lo <= high


@pairs(["x86-agent"])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_claim_that_windows_allow_but_anchors_do_not_is_refuted(name: str, side: int) -> None:
    guest, truth = expected(name)[0]
    epoch = of(proved(name, False), guest, truth["guest_cpu"]).epochs[0]
    assert epoch.feasible is not None
    wrong = (epoch.feasible[1] if side > 0 else epoch.feasible[0]) + side
    result = sync(*files(name), offsets=[f"{truth['guest_cpu']}={wrong}"])
    (claim,) = [c for c in of(result, guest, truth["guest_cpu"]).claims if c.claim.source == "given"]
    assert claim.verdict is Verdict.REFUTED
    assert "anchors" in claim.reason


@pairs(["x86-guest-wrmsr"])
@pytest.mark.parametrize("use_claims", [True, False])
def test_events_that_the_guests_buffer_stamped_late_are_said_to_be(name: str, use_claims: bool) -> None:
    vcpu = of(proved(name, use_claims), "guest", 1)
    (run,) = vcpu.mis_stamped
    assert run.late_by is not None
    assert run.late_by[0] <= 223016748 <= run.late_by[1]
    assert abs(len(run.rows) - 55) <= 3
    assert proved(name, use_claims).timeline.unplaced == 0


@pairs(["x86-lossy"])
def test_lost_events_are_unknown_and_no_violation(name: str) -> None:
    result = proved(name, True)
    assert result.host.losses.total == 40155
    for vcpu in result.guests[0].vcpus:
        assert vcpu.epochs[0].violations == 0
        assert vcpu.epochs[0].unknown > 0


@pairs(["x86-no-overlap"])
@pytest.mark.parametrize("flags", [[], ["--no-claims"]])
def test_recordings_that_do_not_overlap_bound_nothing(
    name: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *files(name), "--json", *flags]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {v["verdict"] for g in report["guests"] for v in g["vcpus"]} == {"unbounded"}


@pairs(["arm64-nested"])
def test_three_levels(name: str) -> None:
    """L1's offsets to L0 and L2's to L1 are all derived, with the truth inside."""
    result = proved(name, False)
    for guest, truth in expected(name):
        vcpu = of(result, guest, truth["guest_cpu"])
        assert vcpu.host_tid == truth["host_tid"]
        (epoch,) = vcpu.epochs
        assert holds_truth(epoch, truth["epochs"][0])
        assert vcpu.verdict is Verdict.DERIVED


@pairs([n for n in USUAL if n not in NOTHING])
def test_without_kvm_events_the_switches_hold_the_truth(name: str) -> None:
    """Each thread is still found; an offset is derived with the truth inside, or left in doubt where it changed."""
    host, *guests = files(name)
    result = sync(without(Recording.open(host), "kvm", "lab"), *guests, use_claims=False, parents=parents(name))
    assert any("sched_switch" in w for g in result.guests for w in g.warnings)
    for guest, truth in expected(name):
        vcpu = of(result, guest, truth["guest_cpu"])
        assert vcpu.host_tid == truth["host_tid"]
        if len(truth["epochs"]) == 1:
            assert vcpu.verdict is Verdict.DERIVED
        for epoch in vcpu.epochs:
            if epoch.verdict.is_sound:
                assert any(holds_truth(epoch, known) for known in truth["epochs"])


@pairs(["x86-no-overlap"])
def test_without_kvm_events_recordings_that_do_not_overlap_derive_nothing(name: str) -> None:
    host, *guests = files(name)
    result = sync(without(Recording.open(host), "kvm"), *guests, use_claims=False)
    assert not any(v.verdict.is_sound for g in result.guests for v in g.vcpus)


@pairs(["x86-agent", "x86-busy", "x86-vcpus-differ"])
def test_without_kvm_events_another_hosts_guest_is_not_derived(name: str) -> None:
    others = {"x86-agent": "x86-busy", "x86-busy": "x86-agent", "x86-vcpus-differ": "x86-agent"}
    host = without(Recording.open(files(name)[0]), "kvm")
    result = sync(host, files(others[name])[1], use_claims=False)
    assert not any(v.verdict.is_sound for g in result.guests for v in g.vcpus)
