"""Interrupts that a guest's CPUs send each other, by the guest's own recording: from ``ipi_raise`` to ``ipi_entry``.

Of arm64 (include/trace/events/ipi.h): an IPI is a bit of its CPU, set by each sender, so an entry answers all raises of
its reason to its CPU since the entry before it, and waited since the first. x86 tells of its IPIs by the host's
``kvm_apic_ipi``: see ``injections``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.analysis.placed import Placed, Rows, first_since
from counterpoint.clocks.counter import I64, Bools

MAX_MASKS = 1 << 28
"""Bytes of all CPU masks that are read: 64 CPUs take 8 in each event."""


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
    masks = _masks(placed, raised)
    if masks is None:
        return None
    parts = [
        _to_cpu(placed, width, raised.take(_has(placed, masks, cpu)), entered.take(entered.cpu == cpu))
        for cpu in np.unique(entered.cpu).tolist()
    ]
    columns = (
        [getattr(part, name) for part in parts] for name in ("sender", "cpu", "reason", "raised", "entered", "width")
    )
    return Ipis(*(np.concatenate([np.zeros(0, np.int64), *each]) for each in columns))


def _to_cpu(placed: Placed, width: I64, raised: Rows, entered: Rows) -> Ipis:
    """The IPIs to one CPU."""
    request, before = first_since(raised["reason"], raised.when, entered["reason"], entered.when)
    found = np.flatnonzero(request >= 0)
    first, previous = request[found], before[found]
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


def _masks(placed: Placed, raised: Rows) -> tuple[npt.NDArray[np.uint8], I64] | None:
    """The bytes of all events' masks and where each begins; None where they cannot be read."""
    event = placed.recording.format_named("ipi", "ipi_raise")
    field = event.field("target_cpus") if event else None
    if event is None or field is None or field.kind not in ("array", "bytes"):
        return None
    try:
        return placed.recording.batch(event, raised.row).gathered(field, MAX_MASKS)
    except OverflowError:
        return None


def _has(placed: Placed, masks: tuple[npt.NDArray[np.uint8], I64], cpu: int) -> Bools:
    """Which of the masks hold a CPU: they are longs of the kernel's byte order, bit n of long k is CPU 64 k + n."""
    data, ends = masks
    long = placed.recording.long_size
    byte = cpu // 8
    if placed.recording.big_endian:
        byte = byte // long * long + (long - 1 - byte % long)
    there = ends[:-1] + byte < ends[1:]
    out = np.zeros(len(there), np.bool_)
    out[there] = data[ends[:-1][there] + byte] >> np.uint8(cpu % 8) & 1
    return out
