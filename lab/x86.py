"""The x86 lab: an emulated machine with SVM, Debian's kernel with kvm_amd as host, QEMU's guests under KVM in it.

A case is an `X86` with a few fields set; what happens before and during the recording are functions of the `Session`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lab import judging, vmcb
from lab.images import System, system
from lab.machine import Channel, Job, Machine
from lab.packages import LabError, Suites, environment, program
from lab.run import Lab, Row

# of the one root that is the host's, its guests' and, for the emulator, this machine's
PACKAGES = ["qemu-system-x86", "python3", "trace-cmd", "busybox-static", "base-files"]
MODULES = ("kvm_amd", "vhost_vsock", "vmw_vsock_virtio_transport", "msr", "ptp_kvm?")
GUEST_MODULES = ("vmw_vsock_virtio_transport", "msr")
KERNELS = {
    "6.12": (("trixie", "trixie-backports"), "linux-image-amd64"),
    "7.3": (("trixie", "trixie-backports"), "linux-image-amd64/trixie-backports"),
    "6.1": (("bookworm",), "linux-image-amd64"),
}
QUIET = "console=ttyS0 loglevel=5 mitigations=off nowatchdog audit=0 apparmor=0 random.trust_cpu=on panic=-1"
FLAGS = "-nodefaults -no-user-config -display none -no-reboot"
SECRET = "the lab's own secret, of no use elsewhere"  # noqa: S105
INSIDE = Path(__file__).parent / "inside"


def images(cache: Path, kernel: str) -> tuple[Path, System]:
    """Return the root that the emulator is run from, and what the machines boot."""
    root = Suites("amd64", ("trixie", "trixie-backports"), cache).root(PACKAGES)
    names, package = KERNELS[kernel]
    kernel_root = Suites("amd64", names, cache).root([package], only="linux-*")
    extra = {}
    for file in INSIDE.glob("*.py"):
        start = f'#!/bin/sh\nexec python3 /lab/inside/{file.name} "$@"\n'
        extra[f"lab/inside/{file.name}"] = file.read_bytes()
        extra[f"lab/bin/{file.stem.replace('_', '-')}"] = start.encode()
    return root, system(cache, root, kernel_root, MODULES, extra, root, GUEST_MODULES)


@dataclass
class Guest:
    """A guest in the host machine."""

    name: str
    channel: Channel
    where: Channel
    """The machine that its VMM runs in."""
    process: int
    port: int
    """The host's port that is the guest's own."""
    cid: int

    def __post_init__(self) -> None:
        """A guest keeps its monitor's name when it is called by another."""
        self.monitor = f"/run/{self.name}.qmp"


