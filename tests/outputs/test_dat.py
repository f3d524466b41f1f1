"""The timeline as one trace.dat file: read back by our reader and by trace-cmd, event for event."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs.dat import DatFormat, write_dat
from counterpoint.outputs.text import EventText
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from counterpoint.traces.write import TraceFile as TraceFileOut
from outputs.dat_files import check_same_events, check_same_texts, check_trace_cmd, report
from writers.events import Event, FieldSpec
from writers.tracedat import Buffer, TraceFile

DATA = Path(__file__).parent.parent / "data"
KINDS = [DatFormat(7, "zstd"), DatFormat(6)]
LONG = 1 << 40


@pytest.fixture(scope="module")
def timeline():
    folder = DATA / "x86-agent"
    return sync(folder / "host.dat", folder / "guest.dat").timeline


@pytest.mark.peer
@pytest.mark.parametrize("how", KINDS, ids=lambda how: f"v{how.version}")
def test_a_real_host_and_its_guest(timeline, tmp_path, how):
    path = tmp_path / "out.dat"

    write_dat(timeline, path, overwrite=False, how=how)

    read = check_same_events(timeline, path)
    assert (read.version, read.compression) == (how.version, "none" if how.version == 6 else "zstd")
    host = timeline.machines[0].recording
    assert (read.clock, read.options.tsc2nsec) == (host.clock, host.options.tsc2nsec)
    check_trace_cmd(timeline, path)
    if how.version == 7:
        check_same_texts(timeline, read)


@pytest.mark.peer
@pytest.mark.parametrize(
    "how",
    [
        {"vms": 2, "vcpus": 3, "cpus": 2, "lose": 4, "lose_guest": 2},
        {"nested": 1, "nested_events": True},
        {"guest_khz": 1_500_000, "frac": 32, "time_shift": "true"},
        {"start": (1 << 63) + (1 << 62), "arch": "x86"},
    ],
    ids=["several", "nested", "scaled", "high-stamps"],
)
def test_worlds_of_several_machines(tmp_path, how):
    world = World(WorldOptions(events=2500, seed=1, **how))
    world.write(tmp_path)
    files = [tmp_path / m.file for m in world.machines]
    parents = {m.name: m.parent for m in world.machines[1:] if m.parent}
    timeline = sync(*files, parents=parents).timeline
    path = tmp_path / "out.dat"

    write_dat(timeline, path, overwrite=False)

    read = check_same_events(timeline, path)
    assert read.cpus == max(m.recording.cpus for m in timeline.machines)
    assert len({s.buffer for s in read.streams}) == len(timeline.machines)
    check_trace_cmd(timeline, path)


WORD = Event(300, "test", "word", [FieldSpec("int", "word")], '"word=%d", REC->word')
OTHER = Event(300, "test", "other", [FieldSpec("u64", "wide")], '"wide=%llx", REC->wide')
WIDER = Event(301, "test", "word", [FieldSpec("u64", "word")], '"wide word=%llu", REC->word')
TEXT = Event(302, "test", "text", [FieldSpec("const char *", "text")], '"%s", REC->text')
CALL = Event(303, "test", "call", [FieldSpec("unsigned long", "ip")], '"%pS", (void *)REC->ip')
SYMBOLS = "".join(f"ffffffff8100{at:02x}00 T {{}}_{at}\n" for at in range(8))


def machine(folder: Path, name: str, events: list[Event], records, cmdlines, printk="") -> Machine:
    """A machine of a few events: (stamp, event, pid, values)."""
    file = TraceFile(events=events, cmdlines=cmdlines, printk=printk, kallsyms=SYMBOLS.replace("{}", name))
    pages = file.stream([(stamp, file.payload(event, pid, **values)) for stamp, event, pid, values in records])
    file.buffers = [Buffer(cpus={0: pages})]
    recording = Recording.open(file.write(folder / f"{name}.dat"))
    everything = np.ones(len(recording), np.bool_)
    return Machine(name, recording, None, recording.stamp, everything, everything)


@pytest.fixture
def clashing(tmp_path):
    """Two machines whose event ids, strings, symbols and tasks clash."""
    at = 0xFFFFFFFF81000123
    host = machine(
        tmp_path, "host", [WORD, TEXT, CALL],
        [(10, WORD, 1, {"word": 7}), (20, TEXT, 2, {"text": 0x800}), (30, CALL, 3, {"ip": at})],
        {1: "init", 2: "mine", 3: "same"}, '0x800 : "of the host\\n"\n0x900 : "host only"\n',
    )  # fmt: skip
    guest = machine(
        tmp_path, "guest", [OTHER, WIDER, TEXT, CALL],
        [
            (11, OTHER, 1, {"wide": LONG}), (12, WIDER, 2, {"word": LONG}), (21, TEXT, 3, {"text": 0x800}),
            (22, TEXT, 4, {"text": 0x900}), (23, TEXT, 4, {"text": 0xA00}), (31, CALL, 3, {"ip": at}),
        ],
        {1: "init", 2: "theirs", 3: "same", 4: "own"}, '0x800 : "of the guest\\n"\n0xa00 : "guest only"\n',
    )  # fmt: skip
    return Timeline([host, guest], None)


@pytest.mark.peer
def test_nothing_is_shown_as_what_it_is_not(clashing, tmp_path):
    path = tmp_path / "out.dat"

    notes = write_dat(clashing, path, overwrite=False, how=DatFormat(7, "none"))

    read = check_same_events(clashing, path, moved=frozenset({"text"}))
    rows = np.argsort(read.stamp).tolist()
    texts = [EventText(read).render(int(read.event_id[row]), np.array([row]))[0] for row in rows]
    wanted = [
        "word=7", f"wide={LONG:x}", f"wide word={LONG}", "of the host", "of the guest", "900", "guest only",
        "host_1+0x23", "guest_1+0x23",
    ]  # fmt: skip
    assert texts == wanted
    assert read.cmdlines == {1: "init", 2: "mine|theirs", 3: "same", 4: "own"}
    assert notes == []
    lines = report(path)
    assert [line.split(": ", 2 + line.startswith("guest"))[-1].strip() for line in lines] == wanted


def test_equal_formats_are_shared_and_ids_stay(timeline, tmp_path):
    path = tmp_path / "out.dat"

    write_dat(timeline, path, overwrite=False)

    read = Recording.open(path)
    host, guest = (m.recording for m in timeline.machines)
    assert [read.formats.text(i) for i in host.formats] == [host.formats.text(i) for i in host.formats]
    shared = {i for i in guest.counts_by_id() if i in host.formats and guest.formats.text(i) == host.formats.text(i)}
    assert shared & set(read.counts_by_id())
    assert len(read.formats) < len(host.formats) + len(guest.counts_by_id())


def test_machines_that_one_file_cannot_hold(tmp_path, clashing):
    file = TraceFile(events=[WORD], big_endian=True)
    file.buffers = [Buffer(cpus={0: file.stream([(1, file.payload(WORD, 1, word=1))])})]
    big = Recording.open(file.write(tmp_path / "big.dat"))
    one = np.ones(len(big), np.bool_)

    with pytest.raises(UsageError, match="big and host cannot be in one"):
        write_dat(
            Timeline([*clashing.machines, Machine("big", big, None, big.stamp, one, one)], None),
            tmp_path / "out.dat", overwrite=False,
        )  # fmt: skip
    assert not list(tmp_path.glob("*out.dat*"))


def test_the_command_writes_it(tmp_path, capsys):
    files = [str(DATA / "x86-agent" / name) for name in ("host.dat", "guest.dat")]
    path = tmp_path / "out.dat"

    assert main(["sync", *files, "-o", str(path), "--dat-version", "6"]) == 0
    assert main(["sync", *files, "-o", str(path)]) == 2
    assert main(["sync", *files, "-o", str(tmp_path / "b.dat"), "--dat-version", "6", "--compression", "zstd"]) == 2

    assert Recording.open(path).version == 6
    assert "version 6 of trace.dat has no compression" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_and_says_of_which_file(timeline, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TraceFileOut, "write", full)

    with pytest.raises(OSError, match="No space left") as caught:
        write_dat(timeline, tmp_path / "out.dat", overwrite=False)
    assert caught.value.filename == str(tmp_path / "out.dat")
    assert not list(tmp_path.iterdir())
