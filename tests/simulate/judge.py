"""Simulated worlds judged by their truth: what a proof of one says must be so, event by event."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, relative, to_signed
from counterpoint.outputs.report import width_ns
from counterpoint.proof.nesting import Clock
from counterpoint.proof.verdicts import ClaimProof, EpochProof, VcpuProof, Verdict
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.simulate.truth import GuestCpuTruth
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult, sync


@dataclass
class Judgement:
    """What was found of one world: ``complaints`` (each a false word of the proof), and what there was to judge."""

    seed: int
    options: WorldOptions
    complaints: list[str] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    events: int = 0
    bounded: int = 0
    late: int = 0
    epochs: int = 0
    found: int = 0
    seconds: float = 0.0


def world_of(seed: int) -> World:
    """The world of a seed; every eighth may have a second host, where the seed's own draw has none."""
    options = random_options(seed)
    if seed % 8 == 7:
        options = dataclasses.replace(options, migrate=True, nested=0, nested_khz=0, nested_events=False, vtimers=False)
    return World(options)


def judge(seed: int, folder: Path, *, wrong_claims: bool = True) -> Judgement:
    """Write the world of ``seed`` into ``folder``, prove it and hold every word against the truth."""
    world = world_of(seed)
    truth = world.write(folder)
    parents = {Path(g["file"]).stem: g["parent"] for g in truth["guests"]}
    files = [folder / g["file"] for g in truth["guests"]]
    hosts = [folder / file for file in truth.get("hosts", [])[1:]]
    out = Judgement(seed, world.options)
    for use_claims in (True, False):
        begin = time.monotonic()
        result = sync(folder / truth["host"], *files, parents=parents, hosts=hosts, use_claims=use_claims)
        out.seconds = max(out.seconds, time.monotonic() - begin)
        heard = len(out.complaints)
        # the counts are of what is derived; claims only add complaints
        counted = out if not use_claims else Judgement(seed, world.options, out.complaints, claims=out.claims)
        for guest in result.guests:
            for vcpu in guest.vcpus:
                _of_vcpu(world, result, guest, vcpu, counted)
        _of_timeline(world, result, counted)
        if not use_claims:
            out.complaints[heard:] = [f"without claims: {text}" for text in out.complaints[heard:]]
    if wrong_claims:
        _of_wrong_claims(world, result, folder, truth, parents, hosts, out)
    return out


def _truth_of(world: World, guest: GuestProof, cpu: int) -> dict[str, Any]:
    found = next(g for g in world.truth["guests"] if g["file"] == f"{guest.name}.dat")
    entry: dict[str, Any] = found["vcpus"][cpu]
    return entry


def _of_vcpu(world: World, result: SyncResult, guest: GuestProof, vcpu: VcpuProof, out: Judgement) -> None:
    where = f"{guest.name} CPU {vcpu.guest_cpu}"
    events = world.events(guest.name, vcpu.guest_cpu)
    entry = _truth_of(world, guest, vcpu.guest_cpu)
    tids = entry.get("host_tids", [entry["host_tid"]])
    out.events += len(events.t)
    out.late += int(events.late.sum())
    out.epochs += len(np.unique(events.epoch))
    first = next(s.first for s in guest.recording.streams if s.cpu == vcpu.guest_cpu and s.last > s.first)
    seen: list[tuple[EpochProof, set[int]]] = []
    for epoch in vcpu.epochs:
        out.verdicts[epoch.verdict.value] += 1
        if not epoch.verdict.is_sound or not len(epoch.rows):
            continue
        host = 0 if epoch.host in (None, result.host_name) else 1
        tid = vcpu.host_tid if epoch.host is None else epoch.host_tid
        # a guest that comes back has another thread on each visit
        if tid not in tids[host::2]:
            out.complaints.append(f"{where}: thread {tid}, which is none of {tids[host::2]}, is {epoch.verdict}")
            continue
        if epoch.violations:
            out.complaints.append(f"{where}: {epoch.violations} events in gaps, and the epoch is {epoch.verdict}")
        width = width_ns(epoch, result.rate_on(epoch.host))
        if width is not None:
            out.widths.append(width)
        sure = epoch.is_sure(guest.recording.stamp[epoch.rows])
        at = epoch.rows[sure] - first
        at = at[~events.late[at]]
        out.bounded += len(at)
        if (wrong := int((events.host[at] != host).sum())) > 0:
            out.complaints.append(f"{where}: {wrong} of {len(at)} events were on another host than is said")
            continue
        seen.append((epoch, set(np.unique(events.epoch[at]).tolist())))
        outside = _outside(world, guest, epoch, events, at)
        if len(outside):
            out.complaints.append(
                f"{where}: {len(outside)} of {len(at)} sure events of an epoch that is {epoch.verdict} by"
                f" {epoch.source} lie outside its bound, the first is event {outside[0]} of {len(events.t)}"
            )
    out.found += len(set().union(*(s for _, s in seen))) if seen else 0
    for (left, before), (right, after) in pairwise(seen):
        if before == after and len(before) == 1 and left.fitted is None and left.host == right.host:
            out.complaints.append(f"{where}: two epochs are told of one ({left.offset} and {right.offset})")
    for claim in vcpu.claims:
        _of_claim(where, vcpu, claim, entry, out)
    _of_late(where, guest, vcpu, events, first, out)