@dataclass
class Session:
    """A host that is up, its guests, and what was read of the truth."""

    lab: Lab
    case: X86
    host: Machine
    zipapp: Path
    root: Path
    guests: dict[str, Guest] = field(default_factory=dict)
    truths: list[dict[str, Any]] = field(default_factory=list)

    def pyz(self, arguments: str, timeout: float = 120, check: bool = True) -> str:
        """Run Counterpoint in the host."""
        return self.host.run(f"cd /tmp; python3 /lab/share/counterpoint.pyz {arguments}", timeout, check)

    def start_guest(
        self, name: str, port: int, extra: str = "", wait: bool = True, parent: Guest | None = None
    ) -> Guest:
        """Start a guest under KVM in the host, or in a guest of it; `extra` are more of its VMM's options.

        Its disk is the host's, its second disk is Counterpoint's zip file. `port` of the host is its own.
        """
        case, cid = self.case, 2 + port
        where = parent.channel if parent else self.host.channel(0)
        cpu, vcpus, memory = ("host,-svm", "1", "300M") if parent else (case.cpu, case.smp or case.vcpus, case.memory)
        arguments = [
            *("-name", f"guest={name},debug-threads=on", "-accel", "kvm", "-cpu", cpu, "-machine", case.machine),
            *("-smp", str(vcpus), "-m", memory, *FLAGS.split(), "-kernel", "/boot/vmlinuz", "-initrd", "/boot/initrd"),
            *("-append", f"{QUIET} tsc=reliable no_timer_check lab.guest lab.name={name} {case.append}"),
            *("-drive", "file=/dev/vda,if=virtio,format=raw,readonly=on,file.locking=off"),
            *("-drive", "file=/lab/share/counterpoint.pyz,if=virtio,format=raw,readonly=on,file.locking=off"),
            *("-serial", f"file:/lab/share/{name}-console.txt"),
            *("-qmp", f"unix:/run/{name}.qmp,server=on,wait=off", "-pidfile", f"/run/{name}.pid"),
            *("-device", "virtio-serial-pci,id=ports", "-chardev", "stdio,id=lab,signal=off"),
            *("-device", "virtserialport,bus=ports.0,chardev=lab,name=lab.0"),
        ]
        if case.recorder != "inside" and not parent:
            arguments += ["-device", f"vhost-vsock-pci,guest-cid={cid}"]
        line = f"qemu-system-x86_64 {shlex.join(arguments)} {extra}"
        # a port of the machine that it runs in: a nested guest's parent has one for it
        passed = 1 if parent else port
        where.run(f"cd /run; {line} <>$(lab-port {passed}) >&0 2>/lab/share/{name}-qemu.txt &")
        text = f"n=0; until [ -s /run/{name}.pid ]; do sleep 0.3; n=$((n+1)); [ $n -lt 2000 ] || exit 1; done"
        try:
            where.run(text, 120)
        except LabError:
            said = where.run(f"cat /lab/share/{name}-qemu.txt", check=False)
            raise LabError(f"{name}: its QEMU did not start: {said}") from None
        pid = int(where.run(f"cat /run/{name}.pid"))
        guest = Guest(name, self.host.channel(port), where, pid, port, cid)
        self.guests[name] = guest
        if wait:
            self.wait_guest(guest)
        return guest

    def wait_guest(self, guest: Guest, timeout: float = 300) -> None:
        """Wait until a guest is up, and give it what it needs to be recorded."""
        guest.channel.up(timeout)
        self.lab.say(f"{guest.name} is up")
        size = self.zipapp.stat().st_size
        guest.channel.run(
            f"cat /dev/vdb > /lab/share/counterpoint.pyz; head -c {size} /dev/vdb > /tmp/counterpoint.pyz;"
            f"umask 077; echo {shlex.quote(SECRET)} > /tmp/secret"
        )

    def move(self, guest: Guest, state: str, before_end: Callable[[], object] = lambda: None) -> Guest:
        """Let a guest go on in another VMM with another port; `state` is where to, "unix:..." or a file's "exec:"."""
        out, come = (state, state) if state.startswith("unix:") else (f"exec:cat > {state}", f"exec:cat {state}")
        moved = None
        if come == state:
            moved = self.start_guest("moved", guest.port + 1, f"-incoming {shlex.quote(come)}", wait=False)
        self.qmp(guest, "migrate", uri=out)
        self.lab.eventually(lambda: self._migrated(guest), 120 * self.host.patience, "the guest's state is out")
        before_end()
        self.qmp(guest, "quit")
        self.lab.say("the guest's state is out, its first VMM ends")
        if moved is None:
            moved = self.start_guest("moved", guest.port + 1, f"-incoming {shlex.quote(come)}", wait=False)
        del self.guests["moved"]
        moved.name = guest.name
        self.guests[guest.name] = moved
        moved.channel.run("true", 120)
        self.lab.say("it goes on in its second VMM")
        return moved

    def _migrated(self, guest: Guest) -> bool:
        status = self.qmp(guest, "query-migrate").get("status")
        if status == "failed":
            raise LabError(f"{guest.name}: the migration failed")
        return bool(status == "completed")

    def qmp(self, guest: Guest, command: str, **arguments: object) -> Any:  # noqa: ANN401  what the monitor answers
        """Ask a guest's VMM in the host."""
        request = json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        answer = json.loads(guest.where.run(f"lab-qmp {guest.monitor} {shlex.quote(request)}"))
        if "error" in answer:
            raise LabError(f"{guest.name}: {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def read_truth(self, when: str) -> dict[str, Any]:
        """Read every vCPU's offset from KVM's debugfs, and the VMCBs from the machine's memory."""
        text = self.host.run(
            "cd /sys/kernel/debug/kvm; for v in */vcpu*; do vm=${v%%/*}; "
            "echo ${vm%%-*} ${v##*/vcpu} $(cat $v/tsc-offset) $(cat $v/guest_mode) $(cat $v/pid); done; lab-counter now"
        )
        *lines, counter = text.split("\n")[:-1]
        names = {guest.process: guest.name for guest in self.guests.values()}
        vcpus = []
        for line in lines:
            pid, vcpu, offset, nested, tid = (int(word) for word in line.split())
            name = names.get(pid, str(pid))
            vcpus.append({"guest": name, "vcpu": vcpu, "offset": offset, "guest_mode": nested, "tid": tid})
        seen = vmcb.offsets(vmcb.memory_file(self.host.pid))
        found = [{"nested_cr3": cr3, "offset": offset, "pages": n} for (cr3, offset), n in sorted(seen.items())]
        truth = {"when": when, "host_counter": int(counter), "debugfs": vcpus, "vmcb": found}
        self.truths.append(truth)
        return truth

    def set_offset(self, guest: Guest, vcpu: int, by: int) -> int:
        """Add to a vCPU's TSC offset as its VMM may; return the new one."""
        reading = self.read_truth("before it is set")["debugfs"]
        now = next(one["offset"] for one in reading if (one["guest"], one["vcpu"]) == (guest.name, vcpu))
        self.host.run(f"lab-set-offset /lab/share/counterpoint.pyz {guest.process} {vcpu} {now + by}", 120)
        self.lab.say(f"vCPU {vcpu}'s offset is set, by {by} ticks")
        self.read_truth("set")
        return int(now) + by

    def marks(self, guest: Guest | None, seconds: float, period_ms: float = 40) -> list[Job]:
        """Let each CPU write its counter into the trace for so long: a light load too."""
        channel = guest.channel if guest else self.host.channel(0)
        count = self.case.vcpus if guest else 2
        return [channel.start(f"lab-counter marks {cpu} {seconds} {period_ms}") for cpu in range(count)]

    def start_agent(self, guest: Guest) -> Job:
        """Start what the guest is recorded by, and wait until it listens."""
        if self.case.recorder in ("trace-cmd-agent", "trace-cmd"):
            job = guest.channel.start("cd /tmp; trace-cmd agent > agent.txt 2>&1")
            ready = "grep -q listening /tmp/agent.txt || grep -q 823 /tmp/agent.txt"
        else:
            agent = "python3 /tmp/counterpoint.pyz agent --json --secret-file /tmp/secret"
            job = guest.channel.start(f"cd /tmp; {agent} > agent.txt 2>&1")
            ready = "grep -q listening /tmp/agent.txt"
        for_long = f"n=0; until {ready}; do sleep 0.3; n=$((n+1)); [ $n -lt 2000 ] || exit 1; done"
        try:
            guest.channel.run(for_long, 200)
        except LabError:
            raise LabError(f"{guest.name}: no agent: {guest.channel.run('cat /tmp/agent.txt', check=False)}") from None
        return job


@dataclass(frozen=True)
class X86:
    """A case on the x86 machine. The defaults are the plain pair."""

    name: str
    about: str
    kernel: str = "6.12"
    vcpus: int = 2
    smp: str = ""
    memory: str = "600M"
    cpu: str = "host"
    machine: str = "q35,i8042=off"
    append: str = ""
    guest_options: str = ""
    recorder: str = "agent"
    clock: str = "x86-tsc"
    seconds: float = 5
    options: str = "--no-kallsyms"
    """More of `counterpoint record`."""
    offsets: bool = False
    """Read the offsets by every source before the recording, too."""
    watch: bool = False
    """Log each write of an offset while the guest boots."""
    before: Callable[[Session, Guest], None] | None = None
    during: Callable[[Session, Guest], None] | None = None
    by_writes: bool = False
    """An offset may come and go between two readings of debugfs: what KVM wrote says so."""
    verdicts: tuple[str, ...] = ("proved",)

    def run(self, lab: Lab) -> list[Row]:
        """Boot, record, read the truth, judge."""
        root, boots = images(lab.cache, self.kernel)
        lab.say(f"images are there: Linux {boots.release}")
        with self._machine(lab, root, boots) as host:
            try:
                return self._with_host(lab, host, root, boots)
            finally:
                lab.write("host-dmesg.txt", _quietly(host, "dmesg"))

    def _machine(self, lab: Lab, root: Path, boots: System) -> Machine:
        command = [
            *program(root, "usr/bin/qemu-system-x86_64"),
            *("-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,+svm,+npt", "-smp", "2", "-m", "3G"),
            *("-object", "memory-backend-memfd,id=ram,size=3G,share=on", "-machine", "q35,memory-backend=ram"),
            *("-kernel", str(boots.kernel), "-initrd", str(boots.initrd)),
            *("-append", f"{QUIET} tsc=reliable clocksource=tsc lab.name=host"),
            *("-drive", f"file={boots.disk},if=virtio,format=raw,readonly=on"),
        ]
        return Machine("host", command, lab.folder, environment(root))

    def _with_host(self, lab: Lab, host: Machine, root: Path, boots: System) -> list[Row]:
        zipapp = lab.zipapp()
        # a disk has whole sectors
        (host.share / "counterpoint.pyz").write_bytes(zipapp.read_bytes() + bytes(-zipapp.stat().st_size % 512))
        host.up(600)
        lab.say("the host is up")
        session = Session(lab, self, host, zipapp, root)
        host.run(f"umask 077; echo {shlex.quote(SECRET)} > /tmp/secret")
        if self.offsets:
            lab.write("doctor.txt", session.pyz("doctor", check=False))
        watching = None
        if self.watch:
            arguments = "offsets --watch --no-probes --json > /lab/share/watch.jsonl & echo $! > /tmp/watch.pid; wait"
            watching = host.channel(0).start(f"cd /tmp; python3 /lab/share/counterpoint.pyz {arguments}")
            lab.eventually(
                lambda: _size(host.share / "watch.jsonl"), 60 * host.patience, "offsets --watch says what is there"
            )
        guest = session.start_guest("guest", 1, self.guest_options)
        if watching:
            host.run("kill -TERM $(cat /tmp/watch.pid)")
            watching.wait(60, check=False)
        if self.before:
            self.before(session, guest)
        if self.recorder != "inside":
            session.start_agent(guest)
        session.read_truth("before")
        if self.offsets:
            self._offsets(session, guest)
        self._record(session, guest)
        guest = session.guests[guest.name]
        session.read_truth("after")
        lab.write("truth.json", session.truths)
        lab.write("guest-dmesg.txt", _quietly(guest.channel, "dmesg"))
        vmm = "QEMU " + host.run("qemu-system-x86_64 --version").split()[3]
        lab.write("machine.json", {"kernel": boots.release, "vmm": vmm})
        if (watched := host.share / "watch.jsonl").exists():
            watched.rename(lab.folder / watched.name)
        return self.judge(lab)

    def judge(self, lab: Lab) -> list[Row]:
        """Prove what came home, and hold it against the truth."""
        root = images(lab.cache, self.kernel)[0]
        return judging.rows(lab, self, root)

    @staticmethod
    def _offsets(session: Session, guest: Guest) -> None:
        """Read every source while the guest has something to do: an idle vCPU passes no probe."""
        load = session.marks(guest, 8)
        offsets = json.loads(session.pyz("offsets --vmm --json", 240, check=False))
        session.lab.write("offsets.json", offsets)
        for job in load:
            job.wait(240)
        session.lab.say("offsets are read")

    def _record(self, session: Session, guest: Guest) -> None:
        """Record both until all that is to happen has happened; the capture comes home."""
        host, lab = session.host, session.lab
        job = self._begin(session, guest)
        inside = self._record_inside(guest) if self.recorder == "inside" else None
        lab.say("recording")
        load = session.marks(guest, self.seconds) + session.marks(None, self.seconds)
        if self.during:
            self.during(session, guest)
            guest = session.guests[guest.name]
        for one in load:
            one.wait(self.seconds * 10 + 120)
        if inside:
            guest.channel.run("kill -INT $(cat trace.pid)")
            inside.wait(120)
        host.run("touch /tmp/ended; kill -TERM $(cat /tmp/record.pid)", check=False)
        job.wait(240)
        host.run("cp -r /tmp/capture /lab/share/", 120)
        lab.write("record.json", host.run("cat /tmp/record.json"))
        (lab.folder / "capture").mkdir()
        for file in (host.share / "capture").iterdir():
            # of trace-cmd's own: host.dat, and host-GUEST.dat
            name = "guest.dat" if file.name.startswith("host-") else file.name
            file.rename(lab.folder / "capture" / name)
        if inside:
            (lab.folder / "capture" / "guest.dat").write_bytes(guest.channel.fetch("guest.dat"))
        lab.say("recorded")

    def _begin(self, session: Session, guest: Guest) -> Job:
        """Start recording. On a busy machine an agent may not answer in time: that is said, and tried again."""
        host, lab = session.host, session.lab
        begun = {"inside": "capture/host.dat.cpu0", "trace-cmd": "begun"}.get(self.recorder, "capture/guest.dat.cpu0")
        for attempt in (1, 2, 3):
            job = host.channel(0).start(f"cd /tmp; rm -rf capture; {self._recorder_in_host(guest)}")
            lab.eventually(partial(self._ended_or_begun, job, host, begun), 240 * host.patience, "the recording begins")
            if not job.done:
                return job
            said = job.wait(1, check=False) + host.run("cat /tmp/record.json", check=False)
            lab.say(f"attempt {attempt} to record: {said.strip()}")
            lab.write("agent.txt", _quietly(guest.channel, "cat /tmp/agent.txt"))
        raise LabError(f"record: {said.strip()}")

    def _recorder_in_host(self, guest: Guest) -> str:
        """Return the script that records in the host until it is told to end."""
        if self.recorder == "trace-cmd":
            common = f"-C {self.clock} -e sched -e irq -e timer"
            wait = "sh -c 'touch begun; until [ -e ended ]; do sleep 0.2; done'"
            return (
                f"mkdir capture; trace-cmd record -b 8000 {common} -e kvm -o capture/host.dat"
                f" -A {guest.cid}:823 -b 4000 {common} {wait} > record.json 2>&1"
            )
        url = "" if self.recorder == "inside" else f"--guest guest=vsock://{guest.cid}"
        url += " --guest-secret /tmp/secret" if self.recorder == "agent" else ""
        return (
            f"python3 /lab/share/counterpoint.pyz record --json --vmm -o /tmp/capture --clock {self.clock}"
            f" {url} {self.options} > /tmp/record.json & echo $! > /tmp/record.pid; wait $!"
        )

    def recordings(self, lab: Lab) -> list[Path]:
        """Return what `sync` and `convert` are given."""
        capture = lab.folder / "capture"
        apart = self.recorder in ("inside", "trace-cmd")
        return [capture / "host.dat", capture / "guest.dat"] if apart else [capture]

    @staticmethod
    def _ended_or_begun(job: Job, host: Machine, name: str) -> bool:
        return job.done or "yes" in host.run(f"[ -e /tmp/{name} ] && echo yes", check=False)

    @staticmethod
    def _record_inside(guest: Guest) -> Job:
        """Let the guest record itself, into its own memory: no connection that the guest's moves could end."""
        events = "-e sched -e irq -e timer -e workqueue -e raw_syscalls"
        command = f"trace-cmd record -C x86-tsc -b 4000 {events} -o guest.dat"
        job = guest.channel.start(f"sh -c 'echo $$ > trace.pid; exec {command}' > trace.txt 2>&1")
        begun = "grep -qs 1 /sys/kernel/tracing/events/sched/sched_switch/enable"
        guest.channel.run(f"n=0; until {begun}; do sleep 0.5; n=$((n+1)); [ $n -lt 2000 ] || exit 1; done", 240)
        return job


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _quietly(where: Machine | Channel, script: str) -> str:
    try:
        return where.run(script, 20, check=False)
    except LabError as error:
        return f"not read: {error}\n"
