"""Guests that go from one host to another: simulated worlds, whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

import counterpoint
from counterpoint.clocks.counter import U64, Bools, to_signed
from counterpoint.clocks.pairs import ClockPair
from counterpoint.commands import main as command
from counterpoint.proof.verdicts import EpochProof
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.timeline.join import HostPairs, Join
from counterpoint.timeline.sync import SyncResult
from simulate.worlds import CASES

MIGRATE = {name: how for name, how in CASES.items() if name.startswith("migrate")}

SEEDS = [5, 7, 9, 24] if os.environ.get("HYPOTHESIS_PROFILE") != "explore" else list(range(40))
"""Random worlds whose proof takes no time; HYPOTHESIS_PROFILE=explore takes all, which may take an hour."""


def made(folder: Path, **how: object) -> tuple[World, SyncResult]:
    options: dict[str, object] = {"events": 1600, "seed": 1, "tsc2nsec": True} | how
    return written(World(WorldOptions(**options)), folder)  # type: ignore[arg-type]


def written(world: World, folder: Path) -> tuple[World, SyncResult]:
    world.write(folder)
    guests = [folder / guest.machine.file for guest in world.guests]
    return world, counterpoint.sync(folder / "host.dat", *guests, hosts=[folder / "host-b.dat"])


def true_place(world: World, join: Join) -> int:
    """The first host's stamp at the instant of the join."""
    a, b = (host.clock for host in world.hosts)
    zero = b.at_one(0)
    low, high = world.span
    while low < high:
        middle = (low + high) // 2
        if to_signed(b.at_one(middle) - zero) >= to_signed(join.at - zero):
            high = middle
        else:
            low = middle + 1
    return a.at_one(low)


def is_within(epoch: EpochProof, stamps: U64, true: U64) -> Bools:
    """Which events are where the map says, within its bound; a clock that was rounded down may be a unit off."""
    early, late = epoch.as_epoch().bound(stamps)
    return ((true - early).view(np.int64) >= -1) & ((late - true).view(np.int64) >= -1)


def check(world: World, result: SyncResult) -> int:
    """Nothing that is said of a world is wrong; returns how many events are proved to be on the second host."""
    count = 0
    for guest in result.guests:
        truth = next(g for g in world.truth["guests"] if g["file"] == f"{guest.name}.dat")
        for vcpu in guest.vcpus:
            entry = truth["vcpus"][vcpu.guest_cpu]
            tids = entry.get("host_tids", [entry["host_tid"]])
            events = world.events(guest.name, vcpu.guest_cpu)
            stay = np.r_[0, np.cumsum(events.host[1:] != events.host[:-1])] + events.host[:1]
            stream = next(s for s in guest.recording.streams if s.cpu == vcpu.guest_cpu and s.last > s.first)
            for index, epoch in enumerate(vcpu.epochs):
                if epoch.offset is None or not epoch.verdict.is_sound:
                    continue
                host = 0 if epoch.host in (None, result.host_name) else 1
                tid = vcpu.host_tid if epoch.host is None else epoch.host_tid
                stamp = guest.recording.stamp[epoch.rows]
                right = ~events.late[epoch.rows - stream.first]
                sure = right & epoch.is_sure(stamp)
                rows = epoch.rows[sure] - stream.first
                assert (events.host[rows] == host).all()
                assert {tids[number] for number in stay[rows]} <= {tid}
                assert is_within(epoch, stamp[sure], events.host_stamp[rows]).all()
                count += host * len(rows)
                # what may be of the epoch before or after is placed by one of the two
                beside = [e for e in vcpu.epochs[max(index - 1, 0) : index + 2] if e.host == epoch.host]
                rows, stamp = epoch.rows[right & ~sure] - stream.first, stamp[right & ~sure]
                true = events.host_stamp[rows]
                assert np.any([is_within(e, stamp, true) for e in beside if e.offset is not None], axis=0).all()
    for further in result.hosts:
        join = further.join
        if join is None:
            assert not result.is_sound
            continue
        true_stamp = true_place(world, join)
        assert to_signed(true_stamp - join.earliest) >= -1
        assert join.latest is None or to_signed(join.latest - true_stamp) >= -1
        assert join.not_before is None or to_signed(join.earliest - join.not_before) >= 0
    return count


