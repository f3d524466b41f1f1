"""The truth for any trace clock: what each machine's marks say of its clock, and the counters' offset between them.

`lab-counter marks` writes two marks at a time, each with the counter's value from just before it. The clock at the
second one's value lies between the two stamps: a bracket of a clock at a known value of the counter.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lab.packages import environment, program

SLEW_PPM = 600
"""By how much a clock's rate may differ from the nominal one between two marks: NTP's 500 ppm, and a crystal's 100."""


@dataclass(frozen=True)
class Bracket:
    """When the counter was `counter`, the trace clock was at `low` or later, at `high` or earlier."""

    counter: int
    low: int
    high: int


def read_marks(root: Path, recording: Path) -> dict[int, list[Bracket]]:
    """Return each CPU's brackets, in order, as trace-cmd reads the recording."""
    command = [*program(root, "usr/bin/trace-cmd"), "report", "-N", "-t", "--raw-ts", "-F", "print", str(recording)]
    text = subprocess.run(command, capture_output=True, text=True, env=environment(root)).stdout
    return {cpu: brackets(found) for cpu, found in parse(text).items()}


def parse(text: str) -> dict[int, dict[int, tuple[int, int]]]:
    """Return each CPU's marks (number: stamp, counter) in what trace-cmd printed."""
    marks: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    # ns may be shown as seconds; nothing may be between them and the flags ("...1.100007405648: print")
    pattern = r"(\d+\.\d{9}|\d+): print:.*lab cpu=(\d+) n=(\d+) counter=(\d+)"
    for stamp, cpu, number, counter in re.findall(pattern, text):
        marks[int(cpu)][int(number)] = (int(stamp.replace(".", "")), int(counter))
    return marks


def brackets(marks: dict[int, tuple[int, int]]) -> list[Bracket]:
    """Return the brackets that the marks (number: stamp, counter) of one CPU make."""
    return [
        Bracket(marks[number][1], marks[number - 1][0], marks[number][0])
        for number in sorted(marks)
        if number % 2 and number - 1 in marks
    ]


def at(known: list[Bracket], counter: int, rate: Fraction) -> tuple[int, int] | None:
    """Return the interval of the clock at a value of the counter, from the brackets on both sides; None outside.

    `rate`: nominal units of the clock a tick, held to within SLEW_PPM.
    """
    index = bisect_right([bracket.counter for bracket in known], counter)
    if not 0 < index < len(known):
        return None
    before, after = known[index - 1], known[index]
    slow, fast = rate * (1_000_000 - SLEW_PPM) / 1_000_000, rate * (1_000_000 + SLEW_PPM) / 1_000_000
    gone, left = counter - before.counter, after.counter - counter
    low = max(before.low + int(gone * slow), after.low - int(left * fast) - 1)
    high = min(before.high + int(gone * fast) + 1, after.high - int(left * slow))
    return low, high
