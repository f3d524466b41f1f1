"""Small worlds, one or more for each feature, and what every world must hold to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.clocks.counter import I64, U64
from counterpoint.proof.windows import HostActivity
from counterpoint.simulate import World, WorldOptions
from counterpoint.traces.recording import Recording

MASK = (1 << 64) - 1

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "amd": {"frac": 32},
    "one-of-everything": {"vms": 1, "vcpus": 1, "cpus": 1},
    "many": {"vms": 2, "vcpus": 3, "decoys": 2, "cpus": 2},
    "differ": {"differ": 10**10},
    "offset-zero": {"offset": 0, "differ": 10**6},
    "pauses": {"pauses": 2},
    "restores": {"restores": 2},
    "writes": {"writes": 2, "events": 6000},
    "writes-silent": {"writes": 1, "silent": True, "seed": 3},
    "hotplug": {"hotplug": True, "pauses": 1},
    "all-jumps": {"hotplug": True, "pauses": 2, "restores": 1, "writes": 1, "differ": 10**6, "vms": 2, "events": 8000},
    "scaled-up": {"guest_khz": 3_100_000, "pauses": 1},
    "scaled-down": {"guest_khz": 1_000_000, "frac": 32, "writes": 1},
    "wraps": {"start": (1 << 64) - 10**7},
    "wraps-signed": {"start": (1 << 63) - 10**7},
    "wraps-59-bits": {"start": (1 << 59) - 10**7},
    "mono": {"clock": "mono", "drift_ppm": 50.0, "slews": 4, "steps": 1},
    "boot-paused": {"clock": "boot", "slews": 2, "pauses": 1},
    "local": {"clock": "local", "drift_ppm": -3.5},
    "local-same-rate": {"clock": "local"},
    "tsc-and-local": {"guest_clock": "local", "drift_ppm": 12.0},
    "tsc-and-mono": {"guest_clock": "mono", "slews": 3, "khz": 3_700_000},
    "kvm-clock": {"guest_clock": "local", "pvclock": True, "vms": 2},
    "kvm-clock-scaled": {"clock": "local", "pvclock": True, "guest_khz": 3_100_000, "pauses": 1, "vcpus": 3},
    "mono-scaled": {"clock": "mono", "guest_khz": 1_700_000, "slews": 2},
    "arm64": {"arch": "arm64"},
    "arm64-1ghz": {"arch": "arm64", "khz": 1_000_000},
    "arm64-54mhz": {"arch": "arm64", "khz": 54_000, "pauses": 2, "probes": True},
    "arm64-hotplug": {"arch": "arm64", "hotplug": True, "restores": 1},
    "arm64-local": {"arch": "arm64", "clock": "local", "pauses": 1},
    "arm64-mono": {"arch": "arm64", "clock": "mono", "drift_ppm": 30.0, "slews": 3},
    "nested": {"nested": 1, "nested_events": True},
    "nested-two": {"nested": 2, "vcpus": 3, "differ": 2000},
    "nested-far-apart": {"nested": 1, "differ": 10**9},
    "nested-scaled": {"nested": 1, "guest_khz": 2_000_000, "nested_khz": 3_000_000, "pauses": 1},
    "nested-mono": {"nested": 1, "clock": "mono", "slews": 2, "drift_ppm": 20.0},
    "nested-arm64": {"nested": 1, "arch": "arm64", "nested_events": True, "pauses": 1, "khz": 62_500},
    "nested-arm64-probes": {"nested": 2, "arch": "arm64", "probes": True, "pauses": 1, "khz": 54_000},
    "nested-two-on-one": {"nested": 2, "vcpus": 1, "time_shift": "true"},
    "migrate": {"migrate": True},
    "migrate-rates": {"migrate": True, "khz_b": 2_900_000, "vms": 2, "pauses": 1},
    "migrate-scaled": {"migrate": True, "guest_khz": 2_000_000, "khz_b": 2_700_000, "frac": 32},
    "migrate-back": {"migrate": True, "returns": 2},
    "migrate-arm64": {"migrate": True, "arch": "arm64"},
    "lose": {"lose": 12, "events": 6000},
    "lose-uncounted": {"lose": 6, "uncounted": True, "lose_guest": 2},
    "lose-guest": {"lose_guest": 5},
    "unrecorded": {"unrecorded_cpus": 2},
    "late-and-early": {"late_start": 0.3, "early_end": 0.2},
    "unlogged": {"unlogged": 0.3, "fast_exits": 0.9},
    "emulated": {"latency": "emulated"},
    "no-fast-exits": {"fast_exits": 0.0},
    "no-kvm-events": {"kvm_events": False, "nested": 1},
    "no-timers": {"timers": False},
    "deadlines": {"vtimers": True, "unlogged": 0.2, "fast_exits": 0.8},
    "vtimers": {"vtimers": True, "arch": "arm64", "vcpus": 3, "lose": 2},
    "vtimers-nested": {"vtimers": True, "arch": "arm64", "nested": 1, "latency": "emulated", "timers": False},
    "says-true": {"time_shift": "true", "guest_option": True, "tsc2nsec": True, "pauses": 1},
    "says-wrong": {"time_shift": "wrong", "error": 12345, "differ": 10**6},
    "says-nested": {"time_shift": "nested", "nested": 1, "guest_option": True},
    "says-zero": {"time_shift": "zero"},
    "says-scaled": {"time_shift": "true", "guest_khz": 1_500_000, "frac": 32},
    "says-ptp": {"time_shift": "true", "clock": "mono"},
    "says-nothing": {"cmdlines": False, "uname": False},
    "v6": {"version": 6, "compression": "none", "lose": 3},
    "plain-v7": {"compression": "none"},
    "zlib": {"compression": "zlib"},
}  # fmt: skip


@dataclass
class Made:
    """A world that was written, and its files read."""

    world: World
    folder: Path
    truth: dict[str, Any]
    recordings: dict[str, Recording]


def make(folder: Path, **how: Any) -> Made:
    return written(World(WorldOptions(**({"events": 2500, "seed": 1} | how))), folder)


def written(world: World, folder: Path) -> Made:
    world.write(folder)
    truth = json.loads((folder / "truth.json").read_text())
    recordings = {m.name: Recording.open(folder / m.file) for m in world.machines}
    return Made(world, folder, truth, recordings)


def check(made: Made) -> None:
    """All that holds in every world."""
    check_files(made)
    for guest in made.truth["guests"]:
        name = guest["file"].removesuffix(".dat")
        for vcpu in guest["vcpus"]:
            check_epochs(made, name, guest, vcpu)
            check_windows(made, name, vcpu)
        if "l1_to_l2" in guest:
            check_nested(made, name, guest)


def check_files(made: Made) -> None:
    """What is read is what was meant to be written."""
    for machine in made.world.machines:
        recording = made.recordings[machine.name]
        assert recording.warnings == []
        assert len(recording) == made.truth["events"][machine.file] > 0
        assert (recording.clock, recording.cpus) == (machine.clock, machine.cpus)
        # version 6 lists CPUs that have no data too
        streams = [s for s in recording.streams if s.last > s.first]
        events = [machine.events[s.cpu] for s in streams]
        assert np.array_equal(recording.stamp, np.concatenate([e.stamp for e in events]))
        losses = recording.losses
        for stream, event in zip(streams, events, strict=True):
            mine = losses.stream == recording.streams.index(stream)
            assert (losses.row[mine] - stream.first).tolist() == event.lost_row.tolist()
            # a page without room for it does not keep the number
            wanted, found = event.lost_count, losses.count[mine]
            assert ((found == wanted) | (found == -1)).all()
            assert (np.diff(event.t) >= 0).all()
        assert {recording.formats.get(i) is not None for i in recording.counts_by_id()} == {True}


def check_epochs(made: Made, name: str, guest: dict[str, Any], vcpu: dict[str, Any]) -> None:
    """Each event's stamp follows from that of its parent, by truth.json alone."""
    cpu = vcpu["guest_cpu"]
    events = made.world.events(name, cpu)
    assert vcpu["events"] == len(events.t)
    nested = "l1_to_l2" in guest
    epochs = vcpu["epochs"]
    assert nested or set(events.epoch.tolist()) <= set(range(len(epochs)))
    for index, epoch in enumerate(epochs):
        mine = events.epoch == index
        parents, guests = events.parent_stamp[mine].tolist(), events.true_stamp[mine].tolist()
        if not nested:
            check_span(made, epoch, events.host_stamp[mine].tolist())
            if "counter" in epoch:
                check_exactly(made, guest, epoch, events.t[mine].tolist(), guests)
        for parent, stamp in zip(parents, guests, strict=True):
            if epoch["unit"] == "ticks":
                scaled = parent * epoch.get("ratio", 1) >> epoch.get("frac_bits", 0)
                assert stamp == (scaled + epoch["offset"]) & MASK
            elif epoch["unit"] == "ns":
                low, high = epoch["offset_range"]
                assert 0 <= high - low <= 1
                assert (stamp - parent - low) & MASK in (0, high - low)
        if epoch["unit"] == "line":
            check_line(epoch["line"], parents, guests)
    if not nested:
        for row in range(0, len(events.t), 211):
            low, high = made.world.guest_at(name, cpu, int(events.host_stamp[row]), host=int(events.host[row]))
            assert signed(int(events.true_stamp[row]) - low) >= 0 and signed(high - int(events.true_stamp[row])) >= 0


