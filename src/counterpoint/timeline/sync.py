"""The main job: claims gathered, each vCPU proved, recordings merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os import PathLike, fspath
from typing import TYPE_CHECKING

import numpy as np

from counterpoint.claims import dynamic_events, given, time_shift, tsc_offset_events
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import I64, U64, Bools, to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.scaling import Scale
from counterpoint.errors import UsageError
from counterpoint.proof.anchors.tighten import Anchors, Bounded
from counterpoint.proof.counters import NO_COUNTER, CounterInfo, Counters
from counterpoint.proof.drift import prove_lines
from counterpoint.proof.feasible import Interval
from counterpoint.proof.machine_lines import machine_lines, peers_of
from counterpoint.proof.matching import Hints, Match, ThreadPool, match
from counterpoint.proof.nesting import Clock, GuestHost
from counterpoint.proof.reconcile import reconciled
from counterpoint.proof.relation import (
    FIRST_HOST,
    Relation,
    kvm_clock_relations,
    kvm_scale,
    relation_of,
    scaled_relation,
)
from counterpoint.proof.sharpening import sharpened
from counterpoint.proof.signs import signs_of
from counterpoint.proof.sums import Hypervisor, Sum, explained
from counterpoint.proof.ticks import TickProver, in_ns, sure_rows, with_cntvoff
from counterpoint.proof.told_rates import held_to, refuted_by
from counterpoint.proof.tracks import Track, tracks_of
from counterpoint.proof.vcpu import BY_CAUSALITY, VcpuProver, unmatched
from counterpoint.proof.verdicts import EpochProof, VcpuProof, Verdict, worst
from counterpoint.proof.windows import WindowKind
from counterpoint.timeline.join import Join, Wall, by_counter, by_pairs
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.migration import Part, divide
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

if TYPE_CHECKING:
    from counterpoint.clocks.machines import Maps

Source = str | PathLike[str] | Recording


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


@dataclass(frozen=True, slots=True)
class FurtherHost:
    """Another host's recording, and how its clock relates to the first host's (None: nothing relates them)."""

    name: str
    recording: Recording
    join: Join | None
    pool: ThreadPool = field(repr=False, compare=False)


@dataclass(frozen=True)
class SyncResult:
    """What ``sync`` found: a proof for every guest CPU, and the timeline made with it."""

    host: Recording
    host_name: str
    guests: tuple[GuestProof, ...]
    rate: Rate | None
    warnings: tuple[str, ...] = field(default=())
    hosts: tuple[FurtherHost, ...] = ()

    def rate_on(self, host: str | None) -> Rate | None:
        """The rate of a further host's clock; ``host`` None: the first's."""
        return self.rate if host is None else next((rate_of(h.recording) for h in self.hosts if h.name == host), None)

    @property
    def is_sound(self) -> bool:
        """Every guest CPU proved or derived, no claim refuted, every further host related to the first."""
        joined = all(h.join is not None for h in self.hosts)
        return joined and all(g.vcpus and all(v.is_sound for v in g.vcpus) for g in self.guests)

    @cached_property
    def timeline(self) -> Timeline:
        """All events of all machines whose clock maps are known, in one order."""
        machines = [Machine(self.host_name, self.host, None, self.host.stamp, np.ones(len(self.host), np.bool_))]
        joins = {h.name: h.join for h in self.hosts if h.join is not None}
        machines += [_further_machine(h) for h in self.hosts]
        by_name = {m.name: m for m in machines}
        guests = {g.name: g for g in self.guests}
        for name in _parents_first(self.host_name, {g.name: g.parent for g in self.guests}):
            guest = guests[name]
            parent = by_name[guest.parent]
            stamp, placed = _to_parent(guest, joins)
            if guest.parent != self.host_name:
                stamp, placed = _through(guest, stamp, placed, parent)
            machine = Machine(guest.name, guest.recording, guest.parent, stamp, placed)
            by_name[guest.name] = machine
        machines += [by_name[g.name] for g in self.guests]
        return Timeline(machines, self.rate)

    @cached_property
    def maps(self) -> Maps:
        """Every clock map with where it holds, for stamps of one's own."""
        from counterpoint.timeline.maps import maps_of

        return maps_of(self)


