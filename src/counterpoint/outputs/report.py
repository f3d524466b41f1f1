"""The proof as JSON: schema 1 of ``sync --json``, ``verify --json`` and ``info --json``.

Stamps and offsets are JSON integers of any size. Keys beyond the documented ones may be added; none changes meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from counterpoint.clocks import saved
from counterpoint.clocks.band import Band
from counterpoint.clocks.cpu_clock import CpuClock
from counterpoint.clocks.machines import GuestClock, Maps
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.scaling import Scale
from counterpoint.proof.counters import CounterInfo, KnownK
from counterpoint.proof.verdicts import (
    ClaimProof,
    CounterClaimProof,
    Counterexample,
    EpochProof,
    Fitted,
    MisStamped,
    VcpuProof,
    Witness,
)
from counterpoint.timeline.join import Join
from counterpoint.timeline.maps import maps_of
from counterpoint.timeline.placing import FurtherHost
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult, offset_width
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

SCHEMA = 1

Json = dict[str, Any]


def sync_report(result: SyncResult, *, merged: bool = True, pairs: Iterable[ClockPair] = ()) -> Json:
    """The whole result; ``merged`` False (verify) leaves the timeline out, which is then never built.

    ``pairs``: host trace-clock stamps at known times of the host's CLOCK_REALTIME.
    """
    maps = maps_of(result, pairs)
    out: Json = {
        "schema": SCHEMA,
        "host": _recording(result.host_name, result.host) | saved.machine_keys(maps.host),
        "hosts": [_further(h, m, result.host.unit) for h, m in zip(result.hosts, maps.further, strict=True)],
        "guests": [_guest(g, clock, maps, result) for g, clock in zip(result.guests, maps.guests, strict=True)],
        "realtime": saved.pairs_key(maps.pairs),
    }
    if merged:
        timeline = result.timeline
        stamps = timeline.host_ticks
        ends = [int(stamps[0]), int(stamps[-1])] if len(stamps) else [None, None]
        rate = timeline.rate
        out["timeline"] = {
            "events": len(timeline),
            "from_ns": rate.to_ns(ends[0]) if rate and ends[0] is not None else None,
            "to_ns": rate.to_ns(ends[1]) if rate and ends[1] is not None else None,
            "unplaced": timeline.unplaced,
            "unproved": timeline.unproved,
            "ns_source": rate.source if rate else None,
        }
    out["warnings"] = [*result.warnings, *(w for g in result.guests for w in g.warnings), *maps.notes]
    return out


def _recording(name: str, recording: Recording) -> Json:
    return {
        "name": name,
        "file": str(recording.path),
        "clock": recording.clock,
        "cpus": recording.cpus,
        "events": len(recording),
        "lost_events": recording.losses.total,
        **({"rounding": list(recording.rounding)} if any(recording.rounding) else {}),
    }


def _further(host: FurtherHost, maps: Maps, unit: str) -> Json:
    """A further host, and how its clock relates to the first's."""
    out = _recording(host.name, host.recording) | saved.machine_keys(maps.host)
    return out | {
        "join": None if host.join is None else _join(host.join, unit),
        "realtime": saved.pairs_key(maps.pairs),
    }


def _join(join: Join, unit: str) -> Json:
    return {
        "source": join.source,
        "verdict": join.verdict.value,
        "guests": list(join.guests),
        "at": join.at,
        "host_at": join.stamp,
        "interval": [join.earliest, join.latest],
        "offset": join.offset if join.is_constant else None,
        "unit": unit,
        "ratio": join.scale.ratio,
        "frac_bits": join.scale.frac_bits,
        "rate_ppm": join.rate_ppm,
        "last_exit": join.not_before,
        "not_after": join.not_after,
        "assumption": join.assumption,
        "notes": list(join.notes),
    }


def _guest(guest: GuestProof, clock: GuestClock, maps: Maps, result: SyncResult) -> Json:
    out = _recording(guest.name, guest.recording) | saved.machine_keys(clock.machine)
    out["parent"] = guest.parent
    if guest.counter is not None and guest.counter.pair is not None:
        out["counter"] = _counter(guest.counter)
    if guest.sums:
        out["cntvoff_sums"] = [
            {
                "guest_cpu": s.guest_cpu,
                "host": s.host,
                "source": s.source,
                "cntvoff": s.total,
                "of_parent": s.own,
                "of_guest": s.rest,
                "events": s.events,
            }
            for s in guest.sums
        ]
    there = {m.host.name: g.cpus for m in maps.further for g in m.guests if g.name == guest.name}
    further = [{host: cpus[at] for host, cpus in there.items()} for at in range(len(clock.cpus))]
    out["vcpus"] = [
        _vcpu(v, c, f, guest.recording, result, guest.counter)
        for v, c, f in zip(guest.vcpus, clock.cpus, further, strict=True)
    ]
    return out


