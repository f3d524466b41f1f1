"""Write the tables of docs/trace-cmd-offsets.md: simulated worlds in which trace-cmd's clocks go wrong, and ours.

Each world's guest file says what trace-cmd would have stored (TIME_SHIFT: what debugfs showed when it looked, or what
messages told). ``shown`` is what its reader makes of that, written from lib/trace-cmd/trace-input.c
(timestamp_host_sync and timestamp_correction_calc); the tests hold it against the installed trace-cmd.

    python tools/trace_cmd_offsets.py docs/trace-cmd-offsets.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint import SyncResult, sync
from counterpoint.claims import time_shift
from counterpoint.clocks.counter import MASK, to_signed
from counterpoint.proof.verdicts import VcpuProof, Verdict
from counterpoint.simulate import World, WorldOptions
from counterpoint.simulate.members import Guest
from counterpoint.timeline.sync import offset_width
from counterpoint.traces.container import Option
from counterpoint.traces.options import INTERPOLATE, TimeSample, TimeShift
from counterpoint.traces.write_options import time_shift_option

EVENTS = 1500
PTP_ERRORS = (1400, -1700)
"""What messages are wrong by, in ns: trace-cmd's own word is 2000 on a 3 GHz CPU (trace-timesync-ptp.c)."""


# -- what trace-cmd stores


def _at(guest: Guest, cpu: int, t: int) -> int:
    """The stamp of a guest CPU at hidden time ``t``."""
    return int(guest.machine.stamps(cpu, np.array([t], np.int64))[0])


def _kvm(world: World, cpu: int, t: int, offset: int | None = None, *, is_scaled: bool = True) -> TimeSample:
    """A sample of the "kvm" protocol at hidden time ``t``: debugfs's tsc-offset, negated, and its ratio."""
    guest = world.guests[0]
    epoch = int(guest.counters[cpu].epoch(np.array([t], np.int64))[0])
    ratio, shown = guest.claimed(cpu, epoch)
    frac = world.options.frac
    scaling = (ratio, frac) if is_scaled and ratio != 1 << frac else (1, 0)
    return TimeSample(_at(guest, cpu, t), to_signed(-(shown if offset is None else offset)), *scaling)


def _ends(world: World) -> tuple[int, int]:
    """When trace-cmd looks unless it is told otherwise: once before all events, once after them."""
    return world.span


def at_ends(world: World) -> list[list[TimeSample]]:
    """The default of ``trace-cmd record``: two samples of each vCPU."""
    return [[_kvm(world, cpu, t) for t in _ends(world)] for cpu in range(world.options.vcpus)]


