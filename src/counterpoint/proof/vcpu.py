"""One guest CPU against one host thread: epochs, claims and witnesses put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from counterpoint.claims import given
from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import I64, Bools
from counterpoint.proof.epochs import MIN_BETWEEN, Stretch, change_points, find_stretches, unexplained
from counterpoint.proof.feasible import Interval, IntervalSet, narrow
from counterpoint.proof.fit import EVIDENCE_FOR_CLAIM, Candidate, Check, Fit, Thread, check, fit
from counterpoint.proof.holding import BY_CAUSALITY, Claims, Part
from counterpoint.proof.tracks import Track
from counterpoint.proof.verdicts import (
    ClaimProof,
    EpochProof,
    MisStamped,
    VcpuProof,
    Verdict,
    Witness,
)
from counterpoint.proof.windows import FOREVER
from counterpoint.traces.recording import Recording

MAX_DRIFT = 1000
"""One part in this many: offsets that creep more slowly may be a difference of the clocks' rates."""

DRIFT = (
    "the offset creeps in one direction: the two clocks do not seem to run at one rate, so these epochs are no changes"
)

DARK = 3
"""Of events among which less than one in so many of the usual share were seen, the others were not seen at all."""

# a bound this far off comes from an open end
_OPEN = int(FOREVER) // 2


