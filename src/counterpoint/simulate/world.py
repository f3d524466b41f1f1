"""A world: made from options and a seed, written as trace.dat files and truth.json."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from counterpoint.clocks.counter import I64, U64, to_signed
from counterpoint.errors import UsageError
from counterpoint.simulate import truth as truths
from counterpoint.simulate.build import build
from counterpoint.simulate.machines import CpuEvents, Machine
from counterpoint.simulate.members import Guest, Host
from counterpoint.simulate.options import WorldOptions
from counterpoint.simulate.truth import GuestCpuTruth

TRUTH = "truth.json"


class World:
    """A world. ``write`` makes its files; afterwards ``truth`` and ``events`` tell what stands in them.

    ``hosts``: one, or two where a guest migrates; ``guests``: L1s, then L2s.
    """

    def __init__(self, options: WorldOptions, progress: Callable[[str], None] = lambda _step: None) -> None:
        """Draw everything but the losses."""
        self.options = options
        self._progress = progress
        progress("drawing who runs when")
        self._rng = np.random.Generator(np.random.PCG64(options.seed))
        self.hosts: list[Host]
        self.guests: list[Guest]
        self.hosts, self.guests, self.span = build(options, self._rng)
        self.truth: dict[str, Any] = {}
        self._events: dict[tuple[str, int], GuestCpuTruth] = {}

    @property
    def machines(self) -> list[Machine]:
        """All that are recorded: hosts first, each with its name and the events of its file."""
        return [host.machine for host in self.hosts] + [guest.machine for guest in self.guests]

    def files(self) -> list[str]:
        """The names of the files that ``write`` makes."""
        return [machine.file for machine in self.machines] + [TRUTH]

    def write(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Any]:
        """Write all files into ``folder``, made where it is missing; returns the truth. Once a world.

        UsageError where one of the files exists and ``overwrite`` is False.
        """
        if self.truth:
            raise UsageError("this world was written already: make another of the same options")
        into = Path(folder)
        if into.exists() and not into.is_dir():
            raise UsageError(f"{into}: not a folder")
        into.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            for name in self.files():
                if (into / name).exists():
                    raise UsageError(f"{into / name}: the file exists (--force overwrites it)")
        for machine in self.machines:
            self._progress(f"writing {machine.file}")
            with _replacing(into / machine.file) as file:
                machine.write(
                    file, self.options.arch, self._rng,
                    version=self.options.version, compression=self.options.compression,
                )  # fmt: skip
        self._progress("writing the truth")
        for guest in self.guests:
            for cpu, events in guest.machine.events.items():
                self._events[guest.machine.name, cpu] = self._cpu_truth(guest, cpu, events)
        self.truth = self._truth()
        with _replacing(into / TRUTH) as file:
            file.write(json.dumps(self.truth, indent=1).encode() + b"\n")
        return self.truth

    def events(self, guest: str, cpu: int) -> GuestCpuTruth:
        """The truth of every event of CPU ``cpu`` of guest ``guest`` (a name such as "guest"); KeyError: none such."""
        return self._events[guest, cpu]

    def guest_at(self, guest: str, cpu: int, host_stamp: int, *, host: int = 0) -> tuple[int, int]:
        """Least and greatest stamp of a guest CPU at the instants at which the host's clock shows ``host_stamp``.

        They differ where the guest's clock is the finer one. A stamp that the host's clock skips is that of the instant
        at which it does. For L2 the L1 CPU is that which its thread was on last. ValueError outside of the world's
        time.
        """
        clock = self.hosts[host].clock
        zero = clock.at_one(self.span[0])
        wanted = to_signed(host_stamp - zero)
        if not 0 <= wanted <= to_signed(clock.at_one(self.span[1]) - zero):
            raise ValueError(f"the host's stamp {host_stamp} is outside of this world")

        def first(at_least: int) -> int:
            low, high = self.span[0], self.span[1] + 1
            while low < high:
                middle = (low + high) // 2
                if to_signed(clock.at_one(middle) - zero) >= at_least:
                    high = middle
                else:
                    low = middle + 1
            return low

        begin = min(first(wanted), self.span[1])
        times = np.array([begin, max(begin, first(wanted + 1) - 1)], np.int64)
        found = next(g for g in self.guests if g.machine.name == guest)
        low, high = found.machine.stamps(cpu, times).tolist()
        return low, high

    def _cpu_truth(self, guest: Guest, cpu: int, events: CpuEvents) -> GuestCpuTruth:
        clocks = [host.clock for host in self.hosts]
        parent_cpu = guest.parent_cpu[cpu]
        stamps: U64 | None = None
        if guest.parent is not None:
            where = parent_cpu.at(events.t)
            stamps = _by_cpu(where, events.t, lambda on, t: guest.parent_stamps(on, t))
        return truths.of_cpu(
            (events.t, events.true_stamp, events.stamp), clocks, guest.host_of, stamps, parent_cpu, guest.since(cpu)
        )

    def _truth(self) -> dict[str, Any]:
        options = self.options
        out: dict[str, Any] = {
            "case": "simulated",
            "seed": options.seed,
            "arch": {"x86": "x86_64"}.get(options.arch, options.arch),
            "host_clock": options.host_clock,
            "guest_clock": options.guests_clock,
            "khz": options.host_khz,
        }
        if options.arch == "arm64":
            out["cntfrq"] = options.host_khz * 1000
        out["host"] = self.hosts[0].machine.file
        if len(self.hosts) > 1:
            out["hosts"] = [host.machine.file for host in self.hosts]
        out["guests"] = [self._guest_truth(guest) for guest in self.guests]
        out["convention"] = "offset = guest - host"
        out["events"] = {machine.file: machine.count for machine in self.machines}
        out["options"] = options.features()
        out["clocks"] = {host.machine.name: {**host.clock.truth(), **host.counter_truth()} for host in self.hosts}
        lost = {machine.name: gaps for machine in self.machines if (gaps := _gaps(machine.events))}
        if lost:
            out["lost"] = lost
        return out

    def _guest_truth(self, guest: Guest) -> dict[str, Any]:
        vcpus = []
        clocks = [host.clock for host in self.hosts]
        for cpu in range(guest.machine.cpus):
            entry: dict[str, Any] = {"guest_cpu": cpu, "host_tid": guest.tids[0][cpu]}
            if guest.host_of.value.max() > 0:
                entry["host_tids"] = [tids[cpu] for tids in guest.tids]
            names = [host.machine.name for host in self.hosts]
            entry["epochs"] = guest.epochs(cpu, clocks, self.span, names)
            counts = self._events[guest.machine.name, cpu]
            entry["events"] = len(counts.t)
            if counts.late.any():
                entry["late_events"] = int(counts.late.sum())
            vcpus.append(entry)
        out = {"file": guest.machine.file, "parent": guest.machine.parent, "vcpus": vcpus}
        return out | guest.more_truth()


def _gaps(events: dict[int, CpuEvents]) -> list[dict[str, int | None]]:
    """The losses of a machine, as truth.json has them."""
    out: list[dict[str, int | None]] = []
    for cpu, found in events.items():
        for row, count in zip(found.lost_row.tolist(), found.lost_count.tolist(), strict=True):
            out.append(
                {
                    "cpu": cpu,
                    "lost": count if count >= 0 else None,
                    "after": int(found.stamp[row - 1]) if row else None,
                    "before": int(found.stamp[row]),
                }
            )
    return out


def _by_cpu(cpu: I64, t: I64, stamps: Callable[[int, I64], U64]) -> U64:
    """Stamps u64[n] of events on CPUs ``cpu`` i64[n]."""
    out = np.zeros(len(t), np.uint64)
    for number in np.flatnonzero(np.bincount(cpu, minlength=1)).tolist():
        mine = cpu == number
        out[mine] = stamps(number, t[mine])
    return out


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes ``path``'s place when the block ends well, and is removed when it does not."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
