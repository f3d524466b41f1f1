"""A guest's epochs and the claims about them in ticks of arm64's counter: CNTVOFF, exactly.

An epoch's interval in ns becomes one of whole ticks (``cntvoff``): by the spans that its events lie in, and by what the
anchors left. Where both machines' K are known it is CNTVOFF's own; else it is known but for one number that is the same
for all epochs of the guest's vCPUs: changes are exact, and what one source says of several epochs must fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from counterpoint.claims import given
from counterpoint.claims.model import Claim, CounterClaim
from counterpoint.clocks.counter import I64, MASK, U64, Bools, add, relative, to_signed
from counterpoint.proof.cntvoff import CounterPair, Spans, change
from counterpoint.proof.counters import CounterInfo
from counterpoint.proof.feasible import Interval
from counterpoint.proof.fit import Thread
from counterpoint.proof.verdicts import (
    CounterClaimProof,
    Counterexample,
    EpochOutcome,
    EpochProof,
    TickProof,
    VcpuProof,
    Verdict,
)
from counterpoint.traces.recording import Recording

NOT_SPOKEN_OF = "no event of an epoch that is proved or derived lies for sure in the spans that it speaks of"


@dataclass(frozen=True, slots=True)
class _Part:
    """One sound epoch of a vCPU: its sure events' ``rows`` i64[n] and ``spans``, and what they leave in ticks."""

    index: int
    epoch: EpochProof
    rows: I64
    spans: Spans | None
    distance: Interval
    cntvoff: Interval | None


