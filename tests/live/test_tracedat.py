"""What is written from tracefs' own texts and pages is what the writer of columns writes, and what trace-cmd reads."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from counterpoint.dat_layout import Option
from counterpoint.errors import UsageError
from counterpoint.live import tracedat
from counterpoint.traces import write_options
from counterpoint.traces.options import GuestOption
from counterpoint.traces.recording import Recording
from helpers import need_tool
from live.fake_tracefs import cpu_files, fake_tracefs
from writers.worlds import tiny_pair


@pytest.fixture
def written(tmp_path, monkeypatch):
    """(a recording by the writer of columns, tracefs as it was there, its CPUs' pages)."""
    monkeypatch.setitem(tracedat._SOURCE, "kallsyms", tmp_path / "kallsyms")
    first = Recording.open(tiny_pair(lost=5, version=6)[0].write(tmp_path / "first.dat"))
    return first, fake_tracefs(tmp_path / "tracing", first), cpu_files(tmp_path / "pages", first)


def again(tmp_path, first, root, files, more=(), **how):
    facts = tracedat.Facts(f"local [{first.clock}]\n", first.cpus, 0xF0F0, {0: "entries: 1\n"}, "Linux here")
    path = tmp_path / "again.dat"
    head = tracedat.head_of(root, **how)
    tracedat.write_dat(path, head, tracedat.cmdlines_of(root), [*facts.options(), *more], files, cpus=first.cpus)
    return Recording.open(path)


def test_it_reads_as_what_the_other_writer_wrote(tmp_path, written):
    first = written[0]

    other = again(tmp_path, *written)

    assert np.array_equal(first.stamp, other.stamp) and np.array_equal(first.event_id, other.event_id)
    assert first.streams == other.streams and first.losses.total == other.losses.total > 0
    assert all(first.payload(row) == other.payload(row) for row in range(len(first)))
    assert first.cmdlines == other.cmdlines and first.printk_formats() == other.printk_formats()
    assert sorted(f.name for f in first.formats.values()) == sorted(f.name for f in other.formats.values())
    assert (first.clock, first.cpus, first.long_size) == (other.clock, other.cpus, other.long_size)
    assert other.warnings == []
    assert (other.options.uname, other.options.trace_id) == ("Linux here", 0xF0F0)
    assert other.options.cpu_stats == ["CPU: 0\nentries: 1"]
    assert other.options.recorder.startswith("counterpoint ")


@pytest.mark.peer
def test_trace_cmd_reports_the_same(tmp_path, written):
    def report(path) -> list[str]:
        command = [need_tool("trace-cmd"), "report", "-t", "--raw-ts", "-i", str(path)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    again(tmp_path, *written)

    lines = report(tmp_path / "again.dat")
    assert len(lines) > 10 and lines == report(written[0].path)


def test_a_last_page_that_is_not_whole_is_left_out(tmp_path, written):
    first, root, files = written
    with files[0].open("ab") as file:
        file.write(bytes(100))

    assert len(again(tmp_path, first, root, files)) == len(first)


def test_cpus_without_pages_keep_their_place(tmp_path, written):
    first, root, files = written
    del files[0]

    other = again(tmp_path, first, root, files)

    assert other.cpus == first.cpus
    assert len(other) == sum(s.last - s.first for s in first.streams if s.cpu)


def test_a_guest_and_its_threads_are_found_by_their_readers(tmp_path, written):
    option = tracedat.guest_option("vm1", 0xABCDEF, {1: 4712, 0: 4711})
    guest = GuestOption("vm1", 0xABCDEF, ((0, 4711), (1, 4712)))

    assert option == write_options.guest_option(guest)
    assert again(tmp_path, *written, more=[option]).options.guests == [guest]
    if shutil.which("trace-cmd"):
        command = ["trace-cmd", "dump", "--options", "-i", str(tmp_path / "again.dat")]
        said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        lines = [" ".join(line.split("[")[0].split()) for line in said.splitlines()]
        at = lines.index("vm1")
        assert lines[at : at + 5] == ["vm1", "0xABCDEF", "2", "0 4711", "1 4712"]


def test_options_are_those_of_the_other_writer():
    facts = tracedat.Facts("x [mono_raw]\n", 3, 77, {}, "Linux here", (5, 9))

    assert facts.options()[:2] == [
        write_options.clock_option("mono_raw", ["x"]), write_options.text_option(Option.UNAME, "Linux here"),
    ]  # fmt: skip
    assert facts.options()[3:5] == [write_options.trace_id_option(77), write_options.tsc2nsec_option(5, 9)]


def test_events_are_chosen_by_system_name_and_pattern(written):
    _, root, _ = written
    everything = tracedat.chosen(root, ["*"])

    assert len({system for system, _ in everything}) > 1
    assert tracedat.chosen(root, ["kvm"]) == [pair for pair in everything if pair[0] == "kvm"]
    assert tracedat.chosen(root, ["kvm:kvm_e*"]) == [("kvm", "kvm_entry"), ("kvm", "kvm_exit")]
    assert tracedat.chosen(root, ["kvm:kvm_exit", "kvm"]) == tracedat.chosen(root, ["kvm"])
    assert tracedat.chosen(root, ["nothing", "../events/kvm", "kvm:../kvm_exit", ""]) == []
    assert not {"ftrace"} & {system for system, _ in everything}


def test_long_texts_are_cut_at_a_line(written, monkeypatch):
    _, root, _ = written
    monkeypatch.setattr(tracedat, "MAX_TEXT", 100)
    (root / "saved_cmdlines").write_text("".join(f"{n} task{n}\n" for n in range(1000)))

    text = tracedat.cmdlines_of(root, {999: "late", 5: "known already"})

    assert text.endswith(b"\n") and b"999 late\n" in text and b"known" not in text
    assert len(text) <= 110 and all(len(line.split()) == 2 for line in text.splitlines())


def test_symbols_without_addresses_are_left_out(tmp_path, written, monkeypatch):
    _, root, _ = written
    hidden = tmp_path / "kallsyms"
    monkeypatch.setitem(tracedat._SOURCE, "kallsyms", hidden)
    hidden.write_text("0000000000000000 A first\n0000000000000000 T last\n")
    without = tracedat.head_of(root)
    hidden.write_text("0000000000000000 A first\nffffffff81000000 T last\n")

    assert len(tracedat.head_of(root)) == len(without) + len(hidden.read_bytes())
    assert tracedat.head_of(root, kallsyms=False) == without


def test_without_tracefs_it_is_said(tmp_path):
    with pytest.raises(UsageError, match="header_page"):
        tracedat.head_of(tmp_path)
