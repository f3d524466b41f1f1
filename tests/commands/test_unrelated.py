"""Recordings that nothing relates: it is said why, the status is 1, and no event of that guest is on any timeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

from counterpoint.commands.main import main
from counterpoint.simulate import World, WorldOptions
from counterpoint.traces.recording import Recording
from writers.worlds import tiny_pair


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of worlds, each made once. ``guest_seen``, ``host_seen``: from when to when they are recorded."""

    @cache
    def made(guest_seen: tuple[float, float] = (0, 1), host_seen: tuple[float, float] = (0, 1), **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("world")
        world = World(WorldOptions(**({"events": 900} | options)))
        for machine, seen in ((world.guests[0].machine, guest_seen), (world.hosts[0].machine, host_seen)):
            machine.seen = (int(seen[0] * world.span[1]), int(seen[1] * world.span[1]))
        world.write(folder)
        return folder

    return made


NEVER = (2, 3)
LOCAL: dict[str, Any] = {"arch": "arm64", "clock": "local"}


@dataclass(frozen=True)
class Case:
    """A host and a guest recording out of two worlds, and words that say why they cannot be related."""

    host: dict[str, Any]
    guest: dict[str, Any]
    words: str
    argv: tuple[str, ...] = ()


NO_WINDOW = "no thread's run windows can hold its events: do the recordings overlap in time, and is this its host?"
CHANCE = "intervals of offsets hold its events"

CASES: dict[str, Case] = {
    "no overlap": Case(
        no := {"guest_seen": (0.0, 0.4), "host_seen": (0.6, 1.0)}, no, "none of its events is known to be",
    ),
    "no overlap, arm64": Case(arm := no | {"arch": "arm64"}, arm, "2 threads can hold its events"),
    "no overlap, in ns": Case(cut := no | {"clock": "mono", "events": 300}, cut, NO_WINDOW),
    "no overlap, and trace-cmd's word": Case(
        said := no | {"time_shift": "true", "guest_option": True}, said, "no event falls where the host saw",
    ),
    "no overlap, arm64, and trace-cmd's word": Case(
        said := arm | {"time_shift": "true", "guest_option": True}, said, "no event falls where the host saw",
    ),
    "no overlap, and a number typed": Case(no, no, CHANCE, ("--offset", "0=-123456789", "--offset", "1=0")),
    "hardly any overlap": Case(few := {"guest_seen": (0.0, 0.52), "host_seen": (0.5, 1.0)}, few, CHANCE),
    "unrelated": Case({"seed": 1}, {"seed": 2}, NO_WINDOW),
    "unrelated, and a number typed": Case({"seed": 2}, {"seed": 3}, NO_WINDOW, ("--offset", "0=1234567")),
    "unrelated, trace-cmd's word is about another host": Case(
        {"seed": 3}, {"seed": 4, "time_shift": "true"}, "its TIME_SHIFT was made with the recording of trace id",
    ),
    "unrelated, arm64": Case({"arch": "arm64", "seed": 4}, {"arch": "arm64", "seed": 5}, NO_WINDOW),
    "unrelated, arm64 by local": Case(LOCAL | {"seed": 5}, LOCAL | {"seed": 6}, NO_WINDOW),
    "unrelated, TSC scaled": Case({"guest_khz": 3_000_000, "seed": 6}, {"guest_khz": 3_000_000, "seed": 7}, NO_WINDOW),
    "unrelated, in ns": Case(mono := {"clock": "mono", "seed": 7, "events": 400}, mono | {"seed": 8}, NO_WINDOW),
    "unrelated, two clocks": Case(
        {"seed": 8, "tsc2nsec": True, "events": 400}, {"clock": "local", "seed": 9}, NO_WINDOW,
    ),
    "no word of how long a tick is": Case(
        {"seed": 8, "timers": False}, {"clock": "local", "seed": 8}, "how long a tick of host is is not known",
    ),
    "unrelated, sched_switch alone": Case({"kvm_events": False, "seed": 10}, {"seed": 11}, "sched_switch"),
    "another architecture": Case({}, {"arch": "arm64"}, "KVM runs guests of its own architecture"),
    # one seed: but for the architecture they would fit
    "another architecture, one clock": Case(
        {"clock": "mono"}, {"clock": "mono", "arch": "arm64"}, "guest is of aarch64, host of x86_64",
    ),
    "an empty guest": Case({}, {"guest_seen": NEVER}, "guest: the recording holds no events"),
    "an empty host": Case({"host_seen": NEVER}, {}, "host: the recording holds no events"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_and_nothing_is_merged(
    world: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = CASES[name]
    files = [str(world(**case.host) / "host.dat"), str(world(**case.guest) / "guest.dat")]

    check(files, case.words, tmp_path, capsys, case.argv)


@pytest.mark.parametrize(
    "name", ["no overlap", "no overlap, and a number typed", "another architecture", "an empty guest"]
)
def test_verify_and_show_say_the_same(
    world: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = CASES[name]
    files = [str(world(**case.host) / "host.dat"), str(world(**case.guest) / "guest.dat")]

    assert main(["verify", *files, *case.argv]) == 1
    captured = capsys.readouterr()
    assert case.words in " ".join((captured.err + captured.out).split())
    assert main(["show", *files, *case.argv, "--machine", "guest"]) == 1
    assert capsys.readouterr().out == ""


def check(
    files: list[str], words: str, into: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...] = ()
) -> None:
    """By sync, verify and show, as text and as JSON, and by every file that sync writes."""
    outputs = [str(into / f"out{ending}") for ending in (".txt", ".pftrace", ".json")]
    status = main(["sync", *files, *argv, "--json", *(word for path in outputs for word in ("-o", path))])
    captured = capsys.readouterr()
    assert status == 1
    report = json.loads(captured.out)
    (guest,) = report["guests"]
    assert all(epoch["verdict"] not in ("proved", "derived") for vcpu in guest["vcpus"] for epoch in vcpu["epochs"])
    notes = [note for vcpu in guest["vcpus"] for note in vcpu["notes"]]
    reasons = [claim["reason"] for vcpu in guest["vcpus"] for claim in vcpu["claims"]]
    assert words in " ".join([*report["warnings"], *notes, *filter(None, reasons)])
    unrelated = [w for w in report["warnings"] if "cannot be related" in w or "no events" in w]
    assert unrelated or all(vcpu["notes"] for vcpu in guest["vcpus"])
    assert report["timeline"]["unplaced"] == len(Recording.open(files[1]))

    nothing_of_the_guest_is_in(files, into)
    nothing_is_converted_by(into / "out.json", files[1], capsys)


def nothing_of_the_guest_is_in(files: list[str], into: Path) -> None:
    machines = [line.split(":")[0].strip() for line in (into / "out.txt").read_text().splitlines()]
    assert machines == ["host"] * len(Recording.open(files[0]))
    trace = Trace()
    trace.ParseFromString((into / "out.pftrace").read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    guests = {uuid for uuid, track in tracks.items() if (track.name or track.process.process_name).startswith("guest")}
    below = {uuid for uuid, track in tracks.items() if track.parent_uuid in guests}
    used = {packet.track_event.track_uuid for packet in trace.packet if packet.HasField("track_event")}
    assert used or not machines
    assert not used & (guests | below)


def nothing_is_converted_by(map_file: Path, guest: str, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording.open(guest)
    stamps = [str(stamp) for stamp in recording.stamp[:: max(1, len(recording) // 5)].tolist()] or ["1234567890123"]
    for argv in (["--cpu", "0"], ["--extrapolate"]):
        status = main(["convert", "--map", str(map_file), *argv, *stamps, "--json"])
        out, err = capsys.readouterr()
        # an empty recording has no CPUs that one could ask for
        assert status == 1 or (status == 2 and not len(recording)), err
        assert all(json.loads(line)["verdict"] == "refused" for line in out.splitlines())


@pytest.mark.parametrize("clock", ["counter", "uptime"])
def test_clocks_that_tell_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: str) -> None:
    host, guest, _ = tiny_pair(clock=clock)
    files = [str(host.write(tmp_path / "host.dat")), str(guest.write(tmp_path / "guest.dat"))]

    check(files, f"recorded in clock '{clock}'", tmp_path, capsys)


@pytest.fixture(scope="module")
def nested(world: Callable[..., Path]) -> Path:
    return world(nested=1, events=2500, seed=3)


def placed(report: dict[str, Any], files: list[Path]) -> int:
    """Events on the timeline that are not of the first recording."""
    return int(report["timeline"]["events"]) - len(Recording.open(files[0]))


@pytest.mark.parametrize("parent", [None, "host", "other"])
def test_a_guest_s_guest_below_the_wrong_machine(
    world: Callable[..., Path], nested: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, parent: str | None
) -> None:
    """L2 below L0, and below a guest of that host that is not its L1."""
    other = world(nested=1, events=2500, seed=4)
    right = main(
        ["sync", *(str(nested / f"{n}.dat") for n in ("host", "guest", "l2")), "--parent", "l2=guest", "--json"]
    )
    assert right == 0
    whole = json.loads(capsys.readouterr().out)
    files = [nested / "host.dat", nested / "guest.dat", other / "l2.dat" if parent == "other" else nested / "l2.dat"]
    argv = [] if parent is None else ["--parent", f"l2={'guest' if parent == 'other' else parent}"]

    status = main(["sync", *map(str, files), *argv, "--json", "-o", str(tmp_path / "m.txt")])

    report = json.loads(capsys.readouterr().out)
    assert whole["timeline"]["unplaced"] == 0
    assert status == 1
    assert placed(report, files) == len(Recording.open(files[1]))
    assert not any(line.split(":")[0].strip() == "l2" for line in (tmp_path / "m.txt").read_text().splitlines())
    l2 = next(g for g in report["guests"] if g["name"] == "l2")
    assert all(vcpu["notes"] for vcpu in l2["vcpus"])


def test_below_a_guest_that_is_not_related_to_its_host(
    world: Callable[..., Path], nested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """L2 is L1's, but what L1 is to this host nobody knows: neither is on its timeline."""
    files = [world(seed=12) / "host.dat", nested / "guest.dat", nested / "l2.dat"]

    status = main(["sync", *map(str, files), "--parent", "l2=guest", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert status == 1
    assert placed(report, files) == 0


def test_another_host_that_the_guest_was_never_on(
    world: Callable[..., Path], nested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [nested / "host.dat", nested / "guest.dat"]
    other = world(seed=13) / "host.dat"

    status = main(["sync", *map(str, files), "--host", str(other), "--json"])

    report = json.loads(capsys.readouterr().out)
    assert status == 1
    assert placed(report, files) == len(Recording.open(files[1]))
    assert any("cannot be related to" in w and "no guest is proved to have gone" in w for w in report["warnings"])
