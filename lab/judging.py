"""What came home from the x86 machine, held against the truth: rows, from the case's folder alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lab import stamps
from lab.packages import environment, program
from lab.run import Lab, Row, holds


class Judged(Protocol):
    """What of a case matters here."""

    @property
    def name(self) -> str:
        """Of the case."""

    @property
    def clock(self) -> str:
        """The trace clock of both sides."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Those that are right."""

    @property
    def by_writes(self) -> bool:
        """Whether what KVM wrote are offsets that the guest ran with."""

    def recordings(self, lab: Lab) -> list[Path]:
        """Return what `sync` is given."""


@dataclass
class Home:
    """The folder of a case, read."""

    lab: Lab
    case: Judged
    root: Path

    def _json(self, name: str) -> Any:  # noqa: ANN401  whatever it is
        file = self.lab.folder / name
        return json.loads(file.read_text()) if file.exists() else None

    @cached_property
    def truths(self) -> list[dict[str, Any]]:
        """Readings of debugfs and of the VMCBs, in their order."""
        return list(self._json("truth.json"))

    @cached_property
    def offsets(self) -> dict[str, Any] | None:
        """What `offsets` said before the recording."""
        found = self._json("offsets.json")
        return None if found is None else dict(found)

    @cached_property
    def report(self) -> dict[str, Any]:
        """What `sync` says."""
        text = self.lab.counterpoint("sync", *self.case.recordings(self.lab), "--json").stdout
        self.lab.write("sync.json", text)
        return dict(json.loads(text))

    def recording(self, guest: Mapping[str, Any]) -> Path:
        """The file of a guest of the report."""
        return self.lab.folder / "capture" / Path(guest["file"]).name

    def writes(self) -> list[tuple[int, int, int]]:
        """Return (thread, stamp, new offset) of each kvm_write_tsc_offset of the host, as trace-cmd reads it."""
        file = str(self.lab.folder / "capture" / "host.dat")
        command = [*program(self.root, "usr/bin/trace-cmd"), "report", "-N", "-t", "-F", "kvm_write_tsc_offset", file]
        text = subprocess.run(command, capture_output=True, text=True, env=environment(self.root)).stdout
        pattern = r"-(\d+) +\[\d+\][^:]*?([\d.]+): kvm_write_tsc_offset:.* next=(\d+)"
        return [
            (int(tid), int(stamp.replace(".", "")), (int(offset) + (1 << 63)) % (1 << 64) - (1 << 63))
            for tid, stamp, offset in re.findall(pattern, text)
        ]

    def readings(self, name: str, vcpu: int) -> list[dict[str, Any]]:
        """What debugfs said of a vCPU before and after the recording."""
        return [
            one
            for reading in self.truths
            for one in reading["debugfs"]
            if (one["guest"], one["vcpu"]) == (name, vcpu) and reading["when"] in ("before", "after")
        ]

    def true_offsets(self, name: str, vcpu: int) -> list[int]:
        """Return a vCPU's offsets from the recording's beginning: debugfs before, KVM's writes, debugfs after.

        KVM's writes count where the case says so: debugfs lacks what comes and goes, a new VM runs with few of its
        writes. The last one has to be what debugfs says afterwards.
        """
        read = self.readings(name, vcpu)
        found = [read[0]["offset"]]
        if self.case.by_writes:
            threads = {one["tid"] for one in read}
            for tid, _, offset in self.writes():
                if tid in threads and offset != found[-1]:
                    found.append(offset)
        return found if read[-1]["offset"] == found[-1] else [*found, read[-1]["offset"]]

    def row(self, guest: Mapping[str, Any], vcpu: Mapping[str, Any]) -> Row:
        """A row with what is common to all of a vCPU."""
        machine = self._json("machine.json")
        return Row(
            case=self.case.name,
            architecture="x86",
            kernel=machine["kernel"],
            vmm=machine["vmm"],
            clock=guest["clock"],
            guest=guest["name"],
            vcpu=vcpu["guest_cpu"],
            truth=None,
            truth_by="debugfs, VMCB",
            interval=None,
            unit="",
            width_ns=None,
            verdict=vcpu["verdict"],
        )


def rows(lab: Lab, case: Judged, root: Path) -> list[Row]:
    """Return the rows of a case whose folder is complete."""
    home = Home(lab, case, root)
    judge = _by_offset if case.clock == "x86-tsc" else _by_marks
    return [row for guest in home.report["guests"] for vcpu in guest["vcpus"] for row in judge(home, guest, vcpu)]


def _by_offset(home: Home, guest: Mapping[str, Any], vcpu: Mapping[str, Any]) -> list[Row]:
    """Counter to counter: the interval of each epoch has to hold the offset that there was."""
    name, number = guest["name"], vcpu["guest_cpu"]
    truths = home.true_offsets(name, number)
    read = {one["offset"] for one in home.readings(name, number)}
    seen = {found["offset"] for reading in home.truths for found in reading["vmcb"]}
    found = []
    for index, epoch in enumerate(vcpu["epochs"]):
        row = home.row(guest, vcpu)
        row.interval = epoch["feasible"] and (epoch["feasible"][0], epoch["feasible"][1])
        row.unit, row.width_ns, row.verdict = epoch["unit"], epoch["width_ns"], epoch["verdict"]
        reasons = []
        if len(truths) != len(vcpu["epochs"]):
            reasons.append(f"{len(vcpu['epochs'])} epochs, but offsets were {truths}")
        else:
            truth = truths[index]
            row.truth = (truth, truth)
            if not holds(row.interval, row.truth):
                reasons.append("the truth is not in the interval")
            if truth not in read:
                row.truth_by = "kvm_write_tsc_offset"
            elif truth not in seen:
                reasons.append("no VMCB has this offset")
            if index == 0:
                row.sources = _sources(home, name, number, truth) | _watched(home, name, number, truth)
        row.sources |= _marks(home, guest, number)
        reasons += [f"{source}: {said}" for source, said in row.sources.items() if "not " in said]
        row.sources |= {f"{claim['source']} (sync)": claim["verdict"] for claim in vcpu["claims"]}
        if row.verdict not in home.case.verdicts:
            reasons.append(f"the verdict is {row.verdict}")
        row.ok, row.reason = not reasons, "; ".join(reasons)
        found.append(row)
    return found


