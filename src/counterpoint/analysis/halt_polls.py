"""How a host's halts of its vCPUs ended: while KVM polled for something to do, or after the thread had slept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed
from counterpoint.analysis.steps import step_at
from counterpoint.clocks.counter import I64, Bools


@dataclass(frozen=True, slots=True)
class Halts:
    """Each kvm_vcpu_wakeup of a host, in order of thread and time.

    ``tid``, ``when`` i64[n]; ``ns`` i64[n]: how long KVM waited, polling and asleep; ``slept`` bool[n]: the thread went
    to sleep. ``poll_ns`` i64[n]: how long KVM was to poll before that, -1: not known.
    """

    tid: I64
    when: I64
    ns: I64
    slept: Bools
    poll_ns: I64

    def __len__(self) -> int:
        """Number of halts."""
        return len(self.tid)


def halts(placed: Placed) -> Halts | None:
    """The halts of all vCPU threads; None where kvm_vcpu_wakeup was not recorded."""
    rows = placed.of("kvm", "kvm_vcpu_wakeup", ("ns", "waited"))
    if rows is None:
        return None
    order = np.lexsort((rows.row, rows.when, rows.pid))
    rows = rows.take(order)
    return Halts(rows.pid, rows.when, rows["ns"], rows["waited"] != 0, _polls(placed, rows.pid, rows.when))


def _polls(placed: Placed, tid: I64, when: I64) -> npt.NDArray[np.int64]:
    """What each vCPU was to poll for, by the changes that kvm_halt_poll_ns tells.

    KVM changes it at the end of a halt, before it tells of the halt (kvm_vcpu_halt, virt/kvm/kvm_main.c): what held for
    a halt is what a change after the thread's wakeup before began with, or else what the last change made of it.
    """
    out = np.full(len(when), -1, np.int64)
    changes = placed.of("kvm", "kvm_halt_poll_ns", ("new", "old"))
    if changes is None:
        return out
    for thread in np.unique(changes.pid).tolist():
        mine, change = np.flatnonzero(tid == thread), changes.take(changes.pid == thread)
        if not len(mine):
            continue
        at = step_at(change.when, when[mine])
        previous = np.r_[-(1 << 62), when[mine][:-1]]
        own = (at >= 0) & (change.when[at] > previous)
        # of two in one halt the first began with what held
        first = np.minimum(np.searchsorted(change.when, previous, side="right"), len(change) - 1)
        held = np.where(own, change["old"][first], np.where(at >= 0, change["new"][at], change["old"][0]))
        lost = placed.lost_within(np.where(at >= 0, change.when[at], when[mine]), when[mine])
        out[mine] = np.where(
            lost | ((at < 0) & placed.lost_within(when[mine], change.when[:1].repeat(len(mine)))), -1, held
        )
    return out
