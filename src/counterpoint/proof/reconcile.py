"""Sources that disagree about one epoch of a vCPU: said in one line, with what causality leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from counterpoint.clocks.counter import to_signed
from counterpoint.proof.cntvoff import CounterPair
from counterpoint.proof.verdicts import ClaimProof, CounterClaimProof, EpochProof, VcpuProof, Verdict

MAX_VALUES = 8
"""More different values than these are not all listed."""

MAX_SOURCES = 64
"""Of more sources that say different things, only so many are held against each other."""


@dataclass(frozen=True, slots=True)
class _Word:
    """One source's word about an epoch: ``text`` as it was said, and the closed interval that it stands for."""

    source: str
    text: str
    lo: int
    hi: int
    verdict: Verdict

    def agrees(self, other: _Word) -> bool:
        """Whether both may mean one offset, modulo 2**64."""
        apart = to_signed(other.lo - self.lo)
        return apart <= self.hi - self.lo and -apart <= other.hi - other.lo


def reconciled(vcpu: VcpuProof, pair: CounterPair | None) -> VcpuProof:
    """The vCPU with a note for each epoch that sources disagree about; ``pair`` turns offsets and CNTVOFF about."""
    lines = [line for index in range(len(vcpu.epochs)) for line in _disagreements(vcpu, index, pair)]
    return replace(vcpu, notes=(*vcpu.notes, *lines)) if lines else vcpu


def _disagreements(vcpu: VcpuProof, index: int, pair: CounterPair | None) -> Iterator[str]:
    epoch = vcpu.epochs[index]
    in_ns = [w for c in vcpu.claims if (w := _offset_word(c, index, vcpu, epoch)) is not None]
    in_ticks = [w for c in vcpu.counter_claims if (w := _cntvoff_word(c, index)) is not None]
    where = f"epoch {index + 1}: " if len(vcpu.epochs) > 1 else ""
    ticks = epoch.ticks.feasible if epoch.ticks else None
    both = [*in_ticks, *_in_ticks(in_ns, pair)] if in_ns and in_ticks and ticks is not None else []
    left = "" if epoch.feasible is None else f"{epoch.feasible[0]} to {epoch.feasible[1]}"
    for words, name, allowed in (
        (both, "CNTVOFF ", "" if ticks is None else f"{ticks[0]} to {ticks[1]}"),
        (in_ns if not both else [], "", left),
        (in_ticks if not both else [], "CNTVOFF ", "" if ticks is None else f"{ticks[0]} to {ticks[1]}"),
    ):
        if _disagree(words):
            yield f"{where}sources disagree: {_said(words, name)}: {_judged(words, name, allowed)}"


def _offset_word(proof: ClaimProof, index: int, vcpu: VcpuProof, epoch: EpochProof) -> _Word | None:
    """What a claim of an offset says of the epoch; None where it does not speak of it, or at another rate."""
    verdict = _verdict_in(proof, index, several=len(vcpu.epochs) > 1)
    if verdict is None or proof.claim.scale != epoch.scale:
        return None
    offset = proof.claim.offset
    return _Word(proof.claim.source, str(offset), offset, offset, verdict)


def _cntvoff_word(proof: CounterClaimProof, index: int) -> _Word | None:
    verdict = next((o.verdict for o in proof.by_epoch if o.epoch == index), None)
    value = proof.claim.cntvoff
    return None if verdict is None else _Word(proof.claim.source, str(value), value, value, verdict)


def _verdict_in(proof: ClaimProof, index: int, *, several: bool) -> Verdict | None:
    if several:
        return next((o.verdict for o in proof.by_epoch if o.epoch == index), None)
    return proof.verdict if proof.inside + proof.violations + proof.unknown else None


def _in_ticks(words: list[_Word], pair: CounterPair | None) -> Iterator[_Word]:
    """Offsets in ns as the CNTVOFFs that they may stand for."""
    for word in words:
        found = None if pair is None else pair.cntvoff(pair.index_range_of((word.lo, word.hi)))
        if found is not None:
            yield replace(word, text=f"{found[0]} to {found[1]} (offset {word.text})", lo=found[0], hi=found[1])


def _disagree(words: list[_Word]) -> bool:
    """Whether two sources have no word in common."""
    said: dict[str, dict[tuple[int, int], _Word]] = {}
    for word in words:
        said.setdefault(word.source, {})[word.lo, word.hi] = word
    # sources that say the same are one
    distinct = list({frozenset(of): list(of.values()) for of in said.values()}.values())[:MAX_SOURCES]
    return any(
        not any(a.agrees(b) for a in one for b in other)
        for index, one in enumerate(distinct)
        for other in distinct[:index]
    )


def _said(words: list[_Word], name: str) -> str:
    """Who says what: sources with one value together."""
    by_text: dict[str, list[str]] = {}
    for word in words:
        by_text.setdefault(word.text, []).append(word.source)
    listed = [
        f"{' and '.join(dict.fromkeys(sources))} {'says' if len(set(sources)) == 1 else 'say'} {name}{text}"
        for text, sources in list(by_text.items())[:MAX_VALUES]
    ]
    more = len(by_text) - MAX_VALUES
    return ", ".join(listed) + (f", and {more} more values" if more > 0 else "")


def _judged(words: list[_Word], name: str, allowed: str) -> str:
    """What causality says of it."""
    held = list(dict.fromkeys(w.source for w in words if w.verdict is Verdict.PROVED))
    wrong = list(dict.fromkeys(w.source for w in words if w.verdict is Verdict.REFUTED))
    if not allowed or not (held or wrong):
        return "causality does not tell which is right"
    right = [s for s in held if s not in wrong]
    text = f"causality leaves {name}{allowed}"
    if right:
        text += f", which {' and '.join(right)} {'lies' if len(right) == 1 else 'lie'} in"
    if wrong:
        text += f"{' and' if right else ', which'} {' and '.join(wrong)} {'does' if len(wrong) == 1 else 'do'} not"
        text += "" if right else " lie in"
    return text
