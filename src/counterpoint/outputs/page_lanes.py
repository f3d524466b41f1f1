"""The lanes of a page: their steps and events as packed columns, and an overview of them that is drawn first.

Times are the first host's units from the first event on. Where a timeline has more steps than a page should hold, runs
of short ones are joined, and the page says how short; what lies in the spans that the page links to stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from counterpoint.analysis.lanes import Lane
from counterpoint.analysis.steps import combine, merged, within
from counterpoint.clocks.counter import I64
from counterpoint.outputs.page_pack import Pack
from counterpoint.outputs.printable import printable
from counterpoint.timeline.merge import Timeline

MAX_STEPS = 1_000_000
"""Of all lanes together."""

MAX_EVENTS = 1_200_000
"""If there are more, a page has their lanes alone."""

BUCKETS = 4096
MAX_SHARES = 1 << 22
"""Of the overview: bytes, one for each bucket, lane and class."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a page draws. ``lanes``: a description of each; ``overview``, ``exact``: packed columns."""

    lanes: list[Json]
    events: Json
    overview: Pack
    exact: Pack
    joined_below: int


def drawn(timeline: Timeline, when: I64, lanes: Sequence[Lane], span: tuple[int, int], keep: I64) -> Drawn:
    """Everything for the canvas.

    ``when`` i64[n]: the times of the timeline's events, from its base, within ``span``; ``keep`` i64[k, 2]: spans in
    which every step stays as it is.
    """
    lanes, joined_below = _fewer(lanes, span, keep)
    has_events = len(when) <= MAX_EVENTS
    times = np.unique(np.concatenate([when if has_events else when[:0], *(lane.begin for lane in lanes)]))
    exact = Pack()
    exact.add_small("times", np.diff(times, prepend=np.int64(span[0])))
    places = [np.searchsorted(times, lane.begin) for lane in lanes]
    exact.add_small("at", np.concatenate([np.diff(p, prepend=0) for p in places] or [times[:0]]))
    exact.add_small("what", np.concatenate([lane.what for lane in lanes] or [times[:0]]))
    events: Json = {"count": len(when), "kinds": [], "whole": has_events}
    number = {(lane.machine, lane.cpu): n for n, lane in enumerate(lanes) if lane.kind == "cpu"}
    if has_events:
        events["kinds"], kind, lane_of = _events(timeline, number)
        exact.add_small("event.at", np.diff(np.searchsorted(times, when), prepend=0))
        exact.add_small("event.kind", kind)
        exact.add_small("event.lane", lane_of)
    overview, buckets = Pack(), max(64, min(BUCKETS, MAX_SHARES // max(sum(len(lane.names) for lane in lanes), 1)))
    overview.add("shares", np.concatenate([_shares(lane, span, buckets).ravel() for lane in lanes]))
    described = [_described(lane) for lane in lanes]
    return Drawn(described, events | {"buckets": buckets}, overview, exact, joined_below)


def _described(lane: Lane) -> Json:
    return {
        "kind": lane.kind, "machine": printable(lane.machine), "cpu": lane.cpu, "tid": lane.tid,
        "guest": None if lane.guest is None else printable(lane.guest), "steps": len(lane.begin),
        "texts": [printable(text) for text in lane.texts], "classes": lane.classes.tolist(), "names": list(lane.names),
    }  # fmt: skip


def _events(timeline: Timeline, number: dict[tuple[str, int | None], int]) -> tuple[list[Json], I64, I64]:
    """The kinds of events, and the kind and the lane of each."""
    kind, lane_of = np.zeros(len(timeline), np.int64), np.zeros(len(timeline), np.int64)
    kinds: list[Json] = []
    for index, machine in enumerate(timeline.machines):
        mine = np.flatnonzero(timeline.machine == index)
        ids, at, counts = np.unique(timeline.event_id[mine], return_inverse=True, return_counts=True)
        kind[mine] = at + len(kinds)
        for event, count in zip(ids.tolist(), counts.tolist(), strict=True):
            name = printable(machine.recording.event_name(event))
            kinds.append({"machine": printable(machine.name), "name": name, "count": count})
        cpus = timeline.cpu[mine]
        for cpu in np.unique(cpus).tolist():
            lane_of[mine[cpus == cpu]] = number[machine.name, cpu]
    return kinds, kind, lane_of


def _shares(lane: Lane, span: tuple[int, int], buckets: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """How much of each bucket each class has, u8[buckets, classes]: 255 is all of it; what there is has 1 at least."""
    size = max((span[1] - span[0]) / buckets, 1e-9)
    edges = span[0] + (np.arange(buckets) * size).astype(np.int64)
    begin, step, bucket = combine(lane.begin, edges)
    took = np.diff(begin, append=np.int64(span[1]))
    classes = len(lane.names)
    key = bucket * classes + lane.classes[lane.what[step]]
    sums = np.bincount(key, weights=took, minlength=buckets * classes).reshape(buckets, classes)
    shares = np.clip(np.rint(sums * (255 / size)), 0, 255)
    return np.where(sums > 0, np.maximum(shares, 1), 0).astype(np.uint8)


def _fewer(lanes: Sequence[Lane], span: tuple[int, int], keep: I64) -> tuple[list[Lane], int]:
    """The lanes with at most ``MAX_STEPS`` steps, and how long a run of joined ones may be (0: all are there)."""
    out, size = list(lanes), 0
    while sum(len(lane.begin) for lane in out) > MAX_STEPS and size < span[1] - span[0]:
        size = size * 2 or max(1, 2 * (span[1] - span[0]) * len(lanes) // MAX_STEPS // 8)
        out = [_joined(lane, span[0], size, keep) for lane in lanes]
    return out, size


def _joined(lane: Lane, origin: int, size: int, keep: I64) -> Lane:
    """A lane in which the steps that begin in one stretch of ``size`` are one, up to the last of them."""
    bucket = (lane.begin - origin) // size
    whole = within(*merged(keep[:, 0], keep[:, 1]), lane.begin)
    # what is kept is in no stretch: each of its steps is one of its own
    key = np.where(whole, -1 - np.arange(len(bucket)), bucket)
    fresh = np.r_[True, key[1:] != key[:-1]]
    run = np.cumsum(fresh) - 1
    last = np.r_[fresh[1:], True]
    inner = ~last & (np.bincount(run)[run] > 2)
    first = inner & fresh
    took = np.bincount(
        run[inner] * len(lane.names) + lane.classes[lane.what[inner]],
        weights=(lane.ends - lane.begin)[inner],
        minlength=(int(run[-1]) + 1) * len(lane.names),
    ).reshape(-1, len(lane.names))
    what = lane.what.copy()
    what[first] = len(lane.texts) + took.argmax(axis=1)[run[first]]
    stays = first | ~inner
    mostly = tuple(f"several in short, mostly {name}" for name in lane.names)
    return replace(
        lane,
        begin=lane.begin[stays],
        what=what[stays],
        texts=lane.texts + mostly,
        classes=np.r_[lane.classes, np.arange(len(lane.names))],
    )