def polled(world: World) -> list[list[TimeSample]]:
    """With ``--tsync-interval``: here four samples, the last after all events."""
    end = world.span[1]
    return [[_kvm(world, cpu, end * n // 3) for n in range(4)] for cpu in range(world.options.vcpus)]


def attached(world: World) -> list[list[TimeSample]]:
    """``trace-cmd attach -s OFFSET,SCALING,FRACTION,TIME`` for each vCPU: its list never goes on to the second."""
    first = _kvm(world, 0, _ends(world)[0])
    return [[first] for _ in range(world.options.vcpus)]


def while_in_l2(world: World) -> list[list[TimeSample]]:
    """Samples read while the vCPU ran L2: debugfs shows the offset that is active then (arch.tsc_offset)."""
    inner = world.guests[1]
    offsets = [inner.counters[0].settings[0].offset for _ in range(world.options.vcpus)]
    return [[_kvm(world, cpu, t, offsets[cpu]) for t in _ends(world)] for cpu in range(world.options.vcpus)]


def but_zeros(world: World) -> list[list[TimeSample]]:
    """Samples whose offset is 0 are dropped (tsync_get_sample), and one vCPU without samples leaves all without."""
    samples = [[s for s in cpu if s.offset] for cpu in at_ends(world)]
    return samples if all(samples) else []


def _by_messages(world: World, times: tuple[int, int]) -> list[list[TimeSample]]:
    """Two samples of the "ptp" protocol, each off by what a message that takes longer one way leaves."""
    guest, host = world.guests[0], world.hosts[0].clock
    out = []
    for cpu in range(world.options.vcpus):
        samples = []
        for t, error in zip(times, PTP_ERRORS, strict=True):
            stamp = _at(guest, cpu, t)
            samples.append(TimeSample(stamp, to_signed(host.at_one(t) - stamp + error), 1, 0))
        out.append(samples)
    return out


def messages_at_ends(world: World) -> list[list[TimeSample]]:
    """The default, by messages."""
    return _by_messages(world, _ends(world))


def messages_at_first(world: World) -> list[list[TimeSample]]:
    """Two samples in the first eighth, as where the guest answered no longer."""
    return _by_messages(world, (0, world.span[1] // 8))


# -- what trace-cmd makes of it


def shown(stamp: int, samples: tuple[TimeSample, ...], flags: int) -> int:
    """The host time that ``trace-cmd report`` shows for a guest's stamp; no samples: the stamp as it is."""
    if not samples:
        return stamp
    if len(samples) == 1:
        return (stamp + samples[0].offset) & MASK
    low, high = _around(stamp, samples)
    offset = low.offset
    if flags & INTERPOLATE:
        span = high.time - low.time
        offset += _divided(to_signed(stamp - low.time) * (high.offset - low.offset) + span // 2, span)
    # in 64 bits, the ratio times the guest's stamp: no division by it, and what is above is lost
    return (((stamp * low.scaling) & MASK) >> low.frac) + offset & MASK


def _around(stamp: int, samples: tuple[TimeSample, ...]) -> tuple[TimeSample, TimeSample]:
    if len(samples) == 2 or stamp <= samples[0].time:
        return samples[0], samples[1]
    if stamp >= samples[-1].time:
        return samples[-2], samples[-1]
    last = max(n for n, sample in enumerate(samples) if sample.time <= stamp)
    return samples[last], samples[last + 1]


def _divided(value: int, by: int) -> int:
    """C's division, towards zero."""
    return value // by if value >= 0 else -(-value // by)


# -- the worlds


@dataclass(frozen=True)
class Case:
    """One way in which it goes wrong: the world, what its guest's file says, and what to say of it."""

    name: str
    title: str
    why: str
    options: dict[str, Any]
    samples: Callable[[World], list[list[TimeSample]]]
    flags: int = 0


CASES = (
    Case(
        "scaling", "TSC scaling (Intel)", "multiplies by the ratio where it should divide, before the offset is"
        " off; the product of 48 bits after the point is cut to 64 bits",
        {"guest_khz": 2_600_000, "khz": 2_000_000}, at_ends,
    ),
    Case(
        "scaling-amd", "TSC scaling (AMD)", "the same with 32 bits after the point",
        {"guest_khz": 2_600_000, "khz": 2_000_000, "frac": 32}, at_ends,
    ),
    Case(
        "scaling-attach", "TSC scaling, `trace-cmd attach`", "with one sample the ratio is not looked at",
        {"guest_khz": 2_600_000, "khz": 2_000_000}, attached,
    ),
    Case(
        "change", "offset changes in mid-recording", "of two samples only the first is used", {"restores": 1}, at_ends,
    ),
    Case(
        "change-silent", "the same, and nobody recorded kvm_write_tsc_offset", "the same",
        {"restores": 1, "silent": True}, at_ends,
    ),
    Case(
        "change-polled", "the same, `--tsync-interval`", "what is between the change and the next sample has the old"
        " offset",
        {"restores": 1}, polled,
    ),
    Case(
        "first-for-all", "vCPUs differ, `trace-cmd attach -s ... -s ...`", "the first `-s` is used for every vCPU",
        {"differ": 40_000_000}, attached,
    ),
    Case(
        "nested", "the guest runs a guest", "debugfs shows the offset that is active, L2's while L2 runs",
        {"nested": 1}, while_in_l2,
    ),
    Case(
        "zero", "one vCPU's offset is 0", "samples of 0 are dropped, and then no vCPU has any",
        {"offset": 0, "differ": 40_000_000}, but_zeros,
    ),
    Case(
        "ptp-pause", "arm64, paused in mid-recording", "a line is drawn between the offsets before and after the pause",
        {"arch": "arm64", "pauses": 1, "events": 3000}, messages_at_ends, INTERPOLATE,
    ),
    Case(
        "ptp-extrapolated", "arm64, two samples early on", "their errors' difference is taken for a rate, and goes on",
        {"arch": "arm64"}, messages_at_first, INTERPOLATE,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a case: the worst of each, in ns, and the event at which trace-cmd is worst.

    ``bound_ns``: the widest interval that ours stands by. ``at``: guest CPU, stamp in the file, true host stamp,
    trace-cmd's, ours.
    """

    case: Case
    theirs_ns: int
    ours_ns: int
    bound_ns: int
    status: str
    events: int
    at: tuple[int, int, int, int, int]
    result: SyncResult
    samples: list[list[TimeSample]]


def make(case: Case, folder: Path) -> tuple[World, list[list[TimeSample]]]:
    """Write a case's world, its guest's file as trace-cmd would have written it."""
    world = World(WorldOptions(**({"seed": 3, "events": EVENTS, "guest_option": True} | case.options)))
    samples = case.samples(world)
    if samples:
        peer = next(data for kind, data in world.hosts[0].machine.options if kind == Option.TRACEID)
        shift = TimeShift(int.from_bytes(peer, "little"), case.flags, tuple(map(tuple, samples)), True)
        world.guests[0].machine.options.append(time_shift_option(shift))
    world.write(folder)
    return world, samples


def run(case: Case, folder: Path) -> Outcome:
    """Make a case's world, and hold what trace-cmd shows and what ``sync`` says against the truth."""
    world, samples = make(case, folder)
    result = sync(folder / "host.dat", folder / "guest.dat")
    guest = result.guests[0]
    machine = next(m for m in result.timeline.machines if m.name == guest.name)
    options = world.options
    is_ns = world.hosts[0].clock.ns is not None
    khz, guest_khz = (10**6, 10**6) if is_ns else (options.host_khz, options.guest_khz or options.host_khz)
    rows = []
    for stream in guest.recording.streams:
        truth = world.events(guest.name, stream.cpu)
        mine = slice(stream.first, stream.last)
        assert machine.placed[mine].all() and (guest.recording.stamp[mine] == truth.stamp).all()
        its = tuple(samples[stream.cpu]) if samples else ()
        for stamp, true, ours in zip(
            truth.stamp.tolist(), truth.host_stamp.tolist(), machine.host_stamp[mine].tolist(), strict=True
        ):
            rows.append((stream.cpu, stamp, true, shown(stamp, its, case.flags), ours))
    worst = max(rows, key=lambda row: abs(to_signed(row[3] - row[2])))

    def ns(units: int, rate: int = khz) -> int:
        return -(-abs(units) * 10**6 // rate)

    widths = [offset_width(e) for v in guest.vcpus for e in v.epochs]
    assert None not in widths
    return Outcome(
        case,
        ns(to_signed(worst[3] - worst[2])),
        max(ns(to_signed(row[4] - row[2])) for row in rows),
        max(ns(width, guest_khz) for width in widths if width is not None),
        str(0 if result.is_sound else 1),
        len(rows),
        worst,
        result,
        samples,
    )


# -- the page

TABLES = {
    "errors": (
        "what happens", "why trace-cmd is wrong", "trace-cmd is off by", "ours is off by", "our bound",
        "what the file says", "exit",
    ),
    "events": ("what happens", "guest CPU", "in the guest's file", "true host stamp", "trace-cmd shows", "ours"),
}  # fmt: skip
"""What the page has between ``<!-- NAME -->`` and ``<!-- end -->``."""


def _length(ns: int) -> str:
    """A time with its unit, to four digits or to the ns."""
    for size, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "µs")):
        if ns >= 10 * size:
            return f"{ns / size:,.1f} {unit}".replace(",", " ")
    return f"{ns} ns"


def _word(outcome: Outcome) -> str:
    """What became of the file's word, CPU by CPU, epoch by epoch."""
    if not outcome.samples:
        return "it says nothing"
    by_cpu = [", then ".join(_of_epochs(vcpu)) for vcpu in outcome.result.guests[0].vcpus]
    if len(set(by_cpu)) == 1:
        return by_cpu[0]
    return "; ".join(f"CPU {cpu}: {text}" for cpu, text in enumerate(by_cpu))


def _of_epochs(vcpu: VcpuProof) -> Iterator[str]:
    mine = [c for c in vcpu.claims if c.claim.source == time_shift.SOURCE]
    for number in range(len(vcpu.epochs)):
        told = {o.verdict for c in mine for o in c.by_epoch if o.epoch == number}
        if len(vcpu.epochs) == 1:
            told = {c.verdict for c in mine}
        yield next((str(v) for v in (Verdict.PROVED, Verdict.REFUTED) if v in told), "not checked")


def _table(name: str, found: list[Outcome]) -> str:
    rows = [TABLES[name], ("---",) * len(TABLES[name])]
    for o in found:
        if name == "errors":
            times = [_length(ns) for ns in (o.theirs_ns, o.ours_ns, o.bound_ns)]
            rows.append((o.case.title, o.case.why, *times, _word(o), o.status))
        else:
            rows.append((o.case.title, *map(str, o.at)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- ", "|---").replace("--- |", "---|")


def page(text: str, found: list[Outcome]) -> str:
    """The page's text, with its tables made anew."""
    for name in TABLES:
        begin = text.index(f"<!-- {name} -->\n") + len(f"<!-- {name} -->\n")
        end = text.index("<!-- end -->", begin)
        text = text[:begin] + _table(name, found) + text[end:]
    return text


def outcomes(folder: Path) -> Iterator[Outcome]:
    """Every case's, in a folder of its own."""
    for case in CASES:
        yield run(case, folder / case.name)


if __name__ == "__main__":
    written = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        found = list(outcomes(Path(scratch)))
    written.write_text(page(written.read_text(encoding="utf-8"), found), encoding="utf-8")