def sync(
    host: Source,
    *guests: Source,
    offsets: Iterable[str] = (),
    claims_file: str | PathLike[str] | None = None,
    use_claims: bool = True,
    tids: Iterable[str] = (),
    parents: Mapping[str, str] | None = None,
    cntvoffs: Iterable[str] = (),
    claim_events: Iterable[str] = (),
    frequency: int | None = None,
    ks: Iterable[str] = (),
    hosts: Iterable[Source] = (),
    claims: Iterable[tuple[str | None, Claim | CounterClaim]] = (),
    wall: Wall | None = None,
    progress: Callable[[str], None] | None = None,
) -> SyncResult:
    """Prove how each guest's clocks relate to the host's, and merge.

    ``host`` and ``guests`` are trace.dat files or open recordings. ``offsets``: claims "[GUEST:]CPU=TICKS";
    ``claims_file``: JSON lines of claims; ``use_claims`` False derives all from the events alone. ``tids``: known
    threads "[GUEST:]CPU=TID". ``parents``: child name to parent name where a guest's host is another guest.
    Of arm64: ``cntvoffs`` are claims "[GUEST:]CPU=TICKS" of CNTVOFF; ``frequency`` is the counter's in Hz where the
    stamps do not tell, ``ks`` "NAME=K" relate a machine's stamps to it. ``claim_events``: "SYSTEM:NAME:FIELD" of the
    host's events that log an offset.
    ``hosts``: further hosts that guests went to, in that order. ``claims``: more claims, each of a guest (None: all).
    ``wall``: readings of the hosts' counters and CLOCK_REALTIME, by recording name, that relate the hosts.
    ``progress`` is called with a few words before each step that may take long.
    Raises BadFileError for files that cannot be read and UsageError for a request that makes no sense.
    """
    if not guests:
        raise UsageError("a guest recording is needed beside the host's")
    say = progress or (lambda _: None)
    host_recording, *recordings = [_open(source, say) for source in (host, *guests)]
    others = [_open(source, say) for source in hosts]
    names = _names([host_recording, *recordings, *others])
    host_name, guest_names, other_names = names[0], names[1 : 1 + len(recordings)], names[1 + len(recordings) :]
    parent_of = _parents(host_name, guest_names, parents or {})
    by_name = dict(zip(names, [host_recording, *recordings, *others], strict=True))
    typed: list[tuple[str | None, Claim | CounterClaim]] = []
    if use_claims:
        typed += [given.parse_offset(text) for text in offsets]
        typed += [given.parse_cntvoff(text) for text in cntvoffs]
        typed += claims
    known_ks = [given.parse_k(text) for text in ks]
    if claims_file is not None:
        known_ks += given.read_ks(claims_file)
        typed += given.read_claims(claims_file) if use_claims else []
    probes = [dynamic_events.parse_probe(text) for text in claim_events]
    dynamic_events.check_probes(probes, [by_name[name] for name in dict.fromkeys(parent_of.values())])
    for machine, _ in known_ks:
        if machine not in by_name:
            raise UsageError(f"--k {machine}: no recording is called {machine!r} (there are: {', '.join(names)})")
    threads = [given.parse_assignment(text, "--tid", "[GUEST:]CPU=TID", "0=191") for text in tids]
    for name in [*(g for g, _ in typed), *(g for g, _, _ in threads)]:
        if name is not None and name not in guest_names:
            raise UsageError(f"no guest is called {name!r} (there are: {', '.join(guest_names)})")

    warnings: list[str] = []
    for name, recording in by_name.items():
        warnings += recording.warnings
        if not len(recording):
            warnings.append(f"{name}: the recording holds no events")
    warnings += signs_of({n: r for n, r in by_name.items() if n not in other_names}, host_name)
    for name in other_names:
        warnings += signs_of({name: by_name[name]}, name)
    counters = Counters(by_name, frequency, known_ks)
    logs: dict[str, list[dynamic_events.Log]] = {}
    pools: dict[str, ThreadPool] = {name: ThreadPool(by_name[name]) for name in other_names}
    proofs: dict[str, GuestProof] = {}
    for name in _parents_first(host_name, parent_of):
        recording, parent = by_name[name], parent_of[name]
        say(f"proving {name}")
        if parent not in pools:
            pools[parent] = ThreadPool(by_name[parent], _guest_host(proofs.get(parent), by_name[parent]))
            logs[parent] = []
            if use_claims:
                pool = pools[parent]
                logs[parent], notes = dynamic_events.logs_of(by_name[parent], probes, pool.tids, pool.vcpu_ids)
                warnings += notes
        above = None if parent == host_name else _hypervisor(proofs[parent], logs[parent_of[parent]])
        for pool in pools[parent].in_clocks():
            found = _prove_guest(
                name,
                recording,
                parent,
                by_name[parent],
                pool,
                [c for g, c in typed if g in (None, name)],
                {cpu: tid for g, cpu, tid in threads if g in (None, name)},
                use_claims,
                logs[parent],
                counters,
                above,
            )
            if name not in proofs or _explained(found) > _explained(proofs[name]):
                proofs[name] = found
        if (counter := proofs[name].counter) is not None:
            proofs[name] = replace(proofs[name], counter=counters.learn(parent, name, counter))
        if proofs[name].sums:
            told = explained(proofs[parent].vcpus, proofs[name].sums, parent, name)
            proofs[parent] = replace(proofs[parent], vcpus=told)
        if other_names and parent == host_name:
            say(f"looking for {name} on {', '.join(other_names)}")
            proofs[name] = _across(
                proofs[name], [host_name, *other_names], by_name, pools, typed, threads, use_claims, counters
            )
    further = _joined([host_name, *other_names], by_name, pools, proofs, wall)
    for one in further:
        if one.join is None:
            warnings.append(
                f"{one.name} cannot be related to {host_name}: no guest is proved to have gone from one to the other;"
                f" its {len(one.recording)} events are left out of the timeline"
            )
    warnings += [*counters.warnings, *counters.unused()]
    return SyncResult(
        host_recording,
        host_name,
        tuple(proofs[name] for name in guest_names),
        # a guest on the host's counter may know its rate where the host does not
        next((rate for r in by_name.values() if r.unit == host_recording.unit and (rate := rate_of(r))), None),
        tuple(dict.fromkeys(warnings)),
        further,
    )


