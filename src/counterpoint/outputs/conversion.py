"""Converted stamps as records: for JSON, for columns of a CSV, for a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from counterpoint.clocks.answers import Answers, Status
from counterpoint.clocks.counter import I64, U64, add
from counterpoint.clocks.known_counter import ArchCounter
from counterpoint.clocks.machines import MachineClock, Maps
from counterpoint.clocks.wall import Wall, WallTimes
from counterpoint.timeline.stamps import read_stamps, resolve, wall_text

Record = dict[str, Any]

MALFORMED = "malformed"

VERDICTS = {status: status.name.lower() for status in Status}


@dataclass
class Tally:
    """What was noticed of the values converted so far."""

    count: dict[str, int] = field(default_factory=dict)
    late: int = 0

    @property
    def is_sound(self) -> bool:
        """Every value has one answer."""
        return not set(self.count) - {VERDICTS[Status.INSIDE], VERDICTS[Status.OUTSIDE]}


@dataclass
class Conversion:
    """Values of one machine's clock turned into those of another, block by block.

    ``to``: "host" turns values of the guest ``guest`` into the host's, "guest" the reverse. ``cpu``: the guest CPU
    (None: any). ``unit``, ``printk``: see ``stamps``; ``source_counter``, ``target_counter``: arm64's counters behind
    the clocks of the machine that values are of, and of the other, where known.
    """

    maps: Maps
    guest: str
    to: Literal["host", "guest"] = "host"
    cpu: int | None = None
    unit: str = "stamp"
    printk: int | str = ""
    extrapolate: bool = False
    wall: Wall | None = None
    source_counter: ArchCounter | None = None
    target_counter: ArchCounter | None = None
    tally: Tally = field(default_factory=Tally)

    @property
    def source(self) -> MachineClock:
        """The machine that values are of."""
        return self.maps.guest(self.guest).machine if self.to == "host" else self.maps.host

    @property
    def target(self) -> MachineClock:
        """The machine whose stamps are sought."""
        return self.maps.host if self.to == "host" else self.maps.guest(self.guest).machine

    def records(self, texts: Sequence[str], cpus: Sequence[int | None] | None = None) -> list[Record]:
        """A record for each text, with its CPU where ``cpus`` names one. KeyError: there is no such CPU."""
        written = read_stamps(texts, self.unit, is_ns=self.source.unit == "ns")
        stamps = resolve(
            written, self.source, counter=self.source_counter, printk=self.printk,
            wall=self.wall if self.to == "guest" else None,
        )  # fmt: skip
        out: list[Record] = [{} for _ in texts]
        wanted = [self.cpu] * len(texts) if cpus is None else list(cpus)
        for index, why in stamps.why.items():
            verdict = MALFORMED if index in written.wrong else VERDICTS[Status.REFUSED]
            out[index] = self._without(texts[index], verdict, why, wanted[index])
        for cpu in dict.fromkeys(wanted):
            rows = [i for i in range(len(texts)) if wanted[i] == cpu and i not in stamps.why]
            found = self._converted([texts[i] for i in rows], stamps.lo[rows], stamps.hi[rows], cpu)
            for row, record in zip(rows, found, strict=True):
                out[row] = record
        for record in out:
            self._count(record)
        return out

    def malformed(self, text: str, reason: str) -> Record:
        """The record of what is no value at all."""
        record = self._without(text, MALFORMED, reason)
        self._count(record)
        return record

    def _count(self, record: Record) -> None:
        self.tally.count[record["verdict"]] = self.tally.count.get(record["verdict"], 0) + 1

    def _converted(self, texts: Sequence[str], lo: U64, hi: U64, cpu: int | None) -> list[Record]:
        convert = self.maps.to_host if self.to == "host" else self.maps.to_guest
        answers = convert(lo, self.guest, cpu, upto=hi, extrapolate=self.extrapolate)
        if self.to == "host":
            self.tally.late += self._late(lo, cpu)
        host = (answers.earliest, answers.stamp, answers.latest) if self.to == "host" else (lo, lo, hi)
        times = None if self.wall is None else self.wall.at(host)
        ticks = None
        if self.target_counter is not None:
            ticks = self.target_counter.ticks(answers.earliest, answers.latest)
        return [self._record(i, text, cpu, answers, times, ticks) for i, text in enumerate(texts)]

    def _late(self, stamps: U64, cpu: int | None) -> int:
        """How many stamps lie where the guest's own recording is late."""
        late = np.zeros(len(stamps), np.bool_)
        for clock in self.maps.guest(self.guest).cpus:
            for begin, end in clock.late if cpu in (None, clock.guest_cpu) else ():
                late |= (add(stamps, -begin).view(np.int64) >= 0) & (add(stamps, -end).view(np.int64) <= 0)
        return int(late.sum())

    def _record(
        self,
        index: int,
        text: str,
        cpu: int | None,
        answers: Answers,
        times: WallTimes | None,
        ticks: tuple[U64, U64] | None,
    ) -> Record:
        status = Status(int(answers.status[index]))
        if not status.is_answer:
            return self._without(text, VERDICTS[status], answers.why(index), cpu)
        earliest, latest = int(answers.earliest[index]), int(answers.latest[index])
        rate, width = self.target.rate, (latest - earliest) % (1 << 64)
        out = self._without(text, VERDICTS[status], None, cpu) | {
            "stamp": int(answers.stamp[index]),
            "earliest": earliest,
            "latest": latest,
            "bound": width,
            "bound_ns": None if rate is None else -rate.to_ns(-width),
            "ns": None if rate is None else rate.to_ns(int(answers.stamp[index])),
            "epoch": int(answers.epoch[index]) if answers.epoch[index] >= 0 else None,
        }
        if times is not None and times.known[index]:
            assert self.wall is not None
            bounded = self.wall.is_bounded
            out |= {
                "wall": wall_text(int(times.ns[index])),
                "wall_earliest": wall_text(int(times.earliest[index])) if bounded else None,
                "wall_latest": wall_text(int(times.latest[index])) if bounded else None,
                "wall_source": self.wall.source,
            }
        if ticks is not None:
            out["counter"] = [int(ticks[0][index]), int(ticks[1][index])]
        if status is Status.AMBIGUOUS:
            out["others"] = self._others(answers, np.flatnonzero(answers.others.row == index))
        return out

    def _others(self, answers: Answers, rows: I64) -> list[Record]:
        """All instants that an ambiguous value may be."""
        found, rate = answers.others, self.target.rate
        return [
            {
                "stamp": int(found.stamp[r]),
                "earliest": int(found.earliest[r]),
                "latest": int(found.latest[r]),
                "ns": None if rate is None else rate.to_ns(int(found.stamp[r])),
                "cpu": int(found.cpu[r]),
                "epoch": int(found.epoch[r]),
                "verdict": VERDICTS[Status(int(found.status[r]))],
            }
            for r in rows.tolist()
        ]

    def _without(self, text: str, verdict: str, reason: str | None, cpu: int | None = None) -> Record:
        """A record without an answer."""
        return {
            "value": text.strip(),
            "guest": self.guest,
            "cpu": cpu,
            "verdict": verdict,
            "unit": self.target.unit,
            "stamp": None,
            "earliest": None,
            "latest": None,
            "bound": None,
            "bound_ns": None,
            "ns": None,
            "wall": None,
            "wall_earliest": None,
            "wall_latest": None,
            "wall_source": None,
            "epoch": None,
            "reason": reason,
        }

    # -- columns

    def columns(self) -> list[str]:
        """The names of the columns that a CSV gets."""
        out = [f"{self.to}_stamp", f"{self.to}_earliest", f"{self.to}_latest", f"{self.to}_ns", "bound_ns"]
        if self.wall is not None:
            out += ["wall", "wall_earliest", "wall_latest"]
        if self.target_counter is not None:
            out += [f"{self.to}_counter_from", f"{self.to}_counter_to"]
        return [*out, "epoch", "verdict"]

    def cells(self, record: Record) -> list[str]:
        """The cells of one record: of an ambiguous one all its instants, in one cell, with | between."""
        others = record.get("others") or [record]
        keys = ["stamp", "earliest", "latest", "ns"]
        out = ["|".join(_cell(o[key]) for o in others) for key in keys] + [_cell(record["bound_ns"])]
        if self.wall is not None:
            out += [_cell(record[key]) for key in ("wall", "wall_earliest", "wall_latest")]
        if self.target_counter is not None:
            out += [_cell(end) for end in record.get("counter") or (None, None)]
        epochs = dict.fromkeys(_cell(o["epoch"]) for o in others)
        return [*out, "|".join(epochs), record["verdict"]]


def _cell(value: object) -> str:
    return "" if value is None else str(value)
