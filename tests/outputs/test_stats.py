"""``counterpoint stats``: its counts and sums against the recordings' own text, its filters, and how it reads."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.states import State, vcpu_states
from counterpoint.commands.main import main
from counterpoint.errors import UsageError
from counterpoint.outputs.stats_report import Wanted, stats_report
from counterpoint.outputs.stats_text import WIDTH, stats_lines
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.recording import Recording
from helpers import need_tool
from writers.scripts import kind, scripted

DATA = Path(__file__).parent.parent / "data"
FILES = {
    name: [str(DATA / name / f"{who}.dat") for who in ("host", "guest")] for name in ("x86-agent", "arm64-monoraw")
}


@pytest.fixture(scope="module", params=list(FILES))
def result(request) -> SyncResult:
    return sync(*FILES[request.param])


@pytest.fixture(scope="module")
def report(result):
    return stats_report(result)


def test_states_add_up_to_the_span(result, report):
    guest = report["guests"][0]
    rate, base = result.timeline.rate, result.timeline.base
    for vcpu, own in zip(guest["vcpus"], vcpu_states(result), strict=True):
        assert (vcpu["host_tid"], vcpu["guest_cpu"]) == (own.tid, own.guest_cpu)
        span = rate.to_ns(own.end + base) - rate.to_ns(int(own.begin[0]) + base)
        assert sum(vcpu["states"].values()) == vcpu["took"] == span
        assert sum(vcpu["guest_mode"].values()) == vcpu["states"]["guest"]
        assert sum(who["took"] for who in vcpu["waited_for"]) == vcpu["states"]["waiting"]
        # each state is rounded on its own
        for state, took in own.residency().items():
            assert abs(vcpu["states"][state.name.lower()] - rate.to_ns(took)) <= len(own)
    for name in guest["states"]:
        assert guest["states"][name] == sum(v["states"][name] for v in guest["vcpus"])
    assert set(guest["states"]) == {s.name.lower() for s in State}


def test_exits_of_all_are_those_of_each(report):
    guest = report["guests"][0]
    for part in ("count", "known", "total"):
        whole = guest["exits"]["all"][part]
        rounding = len(guest["exits"]["by_reason"]) if part == "total" else 0
        assert abs(sum(row[part] for row in guest["exits"]["by_reason"]) - whole) <= rounding
        assert abs(sum(v["exits"]["all"][part] for v in guest["vcpus"]) - whole) <= rounding
    for row in guest["exits"]["by_reason"]:
        assert sum(n for _, n in row["histogram"]) == row["known"]
        assert row["min"] <= row["p50"] <= row["p99"] <= row["max"]


@pytest.mark.peer
def test_exits_are_as_trace_cmd_and_perf_count_them():
    """From trace-cmd's text; as ``perf kvm stat`` does it: from a kvm_exit to the thread's next kvm_entry."""
    files = FILES["x86-agent"]
    command = [need_tool("trace-cmd"), "report", "-N", "-i", files[0], "-t"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts: Counter[str] = Counter()
    perf: dict[str, list[int]] = {}
    begun: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        event = re.match(r"\s*(.*)-(\d+)\s+\[\d+\]\s*([\d.]+):\s+(kvm_exit|kvm_entry):\s+(.*)", line)
        if not event:
            continue
        tid, stamp = event[2], int(event[3].replace(".", ""))
        if event[4] == "kvm_exit":
            reason = re.search(r"reason (\S+) rip", event[5])[1]
            counts[reason] += 1
            begun[tid] = reason, stamp
        elif tid in begun:
            reason, since = begun.pop(tid)
            perf.setdefault(reason, []).append(stamp - since)
    result = sync(*files)

    rows = {row["reason"]: row for row in stats_report(result)["total"]["by_reason"]}

    assert {reason: row["count"] for reason, row in rows.items()} == dict(counts)
    assert {reason: row["known"] for reason, row in rows.items()} == {r: len(times) for r, times in perf.items()}
    rate = result.timeline.rate
    for reason, times in perf.items():
        assert rows[reason]["total"] == rate.to_ns(sum(times))
        assert rows[reason]["max"] == rate.to_ns(max(times))


def test_a_part_of_the_time_and_one_vcpu(result):
    timeline = result.timeline
    first, last = int(timeline.host_ticks[len(timeline) // 3]), int(timeline.host_ticks[len(timeline) // 2])

    found = stats_report(result, Wanted(vcpus=[1], begin=first, end=last))

    guest = found["guests"][0]
    assert [v["guest_cpu"] for v in guest["vcpus"]] == [1]
    assert guest["took"] == timeline.rate.to_ns(last) - timeline.rate.to_ns(first)
    host = result.host
    exits = host.rows(host.format_named("kvm", "kvm_exit"))
    mine = (
        (host.pid[exits] == guest["vcpus"][0]["host_tid"]) & (host.stamp[exits] >= first) & (host.stamp[exits] <= last)
    )
    assert guest["exits"]["all"]["count"] == mine.sum() > 0
    parts = [
        stats_report(result, Wanted(begin=a, end=b))["guests"][0]
        for a, b in ((None, first), (first, last), (last, None))
    ]
    whole = stats_report(result)["guests"][0]
    for state in whole["states"]:
        assert sum(part["states"][state] for part in parts) == whole["states"][state]


def test_one_task(result, report):
    cause = next(c for c in report["guests"][0]["causes"] if c["context"] == "task" and c["task"] != "<...>")

    by_name, by_id = (
        stats_report(result, Wanted(tasks=[task]))["guests"][0] for task in (cause["task"], str(cause["what"]))
    )

    for guest in (by_name, by_id):
        assert 0 < guest["exits"]["all"]["count"] < report["total"]["all"]["count"]
        assert {(c["context"], c["task"]) for c in guest["causes"]} == {("task", cause["task"])}
    assert stats_report(result, Wanted(tasks=["no such"]))["total"]["all"]["count"] == 0


def test_what_is_not_there_is_an_error(result):
    with pytest.raises(UsageError, match=r"no guest is called 'other' .*there are: guest"):
        stats_report(result, Wanted(guests=["other"]))
    with pytest.raises(UsageError, match="vCPU 7"):
        stats_report(result, Wanted(vcpus=[7]))


def test_the_text_is_narrow_and_plain(report):
    lines = list(stats_lines(report))

    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert [line for line in lines if line.startswith("in guest mode")]
    assert "\n".join(stats_lines(report, ascii_only=True)).isascii()


def test_names_do_no_harm(tmp_path, report):
    evil = "\x1b[31m<script>\u202e\ud800" + "x" * 100
    text = json.dumps(report)
    harmful = json.loads(
        re.sub(
            r'("(?:task|reason|function|name|parent|machine)": )"[^"]*"',
            r"\g<1>" + json.dumps(evil).replace("\\", "\\\\"),
            text,
        )
    )

    lines = list(stats_lines(harmful))

    assert all(line.isprintable() for line in lines)
    assert sum("\\x1b[31m" in line for line in lines) > 5
    assert max(map(len, lines)) <= WIDTH


def test_levels_are_told(tmp_path):
    World(WorldOptions(arch="arm64", nested=1, nested_events=True, events=6000)).write(tmp_path)
    result = sync(tmp_path / "host.dat", tmp_path / "guest.dat", tmp_path / "l2.dat", parents={"l2": "guest"})

    found = stats_report(result)

    guest, nested = found["guests"]
    assert {"own", "reflected"} <= {row["level"] for row in guest["levels"]}
    assert sum(row["count"] for row in guest["levels"]) == guest["exits"]["all"]["count"]
    assert nested["parent"] == "guest" and nested["levels"] is None
    text = "\n".join(stats_lines(found))
    assert "its guest's, passed on" in text


def test_the_command(capsys):
    assert main(["stats", *FILES["x86-agent"], "--vcpu", "0"]) == 0
    text = capsys.readouterr().out
    assert "1 vCPU of host" in text and "exits" in text
    assert main(["stats", *FILES["x86-agent"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1 and found["guests"][0]["name"] == "guest"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--vcpu", "x"], "--vcpu x"),
        (["--vcpu", "²"], "--vcpu"),
        (["--guest", "none"], "no guest is called"),
        (["--from", "x"], "--from x: a host stamp is expected"),
        (["--from", "9", "--to", "3"], "--from 9 is after --to 3"),
    ],
)
def test_requests_that_make_no_sense(capsys, more, said):
    assert main(["stats", *FILES["x86-agent"], *more]) == 2
    assert said in capsys.readouterr().err


def test_where_nothing_is_recorded_that_is_said(tmp_path):
    events = {
        "entry": kind(20, "kvm:kvm_entry"), "exit": kind(21, "kvm:kvm_exit", "unsigned int exit_reason"),
        "mark": kind(22, "test:mark"),
    }  # fmt: skip
    random = np.random.default_rng(1)
    begun = np.cumsum(random.integers(900, 3000, 200))
    host = [f"0 {t} entry 147" for t in begun] + [f"0 {t + 600} exit 147 exit_reason=1" for t in begun]
    guest = [f"0 {t} mark 1" for t in begun + random.integers(5, 595, 200)]
    for name, script in (("host", host), ("guest", guest)):
        assert isinstance(scripted(tmp_path / f"{name}.dat", events, *script, cpus=1), Recording)

    report = stats_report(sync(tmp_path / "host.dat", tmp_path / "guest.dat"))

    guest = report["guests"][0]
    assert guest["exits"]["all"]["count"] == 200
    assert [guest[part] for part in ("levels", "wakeups", "timers", "interrupts", "ipis", "halts")] == [None] * 6
    assert guest["steal"]["by_guest"] is None
    text = " ".join(stats_lines(report))
    for word in ("stolen time", "wakeups", "timers", "interrupts", "IPIs", "halts"):
        assert re.search(f"not known: [^:]*{word}", text), word
