"""ftrace's text: every event is read, what its stamps stand for is known, and a proof by them stays true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoint.clocks.counter import relative
from counterpoint.errors import BadFileError, UsageError
from counterpoint.outputs.text import EventText
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import sync
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording
from writers.text import write_text
from writers.worlds import tiny_pair

DATA = Path(__file__).parents[1] / "data"
LINE = "  CPU 0/KVM-191   [001] d..1. 26162.910733: kvm_entry: vcpu 3, rip 0x10\n"


def opened(path, text: str) -> Recording:
    path.write_text(text)
    return Recording.open(path)


@pytest.mark.parametrize("kernel", [True, False])
def test_what_is_written_is_read(tmp_path, kernel):
    for file in tiny_pair(clock="mono", lost=5)[:2]:
        first = Recording.open(file.write(tmp_path / "t.dat"))

        found = Recording.open(write_text(first, tmp_path / "t.txt", kernel=kernel))

        assert [(s.cpu, s.first, s.last) for s in found.streams] == [(s.cpu, s.first, s.last) for s in first.streams]
        assert np.array_equal(found.stamp, (first.stamp + np.uint64(500)) // np.uint64(1000) * np.uint64(1000))
        assert np.array_equal(found.pid, first.pid)
        assert found.losses.row.tolist() == first.losses.row.tolist()
        assert found.losses.count.tolist() == first.losses.count.tolist()
        names = [first.event_name(i) for i in first.event_id.tolist()]
        assert [found.event_name(i) for i in found.event_id.tolist()] == names
        assert found.rounding == ((500, 499) if kernel else (500, 999))
        assert found.warnings == []


@pytest.mark.parametrize(
    ("line", "stamp", "clock", "rounding"),
    [
        (LINE, 26_162_910_733_000, "unknown", (500, 999)),
        ("# tracer: nop\n#\n" + LINE, 26_162_910_733_000, "unknown", (500, 499)),
        (LINE.replace("26162.910733", "26162.910733123"), 26_162_910_733_123, "unknown", (0, 0)),
        (LINE.replace("26162.910733", "310508538536"), 310_508_538_536, "unknown counter", (0, 0)),
        (LINE.replace("d..1. ", ""), 26_162_910_733_000, "unknown", (500, 999)),
        (LINE.replace("[001] d..1.", "(    191) [001] d..1."), 26_162_910_733_000, "unknown", (500, 999)),
        (LINE.replace("[001] d..1.", "  1d..1."), 26_162_910_733_000, "unknown", (500, 999)),
        (LINE.replace("kvm_entry: v", "kvm_entry:            v"), 26_162_910_733_000, "unknown", (500, 999)),
        (LINE.replace("26162.910733", "910733") + LINE, 910_733_000, "unknown", (500, 999)),
    ],
)
def test_lines(tmp_path, line, stamp, clock, rounding):
    found = opened(tmp_path / "t.txt", line)

    assert (int(found.stamp[0]), found.clock, found.rounding) == (stamp, clock, rounding)
    assert (found.streams[0].cpu, int(found.pid[0]), found.comm(191)) == (1, 191, "CPU 0/KVM")
    event = found.format_named("kvm", "kvm_entry")
    assert event is not None
    assert found.column(event, "vcpu_id", found.rows(event)).tolist()[:1] == [3]
    assert found.column(event, "rip", found.rows(event)).tolist()[:1] == [16]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            "sched_switch: prev_comm=a b prev_pid=7 prev_prio=120 prev_state=S ==> next_comm=c next_pid=8 next_prio=98",
            {"prev_comm": "a b", "prev_pid": 7, "prev_state": 1, "next_comm": "c", "next_pid": 8},
        ),
        ("sched_switch: a:b:7 [120] R ==> c:8 [98]", {"prev_comm": "a:b", "prev_pid": 7, "prev_state": 0}),
        ("kvm_exit: vcpu 2 reason HLT rip 0x1f info1 0x0", {"vcpu_id": 2, "reason": "HLT", "guest_rip": 31}),
        ("kvm_exit: reason EXIT_INTR rip 0x1f info 0 0", {"reason": "EXIT_INTR"}),
        ("kvm_exit: TRAP: HSR_EC: 0x0001 (WFx), PC: 0xff", {"ret": "TRAP", "esr_ec": 1, "exception": "WFx"}),
        ("kvm_exit: <CANT FIND FIELD exit_reason>IRQ: HSR_EC: 0x0000 (UNKNOWN), PC: 0xff", {"esr_ec": 0}),
        ("kvm_write_tsc_offset: vcpu=1 prev=18446744073709551615 next=5", {"previous_tsc_offset": 2**64 - 1}),
        ("sched_waking: comm=a b pid=9 prio=120 target_cpu=001", {"comm": "a b", "pid": 9, "target_cpu": 1}),
        (
            "hrtimer_start: hrtimer=00000000fa12 function=f expires=12 soft=-3",
            {"expires": 12, "soft": -3},
        ),
    ],
)
def test_fields(tmp_path, text, fields):
    found = opened(tmp_path / "t.txt", LINE.replace("kvm_entry: vcpu 3, rip 0x10", text))
    event = next(iter(found.formats.values()))
    batch = found.batch(event, np.array([0]))

    values = {name: batch.values(field)[0] for name in fields if (field := event.field(name)) is not None}

    assert values == fields
    assert batch.text("line") == [text.partition(": ")[2]]


def test_losses_and_what_was_overwritten(tmp_path):
    marks = ("LOST 9 EVENTS", "7 EVENTS DROPPED", "EVENTS DROPPED")
    found = opened(tmp_path / "t.txt", LINE + "".join(f"CPU:1 [{mark}]\n{LINE}" for mark in marks))
    assert list(zip(found.losses.row.tolist(), found.losses.count.tolist(), strict=True)) == [(1, 9), (2, 7), (3, -1)]

    head = "# tracer: nop\n# entries-in-buffer/entries-written: 1/{}   #P:2\n" + LINE
    assert opened(tmp_path / "a.txt", head.format(5)).losses.row.tolist() == [0]
    assert opened(tmp_path / "b.txt", head.format(1)).losses.row.tolist() == []

    # a line of an event that matters, and cannot be read, is a loss on every CPU
    found = opened(tmp_path / "c.txt", LINE + "-- kvm_exit: broken\n" + LINE)
    assert found.losses.row.tolist() == [1]
    assert "1 lines are no events" in found.warnings[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hello\nworld\n", "not a recording in any format"),
        ("# tracer: nop\n#\n", "no event is in it"),
        ("  host: " + LINE, "of several machines"),
        (LINE + LINE.replace("910733", "910733123"), "six digits, some nine"),
        (LINE + LINE.replace("26162.910733", "310508538536"), "have a point"),
    ],
)
def test_what_is_no_such_text_is_said(tmp_path, text, sentence):
    with pytest.raises(BadFileError, match=sentence):
        opened(tmp_path / "t.txt", text)


def test_a_file_beside_it_or_the_user_names_the_clock(tmp_path):
    (tmp_path / "trace_clock").write_text("local global counter [mono_raw] mono x86-tsc\n")
    assert opened(tmp_path / "trace", LINE).clock == "mono_raw"

    other = tmp_path / "other"
    other.mkdir()
    host, guest = opened(tmp_path / "host", LINE), opened(other / "guest", LINE)
    assert [g.recording.clock for g in sync(host, guest, clocks=["mono"]).guests] == ["mono"]
    wrong = {
        "guest=x86-tsc": "counts ticks",
        "host=mono": "says itself",
        "x=mono": "no recording",
        "y": "no trace clock",
    }
    for said, sentence in wrong.items():
        with pytest.raises(UsageError, match=sentence):
            sync(host, guest, clocks=[said])


def test_nested_guests_need_whole_stamps(tmp_path):
    paths = []
    for name in ("l0", "l1", "l2"):
        paths.append(tmp_path / name)
        paths[-1].write_text(LINE)

    with pytest.raises(UsageError, match="rounded"):
        sync(*paths, parents={"l2": "l1"})


@pytest.mark.parametrize(
    ("options", "said", "cut"),
    [
        ({"arch": "arm64", "vcpus": 2, "seed": 1}, True, False),
        ({"clock": "mono", "slews": 2, "drift_ppm": 40.0, "seed": 2}, False, True),
        ({"clock": "local", "guest_clock": "mono", "seed": 3}, True, False),
        ({"guest_clock": "local", "drift_ppm": 12.0, "seed": 4, "events": 9000}, True, True),
        ({"arch": "arm64", "pauses": 1, "latency": "emulated", "seed": 5}, False, False),
    ],
)
def test_the_truth_is_inside_every_bound(tmp_path, options, said, cut):
    world = World(WorldOptions(**({"events": 4000} | options)))
    truth = world.write(tmp_path)
    files = [
        write_text(Recording.open(tmp_path / m.file), tmp_path / f"{m.name}.txt", kernel=not cut, cut=cut)
        for m in world.machines
    ]
    host_clock, guest_clock = world.options.host_clock, world.options.guests_clock
    named = [f"host={host_clock}", f"guest={guest_clock}"] if said else []

    result = sync(*files, clocks=named if said or host_clock != "x86-tsc" else [])

    checked = 0
    for vcpu in result.guests[0].vcpus:
        events = world.events("guest", vcpu.guest_cpu)
        first = next(s.first for s in result.guests[0].recording.streams if s.cpu == vcpu.guest_cpu)
        assert vcpu.host_tid == truth["guests"][0]["vcpus"][vcpu.guest_cpu]["host_tid"]
        for epoch in vcpu.epochs:
            assert epoch.verdict.value in ("derived", "ambiguous")
            if not epoch.verdict.is_sound:
                continue
            at = epoch.rows[epoch.is_sure(result.guests[0].recording.stamp[epoch.rows])] - first
            early, late = epoch.as_epoch().bound(events.stamp[at])
            true, base = events.parent_stamp[at], int(events.parent_stamp[at[0]])
            # clocks in ns round down, each on its own
            assert (relative(early, base) - 1 <= relative(true, base)).all()
            assert (relative(true, base) <= relative(late, base) + 1).all()
            checked += len(at)
    assert checked > 500


def test_no_byte_of_a_text_can_do_harm(tmp_path):
    rng = np.random.default_rng(3)
    first = Recording.open(tiny_pair(clock="mono", lost=5)[0].write(tmp_path / "t.dat"))
    whole = write_text(first, tmp_path / "whole.txt").read_bytes()
    path = tmp_path / "t.txt"
    for number in range(30):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=20).tolist():
            data[at] = int(rng.integers(1, 256)) if number % 2 else ord("9 :.-[]=\n"[at % 9])
        path.write_bytes(bytes(data[: int(rng.integers(len(data)))]))
        try:
            found = Recording.open(path)
        except BadFileError:
            continue
        for event in found.counts_by_id():
            assert len(EventText(found).render(event, found.rows(event))) == len(found.rows(event))


def test_timers_tell_how_long_a_tick_is(tmp_path):
    """As in trace.dat, although a timer's function is printed by its name."""
    first = Recording.open(DATA / "x86-agent" / "host.dat")
    found = Recording.open(write_text(first, tmp_path / "host.txt", kernel=False)).in_clock("x86-tsc")
    event = found.format_named("timer", "hrtimer_expire_entry")

    assert event is not None
    assert (field := event.field("function")) is not None
    assert field.kind == "string"
    assert rate_of(found) == rate_of(first)
