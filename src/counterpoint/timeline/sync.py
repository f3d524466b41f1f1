"""The main job: claims gathered, each vCPU proved, recordings merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING

import numpy as np

from counterpoint.claims import dynamic_events, given
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import I64, U64, Bools, relative, to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.errors import UsageError
from counterpoint.proof.counters import Counters
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.nesting import GuestHost
from counterpoint.proof.relation import (
    FIRST_HOST,
    relation_of,
    scaled_relation,
)
from counterpoint.proof.signs import signs_of
from counterpoint.proof.sums import Hypervisor, explained
from counterpoint.proof.tracks import tracks_of
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.timeline.join import HostPairs, Hosts, Join, by_counter, by_pairs
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.migration import Part, divide
from counterpoint.timeline.proving import GuestProof, prove_guest
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

if TYPE_CHECKING:
    from counterpoint.clocks.machines import Maps
    from counterpoint.timeline.details import Details

Source = str | PathLike[str] | Recording

EVENTS_PER_CHANGE = 50
"""So many more events must a reading of a nested guest's clock explain for each change that it needs and another does
not."""


@dataclass(frozen=True, slots=True)
class FurtherHost:
    """Another host's recording, and how its clock relates to the first host's (None: nothing relates them).

    ``pairs_unused``: why the hosts' clock pairs did not help, where there are any ("": they did).
    """

    name: str
    recording: Recording
    join: Join | None
    pool: ThreadPool = field(repr=False, compare=False)
    pairs_unused: str = ""


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
        """The rate of a host's clock; ``host`` None: the first's."""
        if host in (None, self.host_name):
            return self.rate
        return next((rate_of(h.recording) for h in self.hosts if h.name == host), None)

    @property
    def is_sound(self) -> bool:
        """Every guest CPU proved or derived, no claim refuted, every further host related to the first."""
        joined = all(h.join is not None for h in self.hosts)
        return joined and all(g.vcpus and all(v.is_sound for v in g.vcpus) for g in self.guests)

    @cached_property
    def timeline(self) -> Timeline:
        """All events of all machines whose clock maps are known, in one order."""
        all_of_it = np.ones(len(self.host), np.bool_)
        machines = [Machine(self.host_name, self.host, None, self.host.stamp, all_of_it, all_of_it)]
        joins = {h.name: h.join for h in self.hosts if h.join is not None}
        machines += [_further_machine(h) for h in self.hosts]
        by_name = {m.name: m for m in machines}
        guests = {g.name: g for g in self.guests}
        for name in _parents_first(self.host_name, {g.name: g.parent for g in self.guests}):
            guest = guests[name]
            parent = by_name[guest.parent]
            machine = Machine(guest.name, guest.recording, guest.parent, *_to_parent(guest, joins))
            if guest.parent != self.host_name:
                machine = _through(guest, machine, parent, guests[guest.parent])
            by_name[guest.name] = machine
        machines += [by_name[g.name] for g in self.guests]
        return Timeline(machines, self.rate, self._details)

    def _details(self) -> Sequence[Details]:
        from counterpoint.timeline.details import details_of

        return details_of(self)

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
    wall: HostPairs | None = None,
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
            found = prove_guest(
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
    warnings += [f"{one.name}: {one.pairs_unused}" for one in further if one.pairs_unused]
    for one in further:
        if one.join is None:
            came = any(e.host == one.name for p in proofs.values() for v in p.vcpus for e in v.epochs if e.offset)
            reason = "a guest ran there, but none is" if came else "no guest is"
            warnings.append(
                f"{one.name} cannot be related to {host_name}: {reason} proved to have gone there from a host named"
                f" before it; its {len(one.recording)} events are left out of the timeline"
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


def _explained(proof: GuestProof) -> tuple[int, bool]:
    """What makes one proof of a guest better than another: more events in run windows, and fewer changes for that."""
    epochs = [e for v in proof.vcpus for e in v.epochs]
    return sum(e.inside for e in epochs) - EVENTS_PER_CHANGE * len(epochs), proof.verdict.is_sound


def _hypervisor(parent: GuestProof, logs: list[dynamic_events.Log]) -> Hypervisor | None:
    """What a parent that is a guest itself has to tell its guests; None where its host logged nothing of it."""
    if not logs:
        return None
    return Hypervisor(parent.parent, parent.recording, parent.vcpus, logs, *_to_parent(parent, {})[:2])


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
        mine = (None, found.name) if not part.arrived else ()
        claims = [c for g, c in typed if g in mine and c.guest_cpu in cpus]
        tids = {c: t for g, c, t in threads if g in mine and c in cpus}
        host = names[number]
        return prove_guest(
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
    wall: HostPairs | None,
) -> tuple[FurtherHost, ...]:
    """The further hosts, each related to the first where the guests or the clock pairs do that."""
    first, *others = names
    joins: dict[str, Join] = {}
    unused: dict[str, str] = {}
    hosts = Hosts(first, recordings, pools, joins)
    vcpus = {g: p.vcpus for g, p in proofs.items() if p.parent == first}
    for name in others:
        join = by_counter(name, vcpus, hosts)
        if wall is not None:
            join, unused[name] = by_pairs(name, join, hosts, wall)
        if join is not None:
            joins[name] = join
    return tuple(FurtherHost(n, recordings[n], joins.get(n), pools[n], unused.get(n, "")) for n in others)


def _further_machine(host: FurtherHost) -> Machine:
    """A further host on the timeline: all of its events, or none."""
    recording = host.recording
    stamp = recording.stamp if host.join is None else host.join.to_first(recording.stamp)
    joined = np.full(len(recording), host.join is not None)
    return Machine(host.name, recording, None, stamp, joined, joined)


def _to_parent(guest: GuestProof, joins: Mapping[str, Join]) -> tuple[U64, Bools, Bools]:
    """A guest's events in its parent's time: (stamps u64[n], placed bool[n], proved bool[n], see Machine).

    ``joins``: of the further hosts.
    """
    recording = guest.recording
    stamp = np.zeros(len(recording), np.uint64)
    placed, proved = np.zeros(len(recording), np.bool_), np.zeros(len(recording), np.bool_)

    def place(rows: I64, epoch: EpochProof) -> None:
        is_first = epoch.host in (None, guest.parent)
        join = None if is_first or epoch.host is None else joins.get(epoch.host)
        if join is None and not is_first:
            return
        host = epoch.as_epoch().to_host(recording.stamp[rows])
        stamp[rows] = host if join is None else join.to_first(host)
        placed[rows] = True

    for vcpu in guest.vcpus:
        known = [e for e in vcpu.epochs if e.is_known]
        for epoch in known:
            place(epoch.placed, epoch)
            # a refuted claim beside a map that holds says nothing of the map
            firm = epoch.verdict.is_sound or not len(epoch.doubted)
            proved[epoch.placed] = firm & epoch.is_sure(recording.stamp[epoch.placed])
        for run in vcpu.mis_stamped:
            there = [e for e in known if e.host == run.host]
            following = next((e for e in there if len(e.rows) and e.rows[0] > run.rows[0]), None)
            if following is not None and run.offset is not None:
                place(run.rows, replace(following, offset=run.offset))
                proved[run.rows] = True
    return stamp, placed, placed & proved


def _through(guest: GuestProof, machine: Machine, parent: Machine, above: GuestProof) -> Machine:
    """Take a nested guest's events from its parent's time to the host's.

    Each event goes by the map of the parent's CPU that its thread had entered the guest on.
    """
    stamp, placed, proved = machine.host_stamp, machine.placed, machine.proved
    epoch = _epochs(above, parent)
    for vcpu in guest.vcpus:
        if vcpu.host_tid is not None and guest.pool is not None:
            rows = np.concatenate([*(e.rows for e in vcpu.epochs), *(m.rows for m in vcpu.mis_stamped)])
            rows = np.sort(rows[placed[rows]])
            stamp[rows], entry = guest.pool.through(vcpu.host_tid, stamp[rows], parent.host_stamp, parent.placed)
            placed[rows] &= entry >= 0
            # the clock of the parent's CPU did not change from the entry to what that CPU recorded next
            following = _following(parent, entry, stamp[rows])
            proved[rows] &= (entry >= 0) & (epoch[entry] >= 0) & (epoch[entry] == epoch[following])
    return replace(machine, placed=placed, proved=proved)


def _epochs(guest: GuestProof, machine: Machine) -> I64:
    """The number of each event's epoch i64[n + 1] of all of its guest's; -1 where it is not proved, and at the end."""
    out = np.full(len(guest.recording) + 1, -1, np.int64)
    for number, epoch in enumerate(e for v in guest.vcpus for e in v.epochs):
        out[epoch.rows] = number
    out[:-1][~machine.proved] = -1
    return out


def _following(machine: Machine, row: I64, host_stamp: U64) -> I64:
    """The row i64[n] of the first event after ``host_stamp`` u64[n] on the CPU of event ``row``; -1: there is none."""
    out = np.full(len(row), -1, np.int64)
    recording = machine.recording
    stream = recording.stream_of[row]
    for index in np.unique(stream).tolist():
        of = recording.streams[index]
        mine = np.flatnonzero((stream == index) & (row >= 0))
        base = int(machine.host_stamp[of.first])
        at = np.searchsorted(
            relative(machine.host_stamp[of.first : of.last], base), relative(host_stamp[mine], base), side="right"
        )
        out[mine] = np.where(of.first + at < of.last, of.first + at, -1)
    return out


def offset_width(epoch: EpochProof) -> int | None:
    """The width of an epoch's feasible interval in trace-clock units, None where it is unbounded."""
    if epoch.feasible is None:
        return None
    return to_signed(epoch.feasible[1] - epoch.feasible[0])