def _counter(counter: CounterInfo) -> Json:
    """What is known of arm64's counter behind a guest's stamps and its host's."""
    return {
        "hz": counter.hz,
        "hz_source": counter.source,
        "hz_others": list(counter.others),
        "host_k": _k(counter.host_k),
        "guest_k": _k(counter.guest_k),
        "host_k_by_claims": {source: list(interval) for source, interval in counter.host_k_by_claims},
    }


def _k(k: KnownK | None) -> Json | None:
    return None if k is None else {"lo": k.lo, "hi": k.hi, "source": k.source}


def _vcpu(
    vcpu: VcpuProof,
    clock: CpuClock,
    further: dict[str, CpuClock],
    guest: Recording,
    result: SyncResult,
    counter: CounterInfo | None,
) -> Json:
    clocks: dict[str | None, CpuClock] = {None: clock}
    clocks.update(further)
    known = {
        host: iter([saved.epoch_keys(e, r) for e, r in zip(c.epochs, c.reaches, strict=True)])
        for host, c in clocks.items()
    }
    # a map that is refused has none
    reaches = [next(known.get(e.host, iter(())), saved.unknown_epoch_keys()) for e in vcpu.epochs]
    return saved.vcpu_keys(clock, further) | {
        "guest_cpu": vcpu.guest_cpu,
        "host_tid": vcpu.host_tid,
        "matched_by": vcpu.matched_by,
        "verdict": vcpu.verdict.value,
        "epochs": [
            _epoch(e, guest, result.rate_on(e.host)) | _ticks(e, counter) | k
            for e, k in zip(vcpu.epochs, reaches, strict=True)
        ],
        "claims": [
            *(_claim(c) | _offset_said(c, counter) for c in vcpu.claims),
            *(_claim(c) | _cntvoff_said(c, counter) for c in vcpu.counter_claims),
        ],
        "mis_stamped": [_mis_stamped(m) for m in vcpu.mis_stamped],
        "unplaced": [
            {
                "guest_from": u.guest_from,
                "guest_to": u.guest_to,
                "events": len(u.rows),
                "hosts": [h or result.host_name for h in u.hosts],
            }
            for u in vcpu.unplaced
        ],
        "notes": list(vcpu.notes),
    }


