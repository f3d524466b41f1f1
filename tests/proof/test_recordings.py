"""Full-size recordings with known truth: what is proved, derived and refuted of each."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from counterpoint.clocks.arch_counter import k_of_timekeeper, scale_of
from counterpoint.commands.main import main
from counterpoint.proof.counters import CounterInfo
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.masked import without

pytestmark = pytest.mark.recordings

NOTHING = {"x86-no-overlap"}
"""Pairs of which nothing can be said: they do not overlap."""

BIG = {"arm64-nested"}
SET_CNTVOFF, VCPU_LOAD = "lab:set_cntvoff:off", "lab:vcpu_load:voff"
NAMES = sorted(p.parent.name for p in RECORDINGS.glob("*/truth.json"))
CLAIMED = ["x86-agent", "x86-vcpus-differ", "x86-offset-change", "x86-guest-wrmsr"]
FULL = os.environ.get("COUNTERPOINT_FULL") == "1"
"""Also what takes longer than all others."""

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


NARROWED = {
    "x86-agent": 20,
    "x86-busy": 14,
    "arm64-monoraw": 6,
    "arm64-pause": 6.5,
    "arm64-local": 4.3,
    "arm64-nested": 5,
}
"""How many times narrower than by windows anchors leave every vCPU. On arm64-local the two machines' CLOCK_MONOTONIC
are known to within 4 and 5 us only, where mono_raw's are exact: a sixth of what the windows leave."""


@pairs(list(NARROWED))
def test_anchors_narrow_what_windows_leave(name: str) -> None:
    for guest, truth in expected(name):
        for epoch, known in zip(
            of(proved(name, False), guest, truth["guest_cpu"]).epochs, truth["epochs"], strict=True
        ):
            assert holds_truth(epoch, known)
            assert epoch.feasible is not None
            if guest == "l2":
                # its vCPU never slept while it was recorded, and was always late for its timer
                continue
            assert epoch.by_windows is not None
            lo, hi = epoch.feasible
            assert NARROWED[name] * (hi - lo) < epoch.by_windows[1] - epoch.by_windows[0]
            assert epoch.by_windows[0] <= lo <= hi <= epoch.by_windows[1]


@pairs(["arm64-monoraw", "arm64-pause", "arm64-local", "arm64-nested"])
def test_anchors_of_guests_whose_kernels_do_not_name_what_they_program(name: str) -> None:
    """As before 7.1: without hrtimer_rearm what is programmed follows from what expires next."""
    host, guest, *_ = files(name)
    result = sync(host, without(Recording.open(guest), "timer:hrtimer_rearm"), use_claims=False)
    for truth in truth_of(name)["guests"][0]["vcpus"]:
        vcpu = of(result, Path(guest).stem, truth["guest_cpu"])
        assert not any("none of them is used" in note for note in vcpu.notes)
        for epoch, known in zip(vcpu.epochs, truth["epochs"], strict=True):
            assert holds_truth(epoch, known)
            assert epoch.by_windows is not None
            assert epoch.feasible is not None
            lo, hi = epoch.feasible
            assert 3 * (hi - lo) < epoch.by_windows[1] - epoch.by_windows[0]


@pairs(["arm64-monoraw", "arm64-pause", "arm64-local"])
def test_without_any_timers_the_world_switch_narrows_it(name: str) -> None:
    host, guest, *_ = files(name)
    result = sync(host, without(Recording.open(guest), "timer"), use_claims=False)
    checked = 0
    for truth in truth_of(name)["guests"][0]["vcpus"]:
        vcpu = of(result, Path(guest).stem, truth["guest_cpu"])
        for epoch, known in zip(vcpu.epochs, truth["epochs"], strict=True):
            assert holds_truth(epoch, known)
            if not epoch.verdict.is_sound:
                continue
            assert {anchor.kind for anchor in epoch.anchors} == {"world switch"}
            assert epoch.by_windows is not None
            assert epoch.feasible is not None
            lo, hi = epoch.feasible
            assert 1.7 * (hi - lo) < epoch.by_windows[1] - epoch.by_windows[0]
            checked += 1
    assert checked > 0


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


