"""Rows of the arm64 lab: what `sync` finds in a case's capture, held against the truth that was read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lab import stamps
from lab.run import Lab, Row, holds


def rows(lab: Lab, tools: Path, verdicts: Sequence[str]) -> list[Row]:
    """Hold what `sync` finds, and what each source said, against the truth: a row for each epoch.

    `tools`: a root with trace-cmd. `verdicts`: those that the case expects.
    The interval is that of CNTVOFF where `sync` knows how stamps come of the counter, else that of a mark's host stamp.
    """
    lab.write("sync.json", lab.counterpoint("sync", lab.folder / "capture", "--json").stdout)
    lab.write("sync.txt", lab.counterpoint("sync", lab.folder / "capture").stdout)
    report, truth = _load(lab, "sync.json"), _load(lab, "truth.json")
    looks = _load(lab, "capture/capture.json")["vms"]
    first, last = looks[0], looks[-1]
    if (lab.folder / "offsets.json").exists():
        first = _load(lab, "offsets.json")
    found = []
    for said in report["guests"]:
        name, known = said["name"], truth["guests"][said["name"]]
        offsets = known["offsets"]
        for vcpu in said["vcpus"]:
            marks = held_marks(lab, tools, said, vcpu, offsets)
            for index, epoch in enumerate(vcpu["epochs"]):
                true = offsets[index] if len(offsets) == len(vcpu["epochs"]) else None
                row = Row(
                    case=lab.case,
                    architecture="arm64",
                    kernel=truth["kernel"],
                    vmm=truth["vmm"],
                    clock=said["clock"],
                    guest=name,
                    vcpu=vcpu["guest_cpu"],
                    truth=None if true is None else (true, true),
                    truth_by="CNTVOFF_EL2 by the debug stub, marks",
                    interval=epoch.get("cntvoff_feasible") and tuple(epoch["cntvoff_feasible"]),
                    unit="ticks of CNTVOFF",
                    width_ns=epoch["width_ns"],
                    verdict=epoch["verdict"],
                )
                here = [mark for mark in marks if mark.epoch == index]
                if row.interval is None and here:
                    middle = here[len(here) // 2]
                    row.truth, row.interval = middle.true, middle.found
                    row.unit = f"ns, host stamp of guest stamp {middle.stamp}"
                reasons = []
                if true is None:
                    reasons.append(f"{len(vcpu['epochs'])} epochs, but CNTVOFF_EL2 was {offsets}")
                elif index in (0, len(offsets) - 1):
                    row.sources = sources(last if index else first, name, vcpu["guest_cpu"], true)
                    if known["ptp_kvm"] and not index:
                        row.sources["ptp_kvm in the guest"] = _beside(known["ptp_kvm"], (true, true))
                    reasons += [f"{name}: {text}" for name, text in row.sources.items() if text.startswith("not ")]
                if true is not None and not holds(row.interval, row.truth):
                    reasons.append("the truth is not in the interval")
                wrong = sum(not holds(mark.found, mark.true) for mark in here)
                row.sources["marks"] = f"{len(here) - wrong} of {len(here)} hold"
                reasons += [f"{wrong} marks are not where the map puts them"] if wrong else []
                reasons += [] if here or row.interval else ["no mark lies in what both recorded"]
                row.sources |= {f"{c['source']} (sync)": c["verdict"] for c in vcpu["claims"]}
                if epoch["verdict"] not in verdicts:
                    reasons.append(f"the verdict is {epoch['verdict']}")
                row.ok, row.reason = not reasons, "; ".join(reasons)
                found.append(row)
    return found


@dataclass(frozen=True)
class Mark:
    """A mark of a guest: its stamp, where that is in the host's clock by the truth, and by `counterpoint convert`."""

    epoch: int
    stamp: int
    true: tuple[int, int]
    found: tuple[int, int]


def held_marks(
    lab: Lab, tools: Path, said: Mapping[str, Any], vcpu: Mapping[str, Any], offsets: Sequence[int]
) -> list[Mark]:
    """Return the marks of a vCPU between two of the host's, where its epochs are as many as its `offsets` (CNTVOFF)."""
    if len(offsets) != len(vcpu["epochs"]):
        return []
    capture = lab.folder / "capture"
    rate = Fraction(10**9, _load(lab, "capture/capture.json")["machines"]["host"]["counter"]["hz"][0])
    hosts = stamps.read_marks(tools, capture / "host.dat")[0]
    known = []
    for mark in stamps.read_marks(tools, capture / f"{said['name']}.dat").get(vcpu["guest_cpu"], []):
        for index, epoch in enumerate(vcpu["epochs"]):
            begins, ends = epoch["guest_from"], epoch["guest_to"]
            if (begins is not None and mark.low < begins) or (ends is not None and mark.high >= ends):
                continue
            true = stamps.at(hosts, mark.counter + offsets[index], rate)
            if true is not None:
                known.append((index, mark, true))
    if not known:
        return []
    values = [str(value) for _, mark, _ in known for value in (mark.low, mark.high)]
    which = ["--guest", said["name"], "--cpu", str(vcpu["guest_cpu"])]
    answered = lab.counterpoint("convert", capture, *which, "--json", *values)
    answers = [json.loads(line) for line in answered.stdout.splitlines()]
    return [
        Mark(index, mark.high, true, (low["earliest"], high["latest"]))
        for (index, mark, true), low, high in zip(known, answers[::2], answers[1::2], strict=True)
    ]


def sources(offsets: Mapping[str, Any], name: str, number: int, cntvoff: int) -> dict[str, str]:
    """Return what each source of `offsets` said of a vCPU: "equal", the bracket that holds it, or "not ..."."""
    said: dict[str, str] = {}
    for vm in offsets["vms"]:
        for vcpu in vm["vcpus"]:
            if (vm["name"], vcpu["vcpu"]) != (name, number):
                continue
            physical = [r["offset"] for r in vcpu["readings"] if r["level"] == "physical"]
            for reading in vcpu["readings"]:
                low, high = reading["offset"]
                if reading["level"] == "L1":
                    said[reading["source"]] = _beside((low, high), (-cntvoff, -cntvoff))
                elif low != high:
                    # no register of these CPUs has the physical offset: two sources of it are held against each other
                    exact = next((r for r in physical if r[0] == r[1]), None)
                    if exact is not None:
                        said[reading["source"]] = _beside((low, high), exact)
            said |= {missing["source"]: f"missing: {missing['reason']}" for missing in vcpu["missing"]}
    return said


def _beside(said: Sequence[int], truth: Sequence[int]) -> str:
    if said[0] == said[1]:
        return "equal" if said[0] == truth[0] else f"not equal: {said[0]}"
    inside = said[0] <= truth[0] <= said[1]
    return f"{'' if inside else 'not '}within {said[1] - said[0] + 1} ticks"


def _load(lab: Lab, name: str) -> Any:  # noqa: ANN401  JSON
    return json.loads((lab.folder / name).read_text())
