"""``counterpoint simulate``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from counterpoint.commands import main as command
from counterpoint.simulate import WorldOptions, random_options
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording


def run(capsys, *args) -> tuple[int, str, str]:
    status = command.main(["simulate", *map(str, args)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_folder_of_recordings_and_their_truth(tmp_path, capsys):
    folder = tmp_path / "deep" / "world"

    status, out, err = run(capsys, folder, "--events", 3000, "--nested", 1, "--seed", 5)

    assert (status, err) == (0, "")
    assert sorted(p.name for p in folder.iterdir()) == ["guest.dat", "host.dat", "l2.dat", "truth.json"]
    truth = json.loads((folder / "truth.json").read_text())
    assert [g["parent"] for g in truth["guests"]] == ["host", "guest"]
    for file, count in truth["events"].items():
        assert len(Recording.open(folder / file)) == count
        assert f"{folder / file}: {count} events" in out


def test_json_is_the_truth(tmp_path, capsys):
    status, out, _ = run(capsys, tmp_path, "--events", 1000, "--json", "--pauses", 1)

    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "truth.json").read_text())
    assert json.loads(out)["options"] == {"events": 1000, "pauses": 1}


def test_files_are_not_overwritten_unless_forced(tmp_path, capsys):
    assert run(capsys, tmp_path, "--events", 1000)[0] == 0
    before = (tmp_path / "host.dat").read_bytes()

    status, out, err = run(capsys, tmp_path, "--events", 1000, "--seed", 1)

    assert (status, out) == (2, "")
    assert err == f"counterpoint: {tmp_path / 'host.dat'}: the file exists (--force overwrites it)\n"
    assert (tmp_path / "host.dat").read_bytes() == before
    assert run(capsys, tmp_path, "--events", 1000, "--seed", 1, "--force")[0] == 0
    assert (tmp_path / "host.dat").read_bytes() != before


def test_a_drawn_world(tmp_path, capsys):
    status, out, _ = run(capsys, tmp_path, "--random", "--seed", 12, "--json")

    assert status == 0
    assert json.loads(out)["options"] == json.loads(json.dumps(random_options(12).features()))

    status, _, err = run(capsys, tmp_path, "--random", "--vcpus", 3)
    assert status == 2
    assert "leave out vcpus" in err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--cpus", "0"], "cpus 0 is not in 1..1024"),
        (["--arch", "arm64", "--clock", "x86-tsc"], "arm64 has no x86-tsc clock"),
        (["--clock", "wall"], "clock 'wall' is none of"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(tmp_path, capsys, args, why):
    status, out, err = run(capsys, tmp_path / "none", *args)

    assert (status, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_every_option_has_a_flag_and_help():
    out = subprocess.run(
        [sys.executable, "-m", "counterpoint", "simulate", "--help"], capture_output=True, text=True, check=True
    ).stdout

    for field in fields(WorldOptions):
        flag = field.name.replace("_", "-")
        assert f"--{flag} " in out or f"--{flag}\n" in out or f"--no-{flag} " in out or f"--no-{flag}\n" in out
    assert "example:\n  counterpoint simulate world" in out


def test_help_needs_no_numpy():
    code = (
        "import sys; from counterpoint.commands.main import main\n"
        "try: main(['simulate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("flags", [[], ["--differ", "1000000"], ["--start", str((1 << 64) - 10**7)], ["--frac", "32"]])
def test_the_truth_is_in_what_is_proved(tmp_path, capsys, flags):
    run(capsys, tmp_path, "--events", 8000, *flags)
    truth = json.loads((tmp_path / "truth.json").read_text())

    result = sync(tmp_path / "host.dat", tmp_path / "guest.dat")

    assert result.is_sound
    for vcpu, true in zip(result.guests[0].vcpus, truth["guests"][0]["vcpus"], strict=True):
        assert vcpu.host_tid == true["host_tid"]
        (epoch,) = vcpu.epochs
        low, high = epoch.feasible
        assert low <= true["epochs"][0]["offset"] <= high
        assert high - low < 5000