# -- arm64, in ticks of its counter


@cache
def true_ks(name: str) -> dict[str, int]:
    """K of each machine's mono_raw, as the kernel's own timekeeper had it."""
    truth = truth_of(name)
    known = truth.get("mono_raw") or {"host": truth["host_mono_raw"], "guest": truth["guest_mono_raw"]}
    scale = scale_of(truth["cntfrq"])
    assert scale is not None
    return {
        machine: k_of_timekeeper(scale, at["cycle_last"], at["raw_sec"], at["raw_snsec"])
        for machine, at in known.items()
    }


@cache
def in_ticks(name: str, machines: tuple[str, ...]) -> SyncResult:
    """Proved with the claims of its probes, and with K of these machines given."""
    return sync(*files(name), parents=parents(name), ks=[f"{m}={true_ks(name)[m]}" for m in machines])


def counter_of(result: SyncResult, name: str) -> CounterInfo:
    (found,) = [g for g in result.guests if g.name == name]
    assert found.counter is not None
    return found.counter


MONO_RAW = ["arm64-monoraw", "arm64-pause"]


@pairs([*MONO_RAW, "arm64-nested"])
def test_the_frequency_and_a_guests_k_are_found_in_the_recordings(name: str) -> None:
    for guest in in_ticks(name, ()).guests:
        counter = counter_of(in_ticks(name, ()), guest.name)
        assert (counter.hz, counter.source, counter.others) == (truth_of(name)["cntfrq"], "lattice", ())
        assert counter.guest_k is not None
        assert counter.guest_k.source == "recording"
        assert counter.guest_k.lo <= true_ks(name)[guest.name] <= counter.guest_k.hi
        # a host that is nobody's guest does not tell its own; its probes' words do
        assert (counter.host_k is None) == (guest.parent == in_ticks(name, ()).host_name)
        for source, (lo, hi) in counter.host_k_by_claims:
            assert (lo <= true_ks(name)[guest.parent] <= hi) is (source == SET_CNTVOFF or name in MONO_RAW)


@pairs(MONO_RAW)
@pytest.mark.parametrize("machines", [("host",), ("host", "guest")])
def test_with_the_hosts_k_every_cntvoff_is_proved_by_what_the_probes_say(name: str, machines: tuple[str, ...]) -> None:
    result = in_ticks(name, machines)
    assert result.is_sound
    for guest, truth in expected(name):
        vcpu = of(result, guest, truth["guest_cpu"])
        for epoch, known in zip(vcpu.epochs, truth["epochs"], strict=True):
            assert epoch.verdict is Verdict.PROVED
            assert epoch.ticks is not None
            assert epoch.ticks.cntvoff == known["cntvoff"]
            assert epoch.ticks.feasible is not None
            assert epoch.ticks.feasible[0] <= known["cntvoff"] <= epoch.ticks.feasible[1]
            assert epoch.offset is not None
            assert known["offset_range"][0] - 10**5 <= epoch.offset <= known["offset_range"][1] + 10**5
            if "guest" in machines:
                assert known["offset_range"][0] - 2 <= epoch.offset <= known["offset_range"][1] + 2
        assert len(vcpu.counter_claims) == 2 * len(truth["epochs"])
        assert {c.verdict for c in vcpu.counter_claims} == {Verdict.PROVED}
        assert {c.claim.source for c in vcpu.counter_claims} == {SET_CNTVOFF, VCPU_LOAD}
        assert [o.epoch for c in vcpu.counter_claims for o in c.by_epoch] == [*range(len(truth["epochs"]))] * 2


