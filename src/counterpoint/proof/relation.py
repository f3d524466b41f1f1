"""What is known of two recordings' clocks before any event is looked at: do they run at one rate, or nearly?

Sources: Documentation/trace/ftrace.rst (trace_clock), kernel/trace/trace_clock.c, kernel/time/timekeeping.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from counterpoint.claims import pvclock
from counterpoint.clocks.rate import Rate
from counterpoint.clocks.scaling import TSC_TOLERANCE_PPM, Scale
from counterpoint.proof.lines import RATE_ERROR, scale_of
from counterpoint.traces.arch import can_run, is_arm64, machine_of
from counterpoint.traces.rates import rate_of
from counterpoint.traces.recording import Recording

COUNTERS = ("x86-tsc", "ppc-tb")
"""Clocks that are the hardware's counter itself."""

SLEW_PPM = {"mono": 500, "boot": 500, "tai": 500, "realtime": 500, "unknown": 500}
"""Clocks whose rate NTP may change at any time, and by how much at most (MAXFREQ in include/linux/timex.h).

One that nobody named may be any of them.
"""

NO_CLOCKS = {
    "counter": "counts events, not time",
    "uptime": "counts jiffies, which are longer than what is to be told apart",
    "unknown counter": "nobody named (--clock says which it is, such as x86-tsc)",
}

ONE_COUNTER = ("mono_raw", "local", "global", "perf")
"""arm64: clocks that are the architected counter times a constant of its frequency, alike on host and guest."""

ONE_CLOCK = ("mono", "mono_raw", "boot", "tai")
"""Clocks that all CPUs of a machine share. The scheduler's are as well, on arm64, and where they are kvm-clock."""

SCHED_CLOCKS = ("local", "global", "perf")

CLOCKS = (*COUNTERS, *SCHED_CLOCKS, *ONE_CLOCK, "counter", "uptime")
"""Clocks that may be said of a recording that names none (kernel/trace/trace.c: trace_clocks)."""

KVM_CLOCK_ERROR = Fraction(2, 1_000_000)
"""KVM counts a guest's TSC in whole kHz, and so does the host's kernel the TSC that its clocks in ns are made of."""

EXACT = Fraction(1, 1 << 40)
"""What is left of a rate that is known: a millionth of a ns in a second."""

ROUGH = 2
"""x86: kvm-clock, which may be behind any clock in ns, is rounded down twice: its stamps are up to 2 ns behind it."""

MAX_PV_RATES = 4
"""Rates of kvm-clocks that are tried: guests of more kinds than this are seldom on one host."""

SCALED_PPM = 200
"""Rates of two counters that differ by more are not one rate measured twice (KVM scales from 250 ppm on)."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What relates a guest's clock to its host's.

    ``scale``: guest units per host unit, as far as it is known (None: it is not). ``constant``: the rates are exactly
    so, one offset relates them until it is changed. Else they may differ by ``error``, and vary by ``slew_ppm``
    meanwhile. ``is_shared``: all CPUs of the guest have one clock. ``rough``: by how many units stamps may be off a
    line. ``rate_source``: who says what the rate is, other than the clocks' names. ``reason``: why nothing is known.
    """

    scale: Scale | None
    constant: bool = False
    error: Fraction = RATE_ERROR
    slew_ppm: int = 0
    is_shared: bool = False
    rough: int = 0
    rate_source: str = ""
    reason: str = ""


def slack_of(host: Recording, guest: Recording) -> tuple[int, int]:
    """By how many units of the host a window has to begin earlier and end later where stamps are rounded.

    A window [entry, exit] and an event of whole microseconds: the entry may truly be ``host.rounding[0]`` before its
    stamp, and the event ``guest.rounding[1]`` after its own. The clocks' rates differ by less than a hundredth.
    """
    theirs = [0, 0]
    if guest.rounding != (0, 0):
        rates = rate_of(host), rate_of(guest)
        scale = Fraction(1)
        if rates[0] is not None and rates[1] is not None:
            scale = Fraction(rates[1].mult << rates[0].shift, rates[0].mult << rates[1].shift)
        theirs = [int(side * scale * Fraction(101, 100)) + 2 for side in guest.rounding]
    return host.rounding[0] + theirs[1], host.rounding[1] + theirs[0]


