"""One self-contained HTML file that shows a timeline and its proof in any browser, without a network.

docs/page.md tells it to users. What a trace names goes in as JSON in a data block, and from there into text nodes only;
a content security policy allows one script, by its hash, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint._version import __version__
from counterpoint.analysis.lanes import lanes
from counterpoint.analysis.why import Explainer
from counterpoint.clocks.counter import MASK, relative, to_signed
from counterpoint.errors import UsageError
from counterpoint.outputs.explained import Found, why_report
from counterpoint.outputs.files import replacing
from counterpoint.outputs.page_lanes import drawn
from counterpoint.outputs.page_proof import ProofDrawn
from counterpoint.outputs.printable import printable
from counterpoint.outputs.stats_report import stats_report
from counterpoint.timeline.sync import SyncResult

WORST = 20
"""Latencies that are explained."""

MAX_PIECES = 200
"""Of each of them, listed."""

REASONS = 16
"""Of exits, listed."""

Json = dict[str, Any]


def write_page(
    result: SyncResult, path: Path, *, overwrite: bool, progress: Callable[[str], None] | None = None
) -> None:
    """Write the page of ``result``; UsageError where ``path`` exists and ``overwrite`` is False."""
    with replacing(path, overwrite=overwrite) as file:
        file.write(page_of(result, progress).encode())


def page_of(result: SyncResult, progress: Callable[[str], None] | None = None) -> str:
    """The page's text; UsageError where nothing is on the timeline, or more time than a browser can count."""
    say = progress or (lambda _: None)
    timeline = result.timeline
    when = relative(timeline.host_ticks, timeline.base)
    if not len(when):
        raise UsageError("no event is on the timeline: there is nothing to draw")
    span = int(when[0]), int(when[-1]) + 1
    if span[1] - span[0] >= 1 << 53:
        raise UsageError(f"the timeline is {span[1] - span[0]} units long: a page can show 2^53")
    say("states")
    explainer = Explainer(result)
    every = list(lanes(explainer, span))
    say("the worst latencies")
    worst = _worst(explainer, span[0])
    say("the proof")
    proof = ProofDrawn(result, span[0]).vcpus()
    say("statistics")
    measured = _measured(result)
    say("the page")
    picture = drawn(timeline, when, every, span, np.array(_linked(worst, proof), np.int64).reshape(-1, 2) + span[0])
    rate = timeline.rate
    meta: Json = {
        "version": __version__,
        "files": [
            {
                "name": printable(m.name), "file": printable(m.recording.path.name), "events": len(m.recording),
                "parent": None if m.parent is None else printable(m.parent), "clock": printable(m.recording.clock),
            }
            for m in timeline.machines
        ],
        "unit": "ns" if rate else "ticks", "mult": rate.mult if rate else 1, "shift": rate.shift if rate else 0,
        "rate": printable(rate.source) if rate else None,
        "stamp": str((span[0] + timeline.base) & MASK), "span": span[1] - span[0],
        "events_placed": len(timeline), "unplaced": timeline.unplaced, "unproved": timeline.unproved,
        "lost": sum(len(m.recording.losses.row) for m in timeline.machines),
        "warnings": [printable(w) for w in (*result.warnings, *(w for g in result.guests for w in g.warnings))],
        "lanes": picture.lanes, "events": picture.events, "joined_below": picture.joined_below,
        "exact": picture.exact.where, "worst": worst, "proof": proof, "measured": measured,
    }  # fmt: skip
    return _assembled(meta, picture.overview.text(), picture.exact.text())


def _assembled(meta: Json, overview: str, exact: str) -> str:
    web = resources.files("counterpoint.outputs").joinpath("page_web")
    text, style, script = (web.joinpath(name).read_text() for name in ("page.html", "page.css", "page.js"))
    title = " and ".join(f["name"] for f in meta["files"])
    values = {
        "TITLE": html.escape(title, quote=True),
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "META": data_block(meta),
        "OVERVIEW": overview,
        "EXACT": exact,
    }
    # in one pass: what a value holds is not looked at again
    parts = text.split("@@")
    parts[1::2] = [values[name] for name in parts[1::2]]
    return "".join(parts)


