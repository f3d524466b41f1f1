"""The timeline as Arrow and Parquet, read back with pyarrow and compared event for event."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs.parquet import write_parquet
from counterpoint.outputs.report import sync_report, width_ns
from counterpoint.outputs.text import TimelineText
from counterpoint.timeline import arrow
from counterpoint.timeline.arrow import ArrowEvents
from counterpoint.timeline.merge import Machine, Timeline
from counterpoint.timeline.sync import sync
from counterpoint.traces.recording import Recording
from writers.events import Event, FieldSpec
from writers.nested_world import nested_world
from writers.ringbuffer import UNKNOWN
from writers.tracedat import Buffer, TraceFile

DATA = Path(__file__).parent.parent / "data"


def pair(name: str = "x86-agent") -> tuple[Path, Path]:
    return DATA / name / "host.dat", DATA / name / "guest.dat"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    machines, truth = nested_world(stays=12, tsc2nsec=(1 << 30, 31, 0))
    files = [m.write(folder / f"l{n}.dat") for n, m in enumerate(machines)]
    parents = {"l2": "l1"}
    return sync(*files, parents=parents), truth


def alone(*recordings: Recording) -> Timeline:
    machines = []
    for n, recording in enumerate(recordings):
        everything = np.ones(len(recording), np.bool_)
        machines.append(Machine(f"m{n}", recording, None, recording.stamp, everything, everything))
    return Timeline(machines, None)


def columns_of(meta: dict[bytes, bytes]) -> dict[tuple[str, str], dict[str, str]]:
    return {(e["machine"], e["event"]): e["columns"] for e in json.loads(meta[b"counterpoint.fields"])}


def check_rows(timeline: Timeline, table: pa.Table, every: int = 1) -> None:
    """Every ``every``th row says what ``show --json`` says, and each field what the recording's own batch does."""
    shown = TimelineText(timeline).records(np.arange(0, len(timeline), every))
    rows = table.take(np.arange(0, len(timeline), every)).to_pylist()
    where = columns_of(table.schema.metadata)
    for position, (row, expected) in enumerate(zip(rows, shown, strict=True)):
        position *= every
        machine = timeline.machines[timeline.machine[position]]
        at = int(timeline.row[position])
        assert {
            "machine": row["machine"], "host_stamp": row["host_ticks"], "stamp": row["stamp"], "cpu": row["cpu"],
            "task": row["task"], "tid": row["pid"], "event": row["event"],
        } == {k: v for k, v in expected.items() if k != "text"}  # fmt: skip
        assert row["proved"] == bool(machine.proved[at])
        assert row["host_ns"] == (int(timeline.ts_ns[position]) if timeline.has_ns else None)
        event = machine.recording.formats.get(int(machine.recording.event_id[at]))
        if event is None:
            continue
        batch = machine.recording.batch(event, np.array([at]))
        values = {}
        for field in event.fields:
            if field.kind == "string":
                [values[field.name]] = batch.text(field.name)
            elif field.kind == "array":
                [values[field.name]] = batch.array(field.name)
            elif field.kind == "int":
                [values[field.name]] = batch.ints(field.name)
            else:
                [values[field.name]] = batch.raw(field.name)
        columns = where.get((machine.name, row["event"]), {})
        assert {name: row["fields"][columns[name]] for name in values} == values
        assert {k for k, v in row["fields"].items() if v is not None} == set(columns.values())


