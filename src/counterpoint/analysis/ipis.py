"""Interrupts that a guest's CPUs send each other, by the guest's own recording: from ``ipi_raise`` to ``ipi_entry``.

Of arm64 (include/trace/events/ipi.h): an IPI is a bit of its CPU, set by each sender, so an entry answers all raises of
its reason to its CPU since the entry before it, and waited since the first. x86 tells of its IPIs by the host's
``kvm_apic_ipi``: see ``injections``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.analysis.placed import Placed, Rows, first_since
from counterpoint.clocks.counter import I64
from counterpoint.traces.columns import EventBatch
from counterpoint.traces.formats import Field

MAX_MASK = 1 << 26
"""Bytes of all CPU masks that are looked at: 64 CPUs take 8 in each event."""


@dataclass(frozen=True, slots=True)
class Ipis:
    """IPIs whose two ends are certain. ``sender``, ``cpu`` i64[n]: the CPUs; ``reason`` i64[n]: its name's address.

    ``raised``, ``entered`` i64[n]: times from the timeline's base; ``width`` i64[n]: of the bound of their distance.
    """

    sender: I64
    cpu: I64
    reason: I64
    raised: I64
    entered: I64
    width: I64

    def __len__(self) -> int:
        """Number of IPIs."""
        return len(self.cpu)


def ipis(placed: Placed, width: I64) -> Ipis | None:
    """The IPIs of a guest; None where it did not record ipi_raise or ipi_entry.

    ``width`` i64: of the bounds of all its events.
    """
    raised = placed.of("ipi", "ipi_raise", ("reason",), proved=True)
    entered = placed.of("ipi", "ipi_entry", ("reason",), proved=True)
    if raised is None or entered is None:
        return None
    at, target = _targets(placed, raised)
    reasons = np.unique(np.r_[raised["reason"], entered["reason"]])
    key = target * max(len(reasons), 1) + np.searchsorted(reasons, raised["reason"][at])
    answered = entered.cpu * max(len(reasons), 1) + np.searchsorted(reasons, entered["reason"])
    request, before = first_since(key, raised.when[at], answered, entered.when)
    found = np.flatnonzero(request >= 0)
    first, previous = at[request[found]], before[found]
    widths = width[raised.row[first]], width[entered.row[found]]
    bound = np.where(raised.cpu[first] == entered.cpu[found], 0, widths[0] + widths[1])
    good = (widths[0] >= 0) & (widths[1] >= 0)
    # which of the two came first, at both ends, has to be beyond doubt
    good &= entered.when[found] - bound > raised.when[first]
    good &= entered.when[previous] + bound < raised.when[first]
    good &= ~placed.lost_within(entered.when[previous], entered.when[found])
    found, first, bound = found[good], first[good], bound[good]
    return Ipis(
        raised.cpu[first], entered.cpu[found], entered["reason"][found], raised.when[first], entered.when[found], bound
    )


def _targets(placed: Placed, raised: Rows) -> tuple[I64, I64]:
    """The CPUs of each event's mask: places among ``raised`` i64[k], and CPUs i64[k]."""
    event = placed.recording.format_named("ipi", "ipi_raise")
    field: Field | None = event.field("target_cpus") if event else None
    none = np.zeros(0, np.int64)
    if event is None or field is None or field.kind not in ("array", "bytes") or not len(raised):
        return none, none
    batch: EventBatch = placed.recording.batch(event, raised.row)
    try:
        data, ends = batch.gathered(field, MAX_MASK)
    except OverflowError:
        return none, none
    # longs of the kernel's byte order: bit n of long k is CPU 64 k + n
    size = np.diff(ends)
    owner = np.repeat(np.arange(len(size)), size)
    byte = np.arange(len(data)) - np.repeat(ends[:-1], size)
    if placed.recording.big_endian:
        long = placed.recording.long_size
        byte = byte // long * long + (long - 1 - byte % long)
    bits = np.unpackbits(data[:, None], axis=1, bitorder="little")
    which, bit = np.nonzero(bits)
    return owner[which], byte[which] * 8 + bit
