"""Random small worlds, and what a proof of one must hold to."""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.clocks.counter import to_signed
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict
from counterpoint.timeline.sync import SyncResult, sync
from writers.worlds import START, OffsetChange, Truth, tiny_pair

PERIOD = 1 << 64

FEW_WINDOWS = 80
"""Events in fewer windows than this are no evidence of a change that takes them out of the host's sight."""

SMALL_STEP = 100_000
"""A change of fewer ticks may leave every event in its window: then one offset is no less true than two."""

AT_A_CHANGE = 0.04
"""Share of the events, around a change, that lie in windows at both offsets: whose they are cannot be told."""


@dataclass
class World:
    """A host and a guest file, how they were made, and the truth."""

    seed: int
    host: Path
    guest: Path
    truth: Truth
    how: dict[str, Any] = field(default_factory=dict)

    def sync(self, **options: Any) -> SyncResult:
        return sync(self.host, self.guest, **options)


def random_world(seed: int, folder: Path) -> World:
    """A world whose features are drawn by ``seed``."""
    rng = random.Random(seed)
    vcpus = rng.choice((1, 1, 2, 3))
    windows = rng.choice((30, 100, 150, 300))
    near = rng.choice((0, 0, 1 << 63, -(1 << 63), 1 << 62, rng.getrandbits(64), -rng.getrandbits(40)))
    offsets = [near + rng.randint(-(10**10), 10**10)] * vcpus
    if rng.random() < 0.3:
        offsets = [o + rng.randint(-(10**10), 10**10) for o in offsets]
    recorded = rng.random() < 0.5
    changes = [
        OffsetChange(
            rng.choice((-1, 1)) * int(10 ** rng.uniform(2, 10)),
            rng.choice((None, rng.randrange(vcpus))),
            at,
            recorded=recorded,
        )
        for at in sorted(rng.uniform(0.05, 0.95) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))))
    ]
    how: dict[str, Any] = {
        "arch": rng.choice(("x86", "x86", "arm64")),
        "host_cpus": rng.choice((1, 2, 3)),
        "vcpus": vcpus,
        "windows": windows,
        "guest_events": int(windows * rng.uniform(1.2, 4)),
        "start": rng.choice((START, START, PERIOD - 20_000_000, (1 << 63) - 20_000_000, 0)),
        "offset": offsets,
        "change": changes,
        "decoys": rng.choice((0, 1, 2)),
        "slack": rng.choice((0, 20, 200, 2000)),
        "hug": rng.choice((0.0, 0.1, 0.5)),
        "lost": rng.choice((0, 0, 0, 5, 60, 300)),
        "double_exits": rng.choice((0.0, 0.0, 0.1)),
        "claims": rng.random() < 0.7,
    }
    host, guest, truth = tiny_pair(seed=seed, **how)
    return World(seed, host.write(folder / f"h{seed}.dat"), guest.write(folder / f"g{seed}.dat"), truth, how)


def true_offsets(world: World, vcpu: VcpuProof, result: SyncResult) -> dict[int, int]:
    """The true offset of each guest row of a vCPU."""
    recording = result.guests[0].recording
    stream = next(s for s in recording.streams if s.cpu == vcpu.guest_cpu)
    events = world.truth.guest_events[vcpu.guest_cpu]
    return {stream.first + i: event.guest - event.host for i, event in enumerate(events)}


def complaints(world: World, result: SyncResult) -> list[str]:
    """What in ``result`` is not true."""
    out = []
    for vcpu in result.guests[0].vcpus:
        out += [f"cpu {vcpu.guest_cpu}: {text}" for text in _of_vcpu(world, vcpu, result)]
    return out


