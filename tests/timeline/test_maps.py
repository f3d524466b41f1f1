"""The maps of a proof: true of every event of simulated worlds, and the same after they were saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.answers import Answers, Status
from counterpoint.clocks.counter import U64, Bools
from counterpoint.clocks.machines import Maps
from counterpoint.clocks.saved import maps_from
from counterpoint.errors import BadFileError
from counterpoint.outputs.report import sync_report
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.timeline.maps import maps_of, read_map
from counterpoint.timeline.sync import SyncResult, sync
from simulate.worlds import CASES
from writers.worlds import OffsetChange, tiny_pair

WORLDS = [
    *("plain", "differ", "pauses", "restores", "writes-silent", "hotplug", "wraps", "wraps-signed"),
    *("says-scaled", "local", "tsc-and-local", "tsc-and-mono", "kvm-clock-scaled", "boot-paused", "arm64-54mhz"),
    *("arm64-local", "arm64-hotplug", "nested", "nested-two", "nested-mono", "nested-arm64", "nested-two-on-one"),
    *("lose-uncounted", "late-and-early", "unrecorded", "no-kvm-events"),
]


def made(folder: Path, **options: Any) -> tuple[World, SyncResult]:
    world = World(WorldOptions(**options))
    truth = world.write(folder)
    files = [folder / g["file"] for g in truth["guests"]]
    parents = {Path(g["file"]).stem: g["parent"] for g in truth["guests"] if g["parent"] != "host"}
    return world, sync(folder / truth["host"], *files, parents=parents)


def holds(answers: Answers, truth: U64) -> Bools:
    """Which of the true stamps lie in the bound of their answer."""
    after = (truth - answers.earliest).view(np.int64) >= 0
    before = (answers.latest - truth).view(np.int64) >= 0
    return after & before


@pytest.mark.parametrize("name", WORLDS)
def test_every_event_of_a_world_lies_in_its_answer(tmp_path: Path, name: str) -> None:
    world, result = made(tmp_path, **CASES[name])
    maps = result.maps
    assert maps_from(json.loads(json.dumps(sync_report(result)))) == maps
    answered = 0
    for guest in maps.guests:
        for clock in guest.cpus:
            events = world.events(guest.name, clock.guest_cpu)
            for cpu in (clock.guest_cpu, None):
                there = maps.to_host(events.true_stamp, guest.name, cpu)
                is_answer = there.status <= Status.AMBIGUOUS
                assert holds(there, events.host_stamp)[is_answer].all()
                # the counter did show these
                assert not (there.status == Status.SKIPPED).any()
                answered += int(is_answer.sum())
            back = maps.to_guest(events.host_stamp, guest.name, clock.guest_cpu)
            assert holds(back, events.true_stamp)[back.status <= Status.AMBIGUOUS].all()
    assert answered > 0


def test_events_at_a_step_that_both_maps_hold_are_in_doubt(tmp_path: Path) -> None:
    # the first three events after the change lie in windows by the line before it, too
    world = World(random_options(114))
    truth = world.write(tmp_path)
    clock = sync(tmp_path / truth["host"], tmp_path / "guest.dat").maps.guests[0].cpus[1]
    events = world.events("guest", 1)
    (first, second) = clock.reaches
    after = events.stamp[events.epoch == 1]
    assert first.seen[1] < int(after[0]) <= second.seen[0]


def test_a_change_leaves_few_stamps_in_doubt(tmp_path: Path) -> None:
    for name in ("pauses", "restores", "arm64-54mhz"):
        world, result = made(tmp_path / name, **CASES[name])
        for clock in result.maps.guests[0].cpus:
            events = world.events("guest", clock.guest_cpu)
            answers = result.maps.to_host(events.true_stamp, "guest", clock.guest_cpu)
            doubtful = (answers.status == Status.AMBIGUOUS).sum()
            assert doubtful * 100 <= len(events.stamp)
            assert (answers.status <= Status.AMBIGUOUS).all()


def test_beyond_a_recording_that_shows_changes_it_answers_only_who_insists(tmp_path: Path) -> None:
    world, result = made(tmp_path, **CASES["pauses"])
    events = world.events("guest", 0)
    beyond = np.array([int(events.true_stamp[-1]) + 10**9, int(events.true_stamp[0]) - 10**9], np.uint64)
    answers = result.maps.to_host(beyond, "guest", 0)
    assert answers.status.tolist() == [Status.REFUSED] * 2
    assert "changed in the recording" in answers.why(0)
    insisted = result.maps.to_host(beyond, "guest", 0, extrapolate=True)
    assert insisted.status.tolist() == [Status.OUTSIDE] * 2


def test_beyond_a_recording_that_shows_none_it_answers_with_a_grown_bound(tmp_path: Path) -> None:
    world, result = made(tmp_path, **CASES["local"])
    events = world.events("guest", 0)
    last = int(events.true_stamp[-1])
    answers = result.maps.to_host(np.array([last, last + 10**9, last + 10**10], np.uint64), "guest", 0)
    assert answers.status.tolist() == [Status.INSIDE, Status.OUTSIDE, Status.OUTSIDE]
    widths = (answers.latest - answers.earliest).tolist()
    assert widths[0] < widths[1] < widths[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> SyncResult:
    """A change that KVM recorded, and one more write after all guest events."""
    folder = tmp_path_factory.mktemp("pair")
    change = OffsetChange(-5_000_000, 0)
    host, guest, _ = tiny_pair(windows=700, guest_events=2000, change=change)
    return sync(host.write(folder / "host.dat"), guest.write(folder / "guest.dat"))


def test_a_change_that_kvm_announced_is_exact(recorded: SyncResult) -> None:
    (clock,) = recorded.maps.guests[0].cpus
    change = clock.reaches[1].began_at
    assert change is not None
    assert clock.reaches[0].began_at is None
    answers = recorded.maps.to_guest(np.array([change - 1, change], np.uint64), "guest", 0)
    assert answers.epoch.tolist() == [0, 1]


def test_a_map_that_is_not_sound_is_refused_with_the_reason(tmp_path: Path) -> None:
    host, guest, _ = tiny_pair(windows=300, guest_events=900)
    files = host.write(tmp_path / "host.dat"), guest.write(tmp_path / "guest.dat")
    result = sync(*files, offsets=["0=17"])
    assert "refuted" in result.maps.guests[0].cpus[0].refusal
    _, other, _ = tiny_pair(seed=9, start=10**15, windows=300, guest_events=900)
    result = sync(files[0], other.write(tmp_path / "other.dat"))
    assert "is unbounded (no offset puts its events" in result.maps.guests[0].cpus[0].refusal
    answers = result.maps.to_host(np.array([1, 2], np.uint64))
    assert answers.status.tolist() == [Status.REFUSED] * 2


def test_a_claim_that_ends_later_ends_the_answers(tmp_path: Path) -> None:
    host, guest, truth = tiny_pair(windows=300, guest_events=900, claims=False)
    files = host.write(tmp_path / "host.dat"), guest.write(tmp_path / "guest.dat")
    (epoch,) = truth.epochs[0]
    last = max(event.host for event in truth.guest_events[0])
    ends = last + 10**6
    claims = tmp_path / "claims"
    claims.write_text(json.dumps({"cpu": 0, "offset": epoch[1], "host_to": ends, "source": "my-vmm"}))
    maps = sync(*files, claims_file=claims).maps
    wanted = np.array([last + 10**5, ends + 10**5], np.uint64)
    answers = maps.to_guest(wanted, "guest", 0)
    assert answers.status.tolist() == [Status.OUTSIDE, Status.REFUSED]
    assert f"changed at host stamp {ends}" in answers.why(1)


class TestFiles:
    def test_a_saved_map_is_read_back(self, tmp_path: Path, recorded: SyncResult) -> None:
        path = tmp_path / "map.json"
        path.write_text(json.dumps(sync_report(recorded)))
        assert read_map(path) == maps_of(recorded)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"", "no map"),
            (b"{", "no map"),
            (b"[1]", "is no object"),
            (b'{"schema": 1}', "host is missing"),
            (b"\xff\xfe\x00", "no map"),
            (b"[" * 100_000, "nested too deep"),
            (b'{"schema": ' + b"9" * 5000 + b"}", "no map"),
        ],
    )
    def test_what_is_none_is_said_to_be(self, tmp_path: Path, text: bytes, said: str) -> None:
        path = tmp_path / "map.json"
        path.write_bytes(text)
        with pytest.raises(BadFileError, match=said):
            read_map(path)

    def test_a_file_that_is_not_there_or_too_big(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(BadFileError, match="cannot be read"):
            read_map(tmp_path / "none")
        with pytest.raises(BadFileError, match="cannot be read"):
            read_map(tmp_path)
        monkeypatch.setattr("counterpoint.timeline.maps.MAX_FILE", 5)
        (tmp_path / "map.json").write_text("123456")
        with pytest.raises(BadFileError, match="6 bytes"):
            read_map(tmp_path / "map.json")


def test_maps_are_a_value(recorded: SyncResult) -> None:
    assert isinstance(recorded.maps, Maps)
    assert recorded.maps is recorded.maps