def _outside(world: World, guest: GuestProof, epoch: EpochProof, events: GuestCpuTruth, at: I64) -> I64:
    """Positions of the events whose true place in the parent's time is outside the epoch's bound."""
    if not len(at) or (guest.pool and guest.pool.guest_host and guest.pool.guest_host.clock is Clock.REFERENCE):
        return at[:0]
    early, late = epoch.as_epoch().bound(events.stamp[at])
    true = events.parent_stamp[at]
    # clocks in ns round down, each on its own
    options = world.options
    slack = 0 if options.host_clock == options.guests_clock == "x86-tsc" else 1
    base = int(true[0])
    outside: Bools = (relative(true, base) < relative(early, base) - slack) | (
        relative(true, base) > relative(late, base) + slack
    )
    return at[outside]


def _of_claim(where: str, vcpu: VcpuProof, claim: ClaimProof, entry: dict[str, Any], out: Judgement) -> None:
    """A claim that is proved must be right to within the width that is told."""
    out.claims[claim.verdict.value] += 1
    if claim.verdict is Verdict.REFUTED and _is_right(entry, claim):
        out.complaints.append(f"{where}: claim {claim.claim.offset} of {claim.claim.source} is right, and refuted")
    if claim.verdict is not Verdict.PROVED or claim.claim.ratio != 1 or not vcpu.verdict.is_sound:
        return
    for epoch in vcpu.epochs:
        if epoch.offset is not None and epoch.offset == claim.claim.offset and epoch.feasible is not None:
            lo, hi = epoch.feasible
            if not lo <= lo + to_signed(claim.claim.offset - lo) <= hi:
                out.complaints.append(f"{where}: claim {claim.claim.offset} is proved, and outside {lo}..{hi}")


def _is_right(entry: dict[str, Any], claim: ClaimProof) -> bool:
    """Whether a claim is right of all events that it may speak of."""
    said = claim.claim
    if len(entry["epochs"]) > 1:
        return False
    epoch = entry["epochs"][0]
    if epoch["unit"] == "ticks":
        rate = epoch.get("ratio", 1), epoch.get("frac_bits", 0)
        return (said.ratio, said.frac_bits) == rate and to_signed(said.offset - epoch["offset"]) == 0
    if epoch["unit"] == "ns" and said.ratio == 1:
        low, high = epoch["offset_range"]
        return low <= low + to_signed(said.offset - low) <= high
    return False


def _of_late(where: str, guest: GuestProof, vcpu: VcpuProof, events: GuestCpuTruth, first: int, out: Judgement) -> None:
    """Events that are said to be stamped late are; and by what is told."""
    for run in vcpu.mis_stamped:
        at = run.rows - first
        if not vcpu.verdict.is_sound or run.late_by is None:
            continue
        if not events.late[at].all():
            out.complaints.append(f"{where}: {int((~events.late[at]).sum())} events are not stamped late, as is said")
            continue
        by = relative(events.stamp[at], 0) - relative(events.true_stamp[at], 0)
        if by.min() < run.late_by[0] - 1 or by.max() > run.late_by[1] + 1:
            out.complaints.append(f"{where}: stamped late by {by.min()}..{by.max()}, not by {run.late_by}")


