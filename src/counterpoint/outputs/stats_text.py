"""``stats`` as text of at most 80 columns, with no colour: what ``stats_report`` found, and bars."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from counterpoint.outputs.printable import printable
from counterpoint.outputs.stats_measure import Json

WIDTH = 80
ROWS = 12
"""Of a table; what is beyond is told to be."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = " ▁▂▃▄▅▆▇█"
_ASCII_HEIGHTS = " .:-=+*#%"

_STATES = {
    "guest": "in guest mode", "kernel": "exits, in the kernel", "user": "exits, in the VMM",
    "outside": "out of guest mode", "polling": "halted, polling", "halted": "halted", "blocked": "blocked",
    "waiting": "waiting for a CPU", "unknown": "not seen",
}  # fmt: skip
_CONTEXTS = {"task": "tasks", "idle": "idle", "softirq": "softirqs", "irq": "interrupts", "unknown": "not known"}
_LEVELS = {
    "unknown": "not known", "own": "its own", "enters": "its own, to run a guest", "below": "its guest's, {host} alone",
    "reflected": "its guest's, passed on",
}  # fmt: skip


def stats_lines(report: Json, *, ascii_only: bool = False) -> Iterator[str]:
    """The lines of a report; ``ascii_only``: with no sign beyond ASCII."""
    return _Lines(report, ascii_only).whole()