def check_exactly(
    made: Made, guest: dict[str, Any], epoch: dict[str, Any], times: list[int], stamps: list[int]
) -> None:
    """A guest's ns follow from hidden time by the host's counter, the epoch's relation and the guest's segments."""
    counter = made.truth["clocks"][epoch.get("host", "host")]["counter"]
    segments, relation = guest["clock"]["segments"], epoch["counter"]
    for t, stamp in zip(times, stamps, strict=True):
        host = (counter["start"] + (t * counter["mult"] >> counter["shift"])) & MASK
        value = (host * relation["ratio"] >> relation["frac_bits"]) + relation["offset"]
        segment = [s for s in segments if signed(value - s["from_counter"]) >= 0][-1]
        progress = ((value - segment["from_counter"]) & MASK) >> segment.get("pre_shift", 0)
        assert stamp == (segment["ns"] + (progress * segment["mult"] + segment["frac"] >> segment["shift"])) & MASK


def check_span(made: Made, epoch: dict[str, Any], stamps: list[int]) -> None:
    """An epoch's events lie in it."""
    for stamp in stamps:
        assert epoch["from_host"] is None or signed(stamp - epoch["from_host"]) >= 0
        assert epoch["to_host"] is None or signed(epoch["to_host"] - stamp) >= 0