def width_ns(epoch: EpochProof, rate: Rate | None) -> int | None:
    """The width of the feasible interval in ns, rounded up; None: unbounded, or the rate is not known."""
    width = epoch.fitted.band.width if epoch.fitted else offset_width(epoch)
    if width is None or rate is None:
        return None
    # guest units to the host's, whose length is known
    ratio = epoch.scale.ratio
    return -rate.to_ns(-((-(-width << epoch.scale.frac_bits) + ratio - 1) // ratio))


def _epoch(epoch: EpochProof, guest: Recording, rate: Rate | None) -> Json:
    out: Json = {
        "guest_from": epoch.guest_from,
        "guest_to": epoch.guest_to,
        "guest_sure": list(epoch.guest_sure),
        "doubtful": int((~epoch.is_sure(guest.stamp[epoch.rows])).sum()),
        "host_from": epoch.host_from,
        "host_to": epoch.host_to,
        "offset": epoch.offset,
        "unit": guest.unit,
        "ratio": epoch.scale.ratio,
        "frac_bits": epoch.scale.frac_bits,
        "source": epoch.source or None,
        "verdict": epoch.verdict.value,
        "feasible": list(epoch.feasible) if epoch.feasible else None,
        "width_ns": width_ns(epoch, rate),
        "checked": epoch.checked,
        "inside": epoch.inside,
        "violations": epoch.violations,
        "unknown": epoch.unknown,
        "evidence_bits": epoch.evidence,
        "witnesses": {"low": _witness(epoch.low), "high": _witness(epoch.high)},
    }
    if epoch.host is not None:
        out |= {"host": epoch.host, "host_tid": epoch.host_tid}
    if epoch.by_windows is not None:
        out["feasible_by_windows"] = list(epoch.by_windows)
        out["anchors"] = [
            {
                "kind": a.kind,
                "side": a.side,
                "bound": a.bound,
                "guest_stamp": a.guest_stamp,
                "host_stamp": a.host_stamp,
                "assumption": a.assumption,
            }
            for a in epoch.anchors
        ]
    if epoch.fitted is not None:
        out |= _fitted(epoch.fitted, epoch.scale)
    if len(epoch.candidates) > 1:
        out["candidates"] = [list(c) for c in epoch.candidates]
    return out


def _ticks(epoch: EpochProof, counter: CounterInfo | None) -> Json:
    """The epoch in ticks of arm64's counter, where there is one."""
    if counter is None or (counter.pair is None and not counter.reason) or not epoch.verdict.is_sound:
        return {}
    ticks = epoch.ticks
    return {
        "cntvoff": ticks.cntvoff if ticks else None,
        "cntvoff_feasible": list(ticks.feasible) if ticks and ticks.feasible else None,
        "cntvoff_change": list(ticks.change) if ticks and ticks.change else None,
        "cntvoff_reason": counter.reason or None,
        "counter_hz": counter.hz,
        "counter_hz_source": counter.source or None,
        "host_k": counter.host_k.source if counter.host_k else None,
        "guest_k": counter.guest_k.source if counter.guest_k else None,
    }


def _fitted(fitted: Fitted, scale: Scale) -> Json:
    """The rate, in billionths from what the recordings say of their clocks, and the bounds over time."""
    nominal = fitted.nominal
    billion = 1_000_000_000
    rate = (scale.ratio << nominal.frac_bits) * billion // (nominal.ratio << scale.frac_bits) - billion
    out: Json = {
        "rate_ppb": rate,
        "rate_ppb_feasible": list(fitted.rate_ppb),
        "nominal": {"ratio": nominal.ratio, "frac_bits": nominal.frac_bits},
        "slew_ppm": fitted.slew_ppm,
        "bounds": _bounds(fitted.band),
    }
    if fitted.own is not None:
        out["bounds_by_cpu"] = _bounds(fitted.own)
    if fitted.rate_source:
        out["rate_source"] = fitted.rate_source
    return out


def _bounds(band: Band) -> list[list[int]]:
    return [
        [begin, end, lo, hi] for begin, end, lo, hi in zip(band.host, band.host[1:], band.lo, band.hi, strict=False)
    ]


def _witness(witness: Witness | None) -> Json | None:
    if witness is None:
        return None
    return {
        "bound": witness.bound,
        "guest_stamp": witness.guest_stamp,
        "guest_event": witness.guest_event,
        "host_window": [witness.host_from, witness.host_to],
        "host_events": [witness.host_from_event or None, witness.host_to_event or None],
    }


def _claim(proof: ClaimProof | CounterClaimProof) -> Json:
    claim = proof.claim
    out: Json = {
        "source": claim.source,
        "detail": claim.detail or None,
        "host_from": claim.host_from,
        "host_to": claim.host_to,
        "verdict": proof.verdict.value,
        "inside": proof.inside,
        "violations": proof.violations,
        "unknown": proof.unknown,
        "reason": proof.reason or None,
        "counterexample": _counterexample(proof.counterexample),
    }
    if proof.by_epoch:
        out["by_epoch"] = [
            {
                "epoch": o.epoch,
                "verdict": o.verdict.value,
                "inside": o.inside,
                "violations": o.violations,
                "unknown": o.unknown,
            }
            for o in proof.by_epoch
        ]
    if claim.held is not None:
        out["spans"] = len(claim.held)
    return out


def _offset_said(proof: ClaimProof, counter: CounterInfo | None) -> Json:
    """A claim of an offset, and the CNTVOFFs that it may stand for."""
    claim = proof.claim
    out: Json = {"offset": claim.offset, "ratio": claim.ratio, "frac_bits": claim.frac_bits}
    if counter is not None and counter.pair is not None:
        found = counter.pair.cntvoff(counter.pair.index_range_of((claim.offset, claim.offset)))
        out["cntvoff_range"] = list(found) if found else None
    return out


def _cntvoff_said(proof: CounterClaimProof, counter: CounterInfo | None) -> Json:
    """A claim of CNTVOFF, and the offsets that it may stand for."""
    found = counter.pair.offsets_of(proof.claim.cntvoff) if counter is not None and counter.pair else None
    out: Json = {"offset": None, "ratio": 1, "frac_bits": 0}
    return out | {"offset_range": list(found) if found else None, "cntvoff": proof.claim.cntvoff}


def _counterexample(example: Counterexample | None) -> Json | None:
    if example is None:
        return None
    return {
        "guest_stamp": example.guest_stamp,
        "guest_event": example.guest_event,
        "host_stamp": example.host_stamp,
        "host_gap": [example.host_from, example.host_to],
        "reason": example.reason,
    }


def _mis_stamped(run: MisStamped) -> Json:
    return {
        "guest_from": run.guest_from,
        "guest_to": run.guest_to,
        "events": len(run.rows),
        "late_by": list(run.late_by) if run.late_by else None,
        **({} if run.host is None else {"host": run.host}),
    }


def info_report(recording: Recording) -> Json:
    """What one file holds."""
    by_name: dict[str, int] = {}
    for event_id, count in recording.counts_by_id().items():
        known = recording.formats.get(event_id)
        name = f"{known.system}:{known.name}" if known else f"[UNKNOWN EVENT {event_id}]"
        by_name[name] = by_name.get(name, 0) + count
    rate = rate_of(recording)
    trace_id = recording.options.trace_id
    # a counter may run over 2^64 in a recording: order by signed distance from one of the stamps
    stamps = recording.stamp
    ends: list[int | None] = [None, None]
    if len(stamps):
        distance = (stamps - stamps[0]).view(np.int64)
        ends = [int(stamps[int(distance.argmin())]), int(stamps[int(distance.argmax())])]
    shift, factors = recording.options.time_shift, recording.options.tsc2nsec
    return {
        "schema": SCHEMA,
        "file": str(recording.path),
        "format": recording.format,
        "version": recording.version,
        "compression": recording.compression,
        "big_endian": recording.big_endian,
        "long_size": recording.long_size,
        "clock": recording.clock,
        "unit": recording.unit,
        "khz": rate.khz if rate and recording.unit == "ticks" else None,
        "khz_source": rate.source if rate and recording.unit == "ticks" else None,
        "cpus": recording.cpus,
        "events": len(recording),
        "lost_events": recording.losses.total,
        "lost_marks": len(recording.losses.row),
        **({"rounding": list(recording.rounding)} if any(recording.rounding) else {}),
        "from": ends[0],
        "to": ends[1],
        "trace_id": trace_id,
        "events_by_name": dict(sorted(by_name.items(), key=lambda item: (-item[1], item[0]))),
        "options": recording.option_names,
        "uname": recording.options.uname or None,
        "recorder": recording.options.recorder or None,
        "date_offset_us": recording.options.date_offset_us,
        "ts_offset": recording.options.ts_offset,
        "tsc2nsec": None if factors is None else {"mult": factors.mult, "shift": factors.shift},
        "time_shift": None
        if shift is None
        else {
            "peer_trace_id": shift.peer_trace_id,
            "flags": shift.flags,
            "cpus": [
                [{"time": s.time, "offset": s.offset, "scaling": s.scaling, "frac": s.frac} for s in samples]
                for samples in shift.cpus
            ],
        },
        "guests": [
            {"name": g.name, "trace_id": g.trace_id, "vcpus": [{"cpu": c, "tid": t} for c, t in g.vcpus]}
            for g in recording.options.guests
        ],
        "buffers": [
            {
                "name": b.name,
                "clock": b.clock or recording.clock,
                "sub_buffer_size": b.sub_buffer_size,
                "cpus": [{"cpu": s.cpu, "events": s.last - s.first} for s in recording.streams if s.buffer == b.name],
            }
            for b in recording.buffers
        ]
        or _streams(recording),
        "warnings": list(recording.warnings),
    }


def _streams(recording: Recording) -> list[Json]:
    """The CPUs of a recording that has no sub-buffers, as one buffer."""
    cpus = [{"cpu": s.cpu, "events": s.last - s.first} for s in recording.streams]
    return [] if recording.is_dat else [{"name": "", "clock": recording.clock, "sub_buffer_size": None, "cpus": cpus}]
