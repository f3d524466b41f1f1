"""Stamps as people and programs write them: ticks, ns, seconds, a line of dmesg, a time of day."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum

import numpy as np

from counterpoint.clocks.counter import I64, MASK, U64, add
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.machines import MachineClock
from counterpoint.clocks.pairs import ClockPair
from counterpoint.clocks.wall import Wall

NS_PER_SEC = 1_000_000_000

_WHOLE = re.compile(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")
_SECONDS = re.compile(r"([0-9]{1,11})\.([0-9]{1,9})")
_PRINTK = re.compile(r"(?:<[0-9]{1,3}>)?\[ {0,12}([0-9]{1,11})\.([0-9]{6})\]")
_UNIX = re.compile(r"@([0-9]{1,10})(?:\.([0-9]{1,9}))?")
_DATE = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_MARKED_STABLE = re.compile(r"sched_clock: Marking stable \(-?\d{1,20}, -?\d{1,20}\)->\(-?\d{1,20}, (-?\d{1,20})\)")

# architectures whose local_clock() is sched_clock() itself: they have no CONFIG_HAVE_UNSTABLE_SCHED_CLOCK
_PLAIN_SCHED_CLOCK = ("aarch64",)


class Kind(IntEnum):
    """What a number counts."""

    STAMP = 0
    NS = 1
    COUNTER = 2
    PRINTK = 3
    WALL = 4


UNITS = {"stamp": Kind.STAMP, "ns": Kind.NS, "counter": Kind.COUNTER}
"""What a whole number may be said to count: the trace clock's unit, ns of the same clock, or arm64's counter."""


def is_stamp(text: str) -> bool:
    """Whether a text is written like a stamp of any kind."""
    text = text.strip()
    return any(p.fullmatch(text) for p in (_WHOLE, _SECONDS, _UNIX, _DATE)) or _PRINTK.match(text) is not None


def sched_clock_offset(line: str) -> int | None:
    """What the kernel adds to sched_clock() for printk's stamps, in ns, where a line of its log says so.

    ``__sched_clock_offset`` in kernel/sched/clock.c, of kernels with CONFIG_HAVE_UNSTABLE_SCHED_CLOCK.
    """
    found = _MARKED_STABLE.search(line)
    return int(found[1]) if found else None


def wall_text(ns: int) -> str:
    """A time of CLOCK_REALTIME in ns since 1970 as ISO 8601 in UTC."""
    seconds, rest = divmod(ns, NS_PER_SEC)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


@dataclass(frozen=True, slots=True)
class Written:
    """Stamps as read from text, n of them: what each counts (``kind`` i8[n]), and from what to what it may be.

    ``lo``, ``hi`` u64[n] (i64 as u64 for times of day). ``wrong``: what is no stamp, and why, by position.
    """

    kind: np.ndarray
    lo: U64
    hi: U64
    wrong: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many texts there were."""
        return len(self.lo)


def read_stamps(texts: Sequence[str], unit: str = "stamp", *, is_ns: bool) -> Written:
    """Read texts as stamps. ``unit``: what whole numbers count (see UNITS); ``is_ns``: the trace clock counts ns.

    A number of seconds with fewer than nine decimals was cut or rounded there, and may be anything that gives it.
    """
    kind = np.zeros(len(texts), np.int8)
    lo, hi = np.zeros(len(texts), np.uint64), np.zeros(len(texts), np.uint64)
    wrong: dict[int, str] = {}
    of_whole = UNITS[unit]
    of_seconds = Kind.STAMP if is_ns and of_whole is Kind.STAMP else of_whole
    for index, text in enumerate(texts):
        try:
            kind[index], low, high = _read(text.strip(), of_whole, of_seconds, is_ns=is_ns)
        except ValueError as err:
            wrong[index] = str(err)
            continue
        lo[index], hi[index] = low & MASK, high & MASK
    return Written(kind, lo, hi, wrong)


def _read(text: str, of_whole: Kind, of_seconds: Kind, *, is_ns: bool) -> tuple[Kind, int, int]:
    if _WHOLE.fullmatch(text):
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
        if value > MASK:
            raise ValueError(f"{text} has more than 64 bits")
        return of_whole, value, value
    if found := _PRINTK.match(text):
        ns = int(found[1]) * NS_PER_SEC + int(found[2]) * 1000
        # printk cuts its stamp to whole us (print_time in kernel/printk/printk.c)
        return Kind.PRINTK, ns, ns + 999
    if found := _SECONDS.fullmatch(text):
        if of_seconds is Kind.COUNTER or (of_seconds is Kind.STAMP and not is_ns):
            raise ValueError(f"{text}: seconds are of a clock in ns, this one counts ticks (--unit ns takes seconds)")
        return of_seconds, *_decimals(int(found[1]), found[2])
    if found := _UNIX.fullmatch(text):
        return Kind.WALL, *_decimals(int(found[1]), found[2])
    if found := _DATE.fullmatch(text):
        return Kind.WALL, *_decimals(_seconds_of(found), found[7])
    raise ValueError(f"{text[:40]!r} is no stamp" if text else "there is nothing")


def _decimals(seconds: int, decimals: str | None) -> tuple[int, int]:
    """Ns of seconds with decimals, from what to what they may have been cut or rounded."""
    digits = decimals or ""
    ns = seconds * NS_PER_SEC + int(digits.ljust(9, "0"))
    step: int = 10 ** (9 - len(digits))
    return ns - step // 2, ns + step - 1


