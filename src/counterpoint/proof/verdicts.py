"""What a proof says: verdicts, witnesses, epochs, claims, vCPUs. All stamps are trace-clock values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.band import Band
from counterpoint.clocks.counter import I64, U64, Bools, relative
from counterpoint.clocks.maps import ClockMap, Epoch
from counterpoint.clocks.scaling import Scale


class Verdict(StrEnum):
    """The outcome for an epoch, a claim or a vCPU."""

    PROVED = "proved"
    DERIVED = "derived"
    UNBOUNDED = "unbounded"
    AMBIGUOUS = "ambiguous"
    REFUTED = "refuted"

    @property
    def is_sound(self) -> bool:
        """Whether the map may be used without doubt."""
        return self in (Verdict.PROVED, Verdict.DERIVED)


_SEVERITY = {verdict: rank for rank, verdict in enumerate(Verdict)}


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of ``verdicts``; ``unbounded`` where there is none."""
    return max(verdicts, key=_SEVERITY.__getitem__, default=Verdict.UNBOUNDED)


@dataclass(frozen=True, slots=True)
class Witness:
    """A guest event and the host span it must lie in: together they bound the offset on one side.

    The span is [``host_from``, ``host_to``] in host stamps, None where it is open; ``host_from_event`` and
    ``host_to_event`` name the host events at its ends ("" where it ends at something unseen).
    """

    guest_stamp: int
    guest_row: int
    guest_event: str
    host_from: int | None
    host_to: int | None
    host_from_event: str
    host_to_event: str
    bound: int


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A guest event that the claim puts where its vCPU did not run.

    ``host_stamp`` is where the claim puts it; the thread was outside guest mode from ``host_from`` to ``host_to``.
    """

    guest_stamp: int
    guest_row: int
    guest_event: str
    host_stamp: int
    host_from: int | None
    host_to: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class AnchorProof:
    """An event that bounds the offset on one ``side`` ("low" or "high") more tightly than the windows do.

    It rests on ``assumption``, the order of things in the kernel's code.
    """

    kind: str
    side: str
    bound: int
    guest_stamp: int | None
    host_stamp: int | None
    assumption: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is known of an epoch whose rate was fitted to the events.

    ``rate_ppb``: the least and the greatest rate that the events allow, from ``nominal`` (guest units per host unit,
    what the recordings say of their clocks). ``slew_ppm``: how much the rate may vary within the epoch (0: it is
    constant), which the bound takes into account. ``band`` bounds the guest's true stamp about that of the map in use
    over time. Where the guest's other CPUs, on the same clock, narrow it, ``own`` is what this CPU's events alone say.
    ``rate_source``: who told the rate before any event was looked at.
    """

    nominal: Scale
    rate_ppb: tuple[int, int]
    slew_ppm: int
    band: Band
    own: Band | None = None
    rate_source: str = ""


@dataclass(frozen=True, slots=True)
class EpochProof:
    """A span of a vCPU's events with one offset, and what bounds it.

    ``rows`` are the guest rows of the epoch; those with stamps from ``guest_sure[0]`` to ``guest_sure[1]`` (None: open)
    belong to it beyond doubt, and a change lies anywhere between two epochs' sure events. ``feasible`` is the closed
    interval of offsets that the events allow around the one in use; where several remain, ``candidates`` lists
    them and ``feasible`` spans them all. None: nothing bounds it. Both are counted from ``offset``: near 2**63 they may
    lie beyond it. Offsets are ``guest - scaled host`` by ``scale``, which is 1 where the counters run alike.
    ``by_windows`` is the interval before ``anchors`` narrowed it; ``ticks``: the same in ticks, where they are known.
    ``usable`` is the part of ``feasible`` that suits the events around a change as well. ``host``: the further host
    that the guest was on, as thread ``host_tid`` (None: the first host, the vCPU's thread); host stamps and offsets are
    by that host's clock then. ``checked`` = ``inside`` + ``violations``; ``unknown`` events fall where the host did not
    see. ``doubted`` i64: the rows that its map may be wrong for: where a verdict is not sound, and between two hosts.
    """

    rows: I64
    guest_from: int | None
    guest_to: int | None
    host_from: int | None
    host_to: int | None
    offset: int | None
    source: str
    verdict: Verdict
    feasible: tuple[int, int] | None
    candidates: tuple[tuple[int, int], ...]
    inside: int
    violations: int
    unknown: int
    evidence: int
    guest_sure: tuple[int | None, int | None] = (None, None)
    low: Witness | None = None
    high: Witness | None = None
    usable: tuple[int, int] | None = None
    scale: Scale = field(default_factory=Scale)
    fitted: Fitted | None = None
    near: int | None = None
    by_windows: tuple[int, int] | None = None
    anchors: tuple[AnchorProof, ...] = ()
    ticks: TickProof | None = None
    host: str | None = None
    host_tid: int | None = None
    doubted: I64 = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def placed(self) -> I64:
        """The rows i64[n] that its map may place: those that are not doubted."""
        if self.offset is None:
            return self.rows[:0]
        return self.rows[~np.isin(self.rows, self.doubted)] if len(self.doubted) else self.rows

    @property
    def is_known(self) -> bool:
        """Whether its map is beyond doubt, if not for all of its rows."""
        return self.offset is not None and (not len(self.doubted) or len(self.placed) > 0)

    def as_epoch(self) -> Epoch:
        """Its map; ValueError where its offset is not known."""
        if self.offset is None:
            raise ValueError("the offset is not known")
        near = self.host_from if self.host_from is not None else self.near
        return Epoch(
            self.offset,
            self.guest_from,
            self.host_from,
            self.feasible,
            self.scale.ratio,
            self.scale.frac_bits,
            self.fitted.band if self.fitted else None,
            near,
        )

    def is_sure(self, stamps: U64) -> Bools:
        """Which of the epoch's stamps u64[n] are those of events that belong to it beyond doubt."""
        sure = np.ones(len(stamps), np.bool_)
        begin, end = self.guest_sure
        if begin is not None:
            sure &= relative(stamps, begin) >= 0
        if end is not None:
            sure &= relative(stamps, end) <= 0
        return sure

    @property
    def checked(self) -> int:
        """Events that the host's windows could speak about."""
        return self.inside + self.violations


