"""Every machine's events in the first host's time: which are placed there, and which of them are proved to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.verdicts import EpochProof
from counterpoint.timeline.join import Join
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.proving import GuestProof
from counterpoint.traces.recording import Recording


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


def machines_of(
    name: str, host: Recording, hosts: Sequence[FurtherHost], guests: Sequence[GuestProof]
) -> list[Machine]:
    """The first host, the further ones, and the guests as given, each with its events in the first host's time."""
    all_of_it = np.ones(len(host), np.bool_)
    first = [Machine(name, host, None, host.stamp, all_of_it, all_of_it), *map(_further_machine, hosts)]
    joins = {h.name: h.join for h in hosts if h.join is not None}
    by_name = {m.name: m for m in first}
    proofs = {g.name: g for g in guests}
    for guest in map(proofs.__getitem__, parents_first(name, {g.name: g.parent for g in guests})):
        machine = Machine(guest.name, guest.recording, guest.parent, *in_parent(guest, joins))
        if guest.parent != name:
            machine = _through(guest, machine, by_name[guest.parent], proofs[guest.parent])
        by_name[guest.name] = machine
    return first + [by_name[g.name] for g in guests]


def parents_first(host: str, parent_of: Mapping[str, str]) -> list[str]:
    """The guests, each after its parent."""
    order: list[str] = []
    while len(order) < len(parent_of):
        order += [g for g, parent in parent_of.items() if g not in order and (parent == host or parent in order)]
    return order


def _further_machine(host: FurtherHost) -> Machine:
    """A further host on the timeline: all of its events, or none."""
    recording = host.recording
    stamp = recording.stamp if host.join is None else host.join.to_first(recording.stamp)
    joined = np.full(len(recording), host.join is not None)
    return Machine(host.name, recording, None, stamp, joined, joined)


def in_parent(guest: GuestProof, joins: Mapping[str, Join]) -> tuple[U64, Bools, Bools]:
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
