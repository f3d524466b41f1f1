"""The proof as tables for a terminal. rich is imported where it prints, since it costs some 70 ms."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from counterpoint.claims.model import Claim
from counterpoint.clocks.counter import relative
from counterpoint.outputs.counter_lines import counter_lines, shown_claims
from counterpoint.outputs.printable import printable
from counterpoint.outputs.report import width_ns
from counterpoint.proof.verdicts import ClaimProof, CounterClaimProof, EpochProof, MisStamped, VcpuProof, Verdict
from counterpoint.timeline.proving import GuestProof
from counterpoint.timeline.sync import SyncResult, offset_width
from counterpoint.traces.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from counterpoint.outputs.tool_options import ToolOption

PIPE_WIDTH = 100
"""Columns used where the output is no terminal."""

_STYLE = {
    Verdict.PROVED: "green",
    Verdict.DERIVED: "green",
    Verdict.UNBOUNDED: "yellow",
    Verdict.AMBIGUOUS: "yellow",
    Verdict.REFUTED: "bold red",
}

_MEANING = {
    Verdict.PROVED: "a claimed offset puts every checked event into a run window",
    Verdict.DERIVED: "one interval of offsets fits every checked event; found with no claim",
    Verdict.UNBOUNDED: "the host's recording says nothing about these events",
    Verdict.AMBIGUOUS: "several offsets fit: give a claim (--offset), or record for longer",
    Verdict.REFUTED: "a claim puts an event where its vCPU did not run: do not use that offset",
}


def console(file: TextIO | None = None) -> Console:
    """A console that has colour on a terminal only, and a fixed width elsewhere."""
    from rich.console import Console

    out = file or sys.stdout
    is_terminal = out.isatty()
    return Console(
        file=out,
        width=None if is_terminal else PIPE_WIDTH,
        no_color=not is_terminal,
        highlight=False,
        markup=False,
    )


def print_sync(result: SyncResult, file: TextIO | None = None, *, merged: bool = True) -> None:
    """Print the table of vCPUs, what was noticed, and the timeline's extent."""
    from rich.table import Table

    out = console(file)
    units = list(dict.fromkeys(g.recording.unit for g in result.guests))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, how in (
        ("guest", "left"),
        ("cpu", "right"),
        ("thread", "right"),
        ("verdict", "left"),
        ("offset" if len(units) > 1 else f"offset ({units[0]})", "right"),
        ("source", "left"),
        ("bound", "right"),
        ("inside", "right"),
        ("unknown", "right"),
    ):
        justify: Any = how
        table.add_column(name, justify=justify, no_wrap=name not in ("guest", "source"), overflow="fold")
    for guest in result.guests:
        for vcpu in guest.vcpus:
            for index, epoch in enumerate(vcpu.epochs):
                unit = guest.recording.unit
                cells = _row(result, guest.name, unit, vcpu, epoch, first=index == 0, several=len(units) > 1)
                table.add_row(*cells)
    out.print(table)
    _print_joins(out, result)
    _print_changes(out, result)
    for guest in result.guests:
        for line in counter_lines(guest):
            out.print(printable(line))
    _print_claims(out, result)
    for guest in result.guests:
        for vcpu in guest.vcpus:
            for note in vcpu.notes:
                out.print(f"{printable(guest.name)} cpu {vcpu.guest_cpu}: {printable(note)}", style="yellow")
            for run in vcpu.mis_stamped:
                out.print(f"{printable(guest.name)} cpu {vcpu.guest_cpu}: {_mis_stamped(run)}", style="yellow")
    seen = dict.fromkeys(e.verdict for g in result.guests for v in g.vcpus for e in v.epochs)
    out.print()
    for verdict in seen:
        out.print(f"{verdict.value}: {_MEANING[verdict]}", style=_STYLE[verdict])
    kinds = dict.fromkeys(a.kind for g in result.guests for v in g.vcpus for e in v.epochs for a in e.anchors)
    if kinds:
        out.print(f"bounds are narrowed by {', '.join(kinds)} (--json has the windows' own, and what is assumed)")
    if merged:
        _print_timeline(out, result)


