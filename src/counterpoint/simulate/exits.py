"""Exit reasons, by architecture."""

from __future__ import annotations

from typing import Any

import numpy as np

from counterpoint.clocks.counter import I64, U64, Bools
from counterpoint.simulate.plan import (
    Plan,
)
from counterpoint.simulate.schedule import (
    FAST,
    HALT,
    INTERRUPT,
    KERNEL,
    USER,
)

_REASONS = {
    48: {FAST: 32, KERNEL: 48, USER: 30, INTERRUPT: 1, HALT: 12, "enter": 24},
    32: {FAST: 0x7C, KERNEL: 0x400, USER: 0x7B, INTERRUPT: 0x60, HALT: 0x78, "enter": 0x80},
}
_CLASSES = {FAST: 24, KERNEL: 36, USER: 36, INTERRUPT: 0, HALT: 1, "enter": 26}
KERNEL_TEXT = 0xFFFFFFFF81000000


def exit_values(plan: Plan, reason: I64, entering: Bools, vcpu: I64, rip: U64) -> dict[str, Any]:
    """The fields of a kvm_exit: reason by architecture."""
    options = plan.options
    names: dict[Any, int] = _REASONS[options.frac] if options.arch == "x86" else _CLASSES
    table = np.array([names[FAST], names[KERNEL], names[USER], names[INTERRUPT], names[HALT], names["enter"]], np.int64)
    code = table[np.where(entering, 5, reason)]
    if options.arch == "arm64":
        return {"ret": np.where(reason == INTERRUPT, 0, 2), "esr_ec": code, "vcpu_pc": rip}
    return {"exit_reason": code, "guest_rip": rip, "isa": 1 if options.frac == 48 else 2, "vcpu_id": vcpu}


def rips(rng: np.random.Generator, count: int) -> U64:
    """Addresses in the kernel's text, u64[count]."""
    return np.uint64(KERNEL_TEXT) + rng.integers(0, 1 << 24, count, dtype=np.uint64)
