"""Claims of a guest file's TIME_SHIFT option (trace-cmd's time synchronisation).

The option's offset is what is *added* to a guest stamp to reach host time: the negated KVM offset
(lib/trace-cmd/trace-timesync-kvm.c). Each distinct sample is a claim of its own: trace-cmd's "ptp" protocol
measures by messages, and one bad sample must not hide among good ones.
"""

from __future__ import annotations

from counterpoint.claims.model import Claim
from counterpoint.traces.options import INTERPOLATE
from counterpoint.traces.recording import Recording

SOURCE = "time_shift"

# trace-cmd writes an unscaled guest as (1, 0); KVM's own defaults are 1 << 32 (AMD) and 1 << 48 (Intel)
_UNSCALED = {(1, 0), (1 << 32, 32), (1 << 48, 48)}


def claims_of(guest: Recording, host: Recording) -> tuple[list[Claim], list[str]]:
    """Return the claims of ``guest``'s TIME_SHIFT and warnings; none where its peer is another recording."""
    shift = guest.options.time_shift
    if shift is None:
        return [], []
    if host.options.trace_id is not None and shift.peer_trace_id != host.options.trace_id:
        return [], [
            f"{guest.name}: its TIME_SHIFT was made with the recording of trace id {shift.peer_trace_id:#x},"
            f" not with {host.name} ({host.options.trace_id:#x}): left out"
        ]
    protocol = "ptp" if shift.flags & INTERPOLATE else "kvm"
    claims = []
    for cpu, samples in enumerate(shift.cpus):
        seen: set[tuple[int, int, int]] = set()
        for sample in samples:
            key = (sample.offset, sample.scaling, sample.frac)
            if key in seen:
                continue
            seen.add(key)
            scaled = (sample.scaling, sample.frac) not in _UNSCALED and sample.scaling != 0
            claims.append(
                Claim(
                    SOURCE,
                    -sample.offset,
                    guest_cpu=cpu,
                    ratio=sample.scaling if scaled else 1,
                    frac_bits=sample.frac if scaled else 0,
                    detail=f"{protocol} sample at guest stamp {sample.time}",
                )
            )
    return claims, []
