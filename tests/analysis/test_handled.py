"""Exits with what the guest was doing, and by level: real recordings against their own text, followed line by line."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.contexts import Context
from counterpoint.analysis.guest_symbols import MAX_INSIDE, UNNAMED, USER, GuestSymbols
from counterpoint.analysis.handled import vcpu_exits
from counterpoint.analysis.nested_exits import Level
from counterpoint.outputs.text import EventText
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from writers.nested_world import nested_world

DATA = Path(__file__).parent.parent / "data"
REASON = {"x86-agent": r"reason (\S+) rip 0x([0-9a-f]+)", "arm64-monoraw": r"^(\w+): .*\(([^)]*)\), PC: 0x([0-9a-f]+)"}


@pytest.fixture(scope="module", params=["x86-agent", "arm64-monoraw"])
def pair(request) -> tuple[str, SyncResult]:
    return request.param, sync(DATA / request.param / "host.dat", DATA / request.param / "guest.dat")


def told(recording: Recording, name: str) -> list[tuple[int, int, str]]:
    """(stamp, thread, text) of the events of one name, in order."""
    event = next(e for e in recording.formats.values() if e.name == name)
    rows = recording.rows(event)
    text = EventText(recording).render(event.id, rows)
    return sorted(zip(recording.stamp[rows].tolist(), recording.pid[rows].tolist(), text, strict=True))


def test_every_exit_of_real_hosts(pair):
    name, result = pair
    host, base = result.host, result.timeline.base
    kallsyms = sorted(
        (int(address, 16), symbol)
        for address, type_, symbol, *_ in (
            line.split() for line in result.guests[0].recording.kallsyms().decode().splitlines()
        )
        if type_ not in "aA" and not symbol.startswith("$")
    )
    starts = [address for address, _ in kallsyms]
    entries = told(host, "kvm_entry")
    expected: dict[int, list[tuple[int, int, str, set[str]]]] = {}
    for stamp, tid, text in told(host, "kvm_exit"):
        found = re.search(REASON[name], text)
        reason = found[2] if found[1] == "TRAP" else found[1]
        address = int(found[found.re.groups], 16)
        at = bisect_right(starts, address)
        names = {symbol for start, symbol in kallsyms[max(at - 40, 0) : at] if start == starts[at - 1]}
        if at == len(starts) or not at or address - starts[at - 1] > MAX_INSIDE:
            names = {UNNAMED}
        expected.setdefault(tid, []).append((stamp - base, reason, names if address >> 63 else {USER}))

    exits = vcpu_exits(result)

    assert {v.tid: len(v) for v in exits} == {tid: len(rows) for tid, rows in expected.items()}
    for vcpu in exits:
        index, functions = vcpu.functions()
        mine = [stamp - base for stamp, tid, _ in entries if tid == vcpu.tid]
        for n, (when, reason, names) in enumerate(expected[vcpu.tid]):
            assert (vcpu.when[n], vcpu.reasons[vcpu.reason[n]]) == (when, reason)
            assert functions[index[n]] in names
            following = bisect_right(mine, when)
            assert vcpu.took[n] == (mine[following] - when if following < len(mine) else -1)
        assert set(vcpu.level.tolist()) == {Level.OWN}


def test_the_guests_task_is_the_one_it_switched_to_last(pair):
    _, result = pair
    guest = result.timeline.machines[1]
    cpus = np.array([s.cpu for s in guest.recording.streams])[guest.recording.stream_of]
    event = guest.recording.format_named("sched", "sched_switch")
    checked = 0
    for vcpu in vcpu_exits(result):
        switches = guest.recording.rows(event)
        switches = switches[cpus[switches] == vcpu.guest_cpu]
        when = (guest.host_stamp[switches] - np.uint64(result.timeline.base)).view(np.int64)
        following = guest.recording.column(event, "next_pid", switches).tolist()
        end = (guest.host_stamp - np.uint64(result.timeline.base)).view(np.int64).max()
        for at, context, what in zip(vcpu.when.tolist(), vcpu.context.tolist(), vcpu.what.tolist(), strict=True):
            last = bisect_right(when.tolist(), at) - 1
            if context in (Context.TASK, Context.IDLE):
                assert last < 0 or what == following[last]
                checked += 1
            # after its last event nothing is known of the guest
            assert at < end or context == Context.UNKNOWN
    assert checked > 100


def test_addresses_that_are_in_no_function():
    guest = Recording.open(DATA / "x86-agent" / "guest.dat")
    symbols = GuestSymbols(guest)
    table = symbols._table
    inside = int(table.addresses[len(table) // 2])

    index, names = symbols.of(np.array([0x1000, inside, (1 << 64) - 1, (1 << 63) + 5, inside], np.uint64))

    assert [names[n] for n in index.tolist()] == [USER, names[index[1]], UNNAMED, UNNAMED, names[index[1]]]
    assert names[index[1]] not in (USER, UNNAMED)


def levels(recording: Recording, switches: dict[str, bool], tid: int) -> dict[int, Level]:
    """The level of each exit by its stamp: followed one by one, of recordings that lost nothing."""
    known = {e.name: e for e in recording.formats.values()}
    rows = np.concatenate([recording.rows(known.get(name)) for name in ("kvm_entry", "kvm_exit", *switches)])
    rows = rows[recording.pid[rows] == tid]
    rows = rows[np.lexsort((rows, recording.stamp[rows]))]
    out: dict[int, Level] = {}
    nested, at, came, went, left = False, None, False, False, False
    for row in rows.tolist():
        name, stamp = recording.event_name(int(recording.event_id[row])), int(recording.stamp[row])
        if name == "kvm_exit":
            at, came, went, left = stamp, nested, False, False
        elif name == "kvm_entry":
            if at is not None:
                beneath = Level.REFLECTED if left else Level.BELOW
                out[at] = beneath if came else Level.ENTERS if went else Level.OWN
            at = None
        elif name != "kvm_nested_vmexit":
            nested = switches[name]
            went, left = went or nested, left or not nested
    return out


X86 = {"kvm_nested_vmenter": True, "kvm_nested_vmexit": True, "kvm_nested_vmexit_inject": False}
ARM = {"kvm_nested_eret": True, "kvm_inject_nested_exception": False}


def x86_levels(path: Path) -> SyncResult:
    files, _ = nested_world(offsets=(-90_000_000, -90_000_000))
    return sync(*(file.write(path / f"l{n}.dat") for n, file in enumerate(files)), parents={"l2": "l1"})


def arm64_levels(path: Path) -> SyncResult:
    World(WorldOptions(arch="arm64", nested=1, nested_events=True, events=6000)).write(path)
    return sync(path / "host.dat", path / "guest.dat", path / "l2.dat", parents={"l2": "guest"})


@pytest.mark.parametrize(("make", "switches"), [(x86_levels, X86), (arm64_levels, ARM)])
def test_levels_of_worlds(tmp_path: Path, make, switches):
    result = make(tmp_path)
    counts: Counter[Level] = Counter()
    for vcpu in vcpu_exits(result):
        if vcpu.host != result.host_name:
            continue
        expected = levels(result.host, switches, vcpu.tid)
        for when, level in zip(vcpu.when.tolist(), vcpu.level.tolist(), strict=True):
            counts[Level(level)] += 1
            if level != Level.UNKNOWN:
                assert level == expected[when + result.timeline.base]
        # what its guest did is in another kernel
        beneath = np.isin(vcpu.level, (Level.BELOW, Level.REFLECTED))
        assert (vcpu.functions()[0][beneath] == -1).all()
    assert counts[Level.UNKNOWN] < sum(counts.values()) // 20
    assert all(counts[level] for level in (Level.OWN, Level.ENTERS, Level.REFLECTED)), counts


def test_without_events_of_switches_no_level_is_known(tmp_path: Path):
    World(WorldOptions(nested=1, events=4000)).write(tmp_path)
    result = sync(tmp_path / "host.dat", tmp_path / "guest.dat", tmp_path / "l2.dat", parents={"l2": "guest"})

    outer = [v for v in vcpu_exits(result) if v.guest == "guest"]

    assert {level for v in outer for level in v.level.tolist()} <= {Level.UNKNOWN, Level.OWN}