@pytest.mark.parametrize("how", MIGRATE.values(), ids=MIGRATE)
def test_a_guest_is_proved_on_both_hosts(tmp_path, how):
    world, result = made(tmp_path, **({"events": 2500} | how))

    on_second = check(world, result)

    moved = result.guests[0]
    assert on_second == sum((world.events(moved.name, v.guest_cpu).host == 1).sum() for v in moved.vcpus) or any(
        e.verdict is counterpoint.Verdict.AMBIGUOUS for v in moved.vcpus for e in v.epochs
    )
    assert result.hosts[0].join is not None
    assert result.timeline.machines[1].name == "host-b"
    assert result.timeline.machines[1].placed.all()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_of_random_worlds_is_true(tmp_path, seed):
    options = random_options(seed)
    world = World(
        dataclasses.replace(options, migrate=True, nested=0, nested_khz=0, nested_events=False, vtimers=False)
    )

    world, result = written(world, tmp_path)

    check(world, result)


def test_a_guest_keeps_its_order_over_the_move(tmp_path):
    _, result = made(tmp_path, migrate=True)

    timeline = result.timeline
    machine = len(timeline.machines) - 1
    guest = timeline.machines[machine].recording
    rows = timeline.row[timeline.machine == machine]
    for stream in guest.streams:
        mine = rows[(rows >= stream.first) & (rows < stream.last)]
        assert (np.diff(mine) > 0).all()
    join = result.hosts[0].join
    assert join is not None
    assert to_signed(join.stamp - join.not_before) >= 0


def test_guests_that_stay_are_proved_as_without_the_other_host(tmp_path):
    world, result = made(tmp_path, migrate=True, vms=2)
    files = [tmp_path / guest.machine.file for guest in world.guests]

    alone = counterpoint.sync(tmp_path / "host.dat", *files)

    assert {e.host for v in result.guests[0].vcpus for e in v.epochs} == {None, "host-b"}
    for here, there in zip(result.guests[1].vcpus, alone.guests[1].vcpus, strict=True):
        assert (here.host_tid, here.claims) == (there.host_tid, there.claims)
        assert [(e.offset, e.feasible, e.verdict) for e in here.epochs] == [
            (e.offset, e.feasible, e.verdict) for e in there.epochs
        ]


