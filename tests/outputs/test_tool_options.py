"""What other tools are told puts the guest where the proof has it, by those tools; what they cannot be told is said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from counterpoint.commands.main import main
from counterpoint.dat_layout import Option
from counterpoint.outputs.tool_options import options_of
from counterpoint.simulate import World, WorldOptions
from counterpoint.timeline.sync import SyncResult, sync
from counterpoint.traces.container import open_container
from counterpoint.traces.options import GuestOption, TimeSample, TimeShift
from counterpoint.traces.recording import Recording
from counterpoint.traces.write_copy import copy_with_options
from counterpoint.traces.write_options import guest_option, time_shift_option, tsc2nsec_option
from helpers import need_tool
from outputs.dat_files import inside_windows
from writers.ctf_tiny import write_ctf

DATA = Path(__file__).parent.parent / "data"


def of_world(folder: Path, **how: object) -> SyncResult:
    world = World(WorldOptions(**({"events": 3000, "seed": 1} | how)))  # type: ignore[arg-type]
    world.write(folder)
    return sync(*[folder / m.file for m in world.machines])


def told(result: SyncResult) -> dict[str, str]:
    """What is to be told to each tool; of those that cannot be, why."""
    return {o.tool: o.text or f"no: {o.reason}" for o in options_of(result)}


def attach(command: str, folder: Path) -> tuple[Path, Path]:
    """What trace-cmd attach does: by itself where it is new enough, else as tracecmd/trace-attach.c writes it."""
    words = shlex.split(command)
    assert words[:3] == ["trace-cmd", "attach", "-c"]
    assert words[4] == "-s"
    sources = [Path(word) for word in words if word.endswith(".dat")]
    copies = [folder / source.name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        shutil.copy(source, copy)
    trace_cmd = need_tool("trace-cmd")
    if "attach" in subprocess.run([trace_cmd], capture_output=True, text=True, check=False).stdout:
        subprocess.run([trace_cmd, *words[1:6], *map(str, copies), *words[8:]], check=True)
        return copies[0], copies[1]
    host, guest = map(Recording.open, sources)
    tids = [int(word) for word in words[8:]]
    assert host.options.tsc2nsec is not None
    assert host.options.trace_id is not None
    assert guest.options.trace_id is not None
    samples = tuple((TimeSample(0, int(words[5]), 1, 0),) for _ in range(int(words[3])))
    of_host = [guest_option(GuestOption("", guest.options.trace_id, tuple(enumerate(tids))))]
    of_guest = [
        time_shift_option(TimeShift(host.options.trace_id, 0, samples, has_frac=True)),
        tsc2nsec_option(host.options.tsc2nsec.mult, host.options.tsc2nsec.shift),
    ]
    for source, copy, added in zip(sources, copies, (of_host, of_guest), strict=True):
        container = open_container(source)
        kept = [(o.id, o.data) for o in container.options if added is of_host or o.id != Option.TSC2NSEC]
        with copy.open("wb") as file:
            copy_with_options(container, [*kept, *added], file)
    return copies[0], copies[1]


@pytest.mark.peer
def test_trace_cmd_attach_puts_every_event_into_its_window(tmp_path):
    result = of_world(tmp_path, tsc2nsec=True, vcpus=2, compression="none")
    folder = tmp_path / "copies"
    folder.mkdir()

    host, guest = attach(told(result)["trace-cmd attach"], folder)

    vcpus = {("guest", v.guest_cpu): ("host", v.host_tid) for v in result.guests[0].vcpus if v.host_tid is not None}
    inside, outside, unknown = inside_windows({"host": host, "guest": guest}, vcpus)["guest"]
    assert (outside, inside + unknown) == (0, len(result.guests[0].recording))
    assert inside > 1000


def test_perf_is_told_kvms_own_offset(tmp_path):
    result = of_world(tmp_path, vcpus=2)
    said = told(result)

    offset = result.guests[0].vcpus[0].epochs[0].offset
    for tool, pattern in (
        ("perf inject --guest-data", r"--guest-data=GUEST\.perf\.data,PID,(0x[0-9a-f]+)$"),
        ("perf inject --vm-time-correlation", r"--vm-time-correlation=(0x[0-9a-f]+) --force$"),
    ):
        found = re.search(pattern, said[tool])
        assert found is not None
        assert offset is not None
        # guest_session__convert_time(): tsc -= offset, in 64 bits
        stamp = int(result.guests[0].recording.stamp[0])
        assert (stamp - int(found[1], 16)) % (1 << 64) == (stamp - offset) % (1 << 64)


@pytest.mark.peer
def test_babeltrace_prints_the_guest_at_the_hosts_time(tmp_path):
    result = sync(DATA / "arm64-monoraw" / "host.dat", DATA / "arm64-monoraw" / "guest.dat")
    host, guest = result.host, result.guests[0].recording
    write_ctf(tmp_path / "host", "host", [int(s) for s in host.stamp[:5]])
    write_ctf(tmp_path / "guest", "guest", [int(s) for s in guest.stamp[:5]])
    words = shlex.split(told(result)["babeltrace2"])
    words = [{"HOST_TRACE": "host", "GUEST_TRACE": "guest"}.get(word, word) for word in words]
    assert words[0] == Path(need_tool("babeltrace2")).name

    shown = subprocess.run([*words, "--clock-seconds"], cwd=tmp_path, capture_output=True, text=True, check=True)

    machine = next(m for m in result.timeline.machines if m.name == "guest")
    expected = [(int(s), "guest") for s in machine.host_stamp[:5]] + [(int(s), "host") for s in host.stamp[:5]]
    found = re.findall(r"^\[(\d+)\.(\d{9})\] \(\S+\) (\w+):", shown.stdout, re.MULTILINE)
    assert [(int(s + ns), name) for s, ns, name in found] == sorted(expected)


def test_the_manifest_of_perfetto(tmp_path):
    result = sync(DATA / "arm64-monoraw" / "host.dat", DATA / "arm64-monoraw" / "guest.dat")
    text = told(result)["Perfetto manifest"]

    # detected by how it begins (docs/reference/perfetto-manifest.md)
    assert text.startswith('{"perfetto_manifest"')
    host, guest = json.loads(text)["perfetto_manifest"]["files"]
    assert guest["clocks"]["sync_to"] == {"file": host["path"], "clock": "MONOTONIC_RAW"}
    # the guest's clock reads T when the host's reads T + offset_ns
    machine = next(m for m in result.timeline.machines if m.name == "guest")
    at = int(machine.recording.stamp[7])
    assert at + guest["clocks"]["offset_ns"] == int(machine.host_stamp[7])


@pytest.mark.parametrize(
    ("how", "tool", "reason"),
    [
        ({"pauses": 1, "tsc2nsec": True}, "trace-cmd attach", "offsets, one after the other"),
        ({"differ": 10**9, "tsc2nsec": True}, "trace-cmd attach", "have offsets of their own"),
        ({"differ": 10**9}, "perf inject --vm-time-correlation", "have offsets of their own"),
        ({"guest_khz": 1_500_000, "frac": 32, "time_shift": "true"}, "perf inject --guest-data", "is scaled"),
        ({"clock": "mono", "slews": 2, "drift_ppm": 20.0}, "babeltrace2", "a line was fitted"),
        ({}, "trace-cmd attach", "no TSC2NSEC"),
        ({}, "Perfetto manifest", "recorded in ticks"),
        ({"arch": "arm64"}, "perf inject --guest-data", "recorded in mono_raw"),
        ({"arch": "arm64", "clock": "local"}, "Perfetto manifest", "no name for the clock local"),
    ],
)
def test_what_a_tool_cannot_represent_is_said(tmp_path, how, tool, reason):
    said = told(of_world(tmp_path, **({"vcpus": 2} | how)))[tool]

    assert said.startswith("no: ")
    assert reason in said


def test_the_command_prints_them_and_what_it_attached(tmp_path, capsys):
    pair = [str(DATA / "x86-agent" / name) for name in ("host.dat", "guest.dat")]

    assert main(["sync", *pair, "--print-options"]) == 0
    out = capsys.readouterr().out
    assert "guest, trace-cmd attach:\n    cannot say it: host.dat has no TSC2NSEC" in out
    assert f"--vm-time-correlation={-81892957611 & (1 << 64) - 1:#x} --force\n" in out

    assert main(["sync", *pair, "--print-options", "--attach", str(tmp_path / "a"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [o["tool"] for o in report["tool_options"]][::4] == ["trace-cmd attach", "Perfetto manifest"]
    guest, host = report["attached"]
    assert guest == {
        "file": str(tmp_path / "a" / "guest.dat"), "machine": "guest", "options": ["TRACEID", "TIME_SHIFT"],
        "corrected": None, "notes": [],
    }  # fmt: skip
    assert host["options"] == ["TRACEID", "GUEST"]
