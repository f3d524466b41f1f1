"""The page: what goes into it, from columns to text. What a browser makes of it is in test_page_browser.py."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from counterpoint.analysis.lanes import VCPU_CLASSES, Lane, lanes
from counterpoint.analysis.narrowing import Narrowing, narrowing
from counterpoint.analysis.states import State
from counterpoint.analysis.why import Explainer
from counterpoint.clocks.counter import relative
from counterpoint.outputs import page_lanes
from counterpoint.outputs.page import data_block, page_of
from counterpoint.outputs.page_pack import Pack
from counterpoint.outputs.page_proof import ProofDrawn
from counterpoint.timeline.sync import SyncResult, sync

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def busy() -> SyncResult:
    return sync(DATA / "x86-busy" / "host.dat", DATA / "x86-busy" / "guest.dat")


@pytest.fixture(scope="module")
def span(busy) -> tuple[int, int]:
    when = relative(busy.timeline.host_ticks, busy.timeline.base)
    return int(when[0]), int(when[-1]) + 1


@pytest.fixture(scope="module")
def drawn_lanes(busy, span) -> list[Lane]:
    return list(lanes(Explainer(busy), span))


def unpacked(text: str, where: dict[str, list[int]], name: str) -> list[int]:
    data = zlib.decompress(base64.b64decode(text))

    def part(which: str, kind: str) -> np.ndarray:
        at, size = where[f"{name}.{which}"]
        return np.frombuffer(data[at : at + size], kind)

    far = iter(part("far", "<f8").tolist())
    low, high = part("low", "u1").tolist(), part("high", "u1").tolist()
    return [int(next(far)) if (a, b) == (255, 255) else a | b << 8 for a, b in zip(low, high, strict=True)]


def test_what_is_packed_is_unpacked():
    values = [0, 1, 255, 256, 65534, 65535, 65536, 1 << 40, (1 << 53) - 1, 7]
    pack = Pack()
    pack.add("other", np.arange(3, dtype=np.uint8))
    pack.add_small("some", np.array(values))

    assert unpacked(pack.text(), pack.where, "some") == values


def test_lanes_are_whole_and_add_up_to_the_states(busy, span, drawn_lanes):
    states = {(v.host, v.tid): v for v in Explainer(busy).states}
    assert {lane.kind for lane in drawn_lanes} == {"cpu", "vcpu"}
    for lane in drawn_lanes:
        assert lane.begin[0] == span[0] and lane.end == span[1] and (np.diff(lane.begin) > 0).all()
        assert (lane.what[1:] != lane.what[:-1]).all() and len(lane.texts) == len(lane.classes)
        if lane.kind == "vcpu":
            took = np.bincount(lane.classes[lane.what], lane.ends - lane.begin, len(VCPU_CLASSES))
            residency = states[lane.machine, lane.tid].residency()
            assert took[VCPU_CLASSES.index("waiting")] == residency[State.WAITING] > 0
            assert took[1:5].sum() == residency[State.GUEST] > 0


def test_tasks_are_called_what_they_were_called_then(busy, drawn_lanes):
    cpu = next(lane for lane in drawn_lanes if lane.kind == "cpu" and lane.machine == "guest")
    names = Explainer(busy).called(1)
    for step in np.flatnonzero([bool(re.search(r"\[\d+\]$", cpu.texts[w])) for w in cpu.what])[:200].tolist():
        name, _, tid = cpu.texts[cpu.what[step]].rpartition(" [")
        assert name == names.of(int(tid[:-1]), int(cpu.begin[step]))


def test_the_band_ends_at_what_the_windows_prove(busy):
    for guest in busy.guests:
        for vcpu in guest.vcpus:
            for epoch in vcpu.epochs:
                found = narrowing(guest, vcpu, epoch)
                assert isinstance(found, Narrowing) and epoch.offset is not None
                proved = epoch.by_windows or epoch.feasible
                assert proved == (epoch.offset + int(found.lo[-1]), epoch.offset + int(found.hi[-1]))
                assert (np.diff(found.lo) >= 0).all() and (np.diff(found.hi) <= 0).all()
                assert (np.diff(found.count) > 0).all()


def test_joined_steps_keep_times_and_what_the_page_leads_to(span, drawn_lanes, monkeypatch):
    lane = next(each for each in drawn_lanes if each.kind == "vcpu")
    monkeypatch.setattr(page_lanes, "MAX_STEPS", len(lane.begin) // 3)
    middle = lane.begin[len(lane.begin) // 2 : len(lane.begin) // 2 + 20]
    keep = np.array([[middle[0], middle[-1] + 1]])

    (fewer,), size = page_lanes._fewer([lane], span, keep)

    assert 0 < len(fewer.begin) <= page_lanes.MAX_STEPS and size > 0
    assert np.isin(fewer.begin, lane.begin).all() and np.isin(middle, fewer.begin).all()
    at = np.searchsorted(lane.begin, fewer.begin)
    single = np.array([not fewer.texts[w].startswith("several in short") for w in fewer.what])
    assert (fewer.what[single] == lane.what[at][single]).all() and not single.all()
    # none is longer than the stretch that it stands for
    assert ((fewer.ends - fewer.begin)[~single] <= size).all()


def test_a_page_has_no_address_and_one_script(busy):
    page = page_of(busy)

    assert len(re.findall(r"<script>", page)) == 1
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page.replace("no innerHTML", "")
    )
    assert "default-src 'none'" in page and "@@" not in page
    meta = json.loads(re.search(r'id="meta">(.*?)</script>', page, re.S)[1])
    assert meta["events_placed"] == len(busy.timeline) == meta["events"]["count"]


def test_json_in_a_page_ends_nothing():
    hostile = {"a": "</script><!-- & \u2028 \x1b[31m \ud800"}
    block = data_block(hostile)

    assert not set(block) & set("<>&\u2028\x1b") and json.loads(block) == hostile


def test_each_epoch_has_the_claims_that_speak_of_it(busy):
    guest = busy.guests[0]
    offset = guest.vcpus[0].epochs[0].offset
    told = sync(
        DATA / "x86-busy" / "host.dat",
        DATA / "x86-busy" / "guest.dat",
        offsets=[f"0={offset + 7}", f"0={offset - 10**9}"],
    )

    (vcpu,) = ProofDrawn(told, 0).vcpus()

    assert [c["verdict"] for c in vcpu["claims"]] == ["proved", "refuted"]
    (epoch,) = vcpu["epochs"]
    in_use = int(epoch["offset"])
    assert [(c["beside"] + in_use, c["verdict"]) for c in epoch["claimed"]] == [
        (offset + 7, "proved"),
        (offset - 10**9, "refuted"),
    ]
    against = vcpu["claims"][1]["against"]
    assert against["at"] is not None and against["from"] < against["at"] < against["to"]