def _by_marks(home: Home, guest: Mapping[str, Any], vcpu: Mapping[str, Any]) -> list[Row]:
    """Any clock to any clock: the map has to put each mark where it was.

    The guest's clock at a mark is bracketed; its counter there is known, so is the host's, by the offset; and the
    host's clock then is bracketed by the host's marks. Where the map puts the guest's bracket has to have something in
    common with that. The row shows the mark in the middle.
    """
    lab, number = home.lab, vcpu["guest_cpu"]
    told = json.loads((lab.folder / "capture" / "capture.json").read_text())["machines"]["host"]["counter"]["hz"]
    rate = Fraction(10**9, sum(told) // 2)
    hosts = stamps.read_marks(home.root, lab.folder / "capture" / "host.dat")
    marks = stamps.read_marks(home.root, home.recording(guest)).get(number, [])
    (offset,) = home.true_offsets(guest["name"], number)
    known = [
        (mark, true)
        for mark in marks
        for true in [stamps.at(hosts.get(0, []), mark.counter - offset, rate)]
        if true is not None
    ]
    row = home.row(guest, vcpu)
    row.sources = {claim["source"]: claim["verdict"] for claim in vcpu["claims"]}
    if "rate_ppb" in vcpu["epochs"][0]:
        row.sources["rate"] = f"{vcpu['epochs'][0]['rate_ppb']} ppb"
    row.truth_by = "marks, debugfs, VMCB"
    if not known:
        row.reason = "no mark in what both recorded"
        return [row]
    values = [str(value) for mark, _ in known for value in (mark.low, mark.high)]
    said = lab.counterpoint("convert", *home.case.recordings(lab), "--cpu", str(number), "--json", *values).stdout
    answers = [json.loads(line) for line in said.splitlines()]
    found = [(low["earliest"], high["latest"]) for low, high in zip(answers[::2], answers[1::2], strict=True)]
    placed = [(one, true) for one, (_, true) in zip(found, known, strict=True) if None not in one]
    wrong = sum(not holds(one, true) for one, true in placed)
    middle = len(known) // 2
    row.truth, row.interval, row.width_ns = known[middle][1], found[middle], answers[middle * 2]["bound_ns"]
    row.unit = f"ns, host stamp of a guest stamp in {known[middle][0].low}..{known[middle][0].high}"
    row.sources["marks"] = f"{len(placed) - wrong} of {len(known)} hold"
    reasons = [f"{wrong} of {len(placed)} marks are not where the map puts them"] if wrong else []
    reasons += [f"{len(known) - len(placed)} marks have no place"] if len(placed) < len(known) else []
    reasons += [] if row.verdict in home.case.verdicts else [f"the verdict is {row.verdict}"]
    row.ok, row.reason = not reasons, "; ".join(reasons)
    return [row]


def _sources(home: Home, name: str, number: int, truth: int) -> dict[str, str]:
    """Return what each source of `offsets` said of a vCPU: "equal", the bracket that holds it, or "not ..."."""
    said: dict[str, str] = {}
    for vm in home.offsets["vms"] if home.offsets else []:
        for vcpu in vm["vcpus"]:
            if (vm["name"], vcpu["vcpu"]) != (name, number):
                continue
            for reading in vcpu["readings"]:
                low, high = reading["offset"]
                if low == high:
                    said[reading["source"]] = "equal" if low == truth else f"not equal: {low}"
                else:
                    within = "holds it" if low <= truth <= high else "does not hold it"
                    said[reading["source"]] = f"{within}, {high - low} wide"
            said |= {missing["source"]: f"missing: {missing['reason']}" for missing in vcpu["missing"]}
    return said


def _marks(home: Home, guest: Mapping[str, Any], number: int) -> dict[str, str]:
    """Return whether the guest's stamps are its own counter: what it read lies between the stamps around it."""
    marks = stamps.read_marks(home.root, home.recording(guest)).get(number, [])
    good = sum(mark.low <= mark.counter <= mark.high for mark in marks)
    return {"marks": f"{good} of {len(marks)} hold" if good == len(marks) else f"{len(marks) - good} do not hold"}


def _watched(home: Home, name: str, number: int, truth: int) -> dict[str, str]:
    """Return what `offsets --watch` saw written last, if it ran."""
    file = home.lab.folder / "watch.jsonl"
    writes = [
        change["reading"]["offset"][0]
        for change in map(json.loads, file.read_text().splitlines() if file.exists() else [])
        if change.get("change") == "write" and (change["vm"]["name"], change["vcpu"]) == (name, number)
    ]
    if not writes:
        return {}
    what = "equal" if writes[-1] == truth else f"not equal: {writes[-1]}"
    return {"kvm_write_tsc_offset": f"{what}, {len(writes)} writes"}