def _open(source: Source, say: Callable[[str], None]) -> Recording:
    if isinstance(source, Recording):
        return source
    say(f"reading {fspath(source)}")
    return Recording.open(source)


def _names(recordings: Sequence[Recording]) -> list[str]:
    """File stems, made unique with the folder's name where two files share one."""
    stems = [r.name for r in recordings]
    out = []
    for recording, stem in zip(recordings, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{recording.path.absolute().parent.name}/{stem}"
        while name in out:
            name += "'"
        out.append(name)
    return out


def _parents(host: str, guests: Sequence[str], said: Mapping[str, str]) -> dict[str, str]:
    for child, parent in said.items():
        if child not in guests:
            raise UsageError(f"--parent {child}={parent}: no guest is called {child!r} ({', '.join(guests)})")
        if parent != host and parent not in guests:
            raise UsageError(f"--parent {child}={parent}: no recording is called {parent!r}")
    out = {guest: said.get(guest, host) for guest in guests}
    for guest in guests:
        seen, at = {guest}, out[guest]
        while at != host:
            if at in seen:
                raise UsageError(f"--parent: {guest} is its own ancestor")
            seen.add(at)
            at = out[at]
    return out


def _parents_first(host: str, parent_of: Mapping[str, str]) -> list[str]:
    """The guests, each after its parent."""
    order: list[str] = []
    while len(order) < len(parent_of):
        order += [g for g, parent in parent_of.items() if g not in order and (parent == host or parent in order)]
    return order


def _explained(proof: GuestProof) -> tuple[bool, int]:
    """What makes one proof of a guest better than another: no doubt, and more events in run windows."""
    return proof.verdict.is_sound, sum(e.inside for v in proof.vcpus for e in v.epochs)


def _hypervisor(parent: GuestProof, logs: list[dynamic_events.Log]) -> Hypervisor | None:
    """What a parent that is a guest itself has to tell its guests; None where its host logged nothing of it."""
    if not logs:
        return None
    return Hypervisor(parent.parent, parent.recording, parent.vcpus, logs, *_to_parent(parent, {}))


def _guest_host(parent: GuestProof | None, recording: Recording) -> GuestHost | None:
    """What is known of a parent that is a guest itself, and stayed on the first host."""
    if parent is None or parent.pool is None or any(e.host for v in parent.vcpus for e in v.epochs):
        return None
    return GuestHost(recording, parent.vcpus, parent.pool.nested)


def _across(
    found: GuestProof,
    names: Sequence[str],
    recordings: Mapping[str, Recording],
    pools: Mapping[str, ThreadPool],
    typed: list[tuple[str | None, Claim | CounterClaim]],
    threads: list[tuple[str | None, int, int]],
    use_claims: bool,
    counters: Counters,
) -> GuestProof:
    """``found`` on the first host, and what the further ones hold of the guest's events."""
    guest = found.recording

    def prove(number: int, part: Part) -> tuple[VcpuProof, ...]:
        # what was typed speaks of the first host
        cpus = {t.cpu for t in part.tracks}
        claims = [c for g, c in typed if g in (None, found.name) and c.guest_cpu in cpus] if number == 0 else []
        tids = {c: t for g, c, t in threads if g in (None, found.name) and c in cpus} if number == 0 else {}
        host = names[number]
        return _prove_guest(
            found.name, guest, host, recordings[host], pools[host], claims, tids, use_claims, (), counters, None, part
        ).vcpus

    def rate_after(proof: VcpuProof) -> Rate | None:
        rate, scale = rate_of(recordings[names[0]]), proof.epochs[-1].scale
        return rate and Rate.of_ratio(rate.mult << scale.frac_bits, scale.ratio << rate.shift, FIRST_HOST)

    hosts = [recordings[n] for n in names]
    lines = [not relation_of(h, guest).constant or scaled_relation(h, guest) is not None for h in hosts]
    vcpus = divide(guest, tracks_of(guest), found.vcpus, names, [pools[n] for n in names], prove, rate_after, lines)
    return replace(found, vcpus=vcpus)


def _joined(
    names: Sequence[str],
    recordings: Mapping[str, Recording],
    pools: Mapping[str, ThreadPool],
    proofs: Mapping[str, GuestProof],
    wall: Wall | None,
) -> tuple[FurtherHost, ...]:
    """The further hosts, each related to the first where the guests do that."""
    first, *others = names
    keys: dict[str, str | None] = {first: None} | {n: n for n in others}
    joins: dict[str, Join] = {}
    for name in others:
        join = by_counter(
            name,
            {g: p.vcpus for g, p in proofs.items() if p.parent == first},
            {keys[n]: recordings[n] for n in names},
            {keys[n]: pools[n] for n in names if n in pools},
            joins,
        )
        if join is not None:
            joins[name] = by_pairs(join, (first, recordings[first]), recordings[name], wall) if wall else join
    return tuple(FurtherHost(n, recordings[n], joins.get(n), pools[n]) for n in others)


def _further_machine(host: FurtherHost) -> Machine:
    """A further host on the timeline: all of its events, or none."""
    recording = host.recording
    stamp = recording.stamp if host.join is None else host.join.to_first(recording.stamp)
    return Machine(host.name, recording, None, stamp, np.full(len(recording), host.join is not None))


def _prove_guest(
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
    if use_claims:
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
    for cpu, tid in tids.items():
        if tid not in pool.tids:
            raise UsageError(f"--tid {cpu}={tid}: thread {tid} has no kvm events in {parent}")
    counter = counters.info(parent, name) if relation.constant else None
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
    vcpus, whole = _sharpened(host, guest, vcpus, pool)
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
    places = [
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


def _to_parent(guest: GuestProof, joins: Mapping[str, Join]) -> tuple[U64, Bools]:
    """A guest's events in its parent's time: (stamps u64[n], placed bool[n]); ``joins``: of the further hosts."""
    recording = guest.recording
    stamp = np.zeros(len(recording), np.uint64)
    placed = np.zeros(len(recording), np.bool_)

    def place(rows: I64, epoch: EpochProof) -> None:
        join = joins.get(epoch.host) if epoch.host is not None else None
        if epoch.host is not None and join is None:
            return
        host = epoch.as_epoch().to_host(recording.stamp[rows])
        stamp[rows] = host if join is None else join.to_first(host)
        placed[rows] = True

    for vcpu in guest.vcpus:
        known = [e for e in vcpu.epochs if e.offset is not None]
        for epoch in known:
            place(epoch.rows, epoch)
        for run in vcpu.mis_stamped:
            there = [e for e in known if e.host == run.host]
            following = next((e for e in there if len(e.rows) and e.rows[0] > run.rows[0]), None)
            if following is not None and run.offset is not None:
                place(run.rows, replace(following, offset=run.offset))
    return stamp, placed


def _through(
    guest: GuestProof,
    stamp: U64,
    placed: Bools,
    parent: Machine,
) -> tuple[U64, Bools]:
    """Take a nested guest's events from its parent's time to the host's.

    Each event goes by the map of the parent's CPU that its thread had entered the guest on.
    """
    for vcpu in guest.vcpus:
        if vcpu.host_tid is not None and guest.pool is not None:
            rows = np.concatenate([*(e.rows for e in vcpu.epochs), *(m.rows for m in vcpu.mis_stamped)])
            rows = np.sort(rows[placed[rows]])
            stamp[rows], known = guest.pool.through(vcpu.host_tid, stamp[rows], parent.host_stamp, parent.placed)
            placed[rows] &= known
    return stamp, placed


def offset_width(epoch: EpochProof) -> int | None:
    """The width of an epoch's feasible interval in trace-clock units, None where it is unbounded."""
    if epoch.feasible is None:
        return None
    return to_signed(epoch.feasible[1] - epoch.feasible[0])