def _row(
    result: SyncResult,
    name: str,
    unit: str,
    vcpu: VcpuProof,
    epoch: EpochProof,
    *,
    first: bool,
    several: bool,
) -> tuple[Any, ...]:
    from rich.text import Text

    offset = "-" if epoch.offset is None else f"{epoch.offset}{f' {unit}' if several else ''}"
    return (
        printable(name) if first else "",
        str(vcpu.guest_cpu) if first else "",
        _thread(vcpu, epoch, first=first),
        Text(epoch.verdict.value, style=_STYLE[epoch.verdict]),
        offset,
        printable(epoch.source or "-"),
        _bound(result, unit, epoch),
        f"{epoch.inside}/{epoch.checked}",
        str(epoch.unknown),
    )


def _thread(vcpu: VcpuProof, epoch: EpochProof, *, first: bool) -> str:
    """The thread of the vCPU; on a further host, that host's."""
    if epoch.host is not None:
        return f"{printable(epoch.host)} {'-' if epoch.host_tid is None else epoch.host_tid}"
    return ("-" if vcpu.host_tid is None else str(vcpu.host_tid)) if first else ""


def _print_joins(out: Console, result: SyncResult) -> None:
    unit = result.host.unit
    for host in result.hosts:
        name, first, join = printable(host.name), printable(result.host_name), host.join
        if join is None:
            out.print(f"{name}: not related to {first}, and left out of the timeline", style=_STYLE[Verdict.UNBOUNDED])
            continue
        of = f" of {', '.join(map(printable, join.guests))}" if join.guests else ""
        after = "or later" if join.latest is None else f"to {join.latest - join.stamp:+d}"
        out.print(
            f"{name}: its stamp {join.at} is {first}'s {join.stamp} ({join.earliest - join.stamp:+d} {after} {unit}),"
            f" by {join.source}{of}; beside it the bound grows by {join.rate_ppm} ppm"
        )
        out.print(f"{name}: assumed: {join.assumption}")
        for note in join.notes:
            out.print(f"{name}: {printable(note)}", style="yellow")


def _bound(result: SyncResult, unit: str, epoch: EpochProof) -> str:
    width = width_ns(epoch, result.rate_on(epoch.host))
    if width is not None:
        return f"{width} ns"
    raw = offset_width(epoch)
    return "none" if raw is None else f"{raw} {unit}"


def _print_rates(out: Console, guest: GuestProof, vcpu: VcpuProof) -> None:
    for epoch in vcpu.epochs:
        where = f"{printable(guest.name)} cpu {vcpu.guest_cpu}"
        if epoch.fitted is not None:
            lo, hi = epoch.fitted.rate_ppb
            said = epoch.fitted.rate_source or "what the clocks are said to run at"
            out.print(f"{where}: a rate was fitted: {lo:+d} to {hi:+d} ppb from {said}")
        elif not epoch.scale.is_identity:
            out.print(f"{where}: scaled by {epoch.scale.ratio} / 2^{epoch.scale.frac_bits}")


def _print_changes(out: Console, result: SyncResult) -> None:
    for guest in result.guests:
        for vcpu in guest.vcpus:
            _print_rates(out, guest, vcpu)
            for before, after in zip(vcpu.epochs, vcpu.epochs[1:], strict=False):
                if before.host != after.host:
                    where = f"{printable(guest.name)} cpu {vcpu.guest_cpu}"
                    on = printable(after.host or result.host_name)
                    if on == printable(before.host or result.host_name):
                        on = f"{on}, in thread {after.host_tid},"
                    out.print(f"{where}: on {on} from guest stamp {after.guest_from} on")
                    continue
                same = before.host_to == after.host_from
                changed = "rate or offset" if after.fitted else "offset"
                where = (
                    f"at host stamp {after.host_from}"
                    if same
                    else (f"between host stamps {before.host_to} and {after.host_from}")
                )
                by = (
                    ""
                    if before.offset is None or after.offset is None or before.scale != after.scale
                    else (f" by {after.offset - before.offset:+d} {guest.recording.unit}")
                )
                count = _doubtful(guest.recording, before, after)
                doubt = f"; {count} events about it may be of either side" if count else ""
                out.print(f"{printable(guest.name)} cpu {vcpu.guest_cpu}: the {changed} changed{by}, {where}{doubt}")


