"""The main job: claims gathered, each vCPU proved, recordings merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING

from counterpoint.claims import dynamic_events, given
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import to_signed
from counterpoint.clocks.rate import Rate
from counterpoint.errors import UsageError
from counterpoint.proof.counters import Counters
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.nesting import GuestHost
from counterpoint.proof.relation import (
    CLOCKS,
    FIRST_HOST,
    relation_of,
    scaled_relation,
)
from counterpoint.proof.signs import signs_of
from counterpoint.proof.sums import Hypervisor, explained
from counterpoint.proof.tracks import tracks_of
from counterpoint.proof.verdicts import EpochProof, VcpuProof
from counterpoint.timeline.join import HostPairs, Hosts, Join, by_counter, by_pairs
from counterpoint.timeline.merge import Timeline
from counterpoint.timeline.migration import Part, divide, goes_on_elsewhere, is_elsewhere
from counterpoint.timeline.placing import FurtherHost, in_parent, machines_of, parents_first
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


@dataclass(frozen=True)
class SyncResult:
    """What ``sync`` found: a proof for every guest CPU, and the timeline made with it."""

    host: Recording
    host_name: str
    guests: tuple[GuestProof, ...]
    rate: Rate | None
    warnings: tuple[str, ...] = field(default=())
    hosts: tuple[FurtherHost, ...] = ()
    wall: HostPairs | None = None

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
        machines = machines_of(self.host_name, self.host, self.hosts, self.guests)
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
    clocks: Iterable[str] = (),
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
    ``clocks``: "[NAME=]CLOCK" of recordings that do not name theirs.
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
    by_name = _in_clocks(dict(zip(names, [host_recording, *recordings, *others], strict=True)), clocks)
    host_recording = by_name[host_name]
    _check_rounding(by_name, parent_of, host_name)
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
    for name in parents_first(host_name, parent_of):
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
        if parent == host_name and (other_names or goes_on_elsewhere(proofs[name].vcpus, recording, pools[parent])):
            say(f"looking for {name} on {', '.join([host_name, *other_names])}")
            across = _across(
                proofs[name], [host_name, *other_names], by_name, pools, typed, threads, use_claims, counters
            )
            # where nobody said that it moved, it is to be shown where it went
            if other_names or is_elsewhere(across.vcpus):
                proofs[name] = across
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
        wall,
    )


def _open(source: Source, say: Callable[[str], None]) -> Recording:
    if isinstance(source, Recording):
        return source
    say(f"reading {fspath(source)}")
    return Recording.open(source)


def _in_clocks(recordings: dict[str, Recording], clocks: Iterable[str]) -> dict[str, Recording]:
    """The recordings in the clocks that are said: "NAME=CLOCK", or "CLOCK" of all that name none."""
    out = dict(recordings)
    for text in clocks:
        name, equals, clock = text.rpartition("=")
        if equals and name not in out:
            raise UsageError(f"--clock {text}: no recording is called {name!r} (there are: {', '.join(out)})")
        if clock not in CLOCKS:
            raise UsageError(f"--clock {text}: {clock!r} is no trace clock ({', '.join(CLOCKS)})")
        for one in [name] if equals else [n for n, r in recordings.items() if r.clock.startswith("unknown")]:
            out[one] = out[one].in_clock(clock)
    return out


def _check_rounding(recordings: Mapping[str, Recording], parent_of: Mapping[str, str], host: str) -> None:
    """Refuse what is proved through several machines' stamps where some are rounded."""
    rounded = [name for name, recording in recordings.items() if recording.rounding != (0, 0)]
    if rounded and (len(recordings) > 1 + len(parent_of) or any(parent != host for parent in parent_of.values())):
        raise UsageError(
            f"the stamps of {', '.join(rounded)} are rounded: nested guests and guests that moved need whole ones"
            " (trace.dat, or trace-cmd report -t)"
        )


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


def _explained(proof: GuestProof) -> tuple[int, bool]:
    """What makes one proof of a guest better than another: more events in run windows, and fewer changes for that."""
    epochs = [e for v in proof.vcpus for e in v.epochs]
    return sum(e.inside for e in epochs) - EVENTS_PER_CHANGE * len(epochs), proof.verdict.is_sound


def _hypervisor(parent: GuestProof, logs: list[dynamic_events.Log]) -> Hypervisor | None:
    """What a parent that is a guest itself has to tell its guests; None where its host logged nothing of it."""
    if not logs:
        return None
    return Hypervisor(parent.parent, parent.recording, parent.vcpus, logs, *in_parent(parent, {})[:2])


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


def offset_width(epoch: EpochProof) -> int | None:
    """The width of an epoch's feasible interval in trace-clock units, None where it is unbounded."""
    if epoch.feasible is None:
        return None
    return to_signed(epoch.feasible[1] - epoch.feasible[0])