@dataclass(frozen=True, slots=True)
class EpochOutcome:
    """How a claim fares in epoch number ``epoch`` of its vCPU, by the events there that it speaks of."""

    epoch: int
    verdict: Verdict
    inside: int
    violations: int
    unknown: int


@dataclass(frozen=True, slots=True)
class ClaimProof:
    """What causality says of one claim; of a vCPU with several epochs, in each that it speaks of: ``by_epoch``."""

    claim: Claim
    verdict: Verdict
    inside: int
    violations: int
    unknown: int
    counterexample: Counterexample | None = None
    reason: str = ""
    by_epoch: tuple[EpochOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class CounterClaimProof:
    """What causality says of one claim in ticks; as ``ClaimProof``."""

    claim: CounterClaim
    verdict: Verdict
    inside: int
    violations: int
    unknown: int
    counterexample: Counterexample | None = None
    reason: str = ""
    by_epoch: tuple[EpochOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class TickProof:
    """An epoch in ticks of arm64's counter.

    ``distance``: the host's lattice index minus the guest's (``clocks.arch_counter.Lattice``), the closed interval that
    the events allow: CNTVOFF plus a number that the two K decide. ``change``: CNTVOFF minus that of the epoch before,
    which needs no K. ``feasible``: CNTVOFF itself, and ``cntvoff`` the one in use, as signed numbers of 64 bits;
    None where a K is not known.
    """

    distance: tuple[int, int]
    change: tuple[int, int] | None = None
    feasible: tuple[int, int] | None = None
    cntvoff: int | None = None


@dataclass(frozen=True, slots=True)
class MisStamped:
    """Events that the guest's own ring buffer stamped late after its counter stepped back.

    The kernel's ring buffer never lets time run backwards inside a sub-buffer: from a backward step of the
    counter to the end of the sub-buffer all stamps are late by one constant, ``late_by`` (closed interval), in
    [``guest_from``, ``guest_to``]. ``rows`` are the guest rows. ``host`` is as in EpochProof.
    """

    rows: I64
    guest_from: int
    guest_to: int
    late_by: tuple[int, int] | None
    offset: int | None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Events of a guest that moved which may have run on any of ``hosts`` (None: the first): no map is theirs for sure.

    ``rows`` i64[n] are the guest rows, in none of the epochs; their stamps are ``guest_from`` to ``guest_to``.
    """

    rows: I64
    guest_from: int
    guest_to: int
    hosts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class VcpuProof:
    """One guest CPU: the host thread that runs it, its epochs, and the claims about it."""

    guest_cpu: int
    host_tid: int | None
    matched_by: str
    epochs: tuple[EpochProof, ...]
    claims: tuple[ClaimProof, ...]
    mis_stamped: tuple[MisStamped, ...] = ()
    notes: tuple[str, ...] = field(default=())
    unplaced: tuple[Unplaced, ...] = ()
    counter_claims: tuple[CounterClaimProof, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of the epochs' verdicts."""
        return worst([epoch.verdict for epoch in self.epochs])

    @property
    def clock_map(self) -> ClockMap | None:
        """The map in use, for stamps of one's own; None where an epoch's is not known, or is on another host."""
        epochs = [e.as_epoch() for e in self.epochs if e.is_known and e.host is None]
        return ClockMap(self.guest_cpu, tuple(epochs)) if epochs and len(epochs) == len(self.epochs) else None

    @property
    def is_sound(self) -> bool:
        """All epochs proved or derived, and no claim refuted."""
        said = [*(c.verdict for c in self.claims), *(c.verdict for c in self.counter_claims)]
        return self.verdict.is_sound and Verdict.REFUTED not in said
