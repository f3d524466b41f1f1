"""What was read, as JSON, as a table, as metrics for a node exporter, and as claims."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.live import counter, libc
from counterpoint.live.missing import Missing
from counterpoint.live.model import L1, HostOffsets, Reading, VcpuOffsets
from counterpoint.live.vms import Vcpu, Vm
from counterpoint.live.watch import Change

SCHEMA = 1


def report(found: HostOffsets) -> dict[str, Any]:
    """All of it as JSON values (docs/offsets.md)."""
    return {
        "schema": SCHEMA,
        "host": host(),
        "vms": [
            {
                **_vm(vm),
                "kvm_clock": _clock(found, vm),
                "vcpus": [_vcpu(each) for each in found.vcpus if each.vm is vm],
                "notes": list(vm.notes),
            }
            for vm in found.vms
        ],
        "host_pairs": [vars(pair) for pair in found.pairs],
        "missing": [vars(missing) for missing in found.missing],
        "notes": found.notes,
    }


def host() -> dict[str, Any]:
    """This machine's counter now, and its rate."""
    try:
        read, rate = counter.reader(), counter.frequency()
    except UsageError as err:
        return {"architecture": libc.MACHINE, "counter": None, "reason": str(err), "realtime_ns": time.time_ns()}
    return {
        "architecture": libc.MACHINE,
        "counter": read(),
        "realtime_ns": time.time_ns(),
        "frequency_hz": [rate.low_hz, rate.high_hz],
        "frequency_source": rate.source,
    }


def _vm(vm: Vm) -> dict[str, Any]:
    return {"pid": vm.pid, "descriptor": vm.descriptor, "vmm": vm.vmm, "name": vm.name}


def _clock(found: HostOffsets, vm: Vm) -> dict[str, Any] | None:
    clock = found.clocks.get((vm.pid, vm.descriptor))
    return None if clock is None else vars(clock)


def _vcpu(each: VcpuOffsets) -> dict[str, Any]:
    vcpu = each.vcpu
    return {
        "vcpu": vcpu.number,
        "tid": vcpu.tid,
        "thread_by": vcpu.thread_by,
        "apic_id" if libc.MACHINE == "x86_64" else "mpidr": vcpu.hardware_id,
        "readings": [reading_values(reading) for reading in each.readings],
        "agree": each.agree(),
        "conflicts": [[one.source, other.source, one.level] for one, other in each.conflicts()],
        "missing": [vars(missing) for missing in each.missing],
    }


def reading_values(reading: Reading) -> dict[str, Any]:
    """A reading as JSON values."""
    return {
        "source": reading.source,
        "level": reading.level,
        "offset": [reading.low, reading.high],
        "ratio": reading.ratio,
        "frac_bits": reading.frac_bits,
        "host_counter": reading.host_counter,
        "realtime_ns": reading.realtime_ns,
        "age_ns": max(0, time.time_ns() - reading.realtime_ns),
        "cost_ns": reading.cost_ns,
        "stood_still_ns": reading.stood_ns,
        "brackets": reading.brackets,
        "note": reading.note,
    }


def change_values(change: Change) -> dict[str, Any]:
    """A change as JSON values."""
    return {
        "schema": SCHEMA,
        "change": change.what,
        "vm": None if change.vm is None else _vm(change.vm),
        "vcpu": change.vcpu_number,
        "tid": change.tid,
        "before": change.before,
        "reading": None if change.reading is None else reading_values(change.reading),
        "other": None if change.other is None else reading_values(change.other),
    }


# -- text ------------------------------------------------------------------------------------------------------------

_COLUMNS = ("vm", "vcpu", "thread", "source", "offset (ticks)", "of", "age", "cost", "stood still", "agree")
_RIGHT = {1, 2, 4, 6, 7, 8}


