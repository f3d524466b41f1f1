"""What a proof leaves for conversions: every clock map with where it holds, and no events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from counterpoint.clocks.counter import relative, to_signed
from counterpoint.clocks.cpu_clock import CpuClock, End, Through
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.machines import GuestClock, MachineClock, Maps
from counterpoint.clocks.maps import Epoch
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.saved import maps_from
from counterpoint.clocks.spans import Spans
from counterpoint.errors import BadFileError
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.nesting import Clock
from counterpoint.proof.reach import MAX_SPANS, reaches_of
from counterpoint.proof.relation import relation_of
from counterpoint.proof.verdicts import VcpuProof, Verdict
from counterpoint.proof.windows import RunWindows
from counterpoint.timeline.placing import FurtherHost
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.stamps import pairs_of_counter
from counterpoint.timeline.sync import SyncResult
from counterpoint.traces.arch import machine_of
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

MAX_FILE = 1 << 26
"""Bytes of a saved map: thousands of vCPUs with many epochs each."""


def maps_of(result: SyncResult, pairs: Iterable[ClockPair] = ()) -> Maps:
    """The maps of a proof. ``pairs``: host trace-clock stamps at known times of the host's CLOCK_REALTIME."""
    host = _machine(result.host, result.host_name, result.rate, result.guests)
    told, notes = _told_pairs(result, host)
    recordings = {result.host_name: result.host} | {g.name: g.recording for g in result.guests}
    guests = [_guest(guest, recordings[guest.parent], result) for guest in result.guests]
    further = [_further(one, result) for one in result.hosts]
    notes += tuple(note for maps in further for note in maps.notes)
    return Maps(host, tuple(guests), (*told, *pairs), tuple(further), notes)


def _further(host: FurtherHost, result: SyncResult) -> Maps:
    """The maps of the guests that went to a further host, in that host's own time."""
    machine = _machine(host.recording, host.name, rate_of(host.recording), ())
    told, notes = _told_pairs(result, machine)
    there = [g for g in result.guests if any(e.host == host.name for v in g.vcpus for e in v.epochs)]
    guests = [_guest(guest, host.recording, result, host) for guest in there]
    return Maps(machine, tuple(guests), tuple(told), notes=notes)


