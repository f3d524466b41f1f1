"""Clocks whose relation to the counter nobody says: by the run windows alone, held against marks."""

from lab.arm64 import Arm64

CASES = [
    Arm64(
        name="arm64-local",
        about="both in local (sched_clock)",
        clock="local",
        verdicts=("proved", "derived"),
    ),
    Arm64(
        name="arm64-mono",
        about="both in mono",
        clock="mono",
        verdicts=("proved", "derived"),
    ),
]