def table(found: HostOffsets) -> list[str]:
    """The lines of the table of vCPUs, and what is to be said of it."""
    rows = [_COLUMNS]
    for each in found.vcpus:
        for index, reading in enumerate(each.readings):
            first = index == 0
            rows.append((
                f"{each.vm.label} ({each.vm.vmm}, {each.vm.pid})" if first else "",
                str(each.vcpu.number) if first else "",
                ("-" if each.vcpu.tid is None else str(each.vcpu.tid)) if first else "",
                reading.source,
                _offset(reading),
                reading.level + ("" if not _scaled(reading) else ", scaled"),
                duration(max(0, time.time_ns() - reading.realtime_ns)),
                duration(reading.cost_ns),
                duration(reading.stood_ns) if reading.stood_ns else "-",
                {True: "yes", False: "NO", None: "-"}[each.agree()] if first else "",
            ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(widths[n]) if n in _RIGHT else cell.ljust(widths[n]) for n, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
    if len(rows) == 1:
        lines = ["no VM runs here"] if not found.vms else ["no vCPU is known"]
    return [*lines, *_remarks(found)]


def _remarks(found: HostOffsets) -> list[str]:
    lines = []
    for each in found.vcpus:
        who = f"{each.vm.label} vcpu {each.vcpu.number}"
        for one, other in each.conflicts():
            lines.append(f"{who}: {one.source}: {_offset(one)}, {other.source}: {_offset(other)}; both cannot hold")
        lines += [f"{who}: {reading.source}: {reading.note}" for reading in each.readings if reading.note]
    for text, whose in _together(found).items():
        lines.append(f"missing: {text}" + (f" ({', '.join(whose)})" if whose else ""))
    lines += [f"note: {text}" for text in [*found.notes, *(note for vm in found.vms for note in vm.notes)]]
    for (pid, _), clock in found.clocks.items():
        if clock.host_tsc is not None:
            lines.append(
                f"KVM_GET_CLOCK of {pid}: host TSC {clock.host_tsc} was {clock.realtime_ns} ns of CLOCK_REALTIME"
            )
    for pair in found.pairs:
        lines.append(
            f"{pair.device}: the host's CLOCK_REALTIME was {pair.host_realtime_ns} ns while this machine's counter was"
            f" in [{pair.before}, {pair.after}]"
        )
    return ["", *lines] if lines else []


def _together(found: HostOffsets) -> dict[str, list[str]]:
    """What is missing, and of which vCPUs (none named: of all)."""
    out: dict[str, list[str]] = {f"{m.source}: {m.reason}": [] for m in found.missing}
    for each in found.vcpus:
        for m in each.missing:
            out.setdefault(f"{m.source}: {m.reason}", []).append(f"{each.vm.label} vcpu {each.vcpu.number}")
    return out


def missing_lines(missing: Iterable[Missing]) -> list[str]:
    """What is missing, a line each."""
    return [f"missing: {m.source}: {m.reason}" for m in missing]


def change_line(change: Change) -> str:
    """A change as a line of text."""
    clock = time.strftime("%H:%M:%S", time.localtime())
    if change.what == "lost":
        return f"{clock} events were overwritten before they were read: changes may be missing"
    who = "unknown VM" if change.vm is None else f"{change.vm.label} ({change.vm.vmm}, {change.vm.pid})"
    if change.what == "vm":
        return f"{clock} {who}: found, {len(change.vm.vcpus) if change.vm else 0} vCPUs"
    if change.what == "gone":
        return f"{clock} {who}: gone"
    reading = change.reading
    assert reading is not None
    if change.other is not None:
        said = f"{reading.source}: {_offset(reading)}, {change.other.source}: {_offset(change.other)}"
        return f"{clock} {who} vcpu {change.vcpu_number}: {said}; both cannot hold"
    at = "" if reading.host_counter is None else f" at {reading.host_counter}"
    before = "" if change.before is None else f"{change.before} -> "
    note = f" ({reading.note})" if reading.note else ""
    return (
        f"{clock} {who} vcpu {change.vcpu_number} thread {change.tid}: {reading.source}{at}: {before}{_offset(reading)}"
        f" ({reading.level}){note}"
    )


def _offset(reading: Reading) -> str:
    return str(reading.low) if reading.exact else f"{reading.low}..{reading.high}"


def _scaled(reading: Reading) -> bool:
    return reading.ratio is not None and reading.frac_bits is not None and reading.ratio != 1 << reading.frac_bits


def duration(ns: int) -> str:
    """A time for people."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"


# -- metrics ---------------------------------------------------------------------------------------------------------

_METRICS = (
    (
        "counterpoint_vcpu_offset_ticks",
        "gauge",
        "Guest counter minus host counter; a sample has 53 bits, see the info labels.",
    ),
    ("counterpoint_vcpu_offset_width_ticks", "gauge", "How wide the interval is that the source leaves; 0 is exact."),
    (
        "counterpoint_vcpu_offset_difference_ticks",
        "gauge",
        "Offset minus that of the VM's first vCPU by the same source.",
    ),
    ("counterpoint_vcpu_offset_read_seconds", "gauge", "What reading took."),
    ("counterpoint_vcpu_stood_still_seconds", "gauge", "How long the vCPU stood still for it, at most."),
    ("counterpoint_vcpu_offset_timestamp_seconds", "gauge", "When it was read."),
    ("counterpoint_vcpu_sources_agree", "gauge", "1: all sources of L1's offset agree; 0: two exclude each other."),
)


def openmetrics(found: HostOffsets) -> str:
    """The readings in OpenMetrics' text format; exact integers are in the label ``exact`` where a sample loses bits."""
    samples: dict[str, list[str]] = {name: [] for name, _, _ in _METRICS}
    first: dict[tuple[int, int, str, str], Reading] = {}
    for each in found.vcpus:
        who = {"vm": each.vm.label, "pid": each.vm.pid, "vmm": each.vm.vmm, "vcpu": each.vcpu.number}
        for reading in each.readings:
            base = first.setdefault((each.vm.pid, each.vm.descriptor, reading.source, reading.level), reading)
            labels = _labels({**who, "source": reading.source, "level": reading.level})
            exact = _labels({**who, "source": reading.source, "level": reading.level, "exact": _offset(reading)})
            for name, text, value in (
                ("offset_ticks", exact, reading.low),
                ("offset_width_ticks", labels, reading.high - reading.low),
                ("offset_difference_ticks", labels, reading.low - base.low),
                ("offset_read_seconds", labels, reading.cost_ns / 1e9),
                ("stood_still_seconds", labels, reading.stood_ns / 1e9),
                ("offset_timestamp_seconds", labels, reading.realtime_ns / 1e9),
            ):
                samples[f"counterpoint_vcpu_{name}"].append(f"counterpoint_vcpu_{name}{text} {value}")
        agree = each.agree()
        if agree is not None:
            name = "counterpoint_vcpu_sources_agree"
            samples[name].append(f"{name}{_labels(who)} {int(agree)}")
    lines = []
    for name, kind, help_ in _METRICS:
        if samples[name]:
            lines += [f"# TYPE {name} {kind}", f"# HELP {name} {help_}", *samples[name]]
    return "\n".join([*lines, "# EOF", ""])


def _labels(values: dict[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        parts.append(f'{name}="{text}"')
    return "{" + ",".join(parts) + "}"


# -- claims ----------------------------------------------------------------------------------------------------------


def claims(found: HostOffsets) -> list[str]:
    """A line of a claims file for each exact reading of an L1's offset (docs/vmm-authors.md)."""
    several = len({(each.vm.pid, each.vm.descriptor) for each in found.vcpus}) > 1
    return [
        claim_line(each.vm, each.vcpu, reading, named=several)
        for each in found.vcpus
        for reading in each.readings
        if reading.exact and reading.level == L1
    ]


def change_claims(changes: Sequence[Change], *, named: bool) -> list[str]:
    """The same of changes: what held from the stamp of the change on."""
    out = []
    for change in changes:
        reading = change.reading
        if reading is None or change.vm is None or change.other is not None or reading.level != L1 or not reading.exact:
            continue
        vcpu = next((v for v in change.vm.vcpus if v.number == change.vcpu_number), None)
        if vcpu is not None:
            since = reading.host_counter if change.what in ("write", "entry") else None
            out.append(claim_line(change.vm, vcpu, reading, named=named, since=since))
    return out


def claim_line(vm: Vm, vcpu: Vcpu, reading: Reading, *, named: bool, since: int | None = None) -> str:
    """One claim. ``named``: it says whose it is by the VM's name, which must be the recording's file stem then."""
    value = claim_values(vm, vcpu, reading, since=since)
    return json.dumps({"guest": vm.label, **value} if named else value)


def claim_values(vm: Vm, vcpu: Vcpu, reading: Reading, *, since: int | None = None) -> dict[str, Any]:
    """The same as JSON values, without whose it is. On arm64, where no trace clock counts ticks, of CNTVOFF."""
    is_arm = libc.MACHINE == "aarch64"
    value: dict[str, Any] = {
        "cpu": vcpu.number,
        "cntvoff" if is_arm else "offset": -reading.low if is_arm else reading.low,
    }
    value.update(unit="ticks", source=reading.source)
    if _scaled(reading):
        value.update(ratio=reading.ratio, frac_bits=reading.frac_bits)
    value.update(
        host_from=since, host_to=None, host_counter=reading.host_counter, realtime_ns=reading.realtime_ns,
        vm=_vm(vm), tid=vcpu.tid, stood_still_ns=reading.stood_ns,
    )  # fmt: skip
    return value
