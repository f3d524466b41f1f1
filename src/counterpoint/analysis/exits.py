"""The names of exits, as the recording's own print formats have them."""

from __future__ import annotations

import re

import numpy as np

from counterpoint.clocks.counter import I64, Bools
from counterpoint.traces.distinct import distinct_rows
from counterpoint.traces.printing import PrintFormat, Symbols, compile_print
from counterpoint.traces.recording import Recording

# the fields that tell one reason from another (arch/x86/kvm/trace.h, arch/arm64/kvm/trace_arm.h, virt/kvm)
_TELLING = ("exit_reason", "isa", "ret", "esr_ec", "reason", "errno", "scause", "code")
_X86 = re.compile(r"reason (\S+)")
_ARM64 = re.compile(r"(\w+): HSR_EC: \S+ \(([^)]*)\)")

HALTS = ("hlt", "wfx")
"""Exits by which a guest says that it has nothing to do: HLT of x86 (VMX and SVM), WFI of arm64 (WFx: HSR_EC 0x01)."""


class ExitNames:
    """The reasons of one recording's kvm_exit and kvm_userspace_exit events."""

    def __init__(self, recording: Recording) -> None:
        """Nothing is read yet."""
        self._recording = recording
        self._symbols = Symbols(
            recording.kallsyms, recording.printk_formats, long_size=recording.long_size, big_endian=recording.big_endian
        )
        self._formats: dict[int, PrintFormat] = {}

    def of(self, rows: I64) -> tuple[I64, list[str]]:
        """The names of the events at ``rows`` i64[n]: an index i64[n] into distinct names; -1 where the row is -1."""
        index = np.full(len(rows), -1, np.int64)
        names: dict[str, int] = {}
        kinds = np.where(rows >= 0, self._recording.event_id[rows].astype(np.int64), -1)
        for event_id in np.flatnonzero(np.bincount(kinds[kinds >= 0])).tolist():
            mine = np.flatnonzero(kinds == event_id)
            code, texts = self._of_kind(event_id, rows[mine])
            numbers = np.array([names.setdefault(text, len(names)) for text in texts], np.int64)
            index[mine] = numbers[code]
        return index, list(names)

    def _of_kind(self, event_id: int, rows: I64) -> tuple[I64, list[str]]:
        event = self._recording.formats.get(event_id)
        if event is None:
            return np.zeros(len(rows), np.int64), [self._recording.event_name(event_id)]
        telling = [
            f.name for f in event.fields if f.name in _TELLING and f.kind == "int" and not f.dynamic and f.size <= 8
        ]
        columns = [self._recording.column(event, name, rows).astype(np.int64) for name in telling]
        first, code = distinct_rows(np.stack(columns or [np.zeros(len(rows), np.int64)], axis=1).view(np.uint64))
        if event_id not in self._formats:
            self._formats[event_id] = compile_print(event, self._symbols)
        texts = self._formats[event_id].render(self._recording.batch(event, rows[first]))
        return code, [_reason(text) or event.name for text in texts]


def _reason(text: str) -> str | None:
    if found := _ARM64.match(text):
        return found[2] if found[1] == "TRAP" else found[1]
    found = _X86.search(text)
    return found[1].removeprefix("KVM_EXIT_") if found else None


def is_halt(index: I64, names: list[str]) -> Bools:
    """Of what ``ExitNames.of`` returns: which are exits of a guest that has nothing to do."""
    halts = np.array([name.lower() in HALTS for name in names] + [False], np.bool_)
    found: Bools = halts[index]
    return found
