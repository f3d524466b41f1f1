"""Claims of the host's ``kvm:kvm_write_tsc_offset`` events (arch/x86/kvm/trace.h).

Each write names the L1 offset before and after it: from it on ``next_tsc_offset`` holds until the next write,
before it ``previous_tsc_offset`` did. The event carries a vCPU id but no VM: the writing thread tells, where it
is the vCPU's own; the id tells where only one thread of the host runs a vCPU of that id.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import to_signed
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
        edge: int | None = None
        held: int | None = None
        for stamp, previous, following in changes:
            # a write between the two was lost where they disagree: nobody says what held when
            if held in (None, previous):
                claims.append(Claim(SOURCE, previous, tid=tid, host_from=edge, host_to=stamp))
            edge, held = stamp, following
        claims.append(Claim(SOURCE, changes[-1][2], tid=tid, host_from=edge))
    return claims


def _thread(pid: int, vcpu: int, vcpu_ids: Mapping[int, int]) -> int | None:
    """The thread of the vCPU that ``pid`` wrote for."""
    # a kernel whose kvm_entry has no vCPU id leaves only the writer
    if vcpu_ids.get(pid) == vcpu or not vcpu_ids:
        return pid
    tids = [tid for tid, number in vcpu_ids.items() if number == vcpu]
    return tids[0] if len(tids) == 1 else None
