"""``counterpoint show``: what its lines count from, which keys they have, and their form."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from counterpoint.commands.main import main
from counterpoint.traces.recording import Recording

DATA = Path(__file__).parent.parent / "data"
X86, ARM = ([str(DATA / name / f"{who}.dat") for who in ("host", "guest")] for name in ("x86-agent", "arm64-monoraw"))


def shown(capsys, *argv: str) -> list[str]:
    capsys.readouterr()
    assert main(["show", *argv]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("files", [X86, ARM])
def test_relative_times_are_those_of_the_clock_less_the_first(files, capsys):
    argv = [files[0], "--event", "kvm:*", "--last", "40"]
    absolute = [json.loads(line) for line in shown(capsys, *argv, "--json")]

    lines = shown(capsys, *argv, "--relative")
    since = [json.loads(line)["since"] for line in shown(capsys, *argv, "--relative", "--json")]

    first = absolute[0]["host_stamp"]
    assert since == [one["host_stamp"] - first for one in absolute]
    times = [line.split("]", 1)[1].split(":", 1)[0].strip() for line in lines]
    if files is X86:
        assert times == [f"+{s}" for s in since]
    else:
        assert times == [f"+{s // 10**9}.{s % 10**9:09d}" for s in since]


def test_relative_times_count_from_what_is_looked_around(capsys):
    middle = json.loads(shown(capsys, X86[0], "--last", "100", "--json")[50])["host_stamp"]

    lines = shown(capsys, X86[0], "--around", str(middle), "--context", "3", "--relative", "--json")

    since = [json.loads(line)["since"] for line in lines]
    assert since == sorted(since) and since[0] < 0 <= since[3]
    text = shown(capsys, X86[0], "--around", str(middle), "--context", "3", "--relative")
    assert [int(line.split("]", 1)[1].split(":", 1)[0]) for line in text] == since


def test_fields_are_the_events_own(capsys):
    host = Recording.open(X86[0])
    event = host.format_named("sched", "sched_switch")
    rows = host.rows(event)
    order = np.argsort(host.stamp[rows], kind="stable")[-20:]
    batch = host.batch(event, rows[order])
    expected = [batch.ints("next_pid"), batch.text("next_comm"), batch.ints("prev_state")]

    lines = shown(capsys, X86[0], "--event", "sched_switch", "--last", "20", "--json", "--fields")

    found = [json.loads(line)["fields"] for line in lines]
    assert [[f[name] for f in found] for name in ("next_pid", "next_comm", "prev_state")] == expected
    assert list(found[0]) == [field.name for field in event.fields]


def test_lines_take_the_form_that_is_asked_for(capsys):
    argv = [X86[0], "--last", "10"]
    events = [json.loads(line) for line in shown(capsys, *argv, "--json")]

    lines = shown(capsys, *argv, "--format", "{{{host_stamp}}} {event}@{cpu}")

    assert lines == [f"{{{e['host_stamp']}}} {e['event']}@{e['cpu']}" for e in events]


@pytest.mark.parametrize("form", ["{event.__class__}", "{nothing}", "{", "{0}", "{event!r}", "{event:>9}", "{}"])
def test_a_form_names_keys_and_nothing_else(form, capsys):
    assert main(["show", X86[0], "--format", form]) == 2

    assert capsys.readouterr().err.startswith(f"counterpoint: --format {form}: only {{machine}} ")


def test_fields_go_with_json(capsys):
    assert main(["show", X86[0], "--fields"]) == 2

    assert "--fields goes with --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "holds"),
    [
        (["--machine", "guest"], lambda e: e["machine"] == "guest"),
        (["--cpu", "guest:1"], lambda e: (e["machine"], e["cpu"]) == ("guest", 1)),
        (["--cpu", "0"], lambda e: e["cpu"] == 0),
        (["--task", "191"], lambda e: e["tid"] == 191),
        (["--task", "CPU ?/KVM"], lambda e: e["task"] in ("CPU 0/KVM", "CPU 1/KVM")),
        (["--event", "kvm:kvm_e*"], lambda e: e["event"].startswith("kvm:kvm_e")),
        (["--event", "sched_switch", "--machine", "host"], lambda e: e["event"] == "sched:sched_switch"),
        (["--from", "318000000000", "--to", "319000000000"], lambda e: 318 * 10**9 <= e["host_stamp"] <= 319 * 10**9),
    ],
)
def test_filters_show_what_they_name_and_all_of_it(argv, holds, capsys, everything):
    found = [json.loads(line) for line in shown(capsys, *X86, *argv, "--json")]

    wanted = [one for one in everything if holds(one) and ("--machine" not in argv or one["machine"] == argv[-1])]
    assert found == wanted
    assert 0 < len(found) < len(everything)


@pytest.fixture(scope="module")
def everything():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["show", *X86, "--json"]) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]
