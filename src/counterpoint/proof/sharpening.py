"""An epoch's interval after the anchors: narrower than the windows' own, which stays beside it."""

from __future__ import annotations

from dataclasses import replace

from counterpoint.proof.anchors.model import Tightened
from counterpoint.proof.holding import BY_CAUSALITY
from counterpoint.proof.verdicts import AnchorProof, ClaimProof, EpochProof, VcpuProof, Verdict


def sharpened(vcpu: VcpuProof, index: int, found: Tightened) -> VcpuProof:
    """The vCPU with what the anchors leave of epoch ``index``; claims that they exclude are refuted by them."""
    epoch, notes = vcpu.epochs[index], tuple(dict.fromkeys([*vcpu.notes, *found.notes]))
    vcpu = replace(vcpu, notes=notes)
    if epoch.feasible is None or tuple(found.interval) == tuple(epoch.feasible):
        return vcpu
    narrowed = _narrowed(epoch, found)
    if narrowed is None:
        return vcpu
    lo, hi = found.interval
    claims = tuple(_held(c, epoch, index, lo, hi) for c in vcpu.claims)
    if any(c.claim.offset == epoch.offset and _verdict_in(c, index) is Verdict.REFUTED for c in claims):
        middle = (lo + hi) // 2
        narrowed = replace(narrowed, verdict=Verdict.REFUTED, source=BY_CAUSALITY, offset=middle)
    epochs = tuple(narrowed if i == index else e for i, e in enumerate(vcpu.epochs))
    return replace(vcpu, epochs=epochs, claims=claims)


def _held(proof: ClaimProof, epoch: EpochProof, index: int, lo: int, hi: int) -> ClaimProof:
    """A claim that the windows allow in epoch ``index`` holds there only where the anchors do as well."""
    offset = proof.claim.offset
    assert epoch.feasible is not None
    in_windows = epoch.feasible[0] <= offset <= epoch.feasible[1]
    if _verdict_in(proof, index) is not Verdict.PROVED or not in_windows or lo <= offset <= hi:
        return proof
    reason = f"the run windows allow it, but not the anchors within them: these leave {lo} to {hi}"
    outcomes = tuple(replace(o, verdict=Verdict.REFUTED) if o.epoch == index else o for o in proof.by_epoch)
    return replace(proof, verdict=Verdict.REFUTED, reason=reason, by_epoch=outcomes)


def _verdict_in(proof: ClaimProof, index: int) -> Verdict:
    """The claim's verdict in epoch ``index``; ``unbounded`` where it does not speak of it."""
    if not proof.by_epoch:
        return proof.verdict
    return next((o.verdict for o in proof.by_epoch if o.epoch == index), Verdict.UNBOUNDED)


def _narrowed(epoch: EpochProof, found: Tightened) -> EpochProof | None:
    """The epoch with the interval that anchors leave; None where they leave nothing to use."""
    lo, hi = found.interval
    assert epoch.offset is not None
    usable = epoch.usable
    if usable is not None:
        usable = max(usable[0], lo), min(usable[1], hi)
        if usable[0] > usable[1]:
            return None
    anchors = tuple(
        AnchorProof(a.kind, side, a.bound, a.guest_stamp, a.host_stamp, a.assumption)
        for side, a in (("low", found.low), ("high", found.high))
        if a is not None
    )
    offset = epoch.offset
    if epoch.verdict is Verdict.DERIVED:
        offset = sum(usable) // 2 if usable is not None else min(max(offset, lo), hi)
    kept = tuple(a for a in epoch.anchors if a.side not in {b.side for b in anchors})
    windows = epoch.by_windows or epoch.feasible
    return replace(
        epoch, feasible=(lo, hi), usable=usable, offset=offset, by_windows=windows, anchors=(*kept, *anchors)
    )
