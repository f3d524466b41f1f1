"""Counterpoint: the kernel traces of a KVM host and its guests on one timeline, exactly, with proof.

    import counterpoint

    result = counterpoint.sync("host.dat", "guest.dat")
    for vcpu in result.guests[0].vcpus:
        print(vcpu.guest_cpu, vcpu.host_tid, vcpu.verdict, vcpu.epochs[0].offset, vcpu.epochs[0].feasible)
    timeline = result.timeline
    print(timeline.ts_ns, timeline.machine, timeline.cpu, timeline.pid)

    answers = result.maps.to_host(stamps, "guest", cpu=0)     # u64 arrays; the same of read_map("map.json")
    print(answers.stamp, answers.earliest, answers.latest, answers.status)

Names are imported when first used: ``import counterpoint`` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from counterpoint._version import __version__
from counterpoint.errors import BadFileError, CounterpointError, UsageError

if TYPE_CHECKING:
    from counterpoint.claims.model import Claim
    from counterpoint.clocks.answers import Answers, Status
    from counterpoint.clocks.machines import Maps
    from counterpoint.clocks.maps import ClockMap, Epoch
    from counterpoint.clocks.pairs import ClockPair
    from counterpoint.clocks.rate import Rate
    from counterpoint.clocks.wall import Wall
    from counterpoint.proof.verdicts import ClaimProof, EpochProof, VcpuProof, Verdict, Witness
    from counterpoint.timeline.maps import read_map
    from counterpoint.timeline.merge import Machine, Timeline
    from counterpoint.timeline.proving import GuestProof
    from counterpoint.timeline.sync import SyncResult, sync
    from counterpoint.traces.recording import Recording

_HOMES = {
    "Answers": "clocks.answers",
    "Claim": "claims.model",
    "ClaimProof": "proof.verdicts",
    "ClockMap": "clocks.maps",
    "ClockPair": "clocks.pairs",
    "Epoch": "clocks.maps",
    "EpochProof": "proof.verdicts",
    "GuestProof": "timeline.proving",
    "Machine": "timeline.merge",
    "Maps": "clocks.machines",
    "Rate": "clocks.rate",
    "Recording": "traces.recording",
    "Status": "clocks.answers",
    "SyncResult": "timeline.sync",
    "Timeline": "timeline.merge",
    "VcpuProof": "proof.verdicts",
    "Verdict": "proof.verdicts",
    "Wall": "clocks.wall",
    "Witness": "proof.verdicts",
    "read_map": "timeline.maps",
    "sync": "timeline.sync",
}

__all__ = [
    "Answers",
    "BadFileError",
    "Claim",
    "ClaimProof",
    "ClockMap",
    "ClockPair",
    "CounterpointError",
    "Epoch",
    "EpochProof",
    "GuestProof",
    "Machine",
    "Maps",
    "Rate",
    "Recording",
    "Status",
    "SyncResult",
    "Timeline",
    "UsageError",
    "VcpuProof",
    "Verdict",
    "Wall",
    "Witness",
    "__version__",
    "read_map",
    "sync",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'counterpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"counterpoint.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
