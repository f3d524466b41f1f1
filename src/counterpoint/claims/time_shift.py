"""Claims of a guest file's TIME_SHIFT option (trace-cmd's time synchronisation).

The option's offset is what is *added* to a guest stamp to reach host time: the negated KVM offset
(lib/trace-cmd/trace-timesync-kvm.c). Its "kvm" protocol reads the offset itself now and then: between two samples that
differ it changed, at a time that nobody says. Its "ptp" protocol measures by messages: each distinct sample is a
claim about all of the recording, so that one bad sample does not hide among good ones.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import MASK, to_signed
from counterpoint.clocks.scaling import Scale
from counterpoint.traces.options import INTERPOLATE, TimeSample
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
        if shift.flags & INTERPOLATE:
            distinct = list({(s.offset, s.scaling, s.frac): s for s in reversed(samples)}.values())[::-1]
            claims += [_claim(cpu, sample, protocol, None, None) for sample in distinct]
            continue
        # by host time: a guest counter that steps back takes its stamps with it
        if len(host):
            zero = int(host.stamp[0])
            samples = tuple(sorted(samples, key=lambda s: to_signed(s.time + s.offset - zero)))
        runs = [list(run) for _, run in groupby(samples, key=lambda s: (s.offset, s.scaling, s.frac))]
        # a sample's time is the guest's
        zero = int(host.stamp[0]) if len(host) else 0
        seen = [(_host_time(run[0], zero), _host_time(run[-1], zero)) for run in runs]
        for index, run in enumerate(runs):
            first, last = index == 0, index == len(runs) - 1
            claims.append(
                replace(
                    _claim(
                        cpu,
                        run[0],
                        protocol,
                        None if first else seen[index - 1][1],
                        None if last else seen[index + 1][0],
                    ),
                    first_seen=None if first else seen[index][0],
                    last_seen=None if last else seen[index][1],
                )
            )
    return claims, []


def _host_time(sample: TimeSample, near: int) -> int:
    """The host stamp at which a sample was taken, near the host stamp ``near``, by its own word."""
    scaled = (sample.time + sample.offset) & MASK
    return _scale(sample).inverse_int(scaled, near)[0]


def _scale(sample: TimeSample) -> Scale:
    scaled = (sample.scaling, sample.frac) not in _UNSCALED and sample.scaling != 0
    return Scale(sample.scaling, sample.frac) if scaled else Scale()


def _claim(cpu: int, sample: TimeSample, protocol: str, host_from: int | None, host_to: int | None) -> Claim:
    scale = _scale(sample)
    return Claim(
        SOURCE,
        -sample.offset,
        guest_cpu=cpu,
        host_from=host_from,
        host_to=host_to,
        ratio=scale.ratio,
        frac_bits=scale.frac_bits,
        detail=f"{protocol} sample at guest stamp {sample.time}",
        guest_at=sample.time,
    )