def read_map(path: str | PathLike[str]) -> Maps:
    """The maps that ``sync -o FILE.json`` wrote; BadFileError where the file is none, which may be anyone's."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE:
            raise BadFileError(f"has {size} bytes, more than any map", path)
        return maps_from(json.loads(Path(path).read_bytes()))
    except OSError as err:
        raise BadFileError(f"cannot be read: {err.strerror or err}", path) from None
    except RecursionError:
        raise BadFileError("is no map: nested too deep", path) from None
    except ValueError as err:
        raise BadFileError(f"is no map that sync -o FILE.json writes: {err}", path) from None


def _told_pairs(result: SyncResult, host: MachineClock) -> tuple[list[ClockPair], tuple[str, ...]]:
    """A capture's pairs of the host's counter and wall time, by its trace clock; or why they are of no use."""
    pairs = result.wall.pairs.get(host.name, ()) if result.wall else ()
    try:
        return pairs_of_counter(pairs, host, host.counter), ()
    except ValueError as err:
        return [], (f"the clock pairs of {host.name} do not tell its wall time: {err}",)


def _machine(recording: Recording, name: str, rate: Rate | None, guests: Sequence[GuestProof]) -> MachineClock:
    span = None
    if len(recording):
        # a counter may run over 2^64 in a recording: order by signed distance from one of the stamps
        away = relative(recording.stamp, int(recording.stamp[0]))
        span = int(recording.stamp[away.argmin()]), int(recording.stamp[away.argmax()])
    date = recording.options.date_offset_us if recording.unit == "ns" else None
    return MachineClock(
        name,
        recording.clock,
        recording.unit,
        rate,
        span,
        machine_of(recording),
        date,
        _counter(name, recording.clock, guests),
    )


def _counter(name: str, clock: str, guests: Sequence[GuestProof]) -> ArchCounter | None:
    """arm64's counter behind a machine's clock, where its frequency and K are known, given or found."""
    for guest in guests:
        info = guest.counter
        if info is None or info.hz is None or info.others or clock not in ("mono_raw", "local"):
            continue
        for k, of in ((info.host_k, guest.parent), (info.guest_k, guest.name)):
            if k is not None and of == name:
                return ArchCounter(info.hz, k.lo, clock, k.hi, k.source)  # type: ignore[arg-type]
    return None


def _guest(guest: GuestProof, parent: Recording, result: SyncResult, further: FurtherHost | None = None) -> GuestClock:
    """A guest on its parent, or on a ``further`` host."""
    relation = relation_of(parent, guest.recording)
    # two clocks in ns over one counter: both round down
    rounding = 1 if relation.constant and guest.recording.unit == "ns" else 0
    on = None if further is None else further.name
    changed = _changed(guest, on)
    cpus = []
    for vcpu in guest.vcpus:
        here, pool = _on(vcpu, on), guest.pool if further is None else further.pool
        clock = _cpu(guest, here, pool, rounding, changed, is_nested=guest.parent != result.host_name)
        cpus.append(_with_moves(clock, vcpu, on, result.host_name))
    machine = _machine(guest.recording, guest.name, rate_of(guest.recording), result.guests)
    return GuestClock(machine, guest.parent if on is None else on, tuple(cpus))


def _on(vcpu: VcpuProof, host: str | None) -> VcpuProof:
    """What of a vCPU's proof is of one host (None: the first)."""
    epochs = tuple(e for e in vcpu.epochs if e.host == host)
    if len(epochs) == len(vcpu.epochs) and host is None:
        return vcpu
    tid = vcpu.host_tid if host is None else next((e.host_tid for e in epochs), None)
    # what was typed speaks of the first host, what was logged names its host's thread
    claims = tuple(c for c in vcpu.claims if c.claim.tid == tid or (host is None and c.claim.tid is None))
    late = tuple(m for m in vcpu.mis_stamped if m.host == host)
    return replace(vcpu, epochs=epochs, host_tid=tid, claims=claims, mis_stamped=late)


def _with_moves(clock: CpuClock, vcpu: VcpuProof, on: str | None, first_host: str) -> CpuClock:
    """The clock of a vCPU on one host, with nothing beyond where it came from another one or went there."""
    mine = [index for index, epoch in enumerate(vcpu.epochs) if epoch.host == on]
    if clock.refusal or len(mine) == len(vcpu.epochs):
        return clock
    said, ends = f"guest CPU {vcpu.guest_cpu}", [clock.before, clock.after]
    for side, neighbour, verb in ((0, mine[0] - 1, "came from"), (1, mine[-1] + 1, "went to")):
        if 0 <= neighbour < len(vcpu.epochs):
            other = vcpu.epochs[neighbour].host or first_host
            reach = clock.reaches[-side]
            stamp = _host(clock.epochs[-side], reach.seen[side])
            ends[side] = End(stamp, f"{said} {verb} {other} (--on {other})", is_firm=True)
    return replace(clock, before=ends[0], after=ends[1])


def _changed(guest: GuestProof, on: str | None) -> str:
    """What shows that the guest's clocks are set at times on a host ("": nothing does)."""
    several = [v for v in guest.vcpus if sum(e.host == on for e in v.epochs) > 1]
    if not several:
        return ""
    vcpu = several[0]
    what = "its clock was set or its rate changed" if any(e.fitted for e in vcpu.epochs) else "its offset changed"
    return f"{guest.name}: guest CPU {vcpu.guest_cpu}: {what} in the recording, and may have beyond it"