def check_line(line: list[list[int]], parents: list[int], guests: list[int]) -> None:
    """Stamps lie on the line through the points, to within what rounding to whole units can do."""
    assert len(line) >= 2
    for parent, stamp in zip(parents, guests, strict=True):
        # L1's clock may have stepped back, and where a clock is coarse the instants around a step may have one stamp
        assert any(on_segment(*ends, parent, stamp) for ends in pairwise(line)), (parent, stamp)


def on_segment(begin: list[int], end: list[int], parent: int, stamp: int) -> bool:
    run, rise = signed(end[0] - begin[0]), signed(end[1] - begin[1])
    along, up = signed(parent - begin[0]), signed(stamp - begin[1])
    if not 0 <= along <= run or run == 0:
        return run == 0 and stamp in (begin[1], end[1])
    # each of the three stamps on either clock is rounded down by less than a unit
    return abs(up * run - along * rise) <= 3 * (abs(rise) + run)


def check_windows(made: Made, name: str, vcpu: dict[str, Any]) -> None:
    """Each event lies between an entry and an exit of its thread in the parent's file, where that could be seen."""
    options = made.world.options
    if not options.kvm_events:
        return
    events = made.world.events(name, vcpu["guest_cpu"])
    nested = name == "l2"
    parents = ["guest"] if nested else [host.machine.name for host in made.world.hosts]
    tids = vcpu.get("host_tids", [vcpu["host_tid"]])
    stay = np.r_[0, np.cumsum(events.host[1:] != events.host[:-1])] + events.host[:1]
    seen_all = not (options.lose or options.lose_guest or options.late_start or options.early_end or options.unlogged
                    or options.unrecorded_cpus)  # fmt: skip
    for number in range(len(tids)):
        mine = stay == number
        parent = parents[number % len(parents)]
        if not mine.any():
            continue
        if nested and any(made.world.events("guest", c).late.any() for c in range(options.vcpus)):
            continue  # L1's own file has some of these windows at the wrong time
        recording = made.recordings[parent]
        if seen_all:
            check_windows_by_cpu(recording, tids[number], events.parent_cpu[mine], events.parent_stamp[mine])
        elif not (nested and (options.differ or options.writes or options.restores)):
            # elsewhere the CPUs of L1 have clocks of their own, and a thread's events no order
            check_allowed(recording, tids[number], events.parent_stamp[mine])


