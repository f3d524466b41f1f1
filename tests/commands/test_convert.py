"""``counterpoint convert`` as it is typed: values, files, what is refused, and real recordings."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.timeline.maps import read_map
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.worlds import OffsetChange, Truth, tiny_pair

ENOUGH: dict[str, Any] = {"windows": 300, "guest_events": 900, "vcpus": 2}


@dataclass
class World:
    """A pair of recordings, the map of them, and what is true of them."""

    host: str
    guest: str
    map: str
    truth: Truth

    def event(self, cpu: int, at: int) -> tuple[int, int]:
        """(guest stamp, host stamp) of an event."""
        event = self.truth.guest_events[cpu][at]
        return event.guest, event.host


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(tmp_path_factory.mktemp("convert"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> World:
    change = OffsetChange(-5_000_000, 0)
    return made(tmp_path_factory.mktemp("changed"), windows=700, guest_events=2000, vcpus=1, change=change)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(tmp_path_factory.mktemp("arm"), arch="arm64", vcpus=1)


def made(folder: Path, **how: Any) -> World:
    host, guest, truth = tiny_pair(**(ENOUGH | how))
    out = World(
        str(host.write(folder / "host.dat")), str(guest.write(folder / "guest.dat")), str(folder / "m.json"), truth
    )
    assert main(["sync", out.host, out.guest, "-o", out.map, "--force"]) in (0, 1)
    return out


@dataclass
class Said:
    """What the command said."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: object, stdin: str | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> Said:
        capsys.readouterr()
        if stdin is not None and monkeypatch is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main(["convert", *map(str, argv)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Said(status, captured.out, captured.err)

    return call


def refused(said: Said, *words: str) -> None:
    assert said.status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


class TestValues:
    def test_one_value_from_recordings_and_from_their_map(self, world: World, run: Any) -> None:
        guest, host = world.event(1, 400)
        for source in ([world.host, world.guest], ["--map", world.map]):
            said = run(*source, "--cpu", 1, guest, hex(guest), "--json")
            assert said.status == 0
            for record in said.records:
                assert record["verdict"] == "inside"
                assert record["earliest"] <= host <= record["latest"]
                assert record["stamp"] == host
                assert record["bound"] == record["latest"] - record["earliest"]
                assert (record["guest"], record["cpu"], record["unit"], record["epoch"]) == ("guest", 1, "ticks", 0)
                assert record["wall"] is None
            first, second = said.records
            assert first["stamp"] == second["stamp"]

    def test_and_back(self, world: World, run: Any) -> None:
        guest, host = world.event(0, 100)
        (record,) = run("--map", world.map, "--to", "guest", "--cpu", 0, host, "--json").records
        assert record["earliest"] <= guest <= record["latest"]
        assert (record["verdict"], record["stamp"]) == ("inside", guest)
        # ns of the host are ticks of it, whichever have them
        (there,) = run("--map", world.map, "--cpu", 0, guest, "--json").records
        (back,) = run("--map", world.map, "--to", "guest", "--cpu", 0, "--unit", "ns", there["ns"], "--json").records
        assert back["earliest"] <= guest <= back["latest"]

    def test_without_a_cpu_the_bound_is_that_of_all(self, world: World, run: Any) -> None:
        guest, host = world.event(1, 400)
        (both,) = run("--map", world.map, guest, "--json").records
        (one,) = run("--map", world.map, guest, "--cpu", 1, "--json").records
        assert both["earliest"] <= one["earliest"] <= host <= one["latest"] <= both["latest"]
        assert both["cpu"] is None

    def test_the_table_has_every_digit(self, world: World, run: Any) -> None:
        guest, host = world.event(1, 400)
        said = run("--map", world.map, "--cpu", 1, guest, "--realtime", f"{host}=1795579690500000000")
        header, row = said.out.splitlines()
        assert "host stamp (ticks)" in header
        assert f"{guest} " in row
        assert f" {host} " in row
        assert "2026-11-25T04:08:10.500000000Z" in row
        assert row.rstrip().endswith("inside")

    def test_options_may_stand_between_values(self, world: World, run: Any) -> None:
        (a, _), (b, _) = world.event(0, 100), world.event(0, 200)
        said = run(a, "--cpu", 0, b, "--map", world.map, a, "--json")
        assert [r["value"] for r in said.records] == [str(a), str(b), str(a)]

    def test_beyond_the_recordings_it_is_outside_and_said(self, world: World, run: Any) -> None:
        guest, _ = world.event(0, -1)
        said = run("--map", world.map, "--cpu", 0, guest + 10**9, "--json")
        assert said.records[0]["verdict"] == "outside"
        assert said.status == 0
        assert "1 value is outside" in said.err

    def test_wall_time_both_ways(self, world: World, run: Any) -> None:
        guest, host = world.event(0, 100)
        pair = ["--realtime", f"{host}=2026-11-25T04:08:10.500000000Z"]
        (record,) = run("--map", world.map, *pair, "--cpu", 0, guest, "--json").records
        assert record["wall_earliest"] <= "2026-11-25T04:08:10.500000000Z" <= record["wall_latest"]
        assert record["wall_source"] == "given"
        (back,) = run(
            "--map", world.map, *pair, "--to", "guest", "--cpu", 0, "2026-11-25T04:08:10.500000000Z", "--json"
        ).records
        assert back["earliest"] <= guest <= back["latest"]
        (same,) = run("--map", world.map, *pair, "--to", "guest", "--cpu", 0, "@1795579690.500000000", "--json").records
        assert same["stamp"] == back["stamp"]

    def test_a_clock_that_was_set_between_two_pairs_is_said_to_have_been(self, world: World, run: Any) -> None:
        guest, host = world.event(0, 100)
        pairs = ["--realtime", f"{host - 10**6}=10000000000", "--realtime", f"{host + 10**6}=20000000000"]
        said = run("--map", world.map, *pairs, "--cpu", 0, guest, "--json")
        assert "was set between" in said.err
        back = run("--map", world.map, *pairs, "--to", "guest", "--cpu", 0, "@15.000000000")
        assert back.status == 1
        assert "was set" in back.out


class TestChanges:
    def test_a_stamp_that_two_epochs_show_has_both_answers(self, changed: World, run: Any) -> None:
        epochs = changed.truth.epochs[0]
        after = next(e for e in changed.truth.guest_events[0] if e.host > epochs[1][0] + 10**6)
        twice = after.guest
        said = run("--map", changed.map, "--cpu", 0, twice, "--json")
        (record,) = said.records
        if record["verdict"] == "inside":
            pytest.skip("this world has no stamp twice")
        assert said.status == 1
        assert record["verdict"] == "ambiguous"
        assert record["earliest"] <= after.host <= record["latest"]
        assert any(o["earliest"] <= after.host <= o["latest"] for o in record["others"])
        assert len(record["others"]) == 2
        table = run("--map", changed.map, "--cpu", 0, twice)
        assert table.out.count("ambiguous") == 2

    def test_beyond_them_it_refuses_until_told_to(self, changed: World, run: Any) -> None:
        guest, _ = changed.event(0, -1)
        said = run("--map", changed.map, "--cpu", 0, guest + 10**10)
        assert said.status == 1
        assert "refused" in said.out
        assert "changed in the recording" in said.out
        told = run("--map", changed.map, "--cpu", 0, guest + 10**10, "--extrapolate", "--json")
        assert told.status == 0
        assert told.records[0]["verdict"] == "outside"


class TestCsv:
    def rows(self, text: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(text)))

    def file(self, path: Path, world: World, **more: str) -> Path:
        lines = ["name,cpu,tsc"]
        for cpu in (0, 1):
            lines += [f"event {at},{cpu},{world.event(cpu, at)[0]}" for at in range(100, 130)]
        path.write_text("\n".join(lines) + "\n" + more.get("extra", ""))
        return path

    def test_a_column_gets_columns(self, world: World, run: Any, tmp_path: Path) -> None:
        source, target = self.file(tmp_path / "in.csv", world), tmp_path / "out.csv"
        said = run("--map", world.map, "--csv", source, "--column", "tsc", "--cpu-column", "cpu", "-o", target)
        assert (said.status, said.out, said.err) == (0, "", "")
        rows = self.rows(target.read_text())
        assert len(rows) == 60
        for at, row in enumerate(rows):
            _, host = world.event(int(row["cpu"]), 100 + at % 30)
            assert row["name"] == f"event {100 + at % 30}"
            assert int(row["host_earliest"]) <= host <= int(row["host_latest"])
            assert (row["verdict"], row["epoch"]) == ("inside", "0")
        again = run("--map", world.map, "--csv", source, "--column", "3", "--cpu-column", "2")
        assert again.out == target.read_text()

    def test_standard_input_and_no_header(
        self, world: World, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "".join(f"{world.event(0, at)[0]};x\n" for at in (5, 6))
        said = run(
            "--map", world.map, "--csv", "-", "--column", "1", "--no-header", "--delimiter", ";", "--cpu", 0,
            stdin=text, monkeypatch=monkeypatch,
        )  # fmt: skip
        rows = [line.split(";") for line in said.out.splitlines()]
        assert [int(r[2]) for r in rows] == [world.event(0, at)[1] for at in (5, 6)]
        assert rows[0][1] == "x"

    def test_as_json_each_value_has_its_line(self, world: World, run: Any, tmp_path: Path) -> None:
        source = self.file(tmp_path / "in.csv", world)
        said = run("--map", world.map, "--csv", source, "--column", "tsc", "--cpu-column", "cpu", "--json")
        assert [r["line"] for r in said.records] == list(range(2, 62))

    def test_cells_that_are_no_values_are_said_with_their_lines_and_stay(
        self, world: World, run: Any, tmp_path: Path
    ) -> None:
        extra = 'bad,0,12x\nshort\n\nlong,0,5,6\nno cpu,seven,5\nother,9,5\n"two\nlines",0,17x\n'
        source = self.file(tmp_path / "in.csv", world, extra=extra)
        said = run("--map", world.map, "--csv", source, "--column", "tsc", "--cpu-column", "cpu")
        assert said.status == 1
        found = re.findall(r"line (\d+): (.*)", said.err)
        assert [int(line) for line, _ in found] == [62, 63, 65, 66, 67, 69]
        assert "'12x' is no stamp" in found[0][1]
        assert "4 cells" in found[2][1]
        assert "'seven' is no CPU" in found[3][1]
        rows = list(csv.reader(io.StringIO(said.out)))
        assert len(rows) == 61 + 7
        assert rows[61][:3] == ["bad", "0", "12x"]
        assert rows[61][-1] == rows[62][-1] == "malformed"
        assert len(rows[62]) == len(rows[0])
        assert rows[64] == ["long", "0", "5", "6"]

    def test_of_many_the_rest_are_counted(self, world: World, run: Any, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("tsc\n" + "x\n" * 50)
        said = run("--map", world.map, "--csv", path, "--column", "tsc", "--cpu", 0)
        assert said.err.count("is no stamp") == 20
        assert "30 more lines have no value" in said.err

    def test_bytes_that_are_no_text_stay_as_they_are(self, world: World, run: Any, tmp_path: Path) -> None:
        source, target = tmp_path / "in.csv", tmp_path / "out.csv"
        source.write_bytes(b"name,tsc\n\xff\xfe," + str(world.event(0, 5)[0]).encode() + b"\n")
        assert run("--map", world.map, "--csv", source, "--column", "tsc", "--cpu", 0, "-o", target).status == 0
        assert target.read_bytes().splitlines()[1].startswith(b"\xff\xfe,")

    @pytest.mark.parametrize(
        ("text", "flags", "words"),
        [
            ("", ["--column", "tsc"], ["is empty"]),
            ("a,b\n1,2\n", ["--column", "tsc"], ["no such column", "a, b"]),
            ("a,b\n1,2\n", ["--column", "3"], ["no such column"]),
            ("a,a\n1,2\n", ["--column", "a"], ["several columns"]),
            ("a,verdict\n1,2\n", ["--column", "a"], ["verdict already"]),
            ('a\n"1\n', ["--column", "a"], ["no CSV"]),
            ("a\n" + "1" * (1 << 21), ["--column", "a"], ["line 2", "no CSV"]),
        ],
    )
    def test_what_is_wrong_with_a_file_is_said(
        self, world: World, run: Any, tmp_path: Path, text: str, flags: list[str], words: list[str]
    ) -> None:
        path = tmp_path / "in.csv"
        path.write_text(text)
        said = run("--map", world.map, "--csv", path, *flags, "--cpu", 0, "-o", tmp_path / "out.csv")
        refused(said, str(path), *words)
        assert not (tmp_path / "out.csv").exists()

    def test_no_file_is_overwritten_unless_told(self, world: World, run: Any, tmp_path: Path) -> None:
        source, target = self.file(tmp_path / "in.csv", world), tmp_path / "out.csv"
        target.write_text("mine")
        flags = ["--map", world.map, "--csv", source, "--column", "tsc", "--cpu", 0]
        refused(run(*flags, "-o", target), "exists")
        refused(run(*flags, "-o", source, "--force"), "one of the inputs")
        refused(run(*flags, "-o", world.map, "--force"), "one of the inputs")
        refused(run(*flags, "-o", tmp_path / "no" / "out.csv"), "does not exist")
        assert run(*flags, "-o", target, "--force").status == 0
        assert target.read_text().startswith("name,")


class TestDmesg:
    def local(self, path: Path, arm: World, arch: str) -> str:
        """The map with its guest said to be recorded in local."""
        report = json.loads(Path(arm.map).read_text())
        report["guests"][0] |= {"clock": "local", "arch": arch}
        path.write_text(json.dumps(report))
        return str(path)

    def line(self, stamp: int, offset: int = 0) -> str:
        us = (stamp + offset) // 1000
        return f"[{us // 10**6:5}.{us % 10**6:06}] eth0: link up"

    def test_a_line_of_an_arm64_guest(self, arm: World, run: Any, tmp_path: Path) -> None:
        guest, host = arm.event(0, 300)
        (record,) = run("--map", self.local(tmp_path / "m", arm, "aarch64"), self.line(guest), "--json").records
        assert record["verdict"] == "inside"
        assert record["earliest"] <= host <= record["latest"]
        (plain,) = run("--map", self.local(tmp_path / "m", arm, "aarch64"), guest, "--json").records
        assert record["bound"] >= plain["bound"] + 999

    def test_a_line_of_an_x86_guest_needs_the_constant_that_its_log_tells(
        self, arm: World, run: Any, tmp_path: Path
    ) -> None:
        guest, host = arm.event(0, 300)
        saved = self.local(tmp_path / "m", arm, "x86_64")
        said = run("--map", saved, self.line(guest, -15_437_267), "--json")
        assert said.status == 1
        assert "Marking stable" in said.records[0]["reason"]
        said = run("--map", saved, self.line(guest, -15_437_267), "--json", "--sched-clock-offset", "-15437267")
        assert said.records[0]["earliest"] <= host <= said.records[0]["latest"]
        log = tmp_path / "dmesg"
        mark = "[    1.061448] sched_clock: Marking stable (1046001012, 9563)->(1061447842, -15437267)"
        log.write_text(f"{mark}\n{self.line(guest, -15_437_267)}\nmore of it\n")
        said = run("--map", saved, "--dmesg", log)
        first, second, third = said.out.splitlines()
        stamp, bound, verdict, text = second.split("\t")
        assert abs(int(stamp) - host) < int(bound.split()[0])
        assert (verdict, text) == ("inside", self.line(guest, -15_437_267))
        assert first.endswith(mark)
        assert third == "-\tmore of it"
        assert [r["line"] for r in run("--map", saved, "--dmesg", log, "--json").records] == [1, 2]

    def test_other_clocks_say_why_not(self, arm: World, run: Any) -> None:
        said = run("--map", arm.map, "[   12.345678] eth0: link up")
        assert said.status == 1
        assert "nothing ties" in said.out


class TestRequests:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ([], ["no values"]),
            (["5"], ["recordings"]),
            (["--map", "MAP", "5", "host.dat"], ["host.dat", "--map"]),
            (["--map", "MAP", "5", "--offset", "0=5"], ["--offset"]),
            (["--map", "MAP", "5", "--no-claims"], ["--no-claims"]),
            (["--map", "MAP", "5", "--csv", "x", "--column", "a"], ["one of them"]),
            (["--map", "MAP", "--csv", "x"], ["--column"]),
            (["--map", "MAP", "5", "--column", "x"], ["--csv"]),
            (["--map", "MAP", "5", "--cpu-column", "x"], ["--csv"]),
            (["--map", "MAP", "5", "--cpu", "9"], ["--cpu 9", "0, 1"]),
            (["--map", "MAP", "5", "--guest", "vm"], ["'vm'", "guest"]),
            (["--map", "MAP", "5", "-o", "x"], ["--csv"]),
            (["--map", "MAP", "--dmesg", "x", "--to", "guest"], ["--dmesg"]),
            (["--map", "MAP", "--csv", "x", "--column", "1", "--delimiter", ",,"], ["--delimiter"]),
            (["--map", "MAP", "--csv", "/nonexistent", "--column", "1"], ["/nonexistent"]),
            (["--map", "/nonexistent", "5"], ["/nonexistent"]),
            (["--map", "MAP", "5", "--realtime", "5"], ["--realtime 5", "STAMP=TIME"]),
            (["--map", "MAP", "5", "--realtime", "x=5"], ["--realtime x=5"]),
            (["--map", "MAP", "5", "--realtime", "5=9", "--realtime", "5=9"], ["--realtime", "one stamp"]),
            (["--map", "MAP", "5", "--guest-k", "5"], ["--frequency"]),
            (["--map", "MAP", "5", "--guest-k", "5", "--frequency", "24000000"], ["x86-tsc"]),
            (["--map", "MAP", "12.5"], ["ticks"]),
            (["--map", "MAP", "99999999999999999999"], ["64 bits"]),
        ],
    )
    def test_what_makes_no_sense_is_said_in_one_sentence(
        self, world: World, run: Any, flags: list[str], words: list[str]
    ) -> None:
        refused(run(*(world.map if f == "MAP" else f for f in flags)), *words)

    def test_a_map_that_is_none(self, world: World, run: Any, tmp_path: Path) -> None:
        path = tmp_path / "map.json"
        for text, word in (("{}", "schema"), ("[", "no map"), ('{"schema": 1, "host": 5}', "host is no object")):
            path.write_text(text)
            refused(run("--map", path, 5), str(path), word)
        report = json.loads(Path(world.map).read_text())
        del report["guests"][0]["vcpus"][0]["epochs"][0]["guest_seen"]
        path.write_text(json.dumps(report))
        refused(run("--map", path, 5), "guests[0].vcpus[0].epochs[0].guest_seen is missing")

    def test_names_in_a_map_steer_no_terminal(self, world: World, run: Any, tmp_path: Path) -> None:
        report = json.loads(Path(world.map).read_text())
        report["guests"][0]["vcpus"][0]["conversion"]["refused"] = "\x1b[31mred"
        path = tmp_path / "map.json"
        path.write_text(json.dumps(report))
        said = run("--map", path, "--cpu", 0, 5)
        assert "\x1b" not in said.out
        assert "red" in said.out

    def test_help_needs_no_numpy(self) -> None:
        code = (
            "import sys; sys.argv = ['counterpoint', 'convert', '--help']\n"
            "from counterpoint.commands.main import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "assert 'numpy' not in sys.modules and 'rich' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "examples:" in done.stdout


# -- real recordings


def recorded(name: str) -> tuple[str, str]:
    folder = RECORDINGS / name
    if not folder.is_dir():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    return str(folder / "host.dat"), str(folder / "guest.dat")


MARK = re.compile(r"mark cpu=(\d+) i=\d+ tsc=(\d+)")
COUNT = re.compile(r"cnt=(\d+) raw=(\d+)")


@cache
def marks(guest: str, pattern: re.Pattern[str]) -> list[tuple[int, int, int, int]]:
    """(CPU, first number, second or 0, the event's stamp) of what an application wrote into the guest's trace."""
    recording = Recording.open(guest)
    event = recording.format_named("ftrace", "print")
    assert event is not None
    rows = recording.rows(event)
    cpus = np.array([s.cpu for s in recording.streams])[recording.stream_of[rows]]
    out = []
    for row, cpu, text in zip(rows.tolist(), cpus.tolist(), recording.batch(event, rows).text("buf"), strict=True):
        found = pattern.search(text)
        if found:
            numbers = [int(n) for n in found.groups()]
            out.append((cpu, numbers[-1] if pattern is MARK else numbers[0], numbers[-1], int(recording.stamp[row])))
    assert len(out) > 20
    return out


@pytest.mark.recordings
@pytest.mark.parametrize("name", ["x86-busy", "x86-offset-change", "x86-guest-wrmsr", "x86-lossy"])
def test_what_an_application_read_of_its_tsc_is_where_its_mark_is(name: str, tmp_path: Path, run: Any) -> None:
    host, guest = recorded(name)
    truth = json.loads((RECORDINGS / name / "truth.json").read_text())
    source, target = tmp_path / "marks.csv", tmp_path / "out.csv"
    found = marks(guest, MARK)
    source.write_text("cpu,tsc,stamp\n" + "".join(f"{cpu},{tsc},{stamp}\n" for cpu, tsc, _, stamp in found))
    said = run(host, guest, "--csv", source, "--column", "tsc", "--cpu-column", "cpu", "--extrapolate", "-o", target)
    vcpus = {v["guest_cpu"]: v["epochs"] for g in truth["guests"] for v in g["vcpus"]}
    tally: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(target.read_text())):
        tally[row["verdict"]] = tally.get(row["verdict"], 0) + 1
        tsc, epochs = int(row["tsc"]), vcpus[int(row["cpu"])]
        # the instants at which some epoch shows this value: of two one may be a time when the vCPU did not run
        true = [
            tsc - e["offset"] for e in epochs
            if (e["from_host"] or 0) <= tsc - e["offset"] < (e["to_host"] or 1 << 63)
        ]  # fmt: skip
        held = [int(row["host_earliest"]) <= t <= int(row["host_latest"]) for t in true]
        assert any(held)
        assert all(held) or (row["verdict"] == "inside" and len(true) == 2)
    assert tally.get("inside", 0) > len(found) // 2, tally
    assert said.status == (0 if set(tally) <= {"inside", "outside"} else 1)


@pytest.mark.recordings
def test_an_arm64_guests_counter_is_host_ticks_exactly(tmp_path: Path, run: Any) -> None:
    host, guest = recorded("arm64-monoraw")
    truth = json.loads((RECORDINGS / "arm64-monoraw" / "truth.json").read_text())

    def k_of(known: dict[str, int]) -> int:
        return ((known["raw_sec"] * 10**9) << known["shift"]) + known["raw_snsec"] - known["cycle_last"] * known["mult"]

    cntvoff = truth["guests"][0]["vcpus"][0]["epochs"][0]["cntvoff"]
    found = marks(guest, COUNT)[:200]
    flags = ["--unit", "counter", "--guest-k", k_of(truth["guest_mono_raw"]), "--host-k", k_of(truth["host_mono_raw"])]
    values = [count for _, count, _, _ in found]
    said = run(host, guest, *flags, *values, "--json")
    for count, record in zip(values, said.records, strict=True):
        assert record["verdict"] in ("inside", "outside")
        first, last = record["counter"]
        assert first <= count + cntvoff <= last
    # mono_raw was read just before the counter
    stamps = run(host, guest, *(raw for _, _, raw, _ in found), "--json").records
    for at, record in enumerate(said.records):
        assert -1_000_000 <= record["stamp"] - stamps[at]["stamp"] < 50_000_000
    wrong = run(host, guest, *flags[:3], k_of(truth["guest_mono_raw"]) + (1 << 25), values[0])
    refused(wrong, "no tick of the counter")
    # the guest's timers tell its K, not to the tick
    (alone,) = run(host, guest, "--unit", "counter", values[0], "--json").records
    assert alone["earliest"] <= said.records[0]["stamp"] <= alone["latest"]
    assert alone["bound"] > said.records[0]["bound"] and "counter" not in alone


@pytest.mark.recordings
def test_a_refuted_claim_leaves_no_map_unless_claims_are_left_out(run: Any) -> None:
    host, guest = recorded("x86-agent-monoraw")
    stamp = 105_000_000_000
    said = run(host, guest, "--cpu", 1, stamp)
    assert said.status == 1
    assert "--no-claims" in said.out
    (record,) = run(host, guest, "--cpu", 1, "--no-claims", stamp, "--json").records
    low, high = -19_208_450_000, -19_208_300_000
    assert record["verdict"] == "inside"
    assert record["earliest"] <= stamp - low
    assert record["latest"] >= stamp - high


@pytest.mark.long
@pytest.mark.recordings
def test_three_levels_from_a_saved_map(tmp_path: Path, run: Any) -> None:
    folder = RECORDINGS / "arm64-nested"
    if not folder.is_dir():
        pytest.skip("no folder of recordings (COUNTERPOINT_RECORDINGS)")
    truth = json.loads((folder / "truth.json").read_text())
    path = tmp_path / "map.json"
    files = [str(folder / f"{level}.dat") for level in ("l0", "l1", "l2")]
    assert main(["sync", *files, "--parent", "l2=l1", "-o", str(path)]) == 0
    maps = read_map(path)
    apart = int(truth["l2_in_hardware"]["H_minus_L2_ns"])
    events = Recording.open(folder / "l2.dat").stamp
    answers = maps.to_host(events, "l2", 0)
    assert (answers.status <= 1).all()
    true = events + np.uint64(apart)
    assert ((true - answers.earliest).view(np.int64) >= -2).all()
    assert ((answers.latest - true).view(np.int64) >= -2).all()
    (record,) = run("--map", path, "--guest", "l2", "--cpu", 0, int(events[len(events) // 2]), "--json").records
    assert record["verdict"] == "inside"
