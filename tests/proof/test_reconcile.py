"""Sources that disagree: one line, with what causality says of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.proof.reconcile import MAX_VALUES, reconciled
from counterpoint.proof.verdicts import (
    ClaimProof,
    CounterClaimProof,
    EpochOutcome,
    EpochProof,
    TickProof,
    VcpuProof,
    Verdict,
)
from counterpoint.timeline.sync import sync
from writers.worlds import OffsetChange, tiny_pair

EPOCH = EpochProof(
    rows=np.zeros(0, np.int64), guest_from=None, guest_to=None, host_from=None, host_to=None, offset=100, source="a",
    verdict=Verdict.PROVED, feasible=(90, 110), candidates=((90, 110),), inside=50, violations=0, unknown=0,
    evidence=99,
)  # fmt: skip


def word(source: str, offset: int, verdict: Verdict, epochs: tuple[int, ...] = ()) -> ClaimProof:
    outcomes = tuple(EpochOutcome(e, verdict, 50, 0, 0) for e in epochs)
    return ClaimProof(Claim(source, offset), verdict, 50, 0, 0, by_epoch=outcomes)


def notes(*claims: ClaimProof, epochs: int = 1, **how: Any) -> tuple[str, ...]:
    vcpu = VcpuProof(0, 5, "causality", (EPOCH,) * epochs, claims, **how)
    return reconciled(vcpu, None).notes


def test_sources_that_agree_are_not_spoken_of() -> None:
    assert notes(word("a", 100, Verdict.PROVED), word("b", 100, Verdict.PROVED)) == ()
    assert notes(word("a", 100, Verdict.PROVED)) == ()


def test_which_of_two_lies_in_what_causality_leaves_is_said() -> None:
    (line,) = notes(word("a", 100, Verdict.PROVED), word("b", 300, Verdict.REFUTED), word("c", 100, Verdict.PROVED))
    assert line == (
        "sources disagree: a and c say 100, b says 300: causality leaves 90 to 110, which a and c lie in and b does not"
    )


def test_both_may_be_possible_or_wrong() -> None:
    (line,) = notes(word("a", 100, Verdict.PROVED), word("b", 105, Verdict.PROVED))
    assert line.endswith("causality leaves 90 to 110, which a and b lie in")
    (line,) = notes(word("a", 1, Verdict.REFUTED), word("b", 2, Verdict.REFUTED))
    assert line.endswith("causality leaves 90 to 110, which a and b do not lie in")
    (line,) = notes(word("a", 1, Verdict.UNBOUNDED), word("b", 2, Verdict.UNBOUNDED))
    assert line.endswith("causality does not tell which is right")


def test_one_sources_several_values_are_no_disagreement_where_one_is_anothers() -> None:
    claims = [word("ptp", v, Verdict.PROVED) for v in (98, 100, 103)]
    assert notes(*claims) == ()
    assert notes(*claims, word("b", 100, Verdict.PROVED)) == ()
    (line,) = notes(*claims, word("b", 101, Verdict.PROVED))
    assert line.startswith("sources disagree: ptp says 98, ptp says 100, ptp says 103, b says 101: ")


def test_many_values_are_not_all_listed() -> None:
    (line,) = notes(*(word("a", v, Verdict.PROVED) for v in range(90, 105)), word("b", 300, Verdict.REFUTED))
    assert f", and {16 - MAX_VALUES} more values: " in line


def test_each_epoch_has_its_own_line() -> None:
    found = notes(
        word("a", 100, Verdict.PROVED, (0,)), word("b", 300, Verdict.REFUTED, (0, 1)),
        word("a", 300, Verdict.PROVED, (1,)), epochs=2,
    )  # fmt: skip
    assert len(found) == 1
    assert found[0].startswith("epoch 1: sources disagree: a says 100, b says 300")


def test_claims_that_speak_of_no_event_do_not_count() -> None:
    assert notes(word("a", 100, Verdict.PROVED), ClaimProof(Claim("b", 300), Verdict.UNBOUNDED, 0, 0, 0)) == ()


def counted(source: str, cntvoff: int, verdict: Verdict) -> CounterClaimProof:
    outcome = EpochOutcome(0, verdict, 50, 0, 0)
    return CounterClaimProof(CounterClaim(source, cntvoff), verdict, 50, 0, 0, by_epoch=(outcome,))


def test_claims_in_ticks_are_reconciled_in_ticks() -> None:
    epochs = (replace(EPOCH, ticks=TickProof((5, 9), feasible=(1005, 1009), cntvoff=1007)),)
    claims = counted("a", 1006, Verdict.PROVED), counted("b", 2000, Verdict.REFUTED)
    vcpu = VcpuProof(0, 5, "causality", epochs, (), counter_claims=claims)
    assert reconciled(vcpu, None).notes == (
        "sources disagree: a says CNTVOFF 1006, b says CNTVOFF 2000: causality leaves CNTVOFF 1005 to 1009, which a"
        " lies in and b does not",
    )
    # a counter modulo 2**64: the same word
    same = counted("a", 1006, Verdict.PROVED), counted("b", 1006, Verdict.PROVED)
    assert reconciled(replace(vcpu, counter_claims=same), None).notes == ()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_claim_typed_by_hand_against_the_files_own(tmp_path: Path, vcpus: int) -> None:
    """Of a change that kvm_write_tsc_offset announces, the offset before is right in one epoch alone."""
    host, guest, truth = tiny_pair(
        vcpus=vcpus, change=OffsetChange(-5_000_000, 0), windows=700, guest_events=2000, claims=False
    )
    files = [host.write(tmp_path / "host.dat"), guest.write(tmp_path / "guest.dat")]
    before, after = (offset for _, offset in truth.epochs[0])
    vcpu = sync(*files, offsets=[f"0={before}"]).guests[0].vcpus[0]
    (typed,) = [c for c in vcpu.claims if c.claim.source == "given"]
    assert typed.verdict is Verdict.REFUTED
    assert [(o.epoch, o.verdict) for o in typed.by_epoch] == [(0, Verdict.PROVED), (1, Verdict.REFUTED)]
    assert [e.verdict for e in vcpu.epochs] == [Verdict.PROVED, Verdict.REFUTED]
    told = [c for c in vcpu.claims if c.claim.source == "kvm_write_tsc_offset"]
    assert [(c.claim.offset, [o.epoch for o in c.by_epoch]) for c in told] == [(before, [0]), (after, [1])]
    (line,) = [n for n in vcpu.notes if "disagree" in n]
    assert line.startswith(f"epoch 2: sources disagree: given says {before}, kvm_write_tsc_offset says {after}: ")
    assert line.endswith("which kvm_write_tsc_offset lies in and given does not")