def print_options(options: Sequence[ToolOption], file: TextIO | None = None) -> None:
    """Print what other tools are to be told, each on a line of its own that can be copied."""
    out = file or sys.stdout
    for option in options:
        said = option.text if option.text is not None else f"cannot say it: {option.reason}"
        note = f"    # {option.note}\n" if option.note else ""
        out.write(f"\n{printable(option.guest)}, {option.tool}:\n{note}    {printable(said)}\n")


def _doubtful(guest: Recording, before: EpochProof, after: EpochProof) -> int:
    """How many events of two epochs may be of either: neither's beyond doubt."""
    count = 0
    if (end := before.guest_sure[1]) is not None:
        count += int((relative(guest.stamp[before.rows], end) > 0).sum())
    if (begin := after.guest_sure[0]) is not None:
        count += int((relative(guest.stamp[after.rows], begin) < 0).sum())
    return count


def _print_claims(out: Console, result: SyncResult) -> None:
    for guest in result.guests:
        for vcpu in guest.vcpus:
            shown: list[ClaimProof | CounterClaimProof] = [c for c in vcpu.claims if c.verdict is not Verdict.PROVED]
            shown += shown_claims(result, guest, vcpu)
            for proof in shown:
                out.print(
                    f"{printable(guest.name)} cpu {vcpu.guest_cpu}: {printable(_claim(proof))}",
                    style=_STYLE[proof.verdict],
                )


def _claim(proof: ClaimProof | CounterClaimProof) -> str:
    claim = proof.claim
    value = str(claim.offset) if isinstance(claim, Claim) else f"CNTVOFF {claim.cntvoff}"
    text = f"claim {claim.source} {value} is {proof.verdict.value}"
    parts = [f"{o.verdict.value} in epoch {o.epoch + 1}" for o in proof.by_epoch]
    if len(parts) > 1 and len({o.verdict for o in proof.by_epoch}) > 1:
        text += f" ({', '.join(parts)})"
    if proof.violations:
        text += f": {proof.violations} of {proof.inside + proof.violations} checked events fall outside guest mode"
    elif proof.reason:
        text += f": {proof.reason}"
    example = proof.counterexample
    if example is not None and proof.violations:
        text += (
            f"; e.g. {example.guest_event} at guest stamp {example.guest_stamp} would be at host stamp"
            f" {example.host_stamp}, where {example.reason} (look: show --around {example.host_stamp})"
        )
    return text


def _mis_stamped(run: MisStamped) -> str:
    late = "by an unknown time" if run.late_by is None else f"by {run.late_by[0]} to {run.late_by[1]}"
    return (
        f"{len(run.rows)} events (guest stamps {run.guest_from} to {run.guest_to}) were stamped late {late} by the"
        " guest's ring buffer after its counter stepped back"
    )


def _print_timeline(out: Console, result: SyncResult) -> None:
    timeline = result.timeline
    if not len(timeline):
        return
    first, last = int(timeline.ts_ns[0]), int(timeline.ts_ns[-1])
    span = f"{last - first} {'ns' if timeline.has_ns else 'ticks'}"
    lost = sum(m.recording.losses.total for m in timeline.machines)
    text = f"timeline: {len(timeline)} events of {len(timeline.machines)} machines over {span}"
    if lost:
        text += f"; {lost} events were lost while recording"
    if timeline.unplaced:
        text += f"; {timeline.unplaced} events are left out, their clock map is not known"
    if timeline.unproved:
        text += f"; {timeline.unproved} are placed where nothing proves it"
        text += " (the host saw nothing there, or a map is in doubt)"
    out.print(text)
    rate = timeline.rate
    if rate is not None and rate.source != "clock":
        out.print(f"ns: {rate.khz} kHz by {rate.source}")