def test_a_host_that_no_guest_went_to_is_left_out(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    world, _ = made(tmp_path, migrate=True)
    World(WorldOptions(events=600, seed=8, vcpus=1)).write(tmp_path / "other")
    guest, host = tmp_path / "other" / "guest.dat", tmp_path / "other" / "host.dat"

    status = command.main(["sync", str(host), str(guest), "--host", str(tmp_path / "host-b.dat"), "--json"])

    out = capsys.readouterr()
    report = json.loads(out.out)
    assert status == 1
    assert report["hosts"][0]["join"] is None
    assert report["timeline"]["unplaced"] == report["hosts"][0]["events"] == world.truth["events"]["host-b.dat"]
    assert "host-b cannot be related to host" in out.err


# -- clock pairs


def pairs_of(world: World, number: int, *, off_ns: int = 0, count: int = 3) -> list[ClockPair]:
    """Readings of a host's counter and of a wall clock that runs with the first host's counter."""
    counter = world.hosts[number].clock.counter
    hz = world.options.host_khz * 1000
    first = world.hosts[0].clock.counter
    out = []
    for t in np.linspace(world.span[0], world.span[1], count).astype(np.int64).tolist():
        at = np.array([t], np.int64)
        passed = to_signed(int(first.at(at)[0]) - int(first.at(np.array([0], np.int64))[0]))
        wall = 1_700_000_000_000_000_000 + passed * 1_000_000_000 // hz
        out.append(ClockPair(int(counter.at(at)[0]), wall + off_ns))
    return out


def test_clock_pairs_bound_the_join_on_both_sides(tmp_path):
    world, by_counter = made(tmp_path, migrate=True, khz_b=2_700_000)
    wall = HostPairs({"host": pairs_of(world, 0), "host-b": pairs_of(world, 1)}, 1000)

    result = counterpoint.sync(
        tmp_path / "host.dat", tmp_path / "guest.dat", hosts=[tmp_path / "host-b.dat"], wall=wall
    )

    join, other = result.hosts[0].join, by_counter.hosts[0].join
    assert join is not None and other is not None
    assert (join.source, join.verdict) == ("clock-pairs", counterpoint.Verdict.PROVED)
    assert join.latest is not None
    check(world, result)
    # the counter stood while the guest was moved: the pairs know for how long
    assert to_signed(join.earliest - other.stamp) > 0


def test_pairs_that_causality_contradicts_are_refuted(tmp_path):
    world, by_counter = made(tmp_path, migrate=True)
    wall = HostPairs({"host": pairs_of(world, 0), "host-b": pairs_of(world, 1, off_ns=-(10**9))})

    result = counterpoint.sync(
        tmp_path / "host.dat", tmp_path / "guest.dat", hosts=[tmp_path / "host-b.dat"], wall=wall
    )

    join, other = result.hosts[0].join, by_counter.hosts[0].join
    assert join is not None and other is not None
    assert "refuted" in join.notes[-1]
    assert dataclasses.replace(join, notes=()) == other


@pytest.mark.parametrize("tsc2nsec", [True, False])
def test_pairs_alone_join_two_hosts(tmp_path, tsc2nsec):
    world = World(WorldOptions(migrate=True, vms=2, khz_b=2_700_000, events=1000, seed=1, tsc2nsec=tsc2nsec))
    world.write(tmp_path)
    pairs = {"host": pairs_of(world, 0), "host-b": pairs_of(world, 1)}
    of_one = pairs | {"host": pairs["host"][:tsc2nsec]}

    result, without, doubted = (
        counterpoint.sync(tmp_path / "host.dat", tmp_path / "guest2.dat", hosts=[tmp_path / "host-b.dat"], wall=wall)
        for wall in (HostPairs(pairs, 1000), None, HostPairs(of_one))
    )

    join = result.hosts[0].join
    assert join is not None and result.is_sound
    assert (join.source, join.verdict, join.guests) == ("clock-pairs", counterpoint.Verdict.PROVED, ())
    assert result.timeline.unplaced == 0
    stamps = result.hosts[0].recording.stamp[[0, -1]]
    early, late = join.bound(stamps)
    assert late is not None
    for stamp, low, high in zip(stamps.tolist(), early.tolist(), late.tolist(), strict=True):
        true = true_place(world, dataclasses.replace(join, at=stamp))
        assert to_signed(true - low) >= -1 and to_signed(high - true) >= -1
        assert to_signed(high - low) < 10**6
    assert without.hosts[0].join is None and not without.is_sound
    assert "cannot be related" in without.warnings[-1]
    # one pair and a rate do as well
    assert (doubted.hosts[0].join is not None) is tsc2nsec


def test_one_pair_alone_does_not_tell_how_long_a_tick_is(tmp_path):
    world = World(WorldOptions(migrate=True, vms=2, events=1000, seed=1))
    world.write(tmp_path)
    wall = HostPairs({"host": pairs_of(world, 0)[:1], "host-b": pairs_of(world, 1)})

    result = counterpoint.sync(
        tmp_path / "host.dat", tmp_path / "guest2.dat", hosts=[tmp_path / "host-b.dat"], wall=wall
    )

    assert result.hosts[0].join is None
    assert any("one pair of host do not tell how long a tick is" in text for text in result.warnings)


# -- guests that come back


def test_a_return_bounds_the_other_host_on_both_sides(tmp_path, capsys):
    world, result = made(tmp_path, migrate=True, returns=1, vcpus=1)
    files = [str(tmp_path / name) for name in ("host.dat", "guest.dat", "host-b.dat")]

    check(world, result)

    join = result.hosts[0].join
    assert join is not None and join.latest is not None and join.not_after is not None
    assert [e.host for e in result.guests[0].vcpus[0].epochs] == [None, "host-b", "host"]
    assert command.main(["sync", *files[:2], "--host", files[2], "-o", str(tmp_path / "merged.pftrace")]) == 0
    said = capsys.readouterr().out
    assert "guest cpu 0: on host from guest stamp" in said and "there and back" in said.replace("\n", " ")
    # pairs that put the other host's events behind the return
    wall = HostPairs({"host": pairs_of(world, 0), "host-b": pairs_of(world, 1, off_ns=10**9)})
    doubted = counterpoint.sync(*files[:2], hosts=files[2:], wall=wall).hosts[0].join
    assert doubted is not None
    assert "refuted" in doubted.notes[-1] and "its return" in doubted.notes[-1]
    assert dataclasses.replace(doubted, notes=()) == join


# -- captures


def capture(world: World, folder: Path, **more: object) -> None:
    out = {
        "schema": 1,
        "host": "host.dat",
        "hosts": ["host-b.dat"],
        "guests": [{"file": guest.machine.file} for guest in world.guests],
    }
    (folder / "capture.json").write_text(json.dumps(out | more))


def test_a_capture_says_it_by_itself(tmp_path, capsys):
    world, expected = made(tmp_path, migrate=True)
    pairs = {
        name: [{"counter": p.counter, "realtime_ns": p.realtime_ns} for p in pairs_of(world, number)]
        for number, name in enumerate(("host", "host-b"))
    }
    capture(world, tmp_path, clock_pairs=pairs, realtime_within_ns=100)
    outputs = [tmp_path / "merged.txt", tmp_path / "merged.pftrace"]

    status = command.main(["sync", str(tmp_path), "--json", "-o", str(outputs[0]), "-o", str(outputs[1])])

    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["hosts"][0]["join"]["source"] == "clock-pairs"
    assert report["timeline"]["unplaced"] == 0
    assert {e.get("host") for v in report["guests"][0]["vcpus"] for e in v["epochs"]} == {None, "host-b"}
    assert len(outputs[0].read_text().splitlines()) == len(expected.timeline)
    assert b"host-b" in outputs[1].read_bytes()
    assert command.main(["verify", str(tmp_path)]) == 0
    assert "host-b: its stamp" in capsys.readouterr().out
    assert command.main(["show", str(tmp_path), "--machine", "host-b", "--last", "3"]) == 0
    assert capsys.readouterr().out.count("host-b:") == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no JSON object"),
        ("{", "no JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"schema": 2}', "only 1 is known"),
        ('{"schema": 1, "host": "../host.dat"}', "a file of this folder"),
        ('{"schema": 1, "host": "a", "hosts": {}}', "is no list"),
        ('{"schema": 1, "host": "a", "guests": [{"file": "g", "threads": {"x": 1}}]}', "a number is expected"),
        ('{"schema": 1, "host": "a", "guests": [{"file": "g", "claims": [{"cpu": 0}]}]}', "has no 'offset'"),
        ('{"schema": 1, "host": "a", "clock_pairs": {"a": [{"counter": -1}]}}', "no integer from 0"),
        ('{"schema": 1, "host": "a"}', "no guests"),
    ],
)
def test_a_capture_that_is_none_is_refused(tmp_path, capsys, text, says):
    (tmp_path / "capture.json").write_text(text)

    status = command.main(["sync", str(tmp_path)])

    err = capsys.readouterr().err
    assert status == 2
    assert says in err and err.count("\n") == 1


def test_a_folder_without_capture_json_is_refused(tmp_path, capsys):
    assert command.main(["verify", str(tmp_path)]) == 2
    assert "capture.json" in capsys.readouterr().err
