"""Worlds of every feature: the files hold what was drawn, and the truth is true of them."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest

from counterpoint.errors import UsageError
from counterpoint.simulate import World, WorldOptions, random_options
from counterpoint.simulate.events import KINDS
from simulate.worlds import CASES, MASK, check, make, signed, written


@pytest.mark.parametrize("name", CASES)
def test_the_truth_of_a_world_is_true_of_its_files(tmp_path, name):
    check(make(tmp_path, **CASES[name]))


def test_every_option_is_tried():
    tried = {option for how in CASES.values() for option in how} | {"events", "seed"}

    assert tried == {field.name for field in fields(WorldOptions)}


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_drawn_worlds_are_true(tmp_path, start):
    for seed in range(start, start + 20):
        check(written(World(random_options(seed)), tmp_path / str(seed)))


def test_drawn_options_reach_every_feature():
    seen = {}
    for seed in range(500):
        for name, value in random_options(seed).features().items():
            seen.setdefault(name, set()).add(value)

    assert set(seen) == {field.name for field in fields(WorldOptions)}
    assert seen["arch"] == {"arm64"}
    assert seen["time_shift"] == {"true", "wrong", "nested", "zero"}
    assert random_options(17) == random_options(17)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("all-jumps", "nested-arm64", "lose"):
        one, two, other = (tmp_path / f"{name}-{n}" for n in range(3))
        make(one, **CASES[name])
        make(two, **CASES[name])
        make(other, **CASES[name] | {"seed": 9})

        files = sorted(path.name for path in one.iterdir())
        assert files == sorted(path.name for path in two.iterdir())
        assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
        assert all((one / file).read_bytes() != (other / file).read_bytes() for file in files)


class TestFeatures:
    """That each feature is really there."""

    def test_about_as_many_events_as_asked(self, tmp_path):
        for count in (2000, 20_000, 100_000):
            truth = make(tmp_path / str(count), events=count).truth
            assert 0.8 * count < sum(truth["events"].values()) < 1.25 * count

    def test_offsets_are_equal_unless_they_differ(self, tmp_path):
        def offsets(**how):
            return {v["epochs"][0]["offset"] for v in made(**how).truth["guests"][0]["vcpus"]}

        def made(**how):
            return make(tmp_path / str(len(how)), vcpus=4, **how)

        assert len(offsets()) == 1
        assert len(offsets(differ=10**9)) == 4

    def test_the_first_vcpu_s_offset_is_as_asked(self, tmp_path):
        truth = make(tmp_path, offset=0, differ=10**9).truth

        offsets = [v["epochs"][0]["offset"] for v in truth["guests"][0]["vcpus"]]
        assert offsets[0] == 0 and offsets[1] != 0

    def test_writes_are_told_of_unless_silent(self, tmp_path):
        for silent in (False, True):
            made = make(tmp_path / str(silent), pauses=1, writes=1, silent=silent, events=5000)
            host = made.recordings["host"]
            event = host.format_named("kvm", "kvm_write_tsc_offset")
            rows = host.rows(event)
            epochs = [e for v in made.truth["guests"][0]["vcpus"] for e in v["epochs"][1:]]
            assert len(epochs) == 3
            if silent:
                assert len(rows) == 0
                continue
            told = sorted(
                (int(s), signed(int(o)))
                for s, o in zip(host.stamp[rows], host.column(event, "next_tsc_offset", rows), strict=True)
            )
            assert told == sorted((e["from_host"], e["offset"]) for e in epochs)

    def test_a_guest_stands_while_paused(self, tmp_path):
        made = make(tmp_path, pauses=1, events=5000)
        (before, after) = made.truth["guests"][0]["vcpus"][0]["epochs"]
        events = made.world.events("guest", 0)
        at = int(np.flatnonzero(events.epoch == 1)[0])
        host, guest = (int(np.diff(s[at - 1 : at + 1])[0]) for s in (events.host_stamp, events.true_stamp))

        assert after["offset"] < before["offset"]
        assert host == guest + before["offset"] - after["offset"]
        assert host > 1.5 * guest

    def test_a_counter_that_steps_back_is_stamped_late(self, tmp_path):
        late = 0
        for seed in range(6):
            made = make(tmp_path / str(seed), writes=1, seed=seed, events=4000)
            for vcpu in made.truth["guests"][0]["vcpus"]:
                events = made.world.events("guest", vcpu["guest_cpu"])
                steps_back = any(
                    signed(b["offset"] - a["offset"]) < 0
                    for a, b in zip(vcpu["epochs"], vcpu["epochs"][1:], strict=False)
                )
                assert events.late.any() <= steps_back
                assert vcpu.get("late_events", 0) == int(events.late.sum())
                late += int(events.late.sum())
        assert late > 0

    def test_hotplug_comes_late(self, tmp_path):
        made = make(tmp_path, hotplug=True, events=5000)
        first = [int(made.world.events("guest", cpu).t[0]) for cpu in (0, 1)]

        assert first[1] > made.world.span[1] // 8 > first[0]

    def test_l2_moves_between_l1s_cpus(self, tmp_path):
        made = make(tmp_path, nested=1, differ=1000, events=6000)

        assert set(made.world.events("l2", 0).parent_cpu.tolist()) == {0, 1}
        offsets = [e[0]["offset"] for e in made.truth["guests"][1]["from_host_by_l1_cpu"]]
        assert len(set(offsets)) == 2
        assert made.recordings["guest"].format_named("kvm", "kvm_entry") is not None
        assert len(made.recordings["guest"].rows(made.recordings["guest"].format_named("kvm", "kvm_entry"))) > 10

    def test_switches_between_levels_are_marked(self, tmp_path):
        for arch, names in (("x86", ("kvm_nested_vmenter", "kvm_nested_vmexit")),
                            ("arm64", ("kvm_nested_eret", "kvm_inject_nested_exception"))):  # fmt: skip
            host = make(tmp_path / arch, nested=1, nested_events=True, arch=arch).recordings["host"]
            counts = [len(host.rows(host.format_named("kvm", name))) for name in names]
            assert counts[0] == counts[1] > 10

    def test_a_migrated_guest_is_on_both_hosts(self, tmp_path):
        made = make(tmp_path, migrate=True, khz_b=3_000_000, events=5000)
        events = made.world.events("guest", 0)
        epochs = made.truth["guests"][0]["vcpus"][0]["epochs"]

        assert set(events.host.tolist()) == {0, 1}
        assert (np.diff(events.true_stamp.view(np.int64)) > 0).all()
        assert [e.get("host") for e in epochs] == [None, "host-b"]
        assert epochs[1]["ratio"] == (2_400_000 << 48) // 3_000_000
        assert made.truth["hosts"] == ["host.dat", "host-b.dat"]

    def test_losses_are_counted_or_not(self, tmp_path):
        counted = make(tmp_path / "a", lose=10, events=6000)
        assert counted.recordings["host"].losses.total > 10
        assert len(counted.truth["lost"]["host"]) == len(counted.recordings["host"].losses.row)
        blind = make(tmp_path / "b", lose=10, uncounted=True, events=6000).recordings["host"].losses
        assert len(blind.row) > 3
        assert set(blind.count.tolist()) == {-1}

    def test_cpus_that_are_not_recorded_have_no_events(self, tmp_path):
        host = make(tmp_path, unrecorded_cpus=2).recordings["host"]

        assert host.cpus == 4
        assert len([s for s in host.streams if s.last > s.first]) == 2

    def test_no_kvm_events_are_none(self, tmp_path):
        made = make(tmp_path, kvm_events=False, nested=1)
        for recording in made.recordings.values():
            assert all(recording.formats.get(i).system != "kvm" for i in recording.counts_by_id())

    def test_probes_say_the_cntvoff(self, tmp_path):
        made = make(tmp_path, arch="arm64", probes=True, pauses=1, cpus=2)
        host = made.recordings["host"]
        event = host.format_named("lab", "set_cntvoff")
        values = set(host.column(event, "off", host.rows(event)).tolist())

        assert values == {0} | {e["cntvoff"] for v in made.truth["guests"][0]["vcpus"] for e in v["epochs"]}

    def test_probes_say_the_sum_while_l2_runs(self, tmp_path):
        made = make(tmp_path, arch="arm64", probes=True, pauses=1, nested=1, kvm_events=True)
        host = made.recordings["host"]
        event = host.format_named("lab", "set_cntvoff")
        values = set(host.column(event, "off", host.rows(event)).tolist())
        l1 = {e["cntvoff"] for v in made.truth["guests"][0]["vcpus"] for e in v["epochs"]}
        (l2,) = {e["cntvoff"] for v in made.truth["guests"][1]["vcpus"] for e in v["epochs"]}

        assert values == {0} | l1 | {(value + l2) % (1 << 64) for value in l1}

    def test_kvm_clock_is_what_kvm_said(self, tmp_path):
        made = make(tmp_path, guest_clock="local", pvclock=True, events=6000)
        host, guest = made.recordings["host"], made.truth["guests"][0]
        event = host.format_named("kvm", "kvm_pvclock_update")
        rows = host.rows(event)
        rows = rows[host.column(event, "vcpu_id", rows) == 1]
        names = ("tsc_timestamp", "system_time", "tsc_to_system_mul", "tsc_shift")
        updates = zip(host.stamp[rows].tolist(), *(host.column(event, n, rows).tolist() for n in names), strict=True)
        updates = sorted(updates)
        events = made.world.events("guest", 1)
        offset = guest["vcpus"][1]["epochs"][0]["counter"]["offset"]

        assert len(updates) == 4
        for stamp, at in zip(events.true_stamp.tolist(), events.host_stamp.tolist(), strict=True):
            _, tsc, system_time, mul, shift = [u for u in updates if u[0] <= at][-1]
            ticks = (at + offset - tsc) & MASK
            ns = system_time + ((ticks >> -shift) * mul >> 32)
            assert stamp == ns - guest["kvm_sched_clock_offset"]

    def test_files_say_what_they_are_told_to(self, tmp_path):
        for kind in ("true", "wrong", "nested", "zero"):
            made = make(tmp_path / kind, time_shift=kind, error=777, guest_option=True, tsc2nsec=True)
            guest, host = made.recordings["guest"].options, made.recordings["host"].options
            true = made.truth["guests"][0]["vcpus"][0]["epochs"][0]["offset"]
            said = -guest.time_shift.cpus[0][0].offset
            assert {"true": said == true, "wrong": said == true + 777, "zero": said == 0}.get(kind, said != true)
            assert guest.time_shift.peer_trace_id == host.trace_id
            tids = [v["host_tid"] for v in made.truth["guests"][0]["vcpus"]]
            assert host.guests[0].vcpus == tuple(enumerate(tids))
            assert host.tsc2nsec.mult * 2_400_000 >> host.tsc2nsec.shift in (999_999, 1_000_000)

    def test_samples_end_where_a_guest_migrates(self, tmp_path):
        shift = make(tmp_path, migrate=True, time_shift="true").recordings["guest"].options.time_shift

        assert [len(samples) for samples in shift.cpus] == [1, 1]

    def test_a_host_cpu_runs_one_task_at_a_time(self, tmp_path):
        host = make(tmp_path, vms=2, vcpus=3, decoys=2, cpus=2, events=6000).recordings["host"]
        event = host.format_named("sched", "sched_switch")
        for stream in host.streams:
            rows = host.rows(event)
            rows = rows[(rows >= stream.first) & (rows < stream.last)]
            prev, following = (host.column(event, name, rows) for name in ("prev_pid", "next_pid"))
            assert (prev[1:] == following[:-1]).all()
            assert (host.pid[rows] == prev).all()
            # who runs between two switches
            running = np.r_[prev[:1], following]
            at = np.searchsorted(rows, np.arange(stream.first, stream.last))
            assert (running[at] == host.pid[stream.first : stream.last]).all()


def test_formats_are_laid_out_as_their_dtypes():
    for kind in (*KINDS["x86"], *KINDS["arm64"]):
        for name, offset, size in re.findall(r" (\w+)(?:\[\d*\])?;\toffset:(\d+);\tsize:(\d+);", kind.format_text):
            if int(size):
                dtype, at = kind.dtype.fields[name]
                assert (dtype.itemsize, at) == (int(size), int(offset))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"arch": "mips"}, "arch 'mips'"),
        ({"cpus": 0}, "cpus 0 is not in 1..1024"),
        ({"arch": "arm64", "clock": "x86-tsc"}, "no x86-tsc"),
        ({"arch": "arm64", "guest_khz": 10**6}, "does not scale"),
        ({"arch": "arm64", "writes": 1}, "cannot write"),
        ({"probes": True}, "arm64"),
        ({"frac": 40}, "frac 40"),
        ({"version": 6}, "version"),
        ({"cpus": 2, "unrecorded_cpus": 2}, "at least one"),
        ({"late_start": 0.5, "early_end": 0.5}, "less than a tenth"),
        ({"vcpus": 1, "hotplug": True}, "comes later"),
        ({"migrate": True, "nested": 1}, "nested"),
        ({"drift_ppm": float("nan")}, "drift_ppm"),
        ({"pvclock": True}, "kvm-clock"),
        ({"pvclock": True, "clock": "local", "khz": 1_000_000}, "above 1000000 kHz"),
        ({"khz": 999}, "khz 999 is below 1000"),
        ({"khz_b": 9_700_000, "migrate": True}, "4 times apart"),
    ],
)
def test_what_no_world_can_be_is_refused(how, why):
    with pytest.raises(UsageError, match=why):
        WorldOptions(**how)


def test_a_world_is_written_once_and_overwrites_only_when_told(tmp_path):
    world = World(WorldOptions(events=1000))
    world.write(tmp_path)
    with pytest.raises(UsageError, match="written already"):
        world.write(tmp_path)
    with pytest.raises(UsageError, match="exists"):
        World(WorldOptions(events=1000)).write(tmp_path)
    World(WorldOptions(events=1000)).write(tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        World(WorldOptions(events=1000)).write(tmp_path / "file")


def test_a_scaled_guest_on_a_counter_that_wraps_is_refused():
    for how in ({"guest_khz": 1_000_000}, {"nested": 1, "nested_khz": 1_000_000}):
        with pytest.raises(UsageError, match="would jump"):
            World(WorldOptions(start=(1 << 64) - 10**7, events=2000, **how))


def test_a_stamp_outside_of_the_world_is_refused(tmp_path):
    made = make(tmp_path)
    start = made.truth["clocks"]["host"]["counter"]["start"]

    assert made.world.guest_at("guest", 0, start) is not None
    with pytest.raises(ValueError, match="outside"):
        made.world.guest_at("guest", 0, (start - 1) & MASK)
