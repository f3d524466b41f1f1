"""One guest recording proved against its parent's: threads matched, clocks related, claims and anchors held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from counterpoint.claims import dynamic_events, given, time_shift, tsc_offset_events
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.scaling import Scale
from counterpoint.errors import UsageError
from counterpoint.proof.anchors import hypervisor
from counterpoint.proof.anchors.tighten import Anchors, Bounded
from counterpoint.proof.counters import NO_COUNTER, CounterInfo, Counters
from counterpoint.proof.drift import prove_lines
from counterpoint.proof.feasible import Interval
from counterpoint.proof.holding import BY_CAUSALITY
from counterpoint.proof.machine_lines import machine_lines, peers_of
from counterpoint.proof.matching import Hints, Match, ThreadPool, match
from counterpoint.proof.nesting import Clock
from counterpoint.proof.reconcile import reconciled
from counterpoint.proof.relation import (
    Relation,
    kvm_clock_relations,
    kvm_scale,
    relation_of,
    scaled_relation,
    slack_of,
)
from counterpoint.proof.sharpening import sharpened
from counterpoint.proof.sums import Hypervisor, Sum
from counterpoint.proof.ticks import TickProver, in_ns, sure_rows, with_cntvoff
from counterpoint.proof.told_rates import held_to, refuted_by
from counterpoint.proof.tracks import Track, tracks_of
from counterpoint.proof.vcpu import VcpuProver, unmatched
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict, worst
from counterpoint.proof.windows import WindowKind
from counterpoint.timeline.migration import Part
from counterpoint.traces.recording import Recording


@dataclass(frozen=True, slots=True)
class GuestProof:
    """One guest recording and the proof of each of its CPUs against its parent's recording.

    ``counter``: what is known of arm64's counter behind both; None where there is none. ``sums``: what its parent's
    host logged while it ran.
    """

    name: str
    recording: Recording
    parent: str
    vcpus: tuple[VcpuProof, ...]
    warnings: tuple[str, ...] = ()
    pool: ThreadPool | None = field(default=None, repr=False, compare=False)
    counter: CounterInfo | None = None
    sums: tuple[Sum, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of its vCPUs' verdicts."""
        return worst([v.verdict for v in self.vcpus])


