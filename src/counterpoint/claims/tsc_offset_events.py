"""Claims of the host's ``kvm:kvm_write_tsc_offset`` events (arch/x86/kvm/trace.h).

Each write names the L1 offset before and after it: from it on ``next_tsc_offset`` holds until the next write,
before it ``previous_tsc_offset`` did. The event carries a vCPU id but no VM: the writing thread tells, where it
is the vCPU's own; the id tells where only one thread of the host runs a vCPU of that id.

A vCPU that is created has 0 before its first write, and a VMM that restores one may write twice before it runs. What
held while the vCPU did not run is no claim: no event of the guest can speak of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import I64, relative, to_signed
from counterpoint.traces.recording import Recording

SOURCE = "kvm_write_tsc_offset"


def claims_of(host: Recording, vcpu_ids: Mapping[int, int]) -> list[Claim]:
    """Return the claims of all writes in ``host``, thread by thread, in time order.

    ``vcpu_ids`` is what is known of the vCPU threads: vCPU id by tid. A write that may be of several vCPUs is left out.
    """
    if host.unit != "ticks":
        # an offset in TSC ticks says nothing of stamps in another unit without the two clocks' rates
        return []
    event = host.format_named("kvm", "kvm_write_tsc_offset")
    rows = host.rows(event)
    if event is None or not len(rows):
        return []
    rows = rows[np.argsort(host.stamp[rows], kind="stable")]
    try:
        ids = host.column(event, "vcpu_id", rows).tolist()
        before = host.column(event, "previous_tsc_offset", rows).tolist()
        after = host.column(event, "next_tsc_offset", rows).tolist()
    except KeyError:
        return []
    stamps, pids = host.stamp[rows].tolist(), host.pid[rows].tolist()
    writes: dict[int, list[tuple[int, int, int]]] = {}
    for vcpu, pid, stamp, previous, following in zip(ids, pids, stamps, before, after, strict=True):
        tid = _thread(pid, vcpu, vcpu_ids)
        if tid is not None:
            writes.setdefault(tid, []).append((stamp, to_signed(previous), to_signed(following)))
    claims = []
    for tid, changes in writes.items():
        ran = _Ran.of(host, tid)
        edge: int | None = None
        held: int | None = None
        for stamp, previous, following in changes:
            # a write between the two was lost where they disagree: nobody says what held when
            if held in (None, previous):
                seen, unseen = ran.between(edge, stamp)
                if seen or (unseen and (held is not None or previous)):
                    claims.append(Claim(SOURCE, previous, tid=tid, host_from=edge, host_to=stamp))
                elif not unseen:
                    # the next value may as well have held since
                    held = following
                    continue
            edge, held = stamp, following
        claims.append(Claim(SOURCE, changes[-1][2], tid=tid, host_from=edge))
    return claims


@dataclass(frozen=True, slots=True)
class _Ran:
    """When a thread entered or left guest mode: stamps i64 from the base of ``host``, in order; None: never seen."""

    host: Recording
    stamps: I64 | None

    @classmethod
    def of(cls, host: Recording, tid: int) -> _Ran:
        """Look at the thread's kvm_entry and kvm_exit."""
        rows = np.concatenate([host.rows(host.format_named("kvm", name)) for name in ("kvm_entry", "kvm_exit")])
        rows = rows[host.pid[rows] == tid]
        return cls(host, np.sort(relative(host.stamp[rows], host.base)) if len(rows) else None)

    def between(self, begin: int | None, end: int) -> tuple[bool, bool]:
        """Whether the vCPU ran from host stamp ``begin`` (None: ever) to before ``end``; and whether it may have."""
        if self.stamps is None:
            return True, True
        unseen = self._any(self.host.lost_after, begin, end)
        unseen |= self.host.unseen_until > (0 if begin is None else to_signed(begin - self.host.base))
        return self._any(self.stamps, begin, end), unseen

    def _any(self, stamps: I64, begin: int | None, end: int) -> bool:
        first = 0 if begin is None else int(np.searchsorted(stamps, to_signed(begin - self.host.base)))
        return first < len(stamps) and int(stamps[first]) < to_signed(end - self.host.base)


def _thread(pid: int, vcpu: int, vcpu_ids: Mapping[int, int]) -> int | None:
    """The thread of the vCPU that ``pid`` wrote for."""
    # a kernel whose kvm_entry has no vCPU id leaves only the writer
    if vcpu_ids.get(pid) == vcpu or not vcpu_ids:
        return pid
    tids = [tid for tid, number in vcpu_ids.items() if number == vcpu]
    return tids[0] if len(tids) == 1 else None