def _of_timeline(world: World, result: SyncResult, out: Judgement) -> None:
    """Each event whose place on the timeline is proved is as near to it as the widths of all levels allow."""
    guests = {g.name: g for g in result.guests}
    for machine in result.timeline.machines:
        guest = guests.get(machine.name)
        if guest is None or result.hosts:
            continue
        above = guests.get(guest.parent)
        allowed = 0 if above is None else max((_width_in_host(e) for v in above.vcpus for e in v.epochs), default=0)
        for vcpu in guest.vcpus:
            events = world.events(guest.name, vcpu.guest_cpu)
            first = next(s.first for s in guest.recording.streams if s.cpu == vcpu.guest_cpu and s.last > s.first)
            for epoch in vcpu.epochs:
                rows = epoch.rows[machine.proved[epoch.rows]]
                rows = rows[~events.late[rows - first]]
                away = np.abs(_apart(machine.host_stamp[rows], events.host_stamp[rows - first]))
                limit = allowed + _width_in_host(epoch) + 4
                if len(away) and int(away.max()) > limit:
                    out.complaints.append(
                        f"{guest.name} CPU {vcpu.guest_cpu}: {int((away > limit).sum())} of {len(rows)} events are"
                        f" up to {int(away.max())} from their place on the timeline, the widths allow {limit}"
                    )


def _apart(a: U64, b: U64) -> I64:
    return (a - b).view(np.int64)


def _width_in_host(epoch: EpochProof) -> int:
    """The width of an epoch's bound in the parent's units, rounded up."""
    width = (
        epoch.fitted.band.width
        if epoch.fitted
        else to_signed(epoch.feasible[1] - epoch.feasible[0])
        if epoch.feasible
        else 0
    )
    scale = epoch.scale
    return -(-(width << scale.frac_bits) // scale.ratio)


def _of_wrong_claims(
    world: World,
    result: SyncResult,
    folder: Path,
    truth: dict[str, Any],
    parents: dict[str, str],
    hosts: list[Path],
    out: Judgement,
) -> None:
    """A claim that is off by more than the width is refuted, or nothing is said of it; it is never proved."""
    rng = random.Random(world.options.seed)
    able = [
        (guest, vcpu)
        for guest in result.guests
        for vcpu in guest.vcpus
        if len(vcpu.epochs) == 1
        and vcpu.verdict.is_sound
        and vcpu.epochs[0].fitted is None
        and vcpu.epochs[0].feasible is not None
        and vcpu.epochs[0].scale.is_identity
    ]
    if not able:
        return
    guest, vcpu = rng.choice(able)
    feasible = vcpu.epochs[0].feasible
    assert feasible is not None
    width = to_signed(feasible[1] - feasible[0])
    off = width + 2 + int(10 ** rng.uniform(0, 15))
    wrong = to_signed(feasible[1] + off) if rng.random() < 0.5 else to_signed(feasible[0] - off)
    files = [folder / g["file"] for g in truth["guests"]]
    again = sync(
        folder / truth["host"], *files, parents=parents, hosts=hosts, offsets=[f"{guest.name}:{vcpu.guest_cpu}={wrong}"]
    )
    found = next(v for g in again.guests if g.name == guest.name for v in g.vcpus if v.guest_cpu == vcpu.guest_cpu)
    typed = next((c for c in found.claims if c.claim.source == "given"), None)
    if typed is None:
        out.complaints.append(f"{guest.name} CPU {vcpu.guest_cpu}: nothing is said of a claim that was typed")
        return
    out.claims[f"wrong: {typed.verdict.value}"] += 1
    # what a wrong word about its host leaves unsaid may make the bound wider than it was
    again_feasible = found.epochs[0].feasible
    within = again_feasible is not None and again_feasible[0] <= wrong <= again_feasible[1]
    if (typed.verdict is Verdict.PROVED and not within) or (typed.verdict is Verdict.REFUTED and again.is_sound):
        out.complaints.append(
            f"{guest.name} CPU {vcpu.guest_cpu}: the wrong claim {wrong} ({feasible} was derived) is {typed.verdict}"
        )