def prove_guest(
    name: str,
    guest: Recording,
    parent: str,
    host: Recording,
    pool: ThreadPool,
    typed: list[Claim | CounterClaim],
    tids: dict[int, int],
    use_claims: bool,
    logs: Sequence[dynamic_events.Log],
    counters: Counters,
    above: Hypervisor | None,
    part: Part | None = None,
) -> GuestProof:
    """Match and prove every CPU of one guest against its parent's recording.

    ``above``: a parent that is a guest; ``part``: some of its events alone.
    """
    warnings: list[str] = []
    tracks = tracks_of(guest) if part is None else part.tracks
    if not pool.tids:
        warnings.append(
            f"{parent}: no kvm_entry, kvm_exit or sched_switch events, so nothing bounds {name}'s clocks"
            " (record the host with -e kvm; is it the host's recording?)"
        )
    elif pool.activity.kind is WindowKind.SCHED_SWITCH:
        warnings.append(
            f"{parent}: no kvm_entry or kvm_exit events: {name}'s clocks are bounded only by when each thread of the"
            " host was on a CPU, by its sched_switch events (record the host with -e kvm for tighter bounds)"
        )
    slack = slack_of(host, guest)
    if slack != (0, 0):
        pool = pool.widened(slack)
        warnings.append(
            f"{name} against {parent}: stamps are rounded, so every run window is taken to begin {slack[0]} and to end"
            f" {slack[1]} {host.unit} beyond its events' (trace.dat has whole stamps, and trace-cmd report -t shows"
            " them)"
        )
    relation = relation_of(host, guest)
    kvm_clocks = [] if relation.constant or not use_claims else kvm_clock_relations(host, guest)
    if relation.scale is None and not kvm_clocks:
        warnings.append(f"{name} cannot be related to {parent}: {relation.reason}")
    elif guest.clock != host.clock:
        warnings.append(
            f"{name} is recorded in {guest.clock} ({guest.unit}), {parent} in {host.clock} ({host.unit}):"
            " a rate is fitted"
        )
    hints = Hints(given=dict(tids))
    by_cpu = [c for c in typed if isinstance(c, Claim)]
    if use_claims and not (part and part.returned):
        # trace-cmd's own options are of the threads that the guest began on
        shift, notes = time_shift.claims_of(guest, host)
        warnings += notes
        by_cpu += shift
        hints.guest_option = _guest_option(guest, host)
    writes = tsc_offset_events.claims_of(host, pool.vcpu_ids) if use_claims and guest.unit == "ticks" else []
    counted = [c for c in typed if isinstance(c, CounterClaim)]
    logged = [claim for log in logs for claim in log.claims]
    writes += [c for c in logged if isinstance(c, Claim)]
    counted += [c for c in logged if isinstance(c, CounterClaim)]
    if part is not None:
        writes = part.claims(writes, pool)
    if slack != (0, 0):
        # when they were made is not known well enough to tell on which side of a change an event is
        writes, counted = [], []
    for cpu, tid in tids.items():
        if tid not in pool.tids:
            raise UsageError(f"--tid {cpu}={tid}: thread {tid} has no kvm events in {parent}")
    # rounded stamps lie on a lattice that is not the counter's
    counter = counters.info(parent, name) if relation.constant and slack == (0, 0) else None
    if counter is not None and pool.guest_host is not None and pool.guest_host.clock is Clock.REFERENCE:
        counter = CounterInfo(reason=f"its offset is not to the clock of the CPU of {parent} that it was on")
    job = _Job(guest, tracks, pool, hints, by_cpu, writes, counted)
    if not pool.tids:
        vcpus = job.unmatched()
    elif relation.constant:
        vcpus = _by_constants(job, host, part)
        if counter is not None and part is None:
            vcpus = _with_help(job, host, vcpus, counter)
    else:
        vcpus = _by_lines(job, relation, kvm_clocks)
    if part is not None and not part.final:
        return GuestProof(name, guest, parent, tuple(vcpus), tuple(warnings), pool)
    known = {track.cpu for track in tracks}
    for claim in typed:
        if claim.guest_cpu is not None and claim.guest_cpu not in known:
            flag = "--offset" if isinstance(claim, Claim) else "--cntvoff"
            source = flag if claim.source == given.SOURCE else claim.source
            warnings.append(f"{name}: CPU {claim.guest_cpu}, which {source} speaks of, has no events")
    for cpu in tids.keys() - known:
        warnings.append(f"{name}: CPU {cpu}, which --tid speaks of, has no events")
    # of what is only printed, the fields that anchors need are not all known
    is_whole = slack == (0, 0) and host.has_fields and guest.has_fields
    vcpus, whole = _sharpened(host, guest, vcpus, pool) if is_whole else (vcpus, None)
    vcpus = _by_its_clock(guest, vcpus, pool, parent)
    if counter is not None and whole is not None:
        counter = counters.with_guest(counter, parent, name, whole)
    sums: list[Sum] = []
    if above is not None and counter is not None and relation.scale is not None:
        sums = above.sums(guest, vcpus, pool)
        threads = {v.guest_cpu: v.host_tid for v in vcpus}
        job = replace(job, counted=counted + [s.claim(t) for s in sums if (t := threads[s.guest_cpu]) is not None])
    if counter is not None or counted:
        counter = counter or CounterInfo(reason=NO_COUNTER)
        prover = TickProver(guest, counter, pool.thread)
        vcpus = prover.prove(vcpus, job.counter_claims_of)
        counter = replace(counter, agreed=tuple(prover.agreed.items()))
    proved = _one_offset(vcpus)
    pair = None if counter is None else counter.pair
    proved = tuple(reconciled(vcpu, pair) for vcpu in with_cntvoff(proved, pair))
    return GuestProof(name, guest, parent, proved, tuple(warnings), pool, counter, tuple(sums))


