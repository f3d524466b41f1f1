"""Clocks that are not the counter: two lines, whose relation is found from the run windows."""

from lab.x86 import X86

CASES = [
    X86(
        name="x86-mono-raw",
        about="both in mono_raw",
        clock="mono_raw",
        verdicts=("proved", "derived"),
    ),
    X86(
        name="x86-mono",
        about="both in mono",
        clock="mono",
        verdicts=("proved", "derived"),
    ),
    X86(
        name="x86-local",
        about="both in local: the host's sched_clock, and the guest's, which is its kvm-clock",
        clock="local",
        seconds=10,
        verdicts=("proved", "derived"),
    ),
]
