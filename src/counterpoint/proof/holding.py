"""Claims held against one guest CPU's events, part by part: do they put any where its thread did not run?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.feasible import Interval
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, Check, Fit, Thread, check
from counterpoint.proof.tracks import Track
from counterpoint.proof.verdicts import ClaimProof, Counterexample, EpochOutcome, Verdict
from counterpoint.proof.windows import FOREVER
from counterpoint.traces.recording import Recording

BY_CAUSALITY = "causality"


@dataclass(slots=True)
class Part:
    """Events ``first``..``last`` of the track at relative offset ``offset``; ``sure`` events bound it."""

    first: int
    last: int
    sure: tuple[int, int]
    fit: Fit
    offset: int
    source: str = BY_CAUSALITY
    host_from: int | None = None
    host_to: int | None = None
    usable: Interval | None = None
    doubtful: bool = False
    unexplained: list[tuple[int, int]] = field(default_factory=list)
    shaky: bool = False


class Claims:
    """Holds claims about one guest CPU. All numbers inside are relative to the track's and the windows' bases."""

    def __init__(self, guest: Recording, track: Track, thread: Thread) -> None:
        """Take the guest CPU's events and its thread's windows, which may be scaled."""
        self.guest = guest
        self.track = track
        self.thread = thread
        self.base = thread.windows.base

    def hold(self, claim: Claim, parts: list[Part], late_rows: Bools) -> ClaimProof:
        """Hold a claim against the events it speaks of; those at ``late_rows`` are mis-stamped."""
        positions = self._spoken_of(claim, parts, late_rows)
        proof = self._whole_claim(claim, parts, positions)
        if len(parts) < 2 or claim.scale != self.thread.scale:
            return proof
        return replace(proof, by_epoch=tuple(self._by_epoch(claim, parts, positions)))

    def _by_epoch(self, claim: Claim, parts: list[Part], positions: I64) -> Iterator[EpochOutcome]:
        """How the claim fares in each part that it speaks of."""
        offset = self.relative(claim)
        for index, part in enumerate(parts):
            mine = positions[(positions >= part.first) & (positions < part.last)]
            if not len(mine):
                continue
            outcome = check(self.track.guest[mine], offset, self.thread)
            known = part.fit.is_unique and not part.doubtful
            verdict = Verdict.UNBOUNDED
            if outcome.violations or (known and not any(lo <= offset <= hi for lo, hi in _intervals(part))):
                verdict = Verdict.REFUTED
            elif outcome.evidence >= EVIDENCE_FOR_CLAIM or (known and outcome.inside):
                verdict = Verdict.PROVED
            yield EpochOutcome(index, verdict, outcome.inside, outcome.violations, outcome.unknown)

    def _whole_claim(self, claim: Claim, parts: list[Part], positions: I64) -> ClaimProof:
        """The claim against all events it speaks of."""
        same = claim.scale == self.thread.scale
        thread = self.thread if same else self.thread.at_scale(claim.scale)
        events, offset = self.track.guest[positions], self.track.relative_offset(claim.offset, thread.windows.base)
        outcome = check(events, offset, thread)
        counts = outcome.inside, outcome.violations, outcome.unknown
        if outcome.violations:
            example = self._counterexample(positions, outcome, offset, thread)
            return ClaimProof(claim, Verdict.REFUTED, *counts, counterexample=example)
        if outcome.evidence >= EVIDENCE_FOR_CLAIM:
            return ClaimProof(claim, Verdict.PROVED, *counts)
        sound = [p for p in parts if p.fit.is_unique and self.is_about(claim, p)]
        elsewhere = not same or not any(lo <= offset <= hi for p in sound for lo, hi in _intervals(p))
        if len(events) and sound and elsewhere:
            other = sound[0]
            reason = (
                f"it puts {outcome.unknown} of {len(events)} events where the host saw nothing, while"
                f" {other.fit.candidates[0].inside} events fit run windows at one other offset alone"
            )
            example = self._example(int(positions[0]), offset, thread, None, None, reason)
            return ClaimProof(claim, Verdict.REFUTED, *counts, counterexample=example, reason=reason)
        reason = (
            "no event falls where the host saw its thread"
            if not outcome.inside
            else (f"only {outcome.inside} events fall into run windows: chance may do that")
        )
        return ClaimProof(claim, Verdict.UNBOUNDED, *counts, reason=reason)

    def _spoken_of(self, claim: Claim, parts: list[Part], late_rows: Bools) -> I64:
        """Positions of the events that the claim speaks of: its span of host time, by the maps in use."""
        keep = ~late_rows
        if claim.host_from is not None or claim.host_to is not None:
            host = np.zeros(len(self.track.guest), np.int64)
            for part in parts:
                # with no better map the claim's own word places its events
                known = part.fit.candidates or claim.scale != self.thread.scale
                offset = part.offset if known else self.relative(claim)
                host[part.first : part.last] = self.track.guest[part.first : part.last] - offset
            keep &= self.in_span(claim, host)
            if claim.is_sampled and claim.scale == self.thread.scale:
                for part in self._not_its(claim, parts, host):
                    keep[part.first : part.last] = False
        return np.flatnonzero(keep)

    def _not_its(self, claim: Claim, parts: list[Part], host: I64) -> list[Part]:
        """The parts that a sampled claim does not speak of: another offset holds there, and it was not seen there.

        ``host`` i64[n]: where the maps in use put the events.
        """
        begin, end = self.host_relative(claim.first_seen), self.host_relative(claim.last_seen)
        away = []
        for part in parts:
            first, last = int(host[part.first]), int(host[part.last - 1])
            before = 0 if begin is None else max(begin - last, 0)
            behind = 0 if end is None else max(first - end, 0)
            away.append(max(before, behind))
        offset = self.relative(claim)
        return [
            part
            for part, distance in zip(parts, away, strict=True)
            # where it was seen between two parts' events the nearest is its own
            if distance > min(away) and part.fit.candidates and not any(a <= offset <= b for a, b in _intervals(part))
        ]

    def in_span(self, claim: Claim, host: I64) -> Bools:
        """Which of ``host`` i64[n], times as those of the windows, the claim speaks of."""
        begin, end = self.host_relative(claim.host_from), self.host_relative(claim.host_to)
        keep: Bools = (host >= (begin if begin is not None else -FOREVER)) & (
            host < (end if end is not None else FOREVER)
        )
        if claim.held is not None and self.thread.scale.is_identity:
            stamps = (host + self.base).view(np.uint64)
            keep &= claim.held.holds(stamps, stamps)
        return keep

    def _counterexample(self, positions: I64, outcome: Check, offset: int, thread: Thread) -> Counterexample:
        position = int(positions[int(np.flatnonzero(outcome.violating)[0])])
        gap = int(np.searchsorted(thread.lo, self.track.guest[position] - offset, side="right")) - 1
        left, entered = thread.stamp(int(thread.hi[gap])), thread.stamp(int(thread.lo[gap + 1]))
        reason = f"thread {thread.windows.tid} was outside guest mode from {left} to {entered}"
        return self._example(position, offset, thread, left, entered, reason)

    def _example(
        self, position: int, offset: int, thread: Thread, host_from: int | None, host_to: int | None, reason: str
    ) -> Counterexample:
        """The event at ``position``, where ``offset`` puts it."""
        row = int(self.track.rows[position])
        host = thread.stamp(int(self.track.guest[position]) - offset)
        event = self.guest.event_name(int(self.guest.event_id[row]))
        return Counterexample(int(self.guest.stamp[row]), row, event, host, host_from, host_to, reason)

    def is_about(self, claim: Claim, part: Part) -> bool:
        """Whether the claim's span of host time meets the part's events."""
        begin, end = self.host_relative(claim.host_from), self.host_relative(claim.host_to)
        first = int(self.track.guest[part.first]) - part.offset
        last = int(self.track.guest[part.last - 1]) - part.offset
        return (begin is None or begin <= last) and (end is None or end > first)

    def relative(self, claim: Claim) -> int:
        """A claim's offset as one between numbers like those of the track and the windows."""
        return self.track.relative_offset(claim.offset, self.base)

    def host_relative(self, stamp: int | None) -> int | None:
        """A host stamp as a number like those of the windows."""
        return None if stamp is None else self.thread.value(stamp)


def _intervals(part: Part) -> list[Interval]:
    return [(c.lo, c.hi) for c in part.fit.candidates]