def _seconds_of(found: re.Match[str]) -> int:
    zone = UTC
    if found[8]:
        away = timedelta(hours=int(found[9]), minutes=int(found[10]))
        zone = timezone(away if found[8] == "+" else -away)
    moment = datetime(*(int(found[at]) for at in range(1, 7)), tzinfo=zone)  # type: ignore[misc, arg-type]
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1))


def counter_reason(machine: MachineClock) -> str:
    """Why a value of a machine's counter cannot be told to be a stamp of its recording."""
    if machine.unit == "ns" and machine.clock in ("mono_raw", "local"):
        return (
            f"{machine.name} is recorded in {machine.clock}: a value of its counter is a stamp only by the constant K"
            " between the two and the counter's frequency (--guest-k or --host-k, --frequency)"
        )
    return (
        f"{machine.name} is recorded in {machine.clock}, which nothing here ties to its counter (record with -C x86-tsc"
        " on x86, -C mono_raw on arm64)"
    )


def pairs_of_counter(
    pairs: Iterable[ClockPair], machine: MachineClock, counter: ArchCounter | None = None
) -> list[ClockPair]:
    """Pairs of a machine's counter and CLOCK_REALTIME, with its trace clock's stamps in place of the counter's values.

    ``counter``: what lies behind a clock in ns, where known. ValueError says why the counter's values are no stamps.
    """
    pairs = list(pairs)
    if machine.unit == "ticks":
        return pairs
    if counter is None and pairs:
        raise ValueError(counter_reason(machine))
    if counter is None:
        return []
    least, most = counter.stamps(np.array([pair.counter for pair in pairs], np.uint64))
    # a stamp is its tick cut to whole ns
    apart = (most - least + np.uint64(1)).tolist()
    stamps = zip(pairs, least.tolist(), apart, strict=True)
    return [replace(p, counter=stamp, bound_ns=p.bound_ns + width) for p, stamp, width in stamps]


def printk_offset(machine: MachineClock, given: int | None) -> int:
    """What is to be taken off a stamp of printk, in ns, to make it one of a machine's trace clock; ValueError: why not.

    printk's stamps are local_clock(): the trace clock "perf" is just that (trace_clock in kernel/trace/trace_clock.c);
    "local" is sched_clock(), to which local_clock() adds ``__sched_clock_offset`` on x86 and others, and nothing on
    arm64. ``given``: that offset.
    """
    if machine.clock == "perf":
        return 0
    if machine.clock == "local":
        if given is not None:
            return given
        if machine.arch in _PLAIN_SCHED_CLOCK:
            return 0
        raise ValueError(
            f"the stamps of dmesg are {machine.name}'s trace clock local plus a constant, which its log tells"
            " early: 'sched_clock: Marking stable (..., ...)->(..., OFFSET)' (--sched-clock-offset OFFSET)"
        )
    raise ValueError(
        f"{machine.name} is recorded in {machine.clock}, and nothing ties the stamps of dmesg to that: they are"
        " local_clock()'s (record with -C perf, or with -e printk:console, which puts the log on the timeline itself)"
    )


@dataclass(frozen=True, slots=True)
class Stamps:
    """Trace-clock stamps from ``lo`` to ``hi`` u64[n]; ``why``: the reason by position where there is none."""

    lo: U64
    hi: U64
    why: dict[int, str]


def resolve(
    written: Written,
    machine: MachineClock,
    *,
    counter: ArchCounter | None = None,
    printk: int | str = "",
    wall: Wall | None = None,
) -> Stamps:
    """What is written as stamps of a machine's trace clock.

    ``counter``: of the machine, where known. ``printk``: what to take off stamps of printk in ns, or why that is not
    known. ``wall``: the machine's wall time.
    """
    lo, hi, why = written.lo.copy(), written.hi.copy(), dict(written.wrong)
    counts = {kind: np.flatnonzero(written.kind == kind) for kind in Kind}

    def refuse(rows: I64, reason: str) -> None:
        why.update((row, reason) for row in rows.tolist() if row not in why)

    rows = counts[Kind.NS]
    if machine.rate is None:
        refuse(rows, f"how long a tick of {machine.name} is is not known")
    elif machine.unit != "ns":
        for ends, at in ((lo, 0), (hi, 1)):
            ends[rows] = machine.rate.from_ns(ends[rows].view(np.int64))[at]
    rows = counts[Kind.COUNTER]
    if counter is not None:
        lo[rows], hi[rows] = counter.stamps(lo[rows])[0], counter.stamps(hi[rows])[1]
    elif machine.unit != "ticks":
        refuse(rows, counter_reason(machine))
    rows = counts[Kind.PRINTK]
    if isinstance(printk, str):
        refuse(rows, printk)
    else:
        lo[rows], hi[rows] = add(lo[rows], -printk), add(hi[rows], -printk)
    rows = counts[Kind.WALL]
    if wall is None:
        refuse(rows, f"the wall time of {machine.name} is not known (--realtime STAMP=TIME)")
    elif len(rows):
        try:
            (lo[rows], _, hi[rows]), known = wall.stamps(lo[rows].view(np.int64), hi[rows].view(np.int64))
            refuse(rows[~known], "it is too far from what is known of the wall time")
        except ValueError as err:
            refuse(rows, str(err))
    return Stamps(lo, hi, why)
