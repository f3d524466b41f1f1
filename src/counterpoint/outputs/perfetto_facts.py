"""How the clocks were related, as facts in the trace."""

from __future__ import annotations

from collections.abc import Iterator

from counterpoint.claims.model import CounterClaim
from counterpoint.outputs.report import width_ns
from counterpoint.proof.verdicts import ClaimProof, CounterClaimProof, EpochProof, VcpuProof
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult

Fact = int | bool | str

MAX_CLAIMS = 16
"""Claims about one vCPU that are told one by one."""


def facts_of(result: SyncResult) -> dict[str, Fact]:
    """What holds for the whole timeline: each epoch's offset, bound, verdict and witnesses, and every claim."""
    timeline = result.timeline
    out: dict[str, Fact] = {"sound": result.is_sound, "host_clock": result.host.clock}
    out["timestamps"] = f"ns by {timeline.rate.source}" if timeline.rate else "ticks of the host's counter"
    if timeline.unplaced:
        out["events_left_out"] = timeline.unplaced
    if timeline.unproved:
        out["events_not_proved_to_lie_there"] = timeline.unproved
    for host in result.hosts:
        if host.join is not None:
            interval = f"[{host.join.earliest}, {'open' if host.join.latest is None else host.join.latest}]"
            out[f"{host.name}/join"] = f"{host.join.at} is {host.join.stamp} in {interval} by {host.join.source}"
            out[f"{host.name}/assumption"] = host.join.assumption
    for guest in result.guests:
        for vcpu in guest.vcpus:
            prefix = f"{guest.name}/cpu{vcpu.guest_cpu}"
            out[f"{prefix}/thread"] = f"{vcpu.host_tid} of {guest.parent} by {vcpu.matched_by}"
            for index, epoch in enumerate(vcpu.epochs):
                for key, fact in _of_epoch(result, epoch, guest.recording.unit):
                    out[f"{prefix}/epoch{index}/{key}"] = fact
            for key, fact in _of_claims(vcpu):
                out[f"{prefix}/{key}"] = fact
    return out


def _of_epoch(result: SyncResult, epoch: EpochProof, unit: str) -> Iterator[tuple[str, Fact]]:
    yield "verdict", epoch.verdict.value
    if epoch.guest_from is not None or epoch.guest_to is not None:
        yield "guest_stamps", f"[{_open(epoch.guest_from)}, {_open(epoch.guest_to)}]"
    yield "offset", f"{epoch.offset} {unit} by {epoch.source or 'nobody'}"
    if epoch.fitted is not None:
        yield "rate_ppb", f"{list(epoch.fitted.rate_ppb)} from the nominal rate"
    yield "feasible", str(list(epoch.feasible) if epoch.feasible else None)
    yield "bound_ns", str(width_ns(epoch, result.rate_on(epoch.host)))
    yield "events", f"{epoch.inside} inside, {epoch.violations} outside, {epoch.unknown} unknown"
    for side, witness in (("low", epoch.low), ("high", epoch.high)):
        if witness is not None:
            yield (
                f"witness_{side}",
                f"{witness.guest_event} at guest stamp {witness.guest_stamp} in host window"
                f" [{witness.host_from}, {witness.host_to}]",
            )


def _of_claims(vcpu: VcpuProof) -> Iterator[tuple[str, Fact]]:
    claims: list[ClaimProof | CounterClaimProof] = [*vcpu.claims, *vcpu.counter_claims]
    for index, proof in enumerate(claims[:MAX_CLAIMS]):
        claim = proof.claim
        said = f"CNTVOFF {claim.cntvoff}" if isinstance(claim, CounterClaim) else f"offset {claim.offset}"
        told = f"{said} by {claim.source}: {proof.verdict.value}, {proof.inside} inside, {proof.violations} outside"
        if proof.counterexample is not None:
            against = proof.counterexample
            told += (
                f"; {against.guest_event} at guest stamp {against.guest_stamp} would be at {against.host_stamp},"
                f" outside guest mode from {_open(against.host_from)} to {_open(against.host_to)}"
            )
        yield f"claim{index}", told
    if len(claims) > MAX_CLAIMS:
        yield "further_claims", len(claims) - MAX_CLAIMS


def _open(stamp: int | None) -> str:
    return "open" if stamp is None else str(stamp)


def describe(result: SyncResult, machine: Machine) -> str:
    """What relates a machine's clock to the timeline, in a line."""
    for guest in result.guests:
        if guest.name == machine.name:
            return "; ".join(
                f"cpu {v.guest_cpu}: {v.verdict.value}, thread {v.host_tid} of {guest.parent}" for v in guest.vcpus
            )
    for host in result.hosts:
        if host.name == machine.name and host.join is not None:
            return f"clock {machine.recording.clock}; put beside {result.host_name} by {host.join.source}"
    return f"clock {machine.recording.clock}; all stamps are this machine's"