@pairs([*MONO_RAW, "arm64-nested"])
def test_with_no_claim_at_all_cntvoff_is_derived(name: str) -> None:
    """L2's with no K given: its own is found in the recordings, and L1's, which is a guest too."""
    result = proved(name, False)
    if name in MONO_RAW:
        result = sync(*files(name), use_claims=False, ks=[f"host={true_ks(name)['host']}"])
    for guest, truth in expected(name):
        vcpu = of(result, guest, truth["guest_cpu"])
        assert vcpu.counter_claims == ()
        for epoch, known in zip(vcpu.epochs, truth["epochs"], strict=True):
            assert epoch.verdict is Verdict.DERIVED
            assert epoch.ticks is not None
            assert (epoch.ticks.feasible is None) == (guest == "l1")
            if epoch.ticks.feasible is not None:
                assert epoch.ticks.feasible[0] <= known["cntvoff"] <= epoch.ticks.feasible[1]
                assert epoch.ticks.feasible[1] - epoch.ticks.feasible[0] < 20_000


@pairs([*MONO_RAW, "arm64-nested"])
def test_a_claim_of_the_true_cntvoff_is_proved_and_the_next_tick_out_is_refuted(name: str) -> None:
    guest, truth = expected(name)[0]
    cpu, host, value = truth["guest_cpu"], truth_of(name)["host"].removesuffix(".dat"), truth["epochs"][0]["cntvoff"]
    known = of(in_ticks(name, (host,)), guest, cpu).epochs[0].ticks
    assert known is not None
    assert known.feasible is not None
    lo, hi = known.feasible
    claims = {value: Verdict.PROVED, lo: Verdict.PROVED, lo - 1: Verdict.REFUTED, hi + 1: Verdict.REFUTED}
    typed = [f"{guest}:{cpu}={claim}" for claim in claims]
    vcpu = of(sync(*files(name)[:2], cntvoffs=typed, ks=[f"{host}={true_ks(name)[host]}"]), guest, cpu)
    found = {c.claim.cntvoff: c.by_epoch for c in vcpu.counter_claims if c.claim.source == "given"}
    assert {claim: outcomes[0].verdict for claim, outcomes in found.items()} == claims


@pairs(["arm64-pause"])
def test_a_claim_of_one_epoch_is_refuted_in_the_next(name: str) -> None:
    guest, truth = expected(name)[0]
    values = [epoch["cntvoff"] for epoch in truth["epochs"]]
    ks = [f"host={true_ks(name)['host']}"]
    for index, value in enumerate(values):
        vcpu = of(sync(*files(name), cntvoffs=[f"0={value}"], ks=ks), guest, 0)
        (proof,) = [c for c in vcpu.counter_claims if c.claim.source == "given"]
        verdicts = [Verdict.REFUTED, Verdict.REFUTED]
        verdicts[index] = Verdict.PROVED
        assert [o.verdict for o in proof.by_epoch] == verdicts
        assert [e.verdict for e in vcpu.epochs] == verdicts
        assert proof.counterexample is not None
        assert any("sources disagree" in note for note in vcpu.notes)


@pairs(["arm64-pause"])
def test_without_the_hosts_k_a_change_is_exact_and_the_probes_say_when_it_was(name: str) -> None:
    for guest, truth in expected(name):
        vcpu = of(in_ticks(name, ()), guest, truth["guest_cpu"])
        before, after = truth["epochs"]
        first, second = vcpu.epochs
        assert second.ticks is not None
        assert second.ticks.change is not None
        moved = after["cntvoff"] - before["cntvoff"]
        assert second.ticks.change[0] <= moved <= second.ticks.change[1]
        # after the resume, and before this vCPU ran again
        assert first.host_to is not None
        assert first.host_to == second.host_from
        assert abs(first.host_to - after["from_host"]) < 10_000_000
        assert {c.verdict for c in vcpu.counter_claims} == {Verdict.UNBOUNDED}


