"""Why tasks were late: as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from counterpoint.analysis.latency import Latencies
from counterpoint.analysis.why import Cause, Explainer, Explanation, Piece, blame
from counterpoint.clocks.counter import MASK
from counterpoint.outputs.printable import printable
from counterpoint.timeline.sync import SyncResult

SCHEMA = 1
MAX_CAUSES = 12
"""Causes listed of one latency; the rest are summed up."""

_BARS = "▏▎▍▌▋▊▉█"
_BAR_WIDTH = 16


@dataclass(frozen=True)
class Found:
    """What was looked for, and what of it is explained.

    ``all``: the latencies of each guest that fit what was asked for; ``explained``: of those, the chosen ones, the
    longest first.
    """

    what: str
    all: dict[str, Latencies]
    explained: Sequence[Explanation]


def _ns(result: SyncResult, units: int) -> int | None:
    """Nanoseconds; None where it is not known how long a tick of the host's clock is."""
    rate = result.timeline.rate
    return None if rate is None else rate.to_ns(units)


def _stamp(result: SyncResult, when: int) -> int:
    return (when + result.timeline.base) & MASK


def why_report(explainer: Explainer, found: Found) -> dict[str, Any]:
    """The JSON report: docs/why.md has its keys."""
    result = explainer.result
    return {
        "schema": SCHEMA,
        "what": found.what,
        "unit": result.host.unit,
        "found": sum(len(each) for each in found.all.values()),
        "blame": [_share(result, cause, took) for cause, took in blame(found.explained)],
        "latencies": [_one(explainer, found, each) for each in found.explained],
    }


def _share(result: SyncResult, cause: Cause, took: int) -> dict[str, Any]:
    return {
        "kind": cause.kind, "machine": cause.machine or None, "name": cause.name or None,
        "number": cause.number if cause.number >= 0 else None, "text": str(cause), "took_ns": _ns(result, took),
        "took": took,
    }  # fmt: skip


def _one(explainer: Explainer, found: Found, each: Explanation) -> dict[str, Any]:
    result = explainer.result
    out: dict[str, Any] = {
        "guest": each.guest, "begin": _stamp(result, each.begin), "end": _stamp(result, each.end), "took": each.took,
        "took_ns": _ns(result, each.took), "bound_ns": _ns(result, each.bound) if each.bound >= 0 else None,
    }  # fmt: skip
    if each.at >= 0:
        of = found.all[each.guest]
        pid = int(of.pid[each.at])
        out |= {
            "tid": pid, "task": explainer.name(each.guest, pid, each.end), "cpu": int(of.cpu[each.at]),
            "woken": _stamp(result, int(of.woken[each.at])), "by_timer": bool(of.timer[each.at] >= 0),
            "due_earlier_by": int(of.earlier[each.at]),
        }  # fmt: skip
    out["causes"] = [_share(result, cause, took) for cause, took in each.shares()]
    out["pieces"] = [
        {
            "begin": _stamp(result, piece.begin), "end": _stamp(result, piece.end), "took": piece.took,
            "cpu": piece.cpu if piece.cpu >= 0 else None, "text": str(piece.cause), "kind": piece.cause.kind,
            "event": _event(explainer, piece),
        }
        for piece in each.pieces
    ]  # fmt: skip
    return out


def _event(explainer: Explainer, piece: Piece) -> dict[str, Any] | None:
    if piece.event is None:
        return None
    name, row = piece.event
    recording = next(m.recording for m in explainer.result.timeline.machines if m.name == name)
    return {
        "machine": name, "event": recording.event_name(int(recording.event_id[row])),
        "stamp": int(recording.stamp[row]), "cpu": recording.streams[int(recording.stream_of[row])].cpu,
    }  # fmt: skip


def print_why(explainer: Explainer, found: Found, out: TextIO, *, pieces: bool) -> None:
    """Say it on a terminal, in 80 columns where the names allow; ``pieces``: each one's in their order, too."""
    result = explainer.result
    total = sum(len(each) for each in found.all.values())
    if not total and not found.explained:
        out.write(f"no {found.what} found\n")
        return
    if found.all:
        out.write(f"{total} {found.what}; the {len(found.explained)} longest explained\n")
    if len(found.explained) > 1:
        out.write("\nwhat they are made of, together:\n")
        _shares(result, blame(found.explained), sum(each.took for each in found.explained), out)
    for number, each in enumerate(found.explained, 1):
        out.write(f"\n{number}. {_title(explainer, found, each)}\n")
        _shares(result, each.shares(), each.took, out)
        if pieces:
            out.write("\n")
            for piece in each.pieces:
                where = f"vCPU {piece.cpu}" if piece.cpu >= 0 else ""
                told = _event(explainer, piece)
                by = f"  ({told['event']} {told['stamp']})" if told else ""
                took = _time(result, piece.took)
                out.write(
                    f"   {_stamp(result, piece.begin):>16} {took:>11}  {where:7} {printable(str(piece.cause))}{by}\n"
                )


def _title(explainer: Explainer, found: Found, each: Explanation) -> str:
    result = explainer.result
    took, end = _time(result, each.took), _stamp(result, each.end)
    bound = f", bound {_time(result, each.bound)}" if each.bound >= 0 else ", bound not known"
    if each.at < 0:
        return f"{printable(each.guest)}: {took} to host stamp {end}{bound}"
    of = found.all[each.guest]
    pid, timer = int(of.pid[each.at]), bool(of.timer[each.at] >= 0)
    task = printable(f"{each.guest}: {explainer.name(each.guest, pid, each.end)} [{pid}]")
    cpu = int(of.cpu[each.at])
    what = {
        "wakeup": f"ran on CPU {cpu} {took} after {'its timer was due' if timer else 'it was woken'}",
        "timer": f"a timer expired on CPU {cpu}, where it ran, {took} late",
        "interrupt": f"was interrupted on CPU {cpu} {took} after the host asked for it",
        "sample": f"tells of {took} on CPU {cpu}",
        "between": f"took {took}, to CPU {cpu}",
    }[of.kind]
    return f"{task} {what}\n   at host stamp {end}{bound}"


def _shares(result: SyncResult, shares: Sequence[tuple[Cause, int]], total: int, out: TextIO) -> None:
    shown = list(shares[:MAX_CAUSES])
    lines = [(str(cause), took) for cause, took in shown]
    if len(shares) > MAX_CAUSES:
        lines.append((f"{len(shares) - MAX_CAUSES} more causes", sum(took for _, took in shares[MAX_CAUSES:])))
    for text, took in lines:
        # in thousandths, rounded: no float
        share = (took * 1000 + total // 2) // total if total else 0
        out.write(f"  {_time(result, took):>11} {share // 10:3}.{share % 10} % {_bar(took, total)} {printable(text)}\n")


def _bar(took: int, total: int) -> str:
    eighths = (took * _BAR_WIDTH * 8 + total // 2) // total if total else 0
    full, rest = divmod(eighths, 8)
    return (_BARS[-1] * full + (_BARS[rest - 1] if rest else "")).ljust(_BAR_WIDTH)


def _time(result: SyncResult, units: int) -> str:
    """A time in the unit that reads best, to the nanosecond; in ticks where no unit is known."""
    ns = _ns(result, units)
    if ns is None:
        return f"{units} ticks"
    if abs(ns) < 1000:
        return f"{ns} ns"
    if abs(ns) < 1_000_000:
        return f"{ns // 1000}.{ns % 1000:03} us"
    return f"{ns // 1_000_000}.{ns // 1000 % 1000:03} ms"