def data_block(value: Json) -> str:
    """JSON that cannot end the element it stands in, nor open a comment there."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _linked(worst: list[Json], proof: list[Json]) -> list[tuple[int, int]]:
    """The spans that the page leads to."""
    spans = [(one["begin"], one["end"]) for one in worst]
    for vcpu in proof:
        for epoch in vcpu["epochs"]:
            spans += [(w["from"], w["to"]) for w in epoch["witnesses"] if w["from"] is not None and w["to"] is not None]
    return [(min(a, b), max(a, b) + 1) for a, b in spans]


def _worst(explainer: Explainer, origin: int) -> list[Json]:
    """The longest wakeups of all guests, explained; times of the page."""
    result = explainer.result
    found = {g.name: explainer.tasks(g.name).wakeups() for g in result.guests}
    longest = []
    for name, each in found.items():
        order = np.argsort(-each.took, kind="stable")[:WORST]
        longest += [(-took, name, at) for at, took in zip(order.tolist(), each.took[order].tolist(), strict=True)]
    longest = sorted(longest)[:WORST]
    explained = [one for _, name, at in longest for one in explainer.explain(name, found[name], [at])]
    report = why_report(explainer, Found("wakeup", found, explained))
    base = result.timeline.base

    def when(stamp: int) -> int:
        return to_signed(stamp - base) - origin

    return [
        {
            "guest": printable(one["guest"]), "task": printable(one["task"]), "tid": one["tid"], "cpu": one["cpu"],
            "begin": when(one["begin"]), "woken": when(one["woken"]), "end": when(one["end"]),
            "stamp": str(one["end"]), "took_ns": one["took_ns"], "bound_ns": one["bound_ns"],
            "by_timer": one["by_timer"],
            "causes": [
                {"kind": c["kind"], "text": printable(c["text"]), "took_ns": c["took_ns"]} for c in one["causes"]
            ],
            "pieces": [
                {
                    "begin": when(p["begin"]), "end": when(p["end"]), "cpu": p["cpu"], "kind": p["kind"],
                    "text": printable(p["text"]), "event": p["event"] and printable(p["event"]["event"]),
                }
                for p in one["pieces"][:MAX_PIECES]
            ],
            "pieces_in_all": len(one["pieces"]),
        }
        for one in report["latencies"]
    ]  # fmt: skip


_SPREAD = ("count", "known", "total", "mean", "p50", "p99", "max", "histogram")


def _measured(result: SyncResult) -> Json:
    """Histograms of exits and latencies, and the states of each vCPU; as ``stats`` has them."""
    report = stats_report(result)

    def row(name: str, spread: Json) -> Json:
        return {"name": printable(name), **{key: spread[key] for key in _SPREAD}}

    total = report["total"]
    groups = [
        {
            "title": "Exits, from kvm_exit to the next kvm_entry",
            "rows": [row("all exits", total["all"])]
            + [row(one["reason"], one) for one in total["by_reason"][:REASONS]],
            "more": max(0, len(total["by_reason"]) - REASONS),
        }
    ]
    latencies = []
    for guest in report["guests"]:
        if guest["wakeups"] is not None:
            latencies.append(row(f"{guest['name']}: woken to running, on its CPUs", guest["wakeups"]["all"]))
        if guest["timers"] is not None:
            latencies.append(row(f"{guest['name']}: timer due to expired", guest["timers"]["all"]))
    groups.append({"title": "Latencies in the guest", "rows": latencies, "more": 0})
    vcpus = [
        {
            "guest": printable(vcpu_of["name"]), "cpu": vcpu["guest_cpu"], "took": vcpu["took"],
            "states": vcpu["states"], "guest_mode": vcpu["guest_mode"],
            "waited_for": [
                {"task": printable(str(w["task"] or "")), "tid": w["tid"], "took": w["took"]}
                for w in vcpu["waited_for"][:3]
            ],
        }
        for vcpu_of in report["guests"]
        for vcpu in vcpu_of["vcpus"]
    ]  # fmt: skip
    return {"groups": groups, "vcpus": vcpus}