def _of_vcpu(world: World, vcpu: VcpuProof, result: SyncResult) -> list[str]:
    out: list[str] = []
    tid = world.truth.threads[vcpu.guest_cpu]
    if vcpu.host_tid not in (None, tid):
        changed = len(world.truth.epochs[vcpu.guest_cpu]) > 1
        if (
            not vcpu.verdict.is_sound
            and vcpu.matched_by != "guest-option"
            and (changed or not _overlaps(world, vcpu, result))
        ):
            return []  # its own thread is out, and nothing speaks for the other but that
        return [f"matched to {vcpu.host_tid}, not {tid} ({vcpu.verdict})"]
    truths = true_offsets(world, vcpu, result)
    if sorted(row for e in (*vcpu.epochs, *vcpu.mis_stamped) for row in e.rows.tolist()) != sorted(truths):
        out.append("its epochs do not cover its events once each")
    known = len({truths[row] for row in truths})
    if len(vcpu.epochs) > len(world.truth.epochs[vcpu.guest_cpu]):
        out.append(f"{len(vcpu.epochs)} epochs, more than the truth has")
    for index, epoch in enumerate(vcpu.epochs):
        mine = {to_signed(truths[row]) for row in epoch.rows.tolist()}
        if not vcpu.verdict.is_sound and (known > 1 or not _overlaps(world, vcpu, result)):
            # nothing is promised of an offset that is called ambiguous and is one of several
            continue
        small = any(0 < abs(to_signed(a - b)) <= SMALL_STEP for a in mine for b in mine)
        if epoch.feasible is not None and not small and not any(_holds(epoch, offset) for offset in mine):
            apart = min(abs(to_signed(o - epoch.feasible[0])) for o in mine)
            out.append(f"epoch {index} ({epoch.verdict}) excludes the truth: {mine}, {epoch.feasible}, {apart}")
        if not vcpu.verdict.is_sound or epoch.offset is None or epoch.feasible is None:
            continue
        width = to_signed(epoch.feasible[1] - epoch.feasible[0])
        wrong = [r for r in epoch.rows.tolist() if abs(to_signed(truths[r] - epoch.offset)) > max(width, SMALL_STEP)]
        if epoch.unknown >= len(wrong) and _windows_of(world, vcpu, wrong, result) < FEW_WINDOWS:
            continue  # out of the host's sight, and too few to tell
        if len(wrong) > max(10, AT_A_CHANGE * len(truths)):
            out.append(
                f"epoch {index} ({epoch.verdict}): {len(wrong)} of {len(epoch.rows)} events misplaced (width {width})"
            )
        if epoch.violations:
            out.append(f"epoch {index} is {epoch.verdict} with {epoch.violations} violations")
    return out


def _windows_of(world: World, vcpu: VcpuProof, rows: list[int], result: SyncResult) -> int:
    """How many run windows the events at ``rows`` really lie in."""
    recording = result.guests[0].recording
    first = next(s.first for s in recording.streams if s.cpu == vcpu.guest_cpu)
    events = world.truth.guest_events[vcpu.guest_cpu]
    begins = [w.entry for w in world.truth.windows[vcpu.guest_cpu]]
    return len({bisect.bisect_right(begins, events[row - first].host) for row in rows})


def _overlaps(world: World, vcpu: VcpuProof, result: SyncResult) -> bool:
    """Whether the host recorded at least half of the events between its thread's first and last kvm event."""
    tid = world.truth.threads[vcpu.guest_cpu]
    pool = ThreadPool(result.host)
    if tid not in pool.tids:
        return False  # all of its events are lost
    windows = pool.thread(tid).windows
    hosts = [to_signed(event.host - windows.base) for event in world.truth.guest_events[vcpu.guest_cpu]]
    return 2 * sum(windows.first <= host <= windows.last for host in hosts) >= len(hosts)


def _holds(epoch: EpochProof, offset: int) -> bool:
    assert epoch.feasible is not None
    lo, hi = epoch.feasible
    return to_signed(offset - lo) >= 0 and to_signed(hi - offset) >= 0


def wrong_claims(world: World, result: SyncResult) -> list[str]:
    """Claims that were proved although they are off by more than the width of what is feasible."""
    out = []
    for vcpu in result.guests[0].vcpus:
        for proof in vcpu.claims:
            offsets = {to_signed(o) for o in true_offsets(world, vcpu, result).values()}
            if proof.verdict is not Verdict.PROVED:
                continue
            widths = [to_signed(e.feasible[1] - e.feasible[0]) for e in vcpu.epochs if e.feasible]
            if all(abs(to_signed(proof.claim.offset - o)) > max(widths, default=0) for o in offsets):
                out.append(f"cpu {vcpu.guest_cpu}: {proof.claim.source} {proof.claim.offset} proved, truth {offsets}")
    return out
