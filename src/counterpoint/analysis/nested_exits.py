"""Which level an exit is of, where a guest has guests: who caused it, and who had to handle it.

A vCPU thread runs its guest L1 or, for L1, the nested L2; its host L0 alone switches between the two, between an exit
and the next entry, and tells of that: on x86 as ``proof.levels`` has it; on arm64 by ``kvm_nested_eret``, L1's ERET to
L2 (or to its own user space, where it returns with HCR_EL2.TGE set), and ``kvm_inject_nested_exception``, by which L1
goes on (arch/arm64/kvm/emulate-nested.c: kvm_emulate_nested_eret, kvm_inject_nested). What L0 handles of its own
accord without leaving its exit path has neither, and does not change the level.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed, Rows
from counterpoint.analysis.steps import step_at
from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.levels import sides
from counterpoint.proof.windows import HostActivity

_TGE = 1 << 27
"""HCR_EL2.TGE: what is returned to is the hypervisor's own user space (arch/arm64/include/asm/kvm_arm.h)."""


class Level(IntEnum):
    """Whose an exit is, and who handles it."""

    UNKNOWN = 0
    """Not known: events are missing, or the recording has none that would tell."""
    OWN = 1
    """The guest's own, handled by its host."""
    ENTERS = 2
    """The guest's own, by which it runs its guest: VMLAUNCH, VMRESUME, VMRUN, ERET."""
    BELOW = 3
    """Of the guest's guest, handled by the host alone: the guest does not learn of it."""
    REFLECTED = 4
    """Of the guest's guest, and the guest has to handle it, or an interrupt of its own that came with it."""
    BOUNCED = 5
    """The guest's own, by which it would run its guest: something for itself came first, and its guest did not run."""


class Nesting:
    """The switches between levels that a host's recording tells of."""

    def __init__(self, placed: Placed, activity: HostActivity) -> None:
        """``activity``: of the same recording."""
        self._placed = placed
        self._activity = activity
        self._is_arm = placed.is_listed("kvm", "kvm_nested_eret")
        x86 = any(placed.is_listed("kvm", name) for name in ("kvm_nested_vmenter", "kvm_nested_vmrun"))
        self.is_listed = x86 or self._is_arm
        """Whether the recording was to hold such switches."""
        if self._is_arm:
            to_l2, to_l1 = [self._of("kvm_nested_eret", "hcr_el2")], [self._of("kvm_inject_nested_exception")]
            to_l2 = [each.take((each["hcr_el2"] & _TGE) == 0) for each in to_l2 if each is not None]
        else:
            to_l2 = [self._of("kvm_nested_vmenter"), self._of("kvm_nested_vmrun")]
            to_l1 = [self._of("kvm_nested_vmexit_inject")]
        self._to_l2, self._to_l1 = _joined(to_l2), _joined(to_l1)
        self.any = bool(len(self._to_l2[0]) or len(self._to_l1[0]))
        """Whether there is any."""

    def _of(self, name: str, *fields: str) -> Rows | None:
        return self._placed.of("kvm", name, fields)

    def levels(self, tid: int, exit_row: I64, when: I64, ended: I64) -> npt.NDArray[np.uint8]:
        """A ``Level`` u8[n] of each exit of thread ``tid``: its row, its time, and that of the kvm_entry after it.

        ``ended`` is before ``when`` where no such entry was seen.
        """
        if not self.is_listed:
            return np.full(len(when), Level.UNKNOWN, np.uint8)
        to_l2, to_l1 = (at[pid == tid] for at, pid in (self._to_l2, self._to_l1))
        if not len(to_l2) and not len(to_l1):
            return np.full(len(when), Level.OWN, np.uint8)
        own, nested = self._arm(when, to_l2, to_l1) if self._is_arm else self._x86(tid, exit_row)
        seen = ended >= when
        left = np.searchsorted(to_l1, ended, side="right") > np.searchsorted(to_l1, when)
        entered = np.searchsorted(to_l2, ended, side="right") > np.searchsorted(to_l2, when)
        out = np.full(len(when), Level.UNKNOWN, np.uint8)
        out[own & seen & ~entered] = Level.OWN
        out[own & seen & entered] = np.where(left, Level.BOUNCED, Level.ENTERS)[own & seen & entered]
        out[nested & seen & ~left] = Level.BELOW
        out[nested & seen & left] = Level.REFLECTED
        return out

    def _x86(self, tid: int, exit_row: I64) -> tuple[Bools, Bools]:
        """Which exits are surely the guest's own, and which its guest's."""
        windows = self._activity.windows(tid)
        side = np.zeros((2, len(self._placed.recording) + 1), np.bool_)
        for line, each in zip(side, sides(windows, self._placed.recording), strict=True):
            line[windows.exit_row[each & (windows.exit_row >= 0)]] = True
        return side[0][exit_row], side[1][exit_row]

    def _arm(self, when: I64, to_l2: I64, to_l1: I64) -> tuple[Bools, Bools]:
        """The same by the switches themselves."""
        marks = np.r_[to_l2, to_l1]
        nested = np.repeat(np.array([True, False]), [len(to_l2), len(to_l1)])
        order = np.argsort(marks, kind="stable")
        marks, nested = marks[order], nested[order]
        at = step_at(marks, when)
        # before the first mark: an ERET is L1's
        first = (at < 0) & bool(nested[0])
        since = np.where(at >= 0, marks[at], np.where(first, when, 0))
        known = ((at >= 0) | first) & ~self._placed.lost_within(since, np.where(first, marks[0], when))
        in_l2 = (at >= 0) & nested[at]
        return known & ~in_l2, known & in_l2


def _joined(rows: list[Rows | None]) -> tuple[I64, I64]:
    """(when, pid) of several kinds of events, in order of time."""
    some = [each for each in rows if each is not None]
    when = np.concatenate([np.zeros(0, np.int64), *(each.when for each in some)])
    pid = np.concatenate([np.zeros(0, np.int64), *(each.pid for each in some)])
    order = np.argsort(when, kind="stable")
    return when[order], pid[order]
