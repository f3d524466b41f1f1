"""``counterpoint simulate FOLDER``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from counterpoint.commands.common import Progress, print_json
from counterpoint.simulate.options import CHOICES, WorldOptions, random_options

_HELP: dict[str, dict[str, tuple[str, str]]] = {
    "machines": {
        "seed": ("N", "the same seed and options give the same bytes"),
        "arch": ("", "architecture"),
        "vms": ("N", "guests that are recorded"),
        "vcpus": ("N", "vCPUs of each"),
        "cpus": ("N", "CPUs of a host"),
        "decoys": ("N", "VMs that run beside them and are not recorded"),
        "events": ("N", "about how many events, all files together"),
        "khz": ("KHZ", "rate of the host's counter"),
        "start": ("TICKS", "value of the host's counter when the world begins"),
        "latency": ("", "of entries, exits and switches: bare metal's, or an emulated machine's"),
        "fast_exits": ("SHARE", "share of exits that kvm handles at once and re-enters"),
    },
    "clocks": {
        "clock": ("CLOCK", "the trace clock (x86: x86-tsc, arm64: mono_raw; also mono, local, boot)"),
        "guest_clock": ("CLOCK", "the guests' trace clock, where it is another"),
        "offset": ("TICKS", "offset of the first vCPU's counter, and of the others unless they differ"),
        "differ": ("TICKS", "x86: vCPUs' offsets differ by up to so much"),
        "guest_khz": ("KHZ", "x86: the guests' TSC is scaled to this rate"),
        "frac": ("BITS", "bits after the point of the ratio: 48 (Intel) or 32 (AMD)"),
        "drift_ppm": ("PPM", "guests' clocks in ns run off by so much"),
        "pvclock": ("", "x86: guests' local is kvm-clock, and the host records kvm_pvclock_update"),
        "slews": ("N", "how often NTP changes the rates of mono and boot, on each machine"),
        "steps": ("N", "how often the guests' mono and boot step"),
    },
    "what happens": {
        "pauses": ("N", "a VM stands, and its counters with it"),
        "restores": ("N", "a VM stands, and goes on with other counters"),
        "writes": ("N", "x86: a guest writes one vCPU's TSC"),
        "hotplug": ("", "the first VM's last vCPU comes later"),
        "silent": ("", "no kvm_write_tsc_offset events tell of it"),
        "vtimers": ("", "guests' timers and what KVM shows of them: arm64's CVALs, x86's TSC deadlines"),
        "probes": ("", "arm64: the host's recording has a probe that logs CNTVOFF"),
        "migrate": ("", "the first VM moves to a second host, recorded as host-b.dat"),
        "returns": ("N", "it moves back, and there again, so many times more"),
        "khz_b": ("KHZ", "rate of the second host's counter"),
    },
    "nesting": {
        "nested": ("N", "the first VM runs an L2 with so many vCPUs, recorded as l2.dat"),
        "nested_khz": ("KHZ", "x86: L2's TSC is scaled to this rate"),
        "nested_events": ("", "the host marks switches between L1 and L2"),
    },
    "what the recordings lack": {
        "lose": ("N", "times that the host loses events"),
        "lose_guest": ("N", "times that each guest does"),
        "uncounted": ("", "the kernel did not count them"),
        "unrecorded_cpus": ("N", "CPUs of the host that are not recorded"),
        "late_start": ("SHARE", "share of the world before the host's recording begins"),
        "early_end": ("SHARE", "share of the world after it ends"),
        "unlogged": ("SHARE", "share of re-entries after fast exits without a kvm_entry"),
        "kvm_events": ("", "the host records no kvm events, only sched_switch and others"),
        "timers": ("", "the host records no hrtimer_expire_entry"),
    },
    "what the files say": {
        "time_shift": ("", "guests' TIME_SHIFT: right, off by --error, read while an L2 ran, or 0"),
        "error": ("TICKS", "what a wrong TIME_SHIFT is off by"),
        "guest_option": ("", "the host's file says which threads are whose vCPUs"),
        "tsc2nsec": ("", "x86-tsc files say how long a tick is"),
        "cmdlines": ("", "no names of tasks"),
        "uname": ("", "no kernel version"),
        "version": ("6|7", "version of trace.dat"),
        "compression": ("", "how version 7 is compressed"),
    },
}
"""Of each option: its metavar and its help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a world whose truth is known: recordings of a host and its guests as trace.dat files, and truth.json."
    )
    parser.epilog = (
        "example:\n  counterpoint simulate world --vcpus 4 --pauses 1 --time-shift wrong\n"
        "  counterpoint sync world/host.dat world/guest.dat"
    )
    parser.add_argument("folder", metavar="FOLDER", help="where the files go; made where it is missing")
    parser.add_argument("--random", action="store_true", help="draw a small world by --seed; takes no other options")
    parser.add_argument("--force", action="store_true", help="overwrite files")
    parser.add_argument("--json", action="store_true", help="the truth as JSON")
    defaults: dict[str, Any] = {field.name: field.default for field in fields(WorldOptions)}
    for title, options in _HELP.items():
        group = parser.add_argument_group(title)
        for name, (metavar, text) in options.items():
            _add_option(group, name, metavar, text, defaults[name])


def _add_option(group: argparse._ArgumentGroup, name: str, metavar: str, text: str, default: Any) -> None:  # noqa: ANN401
    flag = name.replace("_", "-")
    if isinstance(default, bool):
        action = "store_false" if default else "store_true"
        group.add_argument(f"--{'no-' if default else ''}{flag}", dest=name, action=action, help=text)
        return
    kind: type = int if default is None else type(default)
    shown = f" (default {default})" if default else ""
    choices = CHOICES.get(name) if not metavar else None
    group.add_argument(
        f"--{flag}", dest=name, type=kind, default=default, choices=choices, metavar=metavar or None, help=text + shown
    )


def run(args: argparse.Namespace) -> int:
    from counterpoint.errors import UsageError

    given = {field.name: getattr(args, field.name) for field in fields(WorldOptions)}
    options = WorldOptions(**given)
    if args.random:
        if set(options.features()) - {"seed"}:
            raise UsageError(f"--random draws every option: leave out {', '.join(set(options.features()) - {'seed'})}")
        options = random_options(args.seed)
    # numpy takes longer than the help may
    from counterpoint.simulate.world import World

    progress = Progress()
    try:
        truth = World(options, progress).write(args.folder, overwrite=args.force)
    finally:
        progress.done()
    if args.json:
        print_json(truth)
    else:
        _print(truth, args.folder)
    return 0


def _print(truth: dict[str, Any], folder: str) -> None:
    from counterpoint.outputs.table import console

    out = console()
    for file, events in truth["events"].items():
        out.print(f"{folder}/{file}: {events} events", markup=False, highlight=False, soft_wrap=True)
    epochs = sum(len(v["epochs"]) for g in truth["guests"] for v in g["vcpus"])
    vcpus = sum(len(g["vcpus"]) for g in truth["guests"])
    out.print(f"{folder}/truth.json: {vcpus} vCPUs, {epochs} epochs", markup=False, highlight=False, soft_wrap=True)