def check_windows_by_cpu(recording: Recording, tid: int, cpus: I64, stamps: U64) -> None:
    """Each event lies between an entry and the next exit on its own CPU."""
    kinds = [recording.format_named("kvm", name) for name in ("kvm_entry", "kvm_exit")]
    for stream in recording.streams:
        mine = stamps[cpus == stream.cpu]
        if not len(mine):
            continue
        entries, exits = (
            rows[(rows >= stream.first) & (rows < stream.last) & (recording.pid[rows] == tid)]
            for rows in map(recording.rows, kinds)
        )
        assert len(entries) == len(exits)
        base = recording.stamp[stream.first]
        lo, hi, at = (
            (values - base).view(np.int64) for values in (*(recording.stamp[r] for r in (entries, exits)), mine)
        )
        assert (entries < exits).all() and (exits[:-1] < entries[1:]).all()
        row = np.searchsorted(lo, at, side="right") - 1
        # an event as near to the next entry as the clock can tell may be of the window before
        ok = (at <= hi[row]) | ((row > 0) & (at <= hi[row - 1]))
        assert (row >= 0).all() and ok.all()


def check_allowed(recording: Recording, tid: int, stamps: U64) -> None:
    """No event lies where the host saw the thread outside of guest mode."""
    activity = HostActivity(recording)
    if tid not in activity.tids:
        return  # all of its windows were where the host did not look
    windows = activity.windows(tid)
    at = (stamps - np.uint64(windows.base & MASK)).view(np.int64)
    lo, hi = windows.allowed()
    row = np.searchsorted(lo, at, side="right") - 1
    assert (row >= 0).all() and (at <= hi[row]).all()


def check_nested(made: Made, name: str, guest: dict[str, Any]) -> None:
    """L2's stamps follow from the host's by KVM's combination of both levels, on the L1 CPU each event was on."""
    if made.world.options.guests_clock != "x86-tsc" or made.world.options.host_clock != "x86-tsc":
        return
    by_cpu = guest["from_host_by_l1_cpu"]
    l1 = next(g for g in made.truth["guests"] if g["file"] == "guest.dat")
    for vcpu in guest["vcpus"]:
        events = made.world.events(name, vcpu["guest_cpu"])
        where = zip(events.host_stamp.tolist(), events.true_stamp.tolist(), events.parent_cpu.tolist(), strict=True)
        for host, stamp, cpu in where:
            begins = [e["from_host"] for e in l1["vcpus"][cpu]["epochs"]]
            index = max(i for i, b in enumerate(begins) if b is None or signed(host - b) >= 0)
            both = by_cpu[cpu][index]
            assert stamp == ((host * both["ratio"] >> both["frac_bits"]) + both["offset"]) & MASK


def signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value
