"""The timeline by SQL: views that say what the recordings do, and queries that reach nothing else."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs.sql import VIEWS, database
from counterpoint.timeline.sync import sync

DATA = Path(__file__).parent.parent / "data" / "x86-agent"


@pytest.fixture(scope="module")
def files():
    return DATA / "host.dat", DATA / "guest.dat"


@pytest.fixture(scope="module")
def result(files):
    return sync(*files)


@pytest.fixture(scope="module")
def views(result):
    with database(result) as views:
        yield views


def rows(views, query: str) -> list[tuple]:
    return list(views.ask(query)[1])


def test_events_are_the_timeline(views, result):
    timeline = result.timeline

    found = rows(views, "SELECT machine, host_ticks, pid FROM events ORDER BY position")

    names = [m.name for m in timeline.machines]
    machines = [names[m] for m in timeline.machine.tolist()]
    assert found == list(zip(machines, timeline.host_ticks.tolist(), timeline.pid.tolist(), strict=True))


def test_proof_has_every_epoch(views, result):
    found = rows(views, 'SELECT guest, guest_cpu, host_tid, verdict, "offset", feasible_low, feasible_high FROM proof')

    assert found == [
        (g.name, v.guest_cpu, v.host_tid, e.verdict.value, e.offset, *e.feasible)
        for g in result.guests
        for v in g.vcpus
        for e in v.epochs
    ]


def test_exits_pair_each_exit_with_the_entry_after_it(views, result):
    host = result.host
    event = {name: host.format_named("kvm", name) for name in ("kvm_exit", "kvm_entry")}
    edges = np.sort(np.concatenate([host.rows(e) for e in event.values()]))
    following = {}
    for tid in set(host.pid[edges].tolist()):
        mine = edges[host.pid[edges] == tid]
        mine = mine[np.argsort(host.stamp[mine], kind="stable")]
        ids = host.event_id[mine]
        for at in np.flatnonzero(ids == event["kvm_exit"].id).tolist():
            entered = at + 1 < len(mine) and ids[at + 1] == event["kvm_entry"].id
            following[tid, int(host.stamp[mine[at]])] = int(host.stamp[mine[at + 1]]) if entered else None

    found = rows(views, "SELECT tid, exit_ticks, entry_ticks FROM exits")

    assert len(found) == len(following) > 10
    assert {(tid, out): back for tid, out, back in found} == following


def test_sched_spans_are_those_between_switches(views, result):
    for machine in result.timeline.machines:
        recording = machine.recording
        event = recording.format_named("sched", "sched_switch")
        expected = []
        for stream in recording.streams:
            switches = recording.rows(event)
            switches = switches[(switches >= stream.first) & (switches < stream.last)]
            following, previous = (recording.column(event, f, switches) for f in ("next_pid", "prev_pid"))
            expected += [
                (
                    stream.cpu,
                    int(following[n]),
                    int(machine.host_stamp[switches[n]]),
                    int(machine.host_stamp[switches[n + 1]]),
                )
                for n in range(len(switches) - 1)
                if following[n] == previous[n + 1]
            ]

        query = f"SELECT cpu, pid, begin_ticks, end_ticks FROM sched WHERE machine = '{machine.name}'"

        assert sorted(rows(views, query)) == sorted(expected)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM parquet_metadata('/etc/passwd')",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM result",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')",
        "ATTACH '/tmp/other.db'",
        "COPY events TO '/tmp/counterpoint-stolen.csv'",
        "EXPLAIN ANALYZE COPY events TO '/tmp/counterpoint-stolen.csv'",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW events",
        "DELETE FROM proof",
        "SELECT 1; SELECT 2",
        "",
        "SELEC 1",
        "SELECT nothing FROM events",
    ],
)
def test_a_query_reads_the_views_and_nothing_else(views, query):
    with pytest.raises(UsageError, match="quer"):
        list(views.ask(query)[1])

    assert not Path("/tmp/counterpoint-stolen.csv").exists()


def test_answers_are_a_table_json_lines_or_csv(files, capsys):
    ask = ["sql", *map(str, files)]
    query = "SELECT machine, count(*) AS n, [1, 2] AS list, NULL AS nothing FROM events GROUP BY 1 ORDER BY 1"
    capsys.readouterr()

    assert main([*ask, query]) == 0
    table = capsys.readouterr().out.splitlines()
    assert main([*ask, "--json", query]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*ask, "--csv", query]) == 0
    cells = list(csv.reader(io.StringIO(capsys.readouterr().out)))

    assert table[0].split() == ["machine", "n", "list", "nothing"]
    assert [r["machine"] for r in lines] == ["guest", "host"]
    assert lines[0]["list"] == [1, 2] and lines[0]["nothing"] is None
    assert cells[1] == ["guest", str(lines[0]["n"]), "[1, 2]", ""]
    assert main([*ask, "SELECT * FROM read_text('/etc/passwd')"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "Cannot access file" in said[0]


def test_every_view_is_there(views):
    assert {name for (name,) in rows(views, "SHOW TABLES")} == set(VIEWS)


def test_a_forgotten_query_is_told_from_a_file(files, capsys):
    assert main(["sql", *map(str, files)]) == 2

    assert capsys.readouterr().err.endswith("guest.dat is a file: the query is the last argument, in quotes\n")


def test_without_duckdb_the_extra_is_named(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)

    assert main(["sql", *map(str, files), "SELECT 1"]) == 2

    assert "pip install 'counterpoint[sql]'" in capsys.readouterr().err


def test_the_states_of_each_vcpu_add_up_to_the_span_of_its_host(views, result):
    first, last = int(result.host.stamp.min()), int(result.host.stamp.max())
    span = result.timeline.rate.to_ns(last) - result.timeline.rate.to_ns(first)
    sums = "sum(took_ns), max(end_ns) - min(begin_ns), sum(end_ticks - begin_ticks)"
    found = rows(views, f"SELECT guest, vcpu, {sums} FROM vcpu_states GROUP BY 1, 2 ORDER BY 2")

    ticks = last - first
    assert found == [("guest", 0, span, span, ticks), ("guest", 1, span, span, ticks)]


def test_states_have_their_reasons_and_who_runs_instead(views, result):
    told = rows(views, "SELECT DISTINCT state, reason FROM vcpu_states WHERE state IN ('halted', 'polling')")
    waits = rows(views, "SELECT by_tid, by_task FROM vcpu_states WHERE state = 'waiting' AND by_tid > 0")
    inside = rows(views, "SELECT guest_what, guest_task FROM vcpu_states WHERE guest_context = 'task'")

    guest = result.guests[0].recording
    assert sorted(told) == [("halted", "hlt"), ("polling", "hlt")]
    assert all(task == result.host.comm(tid) for tid, task in waits)
    assert inside
    assert all(task == guest.comm(tid) for tid, task in inside)


def test_exits_have_their_reason_as_text(views):
    found = rows(views, "SELECT DISTINCT exit_reason, reason FROM exits ORDER BY 1")

    assert (120, "hlt") in found
    assert (124, "msr") in found
