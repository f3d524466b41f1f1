"""What is known in ticks of arm64's counter, as lines of text for the table."""

from __future__ import annotations

from collections.abc import Iterator

from counterpoint.claims import given
from counterpoint.proof.counters import BY_RECORDING, GIVEN, CounterInfo
from counterpoint.proof.verdicts import CounterClaimProof, VcpuProof, Verdict
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult


def counter_lines(guest: GuestProof) -> Iterator[str]:
    """CNTVOFF of each vCPU and where it is from; or why it is not known, and who says what of it."""
    counter = guest.counter
    if counter is None or not any(e.verdict.is_sound for v in guest.vcpus for e in v.epochs):
        return
    if counter.pair is not None:
        rate = f"{guest.name}: the counter runs at {counter.hz} Hz ({_source(counter)})"
        yield rate + (f"; {counter.reason}" if counter.reason else f"; {_ks(guest, counter)}")
    elif counter.reason:
        yield f"{guest.name}: {counter.reason}"
    for vcpu in guest.vcpus:
        known = [_epoch(vcpu, index) for index, e in enumerate(vcpu.epochs) if e.ticks is not None]
        if any(known):
            yield f"{guest.name} cpu {vcpu.guest_cpu}: CNTVOFF {', then '.join(text for text in known if text)}"
    yield from _said(guest, counter)
    for s in guest.sums:
        yield (
            f"{guest.name} cpu {s.guest_cpu}: while it ran {s.source} of {s.host} logged {s.total}: {s.own} of"
            f" {guest.parent} plus {s.rest} ({s.events} events)"
        )


def shown_claims(result: SyncResult, guest: GuestProof, vcpu: VcpuProof) -> list[CounterClaimProof]:
    """The claims in ticks that need a line of their own: those in doubt, but for what the lines above tell."""
    known = {(s.source, s.total) for g in result.guests if g.parent == guest.name for s in g.sums}
    reason = guest.counter.reason if guest.counter else ""
    return [
        proof
        for proof in vcpu.counter_claims
        if proof.verdict is not Verdict.PROVED
        and (proof.claim.source, proof.claim.cntvoff) not in known
        and (proof.claim.source == given.SOURCE or proof.verdict is Verdict.REFUTED or proof.reason != reason)
    ]


def _source(counter: CounterInfo) -> str:
    if counter.source == GIVEN:
        return "given"
    return "by the stamps, if it does not step by several ticks" if counter.others else "by the stamps"


def _ks(guest: GuestProof, counter: CounterInfo) -> str:
    words = {GIVEN: "given", BY_RECORDING: "by its recording"}
    names = (guest.parent, counter.host_k), (guest.name, counter.guest_k)
    return "K of " + ", of ".join(f"{name} {words[k.source]}" for name, k in names if k is not None)


def _epoch(vcpu: VcpuProof, index: int) -> str:
    """One epoch's CNTVOFF, or what it changed by where that alone is known."""
    ticks = vcpu.epochs[index].ticks
    assert ticks is not None
    if ticks.cntvoff is not None and ticks.feasible is not None:
        return f"{ticks.cntvoff} ({ticks.feasible[0]} to {ticks.feasible[1]})"
    return f"changed by {ticks.change[0]} to {ticks.change[1]} ticks" if ticks.change is not None else ""


def _said(guest: GuestProof, counter: CounterInfo) -> Iterator[str]:
    """Who says what of CNTVOFF that cannot be checked, once for all vCPUs."""
    said: dict[int, dict[str, None]] = {}
    for vcpu in guest.vcpus:
        for proof in vcpu.counter_claims:
            if proof.verdict is Verdict.UNBOUNDED and proof.by_epoch and proof.reason == counter.reason:
                said.setdefault(proof.claim.cntvoff, {})[proof.claim.source] = None
    for value, sources in said.items():
        say = "says" if len(sources) == 1 else "say"
        yield f"{guest.name}: {' and '.join(sources)} {say} that CNTVOFF is {value}"
