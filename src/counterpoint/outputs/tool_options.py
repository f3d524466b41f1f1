"""What other tools want to be told, so that they put a guest where the proof has it; or why they cannot be.

trace-cmd     host = guest + OFFSET, of one sample a CPU; the first ``-s`` counts for all of them
              (tracecmd/trace-attach.c, timestamp_correction_calc() in lib/trace-cmd/trace-input.c)
perf inject   tsc = guest tsc - OFFSET, KVM's sign (guest_session__convert_time() in tools/perf/builtin-inject.c); the
              same of each VMCS (tools/perf/Documentation/perf-intel-pt.txt: VM time correlation)
babeltrace2   ns = guest ns + OFFSET (babeltrace2-source.ctf.fs(7): clock-class-offset-ns)
Perfetto      ns = guest ns + offset_ns, of a clock that it has a name for (docs/reference/perfetto-manifest.md)
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from counterpoint.clocks.counter import MASK, to_signed
from counterpoint.proof.verdicts import VcpuProof
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.recording import Recording

PERFETTO_CLOCKS = {"mono": "MONOTONIC", "mono_raw": "MONOTONIC_RAW", "boot": "BOOTTIME", "realtime": "REALTIME"}
"""What Perfetto calls ftrace's clocks."""


@dataclass(frozen=True, slots=True)
class ToolOption:
    """What to tell ``tool`` of ``guest``: ``text``, a command or a file's content; None: ``reason`` says why none."""

    guest: str
    tool: str
    text: str | None
    reason: str | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Its keys in the report."""
        return {"guest": self.guest, "tool": self.tool, "text": self.text, "reason": self.reason, "note": self.note}


class _CannotSayError(Exception):
    """A tool has no way to say it; the text says why."""


def options_of(result: SyncResult) -> list[ToolOption]:
    """What to tell each tool of each guest."""
    recordings = {result.host_name: result.host, **{g.name: g.recording for g in result.guests}}
    out = []
    for guest in result.guests:
        host = recordings[guest.parent]
        for tool, say, note in _TOOLS:
            try:
                text, reason = say(guest, host, _offset(guest)), None
            except _CannotSayError as err:
                text, reason = None, str(err)
            out.append(ToolOption(guest.name, tool, text, reason, note if text is not None else None))
    return out


def _offset(guest: GuestProof) -> int:
    """The one offset of all CPUs at all times, guest - host."""
    if not guest.vcpus:
        raise _CannotSayError("it has no events")
    for vcpu in guest.vcpus:
        _check(vcpu)
    offsets = {to_signed(v.epochs[0].offset or 0) for v in guest.vcpus}
    if len(offsets) > 1:
        shown = ", ".join(f"CPU {v.guest_cpu} {to_signed(v.epochs[0].offset or 0)}" for v in guest.vcpus)
        raise _CannotSayError(f"its CPUs have offsets of their own ({shown}), and it takes one for all")
    return offsets.pop()


def _check(vcpu: VcpuProof) -> None:
    where = f"CPU {vcpu.guest_cpu}"
    if any(e.host is not None for e in vcpu.epochs):
        raise _CannotSayError(f"{where} was on several hosts")
    if len(vcpu.epochs) > 1:
        raise _CannotSayError(f"{where} has {len(vcpu.epochs)} offsets, one after the other, and it takes one")
    if not vcpu.verdict.is_sound:
        raise _CannotSayError(f"{where} is {vcpu.verdict.value}: no offset is sure")
    (epoch,) = vcpu.epochs
    if epoch.fitted is not None:
        raise _CannotSayError("the two clocks do not run at one rate: a line was fitted, and it takes an offset alone")
    if not epoch.scale.is_identity:
        raise _CannotSayError(f"the guest's counter is scaled ({epoch.scale.ratio} >> {epoch.scale.frac_bits})")
    if vcpu.mis_stamped:
        raise _CannotSayError(f"some events of {where} are stamped late: its counter was set back")


def _trace_cmd(guest: GuestProof, host: Recording, offset: int) -> str:
    recording = guest.recording
    for one in (host, recording):
        if not one.is_dat:
            raise _CannotSayError(f"{one.path.name} is {one.format}: it attaches trace.dat files")
        if one.clock != "x86-tsc":
            raise _CannotSayError(f"{one.path.name} is recorded in {one.clock}: it attaches x86-tsc alone")
    if host.options.tsc2nsec is None:
        raise _CannotSayError(f"{host.path.name} has no TSC2NSEC, which it copies (use --attach)")
    if recording.options.trace_id is None:
        raise _CannotSayError(f"{recording.path.name} has no TRACEID, by which it is found (use --attach)")
    if recording.options.time_shift is not None:
        raise _CannotSayError(f"{recording.path.name} has a TIME_SHIFT already (use --attach)")
    tids = [v.host_tid for v in sorted(guest.vcpus, key=lambda v: v.guest_cpu)]
    ids = guest.pool.vcpu_ids if guest.pool is not None else {}
    numbers = [ids.get(tid, -1) for tid in tids if tid is not None]
    cpus = [v.guest_cpu for v in guest.vcpus]
    if -1 in numbers or numbers != sorted(set(numbers)) or sorted(cpus) != list(range(len(cpus))):
        raise _CannotSayError("it numbers CPUs by KVM's vCPU ids, and the guest's are others (use --attach)")
    files = [str(host.path), str(recording.path)]
    words = ["trace-cmd", "attach", "-c", str(recording.cpus), "-s", str(-offset), *files, *map(str, tids)]
    return shlex.join(words)


def _in_ticks(guest: GuestProof, host: Recording) -> None:
    for one in (host, guest.recording):
        if one.clock != "x86-tsc":
            raise _CannotSayError(f"it takes ticks of the TSC, and {one.path.name} is recorded in {one.clock}")


def _perf_guest_data(guest: GuestProof, host: Recording, offset: int) -> str:
    _in_ticks(guest, host)
    return f"perf inject -i HOST.perf.data -o OUT --guest-data=GUEST.perf.data,PID,{offset & MASK:#x}"


def _perf_correlation(guest: GuestProof, host: Recording, offset: int) -> str:
    _in_ticks(guest, host)
    return f"perf inject -i HOST.perf.data --vm-time-correlation={offset & MASK:#x} --force"


def _in_ns(guest: GuestProof, host: Recording) -> None:
    for one in (host, guest.recording):
        if one.unit != "ns":
            raise _CannotSayError(f"it takes ns, and {one.path.name} is recorded in ticks: their length is not exact")


def _babeltrace(guest: GuestProof, host: Recording, offset: int) -> str:
    _in_ns(guest, host)
    return f"babeltrace2 HOST_TRACE GUEST_TRACE --params=clock-class-offset-ns={-offset}"


def _perfetto(guest: GuestProof, host: Recording, offset: int) -> str:
    _in_ns(guest, host)
    clocks = [PERFETTO_CLOCKS.get(one.clock) for one in (host, guest.recording)]
    if None in clocks:
        named = ", ".join(PERFETTO_CLOCKS)
        raise _CannotSayError(f"it has no name for the clock {host.clock} (but for {named})")
    files: list[dict[str, Any]] = [
        {"path": f"{guest.parent}.pftrace", "machine": {"name": guest.parent}},
        {
            "path": f"{guest.name}.pftrace",
            "machine": {"name": guest.name},
            "clocks": {
                "clock": clocks[1],
                "sync_to": {"file": f"{guest.parent}.pftrace", "clock": clocks[0]},
                "offset_ns": -offset,
            },
        },
    ]
    return json.dumps({"perfetto_manifest": {"version": 1, "files": files}})


_TOOLS = (
    ("trace-cmd attach", _trace_cmd, "it writes into both files: give it copies"),
    (
        "perf inject --guest-data",
        _perf_guest_data,
        "PID: the VMM's process; both recorded by perf on the same boots, in its default clock",
    ),
    (
        "perf inject --vm-time-correlation",
        _perf_correlation,
        "of Intel PT; it rewrites the file; for one guest: of several, OFFSET:VMCS of each",
    ),
    ("babeltrace2", _babeltrace, "both traces in the clocks of these recordings, on the same boots"),
    (
        "Perfetto manifest",
        _perfetto,
        "perfetto_manifest.json, in a tar or zip with the two traces (Perfetto v58 and later)",
    ),
)
