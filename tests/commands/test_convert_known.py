"""``convert`` by what a capture and the proof know: wall time by clock pairs, arm64's K, hosts that a guest went to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.clocks.arch_counter import scale_of
from counterpoint.commands.main import main
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.stamps import Kind, read_stamps

NOW = 1_700_000_000_000_000_000


class Captured:
    """A capture folder of a simulated world, with pairs of the host's counter and of a wall clock that is true."""

    def __init__(self, folder: Path, pairs: int, **options: Any) -> None:
        self.world = World(WorldOptions(**options))
        self.truth = self.world.write(folder)
        self.folder, self.map = str(folder), str(folder / "map.json")
        self.counter = self.truth["clocks"]["host"]["counter"]
        end = self.world.span[1]
        read = [
            {"counter": self.count(t), "realtime_ns": NOW + self.ns(t), "bound_ns": 5, "source": "my-vmm"}
            for t in ([end // 2] if pairs == 1 else [end * n // (pairs - 1) for n in range(pairs)])
        ]
        capture = {"schema": 1, "host": "host.dat", "guests": [{"file": "guest.dat"}], "clock_pairs": {"host": read}}
        (folder / "capture.json").write_text(json.dumps(capture))

    def count(self, t: int) -> int:
        return int(self.counter["start"]) + (t * int(self.counter["mult"]) >> int(self.counter["shift"]))

    def ns(self, t: int) -> int:
        units = self.truth["khz"] << int(self.counter["shift"])
        return t * 10**6 // units

    def events(self, cpu: int, count: int) -> list[tuple[int, int, int]]:
        """(guest stamp, host stamp, wall time) of some events of a guest CPU."""
        found = self.world.events("guest", cpu)
        rows = range(0, len(found.t), max(1, len(found.t) // count))
        return [(int(found.true_stamp[r]), int(found.host_stamp[r]), NOW + self.ns(int(found.t[r]))) for r in rows]


def converted(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    status = main(["convert", *map(str, argv), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return [json.loads(line) for line in captured.out.splitlines()]


def wall(text: str) -> int:
    read = read_stamps([text], "ns", is_ns=True)
    assert read.kind[0] == Kind.WALL
    return int(read.lo.view(np.int64)[0] + read.hi.view(np.int64)[0] + 1) // 2


@pytest.mark.parametrize("pairs", [1, 3])
def test_wall_time_by_a_capture_s_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: int) -> None:
    captured = Captured(tmp_path, pairs, events=2000, tsc2nsec=True)
    assert main(["sync", captured.folder, "-o", captured.map]) == 0
    events = captured.events(1, 20)
    for source in ([captured.folder], ["--map", captured.map]):
        records = converted(capsys, *source, "--cpu", 1, *(stamp for stamp, _, _ in events))
        for record, (_, host, time) in zip(records, events, strict=True):
            assert record["wall_source"] == "my-vmm"
            assert record["earliest"] <= host <= record["latest"]
            assert wall(record["wall_earliest"]) <= time <= wall(record["wall_latest"])
            assert wall(record["wall_latest"]) - wall(record["wall_earliest"]) < 30_000


def test_pairs_that_are_typed_come_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured = Captured(tmp_path, 1, events=1500)
    stamp, host, time = captured.events(0, 2)[0]

    (record,) = converted(capsys, captured.folder, "--cpu", 0, stamp, "--realtime", f"{host}={time}")

    assert record["wall_source"] == "given, my-vmm"
    assert abs(wall(record["wall"]) - time) < 2000


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    made = Captured(tmp_path_factory.mktemp("arm64"), 2, arch="arm64", events=8000, vtimers=True, latency="emulated")
    assert main(["sync", made.folder, "-o", made.map]) == 0
    return made


class TestArm64:
    def k(self, captured: Captured, machine: str) -> int:
        guest = captured.truth["guests"][0]["clock"]
        clock = guest if machine == "guest" else captured.truth["clocks"]["host"]
        return int(clock["segments"][0]["k"])

    def counts(self, captured: Captured, stamps: list[int]) -> list[int]:
        """What the guest's counter said at stamps."""
        scale = scale_of(captured.truth["cntfrq"])
        assert scale is not None
        return [int(t) for t in scale.to_ticks(np.array(stamps, np.uint64), self.k(captured, "guest")).tolist()]

    def test_values_of_the_counter_by_the_k_that_was_found(
        self, captured: Captured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        events = captured.events(0, 20)
        counts = self.counts(captured, [stamp for stamp, _, _ in events])
        for source in ([captured.folder], ["--map", captured.map]):
            records = converted(capsys, *source, "--cpu", 0, "--unit", "counter", *counts)
            for record, (_, host, _) in zip(records, events, strict=True):
                assert record["earliest"] <= host <= record["latest"]
                assert record["bound"] < 20_000
            back = converted(capsys, *source, "--cpu", 0, "--to", "guest", *(host for _, host, _ in events))
            for record, count in zip(back, counts, strict=True):
                first, last = record["counter"]
                assert first <= count <= last

    def test_the_host_s_k_is_asked_for_and_then_kept(
        self, captured: Captured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stamp, _, time = captured.events(0, 2)[0]
        assert main(["convert", captured.folder, str(stamp), "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["wall"] is None
        assert "the clock pairs of host do not tell its wall time" in said.err and "constant K" in said.err
        report = json.loads(Path(captured.map).read_text())
        assert report["realtime"] == [] and any("clock pairs of host" in w for w in report["warnings"])

        k = self.k(captured, "host")
        assert main(["sync", captured.folder, "--k", f"host={k}", "-o", str(tmp_path / "m.json")]) == 0
        for source in ([captured.folder, "--k", f"host={k}"], ["--map", tmp_path / "m.json"]):
            (record,) = converted(capsys, *source, "--cpu", 0, stamp)
            assert wall(record["wall_earliest"]) <= time <= wall(record["wall_latest"])
            assert record["counter"][0] <= record["counter"][1]

    def test_another_k_or_frequency_is_refused(self, captured: Captured, capsys: pytest.CaptureFixture[str]) -> None:
        wrong = self.k(captured, "guest") + (1 << 60)
        for argv, words in (
            (["--guest-k", wrong], f"--guest-k {wrong}: "),
            (["--frequency", 25_000_000], "the counter of guest runs at 24000000 Hz"),
        ):
            capsys.readouterr()
            assert main(["convert", "--map", captured.map, "5", *map(str, argv)]) == 2
            assert words in capsys.readouterr().err


class TestMoved:
    """A guest on two hosts: each host's own time for what was there, and nothing for what was not."""

    @pytest.mark.parametrize(
        "options",
        [{"khz_b": 2_700_000, "tsc2nsec": True, "seed": 4}, {"arch": "arm64", "seed": 5}, {"pauses": 1, "seed": 6}],
        ids=["rates", "arm64", "paused"],
    )
    def test_every_stamp_on_the_host_that_it_was_on(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
    ) -> None:
        world = World(WorldOptions(migrate=True, events=2500, **options))
        world.write(tmp_path)
        files = [str(tmp_path / name) for name in ("host.dat", "guest.dat", "host-b.dat")]
        assert main(["sync", *files[:2], "--host", files[2], "-o", str(tmp_path / "m.json")]) == 0
        found = world.events("guest", 0)
        rows = np.arange(0, len(found.t), 29)
        for number, on in enumerate(([], ["--on", "host-b"])):
            for more in ([], ["--extrapolate"]):
                capsys.readouterr()
                stamps = map(str, found.true_stamp[rows].tolist())
                argv = ["--map", str(tmp_path / "m.json"), "--cpu", "0", *on, *more, *stamps, "--json"]
                assert main(["convert", *argv]) == 1
                records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
                answered = 0
                for record, row in zip(records, rows.tolist(), strict=True):
                    if record["stamp"] is None:
                        assert "guest CPU 0 " in record["reason"] or "was set over it" in record["reason"]
                        continue
                    assert found.host[row] == number
                    assert record["earliest"] <= int(found.host_stamp[row]) <= record["latest"]
                    answered += 1
                # what neither host saw is of none
                assert answered > 0.8 * (found.host[rows] == number).sum()
        # and back, from the recordings themselves
        there = np.flatnonzero(found.host == 1)[5:-5:29]
        records = converted(
            capsys, *files[:2], "--host", files[2], "--on", "host-b", "--cpu", 0, "--to", "guest",
            *found.host_stamp[there].tolist(),
        )  # fmt: skip
        for record, row in zip(records, there.tolist(), strict=True):
            assert record["earliest"] <= int(found.true_stamp[row]) <= record["latest"]

    def test_a_host_that_is_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        World(WorldOptions(events=1500)).write(tmp_path)
        argv = ["convert", str(tmp_path / "host.dat"), str(tmp_path / "guest.dat"), "5", "--on", "host-b"]
        assert main(argv) == 2
        assert "no host is called 'host-b' (there are: host)" in capsys.readouterr().err
