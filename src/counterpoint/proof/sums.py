"""arm64's CNTVOFF_EL2 while a nested guest runs: the sum of what its hypervisor runs with and of what that gives it.

timer_get_offset (include/kvm/arm_arch_timer.h) adds the two. A host whose probes log the register (see
``claims.dynamic_events``) therefore logs, on one vCPU's thread, now L1's own value and now the sum: which of the two an
instant has is told by whose events lie there. The sum less L1's own value is a claim of L2's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from counterpoint.claims.dynamic_events import Log
from counterpoint.claims.model import CounterClaim
from counterpoint.clocks.counter import I64, U64, Bools, add, relative, to_signed
from counterpoint.proof.matching import ThreadPool
from counterpoint.proof.ticks import sure_rows
from counterpoint.proof.verdicts import VcpuProof
from counterpoint.traces.recording import Recording


@dataclass(frozen=True, slots=True)
class Sum:
    """While CPU ``guest_cpu`` of a nested guest ran, a probe of the first host logged ``total``.

    ``source`` is the probe, of ``host``. ``own`` is what it logged before for the hypervisor's CPUs themselves, so that
    the nested guest's is the rest; ``events`` of it lie there, from ``begin`` to ``end`` by the hypervisor's stamps.
    """

    host: str
    source: str
    guest_cpu: int
    total: int
    own: int
    events: int
    begin: int
    end: int

    @property
    def rest(self) -> int:
        """The nested guest's CNTVOFF, signed."""
        return to_signed(self.total - self.own)

    def claim(self, tid: int) -> CounterClaim:
        """The claim about the nested guest's CPU that thread ``tid`` of its hypervisor is."""
        return CounterClaim(
            f"{self.source} of {self.host}", self.rest, tid=tid, host_from=self.begin, host_to=self.end + 1,
            detail=f"{self.total} less {self.own}, at {self.events} events",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A guest that runs guests: its CPUs' proofs, what its host ``host`` logged, and its own events in host time.

    ``host_stamp`` u64[n], ``placed`` bool[n]: see ``ThreadPool.through``.
    """

    host: str
    recording: Recording
    vcpus: Sequence[VcpuProof]
    logs: Sequence[Log]
    host_stamp: U64
    placed: Bools

    def sums(self, guest: Recording, vcpus: Iterable[VcpuProof], pool: ThreadPool) -> list[Sum]:
        """What was logged while each CPU of its guest ran; ``pool``: its threads."""
        out: list[Sum] = []
        logs = [log for log in self.logs if log.unit == "cntvoff"]
        if not any(set(log.value.tolist()) - self._own(log) for log in logs):
            return out
        for vcpu in vcpus:
            if vcpu.host_tid is not None:
                out += self._of(guest, vcpu, vcpu.host_tid, pool, logs)
        return out

    def _own(self, log: Log) -> set[int]:
        """The values of a log that hold while the hypervisor's own events happen."""
        claims = [c for v in self.vcpus if v.host_tid == log.tid for c in v.counter_claims]
        return {c.claim.cntvoff for c in claims if c.claim.source == str(log.probe) and c.by_epoch}

    def _of(self, guest: Recording, vcpu: VcpuProof, tid: int, pool: ThreadPool, logs: Sequence[Log]) -> Iterable[Sum]:
        cpus = np.array([s.cpu for s in self.recording.streams], np.int64)[self.recording.stream_of]
        found: dict[tuple[str, int, int], list[tuple[int, int, int]]] = {}
        for epoch in vcpu.epochs:
            if not epoch.verdict.is_sound or epoch.feasible is None or epoch.offset is None:
                continue
            rows = np.sort(sure_rows(guest, epoch))
            stamp = guest.stamp[rows]
            entry = pool.entered(tid, add(stamp, -epoch.offset), self.host_stamp, self.placed)
            cpu = np.where(entry >= 0, cpus[np.maximum(entry, 0)], -1)
            early, late = add(stamp, -epoch.feasible[1]), add(stamp, -epoch.feasible[0])
            for above in self.vcpus:
                mine, clock = cpu == above.guest_cpu, above.clock_map
                if clock is None or not mine.any() or not above.verdict.is_sound:
                    continue
                first, last = clock.bound(early[mine])[0], clock.bound(late[mine])[1]
                for log in (one for one in logs if one.tid == above.host_tid):
                    total, own, known = self._logged(log, first, last)
                    for key in set(zip(total[known].tolist(), own[known].tolist(), strict=True)):
                        at = known & (total == key[0]) & (own == key[1])
                        span = int(early[mine][at][0]), int(late[mine][at][-1])
                        found.setdefault((str(log.probe), *key), []).append((int(at.sum()), *span))
        for (source, total_value, own_value), parts in found.items():
            begin = min((b for _, b, _ in parts), key=lambda b: to_signed(b - parts[0][1]))
            end = max((e for _, _, e in parts), key=lambda e: to_signed(e - parts[0][1]))
            events = sum(n for n, _, _ in parts)
            yield Sum(self.host, source, vcpu.guest_cpu, total_value, own_value, events, begin, end)

    def _logged(self, log: Log, early: U64, late: U64) -> tuple[I64, I64, Bools]:
        """What a log has at instants from ``early`` to ``late`` u64[n], what it had before of L1's own; if known."""
        base = int(log.begin[0])
        first, last = relative(early, base), relative(late, base)
        run = np.searchsorted(relative(log.begin, base), first, side="right") - 1
        at = np.maximum(run, 0)
        is_own = np.isin(log.value, np.array(sorted(self._own(log)), np.int64))
        before = np.maximum.accumulate(np.where(is_own, np.arange(len(log.value)), -1))[at]
        known = (run >= 0) & (before >= 0) & ~is_own[at]
        known &= last < relative(log.end, base)[at]
        return log.value[at], log.value[np.maximum(before, 0)], known


def explained(vcpus: Iterable[VcpuProof], sums: Iterable[Sum], hypervisor: str, guest: str) -> tuple[VcpuProof, ...]:
    """The hypervisor's vCPUs, with claims that speak of none of its events told to be its guest's ``sums``."""
    known = {(s.source, s.total): s for s in sums}
    out = []
    for vcpu in vcpus:
        claims = []
        for proof in vcpu.counter_claims:
            told = known.get((proof.claim.source, proof.claim.cntvoff))
            if told is not None and not proof.by_epoch:
                reason = f"it held while {guest} ran: {told.own} of {hypervisor} plus {told.rest} of {guest}"
                proof = replace(proof, reason=reason)
            claims.append(proof)
        out.append(replace(vcpu, counter_claims=tuple(claims)))
    return tuple(out)
