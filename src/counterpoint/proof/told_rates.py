"""What is said of a proof that rests on a rate that the host's events tell, and of one that belies it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from counterpoint.claims.model import Claim
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM
from counterpoint.proof.lines import as_fraction
from counterpoint.proof.relation import Relation
from counterpoint.proof.verdicts import ClaimProof, VcpuProof, Verdict


def held_to(vcpus: list[VcpuProof], told: Relation) -> list[VcpuProof]:
    """The proofs with the told rate as a claim, of the offset that was found at it in the first epoch."""
    return [_held(vcpu, told) for vcpu in vcpus]


def _held(vcpu: VcpuProof, told: Relation) -> VcpuProof:
    epochs = tuple(
        replace(e, fitted=replace(e.fitted, rate_source=told.rate_source)) if e.fitted is not None else e
        for e in vcpu.epochs
    )
    fitted = [e for e in epochs if e.fitted is not None and e.offset is not None]
    if not fitted or told.scale is None:
        return vcpu
    inside, violations = sum(e.inside for e in fitted), sum(e.violations for e in fitted)
    enough = sum(e.evidence for e in fitted) >= EVIDENCE_FOR_CLAIM and not violations
    claim = Claim(
        told.rate_source,
        fitted[0].offset or 0,
        guest_cpu=vcpu.guest_cpu,
        tid=vcpu.host_tid,
        ratio=fitted[0].scale.ratio,
        frac_bits=fitted[0].scale.frac_bits,
        detail="a rate; the offset was found at it",
    )
    proof = ClaimProof(
        claim,
        Verdict.PROVED if enough else Verdict.UNBOUNDED,
        inside,
        violations,
        sum(e.unknown for e in fitted),
        reason=f"its rate holds in {len(fitted)} epochs, each with an offset of its own" if len(fitted) > 1 else "",
    )
    return replace(vcpu, epochs=epochs, claims=(*vcpu.claims, proof))


def refuted_by(vcpus: list[VcpuProof], told: Relation) -> list[VcpuProof]:
    """The proofs with a note where the events exclude the told rate: the guest's clock is another than was thought."""
    return [_refuted(vcpu, told) for vcpu in vcpus]


def _refuted(vcpu: VcpuProof, told: Relation) -> VcpuProof:
    if told.scale is None:
        return vcpu
    for epoch in vcpu.epochs:
        if epoch.fitted is None or not epoch.verdict.is_sound:
            continue
        rate = as_fraction(told.scale) / as_fraction(epoch.fitted.nominal)
        least, most = (1 + Fraction(ppb, 10**9) for ppb in epoch.fitted.rate_ppb)
        if not least * (1 - told.error) <= rate <= most * (1 + told.error):
            note = f"{told.rate_source} tells of another rate than the events allow: this clock is not kvm-clock"
            return replace(vcpu, notes=(*vcpu.notes, note))
    return vcpu
