"""Record this host, and guests beside it, into a capture folder: what has to happen in which order."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import UsageError
from counterpoint.live import counter, folder, machine, presets, probes, tracefs
from counterpoint.live.ending import Ending
from counterpoint.live.flight import Condition
from counterpoint.live.folder import CaptureFolder, Parts
from counterpoint.live.guests import GuestFile, GuestTracer, Wanted
from counterpoint.live.libc import MACHINE
from counterpoint.live.presets import EventSpec
from counterpoint.live.spool import CpuSpool, Pump
from counterpoint.live.stats import read_stats, total
from counterpoint.live.tracedat import cmdlines_of, guest_option, head_of, new_trace_id
from counterpoint.live.watchdog import watchdog

HOST = "host"
COMMAND_PATIENCE = 5.0
"""Seconds that a command has to end after SIGTERM, before SIGKILL."""


@dataclass(frozen=True)
class Request:
    """What is asked for. ``seconds`` None: until a signal, or ``command`` ends. ``buffer_kb``: of each CPU.

    ``condition``: record in a circle, and keep what is there when it comes, and ``after`` seconds more.
    """

    folder: Path
    preset: str | None = None
    events: Sequence[EventSpec] = ()
    seconds: float | None = None
    command: Sequence[str] = ()
    buffer_kb: int = 4096
    max_bytes: int | None = None
    condition: Condition | None = None
    after: float = 0.0
    clock: str | None = None
    guests: Sequence[GuestTracer] = ()
    vmm: bool = False
    probes: bool = True
    kallsyms: bool = True
    overwrite: bool = False


@dataclass
class MachineSummary:
    """What was recorded of one machine. ``lost``: overwritten or dropped before it was read; None: not known."""

    name: str
    file: str
    clock: str
    cpus: int
    events: int | None
    lost: int | None
    bytes: int
    notes: list[str] = field(default_factory=list)
    lost_by_cpu: dict[int, int] = field(default_factory=dict)


@dataclass
class Summary:
    """How it went. ``cpu_ns``: what this process itself has used of CPUs. ``snapshot``: see docs/record.md."""

    folder: Path
    stopped_by: str
    seconds: float
    machines: list[MachineSummary]
    cpu_ns: int = 0
    command_status: int | None = None
    snapshot: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


Progress = Callable[[float, "dict[str, int]", int], None]
"""Told now and then: seconds, counts (events, lost) so far, bytes so far."""


def record(request: Request, ending: Ending, progress: Progress | None = None) -> Summary:
    """Record until ``ending`` has a reason. Everything made in tracefs is gone when this returns or raises.

    UsageError says what is missing or refused; OSError is of files. What is in the folder then can be read
    (``folder.assemble``).
    """
    root = tracefs.require_root()
    if not (root / "events").is_dir() or not os.access(root / "events", os.R_OK | os.X_OK):
        raise UsageError("tracefs cannot be read: run as root")
    recorder = _Recorder(request, ending, root, progress)
    with ExitStack() as stack:
        try:
            recorder.prepare(stack)
            recorder.run(stack)
        except BaseException:
            recorder.give_up()
            raise
        recorder.collect()
    return recorder.write()


class _Recorder:
    def __init__(self, request: Request, ending: Ending, root: Path, progress: Progress | None) -> None:
        self.request = request
        self.ending = ending
        self.root = root
        self.progress = progress
        self.notes: list[str] = []
        self.look = machine.VmLook(vmm=request.vmm, probes=request.probes)
        self.guests: list[GuestFile | None] = []
        self.pairings: list[tuple[int, bytes]] = []
        """Of host.dat: its GUEST options."""
        self.snapshot: dict[str, Any] | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.pump: Pump | None = None
        self.pipes: list[int] = []
        self.trace_id = new_trace_id()
        self.folder: CaptureFolder | None = None
        self.is_begun = False

    # -- before

    def prepare(self, stack: ExitStack) -> None:
        """Make the instance, the folder and all that is known before the first event."""
        request = self.request
        for left in tracefs.sweep(self.root):
            self.notes.append(f"removed the {left.kind} {left.name} of a process that was killed")
        stack.enter_context(watchdog(self.root))
        clock, note = (request.clock, "") if request.clock else tracefs.exact_clock(self.root)
        self.notes += [note] if note else []
        self.instance = stack.enter_context(tracefs.instance(self.root, request.buffer_kb, clock))
        self.instance.write("tracing_on", "0")
        specs = list(request.events)
        condition = request.condition
        if condition is not None and condition.spec is not None:
            self.pipes = condition.open(stack, self.root, clock)
            if presets.is_missing(self.root, request.preset, specs, condition.spec.pattern):
                specs.append(condition.spec)
        self.pairs, notes = presets.enable(self.instance, request.preset, specs)
        self.notes += notes
        if MACHINE == "aarch64" and request.probes:
            self._record_offsets(stack)
        self.cpus = _cpus(self.instance.folder)
        head = head_of(
            self.instance.folder, [":".join(pair) for pair in self.pairs],
            page_size=self.instance.page_size, kallsyms=request.kallsyms,
        )  # fmt: skip
        self.look.look()
        self.readings = [machine.readings()] if _counts() else []
        self._make_folder(head)
        self._allow_descriptors(2 * len(self.cpus) + 256)
        spools: list[CpuSpool] = []
        for cpu in self.cpus:
            source = self.instance.folder / "per_cpu" / f"cpu{cpu}" / "trace_pipe_raw"
            spools.append(CpuSpool(cpu, source, folder.pages(request.folder, HOST, cpu), self.instance.page_size))
            stack.callback(spools[-1].close)
        self.pump = Pump(spools, self._pump_stopped, request.max_bytes)
        stack.callback(self.pump.close)

    def _record_offsets(self, stack: ExitStack) -> None:
        """Let the recording itself say CNTVOFF at each load of a vCPU: when it changes, and on whose thread.

        x86's kvm_write_tsc_offset, which the proof's events have, has no counterpart on arm64.
        """
        probe, _ = probes.open_probe(stack, self.root, self.instance)
        if probe is not None:
            probe.enable()
            self.pairs.append((probe.group, probes.NAME))
            self.look.in_recording = True

    def _allow_descriptors(self, count: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limits = soft, hard
        if soft != resource.RLIM_INFINITY and soft < count:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else count, hard))

    def _make_folder(self, head: bytes) -> None:
        request = self.request
        self.folder = CaptureFolder.create(request.folder, overwrite=request.overwrite)
        text = (self.instance.folder / "trace_clock").read_text(encoding="utf-8")
        factor = counter.perf_factor() if self.instance.clock == "x86-tsc" else None
        line = machine.clock_line(self.instance.clock)
        if self.instance.clock == "mono_raw" and MACHINE == "aarch64" and "base" in line:
            self.folder.content["k"] = {HOST: [line["base"], line["base"]]}
        self.folder.content.update(
            guests=[],
            clock_pairs={HOST: self._pairs()},
            machines={HOST: {**machine.machine(), "trace_clock": line}},
            vms=self.look.values,
            record={
                "events": [":".join(pair) for pair in self.pairs],
                "buffer_kb": request.buffer_kb,
                "notes": self.notes,
            },
        )
        self.folder.save()
        self.parts = Parts(text, max(self.cpus) + 1, self.trace_id, "", factor, machine.thread_names())
        folder.begin(request.folder, HOST, head, self.parts)

    def _pairs(self) -> list[dict[str, Any]]:
        return [*(machine.clock_pair(each) for each in self.readings), *self.look.pairs()]

    def _pump_stopped(self) -> None:
        assert self.pump is not None
        self.ending.because("max-size" if self.pump.full else "error")

    def give_up(self) -> None:
        """It ended before all had been started: the host's few events are worth nothing."""
        if self.folder is not None and not self.is_begun:
            if self.pump is not None:
                self.pump.stop()
            self.folder.discard()

    # -- meanwhile

    def run(self, stack: ExitStack) -> None:
        """Switch on, start the guests and the command, wait, stop the guests, switch off."""
        request, pump = self.request, self.pump
        assert pump is not None
        self.ending.recording = True
        self.begun = time.monotonic()
        if request.condition is None:
            pump.start()
        # the host first and last: what it did not see of a guest is unknown
        self.instance.write("tracing_on", "1")
        for guest in request.guests:
            stack.callback(guest.abandon)
            guest.start(request.folder, self._wanted())
        self._start_command(stack)
        self.is_begun = True
        self._wait()
        if self.ending.reason == "condition" or (request.condition and self.ending.reason == "SIGUSR1"):
            self._snapshot()
        self.seconds = time.monotonic() - self.begun
        for guest in request.guests:
            self.guests.append(self._stopped(guest))
        self.instance.write("tracing_on", "0")
        self._end_command()

    def _wanted(self) -> Wanted:
        patterns = presets.patterns(self.request.preset, [EventSpec(spec.pattern) for spec in self.request.events])
        return Wanted(
            patterns, self.instance.clock, self.request.buffer_kb, self.trace_id, self.request.condition is not None
        )

    def _stopped(self, guest: GuestTracer) -> GuestFile | None:
        try:
            return guest.stop()
        except (UsageError, OSError) as err:
            # the host's recording, and other guests', are good all the same
            self.notes.append(f"guest {guest.name} ({guest.url}): {err}")
            return None

    def _start_command(self, stack: ExitStack) -> None:
        if self.request.command:
            try:
                self.child = subprocess.Popen(list(self.request.command))  # noqa: S603 (it is the user's own)
            except OSError as err:
                raise UsageError(f"{self.request.command[0]}: cannot be run: {err.strerror}") from None
            with suppress(OSError):
                resource.prlimit(self.child.pid, resource.RLIMIT_NOFILE, self.limits)
            stack.callback(self._end_command)

    def _end_command(self) -> None:
        child = self.child
        if child is None or child.poll() is not None:
            return
        child.terminate()
        try:
            child.wait(COMMAND_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _wait(self) -> None:
        end = None if self.request.seconds is None else time.monotonic() + self.request.seconds
        while self.ending.reason is None:
            now = time.monotonic()
            if end is not None and now >= end:
                self.ending.because("duration")
                break
            if self.child is not None and self.child.poll() is not None:
                self.ending.because("command")
                break
            if self.progress is not None:
                counts = total(read_stats(self.instance.folder, self.cpus))
                assert self.pump is not None
                self.progress(now - self.begun, counts, self.pump.bytes)
            times = [1.0 if self.progress is not None else None, None if end is None else end - now]
            ready = self.ending.wait(min((t for t in times if t is not None), default=None), self.pipes)
            if ready and self.request.condition is not None:
                self.snapshot = self.request.condition.came()
                if self.snapshot is not None:
                    self.ending.because("condition")

    def _snapshot(self) -> None:
        condition = self.request.condition
        assert condition is not None
        self.snapshot = {"on": condition.text, "happened": True, **(self.snapshot or {})}
        end = time.monotonic() + self.request.after
        while time.monotonic() < end:
            self.ending.wait(end - time.monotonic())

    # -- after

    def collect(self) -> None:
        """Take what is left in the buffers, and what is known only now, before the instance goes."""
        assert self.pump is not None
        self.pump.finish()
        self.stats = read_stats(self.instance.folder, self.cpus)
        self.cmdlines = cmdlines_of(self.root, machine.thread_names())
        self.look.look()
        if self.readings:
            self.readings.append(machine.readings())

    def write(self) -> Summary:
        """Put the host's file together and finish capture.json."""
        assert self.pump is not None
        assert self.folder is not None
        request = self.request
        if request.condition is not None and self.snapshot is None:
            self.snapshot = {"on": request.condition.text, "happened": False}
        listed = [self._guest(guest, found) for guest, found in zip(request.guests, self.guests) if found is not None]
        path = folder.end(request.folder, HOST, self.parts, self.cmdlines, self.stats, self.pairings)
        counts = total(self.stats)
        by_cpu = {cpu: total({cpu: text})["lost"] for cpu, text in self.stats.items()}
        machines = [
            MachineSummary(
                HOST, path.name, self.instance.clock, len(self.cpus), counts["events"], counts["lost"], self.pump.bytes,
                lost_by_cpu={cpu: count for cpu, count in by_cpu.items() if count},
            )
        ]  # fmt: skip
        for guest, found in zip(request.guests, self.guests):
            if found is not None:
                machines.append(
                    MachineSummary(
                        guest.name, found.path.name, found.clock, found.cpus, found.events, found.lost, found.bytes,
                        found.notes,
                    )
                )  # fmt: skip
                if found.line is not None:
                    self.folder.content["machines"][guest.name] = {"trace_clock": found.line}
                    self.folder.content.setdefault("k", {})[guest.name] = [found.line["base"]] * 2
        self.notes += self.look.notes
        reason = self.ending.reason or "unknown"
        self.folder.content.update(
            state="complete", guests=listed, vms=self.look.values, clock_pairs={HOST: self._pairs()},
            readings=self.readings,
            lost={m.name: {"events": m.lost, "by_cpu": m.lost_by_cpu} for m in machines},
        )  # fmt: skip
        self.folder.content["record"].update(stopped_by=reason, seconds=round(self.seconds, 3), notes=self.notes)
        if self.snapshot is not None:
            self.folder.content["snapshot"] = self.snapshot
        self.folder.save()
        status = None if self.child is None else self.child.returncode
        return Summary(
            request.folder, reason, self.seconds, machines, time.process_time_ns(), status, self.snapshot, self.notes
        )

    def _guest(self, guest: GuestTracer, found: GuestFile) -> dict[str, Any]:
        """What capture.json says of a guest: its file, and threads and claims of the VM that it is."""
        out: dict[str, Any] = {"file": found.path.name, "url": guest.url, "clock": found.clock}
        if found.clock != self.instance.clock:
            self.notes.append(f"guest {guest.name} has the clock {found.clock}, its host {self.instance.clock}")
        vm = self.look.vm_of(guest.name, guest.url)
        if vm is None:
            if self.look.vms:
                labels = ", ".join(vm.label for vm in self.look.vms)
                self.notes.append(
                    f"guest {guest.name}: which VM it is is not known (there are {labels}): NAME=URL says it"
                )
            return out
        out["vm"] = {"pid": vm.pid, "vmm": vm.vmm, "name": vm.name}
        threads = self.look.threads(vm, found.cpus)
        if threads:
            out["threads"] = threads
            if found.trace_id is not None:
                by_cpu = {int(cpu): tid for cpu, tid in threads.items()}
                self.pairings.append(guest_option(guest.name, found.trace_id, by_cpu))
        out["claims"] = self.look.claims(vm)
        return out


def _counts() -> bool:
    with suppress(UsageError):
        counter.reader()
        return True
    return False


def _cpus(folder: Path) -> list[int]:
    return sorted(int(path.name[3:]) for path in (folder / "per_cpu").glob("cpu[0-9]*"))
