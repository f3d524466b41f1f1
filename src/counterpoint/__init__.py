"""Counterpoint: the kernel traces of a KVM host and its guests on one timeline, exactly, with proof.

    import counterpoint

    result = counterpoint.sync("host.dat", "guest.dat")
    for vcpu in result.guests[0].vcpus:
        print(vcpu.guest_cpu, vcpu.host_tid, vcpu.verdict, vcpu.epochs[0].offset, vcpu.epochs[0].feasible)
    timeline = result.timeline
    print(timeline.ts_ns, timeline.machine, timeline.cpu, timeline.pid)

Names are imported when first used: ``import counterpoint`` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from counterpoint._version import __version__
from counterpoint.errors import BadFileError, CounterpointError, UsageError

if TYPE_CHECKING:
    from counterpoint.claims.model import Claim
    from counterpoint.clocks.maps import ClockMap, Epoch
    from counterpoint.clocks.rate import Rate
    from counterpoint.proof.verdicts import ClaimProof, EpochProof, VcpuProof, Verdict, Witness
    from counterpoint.timeline.merge import Machine, Timeline
    from counterpoint.timeline.sync import GuestProof, SyncResult, sync
    from counterpoint.traces.recording import Recording

_HOMES = {
    "Claim": "claims.model",
    "ClaimProof": "proof.verdicts",
    "ClockMap": "clocks.maps",
    "Epoch": "clocks.maps",
    "EpochProof": "proof.verdicts",
    "GuestProof": "timeline.sync",
    "Machine": "timeline.merge",
    "Rate": "clocks.rate",
    "Recording": "traces.recording",
    "SyncResult": "timeline.sync",
    "Timeline": "timeline.merge",
    "VcpuProof": "proof.verdicts",
    "Verdict": "proof.verdicts",
    "Witness": "proof.verdicts",
    "sync": "timeline.sync",
}

__all__ = [
    "BadFileError",
    "Claim",
    "ClaimProof",
    "ClockMap",
    "CounterpointError",
    "Epoch",
    "EpochProof",
    "GuestProof",
    "Machine",
    "Rate",
    "Recording",
    "SyncResult",
    "Timeline",
    "UsageError",
    "VcpuProof",
    "Verdict",
    "Witness",
    "__version__",
    "sync",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'counterpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"counterpoint.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
