"""Exits as ``stats --json`` has them: by reason, by what of the guest caused them, and by level."""

from __future__ import annotations

import numpy as np

from counterpoint.analysis.contexts import Context, softirq_name
from counterpoint.analysis.handled import VcpuExits
from counterpoint.analysis.nested_exits import Level
from counterpoint.analysis.placed import Placed
from counterpoint.analysis.spread import spread
from counterpoint.clocks.counter import I64
from counterpoint.outputs.stats_measure import Json, Measure, joined, kinds

CAUSES = 20
"""Of exits by reason, task and function: so many are listed, those that took longest in all."""


def by_reason(measure: Measure, exits: list[VcpuExits]) -> Json:
    """All exits, and those of each reason: the longest in all first."""
    reason, names = _reasons(exits)
    took = joined(e.took for e in exits)
    rows = measure.spread(took, reason, max(len(names), 1), took >= 0)
    listed = [{"reason": name, **row} for name, row in zip(names, rows, strict=False) if row["count"]]
    listed.sort(key=lambda row: (-row["total"], -row["count"], row["reason"]))
    return {"all": measure.spread(took, known=took >= 0)[0], "by_reason": listed}


def _reasons(exits: list[VcpuExits]) -> tuple[I64, list[str]]:
    names: dict[str, int] = {}
    numbers = [np.array([names.setdefault(r, len(names)) for r in e.reasons] or [0], np.int64) for e in exits]
    return joined(n[e.reason] for n, e in zip(numbers, exits, strict=True)), list(names)


def causes(measure: Measure, guest: Placed, exits: list[VcpuExits]) -> list[Json]:
    """By reason, what the guest ran and its function: the longest in all."""
    reason, reasons = _reasons(exits)
    functions: dict[str, int] = {}
    places = []
    for each in exits:
        index, found = each.functions()
        places.append(np.array([*(functions.setdefault(f, len(functions)) for f in found), -1], np.int64)[index])
    context, what = joined(e.context.astype(np.int64) for e in exits), joined(e.what for e in exits)
    found_kinds, at = kinds(np.stack([reason, context, what, joined(places)]))
    took = joined(e.took for e in exits)
    rows = spread(took, at, max(len(found_kinds), 1), took >= 0)
    names = list(functions)
    out = []
    for index in np.lexsort((-rows.count, -rows.total))[: min(CAUSES, len(found_kinds))].tolist():
        number, kind, doing, place = found_kinds[index]
        out.append(
            {
                "reason": reasons[number],
                **_doing(guest, Context(kind), doing),
                "function": names[place] if place >= 0 else None,
                "count": int(rows.count[index]),
                "known": int(rows.known[index]),
                "total": measure.one(int(rows.total[index])),
                "p99": measure.one(int(rows.p99[index])),
                "max": measure.one(int(rows.most[index])),
            }
        )
    return out


def _doing(guest: Placed, context: Context, what: int) -> Json:
    """What a guest ran."""
    task = guest.recording.comm(what) if context is Context.TASK else None
    if context is Context.SOFTIRQ:
        task = softirq_name(what) or None
    return {"context": context.name.lower(), "what": what if what >= 0 else None, "task": task}


def by_level(measure: Measure, exits: list[VcpuExits]) -> list[Json] | None:
    """Exits by ``Level``; None where no recording tells of any guest of the guest."""
    level, took = joined(e.level.astype(np.int64) for e in exits), joined(e.took for e in exits)
    if not (level > Level.OWN).any():
        return None
    rows = measure.spread(took, level, len(Level), took >= 0)
    return [{"level": each.name.lower(), **rows[each]} for each in Level if rows[each]["count"]]
