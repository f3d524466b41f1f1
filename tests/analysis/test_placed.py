"""Requests and the deliveries that answer them, and spans that lost events, against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.placed import Placed, first_since
from counterpoint.timeline.merge import Machine
from counterpoint.traces.recording import Recording
from writers.events import Event, FieldSpec
from writers.tracedat import Buffer, TraceFile


def answered(requests: list[tuple[int, int]], deliveries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """One by one: a request is a bit that a delivery clears; of a bit that was set before all deliveries nothing."""
    events = [(when, 0, key, n) for n, (key, when) in enumerate(requests)]
    events += [(when, 1, key, n) for n, (key, when) in enumerate(deliveries)]
    out = [(-1, -1)] * len(deliveries)
    pending: dict[int, int] = {}
    last: dict[int, int] = {}
    for _, is_delivery, key, number in sorted(events):
        if not is_delivery:
            pending.setdefault(key, number)
            continue
        if key in pending and key in last:
            out[number] = pending[key], last[key]
        pending.pop(key, None)
        last[key] = number
    return out


@pytest.mark.parametrize("seed", range(20))
def test_a_delivery_answers_the_first_request_since_the_one_before(seed):
    random = np.random.default_rng(seed)
    times = random.permutation(200)
    cut = random.integers(1, 199)
    requests = sorted((int(random.integers(0, 4)), int(t)) for t in times[:cut])
    deliveries = sorted((int(random.integers(0, 4)), int(t)) for t in times[cut:])
    columns = [np.array(column, np.int64) for pairs in (requests, deliveries) for column in zip(*pairs, strict=True)]

    request, before = first_since(*columns)

    assert list(zip(request.tolist(), before.tolist(), strict=True)) == answered(requests, deliveries)


def test_of_none_there_is_no_answer():
    none, one = np.zeros(0, np.int64), np.ones(1, np.int64)

    assert [each.tolist() for each in first_since(none, none, one, one)] == [[-1], [-1]]
    assert [len(each) for each in first_since(one, one, none, none)] == [0, 0]


def test_what_was_lost_is_known_by_its_spans(tmp_path: Path):
    mark = Event(20, "test", "mark", [FieldSpec("int", "n")], '""')
    file = TraceFile(events=[mark], clock="mono", cpu_count=2)
    buffer = Buffer()
    stamps = {0: [10, 20, 30, 40], 1: [15, 25, 35, 45]}
    # before 30 on CPU 0; before the first on CPU 1, and before 45 there
    missed = {0: {2: 1}, 1: {0: -1, 3: 2}}
    for cpu, mine in stamps.items():
        buffer.cpus[cpu] = file.stream([(s, file.payload(mark, 1, n=s)) for s in mine], missed=missed[cpu])
    file.buffers = [buffer]
    recording = Recording.open(file.write(tmp_path / "lossy.dat"))
    rows = np.ones(len(recording), np.bool_)
    placed = Placed(Machine("host", recording, None, recording.stamp, rows, rows), 0)
    spans = [(-(1 << 62), 15), (20, 30), (35, 45)]

    begin, end = (a.reshape(-1) for a in np.meshgrid(np.arange(0, 60), np.arange(0, 60)))
    ordered = begin < end
    begin, end = begin[ordered].astype(np.int64), end[ordered].astype(np.int64)

    found = placed.lost_within(begin, end)

    for lo, hi, lost in zip(begin.tolist(), end.tolist(), found.tolist(), strict=True):
        assert lost == any(lo < b and hi > a for a, b in spans), (lo, hi)
    marks = placed.of("test", "mark", ("n",))
    assert marks is not None
    assert marks["n"].tolist() == marks.when.tolist() == sorted(s for mine in stamps.values() for s in mine)
    assert placed.of("test", "mark", ("other",)) is None
