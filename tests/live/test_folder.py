"""A capture folder in parts: who finds its recorder dead reads it all the same, and a hostile one does no harm."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from counterpoint.commands.main import main
from counterpoint.errors import BadFileError, UsageError
from counterpoint.live import folder, tracedat, tracefs
from counterpoint.live.folder import CaptureFolder, Parts
from counterpoint.traces.capture import Capture
from counterpoint.traces.recording import Recording
from live.fake_tracefs import cpu_files, fake_tracefs
from writers.worlds import tiny_pair

PARTS = Parts("local [x86-tsc]\n", 2, 77, "Linux here", (5, 9), {7: "seven"})


@pytest.fixture
def left(tmp_path, monkeypatch):
    """A folder as a recorder leaves it that is killed, and what it had recorded: host and guest."""
    monkeypatch.setitem(tracedat._SOURCE, "kallsyms", tmp_path / "kallsyms")
    made = CaptureFolder.create(tmp_path / "capture", overwrite=False)
    made.content["recorder"] = {"pid": os.getpid(), "started": 1}
    made.save()
    firsts = []
    for stem, world in zip(("host", "vm1"), tiny_pair(version=6), strict=False):
        first = Recording.open(world.write(tmp_path / f"{stem}.dat"))
        root = fake_tracefs(tmp_path / f"tracefs-{stem}", first)
        folder.begin(made.path, stem, tracedat.head_of(root), PARTS)
        for cpu, file in cpu_files(tmp_path / f"pages-{stem}", first).items():
            shutil.copy(file, folder.pages(made.path, stem, cpu))
        firsts.append(first)
    return made.path, firsts


def test_what_a_killed_recorder_left_is_put_together(left):
    path, firsts = left
    assert folder.is_unfinished(path)

    said = folder.assemble(path)

    assert len(said) == 2 and all("its recorder was killed" in line for line in said)
    assert not folder.is_unfinished(path)
    assert sorted(os.listdir(path)) == ["capture.json", "host.dat", "vm1.dat"]
    capture = Capture.open(path)
    assert [guest.file.name for guest in capture.guests] == ["vm1.dat"]
    for file, first in zip((capture.host, capture.guests[0].file), firsts, strict=True):
        found = Recording.open(file)
        assert found.stamp.tolist() == first.stamp.tolist() and found.warnings == []
        assert found.cmdlines == {7: "seven"}
        assert (found.clock, found.options.trace_id, found.options.uname) == ("x86-tsc", 77, "Linux here")
    assert json.loads((path / "capture.json").read_text())["state"] == "recovered"


def test_the_commands_that_read_do_it_by_themselves(left, capsys):
    path, firsts = left

    assert main(["info", str(path), "--json"]) == 0

    out, err = capsys.readouterr()
    assert err.count("was put together from its parts") == 2
    assert [each["events"] for each in json.loads(out)["recordings"]] == [len(first) for first in firsts]
    assert main(["sync", str(path), "--json"]) in (0, 1)
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out.count("trace.dat v6") == 2


def test_a_host_alone_is_shown(left, capsys):
    path, firsts = left
    for name in os.listdir(path):
        if name.startswith("vm1"):
            (path / name).unlink()

    assert main(["show", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(firsts[0])
    assert main(["sync", str(path)]) == 2
    assert "names no guests" in capsys.readouterr().err


def test_pages_that_were_being_written_are_left_out(left):
    path, firsts = left
    with open(folder.pages(path, "host", 0), "ab") as file:
        file.write(bytes(4000))

    folder.assemble(path)

    assert len(Recording.open(path / "host.dat")) == len(firsts[0])


def test_one_that_is_still_recorded_is_not_touched(left):
    path, _ = left
    content = json.loads((path / "capture.json").read_text())
    content["recorder"] = {"pid": os.getpid(), "started": tracefs.started(os.getpid())}
    (path / "capture.json").write_text(json.dumps(content))
    before = sorted(os.listdir(path))

    with pytest.raises(UsageError, match=f"is being recorded by process {os.getpid()}"):
        folder.assemble(path)

    assert sorted(os.listdir(path)) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("host.dat.parts", "[]", "no JSON object"),
        ("host.dat.parts", "{", "no JSON"),
        ("host.dat.parts", "[" * 100000, "no JSON|larger"),
        ("host.dat.parts", "x" * (17 << 20), "larger"),
        ("host.dat.parts", '{"clock": 5, "cpus": 2, "trace_id": 1}', "not as described"),
        ("host.dat.parts", '{"clock": "local", "cpus": 1e9, "trace_id": 1}', "not as described"),
        ("host.dat.parts", '{"clock": "local", "cpus": 70000, "trace_id": 1}', "not as described"),
        ("host.dat.parts", '{"clock": "local", "cpus": 2, "trace_id": 1, "names": {"-1": "x"}}', "names"),
        ("host.dat.head", "nothing of the kind", "no head"),
        ("host.dat.head", "", "no head"),
        ("capture.json", "[]", "no JSON object"),
    ],
)
def test_a_folder_from_elsewhere_is_refused_with_its_reason(left, name, content, said):
    path, _ = left
    (path / name).write_text(content)

    with pytest.raises(BadFileError, match=said):
        folder.assemble(path)
    assert not (path / "host.dat").exists()


def test_parts_that_lead_out_of_the_folder_are_refused(left, tmp_path):
    path, _ = left
    head = path / "host.dat.head"
    head.rename(tmp_path / "elsewhere")
    head.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadFileError, match="is a link"):
        folder.assemble(path)

    head.unlink()
    (tmp_path / "elsewhere").rename(head)
    (path / "host.dat.cpu0").unlink()
    (path / "host.dat.cpu0").symlink_to("/dev/zero")
    folder.assemble(path)
    assert {s.cpu for s in Recording.open(path / "host.dat").streams if s.last > s.first} == {1}


def test_a_head_is_missing(left):
    path, _ = left
    (path / "vm1.dat.head").unlink()

    with pytest.raises(BadFileError, match=r"vm1\.dat\.head: cannot be read"):
        folder.assemble(path)


def test_a_folder_is_not_overwritten(tmp_path):
    path = tmp_path / "a" / "capture"
    CaptureFolder.create(path, overwrite=False).save()
    for name in ("host.dat", "vm.dat.cpu3", "vm.dat.head", "vm.dat.parts", "notes.txt"):
        (path / name).write_text("x")

    with pytest.raises(UsageError, match="holds a capture"):
        CaptureFolder.create(path, overwrite=False)
    made = CaptureFolder.create(path, overwrite=True)
    assert os.listdir(path) == ["notes.txt"]

    made.save()
    made.discard()
    assert os.listdir(path) == ["notes.txt"]
    with pytest.raises(UsageError, match="holds no capture"):
        CaptureFolder.create(path, overwrite=True)
    with pytest.raises(UsageError, match="is no folder"):
        CaptureFolder.create(path / "notes.txt", overwrite=True)


def test_a_file_that_cannot_be_written_leaves_the_parts(left, monkeypatch):
    path, _ = left

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = sorted(os.listdir(path))
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_dat", full)
        with pytest.raises(OSError, match="No space"):
            folder.assemble(path)
    assert sorted(os.listdir(path)) == before
    assert len(folder.assemble(path)) == 2
