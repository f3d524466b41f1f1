"""``counterpoint offsets`` and its report: every source side by side, nothing left behind, honest where it cannot."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.claims.given import read_claims
from counterpoint.commands import main as command
from counterpoint.live import debugfs, doctor, kvm, offsets, ptp, report, tracefs
from counterpoint.live.inject import status_of
from counterpoint.live.missing import Missing
from counterpoint.live.model import ACTIVE, L1, HostOffsets, Reading, VcpuOffsets
from counterpoint.live.probes import RECIPES
from counterpoint.live.vms import Vcpu, Vm
from live.conftest import FULL

pytestmark = pytest.mark.usefixtures("alone")


def counterpoint(*arguments: str) -> tuple[int, str, str]:
    """Run the command: (exit status, output, errors)."""
    done = subprocess.run(
        [sys.executable, "-m", "counterpoint", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def ours(root: Path) -> list[str]:
    found = [line for line in (root / "dynamic_events").read_text().splitlines() if "counterpoint" in line]
    return [*found, *(name for name in os.listdir(root / "instances") if name.startswith("counterpoint"))]


def reading(source: str, low: int, high: int | None = None, level: str = L1, **more) -> Reading:
    return Reading(source, level, low, low if high is None else high, 1000, 10**18, **more)


def of(*readings: Reading, vm: Vm | None = None, number: int = 0) -> VcpuOffsets:
    return VcpuOffsets(vm or Vm(7, 5, "QEMU", "web"), Vcpu(number, 9, 8, "debugfs", number), list(readings))


# -- sources on the real machine -------------------------------------------------------------------------------------


def test_debugfs_and_the_injected_ioctl_agree(run_vmm, tracefs_root, debugfs_root):
    vmm = run_vmm("exits")

    status, out, err = counterpoint("offsets", "--pid", str(vmm.pid), "--vmm", "--json")

    assert status == 0, err
    found = json.loads(out)
    (vm,) = found["vms"]
    assert (vm["pid"], [v["vcpu"] for v in vm["vcpus"]]) == (vmm.pid, [0, 1])
    for vcpu in vm["vcpus"]:
        by = {r["source"]: r for r in vcpu["readings"]}
        assert by["debugfs"]["offset"] == by["vmm-offset"]["offset"]
        low, high = by["vmm-msr"]["offset"]
        assert low <= by["vmm-offset"]["offset"][0] <= high
        assert vcpu["agree"] is True and vcpu["conflicts"] == []
        assert by["debugfs"]["stood_still_ns"] == 0 < by["vmm-offset"]["stood_still_ns"]
        assert by["vmm-msr"]["brackets"] == 8
        # causality: the guest's own readings lie between the host's around them
        offset = by["vmm-offset"]["offset"][0]
        assert all(before <= guest - offset <= after for before, guest, after in vmm.brackets(vcpu["vcpu"]))
    assert vm["kvm_clock"]["host_tsc"] < found["host"]["counter"]
    assert ours(tracefs_root) == []
    assert all(status_of(vmm.pid, v["tid"])["TracerPid"] == "0" for v in vm["vcpus"])


def test_the_vmm_is_not_touched_unless_asked(run_vmm, debugfs_root):
    vmm = run_vmm("idle")
    before = vmm.counts(0)["eintr"], vmm.counts(1)["eintr"]

    status, out, _ = counterpoint("offsets", "--pid", str(vmm.pid))

    assert status == 0
    assert "missing: vmm: off: --vmm asks KVM from inside the VMM" in out
    assert (vmm.counts(0)["eintr"], vmm.counts(1)["eintr"]) == before


def test_claims_and_metrics_are_written_and_never_over_others(run_vmm, debugfs_root, tmp_path):
    vmm = run_vmm("exits")
    claims, metrics = tmp_path / "claims.jsonl", tmp_path / "counterpoint.prom"
    arguments = ["offsets", "--pid", str(vmm.pid), "--vmm", "--brackets", "1"]
    arguments += ["--claims", str(claims), "--openmetrics", str(metrics)]

    assert counterpoint(*arguments)[0] == 0
    status, _, err = counterpoint(*arguments)

    assert status == 2 and "the file exists" in err
    assert counterpoint(*arguments, "--force")[0] == 0
    read = read_claims(claims)
    assert {(guest, claim.guest_cpu, claim.source) for guest, claim in read} == {
        (None, cpu, source) for cpu in (0, 1) for source in ("debugfs", "vmm-offset")
    }
    line = json.loads(claims.read_text().splitlines()[0])
    assert {"host_counter", "realtime_ns", "vm", "tid", "unit"} <= set(line)
    text = metrics.read_text()
    assert text.endswith("# EOF\n")
    assert 'counterpoint_vcpu_sources_agree{vm="' in text


def test_a_write_that_kvm_logs_is_shown_and_held_against_the_rest(run_vmm, tracefs_root, debugfs_root, tmp_path):
    vmm = run_vmm("exits")
    claims = tmp_path / "claims.jsonl"
    arguments = ["offsets", "--watch", "--json", "--pid", str(vmm.pid), "--for", "2", "--claims", str(claims)]
    with subprocess.Popen(
        [sys.executable, "-m", "counterpoint", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        now = json.loads(watch.stdout.readline())["now"]
        (vm,) = now["vms"]
        offset = vm["vcpus"][1]["readings"][0]["offset"][0]
        vmm.say(f"write 1 {10**12}")
        out, err = watch.communicate(timeout=90)
    assert watch.returncode == 0, err
    changes = [json.loads(line) for line in out.splitlines()]
    write = next(c for c in changes if c["change"] == "write")
    assert (write["vm"]["pid"], write["vcpu"]) == (vmm.pid, 1)
    claimed = write["reading"]["offset"][0]
    brackets = vmm.brackets(1)
    holds = {value: all(b <= g - value <= a for b, g, a in brackets) for value in (claimed, offset)}
    # causality judges: exactly one of the two can be, and where they differ it was said
    after = debugfs.read_active(debugfs_root / f"{vmm.pid}-{vm['descriptor']}", 1).offset
    assert all(b <= g - after <= a for b, g, a in brackets)
    if claimed != after:
        assert not holds[claimed]
        disagree = next(c for c in changes if c["change"] == "disagree")
        assert disagree["reading"]["source"] == "kvm_write_tsc_offset"
        assert (disagree["other"]["source"], disagree["other"]["offset"]) == ("debugfs", [after, after])
    assert any(claim.offset == claimed and claim.host_from for _, claim in read_claims(claims))
    assert ours(tracefs_root) == []


@contextmanager
def watching() -> Iterator[subprocess.Popen[str]]:
    """A watch that has begun."""

    def heed_ctrl_c() -> None:
        # a shell lets what it starts in the background ignore Ctrl-C, and so this test, and so its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "counterpoint", "offsets", "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as watch:
        try:
            while watch.stdout.readline() != "watching:\n":
                assert watch.poll() is None
            yield watch
        finally:
            watch.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_watch_that_is_ended_leaves_nothing(tracefs_root, debugfs_root, how):
    with watching() as watch:
        assert len(ours(tracefs_root)) >= 1
        watch.send_signal(how)
        watch.communicate(timeout=90)

    assert watch.returncode == (0 if how == signal.SIGINT else 128 + how)
    assert ours(tracefs_root) == []


def test_a_watch_that_is_killed_is_swept_by_the_next_run(tracefs_root, debugfs_root):
    with watching():
        pass
    assert ours(tracefs_root)

    assert counterpoint("offsets")[0] == 0

    assert ours(tracefs_root) == []


def test_a_command_killed_in_the_middle_of_reading_leaves_a_running_vmm(run_vmm, tracefs_root, debugfs_root):
    vmm = run_vmm("exits")
    for n in range(20 if FULL else 3):
        with subprocess.Popen(
            [sys.executable, "-m", "counterpoint", "offsets", "--vmm", "--brackets", "9999"], stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(0.4 + 0.03 * n)
            process.kill()
        before = vmm.counts(0)["rounds"]
        time.sleep(0.05)
        assert vmm.counts(0)["rounds"] > before
    assert counterpoint("offsets")[0] == 0
    assert ours(tracefs_root) == []
    vmm.end()


# -- what is missing is said -----------------------------------------------------------------------------------------


def run_here(*arguments: str) -> tuple[int, str, str]:
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = command.main(arguments)
    out.seek(0)
    return status, out.read(), err.getvalue()


def test_without_mounts_it_is_said_what_to_mount(run_vmm, monkeypatch, tmp_path):
    vmm = run_vmm("idle")
    monkeypatch.setattr(debugfs, "ROOT", tmp_path / "debug" / "kvm")
    (tmp_path / "debug").mkdir()
    monkeypatch.setattr(tracefs, "ROOTS", (tmp_path / "tracing",))

    status, out, err = run_here("offsets", "--pid", str(vmm.pid))

    assert (status, out) == (2, "")
    assert f"debugfs is not mounted: mount -t debugfs nodev {tmp_path}/debug" in err
    assert f"tracefs is not mounted: mount -t tracefs nodev {tmp_path}/tracing" in err
    assert "--vmm" in err
    status, out, err = run_here("offsets", "--watch")
    assert status == 2 and "mount -t tracefs" in err


def as_nobody(*arguments: str) -> tuple[int, str]:
    """The command run by somebody without rights, in a fork of this process: (exit status, errors and output)."""
    # nobody may not read the files of this interpreter: all that it needs is imported before
    run_here(arguments[0], "--json", *arguments[1:], *(["--for", "0"] if "--watch" in arguments else []))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        status = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status, out, err = run_here(*arguments)
            os.write(write, (out + err).encode()[:60000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_without_root_it_is_said_that_root_is_needed(as_root):
    status, text = as_nobody("offsets")
    assert status == 2 and "run as root" in text
    status, text = as_nobody("offsets", "--watch")
    assert status == 2 and "run as root" in text
    status, text = as_nobody("doctor")
    assert status == 1
    assert "lacking  root" in text and "sudo counterpoint" in text


def test_a_process_without_a_vm_and_one_that_is_not_there():
    status, _, err = run_here("offsets", "--pid", str(os.getpid()))
    assert status == 2 and f"process {os.getpid()} has no VM" in err
    status, _, err = run_here("offsets", "--pid", str(2**22 - 3))
    assert status == 2 and "there is no such process" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--brackets", "-1"], ["--brackets", "99999999"], ["--for", "3"], ["--json", "--openmetrics", "-"],
        ["--watch", "--openmetrics", "-"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments):
    assert run_here("offsets", *arguments)[0] == 2


# -- what is said of readings ----------------------------------------------------------------------------------------


def test_sources_that_exclude_each_other_are_named_and_the_exit_status_is_1(monkeypatch):
    found = HostOffsets(
        [of(reading("debugfs", 0), reading("vmm-offset", -5), reading("vmm-msr", -9, 9))], [Vm(7, 5, "QEMU", "web")]
    )
    monkeypatch.setattr(offsets, "gather", lambda _: found)

    status, out, _ = run_here("offsets")

    assert status == 1
    assert "web vcpu 0: debugfs: 0, vmm-offset: -5; both cannot hold" in out
    assert "NO" in out
    status, out, _ = run_here("offsets", "--json")
    assert status == 1
    json_found = json.loads(out)["vms"]
    assert json_found[0]["vcpus"] == []  # of another VM object: nothing is mixed up


@pytest.mark.parametrize(("then", "agree"), [(5, True), (4, False)])
def test_a_contradiction_is_read_a_second_time(monkeypatch, then, agree):
    vm = Vm(7, 5, "QEMU", "web", (Vcpu(0, 9, 8, "debugfs", 0),))
    said = iter([(0, 5), (then, 5)])

    def read(out, _request):
        out.vcpus[0].readings += [
            reading(name, value) for name, value in zip(("debugfs", "probe"), next(said), strict=True)
        ]

    monkeypatch.setattr(offsets, "find_vms", lambda _: ([vm], []))
    monkeypatch.setattr(offsets, "_read", read)

    found = offsets.gather(offsets.Request())

    assert [r.low for r in found.vcpus[0].readings] == [then, 5]
    assert found.vcpus[0].agree() is agree


def test_l2s_offset_is_no_contradiction_to_l1s():
    each = of(reading("debugfs", -390, level=ACTIVE), reading("vmm-offset", -33), reading("probe:kvm_entry", -33))

    assert each.conflicts() == []
    assert each.agree() is True
    assert of(reading("debugfs", -390, level=ACTIVE), reading("vmm-offset", -33)).agree() is None
    assert each.best().low == -33


def test_claims_name_their_vm_where_there_are_several_and_carry_a_scale(tmp_path):
    one, other = Vm(7, 5, "QEMU", "web"), Vm(9, 5, "Firecracker", None)
    found = HostOffsets(
        [
            of(reading("debugfs", -5, ratio=3 << 31, frac_bits=32), vm=one),
            of(reading("vmm-msr", -9, 9), reading("debugfs", 4, level=ACTIVE), vm=other),
            of(reading("vmm-offset", 11), vm=other, number=1),
        ],
        [one, other],
    )
    (tmp_path / "claims").write_text("".join(f"{line}\n" for line in report.claims(found)))

    read = read_claims(tmp_path / "claims")

    # an interval is no claim, nor is L2's offset
    assert [(guest, c.guest_cpu, c.offset, c.ratio, c.frac_bits) for guest, c in read] == [
        ("web", 0, -5, 3 << 31, 32), ("firecracker-9", 1, 11, 1, 0),
    ]  # fmt: skip


def test_metrics_keep_every_bit_and_survive_any_name():
    vm = Vm(7, 5, "QEMU", 'a"b\\c\nd')
    found = HostOffsets([of(reading("debugfs", -(1 << 62) - 1), reading("vmm-offset", -(1 << 62) - 1), vm=vm)], [vm])

    text = report.openmetrics(found)

    assert 'vm="a\\"b\\\\c\\nd"' in text
    assert f'exact="{-(1 << 62) - 1}"' in text
    lines = text.splitlines()
    assert lines[-1] == "# EOF"
    assert all(line.startswith(("# ", "counterpoint_vcpu_")) for line in lines)
    assert 'vcpu="0"} 1' in text


def test_hostile_names_do_not_reach_the_terminal(monkeypatch):
    vm = Vm(7, 5, "QEMU", "evil\x1b[2J")
    found = HostOffsets([of(reading("debugfs", 1), vm=vm)], [vm], missing=[Missing("x", "\x1b]0;")])
    monkeypatch.setattr(offsets, "gather", lambda _: found)

    _, out, _ = run_here("offsets")

    assert "\x1b" not in out and "evil\\x1b[2J" in out


def test_ptp_pairs_are_decoded(monkeypatch, tmp_path):
    import struct

    content = struct.pack("<qIIqIIqII16x", 1_795_578_210, 538399297, 0, 1_795_578_209, 5, 0, 77, 6, 0)
    assert len(content) == 64 and ptp.PTP_SYS_OFFSET_PRECISE == 0xC0403D08
    pair = ptp.decode("/dev/ptp0", content, 10, 20)
    assert (pair.host_realtime_ns, pair.realtime_ns) == (1_795_578_210_538_399_297, 1_795_578_209_000_000_005)
    for name, text in (("ptp0", "KVM virtual PTP\n"), ("ptp1", "ptp_vmclock\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clock_name").write_text(text)
    monkeypatch.setattr(ptp, "CLASS", tmp_path)
    assert ptp.devices() == ["/dev/ptp0"]
    found = HostOffsets([], [], pairs=[pair])
    assert "the host's CLOCK_REALTIME was 1795578210538399297 ns" in "\n".join(report.table(found))


# -- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_is_content_where_all_is_there(tracefs_root, debugfs_root):
    status, out, _ = counterpoint("doctor", "--json")

    found = json.loads(out)
    assert found["sound"] is (status == 0)
    by = {finding["what"]: finding for finding in found["findings"]}
    assert {"machine", "root", "kvm", "counter", "clocksource", "tracefs", "trace clock", "kvm events", "BTF",
            "dynamic events", "left behind", "debugfs", "lockdown", "ptrace", "vsock", "VM"} <= set(by)  # fmt: skip
    assert by["tracefs"]["state"] == by["debugfs"]["state"] == by["counter"]["state"] == "ok"
    assert all(finding["cure"] for finding in found["findings"] if finding["state"] == "lacking")


def test_doctor_names_the_command_that_mends_a_lack(monkeypatch, tmp_path):
    monkeypatch.setattr(tracefs, "ROOTS", (tmp_path / "tracing",))
    monkeypatch.setattr(debugfs, "ROOT", tmp_path / "kvm")

    status, out, _ = run_here("doctor")

    assert status == 1
    assert f"-> mount -t tracefs nodev {tmp_path}/tracing" in out or "run as root" in out
    assert "lacking  debugfs" in out


def test_doctor_reads_what_kinds_of_dynamic_events_there_are(monkeypatch, tmp_path):
    (tmp_path / "README").write_text(
        "\t   Format: p[:[<group>/][<event>]] <place> [<args>]\n"
        "\t           f[:[<group>/][<event>]] <func-name>[%return] [<args>]\n"
        "\t           t[:[<group>/][<event>]] <tracepoint> [<args>]\n"
        "\t    place: [<module>:]<symbol>[+<offset>]|<memaddr>\n"
        "place (kretprobe): [<module>:]<symbol>[+<offset>]%return|<memaddr>\n"
        "   place (uprobe): <path>:<offset>\n"
        "\t           $stack<index>, $stack, $retval, $comm, $arg<N>,\n"
        "\t           <argname>[->field[->field|.field...]],\n"
    )

    found = {finding.what: finding for finding in doctor._dynamic(tmp_path)}["dynamic events"]

    assert (found.state, found.text) == (doctor.GOOD, "kprobe, fprobe, tracepoint, uprobe, BTF fields")


@pytest.mark.parametrize(
    ("machine", "state", "said"),
    [("aarch64", doctor.GOOD, "by a register: CNTVOFF, if this host has VHE"), ("x86_64", doctor.INFO, "none that")],
)
def test_without_btf_fields_an_arm64_kernel_still_shows_the_offset(tmp_path, monkeypatch, machine, state, said):
    monkeypatch.setattr(doctor.libc, "MACHINE", machine)
    (tmp_path / "README").write_text("\t    place (kretprobe): [<module>:]<symbol>[+<offset>]%return|<memaddr>\n")

    found = {finding.what: finding for finding in doctor._dynamic(tmp_path)}["dynamic events"]

    assert found.state == state and said in found.text and found.text.startswith("kprobe;")


def test_the_counter_lies_between_two_readings_of_kvms(run_vmm):
    from counterpoint.live import counter

    vmm = run_vmm("exits", 1)
    read = counter.reader()
    first = read()
    time.sleep(0.05)
    brackets = vmm.brackets(0)
    last = read()

    assert first < brackets[-1][2] < last
    rate = counter.frequency()
    assert rate.low_hz <= rate.high_hz
    assert kvm.KVM_GET_TSC_KHZ


class FakeProbe:
    """Threads that pass a probe: those of ``busy``, and with a call made in them all."""

    def __init__(self, monkeypatch, vm: Vm, busy: set[int], *, of_vm: bool) -> None:
        self.recipe = replace(RECIPES["aarch64"][0], of_vm=of_vm)
        self.is_on = False
        self.asked: list[bool] = []
        self._tids = {vcpu.tid for vcpu in vm.vcpus}
        monkeypatch.setattr(offsets, "find_vms", lambda _: ([vm], []))
        monkeypatch.setattr(offsets.tracefs, "find_root", lambda: Path("/nowhere"))
        monkeypatch.setattr(offsets.tracefs, "sweep", lambda _: [])
        monkeypatch.setattr(offsets, "_from_debugfs", lambda _: None)
        monkeypatch.setattr(offsets, "_open", lambda *_: (self, None))
        monkeypatch.setattr(offsets.probes, "read_once", lambda _, tids: self._said(tids & busy))
        monkeypatch.setattr(offsets.probes, "watching", self._watching)
        monkeypatch.setattr(offsets, "_from_vmms", lambda *_: self.asked.append(self.is_on))

    def _said(self, tids):
        return {tid: [reading("probe:kvm_timer_vcpu_load", -1000 - tid)] for tid in tids}

    @contextmanager
    def _watching(self, _probe):
        self.is_on = True
        out: dict[int, list] = {}
        yield out
        self.is_on = False
        out.update(self._said(self._tids))


TWO = Vm(7, 5, "QEMU", "web", (Vcpu(0, 9, 8, "debugfs", 0), Vcpu(1, 10, 11, "debugfs", 1)))


@pytest.mark.parametrize(("busy", "on"), [({8, 11}, False), ({8}, True), (set(), True)])
def test_an_idle_vcpus_thread_passes_the_probe_when_the_vmm_is_asked(monkeypatch, busy, on):
    probe = FakeProbe(monkeypatch, TWO, busy, of_vm=False)

    found = offsets.gather(offsets.Request(vmm=True))

    assert probe.asked == [on]
    assert [[r.low for r in each.readings] for each in found.vcpus] == [[-1008], [-1011]]
    assert [each.missing for each in found.vcpus] == [[], []]


def test_without_the_vmm_an_idle_vcpu_is_said_to_be_missing(monkeypatch):
    FakeProbe(monkeypatch, TWO, {8}, of_vm=False)

    found = offsets.gather(offsets.Request())

    assert [len(each.readings) for each in found.vcpus] == [1, 0]
    assert "did not pass" in found.vcpus[1].missing[0].reason


def test_an_offset_that_is_the_whole_vms_is_told_by_one_thread(monkeypatch):
    FakeProbe(monkeypatch, TWO, {8}, of_vm=True)

    found = offsets.gather(offsets.Request())

    assert [[r.low for r in each.readings] for each in found.vcpus] == [[-1008], [-1008]]
    assert [each.readings[0].note for each in found.vcpus] == ["", "the whole VM's, by the thread of vCPU 0"]
    assert not any(each.missing for each in found.vcpus)