class _Lines:
    def __init__(self, report: Json, ascii_only: bool) -> None:
        self.report = report
        self.is_ns = report["unit"] == "ns"
        self.ascii_only = ascii_only

    # -- small things

    def time(self, value: int | None) -> str:
        """A time in three digits."""
        if value is None:
            return "-"
        if not self.is_ns:
            return _short(value)
        sign, value = ("-", -value) if value < 0 else ("", value)
        for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
            # what would be rounded up to the next unit is of it
            if value * 1000 >= size * 1000 - size // 2:
                return f"{sign}{_three(value / size)} {unit}"
        return f"{sign}{value} ns"

    def bar(self, share: float, width: int) -> str:
        """A bar of that share of ``width`` columns."""
        eighths = round(max(0.0, min(share, 1.0)) * width * 8)
        if self.ascii_only:
            return "#" * round(eighths / 8)
        return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()

    def histogram(self, buckets: Sequence[Sequence[int]], first: int, step: int, width: int) -> str:
        """Columns of ``step`` powers of two each, from bucket ``first`` on, as high as the share of the highest."""
        columns = [0] * width
        for least, count in buckets:
            columns[min(max((least.bit_length() - first) // step, 0), width - 1)] += count
        highest = max(columns)
        heights = _ASCII_HEIGHTS if self.ascii_only else _HEIGHTS
        # what is there at all is seen
        return "".join(heights[-(-count * 8 // highest) if count else 0] for count in columns)

    def spreads(
        self, title: str, rows: Sequence[tuple[str, Json]], *, total: bool = True, name: int = 20
    ) -> Iterator[str]:
        """A table of spreads with a histogram each, all on one axis."""
        heads = ["count", *(["total"] if total else []), "mean", "p50", "p99", "max"]
        width = WIDTH - name - 8 * len(heads) - 1
        # what is not above 0 has no place on the axis: it is in the first column
        some = [b[0].bit_length() for _, row in rows for b in row["histogram"] if b[0]]
        first, last = min(some, default=1), max(some, default=1)
        step = -(-(last - first + 1) // width)
        columns = -(-(last - first + 1) // step)
        yield _fit(title, name) + "".join(f"{h:>8}" for h in heads)
        for label, row in rows:
            values = [row[h] for h in heads[1:]]
            cells = "".join(f"{self.time(v):>8}" for v in values) if row["known"] else f"{'-':>8}" * len(values)
            drawn = self.histogram(row["histogram"], first, step, columns) if row["known"] else ""
            yield f"{_fit(label, name)}{_short(row['count']):>8}{cells} {drawn}".rstrip()
        if some:
            low, high = (self.time(1 << (k - 1)) for k in (first, first + step * columns))
            yield f"bars: {low} to {high}, x{1 << step} a column".rjust(WIDTH)

    # -- the whole

    def whole(self) -> Iterator[str]:
        report = self.report
        if not self.is_ns:
            yield "times are ticks of the host's clock: their rate is not known"
        for guest in report["guests"]:
            yield from self.guest(guest)
        for name in report["not_found"]:
            yield ""
            yield from _wrapped(f"{name}: no thread of its host is known to be a vCPU of it (sync says why)")
        if report["others"]:
            yield from self.others(report["others"])
        everything = report["total"]["all"]
        yield ""
        yield (
            f"in all {everything['count']:,} exits, {self.time(everything['total'])} to handle"
            f" the {everything['known']:,} whose end was seen"
        )

    def guest(self, guest: Json) -> Iterator[str]:
        name, parent = guest["name"], guest["parent"]
        several = len(guest["vcpus"]) > 1
        over = f" over {self.time(guest['vcpus'][0]['took'])}"
        yield from _title(f"{name}: {len(guest['vcpus'])} vCPU{'s' if several else ''} of {parent}{over}")
        yield from self.states(guest)
        yield from self.stolen(guest)
        yield from self.exits(guest)
        yield from self.causes(guest)
        yield from self.levels(guest, name, parent)
        yield from self.halts(guest)
        yield from self.interrupts(guest)
        yield from self.ipis(guest)
        yield from self.wakeups(guest)
        yield from self.timers(guest)
        if guest["not_known"]:
            yield ""
            for note in guest["not_known"]:
                yield from _wrapped(f"not known: {note}")

    def states(self, guest: Json) -> Iterator[str]:
        vcpus = guest["vcpus"]
        shown = vcpus if 1 < len(vcpus) <= 4 else []
        width = 36 - 8 * len(shown)
        heads = "".join(f"cpu {v['guest_cpu']}".rjust(8) for v in shown)
        yield f"{'where its time went':<24}{'time':>10}{'share':>8}  {'':<{width}}{heads}".rstrip()
        whole = guest["took"] or 1
        for state, label in _STATES.items():
            took = guest["states"][state]
            if not took:
                continue
            yield self._state(label, took, whole, width, [(v["states"][state], v["took"]) for v in shown])
            inside = {c: guest["guest_mode"][c] for c in _CONTEXTS if guest["guest_mode"][c]}
            if state == "guest" and set(inside) - {"unknown"}:
                for context, part in inside.items():
                    cells = [(v["guest_mode"][context], v["took"]) for v in shown]
                    yield self._state("  " + _CONTEXTS[context], part, whole, 0, cells, pad=width)
        yield ""

    def _state(
        self, label: str, took: int, whole: int, width: int, cells: list[tuple[int, int]], *, pad: int = 0
    ) -> str:
        bar = self.bar(took / whole, width)
        each = "".join(f"{_share(part, of):>8}" for part, of in cells)
        return f"{label:<24}{self.time(took):>10}{_share(took, whole):>8}  {bar:<{pad or width}}{each}".rstrip()

    def stolen(self, guest: Json) -> Iterator[str]:
        steal = guest["steal"]
        sums: dict[tuple[str, int | None, str | None], int] = {}
        for vcpu in guest["vcpus"]:
            for who in vcpu["waited_for"]:
                key = who["machine"], who["tid"], who["task"]
                sums[key] = sums.get(key, 0) + who["took"]
        who_ran = sorted(sums.items(), key=lambda item: -item[1])
        names = [f"{_task(tid, task)} {self.time(took)}" for (_, tid, task), took in who_ran[:4]]
        more = f" and {len(who_ran) - 4} more" if len(who_ran) > 4 else ""
        of = f", while there ran {', '.join(names)}{more}" if names else ""
        yield from _wrapped(f"stolen, as the host saw it: {self.time(steal['host_waiting'])} waiting for a CPU{of}")
        told = steal["by_guest"]
        if told is not None and told["stays"]:
            host = told["host_states"]
            least = told["took"] // 200
            parts = [f"{self.time(host[s])} {label}" for s, label in _STATES.items() if host[s] > least]
            off = told["took"] - told["accounted"]
            left = f"{self.time(off)} less" if off > 0 else "not less"
            yield from _wrapped(
                f"as the guest believed it: while tasks had its CPUs, {self.time(told['took'])} by the host's clock, it"
                f" accounted {self.time(told['accounted'])} to them by its own, {left}; of that time the host saw"
                f" {', '.join(parts)}"
            )

    def exits(self, guest: Json) -> Iterator[str]:
        found = guest["exits"]
        if not found["all"]["count"]:
            return
        yield ""
        rows = [(row["reason"], row) for row in found["by_reason"]]
        yield from self.spreads("exits", _few(rows, [("in all", found["all"])]), name=19)
        yield from _beyond(rows)
        if len(guest["vcpus"]) > 1:
            each = [(f"cpu {v['guest_cpu']}", v["exits"]["all"]) for v in guest["vcpus"]]
            yield from self.spreads("of each vCPU", each[:ROWS], name=19)
            yield from _beyond(each)
        lost = found["all"]["count"] - found["all"]["known"]
        text = "times are to the next entry, as in perf kvm stat: a halt counts until it ends"
        yield from _wrapped(f"{text}; {lost:,} have no end that was seen, and no time" if lost else text)

    def causes(self, guest: Json) -> Iterator[str]:
        found = guest["causes"]
        told = [c for c in found if c["context"] != "unknown" or c["function"]]
        if not told:
            return
        yield ""
        yield f"{'caused by':<14}{'task':<18}{'in function':<24}{'count':>8}{'total':>8}{'max':>8}"
        for cause in found[:ROWS]:
            task = cause["task"]
            doing = {"idle": "idle", "unknown": "-"}.get(cause["context"]) or _task(cause["what"], task)
            if cause["context"] in ("softirq", "irq"):
                doing = f"{cause['context']} {cause['what'] if task is None else task}"
            yield (
                f"{_fit(cause['reason'], 14)}{_fit(doing, 18)}{_fit(cause['function'] or '-', 24)}"
                f"{_short(cause['count']):>8}{self.time(cause['total']):>8}{self.time(cause['max']):>8}"
            )

    def levels(self, guest: Json, name: str, parent: str) -> Iterator[str]:
        if guest["levels"] is None:
            return
        yield ""
        rows = [(_LEVELS[row["level"]].format(host=parent), row) for row in guest["levels"]]
        yield from self.spreads(f"exits of {name} by level", rows, name=27)

    def halts(self, guest: Json) -> Iterator[str]:
        found = guest["halts"]
        if not found or not found["count"]:
            return
        yield ""
        ended, polled = found["ended_polling"], found["ended_polling"] + found["slept_after_polling"]
        text = f"halts: {found['count']:,}; {ended:,} ended while KVM polled"
        if polled:
            text += f", {_share(ended, polled)} of the {polled:,} in which it polled"
        text += f"; {found['slept_without']:,} slept at once"
        if found["slept_unknown"]:
            text += f"; {found['slept_unknown']:,} slept, polled before or not: not known"
        yield from _wrapped(text)
        rows = [(f"  cpu {v['guest_cpu']}", v["halts"]["waited"]) for v in guest["vcpus"] if v["halts"]]
        yield from self.spreads("  how long", [row for row in rows if row[1]["count"]][:ROWS], name=19)

    def interrupts(self, guest: Json) -> Iterator[str]:
        found = guest["interrupts"]
        if found is None:
            return
        yield ""
        yield f"{'interrupts':<24}{'':>8}{'asked to entry':>22}{'asked to handler':>26}"
        yield f"{'':<24}{'count':>8}{'p50':>8}{'p99':>8}{'max':>8}{'p50':>8}{'p99':>8}{'max':>8}"
        for row in found["by_number"][:ROWS]:
            label = f"{row['number']}" if row["name"] is None else f"{row['number']} {row['name']}"
            parts = row["requested_to_entered"], row["requested_to_handled"]
            cells = [self.time(part[key]) for part in parts for key in ("p50", "p99", "max")]
            yield f"{_fit(label, 24)}{_short(row['count']):>8}" + "".join(f"{c:>8}" for c in cells)
        yield from _beyond(found["by_number"])
        count, handled = (sum(row[key] for row in found["by_number"]) for key in ("count", "handled"))
        timers = all("timer" in row["sources"] for row in found["by_number"])
        text = (
            "the timer's alone, where the handler is certain"
            if timers
            else f"of {count:,} the handler of {handled:,} is certain"
        )
        yield from _wrapped(f"{text}; to within {self.time(found['bound'])}, the bound of the guest's clock")

    def ipis(self, guest: Json) -> Iterator[str]:
        found = guest["ipis"]
        if found is None or not found["by_pair"]:
            return
        yield ""
        rows = []
        key = "raised_to_handled" if found["by_pair"][0]["raised_to_injected"] is None else "raised_to_injected"
        for pair in found["by_pair"]:
            one, other = ("?" if pair[end] is None else pair[end] for end in ("from", "to"))
            rows.append((f"cpu {one} to cpu {other}", pair[key]))
        rows.sort(key=lambda row: -row[1]["count"])
        title = "IPIs, to the handler" if key == "raised_to_handled" else "IPIs, to the injection"
        yield from self.spreads(title, rows[:ROWS], total=False, name=24)
        yield from _beyond(rows)
        if key == "raised_to_handled" and found["bound"]:
            yield f"to within {self.time(found['bound'])}, the bounds of both CPUs' clocks"

    def wakeups(self, guest: Json) -> Iterator[str]:
        found = guest["wakeups"]
        if found is None or not found["all"]["count"]:
            return
        yield ""
        rows = [(_task(row["pid"], row["task"]), row) for row in found["by_task"]]
        yield from self.spreads("woken, to running", _few(rows, [("in all", found["all"])]), total=False)
        if found["tasks"] > ROWS:
            yield f"... and {found['tasks'] - ROWS} more (--json has {len(rows)})"
        if found["between_cpus"]:
            text = f"{found['between_cpus']:,} were woken by another CPU: those to within {self.time(found['bound'])}"
            yield from _wrapped(f"{text}; {found['unbounded']:,} have no bound" if found["unbounded"] else text)

    def timers(self, guest: Json) -> Iterator[str]:
        found = guest["timers"]
        if found is None or not found["all"]["count"]:
            return
        yield ""
        rows = [(row["function"] or "[no symbols]", row) for row in found["by_function"]]
        yield from _TimersInNs(self.report, self.ascii_only).spreads(
            "timers, how late", _few(rows, [("in all", found["all"])]), total=False
        )
        yield from _beyond(rows)
        if found["early"]:
            yield f"{found['early']:,} came early, within their slack"

    def others(self, vcpus: list[Json]) -> Iterator[str]:
        yield from _title("vCPUs of which no guest was recorded, or none is known to be theirs")
        yield f"{'thread':<28}{'exits':>9}{'handled':>10}{'guest mode':>12}{'waiting':>10}{'not seen':>10}"
        for vcpu in vcpus[:ROWS]:
            states, whole = vcpu["states"], vcpu["took"]
            yield (
                f"{_fit(_task(vcpu['host_tid'], vcpu['task']), 28)}{_short(vcpu['exits']['all']['count']):>9}"
                f"{self.time(vcpu['exits']['all']['total']):>10}{_share(states['guest'], whole):>12}"
                f"{_share(states['waiting'], whole):>10}{_share(states['unknown'], whole):>10}"
            )
        yield from _beyond(vcpus)


class _TimersInNs(_Lines):
    """Of what the guest's kernel itself counted in ns, whatever the host's clock."""

    def __init__(self, report: Json, ascii_only: bool) -> None:
        super().__init__(report, ascii_only)
        self.is_ns = True


def _title(text: str) -> Iterator[str]:
    yield ""
    lines = list(_wrapped(text))
    yield from lines
    yield "=" * max(map(len, lines))


def _few(rows: list[tuple[str, Json]], last: list[tuple[str, Json]]) -> list[tuple[str, Json]]:
    """The first rows, and where there are several the sum of all."""
    return rows[:ROWS] + (last if len(rows) > 1 else [])


def _beyond(rows: Sequence[object]) -> Iterator[str]:
    if len(rows) > ROWS:
        yield f"... and {len(rows) - ROWS} more (--json has all)"


def _wrapped(text: str) -> Iterator[str]:
    """A sentence in lines of at most ``WIDTH`` columns, all but the first set in; numbers stay with their units."""
    whole = re.sub(r"(\d) (ns|us|ms|s|%)(?!\w)", "\\1\0\\2", printable(text))
    for line in textwrap.wrap(whole, WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]:
        yield line.replace("\0", " ")


def _task(tid: int | None, name: str | None) -> str:
    """A thread as trace-cmd writes it."""
    if tid is None:
        return "?"
    return "idle" if tid == 0 else f"{name or '<...>'}-{tid}"


def _fit(text: str, width: int) -> str:
    """A text in so many columns, a space at the end."""
    text = printable(text)
    return text.ljust(width) if len(text) < width else text[: width - 2] + "~ "


def _share(part: int, of: int) -> str:
    return f"{100 * part / of:.1f} %" if of else "-"


def _three(value: float) -> str:
    """A number below 1000 with three digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _short(count: int) -> str:
    """A count in at most seven columns."""
    if abs(count) < 1_000_000:
        return f"{count:,}" if abs(count) < 100_000 else str(count)
    for letter, size in (("M", 10**6), ("G", 10**9), ("T", 10**12), ("P", 10**15)):
        if abs(count) < size * 999.5:
            return f"{_three(count / size)}{letter}"
    return f"{count:.1e}"
