"""What can be read of an event's fields from its printed line."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from counterpoint.traces.making import Span

MAX_FIELDS = 48

Spans = Sequence[tuple[int, int]]

_PAIR = re.compile(rb"([A-Za-z_]\w{0,63})=([^\s,)\]]*)")
_NUMBER = re.compile(rb"0x[0-9a-fA-F]{1,16}|-?(?:0|[1-9]\d{0,19})")
_CPU_NUMBER = re.compile(rb"\d{1,9}")

_LINES: dict[str, tuple[re.Pattern[bytes], ...]] = {
    name: tuple(re.compile(p) for p in patterns)
    for name, patterns in {
        # arch/x86/kvm/trace.h and arch/arm64/kvm/trace_arm.h; trace-cmd's plugin prints x86's its own way, and before
        # arm64's what fields of x86 it did not find
        "kvm_entry": (rb"vcpu (?P<vcpu_id>\d+)(?:,? rip (?P<rip>0x[0-9a-f]+))?", rb".*PC: (?P<vcpu_pc>0x[0-9a-f]+)"),
        "kvm_exit": (
            rb"(?:<[^>]*>)?(?P<ret>\w+): HSR_EC: (?P<esr_ec>0x[0-9a-f]+) \((?P<exception>[\w-]+)\),"
            rb" PC: (?P<vcpu_pc>0x[0-9a-f]+)",
            rb"vcpu (?P<vcpu_id>\d+) reason (?P<reason>\S+) rip (?P<guest_rip>0x[0-9a-f]+)",
            rb"reason (?P<reason>\S+) rip (?P<guest_rip>0x[0-9a-f]+)",
        ),
        "kvm_write_tsc_offset": (
            rb"vcpu=(?P<vcpu_id>\d+) prev=(?P<previous_tsc_offset>\d+) next=(?P<next_tsc_offset>\d+)",
        ),
        "kvm_wait_lapic_expire": (rb"vcpu (?P<vcpu_id>\d+): delta (?P<delta>-?\d+)",),
        # include/trace/events/sched.h; the second is how trace-cmd's plugin prints it
        "sched_switch": (
            rb"prev_comm=(?P<prev_comm>.*) prev_pid=(?P<prev_pid>\d+) prev_prio=(?P<prev_prio>-?\d+)"
            rb" prev_state=(?P<prev_state>\S+) ==> next_comm=(?P<next_comm>.*) next_pid=(?P<next_pid>\d+)"
            rb" next_prio=(?P<next_prio>-?\d+)",
            rb"(?P<prev_comm>.*):(?P<prev_pid>\d+) \[(?P<prev_prio>-?\d+)\] (?P<prev_state>\S+) ==>"
            rb" (?P<next_comm>.*):(?P<next_pid>\d+) \[(?P<next_prio>-?\d+)\]",
        ),
        "sched_waking": (
            rb"comm=(?P<comm>.*) pid=(?P<pid>\d+) prio=(?P<prio>-?\d+) target_cpu=(?P<target_cpu>\d+)",
            rb"(?P<comm>.*):(?P<pid>\d+) \[(?P<prio>-?\d+)\].* CPU:(?P<target_cpu>\d+)",
        ),
    }.items()
}
_LINES["sched_wakeup"] = _LINES["sched_wakeup_new"] = _LINES["sched_waking"]
_DECIMAL = {"vcpu_id", "pid", "prev_pid", "next_pid", "prev_prio", "next_prio", "prio", "target_cpu", "delta"}
"""Fields of those lines that are numbers, in whatever width they are printed."""

_STATES = {c: 1 << n for n, c in enumerate(b"SDTtXZPI")} | {ord("R"): 0, ord("+"): 256, ord("|"): 0}
"""Letters of prev_state (include/trace/events/sched.h; TASK_REPORT_MAX in include/linux/sched.h)."""
_PLUGIN_STATES = {c: 1 << n for n, c in enumerate(b"SDTtZXxW")} | {ord("R"): 0, ord("+"): 256, ord("|"): 0}
"""The same in trace-cmd's plugin (libtraceevent, plugins/plugin_sched_switch.c: write_state)."""

