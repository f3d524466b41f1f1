"""Claims of events that a user put into the host's kernel to log an offset: kprobes, fprobes and their like.

On arm64 two kinds are known, and recognised by their fields (Documentation/trace/kprobetrace.rst, fprobetrace.rst)::

    p:lab/set_cntvoff __kvm_timer_set_cntvoff off=%x0:u64
    p:lab/vcpu_load kvm_timer_vcpu_load vcpu_id=vcpu->vcpu_id:s32 voff=vcpu->kvm->arch.timer_data.voffset:u64

The one is sent as a VHE host sets CNTVOFF_EL2 (arch/arm64/kvm/hyp/vhe/timer-sr.c): to the value where a vCPU is
loaded, to 0 where it is put. Of a thread that logs other values too, a 0 is no value therefore. The other names what
KVM has for the VM, which is not what a hypervisor's own vCPU runs with. Any other event is one that the user names.

A value holds from its event to the next value of the same vCPU. While a vCPU runs a nested guest what is logged is that
guest's: the sum of both levels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from counterpoint.claims.model import Claim, CounterClaim, Held
from counterpoint.clocks.counter import I64, U64, distinct, relative
from counterpoint.errors import UsageError
from counterpoint.traces.arch import is_arm64
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.recording import Recording

Unit = Literal["cntvoff", "tsc_offset"]
UNITS: tuple[Unit, ...] = ("cntvoff", "tsc_offset")

FIELDS = ("cntvoff", "voff", "voffset")
"""A probe's field of 64 bits that is called so is taken for CNTVOFF."""

FUNCTION = "set_cntvoff"
"""A probe whose name holds this and that has one field of 64 bits alone logs CNTVOFF in it, whatever its name."""

MAX_VALUES = 256
"""More different values of one vCPU are no offsets."""

_OF_PROBES = ("__probe_ip", "__probe_func", "__probe_ret_ip")


@dataclass(frozen=True, slots=True)
class Probe:
    """An event's field that logs an offset; ``unit`` None: as the machine's architecture has it."""

    system: str
    name: str
    field: str
    unit: Unit | None = None

    def __str__(self) -> str:
        """As the user names it."""
        return f"{self.system}:{self.name}:{self.field}"


def parse_probe(text: str) -> Probe:
    """Read ``SYSTEM:NAME:FIELD[=UNIT]`` of ``--claim-event``; UsageError where it is not that."""
    event, equals, unit = text.partition("=")
    parts = event.split(":")
    if len(parts) != 3 or not all(parts) or (equals and unit not in UNITS):
        raise UsageError(
            f"--claim-event {text}: SYSTEM:NAME:FIELD is expected, with ={' or ='.join(UNITS)} where it is not what the"
            " host's architecture has, as in --claim-event lab:set_cntvoff:off"
        )
    return Probe(parts[0], parts[1], parts[2], next((u for u in UNITS if u == unit), None))


def recognised(host: Recording) -> list[Probe]:
    """The probes in a recording that are known for what they log; of arm64 hosts alone."""
    out: list[Probe] = []
    if not is_arm64(host):
        return out
    for event in host.formats.values():
        if event.field("__probe_ip") is None or not len(host.rows(event)):
            continue
        wide = [f.name for f in event.fields if f.kind == "int" and f.size == 8 and f.name not in _OF_PROBES]
        known = [name for name in wide if name in FIELDS]
        if not known and FUNCTION in event.name and len(wide) == 1:
            known = wide
        out += [Probe(event.system, event.name, name) for name in known]
    return out


def check_probes(probes: Sequence[Probe], hosts: Sequence[Recording]) -> None:
    """UsageError where none of ``hosts`` has an event that the user named, or it has no such integer field."""
    for probe in probes:
        events = [(h, e) for h in hosts if (e := h.format_named(probe.system, probe.name)) is not None]
        if not events:
            raise UsageError(f"--claim-event {probe}: no host has an event {probe.system}:{probe.name}")
        for host, event in events:
            field = event.field(probe.field)
            if field is None or field.kind != "int":
                names = ", ".join(f.name for f in event.fields if f.kind == "int")
                raise UsageError(f"--claim-event {probe}: in {host.name} its integer fields are {names or 'none'}")


@dataclass(frozen=True, slots=True)
class Log:
    """What ``probe`` logged of the vCPU of thread ``tid``: runs of one value, in order, n of them.

    Run i has ``value[i]`` i64 from host stamp ``begin[i]`` u64 to before ``end[i]`` u64.
    """

    probe: Probe
    unit: Unit
    tid: int
    begin: U64
    end: U64
    value: I64

    @property
    def claims(self) -> list[Claim | CounterClaim]:
        """One claim for each value, in the order of first appearance, however often it came back."""
        out: list[Claim | CounterClaim] = []
        values, first = distinct(self.value)
        for index in np.argsort(first, kind="stable").tolist():
            value, mine = int(values[index]), self.value == values[index]
            held = Held(self.begin[mine], self.end[mine])
            begin, end = int(held.begin[0]), int(held.end[-1])
            kind = CounterClaim if self.unit == "cntvoff" else Claim
            detail = f"{len(held)} spans" if len(held) > 1 else ""
            # (the system of one that `record` made is a name for one process's time)
            source = f"probe:{self.probe.field}" if self.probe.system.startswith("counterpoint_") else str(self.probe)
            out.append(kind(source, value, tid=self.tid, host_from=begin, host_to=end, detail=detail, held=held))
        return out


