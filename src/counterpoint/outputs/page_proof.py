"""The proof as a page draws it: each epoch's interval as it narrowed, the claims in it, the witnesses' places."""

from __future__ import annotations

from typing import Any

import numpy as np

from counterpoint.analysis.narrowing import OPEN, narrowing
from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import to_signed
from counterpoint.outputs.printable import printable
from counterpoint.outputs.report import width_ns
from counterpoint.proof.verdicts import (
    ClaimProof,
    CounterClaimProof,
    Counterexample,
    EpochProof,
    VcpuProof,
    Witness,
)
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult

MAX_EPOCHS = 64
"""Of all vCPUs together, drawn: those in doubt first."""

MAX_CLAIMS = 16
"""Of a vCPU."""

Json = dict[str, Any]


class ProofDrawn:
    """Makes the proof of a page; times count from ``origin``, itself from the timeline's base."""

    def __init__(self, result: SyncResult, origin: int) -> None:
        """Nothing is worked out yet."""
        self._result = result
        self._base = result.timeline.base
        self._origin = origin
        self._machines = {m.name: m for m in result.timeline.machines}

    def vcpus(self) -> list[Json]:
        """Each guest's CPUs."""
        left = MAX_EPOCHS
        out = []
        for guest in self._result.guests:
            for vcpu in guest.vcpus:
                sound = [epoch.verdict.is_sound for epoch in vcpu.epochs]
                epochs = sorted(range(len(sound)), key=sound.__getitem__)[:left]
                left -= len(epochs)
                out.append(self._vcpu(guest, vcpu, sorted(epochs)))
        return out

    def _vcpu(self, guest: GuestProof, vcpu: VcpuProof, epochs: list[int]) -> Json:
        claims: list[ClaimProof | CounterClaimProof] = [*vcpu.claims, *vcpu.counter_claims]
        return {
            "guest": printable(guest.name), "cpu": vcpu.guest_cpu, "parent": printable(guest.parent),
            "tid": vcpu.host_tid, "matched_by": vcpu.matched_by, "verdict": vcpu.verdict.value,
            "unit": guest.recording.unit, "notes": [printable(note) for note in vcpu.notes],
            "epochs": [self._epoch(guest, vcpu, n) for n in epochs], "epochs_in_all": len(vcpu.epochs),
            "claims": [self._claim(guest, claim) for claim in claims[:MAX_CLAIMS]], "claims_in_all": len(claims),
        }  # fmt: skip

    def _when(self, stamp: int | None) -> int | None:
        """A stamp of the first host as a time of the page."""
        return None if stamp is None else to_signed(stamp - self._base) - self._origin

    def _place(self, machine: Machine, row: int) -> int | None:
        return self._when(int(machine.host_stamp[row])) if machine.placed[row] else None

    def _epoch(self, guest: GuestProof, vcpu: VcpuProof, number: int) -> Json:
        epoch = vcpu.epochs[number]
        offset = epoch.offset or 0
        rate = self._result.rate_on(epoch.host)
        # for the picture alone
        unit_ns = None if rate is None else rate.mult / (1 << rate.shift)
        if unit_ns is not None:
            unit_ns *= (1 << epoch.scale.frac_bits) / epoch.scale.ratio
        narrowed = self._narrowed(guest, vcpu, epoch)
        return {
            "number": number, "verdict": epoch.verdict.value, "source": printable(epoch.source),
            "offset": None if epoch.offset is None else str(epoch.offset),
            "feasible": _from(epoch.feasible, offset), "by_windows": _from(epoch.by_windows, offset),
            "claimed": _claimed(vcpu, number), "width_ns": width_ns(epoch, rate), "unit_ns": unit_ns,
            "inside": epoch.inside,
            "violations": epoch.violations, "unknown": epoch.unknown, "fitted": epoch.fitted is not None,
            "anchors": list(dict.fromkeys(a.kind for a in epoch.anchors)),
            "witnesses": [
                self._witness(guest, side, w, offset)
                for side, w in (("low", epoch.low), ("high", epoch.high))
                if w is not None
            ],
        } | narrowed  # fmt: skip

    def _narrowed(self, guest: GuestProof, vcpu: VcpuProof, epoch: EpochProof) -> Json:
        found = narrowing(guest, vcpu, epoch)
        if isinstance(found, str):
            return {"narrowing": None, "not_drawn": found}
        machine, recording = self._machines[guest.name], guest.recording
        return {
            "narrowing": {
                "events": found.events, "count": found.count.tolist(),
                "lo": np.where(found.lo > -OPEN, found.lo, 0).tolist(), "lo_open": (found.lo <= -OPEN).tolist(),
                "hi": np.where(found.hi < OPEN, found.hi, 0).tolist(), "hi_open": (found.hi >= OPEN).tolist(),
                "at": [self._place(machine, row) for row in found.row.tolist()],
                "event": [printable(recording.event_name(int(recording.event_id[row]))) for row in found.row.tolist()],
            },
            "not_drawn": None,
        }  # fmt: skip

    def _witness(self, guest: GuestProof, side: str, witness: Witness, offset: int) -> Json:
        # of a nested guest the window is in its parent's clock: no place of the timeline
        window = (witness.host_from, witness.host_to) if guest.parent == self._result.host_name else (None, None)
        return {
            "side": side, "event": printable(witness.guest_event), "guest_stamp": str(witness.guest_stamp),
            "at": self._place(self._machines[guest.name], witness.guest_row),
            "from": self._when(window[0]), "to": self._when(window[1]), "bound": to_signed(witness.bound - offset),
            "events": [printable(witness.host_from_event), printable(witness.host_to_event)],
        }  # fmt: skip

    def _claim(self, guest: GuestProof, proof: ClaimProof | CounterClaimProof) -> Json:
        claim = proof.claim
        said = f"offset {claim.offset}" if isinstance(claim, Claim) else f"CNTVOFF {claim.cntvoff}"
        return {
            "source": printable(claim.source), "said": said, "verdict": proof.verdict.value,
            "inside": proof.inside, "violations": proof.violations, "reason": printable(proof.reason),
            "against": self._against(guest, proof.counterexample),
        }  # fmt: skip

    def _against(self, guest: GuestProof, found: Counterexample | None) -> Json | None:
        if found is None:
            return None
        near = guest.parent == self._result.host_name
        return {
            "event": printable(found.guest_event), "guest_stamp": str(found.guest_stamp),
            "at": self._when(found.host_stamp) if near else None, "reason": printable(found.reason),
            "from": self._when(found.host_from) if near else None, "to": self._when(found.host_to) if near else None,
        }  # fmt: skip


def _claimed(vcpu: VcpuProof, number: int) -> list[Json]:
    """The claims that speak of an epoch: which of the vCPU's, how far from the offset in use, and how each fares."""
    epoch = vcpu.epochs[number]
    out: list[Json] = []
    for index, proof in enumerate(vcpu.claims[:MAX_CLAIMS]):
        verdict = proof.verdict
        if proof.by_epoch:
            told = next((o.verdict for o in proof.by_epoch if o.epoch == number), None)
            if told is None:
                continue
            verdict = told
        if epoch.offset is not None and proof.claim.scale == epoch.scale:
            beside = to_signed(proof.claim.offset - epoch.offset)
            out.append({"claim": index, "beside": beside, "verdict": verdict.value})
    return out


def _from(interval: tuple[int, int] | None, offset: int) -> list[int] | None:
    return None if interval is None else [interval[0] - offset, interval[1] - offset]
