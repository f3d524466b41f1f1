"""Epochs and claims in ticks of arm64's counter, in worlds whose CNTVOFF is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.outputs.report import sync_report
from counterpoint.proof.verdicts import CounterClaimProof, VcpuProof, Verdict
from counterpoint.proof.windows import HostActivity
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult, sync

MASK = (1 << 64) - 1
PROBE = "lab:set_cntvoff:off"


@dataclass(frozen=True)
class Made:
    """A world of arm64's, its files and its truth."""

    folder: Path
    truth: dict[str, Any]

    @property
    def files(self) -> list[str]:
        return [str(self.folder / "host.dat"), *(str(self.folder / g["file"]) for g in self.truth["guests"])]

    @property
    def ks(self) -> list[str]:
        clocks = {"host": self.truth["clocks"]["host"]} | {g["file"][:-4]: g["clock"] for g in self.truth["guests"]}
        return [f"{name}={clock['segments'][0]['k']}" for name, clock in clocks.items()]

    @property
    def parents(self) -> dict[str, str]:
        return {g["file"][:-4]: g["parent"] for g in self.truth["guests"]}

    def epochs(self, guest: int = 0, cpu: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.truth["guests"][guest]["vcpus"][cpu]["epochs"]
        return found

    def cntvoff(self, epoch: int = 0) -> int:
        return int(self.epochs()[epoch]["cntvoff"])

    def sync(self, **how: Any) -> SyncResult:
        return sync(*self.files, parents=self.parents, **how)


def make(folder: Path, **how: Any) -> Made:
    options: dict[str, Any] = {"arch": "arm64", "events": 5000, "seed": 1} | how
    return Made(folder / "world", World(WorldOptions(**options)).write(folder / "world"))


def claims(vcpu: VcpuProof, source: str) -> list[CounterClaimProof]:
    return [c for c in vcpu.counter_claims if c.claim.source == source]


def check_truth(made: Made, result: SyncResult) -> None:
    """Every epoch's CNTVOFF lies in its interval, changes in theirs, and nothing that is true is refuted."""
    for told, guest in zip(made.truth["guests"], result.guests, strict=True):
        for known, vcpu in zip(told["vcpus"], guest.vcpus, strict=True):
            assert len(known["epochs"]) == len(vcpu.epochs)
            assert not any(c.verdict is Verdict.REFUTED for c in vcpu.counter_claims)
            for index, (epoch, right) in enumerate(zip(vcpu.epochs, known["epochs"], strict=True)):
                value = signed(right["cntvoff"])
                ticks = epoch.ticks
                assert ticks is not None
                if ticks.feasible is not None:
                    assert ticks.feasible[0] <= value <= ticks.feasible[1]
                    assert ticks.cntvoff is not None
                    assert ticks.feasible[0] <= ticks.cntvoff <= ticks.feasible[1]
                assert (ticks.change is None) == (index == 0)
                if ticks.change is not None:
                    moved = value - signed(known["epochs"][index - 1]["cntvoff"])
                    assert ticks.change[0] <= moved <= ticks.change[1]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


KINDS: list[dict[str, Any]] = [
    {},
    {"khz": 54_000, "pauses": 1, "events": 9000},
    {"khz": 62_500, "pauses": 2, "probes": True, "vcpus": 3, "events": 12_000},
    {"khz": 19_200, "hotplug": True, "probes": True},
    {"khz": 1_000_000, "probes": True},
    {"clock": "local", "pauses": 1, "probes": True},
    {"restores": 1, "probes": True, "latency": "emulated"},
    {"vms": 2, "pauses": 1, "probes": True, "decoys": 1, "events": 8000},
    {"lose": 4, "probes": True, "events": 8000},
]


@pytest.mark.parametrize("how", KINDS, ids=lambda how: "-".join(how) or "plain")
@pytest.mark.parametrize("seed", [2, 7])
def test_with_k_every_cntvoff_is_bounded_and_every_probe_is_proved(
    tmp_path: Path, how: dict[str, Any], seed: int
) -> None:
    made = make(tmp_path, seed=seed, **how)
    result = made.sync(ks=made.ks, frequency=how.get("khz", 24_000) * 1000)
    check_truth(made, result)
    assert result.is_sound
    for guest in result.guests:
        assert guest.counter is not None
        assert guest.counter.source == "given"
        for vcpu in guest.vcpus:
            for epoch in vcpu.epochs:
                assert epoch.ticks is not None
                assert epoch.ticks.feasible is not None
                # as narrow as the ns are
                assert epoch.feasible is not None
                width = (epoch.feasible[1] - epoch.feasible[0]) * how.get("khz", 24_000) // 10**6
                assert epoch.ticks.feasible[1] - epoch.ticks.feasible[0] <= width + 3
            if how.get("probes"):
                assert {e.verdict for e in vcpu.epochs} == {Verdict.PROVED}
                assert {e.source for e in vcpu.epochs} == {PROBE}
                assert {c.verdict for c in claims(vcpu, PROBE)} == {Verdict.PROVED}


@pytest.mark.parametrize("how", KINDS, ids=lambda how: "-".join(how) or "plain")
def test_without_k_changes_are_known_and_nothing_that_is_true_is_refuted(tmp_path: Path, how: dict[str, Any]) -> None:
    made = make(tmp_path, **how)
    result = made.sync()
    assert result.is_sound
    for guest in result.guests:
        assert guest.counter is not None
        for vcpu in guest.vcpus:
            for proof in vcpu.counter_claims:
                assert proof.verdict is Verdict.UNBOUNDED
                assert proof.reason
            assert all(e.ticks is None or e.ticks.cntvoff is None for e in vcpu.epochs)
    if how.get("khz") == 1_000_000:
        assert "all is in ns" in result.guests[0].counter.reason  # type: ignore[union-attr]
        assert all(e.ticks is None for g in result.guests for v in g.vcpus for e in v.epochs)
    else:
        check_truth(made, result)


def test_the_next_tick_is_refuted_where_the_events_tell(tmp_path: Path) -> None:
    made = make(tmp_path)
    ticks = made.sync(ks=made.ks).guests[0].vcpus[0].epochs[0].ticks
    assert ticks is not None
    assert ticks.feasible is not None
    lo, hi = ticks.feasible
    for value, verdict in (
        (lo, Verdict.PROVED), (made.cntvoff(), Verdict.PROVED), (hi, Verdict.PROVED), (lo - 1, Verdict.REFUTED),
        (hi + 1, Verdict.REFUTED), (made.cntvoff() - (1 << 62), Verdict.REFUTED),
    ):  # fmt: skip
        vcpu = made.sync(ks=made.ks, cntvoffs=[f"0={value}"]).guests[0].vcpus[0]
        (proof,) = vcpu.counter_claims
        assert proof.verdict is verdict
        assert vcpu.epochs[0].verdict is verdict
        assert vcpu.is_sound is (verdict is Verdict.PROVED)
        assert (proof.violations > 0) is (verdict is Verdict.REFUTED)
        if verdict is Verdict.PROVED:
            assert (vcpu.epochs[0].source, vcpu.epochs[0].ticks.cntvoff) == ("given", value)  # type: ignore[union-attr]


def test_the_offset_in_use_is_that_of_a_proved_claim(tmp_path: Path) -> None:
    made = make(tmp_path)
    vcpu = made.sync(ks=made.ks, cntvoffs=[f"0={made.cntvoff()}"]).guests[0].vcpus[0]
    low, high = made.epochs()[0]["offset_range"]
    assert vcpu.epochs[0].offset is not None
    assert low - 1 <= vcpu.epochs[0].offset <= high + 1


@pytest.mark.parametrize(("ticks", "verdict"), [(3, Verdict.PROVED), (10**6, Verdict.UNBOUNDED)])
def test_a_k_that_is_hardly_known_proves_nothing(tmp_path: Path, ticks: int, verdict: Verdict) -> None:
    made = make(tmp_path, vcpus=1)
    host, guest = (int(k.split("=")[1]) for k in made.ks)
    width = ticks * made.truth["clocks"]["host"]["segments"][0]["mult"]
    ks = [f"host={host - width}..{host + width}", f"guest={guest}"]
    blind = made.sync().guests[0].vcpus[0].epochs[0]
    vcpu = made.sync(ks=ks, cntvoffs=[f"0={made.cntvoff()}"]).guests[0].vcpus[0]
    (proof,) = vcpu.counter_claims
    assert proof.verdict is verdict
    (epoch,) = vcpu.epochs
    assert epoch.ticks is not None
    assert epoch.ticks.feasible is not None
    assert epoch.ticks.feasible[0] + 2 * ticks <= made.cntvoff() + ticks <= epoch.ticks.feasible[1]
    assert epoch.feasible == blind.feasible
    assert blind.feasible is not None
    assert epoch.offset is not None
    assert blind.feasible[0] <= epoch.offset <= blind.feasible[1]
    if verdict is Verdict.UNBOUNDED:
        assert "not known well enough" in proof.reason
        assert epoch.offset == blind.offset


def test_a_counterexample_lies_in_a_gap(tmp_path: Path) -> None:
    made = make(tmp_path)
    wrong = made.cntvoff() + 2400
    (proof,) = made.sync(ks=made.ks, cntvoffs=[f"0={wrong}"]).guests[0].vcpus[0].counter_claims
    example = proof.counterexample
    assert example is not None
    assert example.host_from is not None
    assert example.host_to is not None
    assert example.host_from < example.host_stamp < example.host_to
    # the claim puts it 2400 ticks of 24 MHz, 100 us, later than it was
    low, high = made.epochs()[0]["offset_range"]
    true = example.guest_stamp - (low + high) // 2
    assert abs(example.host_stamp - true - 100_000) <= 3
    host = made.sync().host
    windows = HostActivity(host).windows(made.truth["guests"][0]["vcpus"][0]["host_tid"])
    when = example.host_stamp - windows.base
    assert not ((windows.lo <= when) & (when <= windows.hi)).any()


def test_a_claim_holds_in_one_epoch_and_is_refuted_in_the_next(tmp_path: Path) -> None:
    made = make(tmp_path, pauses=1)
    result = made.sync(ks=made.ks, cntvoffs=[f"0={made.cntvoff(0)}"])
    vcpu = result.guests[0].vcpus[0]
    (proof,) = vcpu.counter_claims
    assert proof.verdict is Verdict.REFUTED
    assert [(o.epoch, o.verdict) for o in proof.by_epoch] == [(0, Verdict.PROVED), (1, Verdict.REFUTED)]
    assert [e.verdict for e in vcpu.epochs] == [Verdict.PROVED, Verdict.REFUTED]
    assert proof.inside + proof.violations + proof.unknown == sum(len(e.rows) for e in vcpu.epochs)


def test_a_claim_with_a_span_is_held_against_that_alone(tmp_path: Path) -> None:
    made = make(tmp_path, pauses=1)
    edge = made.epochs()[1]["from_host"]
    lines = [
        {"cpu": 0, "cntvoff": made.cntvoff(0), "host_to": edge, "source": "vmm"},
        {"cpu": 0, "cntvoff": made.cntvoff(1), "host_from": edge, "source": "vmm"},
    ]
    path = tmp_path / "claims"
    machines = [{"machine": k.split("=")[0], "k": int(k.split("=")[1])} for k in made.ks]
    path.write_text("\n".join(json.dumps(line) for line in [*lines, *machines]))
    vcpu = made.sync(claims_file=path).guests[0].vcpus[0]
    assert [c.verdict for c in vcpu.counter_claims] == [Verdict.PROVED, Verdict.PROVED]
    assert [o.epoch for c in vcpu.counter_claims for o in c.by_epoch] == [0, 1]
    assert [(e.verdict, e.source) for e in vcpu.epochs] == [(Verdict.PROVED, "vmm")] * 2


def test_a_probe_says_when_a_change_was(tmp_path: Path) -> None:
    made = make(tmp_path, pauses=1, probes=True)
    for ks in ([], made.ks):
        guest = made.sync(ks=ks).guests[0]
        host = made.sync().host
        event = host.format_named("lab", "set_cntvoff")
        assert event is not None
        rows = host.rows(event)
        value = host.column(event, "off", rows)
        for cpu, vcpu in enumerate(guest.vcpus):
            new = made.epochs(cpu=cpu)[1]["cntvoff"]
            mine = rows[(value == new) & (host.pid[rows] == vcpu.host_tid)]
            assert vcpu.epochs[0].host_to == vcpu.epochs[1].host_from == int(host.stamp[mine].min())


# -- without K


def test_without_k_one_value_for_two_epochs_is_refuted(tmp_path: Path) -> None:
    made = make(tmp_path, pauses=1)
    (proof,) = made.sync(cntvoffs=["0=12345"]).guests[0].vcpus[0].counter_claims
    assert proof.verdict is Verdict.REFUTED
    assert "no one CNTVOFF is right of all that it speaks of" in proof.reason
    assert {o.verdict for o in proof.by_epoch} == {Verdict.UNBOUNDED}


@pytest.mark.parametrize(("error", "refuted"), [(0, False), (3, False), (400, True), (-(1 << 40), True)])
def test_without_k_what_one_source_says_of_two_epochs_must_fit_together(
    tmp_path: Path, error: int, refuted: bool
) -> None:
    made = make(tmp_path, pauses=1)
    edge = made.epochs()[1]["from_host"]
    # off by one number in both: nobody can tell
    lines = [
        {"cpu": 0, "cntvoff": made.cntvoff(0) + 999, "host_to": edge, "source": "vmm"},
        {"cpu": 0, "cntvoff": made.cntvoff(1) + 999 + error, "host_from": edge, "source": "vmm"},
    ]
    path = tmp_path / "claims"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    result = made.sync(claims_file=path)
    found = result.guests[0].vcpus[0].counter_claims
    expected = Verdict.REFUTED if refuted else Verdict.UNBOUNDED
    assert [c.verdict for c in found] == [expected] * 2
    assert result.is_sound is not refuted
    if refuted:
        moved = made.cntvoff(1) - made.cntvoff(0) + error
        assert f"they differ by {moved}, but CNTVOFF by" in found[1].reason
        assert f"they differ by {-moved}, but CNTVOFF by" in found[0].reason


def test_without_k_numbers_typed_by_hand_are_each_a_question_of_its_own(tmp_path: Path) -> None:
    made = make(tmp_path)
    found = made.sync(cntvoffs=["0=5", "0=70000000"]).guests[0].vcpus[0].counter_claims
    assert [c.verdict for c in found] == [Verdict.UNBOUNDED] * 2


def test_what_claims_make_of_the_hosts_k_holds_it(tmp_path: Path) -> None:
    made = make(tmp_path, pauses=1, probes=True, vms=2, events=8000)
    host_k, *guest_ks = made.ks
    result = made.sync(ks=guest_ks)
    for guest in result.guests:
        assert guest.counter is not None
        ((source, (lo, hi)),) = guest.counter.host_k_by_claims
        assert source == PROBE
        assert lo <= int(host_k.split("=")[1]) <= hi
    assert not any("cannot be right of both" in w for w in result.warnings)


# -- help for proofs in doubt, and other machines


def test_a_claim_in_ticks_helps_where_nothing_can_be_derived(tmp_path: Path) -> None:
    made = make(tmp_path, events=120, vcpus=1, seed=4)
    assert not made.sync().is_sound
    result = made.sync(ks=made.ks, cntvoffs=[f"0={made.cntvoff()}"], frequency=24_000_000)
    assert result.is_sound
    vcpu = result.guests[0].vcpus[0]
    assert vcpu.verdict is Verdict.PROVED
    assert vcpu.claims == ()
    assert [c.verdict for c in vcpu.counter_claims] == [Verdict.PROVED]


def test_on_x86_cntvoff_is_no_word(tmp_path: Path) -> None:
    made = make(tmp_path, arch="x86")
    result = made.sync(cntvoffs=["0=5"], ks=["host=7"])
    (proof,) = result.guests[0].vcpus[0].counter_claims
    assert proof.verdict is Verdict.UNBOUNDED
    assert "not those of arm64's counter" in proof.reason
    assert any("--k host is of no use" in w for w in result.warnings)
    assert all(e.ticks is None for e in result.guests[0].vcpus[0].epochs)


def test_a_named_event_of_x86_says_what_kvm_write_tsc_offset_would(tmp_path: Path) -> None:
    made = make(tmp_path, arch="x86", restores=1, silent=False)
    named = "kvm:kvm_write_tsc_offset:next_tsc_offset"
    result = made.sync(claim_events=[named])
    assert result.is_sound
    for cpu, vcpu in enumerate(result.guests[0].vcpus):
        (proof,) = [c for c in vcpu.claims if c.claim.source == named]
        assert proof.verdict is Verdict.PROVED
        assert proof.claim.offset == made.epochs(cpu=cpu)[1]["offset"]
        assert [o.epoch for o in proof.by_epoch] == [1]


# -- by the command


def test_the_command_says_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path, pauses=1, probes=True)
    flags = [flag for k in made.ks for flag in ("--k", k)]
    assert main(["verify", *made.files, *flags, "--json"]) == 0
    (guest,) = json.loads(capsys.readouterr().out)["guests"]
    assert (guest["counter"]["hz"], guest["counter"]["hz_source"]) == (24_000_000, "lattice")
    for vcpu, known in zip(guest["vcpus"], made.truth["guests"][0]["vcpus"], strict=True):
        for epoch, right in zip(vcpu["epochs"], known["epochs"], strict=True):
            assert (epoch["cntvoff"], epoch["verdict"], epoch["cntvoff_reason"]) == (right["cntvoff"], "proved", None)
            assert (epoch["host_k"], epoch["guest_k"]) == ("given", "given")
            assert (epoch["counter_hz"], epoch["counter_hz_source"]) == (24_000_000, "lattice")
        for claim in vcpu["claims"]:
            assert claim["source"] == PROBE
            low, high = claim["offset_range"]
            assert low <= known["epochs"][claim["by_epoch"][0]["epoch"]]["offset_range"][0] <= high
    wrong = made.cntvoff() + 50_000
    assert main(["verify", *made.files, *flags, "--cntvoff", f"0={wrong}"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"claim given CNTVOFF {wrong} is refuted" in said
    assert f"sources disagree: given says CNTVOFF {wrong}, {PROBE} says CNTVOFF {made.cntvoff()}" in said


def test_an_offset_in_ns_is_also_said_in_ticks(tmp_path: Path) -> None:
    made = make(tmp_path)
    low, _ = made.epochs()[0]["offset_range"]
    report = sync_report(made.sync(ks=made.ks, offsets=[f"0={low}"]), merged=False)
    (claim,) = report["guests"][0]["vcpus"][0]["claims"]
    assert claim["verdict"] == "proved"
    lo, hi = claim["cntvoff_range"]
    assert lo <= made.cntvoff() <= hi <= lo + 3
    report = sync_report(made.sync(offsets=[f"0={low}"]), merged=False)
    (claim,) = report["guests"][0]["vcpus"][0]["claims"]
    assert claim["cntvoff_range"] is None


def test_values_near_2_to_the_63_are_counted_modulo_2_to_the_64(tmp_path: Path) -> None:
    """A guest whose counter is ahead of its host's has a CNTVOFF that is negative, as a signed number."""
    made = make(tmp_path, start=1000, seed=3)
    value = made.cntvoff()
    assert value >> 63
    result = made.sync(ks=made.ks, cntvoffs=[f"0={value}"])
    check_truth(made, result)
    (proof,) = result.guests[0].vcpus[0].counter_claims
    assert (proof.verdict, proof.claim.cntvoff) == (Verdict.PROVED, signed(value))


def guest_of(result: SyncResult, name: str) -> GuestProof:
    return next(g for g in result.guests if g.name == name)


@pytest.mark.parametrize("seed", range(4))
def test_nested_guests_are_told_apart_by_what_is_logged_while_they_run(tmp_path: Path, seed: int) -> None:
    made = make(tmp_path, nested=1 + seed % 2, probes=True, pauses=seed % 2, khz=62_500, events=9000, seed=seed)
    result = made.sync(ks=made.ks)
    l1, l2 = guest_of(result, "guest"), guest_of(result, "l2")
    own = {e["cntvoff"] for v in made.truth["guests"][0]["vcpus"] for e in v["epochs"]}
    given = {e["cntvoff"] for v in made.truth["guests"][1]["vcpus"] for e in v["epochs"]}
    assert {s.rest & MASK for s in l2.sums} == given
    assert {s.own & MASK for s in l2.sums} <= own
    for s in l2.sums:
        assert (s.host, s.source) == ("host", PROBE)
        assert s.total == s.own + s.rest
    for vcpu in l2.vcpus:
        found = claims(vcpu, f"{PROBE} of host")
        assert found
        assert {c.verdict for c in found} == {Verdict.PROVED}
        assert all(e.verdict is Verdict.PROVED for e in vcpu.epochs)
    # what was logged of L1 itself is L1's; the sums are told to be those of its guest
    for vcpu in l1.vcpus:
        for proof in claims(vcpu, PROBE):
            if proof.claim.cntvoff & MASK in own:
                assert proof.verdict is Verdict.PROVED
            else:
                assert proof.verdict is Verdict.UNBOUNDED
                assert proof.by_epoch == ()
                assert "it held while l2 ran" in proof.reason or "no event of an epoch" in proof.reason
    events = sum(s.events for s in l2.sums)
    assert events > 0.8 * sum(len(e.rows) for v in l2.vcpus for e in v.epochs)
    assert np.isin([s.guest_cpu for s in l2.sums], [v.guest_cpu for v in l2.vcpus]).all()


def test_what_a_probe_says_helps_where_epochs_cannot_be_found(tmp_path: Path) -> None:
    made = make(tmp_path, seed=2, khz=62_500, pauses=2, probes=True, vcpus=3)
    assert not made.sync().is_sound
    result = made.sync(ks=made.ks)
    assert result.is_sound
    check_truth(made, result)
    for vcpu in result.guests[0].vcpus:
        assert [e.verdict for e in vcpu.epochs] == [Verdict.PROVED] * 3
        assert {c.claim.source for c in vcpu.claims} <= {PROBE}
        assert [c.verdict for c in vcpu.counter_claims] == [Verdict.PROVED] * 3