_SYSTEMS = (
    ("kvm_", "kvm"), ("vgic_", "kvm"), ("sched_", "sched"), ("hrtimer_", "timer"), ("timer_", "timer"),
    ("itimer_", "timer"), ("tick_stop", "timer"), ("irq_", "irq"), ("softirq_", "irq"), ("tasklet_", "irq"),
    ("cpu_idle", "power"), ("cpu_frequency", "power"), ("workqueue_", "workqueue"), ("ipi_", "ipi"),
    ("sys_enter", "raw_syscalls"), ("sys_exit", "raw_syscalls"), ("rcu_", "rcu"), ("function", "ftrace"),
)  # fmt: skip
_VECTORS = re.compile(r"(local_timer|reschedule|call_function(_single)?|x86_platform_ipi|irq_work)_(entry|exit)")


def system_of(name: str) -> str:
    """The system that an event of this name is of; "text" where the name does not tell."""
    if _VECTORS.fullmatch(name):
        return "irq_vectors"
    return next((system for prefix, system in _SYSTEMS if name.startswith(prefix)), "text")


def fields_of(name: str, raw: bytes, spans: Spans) -> tuple[dict[str, npt.NDArray[np.integer]], dict[str, Span]]:
    """The fields of all events called ``name``, whose texts are the ``spans`` (begin, end) of ``raw``.

    A field that some line does not have, or not as a number where others do, is left out, or a text.
    """
    columns = _known(_LINES[name], raw, spans) if name in _LINES else None
    if columns is None:
        columns = _pairs(raw, spans)
    integers: dict[str, npt.NDArray[np.integer]] = {}
    texts: dict[str, Span] = {}
    for field, places in columns.items():
        if field in ("line", "common_type", "common_pid"):
            continue
        values = [raw[a:b] for a, b in places]
        if field == "prev_state" and name == "sched_switch":
            begin, end = spans[0]
            letters = _STATES if b"prev_state=" in raw[begin:end] else _PLUGIN_STATES
            if all(c in letters for value in values for c in value):
                integers[field] = np.array([sum(letters[c] for c in value) for value in values], np.int64)
                continue
        numbers = _numbers(values, _CPU_NUMBER if field.endswith("cpu") or field in _DECIMAL else _NUMBER)
        if numbers is not None:
            integers[field] = numbers
        else:
            at = np.array(places, np.int64).reshape(-1, 2)
            texts[field] = at[:, 0], at[:, 1] - at[:, 0]
    return integers, texts


Columns = dict[str, list[tuple[int, int]]]


def _known(patterns: Sequence[re.Pattern[bytes]], raw: bytes, spans: Spans) -> Columns | None:
    """The groups of the first of the patterns that all lines match; None where none does."""
    for pattern in patterns:
        out: Columns = {group: [] for group in pattern.groupindex}
        for begin, end in spans:
            match = pattern.match(raw, begin, end)
            if match is None:
                break
            for group, places in out.items():
                places.append(match.span(group))
        else:
            return {g: places for g, places in out.items() if all(a >= 0 for a, _ in places)}
    return None


def _pairs(raw: bytes, spans: Spans) -> Columns:
    """``key=value`` wherever it stands: the keys that every line has."""
    out: Columns = {}
    for number, (begin, end) in enumerate(spans):
        seen = set()
        for match in _PAIR.finditer(raw, begin, end):
            key = match[1].decode()
            if key in seen or (number and key not in out) or (not number and len(out) >= MAX_FIELDS):
                continue
            seen.add(key)
            out.setdefault(key, []).append(match.span(2))
        if len(seen) < len(out):
            out = {key: places for key, places in out.items() if key in seen}
        if not out:
            break
    return out


def _numbers(values: Sequence[bytes], pattern: re.Pattern[bytes]) -> npt.NDArray[np.integer] | None:
    """The values as i64 or u64; None where they are not all numbers, or of no such range."""
    known: dict[bytes, int] = {}
    out = []
    for value in values:
        number = known.get(value)
        if number is None:
            if not pattern.fullmatch(value.removeprefix(b"-") if pattern is _CPU_NUMBER else value):
                return None
            number = known[value] = int(value, 16 if value.startswith(b"0x") else 10)
        out.append(number)
    low, high = min(out), max(out)
    if low < 0:
        return np.array(out, np.int64) if low >= -(1 << 63) and high < 1 << 63 else None
    return np.array(out, np.uint64) if high < 1 << 64 else None