@dataclass(frozen=True, slots=True)
class _Job:
    """A guest to be proved against a host's threads, with what is said of it."""

    guest: Recording
    tracks: list[Track]
    pool: ThreadPool
    hints: Hints
    by_cpu: list[Claim]
    writes: list[Claim]
    counted: list[CounterClaim]

    def claims_of(self, track: Track, tid: int | None, scale: Scale | None = None) -> list[Claim]:
        """The claims about one CPU that runs as thread ``tid``; an offset that KVM wrote is added to ``scale``'s."""
        mine = [c for c in self.by_cpu if c.guest_cpu == track.cpu]
        written = [] if tid is None else [c for c in self.writes if c.tid == tid]
        if scale is not None and not scale.is_identity:
            written = [replace(c, ratio=scale.ratio, frac_bits=scale.frac_bits) for c in written]
        return mine + written

    def counter_claims_of(self, vcpu: VcpuProof) -> list[CounterClaim]:
        """The claims in ticks about one CPU."""
        mine = [c for c in self.counted if c.guest_cpu == vcpu.guest_cpu]
        return mine + [c for c in self.counted if c.tid is not None and c.tid == vcpu.host_tid]

    def unmatched(self) -> list[VcpuProof]:
        """Nothing is known of any CPU."""
        found = Match(None, BY_CAUSALITY)
        return [unmatched(t, self.claims_of(t, None), found.matched_by, found.notes) for t in self.tracks]

    def by_constant(self, scale: Scale) -> list[VcpuProof]:
        """Every CPU at one offset, or several, at a rate that is known exactly."""
        pool = self.pool.at_scale(scale)
        claimed: dict[int, list[int]] = {}
        for claim in self.by_cpu:
            if claim.guest_cpu is not None and claim.scale == scale:
                claimed.setdefault(claim.guest_cpu, []).append(claim.offset)
        matches = match(self.tracks, pool, self.hints, claimed)
        vcpus = []
        for track in self.tracks:
            found = matches.get(track.cpu, Match(None, BY_CAUSALITY))
            claims = self.claims_of(track, found.tid, scale)
            if found.tid is None:
                vcpus.append(unmatched(track, claims, found.matched_by, found.notes))
                continue
            prover = VcpuProver(self.guest, track, pool.thread(found.tid), partial(pool.stretches, track, found.tid))
            vcpus.append(prover.prove(claims, found.matched_by, (*found.notes, *pool.note(found.tid))))
        return vcpus

    def by_lines(self, relation: Relation) -> list[VcpuProof]:
        """Every CPU by the lines that are fitted to its events."""
        assert relation.scale is not None
        pool = self.pool.at_scale(relation.scale)
        lines = machine_lines(self.tracks, pool, self.hints, relation)
        vcpus = []
        for track in self.tracks:
            found, pieces = lines[track.cpu].match, lines[track.cpu].pieces
            claims = self.claims_of(track, found.tid)
            if found.tid is None or not pieces:
                notes = found.notes if found.tid is None else (*found.notes, "no line holds its events")
                vcpus.append(unmatched(track, claims, found.matched_by, notes))
                continue
            notes = (*found.notes, *pool.note(found.tid))
            thread = pool.thread(found.tid)
            peers = peers_of(track, lines, pool, relation)
            vcpus.append(
                prove_lines(self.guest, track, thread, pieces, relation, claims, found.matched_by, notes, peers)
            )
        return vcpus


def _by_lines(job: _Job, relation: Relation, told: list[Relation]) -> list[VcpuProof]:
    """By a rate that was ``told``, where causality allows it; else by what the clocks' names say of it."""
    tried = []
    for one in told:
        vcpus = job.by_lines(one)
        if all(_is_known(v) for v in vcpus):
            return held_to(vcpus, one)
        tried.append((one, vcpus))
    free = job.unmatched() if relation.scale is None else job.by_lines(relation)
    for one, vcpus in tried:
        if sum(_is_known(v) for v in vcpus) > sum(_is_known(v) for v in free):
            return held_to(vcpus, one)
        free = refuted_by(free, one)
    return free


def _is_known(vcpu: VcpuProof) -> bool:
    return vcpu.verdict not in (Verdict.UNBOUNDED, Verdict.AMBIGUOUS)


def _by_constants(job: _Job, host: Recording, part: Part | None = None) -> list[VcpuProof]:
    """Two counters: at the rates that are claimed, at what their rates in ns tell, and at one rate."""
    scales = list(dict.fromkeys([*(c.scale for c in job.by_cpu if not c.scale.is_identity), Scale()]))
    guest_rate = part.guest_rate if part else None
    unlike = scaled_relation(host, job.guest, guest_rate)
    if part is not None and part.arrived and unlike is not None:
        by_khz = kvm_scale(host, job.guest, guest_rate)
        scales = list(dict.fromkeys([*([by_khz] if by_khz and not by_khz.is_identity else []), *scales]))
    proofs: list[list[VcpuProof]] = []
    for scale in scales:
        if scale.is_identity and unlike is not None:
            proofs.append(job.by_lines(unlike))
        elif scale.is_identity or unlike is not None or len(scales) > 1:
            proofs.append(job.by_constant(scale))
        if proofs and all(v.verdict.is_sound for v in proofs[-1]):
            return proofs[-1]
    if unlike is not None:
        proofs.append(job.by_constant(Scale()))
    return max(reversed(proofs), key=lambda vcpus: sum(v.verdict.is_sound for v in vcpus))