class VcpuProver:
    """Proves one guest CPU's clock map. All numbers inside are relative to the track's and the windows' bases.

    The thread's windows may be scaled: offsets are ``guest - scaled host`` then, and claims of that scale are sought.
    """

    def __init__(
        self, guest: Recording, track: Track, thread: Thread, stretches: Callable[[], list[Stretch]] | None = None
    ) -> None:
        """Take the guest CPU's events and the thread's windows; ``stretches``: what was found in them before."""
        self._found = stretches
        self.guest = guest
        self.track = track
        self.thread = thread
        self.base = thread.windows.base
        self.claims = Claims(guest, track, thread)

    # -- entry point

    def prove(self, claims: list[Claim], matched_by: str, notes: tuple[str, ...]) -> VcpuProof:
        """Find the epochs, hold every claim against them, and report with witnesses."""
        usable = [c for c in claims if c.scale == self.thread.scale]
        parts = self._from_one_claim(usable) or self._from_chain(usable)
        late: list[tuple[int, int]] = []
        stray: list[str] = []
        if parts is None or (len(parts) == 1 and not self._covers(parts[0])):
            if parts is None and self._found is not None:
                stretches = self._found()
            else:
                start = parts[0].fit if parts else None
                stretches = find_stretches(self.track.guest, self.thread, start)
            if parts is None or len(stretches) > 1:
                parts, late, stray = self._parts(stretches, usable)
        if not parts:
            parts = [self._unbounded_part(usable)]
        for part in parts:
            stray += self._beware(part, late)
            stray += self._doubt(part)
        if self._drifts(parts):
            stray.append(DRIFT)
            for part in parts:
                part.shaky = part.source == BY_CAUSALITY
                part.doubtful = part.doubtful or part.shaky
        mis_stamped = tuple(self.mis_stamped(first, last, parts) for first, last in sorted(late))
        late_rows = np.zeros(len(self.track.guest), np.bool_)
        for first, last in late:
            late_rows[first:last] = True
        claim_proofs = tuple(self.claims.hold(c, parts, late_rows) for c in claims)
        epochs = tuple(self.epoch(index, parts, claim_proofs) for index in range(len(parts)))
        if not notes and not stray:
            stray = [why for e, part in zip(epochs, parts, strict=True) if (why := self._why(e, part))]
        return VcpuProof(
            self.track.cpu,
            self.thread.windows.tid,
            matched_by,
            epochs,
            claim_proofs,
            mis_stamped,
            (*notes, *stray),
        )

    def _why(self, epoch: EpochProof, part: Part) -> str:
        """What leaves an epoch without a sound verdict, where no event speaks against anything."""
        if epoch.verdict is Verdict.UNBOUNDED:
            return f"none of its events is known to be where the host saw thread {self.thread.windows.tid}"
        if epoch.verdict.is_sound or epoch.is_known or not part.fit.candidates:
            return ""
        if len(part.fit.candidates) > 1:
            return f"{len(part.fit.candidates)} intervals of offsets hold its events"
        needed = part.fit.needed if part.source == BY_CAUSALITY else EVIDENCE_FOR_CLAIM
        return (
            f"chance may have put its events into run windows: {epoch.evidence} bits of evidence, {needed} are needed"
        )

    # -- epochs

    def _covers(self, part: Part) -> bool:
        """Whether all events, but for a few, fall between the thread's first and last kvm event."""
        host, windows = self.track.guest - part.offset, self.thread.windows
        return int(((host < windows.first) | (host > windows.last)).sum()) < MIN_BETWEEN

    def _beware(self, part: Part, late: list[tuple[int, int]]) -> list[str]:
        """Leave out of a part, or of its sure events, those of its first or last sub-buffer that may be stamped late.

        A sub-buffer's first event is stamped rightly. ``late``: the runs that were recognised; more are added. Notes on
        steps back within the part, which one offset does not hold on both sides of: they leave it in doubt.
        """
        notes = []
        first, last = part.sure
        for begin, end in self.track.late:
            if any(begin <= a < end for a, _ in late):
                continue
            if begin <= part.first < end < part.last and end - part.first < MIN_BETWEEN:
                late.append((part.first, end))
                part.first, first = end, max(first, end)
            elif part.first < end < part.last:
                part.doubtful = part.shaky = True
                notes.append(f"the guest's counter stepped back before guest stamp {self._stamp(end)}")
            elif begin < part.last <= end:
                last = min(last, begin + 1)
        if (first, last) == part.sure or last - first < 1:
            return notes
        part.sure = first, last
        outcome = check(self.track.guest[first:last], part.offset, self.thread)
        if part.fit.is_unique and outcome.feasible is not None:
            best = Candidate(*outcome.feasible, outcome.inside, outcome.evidence)
            part.fit, part.usable = replace(part.fit, candidates=(best,)), None
        return notes

    def _doubt(self, part: Part) -> list[str]:
        """Notes on events of the part that its offset puts out of sight without reason; they leave it in doubt."""
        if not part.fit.candidates:
            return []
        runs = unexplained(self.track.guest, self.thread, part.offset, part.first, part.last)
        part.doubtful, part.unexplained = part.doubtful or bool(runs), runs
        return [
            f"{last - first} events (guest stamps {self._stamp(first)} to {self._stamp(last - 1)}) would lie outside"
            " the host's recording: the offset seems to have changed, by how much is not known"
            for first, last in runs
        ]

    def _drifts(self, parts: list[Part]) -> bool:
        """Whether the epochs look like one line: the two clocks do not run at one rate.

        Their offsets creep, mostly in one direction, by less than 1/MAX_DRIFT of the elapsed time, announced by no
        claim. Two epochs alone may be a small step as well: they count where one line fits all events.
        """
        if len(parts) < 2 or any(p.host_from is not None for p in parts):
            return False
        guest = self.track.guest
        at = [(int(guest[p.sure[0]]) + int(guest[p.sure[1] - 1])) // 2 - p.offset for p in parts]
        steps = [b.offset - a.offset for a, b in pairwise(parts)]
        spans = [b - a for a, b in pairwise(at)]
        one_way = 2 * abs(sum(steps)) > sum(abs(s) for s in steps)
        if not one_way or not all(abs(s) * MAX_DRIFT < d for s, d in zip(steps, spans, strict=True)):
            return False
        if len(parts) > 2:
            return True
        # exact: the line through both middles, in integers
        host = guest - parts[0].offset
        line = np.array([(int(h) - at[0]) * steps[0] // spans[0] for h in host.tolist()], np.int64)
        level = guest - line
        reach = abs(steps[0])
        found = fit(level, self.thread, (parts[0].offset - reach, parts[0].offset + reach), 0)
        return bool(found.candidates)

    def _from_one_claim(self, claims: list[Claim]) -> list[Part] | None:
        """One epoch at a claim that speaks of all time and holds for all events; None where there is none."""
        for claim in claims:
            if claim.host_from is not None or claim.host_to is not None:
                continue
            offset = self.claims.relative(claim)
            outcome = check(self.track.guest, offset, self.thread)
            if outcome.feasible and outcome.evidence >= EVIDENCE_FOR_CLAIM:
                lo, hi = outcome.feasible
                found = Fit((Candidate(lo, hi, outcome.inside, outcome.evidence),))
                count = len(self.track.guest)
                return [Part(0, count, (0, count), found, offset, claim.source)]
        return None

    def _from_chain(self, claims: list[Claim]) -> list[Part] | None:
        """Epochs as one source's claims follow each other, where they hold for all events; else None."""
        chains: dict[str, list[Claim]] = {}
        for claim in claims:
            chains.setdefault(claim.source, []).append(claim)
        # a source that watched tells when, one that sampled does not
        for chain in sorted(chains.values(), key=lambda chain: any(c.is_sampled for c in chain)):
            if len(chain) < 2 or not all(_follows(a, b) for a, b in pairwise(chain)):
                continue
            if chain[0].host_from is None and chain[-1].host_to is None:
                parts = self._along(chain)
                if parts:
                    return parts
        return None

    def _along(self, chain: list[Claim]) -> list[Part] | None:
        """The events cut at the chain's changes, each in its claim's span and in no gap; None: no cut does that.

        Where several cuts do, the events between the first and the last of them are not sure.
        """
        guest, count = self.track.guest, len(self.track.guest)
        offsets = [self.claims.relative(claim) for claim in chain]
        # runs[j][c]: how far claim j holds from event c on; where the stamps step back the counter was set
        every = np.arange(count + 1)
        back = np.append(np.flatnonzero(guest[1:] < guest[:-1]) + 1, count)
        steps = np.append(back, count)[np.searchsorted(back, every, side="right")]
        runs = []
        for claim, offset in zip(chain, offsets, strict=True):
            begin, end = self.claims.host_relative(claim.host_from), self.claims.host_relative(claim.host_to)
            bad = check(guest, offset, self.thread).violating
            if begin is not None:
                bad |= guest - offset < begin
            if end is not None:
                bad |= guest - offset >= end
            stops = np.append(np.flatnonzero(bad), count)
            runs.append(np.minimum(stops[np.searchsorted(stops, every)], steps))
        cuts = self._cuts(offsets, runs)
        if cuts is None:
            return None
        jumps = np.r_[0, np.abs(np.diff(guest)), 0]
        last, parts = count, []
        for index in range(len(chain) - 1, -1, -1):
            possible = cuts[index][(cuts[index] <= last) & (runs[index][cuts[index]] >= last)]
            if not len(possible):
                return None
            # a change comes with a stop or a step
            first = int(possible[int(jumps[possible].argmax())])
            if first < last:
                claim, offset = chain[index], offsets[index]
                sure = max(first, int(cuts[index][-1])), min(last, int(cuts[index + 1][0]))
                outcome = check(guest[slice(*sure)], offset, self.thread)
                if sure[0] >= sure[1] or outcome.feasible is None:
                    return None
                weak = outcome.evidence < EVIDENCE_FOR_CLAIM
                found = Fit((Candidate(*outcome.feasible, outcome.inside, outcome.evidence),), weak=weak)
                begin = None if claim.first_seen is not None else self.claims.host_relative(claim.host_from)
                end = None if claim.last_seen is not None else self.claims.host_relative(claim.host_to)
                parts.append(Part(first, last, sure, found, offset, claim.source, begin, end))
            last = first
        return parts[::-1]

    def _cuts(self, offsets: list[int], runs: list[I64]) -> list[I64] | None:
        """By claim of a chain, the events that it can begin with; last, the end. None where they hold not all events.

        ``runs``: of each claim i64[n + 1], how far it holds from each event on.
        """
        guest, count = self.track.guest, len(self.track.guest)
        every = np.arange(count + 1)
        before, after = [every == 0], [every == count]
        for run in runs:
            cuts = np.flatnonzero(before[-1])
            depth = np.zeros(count + 2, np.int64)
            np.add.at(depth, cuts, 1)
            np.add.at(depth, run[cuts] + 1, -1)
            before.append(np.cumsum(depth[:-1]) > 0)
        for run in runs[::-1]:
            ends = np.append(np.flatnonzero(after[0]), count + 1)
            after.insert(0, ends[np.searchsorted(ends, every)] <= run)
        out = [one & other for one, other in zip(before, after, strict=True)]
        for index, (left, right) in enumerate(pairwise(offsets)):
            # the events of a CPU are in order on the host, too, unless a claim holds for none of them
            free = before[index] | after[index + 2]
            out[index + 1][1:-1] &= (guest[1:] - right >= guest[:-1] - left) | free[1:-1]
        cuts_of = [np.flatnonzero(cuts) for cuts in out]
        return cuts_of if all(len(cuts) for cuts in cuts_of) else None

    def _unbounded_part(self, claims: list[Claim]) -> Part:
        """All events at the first claim's offset (or none), where nothing could be found."""
        count = len(self.track.guest)
        found = fit(self.track.guest, self.thread)
        if claims:
            return Part(0, count, (0, count), found, self.claims.relative(claims[0]), claims[0].source)
        return Part(0, count, (0, count), Fit(many=found.many), 0, "")

    def _parts(
        self, stretches: list[Stretch], claims: list[Claim]
    ) -> tuple[list[Part], list[tuple[int, int]], list[str]]:
        """Cut the events at the changes; also the mis-stamped runs, and notes on events that fit nowhere."""
        guest, count = self.track.guest, len(self.track.guest)
        parts: list[Part] = []
        late: list[tuple[int, int]] = []
        notes: list[str] = []
        for stretch in stretches:
            offset, source = self._choose(stretch, claims)
            sure = (stretch.sure_first, stretch.sure_last)
            parts.append(Part(stretch.first, stretch.last, sure, stretch.fit, offset, source))
        if not parts:
            return parts, late, notes
        points = change_points(guest, stretches)
        parts[0].first, parts[-1].last = 0, count
        for left, right, point in zip(parts, parts[1:], points, strict=False):
            left_end = min(left.last, point)
            change = self._announced(left, right, claims)
            if change is not None:
                left.host_to = right.host_from = change
                begin, end = left.sure[1], max(point, right.sure[0])
                after = np.flatnonzero(guest[begin:end] - right.offset >= change)
                if left.last >= point and len(after):
                    point = left_end = begin + int(after[0])
                else:
                    begin = left.sure[0]
                    past = np.flatnonzero(guest[begin:left_end] - left.offset > change)
                    left_end = begin + int(past[0]) if len(past) else left_end
            if point - left_end and point in self.track.late_ends:
                late.append((left_end, point))
                left.last = left_end
            else:
                if point - left_end:
                    notes.append(
                        f"{point - left_end} events between two epochs fit neither (guest stamps"
                        f" {self._stamp(left_end)} to {self._stamp(point - 1)})"
                    )
                left.last = point
            right.first = point
            left.sure = (left.sure[0], min(left.sure[1], left.last))
            right.sure = (max(right.sure[0], right.first), right.sure[1])
        for part in parts:
            if part.source == BY_CAUSALITY and part.fit.is_unique:
                best = part.fit.candidates[0]
                events = guest[part.first : part.last]
                left_over = narrow(IntervalSet.of(best.lo, best.hi), events, self.thread.gap_lo, self.thread.gap_hi)
                if len(left_over):
                    part.usable = int(left_over.lo[0]), int(left_over.hi[0])
                    part.offset = sum(part.usable) // 2
        return parts, late, notes

    def _choose(self, stretch: Stretch, claims: list[Claim]) -> tuple[int, str]:
        """The offset in use: a claim's that the stretch allows, else the middle of its best interval."""
        for claim in claims:
            offset = self.claims.relative(claim)
            if any(c.lo <= offset <= c.hi for c in stretch.fit.candidates) and self._speaks_of(claim, stretch, offset):
                return offset, claim.source
        return stretch.middle, BY_CAUSALITY

    def _speaks_of(self, claim: Claim, stretch: Stretch, offset: int) -> bool:
        """Whether the claim's span of host time holds the middle of the stretch."""
        middle = int(self.track.guest[(stretch.sure_first + stretch.sure_last) // 2]) - offset
        return bool(self.claims.in_span(claim, np.array([middle]))[0])

    def _announced(self, left: Part, right: Part, claims: list[Claim]) -> int | None:
        """The host time of a change that a claim names: one ends where the next begins, both offsets in use."""
        claims = [c for c in claims if not c.is_sampled]
        begins = {c.host_from for c in claims if c.host_from is not None and self.claims.relative(c) == right.offset}
        for claim in claims:
            if claim.host_to in begins and claim.host_to is not None and self.claims.relative(claim) == left.offset:
                return self.claims.host_relative(claim.host_to)
        return None

    def mis_stamped(self, first: int, last: int, parts: list[Part]) -> MisStamped:
        """How late the events first..last are, where their windows tell."""
        guest, track = self.track.guest, self.track
        following = next(p for p in parts if p.first >= last)
        before = [p for p in parts if p.last <= first]
        events = guest[first:last]
        end = int(guest[last]) - following.offset
        begin = following.host_from
        if begin is None:
            begin = int(guest[before[-1].last - 1]) - before[-1].offset if before else -int(FOREVER)
        low, high = int(events.max()) - end, int(events.min()) - begin
        found = fit(events, self.thread, (low, high), 0) if low <= high else Fit()
        late_by, offset = None, None
        if len(found.candidates) == 1:
            best = found.candidates[0]
            late_by = best.lo - following.offset, best.hi - following.offset
            offset = track.absolute_offset((best.lo + best.hi) // 2, self.base)
        return MisStamped(track.rows[first:last], self._stamp(first), self._stamp(last - 1), late_by, offset)

    # -- reporting

    def _stamp(self, position: int) -> int:
        return int(self.guest.stamp[self.track.rows[position]])

    def _host(self, relative_stamp: int | None) -> int | None:
        if relative_stamp is None or abs(relative_stamp) >= int(FOREVER):
            return None
        return self.thread.stamp(relative_stamp)

    def epoch(self, index: int, parts: list[Part], claims: tuple[ClaimProof, ...]) -> EpochProof:
        """Report on one part of the events, with its witnesses."""
        part, track = parts[index], self.track
        first_epoch, last_epoch = index == 0, index == len(parts) - 1
        outcome = check(track.guest[part.first : part.last], part.offset, self.thread)
        sure_at, sure_end = self._seen(part)
        sure = check(track.guest[sure_at:sure_end], part.offset, self.thread)
        candidates = sorted((c.lo, c.hi) for c in part.fit.candidates)
        if len(candidates) == 1 and sure.feasible is not None:
            # what lies beyond the sure events may be of another epoch, and bounds nothing
            candidates = [(min(candidates[0][0], sure.feasible[0]), max(candidates[0][1], sure.feasible[1]))]
        feasible = (candidates[0][0], max(hi for _, hi in candidates)) if candidates else None
        known = part.source != "" and (bool(candidates) or part.source != BY_CAUSALITY)
        host_first = int(track.guest[part.first]) - part.offset
        host_last = int(track.guest[part.last - 1]) - part.offset
        verdict = self._verdict(part, index, outcome, claims)
        return EpochProof(
            rows=track.rows[part.first : part.last],
            guest_from=None if first_epoch else self._stamp(part.first),
            guest_to=None if last_epoch else self._stamp(part.last - 1),
            host_from=None if first_epoch else self._host(host_first if part.host_from is None else part.host_from),
            host_to=None if last_epoch else self._host(host_last if part.host_to is None else part.host_to),
            offset=track.absolute_offset(part.offset, self.base) if known else None,
            source=part.source,
            verdict=verdict,
            feasible=self._absolute(feasible, part.offset),
            usable=self._absolute(part.usable or (feasible if len(parts) == 1 else None), part.offset),
            candidates=tuple(pair for c in candidates if (pair := self._absolute(c, part.offset))),
            inside=outcome.inside if known else 0,
            violations=outcome.violations if known else 0,
            unknown=outcome.unknown if known else len(track.guest),
            evidence=outcome.evidence if known else 0,
            guest_sure=(
                None if first_epoch and sure_at == part.first else self._stamp(sure_at),
                None if last_epoch and sure_end == part.last else self._stamp(sure_end - 1),
            ),
            low=self._witness(sure, sure_at, part.offset, low=True),
            high=self._witness(sure, sure_at, part.offset, low=False),
            scale=self.thread.scale,
            near=self.thread.real.base,
            doubted=track.rows[:0] if verdict.is_sound else self._doubted(part, outcome),
        )

    def _seen(self, part: Part) -> tuple[int, int]:
        """The part's sure events, from the first to the last that the host saw a run window of.

        What is before and after them may be of another epoch that nobody saw begin. So may the few beyond a dark
        stretch, which may have hit a window by chance.
        """
        begin, end = part.sure
        host = self.track.guest[begin:end] - part.offset
        windows = self.thread.windows
        at = np.searchsorted(windows.lo, host, side="right") - 1
        seen = windows.is_run[at] & (host <= windows.hi[at])
        if not seen.any():
            return part.sure
        lit = [(begin + a, begin + b) for a, b in _lit(seen)]
        enough = [check(self.track.guest[a:b], part.offset, self.thread).evidence >= EVIDENCE_FOR_CLAIM for a, b in lit]
        known = np.flatnonzero(enough) if any(enough) else np.arange(len(lit))
        positions = np.flatnonzero(seen) + begin
        inside = positions[(positions >= lit[int(known[0])][0]) & (positions < lit[int(known[-1])][1])]
        return int(inside[0]), int(inside[-1]) + 1

    def _doubted(self, part: Part, outcome: Check) -> I64:
        """The part's rows that its offset may be wrong for: all, unless it is the only one that can be."""
        rows = self.track.rows[part.first : part.last]
        if part.shaky or not part.fit.is_unique:
            return rows
        only = part.fit.candidates[0]
        if not only.lo <= part.offset <= only.hi:
            return rows
        wrong = outcome.violating.copy()
        for first, last in part.unexplained:
            wrong[first - part.first : last - part.first] = True
        return rows[wrong]

    def _absolute(self, interval: Interval | None, about: int) -> Interval | None:
        """Relative offsets as absolute ones, counted from ``about``, which is signed: so that they stay in order."""
        if interval is None or max(abs(interval[0]), abs(interval[1])) >= _OPEN:
            return None
        middle = self.track.absolute_offset(about, self.base)
        return middle + interval[0] - about, middle + interval[1] - about

    def _verdict(self, part: Part, index: int, outcome: Check, claims: tuple[ClaimProof, ...]) -> Verdict:
        refuted = [c for c in claims if c.verdict is Verdict.REFUTED and self._is_refuted_in(c, part, index)]
        # a number typed by hand is a question: its answer must not hide behind another source's
        if any(c.claim.source == given.SOURCE for c in refuted):
            return Verdict.REFUTED
        if not part.fit.candidates:
            return Verdict.REFUTED if refuted else Verdict.UNBOUNDED
        if part.doubtful:
            return Verdict.REFUTED if refuted else Verdict.AMBIGUOUS
        if part.source != BY_CAUSALITY and not outcome.violations and outcome.evidence >= EVIDENCE_FOR_CLAIM:
            return Verdict.PROVED
        if refuted:
            return Verdict.REFUTED
        if part.fit.is_unique and not outcome.violations:
            return Verdict.DERIVED
        return Verdict.AMBIGUOUS if outcome.inside else Verdict.UNBOUNDED

    def _is_refuted_in(self, proof: ClaimProof, part: Part, index: int) -> bool:
        """Whether a refuted claim is so in this part; where no part alone refutes it, in every one that it is about."""
        wrong = [o.epoch for o in proof.by_epoch if o.verdict is Verdict.REFUTED]
        return index in wrong if wrong else self.claims.is_about(proof.claim, part)

    def _witness(self, outcome: Check, at: int, offset: int, *, low: bool) -> Witness | None:
        """The event that bounds the offset on one side, and its span."""
        position = outcome.low_event if low else outcome.high_event
        if outcome.feasible is None or position < 0 or abs(outcome.feasible[0 if low else 1]) >= _OPEN:
            return None
        position += at
        span = int(np.searchsorted(self.thread.lo, self.track.guest[position] - offset, side="right")) - 1
        begin, end = int(self.thread.lo[span]), int(self.thread.hi[span])
        row = int(self.track.rows[position])
        bound = self.track.absolute_offset(offset, self.base) + outcome.feasible[0 if low else 1] - offset
        return Witness(
            int(self.guest.stamp[row]),
            row,
            self.guest.event_name(int(self.guest.event_id[row])),
            self._host(begin),
            self._host(end),
            self._edge_event(begin, entry=True),
            self._edge_event(end, entry=False),
            bound,
        )

    def _edge_event(self, stamp: int, *, entry: bool) -> str:
        windows = self.thread.windows
        edges = windows.lo if entry else windows.hi
        at = np.flatnonzero((edges == stamp) & windows.is_run)
        if not len(at):
            return ""
        return windows.kind.edge_events[0 if entry else 1]


def _follows(left: Claim, right: Claim) -> bool:
    """Whether one source's claims leave no time between them."""
    if left.last_seen is not None:
        return left.last_seen == right.host_from and left.host_to == right.first_seen
    return left.host_to is not None and left.host_to == right.host_from


def _lit(seen: Bools) -> list[tuple[int, int]]:
    """The stretches [first, last) of events of which about as many as elsewhere were ``seen`` bool[n], some at all.

    Between them lie dark ones: of MIN_BETWEEN events on either side less than 1/DARK of the usual share was seen.
    """
    count = len(seen)
    total = np.r_[0, np.cumsum(seen)]
    every = np.arange(count)
    low, high = np.maximum(every - MIN_BETWEEN, 0), np.minimum(every + MIN_BETWEEN + 1, count)
    lit = DARK * (total[high] - total[low]) * count >= (high - low) * total[-1]
    edges = np.flatnonzero(np.diff(np.r_[False, lit, False].astype(np.int8))).reshape(-1, 2)
    return [(a, b) for a, b in edges.tolist() if total[b] > total[a]]


def unmatched(track: Track, claims: list[Claim], matched_by: str, notes: tuple[str, ...]) -> VcpuProof:
    """The report on a guest CPU whose thread was not found: nothing is known, no claim was asked."""
    epoch = EpochProof(
        rows=track.rows, guest_from=None, guest_to=None, host_from=None, host_to=None, offset=None, source="",
        verdict=Verdict.UNBOUNDED, feasible=None, candidates=(), inside=0, violations=0,
        unknown=len(track.guest), evidence=0,
    )  # fmt: skip
    proofs = tuple(
        ClaimProof(c, Verdict.UNBOUNDED, 0, 0, len(track.guest), reason="its host thread was not found") for c in claims
    )
    return replace(VcpuProof(track.cpu, None, matched_by, (epoch,), proofs), notes=notes)
