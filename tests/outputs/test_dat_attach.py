"""Copies that trace-cmd shows in sync: every guest event inside a run window of its vCPU, by what trace-cmd prints."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs import dat_attach, dat_shift
from counterpoint.outputs.dat_attach import attach
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS, full_size_recordings
from outputs.dat_files import inside_windows

DATA = Path(__file__).parent.parent / "data"
PAIR = DATA / "x86-agent"


def count(result, files):
    """Events of each guest inside, outside and where nobody knows, by trace-cmd."""
    vcpus = {
        (guest.name, vcpu.guest_cpu): (guest.parent, vcpu.host_tid)
        for guest in result.guests
        for vcpu in guest.vcpus
        if vcpu.host_tid is not None
    }
    names = [m.name for m in result.timeline.machines]
    return inside_windows({n: next(f.path for f in files if f.machine == n) for n in names}, vcpus)


@pytest.fixture(scope="module")
def pair():
    return sync(PAIR / "host.dat", PAIR / "guest.dat")


@pytest.mark.peer
def test_every_guest_event_lies_in_a_run_window_in_trace_cmd(pair, tmp_path):
    files = attach(pair, tmp_path, overwrite=False)

    inside, outside, unknown = count(pair, files)["guest"]
    assert (outside, inside + unknown) == (0, len(pair.guests[0].recording))
    assert inside > 4000
    assert [f.corrected for f in files] == ["", ""]


def test_the_events_are_byte_for_byte_the_same(pair, tmp_path):
    for file in attach(pair, tmp_path, overwrite=False):
        source = (PAIR / file.path.name).read_bytes()
        copy = file.path.read_bytes()
        # but for the eight bytes that say where the options are
        assert sum(a != b for a, b in zip(source, copy, strict=False)) <= 8
        assert len(copy) > len(source)


def test_the_options_say_who_is_whose_guest(pair, tmp_path):
    host, guest = (Recording.open(f.path).options for f in reversed(attach(pair, tmp_path, overwrite=False)))

    assert [(g.trace_id, g.vcpus) for g in host.guests] == [(guest.trace_id, ((0, 191), (1, 192)))]
    assert guest.time_shift is not None
    assert guest.time_shift.peer_trace_id == host.trace_id
    assert [[s.offset for s in cpu] for cpu in guest.time_shift.cpus] == [[81892957611]] * 2
    assert guest.tsc2nsec == host.tsc2nsec
    again = sync(tmp_path / "host.dat", tmp_path / "guest.dat")
    assert again.is_sound
    assert np.array_equal(again.timeline.host_ticks, pair.timeline.host_ticks)


WORLDS = {
    "epochs": ({"pauses": 2}, ""),
    "differ": ({"differ": 10**10, "tsc2nsec": True, "guest_option": True}, ""),
    "scaled": ({"guest_khz": 1_500_000, "frac": 32, "time_shift": "true"}, "scaled"),
    "fitted": ({"clock": "mono", "slews": 2, "drift_ppm": 20.0}, "fitted"),
    "v6": ({"version": 6, "compression": "none", "lose": 3}, ""),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", WORLDS)
def test_worlds(tmp_path, name):
    how, wanted = WORLDS[name]
    world = World(WorldOptions(**({"events": 2500, "seed": 1} | how)))
    world.write(tmp_path)
    result = sync(*[tmp_path / m.file for m in world.machines])
    (tmp_path / "out").mkdir()

    files = attach(result, tmp_path / "out", overwrite=False)

    assert wanted in files[0].corrected
    assert bool(wanted) == bool(files[0].corrected)
    shift = Recording.open(files[0].path).options.time_shift
    assert (shift is None) == bool(wanted)
    assert (shift is not None and len(shift.cpus[0]) > 2) == (name == "epochs")
    inside, outside, _ = count(result, files)["guest"]
    assert outside == 0
    assert inside > len(result.guests[0].recording) // 2


def test_nothing_is_replaced_without_force(pair, tmp_path, capsys):
    files = [str(PAIR / name) for name in ("host.dat", "guest.dat")]

    assert main(["sync", *files, "--attach", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["guest.dat", "host.dat"]
    assert main(["sync", *files, "--attach", str(tmp_path / "out")]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert main(["sync", *files, "--attach", str(PAIR), "--force"]) == 2
    assert "is one of the recordings" in capsys.readouterr().err
    with pytest.raises(UsageError, match="one of the recordings"):
        attach(pair, PAIR, overwrite=True)


@pytest.mark.peer
def test_the_count_finds_a_wrong_shift(pair, tmp_path, monkeypatch):
    def wrong(machine, peer):
        shift = dat_shift.time_shift_of(machine, peer)
        return replace(shift, cpus=tuple((replace(s[0], offset=s[0].offset + 500_000),) for s in shift.cpus))

    monkeypatch.setattr(dat_attach, "time_shift_of", wrong)
    files = attach(pair, tmp_path, overwrite=False)

    assert count(pair, files)["guest"][1] > 100


def _pairs():
    """(folder, truth) of the recordings: one of them, all with COUNTERPOINT_FULL=1."""
    if not RECORDINGS.is_dir():
        return full_size_recordings()
    folders = sorted(path.parent for path in RECORDINGS.glob("*/truth.json"))
    whole = os.environ.get("COUNTERPOINT_FULL") == "1"
    return [pytest.param(f, id=f.name) for f in folders if whole or f.name == "x86-offset-change"]


@pytest.mark.peer
@pytest.mark.recordings
@pytest.mark.parametrize("folder", _pairs())
def test_every_recording(tmp_path, folder):
    """docs/outputs-dat.md has the table of all."""
    guests = json.loads((folder / "truth.json").read_text())["guests"]
    host = folder / ("host.dat" if (folder / "host.dat").exists() else "l0.dat")
    parents = {Path(g["file"]).stem: g["parent"] for g in guests}
    result = sync(host, *[folder / g["file"] for g in guests], parents=parents)

    found = count(result, attach(result, tmp_path, overwrite=False))

    for guest in result.guests:
        inside, outside, unknown = found.get(guest.name, (0, 0, 0))
        assert outside == 0
        assert inside > 0 or not result.is_sound
        assert inside + unknown <= len(guest.recording)