@pytest.mark.parametrize("name", ["x86-agent", "arm64-monoraw"])
def test_every_event_is_read_back_as_it_is_shown(name, tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BLOCK", 5000)
    result = sync(*pair(name))
    path = tmp_path / "out.parquet"

    assert write_parquet(result, path, overwrite=False) == []

    file = pq.ParquetFile(path)
    table = file.read()
    assert file.metadata.num_row_groups == -(-len(result.timeline) // 5000)
    assert len(table) == len(result.timeline)
    assert table["host_ticks"].to_numpy().tolist() == result.timeline.host_ticks.tolist()
    assert table["host_ns"].to_numpy().tolist() == result.timeline.ts_ns.tolist()
    assert table["cpu"].to_numpy().tolist() == result.timeline.cpu.tolist()
    assert table["pid"].to_numpy().tolist() == result.timeline.pid.tolist()
    check_rows(result.timeline, table, every=53)
    said = json.loads(file.metadata.metadata[b"counterpoint.proof"])
    assert said == json.loads(json.dumps(sync_report(result)))
    encodings = {
        file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i) for i in (0, 1, 2)
    }
    assert all("DELTA_BINARY_PACKED" in c.encodings and c.compression == "LZ4" for c in encodings.values())


def test_bounds_are_those_of_the_proof_and_threads_tell_their_vcpu():
    result = sync(*pair())
    table = result.timeline.to_arrow(fields=False)
    guest = result.guests[0]
    widths = {v.guest_cpu: width_ns(v.epochs[0], result.rate) for v in guest.vcpus}
    tids = {v.host_tid: v.guest_cpu for v in guest.vcpus}

    for row in table.to_pylist():
        if row["machine"] == "host":
            assert row["bound_ns"] == 0
            assert row["vcpu"] == tids.get(row["pid"])
            assert row["vcpu_guest"] == ("guest" if row["pid"] in tids else None)
        else:
            assert row["bound_ns"] == (widths[row["cpu"]] if row["proved"] else None)
            assert row["vcpu"] is None


def test_nested_guests_have_the_bounds_of_all_levels(world):
    result, truth = world
    timeline = result.timeline
    table = timeline.to_arrow()
    check_rows(timeline, table, every=5)
    bound = table["bound_ns"].to_pylist()
    above = max(width_ns(e, result.rate) for v in result.guests[0].vcpus for e in v.epochs)
    number = [m.name for m in timeline.machines].index("l2")
    one, checked = timeline.machines[number], 0

    for position in np.flatnonzero(timeline.machine == number).tolist():
        row = int(timeline.row[position])
        if not one.proved[row]:
            assert bound[position] is None
            continue
        answer = result.maps.to_host(one.recording.stamp[row : row + 1], "l2", 0)
        width = int(answer.latest[0] - answer.earliest[0])
        assert bound[position] == -result.rate.to_ns(-width) > above
        # a tick is half a ns
        assert abs(int(one.host_stamp[row]) - truth.l2[row][0]) <= 2 * bound[position]
        checked += 1

    assert checked > 10


def test_places_that_are_not_proved_have_no_bound():
    result = sync(*pair())
    timeline = result.timeline
    guest = timeline.machines[1]
    guest.proved[::3] = False

    table = timeline.to_arrow(fields=False)

    mine = timeline.machine == 1
    assert table["proved"].to_numpy(zero_copy_only=False)[mine].tolist() == guest.proved[timeline.row[mine]].tolist()
    assert [b is None for b in np.array(table["bound_ns"].to_pylist())[mine]] == (
        ~guest.proved[timeline.row[mine]]
    ).tolist()


def odd(number: int, system: str, name: str, *fields: tuple) -> Event:
    return Event(number, system, name, [FieldSpec(*field) for field in fields])


ODD = [
    odd(
        300, "a", "one", ("u64", "now"), ("s8", "small"), ("char", "name", 8), ("u32", "many", 3),
        ("char", "text", None, "data_loc"),
    ),
    odd(
        301, "a", "two", ("s64", "now"), ("u16", "small"), ("u32", "name"), ("s16", "many", 2),
        ("u8", "text", None, "data_loc"),
    ),
    odd(302, "b", "one", ("s32", "now"), ("char", "small", 4), ("u8", "many"), ("char", "text", None, "rel_loc")),
]  # fmt: skip


def odd_file(folder: Path, *, big_endian: bool = False) -> Path:
    file = TraceFile(events=ODD, cmdlines={7: "weird\t'\";"}, big_endian=big_endian)
    values = [
        (
            ODD[0],
            {"now": (1 << 64) - 1, "small": -5, "name": b"ab\0junk", "many": [1, 2, 1 << 31], "text": b"\xff\xfe!"},
        ),
        (ODD[1], {"now": -1, "small": 65535, "name": 0xDEADBEEF, "many": [-1, 1], "text": [9, 8, 7]}),
        (ODD[2], {"now": -(1 << 31), "small": b"abcd", "many": 200, "text": b"x" * 300}),
    ]
    records = [(1000 + 10 * n, file.payload(values[n % 3][0], 7, **values[n % 3][1])) for n in range(30)]
    file.buffers = [Buffer(cpus={0: file.stream(records)})]
    return file.write(folder / "odd.dat")


@pytest.mark.parametrize("big_endian", [False, True])
def test_one_name_with_several_types_loses_nothing(tmp_path, big_endian):
    timeline = alone(Recording.open(odd_file(tmp_path, big_endian=big_endian)))

    table = timeline.to_arrow()

    check_rows(timeline, table)
    one, two, three = (r["fields"] for r in table.slice(0, 3).to_pylist())
    assert (one["now_u64"], one["now"], two["now"], three["now"]) == ((1 << 64) - 1, None, -1, -(1 << 31))
    assert (one["small"], two["small"], three["small"], three["small_text"]) == (-5, 65535, None, "abcd")
    assert (one["name_text"], two["name"]) == ("ab", 0xDEADBEEF)
    assert (one["many_list"], two["many_list"], three["many"]) == ([1, 2, 1 << 31], [-1, 1], 200)
    assert table.schema.field("fields").type.field("small").type == pa.int32()


def test_long_texts_are_split_over_batches(tmp_path, monkeypatch):
    timeline = alone(Recording.open(odd_file(tmp_path)))
    whole = timeline.to_arrow()
    monkeypatch.setattr("counterpoint.timeline.arrow_fields.MAX_BYTES", 1000)

    batches = list(timeline.arrow_batches())

    assert len(batches) > 5
    assert [row for batch in batches for row in batch.to_pylist()] == whole.to_pylist()
    monkeypatch.setattr("counterpoint.timeline.arrow_fields.MAX_BYTES", 100)
    with pytest.raises(MemoryError):
        timeline.to_arrow()


def test_too_many_fields_are_said_to_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("counterpoint.timeline.arrow_fields.MAX_COLUMNS", 3)
    events = ArrowEvents(alone(Recording.open(odd_file(tmp_path))))

    assert len(events.schema.field("fields").type) == 3
    assert events.left_out > 3
    assert len(events.reader().read_all()) == 30


def test_parts_by_machine_are_one_table_again(tmp_path):
    host, guest = (tmp_path / name for name in ("a=b %2F.dat", "machine='x'.dat"))
    for path, source in zip((host, guest), pair(), strict=True):
        path.symlink_to(source)
    out = tmp_path / "out.parquet"

    assert main(["sync", str(host), str(guest), "-o", f"{out}/"]) == 0

    assert sorted(unquote(p.name) for p in out.iterdir()) == ["machine=a=b %2F", "machine=machine='x'"]
    result = sync(host, guest)
    table = pq.read_table(out)
    assert len(table) == len(result.timeline)
    for index, machine in enumerate(result.timeline.machines):
        mine = table.filter(pa.compute.equal(table["machine"], machine.name))
        assert mine["host_ticks"].to_pylist() == result.timeline.host_ticks[result.timeline.machine == index].tolist()


def test_nothing_is_overwritten_that_was_not_meant(tmp_path, capsys):
    files = [str(p) for p in pair()]
    path, folder = tmp_path / "out.parquet", tmp_path / "other.parquet"
    path.write_text("kept")
    folder.mkdir()
    (folder / "thesis.txt").write_text("kept")

    assert main(["sync", *files, "-o", str(path)]) == 2
    assert main(["sync", *files, "-o", f"{folder}/"]) == 2
    assert main(["sync", *files, "-o", f"{folder}/", "--force"]) == 2
    assert main(["sync", *files, "-o", f"{tmp_path / 'new.pftrace'}/"]) == 2

    assert "holds other things" in capsys.readouterr().err
    assert (path.read_text(), (folder / "thesis.txt").read_text()) == ("kept", "kept")
    assert main(["sync", *files, "-o", str(path), "--force"]) == 0
    (folder / "thesis.txt").unlink()
    assert main(["sync", *files, "-o", f"{folder}/", "--force"]) == 0
    assert main(["sync", *files, "-o", f"{folder}/", "--force"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.parquet", "out.parquet"]
    assert len(pq.read_table(folder)) == len(pq.read_table(path))


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_full_disk_leaves_the_old_file_and_says_which(tmp_path, capsys, partitioned):
    files = [str(p) for p in pair()]
    path = tmp_path / "out.parquet"
    target = f"{path}/" if partitioned else str(path)
    assert main(["sync", *files, "-o", target]) == 0
    before = len(pq.read_table(path))
    capsys.readouterr()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            error = os.open(tmp_path.parent / f"{tmp_path.name}.err", os.O_CREAT | os.O_WRONLY)
            os.dup2(error, 2)
            sys.stderr = os.fdopen(2, "w")
            status = main(["sync", *files, "-o", target, "--force"])
            sys.stderr.flush()
        finally:
            os._exit(status)

    _, status = os.waitpid(child, 0)

    said = (tmp_path.parent / f"{tmp_path.name}.err").read_text()
    assert os.waitstatus_to_exitcode(status) == 2, said
    assert said == f"counterpoint: {path}: File too large\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]
    assert len(pq.read_table(path)) == before


def test_without_pyarrow_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    assert main(["sync", *(str(p) for p in pair()), "-o", str(tmp_path / "out.parquet")]) == 2

    assert "pip install 'counterpoint[parquet]'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="pyarrow is not installed"):
        sync(*pair()).timeline.to_arrow()


def test_losses_are_marked_on_the_event_that_follows(tmp_path):
    file = TraceFile(events=ODD[2:])
    record = file.payload(ODD[2], 7, now=1, small=b"abcd", many=2, text=b"x")
    records = [(1000 + n, record) for n in range(9)]
    file.buffers = [Buffer(cpus={0: file.stream(records, missed={3: 5, 6: UNKNOWN})})]

    table = alone(Recording.open(file.write(tmp_path / "lossy.dat"))).to_arrow()

    assert table["lost_before"].to_pylist() == [0, 0, 0, 5, 0, 0, -1, 0, 0]