@pairs(["arm64-local"])
def test_sched_clock_is_counted_in_ticks_too(name: str) -> None:
    result = sync(*files(name))
    counter = counter_of(result, "guest")
    assert (counter.hz, counter.source) == (24_000_000, "lattice")
    assert counter.guest_k is not None
    # what the probes make of the host's K gives their own word back, proved
    (lo, hi) = dict(counter.host_k_by_claims)[SET_CNTVOFF]
    again = sync(*files(name), ks=[f"host={lo}..{hi}"])
    for guest, truth in expected(name):
        vcpu = of(again, guest, truth["guest_cpu"])
        assert vcpu.epochs[0].ticks is not None
        assert vcpu.epochs[0].ticks.cntvoff == truth["epochs"][0]["cntvoff"]


@pairs(["arm64-nested"])
def test_both_cntvoffs_and_the_sum_in_hardware_are_explained(name: str) -> None:
    """L1's and L2's values, proved in ticks, and the register's own while L2 runs as their sum, at every L2 event."""
    (l1, _), (l2, nested) = expected(name)[0], expected(name)[2]
    truth = truth_of(name)
    for machines in ((), ("l0",)):
        result = in_ticks(name, machines)
        own, given = expected(name)[0][1]["epochs"][0]["cntvoff"], nested["epochs"][0]["cntvoff"]
        vcpu = of(result, l2, 0)
        (epoch,) = vcpu.epochs
        assert epoch.verdict is Verdict.PROVED
        assert (epoch.inside, epoch.violations, epoch.unknown) == (2322, 0, 0)
        assert epoch.ticks is not None
        assert epoch.ticks.cntvoff == given
        assert {(c.claim.source, c.claim.cntvoff, c.verdict) for c in vcpu.counter_claims} == {
            (source, given, Verdict.PROVED) for source in (SET_CNTVOFF, VCPU_LOAD, f"{SET_CNTVOFF} of l0")
        }
        (guest,) = [g for g in result.guests if g.name == l2]
        assert [(s.host, s.source, s.total, s.own, s.rest, s.events) for s in guest.sums] == [
            ("l0", SET_CNTVOFF, truth["l2_in_hardware"]["cntvoff"], own, given, 2322)
        ]
        for cpu in (0, 1):
            mine = of(result, l1, cpu)
            assert mine.epochs[0].violations == 0
            said = {(c.claim.source, c.claim.cntvoff): c for c in mine.counter_claims}
            assert said[SET_CNTVOFF, own + given].reason == f"it held while l2 ran: {own} of l1 plus {given} of l2"
            # with L0's K its word is proved, and KVM's voffset, which no hypervisor runs with, refuted
            expected_verdicts = (Verdict.PROVED, Verdict.REFUTED) if machines else (Verdict.UNBOUNDED,) * 2
            stale = next(v for source, v in said if source == VCPU_LOAD)
            assert (said[SET_CNTVOFF, own].verdict, said[VCPU_LOAD, stale].verdict) == expected_verdicts
            (line,) = [n for n in mine.notes if "sources disagree" in n]
            assert f"{VCPU_LOAD} says CNTVOFF {stale}, {SET_CNTVOFF} says CNTVOFF {own}" in line
            if machines:
                assert mine.epochs[0].verdict is Verdict.PROVED
                assert mine.epochs[0].ticks is not None
                assert mine.epochs[0].ticks.cntvoff == own


@pytest.mark.long
@pairs([n for n in USUAL if n not in NOTHING and (n != "arm64-pause" or FULL)])
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


@pytest.mark.long
@pairs(["x86-agent", "x86-busy", "x86-vcpus-differ"])
def test_without_kvm_events_another_hosts_guest_is_not_derived(name: str) -> None:
    others = {"x86-agent": "x86-busy", "x86-busy": "x86-agent", "x86-vcpus-differ": "x86-agent"}
    host = without(Recording.open(files(name)[0]), "kvm")
    result = sync(host, files(others[name])[1], use_claims=False)
    assert not any(v.verdict.is_sound for g in result.guests for v in g.vcpus)