def logs_of(
    host: Recording, named: Sequence[Probe], tids: Collection[int], vcpu_ids: Mapping[int, int]
) -> tuple[list[Log], list[str]]:
    """What the probes ``named`` and the known ones logged, vCPU by vCPU; and warnings.

    ``tids``: the threads that are vCPUs; ``vcpu_ids``: vCPU id by thread. An event of another thread is its field
    ``vcpu_id``'s, where one thread alone has that id.
    """
    logs: list[Log] = []
    warnings: list[str] = []
    own = {str(probe) for probe in named}
    for probe in [*named, *(p for p in recognised(host) if str(p) not in own)]:
        event = host.format_named(probe.system, probe.name)
        rows = host.rows(event)
        if event is None or not len(rows):
            continue
        unit = probe.unit or ("cntvoff" if is_arm64(host) else "tsc_offset")
        if unit == "tsc_offset" and host.unit != "ticks":
            warnings.append(f"{host.name}: {probe} logs ticks of the TSC, the stamps are in {host.clock}: left out")
            continue
        rows = rows[np.argsort(relative(host.stamp[rows], host.base), kind="stable")]
        thread = _threads(host, event, rows, tids, vcpu_ids)
        if (thread < 0).any():
            warnings.append(
                f"{host.name}: {int((thread < 0).sum())} events of {probe} are of no vCPU's thread: left out"
            )
        values = host.column(event, probe.field, rows).astype(np.int64)
        for tid in distinct(thread[thread >= 0])[0].tolist():
            mine = thread == tid
            count = len(distinct(values[mine])[0])
            if count > MAX_VALUES:
                warnings.append(f"{host.name}: {probe} logs {count} values of thread {tid}, no offsets: left out")
                continue
            logs.append(Log(probe, unit, tid, *_runs(host, rows[mine], values[mine])))
    return logs, warnings


def _threads(host: Recording, event: EventFormat, rows: I64, tids: Collection[int], vcpu_ids: Mapping[int, int]) -> I64:
    """The vCPU thread that each event speaks of, i64[n]; -1: not known."""
    pid = host.pid[rows].astype(np.int64)
    own = np.isin(pid, list(tids))
    out = np.where(own, pid, -1)
    field = event.field("vcpu_id")
    if own.all() or field is None or field.kind != "int":
        return out
    number = host.column(event, "vcpu_id", rows).astype(np.int64)
    for vcpu, tid in _alone(vcpu_ids):
        out[~own & (number == vcpu)] = tid
    return out


def _alone(vcpu_ids: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """(vCPU id, thread) of the ids that one thread alone has."""
    ids = list(vcpu_ids.values())
    for tid, vcpu in vcpu_ids.items():
        if ids.count(vcpu) == 1:
            yield vcpu, tid


def _runs(host: Recording, rows: I64, value: I64) -> tuple[U64, U64, I64]:
    """The runs of one vCPU's events ``rows`` in order: (begin, end, value).

    The last ends with the recording. Where events were lost nobody says what held: a run ends there, and the next event
    begins another. Where a CPU is not seen at all the vCPU may have been loaded there: a value holds until it is put.
    """
    every, kept = relative(host.stamp[rows], host.base), np.flatnonzero(value)
    puts = 0 < len(kept) < len(value)
    if not len(kept):
        kept = np.arange(len(value))
    when, value = every[kept], value[kept]
    same = value[1:] == value[:-1]
    after = np.r_[when[1:], int(relative(host.stamp, host.base).max()) + 1]
    unseen = when < host.unseen_until
    if unseen.any():
        alone = when + 1
        until = np.where(kept + 1 < len(every), every[np.minimum(kept + 1, len(every) - 1)], alone)
        if not puts:
            comes_back = int((~same).sum()) + 1 > len(distinct(value)[0])
            until = np.where(np.r_[same, False] & (not comes_back), after, alone)
        after = np.where(unseen, until, after)
    lost = host.lost_after
    if len(lost):
        following = np.searchsorted(lost, when, side="left")
        cut = np.where(following < len(lost), lost[np.minimum(following, len(lost) - 1)] + 1, after)
        after = np.minimum(after, cut)
    goes_on = same & (after[:-1] == when[1:])
    first = np.flatnonzero(np.r_[True, ~goes_on])
    last = np.r_[first[1:] - 1, len(value) - 1]
    base = np.uint64(host.base)
    return when[first].view(np.uint64) + base, after[last].view(np.uint64) + base, value[first]