def _cpu(
    guest: GuestProof, vcpu: VcpuProof, pool: ThreadPool | None, rounding: int, changed: str, *, is_nested: bool
) -> CpuClock:
    said = f"guest CPU {vcpu.guest_cpu}"
    if not vcpu.epochs:
        return CpuClock(vcpu.guest_cpu, refusal=f"{said} is not known to have been on this host")
    doubted = next((e for e in vcpu.epochs if not e.verdict.is_sound), None)
    if vcpu.host_tid is None or pool is None:
        return CpuClock(vcpu.guest_cpu, refusal=_why(f"{said}'s thread was not found", vcpu))
    if doubted is not None:
        hint = "; --no-claims leaves the claims out" if doubted.verdict is Verdict.REFUTED else ""
        return CpuClock(vcpu.guest_cpu, refusal=_why(f"{said}'s map is {doubted.verdict}", vcpu) + hint)
    thread = pool.thread(vcpu.host_tid)
    clock = pool.guest_host.clock_of(pool.activity, vcpu.host_tid) if pool.guest_host else None
    reaches = reaches_of(guest.recording, vcpu, thread, in_order=clock is not Clock.OWN)
    epochs = tuple(epoch.as_epoch() for epoch in vcpu.epochs)
    if reaches is None or not all(epoch.is_bounded for epoch in epochs):
        why = f"the host saw no event of {said} run"
        if all(epoch.inside for epoch in vcpu.epochs):
            why = f"which events are of which of {said}'s epochs is not sure: a step goes out of the host's sight"
        return CpuClock(vcpu.guest_cpu, refusal=_why(why, vcpu))
    first, last = _host(epochs[0], reaches[0].seen[0]), _host(epochs[-1], reaches[-1].seen[1])
    before, after = (End(stamp, changed) if changed else End() for stamp in (first, last))
    for stamp in _edges_of_claims(vcpu):
        reason = f"a claim says that {said}'s offset changed at host stamp {stamp}"
        if to_signed(stamp - first) < 0 and (before.until is None or to_signed(stamp - before.until) > 0):
            before = End(stamp, reason)
        if to_signed(stamp - last) > 0 and (after.until is None or to_signed(stamp - after.until) < 0):
            after = End(stamp, reason)
    late = tuple((m.guest_from, m.guest_to) for m in vcpu.mis_stamped)
    through = _through(guest, vcpu.host_tid) if is_nested else None
    return CpuClock(vcpu.guest_cpu, epochs, reaches, before, after, rounding, late, through)


def _why(text: str, vcpu: VcpuProof) -> str:
    return f"{text} ({'; '.join(vcpu.notes)})" if vcpu.notes else text


def _host(epoch: Epoch, stamp: int) -> int:
    return int(epoch.to_host(np.array([stamp], np.uint64))[0])


def _edges_of_claims(vcpu: VcpuProof) -> list[int]:
    """The host stamps at which claims begin or end that nothing speaks against."""
    held = [c.claim for c in vcpu.claims if c.verdict is not Verdict.REFUTED]
    return [stamp for claim in held for stamp in (claim.host_from, claim.host_to) if stamp is not None]


def _through(guest: GuestProof, tid: int) -> Through:
    """On which CPUs of its host, which is a guest itself, a thread may have run its guest, and when."""
    pool = guest.pool
    assert pool is not None
    above = pool.guest_host
    clock = above.clock_of(pool.activity, tid) if above else Clock.SHARED
    if above is not None and clock is Clock.REFERENCE:
        return Through(clock.value, above.constant)
    host = pool.host
    cpu_of = np.array([s.cpu for s in host.streams], np.int64)[host.stream_of]
    stays = []
    shared = pool.thread(tid).real
    for cpu in range(max(host.cpus, 1 + int(cpu_of.max(initial=-1)))):
        windows: RunWindows | None = shared
        if clock is Clock.OWN:
            windows = pool.activity.on_cpu(tid, cpu)
        if windows is None:
            continue
        # what is unknown may have been anywhere
        mine = ~windows.is_run
        mine[windows.is_run] = cpu_of[windows.entry_row[windows.is_run]] == cpu
        mine &= windows.hi > windows.lo
        if (mine & windows.is_run).any() or clock is Clock.OWN:
            stays.append((cpu, Spans.joined(windows.base, windows.lo[mine], windows.hi[mine], MAX_SPANS)))
    return Through(clock.value, 0, tuple(stays))