def relation_of(host: Recording, guest: Recording) -> Relation:
    """Relate the clocks of ``guest`` and ``host``."""
    for one in (host, guest):
        if one.clock in NO_CLOCKS:
            return Relation(None, reason=f"{one.name} is recorded in clock {one.clock!r}, which {NO_CLOCKS[one.clock]}")
    if not can_run(host, guest):
        return Relation(
            None,
            reason=f"{guest.name} is of {machine_of(guest)}, {host.name} of {machine_of(host)}, and KVM runs guests of"
            " its own architecture",
        )
    if host.clock == guest.clock and host.clock in COUNTERS:
        return Relation(Scale(), constant=True)
    if host.clock == guest.clock and host.clock in ONE_COUNTER and is_arm64(host):
        return Relation(Scale(), constant=True)
    slew = SLEW_PPM.get(host.clock, 0) + SLEW_PPM.get(guest.clock, 0)
    rates = rate_of(host), rate_of(guest)
    for recording, rate in zip((host, guest), rates, strict=True):
        if rate is None:
            return Relation(
                None,
                reason=f"how long a tick of {recording.name} is is not known, and the other side counts ns: record"
                " timer:hrtimer_expire_entry too",
            )
    assert rates[0] is not None and rates[1] is not None
    return Relation(
        _between(rates[0], rates[1]), slew_ppm=slew, is_shared=_is_shared(host, guest), rough=_rough(host, guest)
    )


def kvm_clock_relations(host: Recording, guest: Recording) -> list[Relation]:
    """What kvm_pvclock_update events say of the rate, where the guest's trace clock may be kvm-clock; none: nothing.

    Between a host's TSC and a guest whose own is not scaled the rate is exact. Where clocks in ns are compared it is
    one, but for what KVM and the kernel round: both are of the host's TSC.
    """
    if guest.clock not in SCHED_CLOCKS or host.clock in SLEW_PPM or not can_run(host, guest):
        return []
    told = pvclock.rates_of(host)[:MAX_PV_RATES]
    alike = Relation(Scale(), error=KVM_CLOCK_ERROR, is_shared=True, rough=ROUGH, rate_source=pvclock.SOURCE)
    if host.unit == "ns":
        return [alike] if told else []
    ticks = rate_of(host)
    out = []
    for one in told:
        # ns of the guest's tick against ns of the host's: alike where the guest's TSC is the host's plus an offset
        apart = None if ticks is None else abs(one.rate * Fraction(1 << ticks.shift, ticks.mult) - 1)
        if apart is None or apart * 1_000_000 <= SCALED_PPM:
            out.append(replace(alike, scale=scale_of(one.rate), error=EXACT))
        elif ticks is not None and ticks.source == "tsc2nsec":
            out.append(replace(alike, scale=scale_of(Fraction(ticks.mult, 1 << ticks.shift))))
    return out


def _rough(host: Recording, guest: Recording) -> int:
    """By how many units a stamp may be off a line, beside being rounded down."""
    return 0 if host.unit == guest.unit == "ticks" or is_arm64(host) else ROUGH


def _is_shared(host: Recording, guest: Recording) -> bool:
    """Whether all CPUs of the guest have one trace clock."""
    if guest.clock in ONE_CLOCK:
        return True
    updates = host.rows(host.format_named("kvm", "kvm_pvclock_update"))
    return guest.clock in SCHED_CLOCKS and (is_arm64(host) or len(updates) > 0)


def scaled_relation(host: Recording, guest: Recording, guest_rate: Rate | None = None) -> Relation | None:
    """The relation of two counters whose rates differ by what the recordings tell of each; None: they do not.

    ``guest_rate``: the guest's where its own recording does not tell it.
    """
    rates = rate_of(host), rate_of(guest) or guest_rate
    if rates[0] is None or rates[1] is None:
        return None
    scale = _between(rates[0], rates[1])
    if abs(Fraction(scale.ratio, 1 << scale.frac_bits) - 1) * 1_000_000 <= SCALED_PPM:
        return None
    return Relation(scale)


def kvm_scale(host: Recording, guest: Recording, guest_rate: Rate | None = None) -> Scale | None:
    """The ratio that KVM sets on ``host`` for a guest of its rate, where both kernels say theirs in TSC2NSEC.

    It is KVM's own where both mean the kHz that KVM was given: the run windows say. None where a rate is not said, or
    the host's kvm_exit events do not tell Intel from AMD (arch/x86/kvm/trace.h: isa).
    """
    rates = rate_of(host), rate_of(guest) or guest_rate
    leave = host.format_named("kvm", "kvm_exit")
    if any(rate is None or rate.source not in ("tsc2nsec", FIRST_HOST) for rate in rates) or leave is None:
        return None
    rows = host.rows(leave)[:1]
    if not len(rows) or leave.field("isa") is None:
        return None
    frac = {1: 48, 2: 32}.get(int(host.column(leave, "isa", rows)[0]))
    if frac is None or rates[0] is None or rates[1] is None:
        return None
    return Scale.from_khz(rates[1].khz, rates[0].khz, frac, TSC_TOLERANCE_PPM)


FIRST_HOST = "first-host"
"""The source of a guest's rate that follows from its first host's."""


def _between(host: Rate, guest: Rate) -> Scale:
    """Guest units per host unit."""
    if host == guest:
        return Scale()
    return scale_of(Fraction(host.mult << guest.shift, guest.mult << host.shift))
