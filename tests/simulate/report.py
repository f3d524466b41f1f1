"""What the judging of many worlds comes to, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from counterpoint.simulate import WorldOptions
from simulate.judge import Judgement

Feature = tuple[str, Callable[[WorldOptions], bool]]


def _is_exact(o: WorldOptions) -> bool:
    """Whether both sides stamp with one counter, at a rate that is known."""
    same = o.guests_clock == o.host_clock
    return same and (o.host_clock == "x86-tsc" or (o.arch == "arm64" and o.host_clock in ("mono_raw", "local")))


FEATURES: tuple[Feature, ...] = (
    ("all", lambda o: True),
    ("x86-tsc on both sides", lambda o: o.host_clock == o.guests_clock == "x86-tsc"),
    ("arm64, mono_raw or local on both sides", lambda o: o.arch == "arm64" and _is_exact(o)),
    ("a line is fitted (mono, boot, local on x86, two clocks)", lambda o: not _is_exact(o)),
    ("clocks that are slewed", lambda o: bool(o.slews)),
    ("a clock that is set", lambda o: bool(o.steps)),
    ("scaled TSC", lambda o: bool(o.guest_khz)),
    ("vCPUs with offsets of their own", lambda o: bool(o.differ)),
    ("paused", lambda o: bool(o.pauses)),
    ("restored", lambda o: bool(o.restores)),
    ("guest writes its TSC", lambda o: bool(o.writes)),
    ("vCPU plugged later", lambda o: o.hotplug),
    ("nested", lambda o: bool(o.nested)),
    ("migrated", lambda o: o.migrate),
    ("host lost events", lambda o: bool(o.lose)),
    ("a host CPU not recorded", lambda o: bool(o.unrecorded_cpus)),
    ("host's recording begins late or ends early", lambda o: o.late_start > 0 or o.early_end > 0),
    ("kvm events not recorded (sched_switch)", lambda o: not o.kvm_events),
    ("latencies of metal", lambda o: o.latency == "metal"),
    ("latencies of an emulator", lambda o: o.latency == "emulated"),
)


def report(found: Sequence[Judgement]) -> str:
    """Markdown: how many words of how many worlds were held against the truth, and the widths by feature."""
    verdicts: Counter[str] = sum((j.verdicts for j in found), Counter())
    claims: Counter[str] = sum((j.claims for j in found), Counter())
    events, bounded = sum(j.events for j in found), sum(j.bounded for j in found)
    false = [(j.seed, text) for j in found for text in j.complaints]
    wrong = {k.removeprefix("wrong: "): n for k, n in claims.items() if k.startswith("wrong: ")}
    right = {k: n for k, n in claims.items() if not k.startswith("wrong: ")}
    lines = [
        f"{len(found)} worlds (seeds {found[0].seed} to {found[-1].seed}), {events:,} guest events.",
        "",
        f"* **False: {len(false)}** in {len({seed for seed, _ in false})} worlds.",
        f"* {bounded:,} events ({100 * bounded // max(events, 1)} %) are said to lie within a bound; each was held"
        " against where it truly was.",
        f"* Epochs without a claim: {_counts(verdicts)}. Of {sum(j.epochs for j in found):,} true ones"
        f" {sum(j.found for j in found):,} have events that are proved to be theirs.",
        f"* Claims of the recordings: {_counts(right)}. Typed ones, wrong by more than the width: {_counts(wrong)}.",
        "",
        "| worlds with | worlds | sound epochs | least bound | 10 % | median | 90 % | greatest (ns) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, has in FEATURES:
        mine = [j for j in found if has(j.options)]
        widths = sorted(w for j in mine for w in j.widths)
        if not mine:
            continue
        cells = (
            [f"{widths[min(len(widths) - 1, len(widths) * q // 100)]:,}" for q in (0, 10, 50, 90, 100)]
            if widths
            else ["-"] * 5
        )
        lines.append(f"| {name} | {len(mine)} | {len(widths):,} | {' | '.join(cells)} |")
    lines += [f"\nseed {seed}: {text}" for seed, text in false]
    return "\n".join(lines) + "\n"


def _counts(of: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(of.items(), key=lambda item: -item[1])) or "none"


def seeds_of(texts: Iterable[str]) -> list[int]:
    """Seeds written as numbers or spans LO..HI (exclusive)."""
    out: list[int] = []
    for text in texts:
        low, _, high = text.partition("..")
        out += range(int(low), int(high)) if high else [int(low)]
    return out