def _with_help(job: _Job, host: Recording, vcpus: list[VcpuProof], counter: CounterInfo) -> list[VcpuProof]:
    """The proofs, with claims in ticks turned into ns where the proofs are in doubt and both K are known."""
    if all(v.verdict.is_sound for v in vcpus):
        return vcpus
    helpful = [claim for c in job.counted if (claim := in_ns(c, counter)) is not None]
    # what a probe's first and last value say of the time beyond them is held against the events as the rest is
    first = {(c.source, c.tid): c for c in reversed(helpful) if c.held is not None}
    last = {(c.source, c.tid): c for c in helpful if c.held is not None}
    helpful = [
        replace(
            c,
            host_from=None if c is first.get((c.source, c.tid)) else c.host_from,
            host_to=None if c is last.get((c.source, c.tid)) else c.host_to,
            held=None if c.held is not None and len(c.held) == 1 else c.held,
        )
        for c in helpful
    ]
    typed, logged = [c for c in helpful if c.tid is None], [c for c in helpful if c.tid is not None]
    helped = _by_constants(replace(job, by_cpu=job.by_cpu + typed, writes=job.writes + logged), host)
    if sum(v.verdict.is_sound for v in helped) <= sum(v.verdict.is_sound for v in vcpus):
        return vcpus
    # what becomes of these claims is for the ticks to say
    mine = set(helpful)
    return [replace(v, claims=tuple(c for c in v.claims if c.claim not in mine)) for v in helped]


def _sharpened(
    host: Recording, guest: Recording, vcpus: list[VcpuProof], pool: ThreadPool
) -> tuple[list[VcpuProof], Interval | None]:
    """Narrow the intervals of sound epochs by anchors, where the recordings have any (see ``proof.anchors``).

    Also what they tell of the guest's counter: ``Found.guest_whole``, of all of them.
    """
    places = _bounded_places(vcpus)
    if not places:
        return vcpus, None
    bounded = []
    for v, index in places:
        vcpu, epoch = vcpus[v], vcpus[v].epochs[index]
        assert vcpu.host_tid is not None and epoch.feasible is not None
        bounded.append(Bounded(vcpu.host_tid, vcpu.guest_cpu, epoch.feasible, sure_rows(guest, epoch)))
    out = list(vcpus)
    wholes: list[Interval] = []
    anchors = Anchors(host, guest, windows=lambda tid: pool.thread(tid).windows)
    for (v, index), found in zip(places, anchors.tighten(bounded), strict=True):
        out[v] = sharpened(out[v], index, found)
        wholes += [kind.guest_whole for kind in found.used if kind.guest_whole is not None]
    whole = (max(lo for lo, _ in wholes), min(hi for _, hi in wholes)) if wholes else None
    return out, whole


def _bounded_places(vcpus: Sequence[VcpuProof]) -> list[tuple[int, int]]:
    """The sound epochs that have one interval, and run as their host does: (vCPU, epoch)."""
    return [
        (v, index)
        for v, vcpu in enumerate(vcpus)
        for index, e in enumerate(vcpu.epochs)
        if vcpu.host_tid is not None
        and e.verdict.is_sound
        and e.feasible is not None
        and len(e.candidates) == 1
        and e.fitted is None
        and e.scale.is_identity
        and len(e.rows)
    ]


def _by_its_clock(guest: Recording, vcpus: list[VcpuProof], pool: ThreadPool, parent: str) -> list[VcpuProof]:
    """Narrow the intervals of a nested guest by what anchors left of its hypervisor's own clock."""
    if pool.anchored is None:
        return vcpus
    out = list(vcpus)
    for v, index in _bounded_places(vcpus):
        tid = out[v].host_tid
        assert tid is not None
        found = hypervisor.tighten_by(guest, out[v].epochs[index], pool.anchored.thread(tid), parent)
        out[v] = sharpened(out[v], index, found)
    return out


def _guest_option(guest: Recording, host: Recording) -> dict[int, int]:
    """Threads by guest CPU, from the host's GUEST option that carries the guest's trace id."""
    for option in host.options.guests:
        if guest.options.trace_id is not None and option.trace_id == guest.options.trace_id:
            return {cpu: tid for cpu, tid in option.vcpus if tid > 0}
    return {}


def _one_offset(vcpus: list[VcpuProof]) -> tuple[VcpuProof, ...]:
    """Let derived epochs whose intervals overlap share one offset, the middle of what they have in common.

    KVM keeps the vCPUs of a VM on one offset unless told otherwise; where the proofs allow it, one offset keeps the
    guest's own order between its CPUs. Each epoch's interval stays its own.
    """
    known = [e.usable for v in vcpus for e in v.epochs if e.verdict is Verdict.DERIVED and e.usable]

    def shared(epoch: EpochProof) -> EpochProof:
        if epoch.verdict is not Verdict.DERIVED or epoch.usable is None:
            return epoch
        lo, hi = epoch.usable
        for low, high in known:
            # offsets are modulo 2**64: the other interval as it lies from this one
            begin = lo + to_signed(low - lo)
            end = begin + high - low
            if max(lo, begin) <= min(hi, end):
                lo, hi = max(lo, begin), min(hi, end)
        return replace(epoch, offset=(lo + hi) // 2)

    return tuple(replace(v, epochs=tuple(shared(e) for e in v.epochs)) for v in vcpus)
