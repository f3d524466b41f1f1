"""The arm64 lab: an emulated machine with EL2, Debian's kernel with KVM (VHE) as host, QEMU's guests under KVM in it.

A case is an `Arm64` with a few fields set; what happens before and during the recording are functions of the `Session`.
The truth is CNTVOFF_EL2 of the emulated CPUs, read through the emulator's debug stub: neither Linux has a say in it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import arm64_rows
from lab.images import System, system
from lab.machine import Channel, Job, Machine
from lab.packages import LabError, Suites, environment, program
from lab.rsp import Stub
from lab.run import Lab, Row

SUITES = ("trixie", "trixie-backports")
EMULATOR = ["qemu-system-arm", "python3", "trace-cmd"]
"""Of this machine's own architecture; Python, to compile modules of the other one's, and trace-cmd to read marks."""
PACKAGES = ["qemu-system-arm", "python3", "trace-cmd", "dropbear-bin", "busybox-static", "base-files"]
GUEST_MODULES = ("vmw_vsock_virtio_transport", "virtio_rng", "virtio_net")
MODULES = ("vhost_vsock", *GUEST_MODULES)
KERNELS = {
    "6.12": (SUITES, "linux-image-arm64"),
    "7.3": (SUITES, "linux-image-arm64/trixie-backports"),
    "6.1": (("bookworm",), "linux-image-arm64"),
}
QUIET = "console=ttyAMA0 loglevel=4 nowatchdog audit=0 apparmor=0 panic=-1"
FLAGS = "-nodefaults -no-user-config -display none -no-reboot"
SECRET = "the lab's own secret, of no use elsewhere"  # noqa: S105
INSIDE = Path(__file__).parent / "inside"
HOST_CPUS = 2
SSH = "dbclient -y -y -i /root/key"
_U64 = 1 << 64


def images(cache: Path, kernel: str) -> tuple[Path, System]:
    """Return the root that the emulator is run from, and what the machines boot."""
    emulator = Suites("amd64", SUITES, cache).root(EMULATOR)
    root = Suites("arm64", SUITES, cache).root(PACKAGES)
    names, package = KERNELS[kernel]
    kernel_root = Suites("arm64", names, cache).root([package], only="linux-*")
    extra = {}
    for file in INSIDE.glob("*.py"):
        start = f'#!/bin/sh\nexec python3 /lab/inside/{file.name} "$@"\n'
        extra[f"lab/inside/{file.name}"] = file.read_bytes()
        extra[f"lab/bin/{file.stem.replace('_', '-')}"] = start.encode()
    return emulator, system(cache, root, kernel_root, MODULES, extra, python=emulator, guest_modules=GUEST_MODULES)


@dataclass
class Guest:
    """A guest in the host machine."""

    name: str
    channel: Channel
    process: int
    port: int
    """The host's port that is the guest's own."""
    cid: int
    vcpus: int
    stage2: int | None = None
    """VTTBR_EL2, its translation table: which VM a CPU has loaded, seen from outside."""
    offsets: list[int] = field(default_factory=list)
    """CNTVOFF_EL2 as it was read of its vCPUs, in order, each that was another one than before."""


@dataclass
class Session:
    """A host that is up, its guests, and what was read of the truth."""

    lab: Lab
    case: Arm64
    host: Machine
    zipapp: Path
    emulator: Path
    """The root of packages that it runs in."""
    guests: dict[str, Guest] = field(default_factory=dict)
    truths: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    """The debug stub's numbers of registers."""
    paired: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By guest: CNTVOFF by what ptp_kvm says in the guest, and the host's own clock."""

    def pyz(self, arguments: str, timeout: float = 120, check: bool = True) -> str:
        """Run Counterpoint in the host."""
        return self.host.run(f"cd /tmp; python3 /lab/share/counterpoint.pyz {arguments}", timeout, check)

    def start_guest(self, name: str, port: int, vcpus: int, extra: str = "") -> Guest:
        """Start a guest under KVM in the host; its disk is the host's, its second disk is Counterpoint's zip file."""
        cid = 2 + port
        arguments = [
            *("-name", f"guest={name},debug-threads=on", "-accel", "kvm", "-cpu", "host"),
            *("-machine", "virt,gic-version=3", "-smp", str(vcpus), "-m", self.case.memory, *FLAGS.split()),
            *("-kernel", "/boot/vmlinuz", "-initrd", "/boot/initrd"),
            *("-append", f"{QUIET} lab.guest lab.name={name} {self.case.append}"),
            *("-drive", "file=/dev/vda,if=virtio,format=raw,readonly=on,file.locking=off"),
            *("-drive", "file=/lab/share/counterpoint.pyz,if=virtio,format=raw,readonly=on,file.locking=off"),
            *("-device", f"vhost-vsock-pci,guest-cid={cid}", "-device", "virtio-rng-pci"),
            *("-serial", f"file:/lab/share/{name}-console.txt"),
            *("-qmp", f"unix:/run/{name}.qmp,server=on,wait=off", "-pidfile", f"/run/{name}.pid"),
            *("-device", "virtio-serial-pci", "-chardev", "stdio,id=lab,signal=off"),
            *("-device", "virtserialport,chardev=lab,name=lab.0"),
        ]
        if self.case.recorder == "ssh":
            forward = f"hostfwd=tcp:127.0.0.1:{2200 + port}-:22"
            arguments += ["-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        line = f"qemu-system-aarch64 {shlex.join(arguments)} {extra}"
        said = self.host.share / f"{name}-qemu.txt"
        self.host.run(f"rm -f /run/{name}.pid; cd /run; {line} <>$(lab-port {port}) >&0 2>/lab/share/{said.name} &")
        text = f"until [ -s /run/{name}.pid ]; do sleep 0.1; done; cat /run/{name}.pid"
        try:
            pid = int(self.host.run(text, 60))
        except LabError:
            raise LabError(f"{name}: its QEMU did not start: {said.read_text()}") from None
        self.guests[name] = guest = Guest(name, self.host.channel(port), pid, port, cid, vcpus)
        return guest

    def wait_guest(self, guest: Guest) -> None:
        """Wait until a guest is up, and give it what it needs to be recorded."""
        guest.channel.up(300)
        self.lab.say(f"{guest.name} is up")
        size = self.zipapp.stat().st_size
        text = f"head -c {size} /dev/vdb > /tmp/counterpoint.pyz; umask 077; echo {shlex.quote(SECRET)} > /tmp/secret"
        guest.channel.run(text)

    def qmp(self, guest: Guest, command: str, **arguments: object) -> Any:  # noqa: ANN401  what the monitor answers
        """Ask a guest's VMM in the host."""
        request = json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        answer = json.loads(self.host.run(f"lab-qmp /run/{guest.name}.qmp {shlex.quote(request)}"))
        if "error" in answer:
            raise LabError(f"{guest.name}: {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def restore(self, guest: Guest) -> Guest:
        """Save a guest's state to a file, end its VMM, and let it go on from there in another one, at another port."""
        self.qmp(guest, "migrate", uri="exec:cat > /run/state")
        self.lab.eventually(lambda: self._is_saved(guest), 120, "the guest's state is saved")
        self.qmp(guest, "quit")
        extra = f"{self.case.guest_extra} -incoming 'exec:cat /run/state'"
        restored = self.start_guest(guest.name, guest.port + 1, guest.vcpus, extra)
        restored.channel.run("true", 120)
        self.lab.say(f"{guest.name} is restored")
        return restored

    def _is_saved(self, guest: Guest) -> bool:
        status = self.qmp(guest, "query-migrate").get("status")
        if status == "failed":
            raise LabError(f"{guest.name}: its state could not be saved")
        return bool(status == "completed")

    def spin(self, guest: Guest, seconds: int) -> list[Job]:
        """Keep every vCPU of a guest busy for so long."""
        loop = f"timeout {seconds} sh -c 'while :; do :; done'"
        return [guest.channel.start(f"taskset -c {cpu} {loop}; true") for cpu in range(guest.vcpus)]

    def read_truth(self, guest: Guest, when: str, tries: int = 60) -> int:
        """Return CNTVOFF_EL2 of a guest that is kept busy meanwhile: every vCPU was seen with it.

        While a vCPU is loaded VMPIDR_EL2 says which it is, and VTTBR_EL2 of which VM; else CNTVOFF_EL2 is 0 (VHE).
        Of several VMs, all but this one are known already.
        """
        others = {other.stage2 for other in self.guests.values() if other is not guest}
        jobs = self.spin(guest, 12)
        seen: dict[int, int] = {}
        for _ in range(tries):
            time.sleep(0.3)
            with Stub(self.host.gdb, self.numbers) as stub:
                cpus = stub.registers(["CNTVOFF_EL2", "CNTPOFF_EL2", "VMPIDR_EL2", "VTTBR_EL2", "HCR_EL2"])
            self.truths.append({"when": when, "guest": guest.name, "cpus": cpus})
            for cpu in cpus:
                offset, table = cpu["CNTVOFF_EL2"], (cpu["VTTBR_EL2"] or 0) & ((1 << 48) - 2)
                if offset and table not in others and guest.stage2 in (None, table):
                    guest.stage2 = table
                    seen[(cpu["VMPIDR_EL2"] or 0) & 0xFF] = offset
            if len(seen) == guest.vcpus:
                break
        else:
            raise LabError(f"{guest.name}: in {tries} looks at the CPUs vCPUs {sorted(seen)} were seen alone")
        for job in jobs:
            job.wait(200)
        if len(set(seen.values())) > 1:
            raise LabError(f"{guest.name}: its vCPUs have several offsets: {seen}")
        offset = seen[0]
        if offset not in guest.offsets[-1:]:
            guest.offsets.append(offset)
        self.lab.say(f"{guest.name}: CNTVOFF_EL2 is {offset} ({when})")
        return offset

    def truth(self, kernel: str) -> dict[str, Any]:
        """Return what was read, for `arm64_rows`."""
        vmm = "QEMU " + self.host.run("qemu-system-aarch64 --version").split()[3]
        guests = {g.name: {"offsets": g.offsets, "ptp_kvm": self.paired.get(g.name)} for g in self.guests.values()}
        return {"kernel": kernel, "vmm": vmm, "guests": guests, "debug_stub": self.truths}

    def marks(self, guest: Guest, seconds: float, period_ms: float = 40) -> list[Job]:
        """Let each vCPU write its counter into the trace for so long: a light load too."""
        return [guest.channel.start(f"lab-counter marks {cpu} {seconds} {period_ms}") for cpu in range(guest.vcpus)]

    def read_pair(self, guest: Guest) -> None:
        """Hold ptp_kvm's pair (the guest's counter, the host's CLOCK_REALTIME) against the host's own such pair."""
        said = json.loads(guest.channel.run("python3 /tmp/counterpoint.pyz offsets --json", 200, check=False))
        before, realtime, after = json.loads(self.host.run("lab-counter clocks", 100))["realtime"]
        for pair in said["host_pairs"]:
            hz = said["host"]["frequency_hz"][0]
            gone = (pair["host_realtime_ns"] - realtime) * hz // 10**9
            slack = 2 + abs(gone) // 1_000_000
            self.paired[guest.name] = before + gone - pair["after"] - slack, after + gone - pair["before"] + slack
        self.lab.write(f"{guest.name}-ptp.json", said)

    def start_agent(self, guest: Guest) -> Job:
        """Start what the guest is recorded by, and wait until it listens."""
        if self.case.recorder == "ssh":
            return self._start_sshd(guest)
        if self.case.recorder == "trace-cmd-agent":
            job = guest.channel.start("cd /tmp; trace-cmd agent > agent.txt 2>&1")
            ready = "grep -q -e listening -e 823 /tmp/agent.txt"
        else:
            agent = "python3 /tmp/counterpoint.pyz agent --json --secret-file /tmp/secret"
            job = guest.channel.start(f"cd /tmp; {agent} > agent.txt 2>&1")
            ready = "grep -q listening /tmp/agent.txt"
        wait = f"n=0; until {ready}; do sleep 0.5; n=$((n+1)); [ $n -lt 300 ] || exit 1; done"
        try:
            guest.channel.run(wait, 200)
        except LabError:
            raise LabError(f"{guest.name}: no agent: {guest.channel.run('cat /tmp/agent.txt', check=False)}") from None
        self.lab.say(f"{guest.name}: its agent listens")
        return job

    def _start_sshd(self, guest: Guest) -> Job:
        make = "dropbearkey -t ed25519 -f /root/key > /dev/null 2>&1"
        public = self.host.run(f"{make}; dropbearkey -y -f /root/key 2> /dev/null | grep ^ssh-")
        guest.channel.run(
            f"umask 077; mkdir -p /root/.ssh /etc/dropbear; echo '{public.strip()}' > /root/.ssh/authorized_keys\n"
            "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2"
        )
        job = guest.channel.start("dropbear -F -E -R -s -p 22 2> /tmp/dropbear.txt")
        login = f"{SSH} -p {2200 + guest.port} root@127.0.0.1 true"
        self.host.run(f"n=0; until {login}; do sleep 1; n=$((n+1)); [ $n -lt 30 ] || exit 1; done", 300)
        self.lab.say(f"{guest.name}: its shell answers")
        return job

    def url(self, guest: Guest) -> str:
        """Return what `record --guest` is given."""
        if self.case.recorder == "ssh":
            return f"{guest.name}=ssh://root@127.0.0.1:{2200 + guest.port}"
        return f"{guest.name}=vsock://{guest.cid}"


@dataclass(frozen=True)
class Arm64:
    """A case on the arm64 machine. The defaults are the plain pair."""

    name: str
    about: str
    kernel: str = "6.12"
    vcpus: tuple[int, ...] = (2,)
    """Of each guest."""
    memory: str = "600M"
    cpu: str = "cortex-a76,cntfrq=24000000"
    append: str = ""
    recorder: str = "agent"
    seconds: float = 5
    options: str = ""
    """More of `counterpoint record`."""
    clock: str = "mono_raw"
    guest_extra: str = ""
    """More of the guest's QEMU."""
    before: Callable[[Session], None] | None = None
    during: Callable[[Session], None] | None = None
    offsets: bool = False
    """Look at `doctor` and `offsets` too, before the recording; what they say, `record` says as well."""
    load: Callable[[Session, Guest, float], list[Job]] = Session.marks
    verdicts: tuple[str, ...] = ("proved",)

    def run(self, lab: Lab) -> list[Row]:
        """Boot, record, read the truth, judge."""
        emulator, boots = images(lab.cache, self.kernel)
        lab.say(f"images are there: Linux {boots.release}")
        with self._machine(lab, emulator, boots) as host:
            try:
                return self._with_host(lab, host, emulator, boots)
            finally:
                lab.write("host-dmesg.txt", _quietly(host, "dmesg"))

    def _machine(self, lab: Lab, root: Path, boots: System) -> Machine:
        command = [
            *program(root, "usr/bin/qemu-system-aarch64"),
            *("-L", f"{root}/usr/share/qemu", "-machine", "virt,virtualization=on,gic-version=3"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", self.cpu, "-smp", str(HOST_CPUS), "-m", "2500M"),
            *("-kernel", str(boots.kernel), "-initrd", str(boots.initrd), "-append", f"{QUIET} lab.name=host"),
            *("-drive", f"file={boots.disk},if=virtio,format=raw,readonly=on", "-device", "virtio-rng-pci"),
        ]
        return Machine("host", command, lab.folder, environment(root))

    def _with_host(self, lab: Lab, host: Machine, emulator: Path, boots: System) -> list[Row]:
        zipapp = lab.zipapp()
        # a disk has whole sectors
        (host.share / "counterpoint.pyz").write_bytes(zipapp.read_bytes() + bytes(-zipapp.stat().st_size % 512))
        host.up(120)
        lab.say("the host is up")
        session = Session(lab, self, host, zipapp, emulator)
        host.run(f"umask 077; echo {shlex.quote(SECRET)} > /tmp/secret")
        for port, vcpus in enumerate(self.vcpus, 1):
            session.start_guest(f"guest{port}" if len(self.vcpus) > 1 else "guest", port, vcpus, self.guest_extra)
        if self.offsets:  # meanwhile: the guests boot
            lab.write("doctor.txt", session.pyz("doctor", check=False))
        for guest in session.guests.values():
            session.wait_guest(guest)
            session.read_truth(guest, "before")
        if self.before:
            self.before(session)
        for guest in session.guests.values():
            session.start_agent(guest)
        if self.offsets:
            load = [job for guest in session.guests.values() for job in self.load(session, guest, 8)]
            lab.write("offsets.json", session.pyz("offsets --vmm --json", 240, check=False))
            for guest in session.guests.values():
                session.read_pair(guest)
            for job in load:
                job.wait(200)
            lab.say("offsets are read")
        self._record(session)
        for guest in session.guests.values():
            session.read_truth(guest, "after")
        lab.write("truth.json", session.truth(boots.release))
        for guest in session.guests.values():
            lab.write(f"{guest.name}-dmesg.txt", _quietly(guest.channel, "dmesg"))
        (lab.folder / "capture").mkdir(exist_ok=True)
        for file in (host.share / "capture").iterdir():
            file.rename(lab.folder / "capture" / file.name)
        return self.judge(lab)

    def judge(self, lab: Lab) -> list[Row]:
        """Prove what came home, and hold it against the truth."""
        return arm64_rows.rows(lab, images(lab.cache, self.kernel)[0], self.verdicts)

    def _record(self, session: Session) -> None:
        """Record all until all that is to happen has happened."""
        host, lab = session.host, session.lab
        urls = " ".join(f"--guest {session.url(guest)}" for guest in session.guests.values())
        urls += {"agent": " --guest-secret /tmp/secret", "ssh": f" --ssh-command '{SSH}'"}.get(self.recorder, "")
        command = f"record --json --vmm -o /tmp/capture --clock {self.clock} {urls} {self.options}"
        job = host.channel(0).start(
            f"cd /tmp; python3 /lab/share/counterpoint.pyz {command} > record.json & echo $! > record.pid; wait $!"
        )
        there = " && ".join(f"[ -s /tmp/capture/{guest}.dat.cpu0 ]" for guest in session.guests)
        lab.eventually(lambda: job.done or host.run(f"{there} && echo yes", check=False), 240, "the recording begins")
        if job.done:
            job.wait(1)
        lab.say("recording")
        # the host's marks go on beyond the guests', until the machine ends
        host.channel(0).start("lab-counter marks 0 3600 40")
        load = [one for guest in session.guests.values() for one in self.load(session, guest, self.seconds)]
        if self.during:
            self.during(session)
        for one in load:
            one.wait(self.seconds * 10 + 120)
        host.run("kill -TERM $(cat /tmp/record.pid)")
        job.wait(240)
        host.run("cp -r /tmp/capture /lab/share/", 120)
        lab.write("record.json", host.run("cat /tmp/record.json"))
        lab.say("recorded")


def _quietly(where: Machine | Channel, script: str) -> str:
    try:
        return where.run(script, 20, check=False)
    except LabError as error:
        return f"not read: {error}\n"
