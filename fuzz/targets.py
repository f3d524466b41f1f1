"""What is fuzzed: each target takes bytes, and what it starts from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from counterpoint.claims.given import read_claims
from counterpoint.errors import CounterpointError
from counterpoint.live import wire
from counterpoint.outputs.report import sync_report
from counterpoint.outputs.text import EventText
from counterpoint.timeline.sync import sync
from counterpoint.traces.capture import Capture
from counterpoint.traces.formats import parse_format
from counterpoint.traces.printing import Symbols, compile_fields, compile_print
from counterpoint.traces.recording import Recording
from writers.events import MARK, SCHED_SWITCH
from writers.tracedat import TraceFile
from writers.worlds import tiny_pair

DATA = Path(__file__).parent.parent / "tests" / "data"
SHOWN = 200
"""Events of each kind that are shown as text."""


@dataclass(frozen=True)
class Target:
    """``seeds`` are inputs that are right, ``run`` reads one; it raises only what is no CounterpointError."""

    about: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], None]


@cache
def _folder() -> Path:
    """One folder for all inputs of this process, in memory where that can be."""
    shm = Path("/dev/shm")  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="counterpoint-fuzz-", dir=shm if shm.is_dir() else None))


def _file(data: bytes, name: str) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


def _read(path: Path) -> None:
    """Open a recording, and look at all that it has."""
    recording = Recording.open(path)
    text, raw = EventText(recording), EventText(recording, raw=True)
    for event_id in recording.counts_by_id():
        rows = recording.rows(event_id)[:SHOWN]
        text.render(event_id, rows)
        raw.render(event_id, rows)
        recording.event_name(event_id)
    for pid in np.unique(recording.pid)[:SHOWN].tolist():
        recording.comm(pid)
    _ = recording.losses.total, recording.clock, recording.cpus, recording.unseen_until, recording.lost_after


def _recording(name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with suppress(CounterpointError):
            _read(_file(data, name))

    return run


def _worlds(**options: object) -> list[bytes]:
    host, guest, _ = tiny_pair(windows=4, guest_events=8, lost=1, **options)  # type: ignore[arg-type]
    return [host.to_bytes(), guest.to_bytes()]


def _dat_seeds() -> list[bytes]:
    return [
        data
        for version, compression in ((6, "none"), (7, "none"), (7, "zlib"), (7, "zstd"))
        for data in _worlds(version=version, compression=compression)
    ] + _worlds(arch="arm64", version=6, big_endian=True)


def _guest(data: bytes) -> None:
    """A guest's file against a good host: what it says must not harm its host's tool."""
    host, _ = _good_pair()
    with suppress(CounterpointError):
        json.dumps(sync_report(sync(host, _file(data, "guest.dat"))))


@cache
def _good_pair() -> tuple[Recording, bytes]:
    host, guest, _ = tiny_pair(windows=12, guest_events=30)
    return Recording.open(host.write(_folder() / "host.dat")), guest.to_bytes()


def _format(data: bytes) -> None:
    symbols = Symbols(lambda: b"", lambda: b"", long_size=8, big_endian=False)
    try:
        event = parse_format(data.decode("utf-8", "replace"), "system", 8)
        if event is not None:
            compile_print(event, symbols)
            compile_fields(event, symbols)
    except CounterpointError:
        pass


def _format_seeds() -> list[bytes]:
    seeds = [event.format_text().encode() for event in (MARK, SCHED_SWITCH)]
    field = "\tfield:int a;\toffset:8;\tsize:4;\tsigned:1;\n"
    for pair in ("x86-agent", "arm64-monoraw"):
        recording = Recording.open(DATA / pair / "host.dat")
        seeds += [
            f"name: x\nID: 1\nformat:\n{field}\n\nprint fmt: {event.print_fmt}\n".encode()
            for event in list(recording.formats.values())[::5]
        ]
    return seeds


def _text_seeds() -> list[bytes]:
    lines = [
        "# tracer: nop\n#\n# entries-in-buffer/entries-written: 3/3   #P:2\n#\n",
        "            bash-1977    [000] .....    17.284993: kvm_entry: vcpu 0, rip 0xffffffff81\n",
        "       CPU 0/KVM-1980    [001] d..1.    17.285001: kvm_exit: vcpu 0 reason HLT rip 0x1 info1 0x0 info2 0x0\n",
        "CPU:1 [LOST 12 EVENTS]\n",
        "##### CPU 1 buffer started ####\n",
        "          <idle>-0       [000] d..2.    17.285100: sched_switch: prev_comm=a prev_pid=0 prev_prio=120"
        " prev_state=R ==> next_comm=b next_pid=7 next_prio=120\n",
    ]
    report = "cpus=2\n" + "".join(
        f"       CPU 0/KVM-191   [000] {311396966024 + n * 1000}: kvm_{kind}: vcpu 0\n"
        for n, kind in enumerate(["entry", "exit"] * 5)
    )
    return ["".join(lines).encode(), report.encode()]


def _claims(data: bytes) -> None:
    with suppress(CounterpointError):
        read_claims(_file(data, "claims.jsonl"))


def _capture(data: bytes) -> None:
    folder = _folder() / "capture"
    folder.mkdir(exist_ok=True)
    (folder / "capture.json").write_bytes(data)
    for name in ("host.dat", "guest.dat"):
        if not (folder / name).exists():
            TraceFile().write(folder / name)
    with suppress(CounterpointError):
        Capture.open(folder)


def _wire(data: bytes) -> None:
    reader = wire.Reader()
    try:
        for at in range(0, len(data), 7):
            reader.feed(data[at : at + 7])
    except wire.WireError:
        pass


_CAPTURE = {
    "schema": 1, "host": {"file": "host.dat"},
    "guests": [{"file": "guest.dat", "threads": {"0": 147}, "claims": [{"vcpu": 0, "offset": -5}]}],
}  # fmt: skip

TARGETS = {
    "dat": Target("trace.dat, both versions, all compressions", _dat_seeds, _recording("fuzzed.dat")),
    "perf": Target("perf.data", lambda: [(DATA / "perf" / "host.data").read_bytes()], _recording("fuzzed.data")),
    "text": Target("ftrace's text and trace-cmd report's", _text_seeds, _recording("fuzzed.txt")),
    "format": Target("event formats and their print formats", _format_seeds, _format),
    "guest": Target("a guest's trace.dat, put on a good host's timeline", lambda: [_good_pair()[1]], _guest),
    "claims": Target(
        "a claims file",
        lambda: [b'{"vcpu": 0, "offset": -5}\n{"guest": "vm", "vcpu": 1, "offset": 7, "ratio": 3, "frac_bits": 32}\n'],
        _claims,
    ),
    "capture": Target("capture.json", lambda: [json.dumps(_CAPTURE).encode()], _capture),
    "wire": Target(
        "trace-cmd's messages",
        lambda: [b"".join(wire.Message(n, b"\0" * 24, b"x" * n).encode() for n in range(8))],
        _wire,
    ),
}
