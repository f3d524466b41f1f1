"""``counterpoint record``: what it takes, what it refuses, and what it says where nothing can be recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from counterpoint.commands.main import main
from counterpoint.commands.record import parse_size, parse_time
from counterpoint.errors import UsageError
from counterpoint.live import presets, tracefs
from counterpoint.live.ending import Ending
from counterpoint.live.flight import Condition
from counterpoint.live.guests import make
from counterpoint.live.presets import EventSpec
from counterpoint.live.stats import total
from counterpoint.traces.recording import Recording
from live.fake_tracefs import fake_tracefs
from writers.worlds import tiny_pair


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400)])
def test_times(text, seconds):
    assert parse_time(text, "-d") == seconds


@pytest.mark.parametrize(("text", "size"), [("4M", 4 << 20), ("512k", 512 << 10), ("1GiB", 1 << 30), ("77", 77)])
def test_sizes(text, size):
    assert parse_size(text, "--max-size") == size


@pytest.mark.parametrize("text", ["", "ten", "-5", "5 parsecs", "1e9", "5ms5"])
def test_no_times_and_no_sizes(text):
    with pytest.raises(UsageError, match="a time is expected"):
        parse_time(text, "-d")
    with pytest.raises(UsageError, match="a size is expected"):
        parse_size(text, "--max-size")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-e", "no event!"], "is no event"),
        (["-e", "sched::next_prio == 0"], "a filter needs an event"),
        (["--after", "1s"], "--after is for --snapshot-on"),
        (["--guest", "gopher://there"], "is expected"),
        (["--guest", "ssh://-oProxyCommand=x"], "is expected"),
        (["--guest", "../up=ssh://there"], "a guest's name"),
        (["--guest", "host=ssh://there"], "a guest's name"),
        (["-d", "soon"], "a time is expected"),
    ],
)
def test_what_is_wrong_is_said(arguments, said, capsys, tmp_path):
    assert main(["record", "-o", str(tmp_path / "capture"), *arguments]) == 2

    assert said in capsys.readouterr().err
    assert not (tmp_path / "capture").exists()


def test_without_tracefs_it_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tracefs, "ROOTS", (tmp_path / "tracing",))

    assert main(["record", "-d", "1s", "-o", str(tmp_path / "capture")]) == 2

    err = capsys.readouterr().err
    assert "mount -t tracefs nodev" in err or "run as root" in err
    assert not (tmp_path / "capture").exists()


def test_its_help_has_an_example():
    command = [sys.executable, "-m", "counterpoint", "record", "--help"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "sudo counterpoint record -d 10s" in done.stdout and "[-- CMD ...]" in done.stdout


def test_what_stands_behind_the_dashes_is_another_programs(monkeypatch):
    from counterpoint.commands import record

    seen = []
    monkeypatch.setattr(record, "run", lambda args: seen.append(args) or 0)

    assert main(["record", "-d", "5s", "--", "perf", "-o", "x", "--", "--json"]) == 0
    assert main(["record", "-d", "5s"]) == 0

    assert [args.run_command for args in seen] == [["perf", "-o", "x", "--", "--json"], []]
    assert not seen[0].json and seen[0].output == "capture"


def test_presets_name_what_the_proof_needs():
    for preset in (*presets.PRESETS, None):
        patterns = presets.patterns(preset, [EventSpec.parse("sched:sched_stat_*")])
        assert set(presets.PROOF) <= set(patterns) and "sched:sched_stat_*" in patterns
        assert len(set(patterns)) == len(patterns)


def test_events_by_hand():
    assert EventSpec.parse("kvm") == EventSpec("kvm:*")
    assert EventSpec.parse("kvm:kvm_exit") == EventSpec("kvm:kvm_exit")
    assert EventSpec.parse("irq:irq_handler_entry:name ~ 'eth*:0'") == EventSpec(
        "irq:irq_handler_entry", "name ~ 'eth*:0'"
    )


class FakeInstance:
    def __init__(self, root):
        self.root = self.folder = root
        self.written = []
        self.refused = set()

    def write(self, name, text):
        if name in self.refused:
            raise OSError(22, "Invalid argument")
        self.written.append((name, text))

    def filter(self, system, event, text):
        self.write(f"events/{system}/{event}/filter", text)


@pytest.fixture
def fake(tmp_path):
    first = Recording.open(tiny_pair()[0].write(tmp_path / "first.dat"))
    return FakeInstance(fake_tracefs(tmp_path / "tracefs", first))


def test_whole_systems_are_enabled_at_once(fake):
    pairs, notes = presets.enable(fake, None, [EventSpec("kvm:*")])

    assert ("events/kvm/enable", "1") in fake.written and ("kvm", "kvm_exit") in pairs and notes == []


def test_a_filter_is_set_before_the_event_is_enabled(fake):
    presets.enable(fake, None, [EventSpec("kvm:kvm_exit", "x == 1")])

    assert fake.written[0] == ("events/kvm/kvm_exit/filter", "x == 1")


def test_events_that_the_kernel_refuses_are_named(fake):
    fake.refused = {"events/kvm/enable", "events/kvm/kvm_exit/enable"}

    pairs, notes = presets.enable(fake, "exits", [])

    assert ("kvm", "kvm_exit") not in pairs and ("kvm", "kvm_entry") in pairs
    assert notes == ["the kernel does not record: kvm:kvm_exit"]


def test_events_that_are_not_there_are_an_error_by_hand_and_none_in_a_preset(fake):
    with pytest.raises(UsageError, match="this kernel has no event nothing:"):
        presets.enable(fake, None, [EventSpec("nothing:*")])
    presets.enable(fake, "all", [])


def test_a_refused_filter_is_said_with_the_kernels_reason(fake):
    fake.refused = {"events/kvm/kvm_exit/filter"}
    (fake.root / "events/kvm/kvm_exit/filter").write_text("y == 1\n^\nparse_error: Field not found\n")

    with pytest.raises(UsageError, match="Field not found"):
        presets.enable(fake, None, [EventSpec("kvm:kvm_exit", "y == 1")])


def test_counts_of_stats():
    one = "entries: 5\noverrun: 2\ncommit overrun: 1\nbytes: 900\ndropped events: 4\nread events: 10\n"

    assert total({0: one, 1: one}) == {"events": 30, "lost": 14}
    assert total({}) == {"events": 0, "lost": 0}


def test_the_first_reason_counts():
    ending = Ending()
    ending.because("duration")
    ending.because("command")
    ending.wait(5)

    assert ending.reason == "duration"
    ending.close()


def test_a_signal_ends_the_recording_and_a_second_one_the_program():
    ending = Ending()
    with ending.signals(snapshot=True):
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        ending.recording = True
        os.kill(os.getpid(), signal.SIGINT)
        ending.wait(5)
        assert ending.reason == "SIGINT"
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ending.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    ending.close()


def test_conditions():
    assert Condition("SIGUSR1").spec is None
    assert Condition("sched:sched_switch:next_prio == 0").spec == EventSpec("sched:sched_switch", "next_prio == 0")
    with pytest.raises(UsageError, match="is no event"):
        Condition("next prio")


def test_guests_have_names():
    assert make("ssh://root@10.0.0.5:22").name == "10-0-0-5"
    assert make("vm1=ssh://there").name == "vm1"
    assert make("ssh://[fe80::1]").name == "fe80--1"
