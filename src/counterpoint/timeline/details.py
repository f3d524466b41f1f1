"""What is known of events beside their place: how wide its bound is, and whose vCPU a host thread is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.answers import Status
from counterpoint.clocks.counter import I64, U64
from counterpoint.clocks.rate import Rate
from counterpoint.proof.verdicts import EpochProof
from counterpoint.timeline.join import Join
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult


@dataclass(frozen=True, slots=True)
class Details:
    """Of one machine. ``width`` i64[n]: of the proved bound of each event's place, in the first host's units.

    It is -1 where the place is not proved or has no bound, and 0 for the host's own events. ``vcpus``: the guest and
    its CPU that a thread of this machine runs, by thread id.
    """

    width: I64
    vcpus: dict[int, tuple[str, int]]


def details_of(result: SyncResult) -> tuple[Details, ...]:
    """The details of each machine of the timeline, in its order."""
    guests = {g.name: g for g in result.guests}
    joins = {h.name: h.join for h in result.hosts}
    out = []
    for machine in result.timeline.machines:
        if machine.name in guests:
            width = _of_guest(result, guests[machine.name], machine, joins)
        elif machine.name in joins:
            width = _of_host(machine, joins[machine.name])
        else:
            width = np.zeros(len(machine.recording), np.int64)
        width[~machine.proved] = -1
        out.append(Details(width, vcpus_by_thread(result, machine.name)))
    return tuple(out)


def vcpus_by_thread(result: SyncResult, machine: str) -> dict[int, tuple[str, int]]:
    """The guest and its CPU that each thread of ``machine`` is known to run, if it is said to be of one alone.

    The threads of a guest that moved count on the host where they are.
    """
    found = {
        (vcpu.host_tid, guest.name, vcpu.guest_cpu)
        for guest in result.guests
        if guest.parent == machine
        for vcpu in guest.vcpus
        if vcpu.host_tid is not None and (not vcpu.epochs or vcpu.epochs[0].host is None)
    }
    found |= {
        (epoch.host_tid, guest.name, vcpu.guest_cpu)
        for guest in result.guests
        for vcpu in guest.vcpus
        for epoch in vcpu.epochs
        if epoch.host == machine and epoch.host_tid is not None
    }
    said = Counter(tid for tid, _, _ in found)
    return {tid: (name, cpu) for tid, name, cpu in sorted(found) if said[tid] == 1}


def widths_to_ns(width: I64, rate: Rate) -> I64:
    """Widths i64[n] in units of ``rate`` in ns, rounded up; -1 stays."""
    ns = rate.array_to_ns(np.maximum(width, 0).view(np.uint64), (1 << rate.shift) - 1)
    return np.where(width < 0, np.int64(-1), ns)


def _of_host(machine: Machine, join: Join | None) -> I64:
    stamps = machine.recording.stamp
    early, late = (stamps, None) if join is None else join.bound(stamps)
    return np.full(len(stamps), -1, np.int64) if late is None else (late - early).view(np.int64)


def _of_guest(result: SyncResult, guest: GuestProof, machine: Machine, joins: dict[str, Join | None]) -> I64:
    recording = guest.recording
    width = np.full(len(recording), -1, np.int64)
    if guest.parent != result.host_name:
        return _nested(result, guest, machine)
    for vcpu in guest.vcpus:
        for epoch in vcpu.epochs:
            if epoch.is_known and epoch.as_epoch().is_bounded:
                rows = epoch.placed
                width[rows] = _of_epoch(epoch, recording.stamp[rows], joins)
    return width


def _of_epoch(epoch: EpochProof, stamps: U64, joins: dict[str, Join | None]) -> I64:
    early, late = epoch.as_epoch().bound(stamps)
    if epoch.host is not None and epoch.host in joins:
        join = joins[epoch.host]
        end = None if join is None else join.bound(late)[1]
        if join is None or end is None:
            return np.full(len(stamps), -1, np.int64)
        early, late = join.bound(early)[0], end
    return (late - early).view(np.int64)


def _nested(result: SyncResult, guest: GuestProof, machine: Machine) -> I64:
    """The bounds of all levels together, as the maps answer for each stamp; the place in use is within them."""
    recording = guest.recording
    width = np.full(len(recording), -1, np.int64)
    cpus = np.array([s.cpu for s in recording.streams] or [0], np.int64)[recording.stream_of]
    for vcpu in guest.vcpus:
        rows = np.flatnonzero((cpus == vcpu.guest_cpu) & machine.proved)
        if not len(rows):
            continue
        answers = result.maps.to_host(recording.stamp[rows], guest.name, vcpu.guest_cpu)
        at = machine.host_stamp[rows]
        before = np.maximum((at - answers.earliest).view(np.int64), 0)
        after = np.maximum((answers.latest - at).view(np.int64), 0)
        width[rows] = np.where(answers.status <= Status.AMBIGUOUS, before + after, -1)
    return width
