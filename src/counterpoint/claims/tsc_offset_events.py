"""Claims of the host's ``kvm:kvm_write_tsc_offset`` events (arch/x86/kvm/trace.h).

Each write names the L1 offset before and after it: from it on ``next_tsc_offset`` holds until the next write,
before it ``previous_tsc_offset`` did. The event carries a vCPU id but no VM: the writing thread tells, where it
is a vCPU's own.
"""

from __future__ import annotations

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import to_signed
from counterpoint.traces.recording import Recording

SOURCE = "kvm_write_tsc_offset"


def claims_of(host: Recording) -> list[Claim]:
    """Return the claims of all writes in ``host``, writer by writer, in time order."""
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
    writes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for vcpu, pid, stamp, previous, following in zip(ids, pids, stamps, before, after, strict=True):
        writes.setdefault((pid, vcpu), []).append((stamp, to_signed(previous), to_signed(following)))
    claims = []
    for (pid, vcpu), changes in writes.items():
        edge: int | None = None
        held: int | None = None
        for stamp, previous, following in changes:
            # a write between the two was lost where they disagree: nobody says what held when
            if held in (None, previous):
                claims.append(_claim(pid, vcpu, previous, edge, stamp))
            edge, held = stamp, following
        claims.append(_claim(pid, vcpu, changes[-1][2], edge, None))
    return claims


def _claim(pid: int, vcpu: int, offset: int, begin: int | None, end: int | None) -> Claim:
    return Claim(SOURCE, offset, tid=pid, vcpu_id=vcpu, host_from=begin, host_to=end)