class TickProver:
    """Proves in ticks what was proved in ns of a guest's vCPUs."""

    def __init__(self, guest: Recording, info: CounterInfo, thread_of: Callable[[int], Thread]) -> None:
        """``thread_of``: the run windows of a host thread."""
        self.guest, self.info, self.thread_of = guest, info, thread_of
        self.pair = info.pair
        self.agreed: dict[str, Interval] = {}
        """By source, where K is not known: ``TickProof.distance`` less CNTVOFF, as all it says agrees to."""

    def prove(
        self, vcpus: Sequence[VcpuProof], claims_of: Callable[[VcpuProof], Iterable[CounterClaim]]
    ) -> list[VcpuProof]:
        """The vCPUs with their epochs in ticks, and with what becomes of each claim."""
        parts = [self._parts(vcpu) for vcpu in vcpus]
        proofs = [
            [self._claim(claim, vcpu, mine) for claim in claims_of(vcpu)]
            for vcpu, mine in zip(vcpus, parts, strict=True)
        ]
        if self.pair is not None and self.info.reason:
            self._agree(parts, proofs)
        return [
            self._settled(vcpu, mine, tuple(claims)) for vcpu, mine, claims in zip(vcpus, parts, proofs, strict=True)
        ]

    # -- epochs

    def _parts(self, vcpu: VcpuProof) -> list[_Part]:
        out: list[_Part] = []
        if self.pair is None or vcpu.host_tid is None:
            return out
        for index, epoch in enumerate(vcpu.epochs):
            if not epoch.verdict.is_sound or epoch.feasible is None or epoch.offset is None or epoch.fitted is not None:
                continue
            rows = sure_rows(self.guest, epoch)
            spans = _spans(self.guest.stamp[rows], epoch.offset, self.thread_of(vcpu.host_tid))
            distance = self.pair.index_range_of(epoch.feasible)
            exact = None if spans is None else self.pair.index_range(spans)
            if exact is not None and max(distance[0], exact[0]) <= min(distance[1], exact[1]):
                distance = max(distance[0], exact[0]), min(distance[1], exact[1])
            out.append(_Part(index, epoch, rows, spans, distance, self.pair.cntvoff(distance)))
        return out

    def _settled(self, vcpu: VcpuProof, parts: list[_Part], claims: tuple[CounterClaimProof, ...]) -> VcpuProof:
        """The vCPU with its epochs in ticks, proved or refuted by the claims."""
        epochs = list(vcpu.epochs)
        before: _Part | None = None
        for part in parts:
            moved = change(before.distance, part.distance) if before and before.index == part.index - 1 else None
            epoch = replace(part.epoch, ticks=TickProof(part.distance, moved, part.cntvoff))
            epochs[part.index] = self._by_claims(epoch, part.index, claims)
            if before and before.index == part.index - 1:
                begin = self._announced(before, part, claims)
                if begin is not None and epochs[before.index].host_to != epochs[part.index].host_from:
                    epochs[before.index] = replace(epochs[before.index], host_to=begin)
                    epochs[part.index] = replace(epochs[part.index], host_from=begin)
            before = part
        return replace(vcpu, epochs=tuple(epochs), counter_claims=claims)

    def _announced(self, left: _Part, right: _Part, claims: tuple[CounterClaimProof, ...]) -> int | None:
        """The host stamp from which a source has the later epoch's value; None: no source tells of both epochs."""
        assert left.epoch.feasible is not None and right.epoch.feasible is not None
        stamp = self.guest.stamp
        least = (int(stamp[left.rows[-1]]) - left.epoch.feasible[1]) & MASK
        most = (int(stamp[right.rows[0]]) - right.epoch.feasible[0]) & MASK
        before = {c.claim.source for c in claims if self._is_trusted_in(c, left.index)}
        for later in claims:
            if later.claim.source not in before or not self._is_trusted_in(later, right.index):
                continue
            begins = [] if later.claim.host_from is None else [later.claim.host_from]
            if later.claim.held is not None:
                begins = later.claim.held.begin.tolist()
            for begin in begins:
                if to_signed(begin - least) >= 0 and to_signed(most - begin) >= 0:
                    return int(begin)
        return None

    def _is_trusted_in(self, proof: CounterClaimProof, index: int) -> bool:
        """Whether a claim may say when epoch ``index`` began or ended: it speaks of it and of no other."""
        if len(proof.by_epoch) != 1 or proof.by_epoch[0].epoch != index:
            return False
        if proof.by_epoch[0].verdict is Verdict.UNBOUNDED:
            return proof.claim.source in self.agreed
        return proof.by_epoch[0].verdict is Verdict.PROVED

    def _by_claims(self, epoch: EpochProof, index: int, claims: tuple[CounterClaimProof, ...]) -> EpochProof:
        """The epoch's verdict as claims change it: see ``VcpuProver``."""
        here = [(c, o.verdict) for c in claims for o in c.by_epoch if o.epoch == index]
        refuted = [c for c, verdict in here if verdict is Verdict.REFUTED]
        proved = [c for c, verdict in here if verdict is Verdict.PROVED]
        if any(c.claim.source == given.SOURCE for c in refuted):
            return replace(epoch, verdict=Verdict.REFUTED)
        if proved and epoch.verdict is Verdict.DERIVED:
            return self._in_use(replace(epoch, verdict=Verdict.PROVED), proved[0].claim)
        if refuted and epoch.verdict is Verdict.DERIVED:
            return replace(epoch, verdict=Verdict.REFUTED)
        return epoch

    def _in_use(self, epoch: EpochProof, claim: CounterClaim) -> EpochProof:
        """The epoch at a claim that it allows: the offset in ns is the middle of those that the claim stands for."""
        assert self.pair is not None and epoch.feasible is not None and epoch.ticks is not None
        offsets = self.pair.offsets_of(claim.cntvoff)
        assert offsets is not None and epoch.offset is not None
        lo, hi = epoch.usable or epoch.feasible
        # of what the claim stands for at all K allowed, what the epoch allows; counted from the offset in use
        first = epoch.offset + to_signed(offsets[0] - epoch.offset)
        last = first + offsets[1] - offsets[0]
        least, most = (min(max(end, lo), hi) for end in (first, last))
        ticks = replace(epoch.ticks, cntvoff=claim.cntvoff)
        return replace(epoch, offset=(least + most) // 2, source=claim.source, ticks=ticks)

    # -- claims

    def _claim(self, claim: CounterClaim, vcpu: VcpuProof, parts: list[_Part]) -> CounterClaimProof:
        """What the events say of one claim."""
        spoken = [(part, self._spoken_of(claim, part)) for part in parts]
        outcomes: list[EpochOutcome] = []
        reason, example = "", None
        for part, rows in spoken:
            if not rows.any():
                continue
            outcome, why, found = self._held(claim, vcpu, part, rows)
            outcomes.append(outcome)
            reason = reason or why
            example = example or found
        verdicts = {o.verdict for o in outcomes}
        verdict = next((v for v in (Verdict.REFUTED, Verdict.PROVED) if v in verdicts), Verdict.UNBOUNDED)
        if not outcomes:
            reason = self.info.reason if self.pair is None else NOT_SPOKEN_OF
            if vcpu.host_tid is None:
                reason = "its host thread was not found"
            elif self.pair is not None and not parts:
                reason = "nothing bounds its epochs"
        inside, violations = sum(o.inside for o in outcomes), sum(o.violations for o in outcomes)
        unknown = sum(o.unknown for o in outcomes)
        return CounterClaimProof(claim, verdict, inside, violations, unknown, example, reason, tuple(outcomes))

    def _spoken_of(self, claim: CounterClaim, part: _Part) -> Bools:
        """Which of the part's events the claim speaks of for sure: both ends of what bounds each lie in one span."""
        keep = np.ones(len(part.rows), np.bool_)
        if claim.host_from is None and claim.host_to is None and claim.held is None:
            return keep
        assert part.epoch.feasible is not None
        stamp = self.guest.stamp[part.rows]
        early, late = add(stamp, -part.epoch.feasible[1]), add(stamp, -part.epoch.feasible[0])
        if claim.host_from is not None:
            keep &= relative(early, claim.host_from) >= 0
        if claim.host_to is not None:
            keep &= relative(late, claim.host_to) < 0
        if claim.held is not None:
            keep &= claim.held.holds(early, late)
        return keep

    def _held(
        self, claim: CounterClaim, vcpu: VcpuProof, part: _Part, rows: Bools
    ) -> tuple[EpochOutcome, str, Counterexample | None]:
        """How the claim fares with the events ``rows`` bool[n] of a part: the outcome, why, and a counter-example."""
        count = int(rows.sum())
        if part.cntvoff is None or self.pair is None:
            return EpochOutcome(part.index, Verdict.UNBOUNDED, 0, 0, count), self.info.reason, None
        inside, violations, unknown, sure, example = 0, 0, count, False, None
        if part.spans is not None:
            spans = part.spans.take(rows)
            found = self.pair.check(spans, claim.cntvoff)
            assert found is not None
            inside, violations, unknown = found.inside, found.violations, found.unknown
            sure = 0 < inside >= found.doubtful
            if violations:
                example = self._counterexample(claim, vcpu, part.rows[rows], spans)
        lo, hi = part.cntvoff
        if 0 <= to_signed(claim.cntvoff - lo) <= hi - lo:
            if sure:
                return EpochOutcome(part.index, Verdict.PROVED, inside, violations, unknown), "", None
            reason = f"the K are not known well enough: the events leave {lo} to {hi}"
            return EpochOutcome(part.index, Verdict.UNBOUNDED, inside, violations, unknown), reason, None
        reason = f"the events leave {lo} to {hi}"
        if not violations:
            reason += ", by others than those that it speaks of and by what anchors leave of them"
        return EpochOutcome(part.index, Verdict.REFUTED, inside, violations, unknown), reason, example

    def _counterexample(self, claim: CounterClaim, vcpu: VcpuProof, rows: I64, spans: Spans) -> Counterexample | None:
        """An event that the claim puts where the thread was outside guest mode; None: it puts none there."""
        assert self.pair is not None and vcpu.host_tid is not None
        host = self.pair.host_stamps(spans.guest, claim.cntvoff)
        thread = self.thread_of(vcpu.host_tid)
        when = relative(host, thread.windows.base)
        at = np.searchsorted(thread.lo, when, side="right") - 1
        wrong = np.flatnonzero((at >= 0) & (at < len(thread.lo) - 1) & (when > thread.hi[at]))
        if not len(wrong):
            return None
        first = int(wrong[0])
        left, entered = (thread.stamp(int(t)) for t in (thread.hi[at[first]], thread.lo[at[first] + 1]))
        row = int(rows[first])
        return Counterexample(
            int(self.guest.stamp[row]),
            row,
            self.guest.event_name(int(self.guest.event_id[row])),
            int(host[first]),
            left,
            entered,
            f"thread {vcpu.host_tid} was outside guest mode from {left} to {entered}",
        )

    # -- what can be said without K

    def _agree(self, parts: list[list[_Part]], proofs: list[list[CounterClaimProof]]) -> None:
        """Refute what cannot be right whatever K is: each says of ``distance`` less CNTVOFF where it lies.

        That is one number for all epochs of the guest. Values typed by hand are questions of their own, one by one.
        """
        words: dict[str, list[_Word]] = {}
        for vcpu, (mine, claims) in enumerate(zip(parts, proofs, strict=True)):
            by_index = {part.index: part for part in mine}
            for at, proof in enumerate(claims):
                typed = proof.claim.source == given.SOURCE
                name = f"{proof.claim.source} {vcpu} {at}" if typed else proof.claim.source
                for outcome in proof.by_epoch:
                    lo, hi = by_index[outcome.epoch].distance
                    low = to_signed(lo - proof.claim.cntvoff)
                    words.setdefault(name, []).append(_Word(vcpu, at, outcome.epoch, (low, low + hi - lo)))
        for name, said in words.items():
            # counted from the first, so that they are in order modulo 2**64
            zero = said[0].interval[0]
            ends = [zero + to_signed(word.interval[0] - zero) for word in said]
            spans = [(e, e + w.interval[1] - w.interval[0]) for e, w in zip(ends, said, strict=True)]
            lowest, highest = (
                max(range(len(said)), key=lambda i: spans[i][0]),
                min(range(len(said)), key=lambda i: spans[i][1]),
            )
            if spans[lowest][0] <= spans[highest][1]:
                source = proofs[said[0].vcpu][said[0].claim].claim.source
                if name == source:
                    self.agreed[source] = spans[lowest][0], spans[highest][1]
                continue
            pair = sorted((said[lowest], said[highest]), key=lambda w: (w.vcpu, w.epoch))
            for word, other in (pair, pair[::-1]):
                proof = proofs[word.vcpu][word.claim]
                proofs[word.vcpu][word.claim] = self._belied(proof, word, other, parts, proofs)

    def _belied(
        self,
        proof: CounterClaimProof,
        word: _Word,
        other: _Word,
        parts: list[list[_Part]],
        proofs: list[list[CounterClaimProof]],
    ) -> CounterClaimProof:
        """A claim that cannot be right together with another word of its source."""
        first, second = (next(p for p in parts[w.vcpu] if p.index == w.epoch) for w in (other, word))
        lo, hi = change(first.distance, second.distance)
        where = f"epoch {other.epoch + 1} to epoch {word.epoch + 1}"
        if word.vcpu != other.vcpu:
            where = "one vCPU to the other"
        if (word.vcpu, word.claim) == (other.vcpu, other.claim):
            reason = f"no one CNTVOFF is right of all that it speaks of: it changed by {lo} to {hi} from {where}"
        else:
            value = proofs[other.vcpu][other.claim].claim.cntvoff
            reason = (
                f"it cannot be right together with {value}, which the same source says: they differ by"
                f" {to_signed(proof.claim.cntvoff - value)}, but CNTVOFF by {lo} to {hi} from {where}"
            )
        return replace(proof, verdict=Verdict.REFUTED, reason=reason)


@dataclass(frozen=True, slots=True)
class _Word:
    """What claim number ``claim`` of a vCPU makes, in an epoch, of ``distance`` less CNTVOFF."""

    vcpu: int
    claim: int
    epoch: int
    interval: Interval


def _spans(stamps: U64, offset: int, thread: Thread) -> Spans | None:
    try:
        return Spans.at(stamps, offset, thread)
    except ValueError:
        # an event at the edge of a change that the offset in use puts outside: the interval in ns has it all
        return None


def sure_rows(guest: Recording, epoch: EpochProof) -> I64:
    """The rows that belong to the epoch beyond doubt."""
    return epoch.rows[epoch.is_sure(guest.stamp[epoch.rows])]


def in_ns(claim: CounterClaim, info: CounterInfo) -> Claim | None:
    """A claim in ticks as an offset in ns, to the ns or two that a tick stands for; None where a K is not known."""
    offsets = info.pair.offsets_of(claim.cntvoff) if info.pair else None
    if offsets is None:
        return None
    return Claim(
        claim.source, sum(offsets) // 2, guest_cpu=claim.guest_cpu, tid=claim.tid, host_from=claim.host_from,
        host_to=claim.host_to, detail=f"CNTVOFF {claim.cntvoff}", held=claim.held,
    )  # fmt: skip


def with_cntvoff(vcpus: Iterable[VcpuProof], pair: CounterPair | None) -> tuple[VcpuProof, ...]:
    """The vCPUs with the CNTVOFF in use of each derived epoch: that of its offset in use."""

    def told(epoch: EpochProof) -> EpochProof:
        ticks = epoch.ticks
        if pair is None or ticks is None or ticks.feasible is None or ticks.cntvoff is not None or epoch.offset is None:
            return epoch
        found = pair.cntvoff(pair.index_range_of((epoch.offset, epoch.offset)))
        assert found is not None
        lo, hi = ticks.feasible
        middle = lo + to_signed(sum(found) // 2 - lo)
        return replace(epoch, ticks=replace(ticks, cntvoff=min(max(middle, lo), hi)))

    return tuple(replace(v, epochs=tuple(told(e) for e in v.epochs)) for v in vcpus)
