"""Input that is broken, hostile or not what was asked for: one clear sentence, or what is left of it, never a crash."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from counterpoint.commands import main as command
from counterpoint.dat_layout import Option
from counterpoint.traces import container as container_module
from counterpoint.traces.container import open_container
from counterpoint.traces.dat import Reader
from counterpoint.traces.recording import Recording
from helpers import RECORDINGS
from writers.events import MARK, SCHED_SWITCH, Event, FieldSpec
from writers.tracedat import BUFFER, Buffer, GuestOption, TimeShift, TraceFile
from writers.worlds import tiny_pair

DATA = Path(__file__).parent.parent / "data" / "x86-agent"
KINDS = [(6, "none"), (7, "none"), (7, "zlib"), (7, "zstd")]
SECONDS = 20
MEMORY = 1 << 30


@dataclass
class Answer:
    """What the command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.out)
        return loaded

    def check_refusal(self) -> str:
        """One sentence on standard error, nothing on standard output, status 2."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.startswith("counterpoint: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Fail what takes longer, or more memory beyond what is in use."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        in_use = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + memory, limits[1]))
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def run(capsys):
    """Run the command in this process, within bounds; usage errors too give an answer."""

    def call(*argv: object) -> Answer:
        with bounded():
            try:
                status = command.main([str(a) for a in argv])
            except SystemExit as end:
                assert isinstance(end.code, int)
                status = end.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "not enough memory" not in captured.err
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A host's and a guest's file, right as they are."""
    folder = tmp_path_factory.mktemp("pair")
    host, guest, _ = tiny_pair(guest_events=200, windows=60)
    return host.write(folder / "host.dat"), guest.write(folder / "guest.dat")


@dataclass
class RealFile(TraceFile):
    """A recording from the bundled ones, in another kind of file: its own formats, options and pages."""

    pieces: dict[Option, bytes] = field(default_factory=dict)

    def _metadata(self) -> list[tuple[int, str, bytes]]:
        names = (Option.HEADER_INFO, Option.FTRACE_EVENTS, Option.EVENT_FORMATS, Option.KALLSYMS, Option.PRINTK)
        return [(name, name.name, self.pieces[name]) for name in names]

    def _cmdlines(self) -> bytes:
        return self.pieces[Option.CMDLINES]


def real_file(path: Path, version: int, compression: str) -> RealFile:
    """The recording at ``path`` with every page of it; its kernel's symbols are left out."""
    opened = open_container(path)
    reader = Reader(opened)
    pieces = {name: opened.piece(name) for name in Option if name in range(Option.HEADER_INFO, Option.CMDLINES + 1)}
    pieces[Option.KALLSYMS] = struct.pack("<I", 0)
    kept = (Option.TRACEID, Option.TIME_SHIFT, Option.GUEST, Option.UNAME)
    options = [(o.id, o.data) for o in opened.options if o.id in kept]
    buffer = opened.buffers[0]
    pages = {}
    for cpu in buffer.cpus:
        data = reader.cpu_bytes(buffer, cpu).tobytes()
        pages[cpu.cpu] = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    extra = {"uname": None, "extra_options": options, "buffers": [Buffer("", None, pages)]}
    return RealFile(version=version, compression=compression, pieces=pieces, **extra)  # type: ignore[arg-type]


class TestNoRecording:
    def test_empty_file(self, run, tmp_path):
        path = tmp_path / "t.dat"
        path.touch()

        assert run("info", path).check_refusal() == f"counterpoint: {path}, byte 0: the file is empty\n"

    @pytest.mark.parametrize("content", [b"\x17", b"\x17\x08\x44tracin", b"text\n", b"\x7fELF" + bytes(100)])
    def test_wrong_magic(self, run, tmp_path, content):
        path = tmp_path / "t.dat"
        path.write_bytes(content)

        assert f"{path}, byte 0: not a recording in any format that is understood" in run("info", path).check_refusal()

    @pytest.mark.parametrize(
        ("head", "sentence"),
        [
            (b"5\0", "byte 10: trace.dat version '5' is not known (6 and 7 are)"),
            (b"\x1b[31m\0", "is not known"),
            (b"x" * 50, "byte 10: the version has no end"),
            (b"6", "byte 10: the version has no end"),
            (b"6\0", "byte 12: the file ends inside the byte order"),
            (b"7\0\2\x08", "byte 12: byte order 2 is neither 0 (little) nor 1 (big)"),
            (b"7\0\0\7", "byte 13: a long of 7 bytes is neither 4 nor 8"),
            (b"7\0\0\x08\0\0\0\0", "byte 14: page size 0 is not in 1024..1048576"),
            (b"7\0\0\x08\xff\xff\xff\xff", "byte 14: page size 4294967295 is not in"),
            (b"7\0\0\x08\0\x10\0\0lzma\0\0" + bytes(8), "compression 'lzma' is not known (none, zlib, zstd are)"),
            (b"7\0\0\x08\0\x10\0\0none\0\0" + b"\xff" * 8, "the file ends before byte 18446744073709551615"),
        ],
    )
    def test_wrong_head(self, run, tmp_path, head, sentence):
        path = tmp_path / "t.dat"
        path.write_bytes(b"\x17\x08\x44tracing" + head)

        said = run("info", path).check_refusal()

        assert str(path) in said
        assert sentence in said
        assert said[:-1].isprintable()

    def test_directory(self, run, tmp_path):
        assert f"{tmp_path}: a capture folder has a capture.json" in run("info", tmp_path).check_refusal()
        host = run("sync", tmp_path, tmp_path / "no.dat").check_refusal()
        assert f"{tmp_path}: not a recording in any format that is understood" in host

    def test_missing_file(self, run, tmp_path):
        said = run("info", tmp_path / "no.dat").check_refusal()

        assert "no.dat: cannot be read: No such file" in said

    def test_missing_file_with_an_odd_name(self, run, tmp_path):
        said = run("info", os.fsdecode(b"\xff\x1b[31m\n.dat")).check_refusal()

        assert said[:-1].isprintable()

    def test_unreadable_file(self, run, pair, monkeypatch):
        def denied(*_args: object, **_named: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(container_module, "open", denied, raising=False)

        assert f"{pair[0]}: cannot be read: Permission denied" in run("info", pair[0]).check_refusal()

    @pytest.mark.parametrize("name", ["sync", "verify", "show"])
    def test_any_of_several_files(self, run, pair, tmp_path, name):
        path = tmp_path / "bad.dat"
        path.write_bytes(b"bad")

        assert str(path) in run(name, path, pair[1]).check_refusal()
        assert str(path) in run(name, pair[0], path).check_refusal()
        assert str(path) in run(name, *pair, path).check_refusal()


class TestRecordingsThatDoNotFit:
    def check_unbounded(self, answer: Answer, *reasons: str) -> None:
        assert answer.status == 1
        report = answer.json
        vcpus = [v for guest in report["guests"] for v in guest["vcpus"]]
        assert vcpus
        assert {v["verdict"] for v in vcpus} == {"unbounded"}
        said = " ".join([*report["warnings"], *(n for v in vcpus for n in v["notes"]), answer.err])
        for v in vcpus:
            said += " ".join(str(c["reason"]) for c in v["claims"])
        for reason in reasons:
            assert reason in said

    def test_guest_given_as_host(self, run, pair):
        answer = run("sync", "--json", pair[1], pair[0])

        self.check_unbounded(answer, "guest: no kvm_entry or kvm_exit events")

    def test_host_without_kvm_events(self, run, pair, tmp_path):
        file = TraceFile(events=[MARK])
        file.buffers[0].cpus = {0: file.stream([(i, file.payload(MARK, 1, n=i)) for i in range(9)])}

        answer = run("sync", "--json", file.write(tmp_path / "h.dat"), pair[1])

        self.check_unbounded(answer, "h: no kvm_entry, kvm_exit or sched_switch events", "record the host with -e kvm")

    def test_host_without_events(self, run, pair, tmp_path):
        answer = run("sync", "--json", TraceFile(events=[MARK]).write(tmp_path / "h.dat"), pair[1])

        self.check_unbounded(answer, "h: the recording holds no events")

    def test_guest_without_events(self, run, pair, tmp_path):
        answer = run("sync", "--json", pair[0], TraceFile(events=[MARK]).write(tmp_path / "g.dat"))

        assert answer.status == 1
        assert "g: the recording holds no events" in answer.err

    def test_claim_that_takes_the_guest_elsewhere(self, run, pair, tmp_path):
        _, guest, _ = tiny_pair(guest_events=200, windows=60)
        guest.time_shift = TimeShift(0x1057, 0, [[(0, -(10**13), 1, 0)]])

        answer = run("sync", "--json", pair[0], guest.write(tmp_path / "g.dat"))

        claims = answer.json["guests"][0]["vcpus"][0]["claims"]
        assert claims[0]["verdict"] == "unbounded"
        assert claims[0]["reason"] == "no event falls where the host saw its thread"

    def test_different_clocks(self, run, pair, tmp_path):
        _, guest, _ = tiny_pair(clock="local", claims=False)

        answer = run("sync", "--json", pair[0], guest.write(tmp_path / "g.dat"))

        self.check_unbounded(answer, "g cannot be related to host: how long a tick of host is is not known")

    def test_different_architectures(self, run, pair, tmp_path):
        _, guest, _ = tiny_pair(arch="arm64")

        self.check_unbounded(
            run("sync", "--json", pair[0], guest.write(tmp_path / "g.dat")), "g cannot be related to host"
        )

    @pytest.mark.recordings
    @pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no folder of recordings (COUNTERPOINT_RECORDINGS)")
    def test_no_overlap(self, run):
        folder = RECORDINGS / "x86-no-overlap"

        answer = run("sync", "--json", folder / "host.dat", folder / "guest.dat")

        self.check_unbounded(answer, "no thread's run windows can hold its events")

    def test_same_file_twice(self, run, pair, tmp_path):
        link = tmp_path / "link.dat"
        link.symlink_to(pair[0])

        assert "are the same file" in run("sync", pair[0], pair[0]).check_refusal()
        assert "are the same file" in run("verify", pair[0], link).check_refusal()
        assert "are the same file" in run("show", pair[0], pair[1], pair[1]).check_refusal()


class TestUsage:
    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            (["--offset", "0"], "--offset 0: [GUEST:]CPU=TICKS is expected, as in --offset 0=-81892957611"),
            (["--offset", "x=1"], "--offset x=1: [GUEST:]CPU=TICKS is expected"),
            (["--offset", "0=1.5"], "is expected"),
            (["--offset", "0="], "is expected"),
            (["--offset=-1=5"], "is expected"),
            (["--offset", "0=" + "9" * 5000], "is expected"),
            (["--offset", f"0={2**64}"], "an offset has 64 bits"),
            (["--offset", "vm:0=5"], "no guest is called 'vm' (there are: guest)"),
            (["--cntvoff", "0"], "--cntvoff 0: [GUEST:]CPU=TICKS is expected, as in --cntvoff 0=13991199888"),
            (["--cntvoff", f"0={2**64}"], "CNTVOFF has 64 bits"),
            (["--cntvoff", "vm:0=5"], "no guest is called 'vm' (there are: guest)"),
            (["--k", "5"], "--k 5: NAME=K or NAME=LO..HI is expected, as in --k host=-51935628879218171"),
            (["--k", "vm=5"], "--k vm: no recording is called 'vm' (there are: host, guest)"),
            (["--frequency", "0"], "--frequency 0: 1 to 1000000000 Hz"),
            (["--claim-event", "lab"], "--claim-event lab: SYSTEM:NAME:FIELD is expected"),
            (["--claim-event", "a:b:c"], "--claim-event a:b:c: no host has an event a:b"),
            (["--claim-event", "kvm:kvm_entry:x"], "in host its integer fields are"),
            (["--tid", "0"], "--tid 0: [GUEST:]CPU=TID is expected, as in --tid 0=191"),
            (["--tid", "0=x"], "--tid 0=x: [GUEST:]CPU=TID is expected"),
            (["--tid", "vm:0=5"], "no guest is called 'vm'"),
            (["--tid", "0=99999"], "--tid 0=99999: thread 99999 has no kvm events in host"),
            (["--parent", "x"], "--parent x: CHILD=PARENT is expected, as in --parent l2=l1"),
            (["--parent", "x=host"], "no guest is called 'x'"),
            (["--parent", "guest=x"], "no recording is called 'x'"),
            (["--parent", "guest=guest"], "guest is its own ancestor"),
            (["--parent", "host=guest"], "no guest is called 'host'"),
            (["--claims", "no.json"], "no.json: cannot be read: No such file or directory"),
            (["--claims", "/"], "/: cannot be read: Is a directory"),
        ],
    )
    @pytest.mark.parametrize("name", ["sync", "verify", "show"])
    def test_claims_and_matching(self, run, pair, name, flags, sentence):
        said = run(name, *pair, *flags).check_refusal()

        assert sentence in said

    @pytest.mark.parametrize("flag", ["--offset", "--cntvoff", "--tid"])
    def test_a_cpu_without_events_is_said(self, run, pair, flag):
        thread = 147

        answer = run("sync", *pair, flag, f"7={thread}")

        assert f"CPU 7, which {flag} speaks of, has no events" in answer.err

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"{", "line 1 is no claim: Expecting property name"),
            (b'{"machine": "host", "k": []}', "line 1 is no claim: its 'k' is neither an integer nor a list"),
            (b"\n[]", "line 2 is no claim: an object is expected"),
            (b"1", "an object is expected"),
            (b"[" * 100_000, "nested too deep"),
            (b'{"offset": 1}', "it has no 'cpu'"),
            (b'{"cpu": 0}', "it has no 'offset'"),
            (b'{"cpu": 0, "offset": "1"}', "its 'offset' is no integer of 64 bits"),
            (b'{"cpu": true, "offset": 1}', "its 'cpu' is no integer"),
            (b'{"cpu": -1, "offset": 1}', "its 'cpu' is no integer"),
            (b'{"cpu": 0, "offset": 1' + b"0" * 30 + b"}", "its 'offset' is no integer of 64 bits"),
            (b'{"cpu": 0, "offset": 1' + b"0" * 5000 + b"}", "line 1 is no claim"),
            (b'{"cpu": 0, "offset": 1, "host_from": 1.5}', "its 'host_from' is no integer"),
            (b'{"cpu": 0, "offset": 1, "guest": "vm"}', "no guest is called 'vm'"),
            (b"\xff\xfe", "byte 0: is no text in UTF-8"),
        ],
    )
    def test_claims_file(self, run, pair, tmp_path, content, sentence):
        path = tmp_path / "claims.json"
        path.write_bytes(content)

        said = run("sync", *pair, "--claims", path).check_refusal()

        assert sentence in said

    def test_claims_at_the_edges_of_64_bits(self, run, pair, tmp_path):
        path = tmp_path / "claims.json"
        edges = [-(2**64) + 1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1]
        claims = [{"cpu": 0, "offset": o, "host_from": abs(o), "host_to": 2**64 - 1} for o in edges]
        path.write_text("\n".join(map(json.dumps, claims)))

        answer = run("sync", "--json", *pair, "--claims", path)

        assert answer.status in (0, 1)
        assert answer.json["guests"][0]["vcpus"]

    @pytest.mark.parametrize("name", ["x", "x.data", "x.foo", "x.pftrace.gz"])
    def test_unknown_ending(self, run, pair, tmp_path, name):
        said = run("sync", *pair, "-o", tmp_path / name).check_refusal()

        assert "the ending must be one of .pftrace .dat .parquet .txt .html .json" in said
        assert not (tmp_path / name).exists()

    @pytest.mark.parametrize("ending", [".pftrace", ".dat", ".txt", ".html", ".json"])
    def test_output_exists(self, run, pair, tmp_path, ending):
        path = tmp_path / f"x{ending}"
        path.write_text("precious")

        said = run("sync", *pair, "-o", path).check_refusal()

        assert "the file exists (--force overwrites it)" in said
        assert path.read_text() == "precious"
        assert run("sync", *pair, "-o", path, "--force").status in (0, 1)
        assert path.read_bytes() != b"precious"

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("force", [False, True])
    def test_output_is_an_input(self, run, pair, tmp_path, which, force):
        copies = [tmp_path / "host.txt", tmp_path / "guest.txt"]
        for copy, original in zip(copies, pair, strict=True):
            copy.write_bytes(original.read_bytes())

        said = run("sync", *copies, "-o", copies[which], *(["--force"] if force else [])).check_refusal()

        assert "that is one of the recordings" in said
        assert copies[which].read_bytes() == pair[which].read_bytes()

    def test_output_in_no_folder(self, run, pair, tmp_path):
        said = run("sync", *pair, "-o", tmp_path / "no" / "x.txt").check_refusal()

        assert "does not exist" in said

    def test_output_is_a_folder(self, run, pair, tmp_path):
        (tmp_path / "x.txt").mkdir()

        run("sync", *pair, "-o", tmp_path / "x.txt").check_refusal()
        run("sync", *pair, "-o", tmp_path / "x.txt", "--force").check_refusal()

    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            (["--cpu", "x"], "--cpu x: [MACHINE:]CPU is expected"),
            (["--cpu", "²"], "[MACHINE:]CPU is expected"),
            (["--cpu", "vm:0"], "no machine is called 'vm' (there are: host)"),
            (["--machine", "vm"], "no machine is called 'vm'"),
            (["--from", "x"], "--from x: a host stamp is expected"),
            (["--to", "1.5"], "--to 1.5: a host stamp is expected"),
            (["--around", "²"], "a host stamp is expected"),
            (["--around", "9" * 5000], "a host stamp is expected"),
        ],
    )
    def test_selection(self, run, pair, flags, sentence):
        assert sentence in run("show", pair[0], *flags).check_refusal()

    @pytest.mark.parametrize(
        "flags",
        [
            ["--from", str(10**30)],
            ["--to", "-1"],
            ["--last", "0"],
            ["--last", "-5"],
            ["--around", str(10**30), "--context", "-1"],
            ["--cpu", "4096"],
            ["--task", "["],
            ["--event", "no:such"],
        ],
    )
    def test_selection_of_nothing(self, run, pair, flags):
        answer = run("show", pair[0], *flags)

        assert (answer.status, answer.out) == (0, "")

    @pytest.mark.parametrize(
        "argv",
        [[], ["frob"], ["info"], ["sync"], ["info", "--frob", "x"], ["show", "x", "--last", "x"]],
    )
    def test_arguments(self, run, argv):
        answer = run(*argv)

        assert answer.status == 2
        assert answer.out == ""
        assert answer.err.startswith("usage: ")

    @pytest.mark.parametrize("command", ["sync", "verify"])
    def test_a_host_alone(self, run, command):
        # a capture folder may stand alone, a recording may not
        assert "a guest's recording is needed" in run(command, "host.dat").check_refusal()


class TestTruncated:
    """A real recording, cut short: what is left is read and marked, or the file is refused in one sentence."""

    @pytest.fixture(params=KINDS, ids=lambda kind: f"v{kind[0]}-{kind[1]}")
    def real(self, request):
        file = real_file(DATA / "guest.dat", *request.param)
        return file.to_bytes(), file.sections()

    def cuts(self, data: bytes, sections: list[tuple[str, int, int]]) -> list[int]:
        chance = random.Random(len(data))
        boundaries = {at + step for _, start, end in sections for at in (start, end) for step in (-1, 0, 1)}
        inside = [cut for cut in boundaries if 0 <= cut < len(data)]
        return sorted({*inside, *(chance.randrange(len(data)) for _ in range(200))})

    @pytest.mark.long
    def test_info(self, run, real, tmp_path):
        data, sections = real
        path = tmp_path / "t.dat"
        path.write_bytes(data)
        whole = run("info", "--json", path).json
        assert whole["warnings"] == []
        assert whole["events"] == len(Recording.open(DATA / "guest.dat"))
        read, refused = [], 0

        for cut in self.cuts(data, sections):
            path.write_bytes(data[:cut])
            answer = run("info", "--json", path)
            if answer.status == 2:
                said = answer.check_refusal()
                assert said.startswith(f"counterpoint: {path}")
                refused += 1
                continue
            assert answer.status == 0
            report = answer.json
            assert report["warnings"] or report["events"] == whole["events"]
            assert all(text.startswith(str(path)) for text in report["warnings"])
            assert answer.err == "".join(f"counterpoint: {text}\n" for text in report["warnings"])
            assert report["events"] <= whole["events"]
            read.append(report["events"])

        assert refused
        assert read == sorted(read)
        assert max(read) > 0.9 * whole["events"]

    def test_sync_and_show(self, run, real, tmp_path):
        data, sections = real
        path = tmp_path / "guest.dat"

        for cut in self.cuts(data, sections)[::12]:
            path.write_bytes(data[:cut])
            synced, shown = run("sync", "--json", DATA / "host.dat", path), run("show", path)
            if synced.status == 2:
                assert synced.check_refusal() == shown.check_refusal()
                continue
            assert synced.status in (0, 1)
            assert shown.status == 0
            report = synced.json
            assert report["guests"][0]["events"] == len(
                [line for line in shown.out.splitlines() if "DROPPED]" not in line]
            )
            assert all(f"counterpoint: {text}\n" in synced.err for text in report["warnings"])

    def test_real_processes_say_the_same(self, run, real, tmp_path):
        data, _ = real
        path = tmp_path / "guest.dat"
        for cut in (0, 100, len(data) // 2, len(data) - 3000):
            path.write_bytes(data[:cut])
            expected = run("info", path)

            done = process("info", path)

            assert (done.returncode, done.stderr) == (expected.status, expected.err)


def process(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "counterpoint", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(command.__file__).parents[2])},
    )


class TestDamaged:
    """A compressed section that cannot be inflated: the rest is read, and what is missing is said once."""

    @pytest.mark.parametrize(
        ("title", "section"),
        [
            ("headers", "HEADER_INFO"),
            ("ftrace events", "FTRACE_EVENTS"),
            ("events format", "EVENT_FORMATS"),
            ("kallsyms", "KALLSYMS"),
            ("printk", "PRINTK"),
            ("command lines", "CMDLINES"),
        ],
    )
    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_section(self, run, tmp_path, compression, title, section):
        file, guest, _ = tiny_pair(compression=compression)
        data, path = bytearray(file.to_bytes()), tmp_path / "t.dat"
        start = next(start for name, start, _ in file.sections() if name == title)
        data[start + 8 : start + 12] = b"\xff" * 4  # the first of what is packed
        path.write_bytes(data)
        other, text = guest.write(tmp_path / "g.dat"), tmp_path / "x.txt"

        for argv in (
            ["info", path],
            ["info", "--json", path],
            ["show", path],
            ["sync", path, other, "-o", text, "--force"],
        ):
            answer = run(*argv)

            assert answer.status in (0, 1)
            warned = [line for line in answer.err.splitlines() if section in line]
            # symbols and strings are read where an event names one: none does here
            assert len(warned) == (argv[0] == "info" or section not in ("KALLSYMS", "PRINTK"))
            for line in warned:
                assert line.startswith(f"counterpoint: {path}, byte {start}: section {section}: bad {compression} data")


class TestProcesses:
    def test_bad_file(self, tmp_path):
        path = tmp_path / "t.dat"
        path.write_bytes(b"nothing")

        done = process("sync", path, path)

        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1

    def test_reader_that_goes_away(self, pair):
        command_line = f"'{sys.executable}' -m counterpoint show '{pair[0]}' --raw | head -1"
        env = os.environ | {"PYTHONPATH": str(Path(command.__file__).parents[2])}

        done = subprocess.run(
            ["sh", "-c", command_line], capture_output=True, text=True, env=env, timeout=60, check=True
        )

        assert done.stdout.count("\n") == 1
        assert done.stderr == ""

    @pytest.mark.parametrize("argv", [["info"], ["show"], ["sync"]])
    def test_terminal_that_lacks_letters(self, tmp_path, pair, monkeypatch, argv):
        host, guest, _ = tiny_pair(uname="Linux hôst", vcpus=1, windows=60, guest_events=200)
        host.guests = [GuestOption("gäst\x1b[31m", 0x6E57, [(0, 147)])]
        host.cmdlines = {147: "é\x1b[2J"}
        files = [host.write(tmp_path / "hôst.dat"), guest.write(tmp_path / "gäst.dat")]
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")

        done = process(*argv, *files[: 2 if argv == ["sync"] else 1])

        assert done.returncode in (0, 1)
        assert done.stderr == ""
        assert done.stdout.isascii()
        assert "\x1b" not in done.stdout


def small(kind: tuple[int, str], **options: Any) -> TraceFile:
    """A file with something in all of its parts, as small as can be."""
    file, _, _ = tiny_pair(windows=4, guest_events=4, vcpus=2, version=kind[0], compression=kind[1], **options)
    file = replace(
        file, kallsyms="ff00 T start\n", printk='0xff01 : "text"\n', date=0x10, ts_offset=5, cpustat=["CPU: 0"]
    )
    file.tsc2nsec = (1 << 20, 20, 0)
    file.time_shift = TimeShift(0x123, 0, [[(5, -1000, 1, 0)]] * 2)
    file.buffers.append(Buffer("inst", "mono", {1: file.stream([(10, file.payload(SCHED_SWITCH, 3))])}))
    return file


class TestHostile:
    """Files that lie: an error of this package or what is left of the file, in bounded time and memory."""

    def hold(self, run, path: Path, *, commands: tuple[str, ...] = ("info",)) -> None:
        for name in commands:
            files = [path] if name != "sync" else [path, path.parent / "other.dat"]
            answer = run(name, *files, *(["--json"] if name in ("info", "sync") else []))
            if answer.status == 2:
                answer.check_refusal()
            else:
                assert answer.status in (0, 1)

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("kind", "big_endian"), [*((kind, False) for kind in KINDS), ((6, "none"), True), ((7, "none"), True)]
    )
    def test_huge_counts_and_sizes_everywhere(self, run, tmp_path, kind, big_endian):
        file = small(kind, big_endian=big_endian)
        data, path = file.to_bytes(), tmp_path / "t.dat"
        places = {at for _, start, end in file.sections() for at in islice(range(start, end), 20)}

        for at in random.Random(7).sample(sorted(places), 400):
            lie = b"\x7f\xff\xff\xff" if at % 2 else b"\xff" * 8
            path.write_bytes(data[:at] + lie + data[at + len(lie) :])
            self.hold(run, path)

    @pytest.mark.parametrize("seed", range(200))
    def test_flipped_bytes(self, run, tmp_path, seed):
        chance = random.Random(seed)
        file = small(KINDS[seed % len(KINDS)], big_endian=seed % 3 == 0)
        data = bytearray(file.to_bytes())
        _, guest, _ = tiny_pair(windows=4, guest_events=4, vcpus=2)
        guest.write(tmp_path / "other.dat")
        for _ in range(chance.choice((1, 3, 20))):
            # most of a file is padding: favour the rest
            at = chance.randrange(len(data))
            while data[at] == 0 and chance.random() < 0.9:
                at = chance.randrange(len(data))
            data[at] ^= 1 << chance.randrange(8)
        path = tmp_path / "t.dat"
        path.write_bytes(data)

        self.hold(run, path, commands=("info", "sync", "show"))

    @pytest.mark.parametrize("seed", range(40))
    def test_flipped_bytes_of_a_guest(self, run, tmp_path, seed):
        chance = random.Random(seed)
        host, guest, _ = tiny_pair(
            windows=8, guest_events=20, version=KINDS[seed % 4][0], compression=KINDS[seed % 4][1]
        )
        data = bytearray(guest.to_bytes())
        for _ in range(chance.choice((1, 5, 50))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path = tmp_path / "t.dat"
        path.write_bytes(data)

        files = host.write(tmp_path / "host.dat"), path
        answer = run("sync", "--json", *files, "-o", tmp_path / "o.dat", "--attach", tmp_path / "copies")

        assert answer.status in (0, 1) or answer.check_refusal()

    def test_option_sections_in_a_circle(self, run, tmp_path):
        file = TraceFile(events=[MARK])
        data = bytearray(file.to_bytes())
        first = next(start for name, start, _ in file.sections() if name == "options header")
        links = [start + 6 for name, start, _ in file.sections() if name == "option 0"]
        path = tmp_path / "t.dat"

        for link in links:
            path.write_bytes(data[:link] + first.to_bytes(8, "little") + data[link + 8 :])
            answer = run("info", "--json", path)

            assert answer.status == 0
            assert "the option sections run in a circle" in str(answer.json["warnings"])

    def test_option_sections_without_end(self, run, tmp_path):
        path = tmp_path / "t.dat"
        head = TraceFile(events=[]).to_bytes()[:18] + b"none\0\0"
        body = bytearray()
        for _ in range(20_000):
            following = len(head) + 8 + len(body) + 30
            body += struct.pack("<HHIQ", 0, 0, 0, 14) + struct.pack("<HIQ", 0, 8, following)
        path.write_bytes(head + struct.pack("<Q", len(head) + 8) + body)

        self.hold(run, path)

    @pytest.mark.parametrize("claim", [1 << 20, 1 << 26, (1 << 26) + 1, (1 << 31) - 1, (1 << 32) - 1])
    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_blocks_that_claim_to_hold_more(self, run, tmp_path, compression, claim):
        file = small((7, compression))
        data, path = file.to_bytes(), tmp_path / "t.dat"

        for name, start, end in file.sections():
            at = start + 8 if " cpu " in name else start + 4
            if end - start > 16 and (" cpu " in name or f"{name} header" in {n for n, _, _ in file.sections()}):
                path.write_bytes(data[:at] + claim.to_bytes(4, "little") + data[at + 4 :])
                self.hold(run, path)

    def test_bomb(self, run, tmp_path):
        file = TraceFile(compression="zlib", events=[MARK])
        zeros = bytes(64 << 20)
        file.buffers[0].cpus = {cpu: [zeros] for cpu in range(8)}
        packed = zlib.compress(zeros, 9)
        file._chunks = lambda pages: struct.pack("<III", 1, len(packed), len(pages[0])) + packed  # type: ignore[method-assign]
        path = file.write(tmp_path / "t.dat")

        answer = run("info", "--json", path)

        assert path.stat().st_size < 4 << 20
        assert "too many for such a file" in str(answer.json["warnings"])

    def test_one_place_for_the_data_of_many_cpus(self, run, tmp_path):
        file = TraceFile(events=[MARK])
        pages = file.stream([(i, file.payload(MARK, 1, n=i)) for i in range(20_000)])
        file.buffers[0].cpus = {0: pages}
        data = bytearray(file.to_bytes())
        section = next(start for name, start, _ in file.sections() if name == "buffer header")
        at = next(start for name, start, _ in file.sections() if name == "buffer cpu 0")
        option = struct.pack("<Q", section) + b"\0x86-tsc\0" + struct.pack("<II", 4096, 6_000)
        option += b"".join(struct.pack("<IQQ", cpu, at, 4096 * len(pages)) for cpu in range(6_000))
        link = [start + 6 for name, start, _ in file.sections() if name == "option 0"][-1]
        data[link : link + 8] = len(data).to_bytes(8, "little")
        data += struct.pack("<HHIQ", 0, 0, 0, len(option) + 20) + struct.pack("<HI", BUFFER, len(option)) + option
        data += struct.pack("<HIQ", 0, 8, 0)
        path = tmp_path / "t.dat"
        path.write_bytes(data)

        answer = run("info", "--json", path)

        assert "overlap" in str(answer.json["warnings"])
        assert answer.json["events"] < 200_000

    def test_many_instances_of_many_cpus(self, run, tmp_path):
        file = TraceFile(version=6, events=[MARK], cpu_count=20_000)
        data = bytearray(file.to_bytes())
        mark = next(start for name, start, _ in file.sections() if name == "buffer mark")
        end = next(start for name, start, _ in file.sections() if name == "options end")
        option = struct.pack("<HIQ", BUFFER, 10, mark + 1000 * 16) + b"i\0"
        path = tmp_path / "t.dat"
        path.write_bytes(data[:end] + 1000 * option + data[end:])

        self.hold(run, path)

    def test_very_many_fields(self, run, tmp_path):
        event = Event(2002, "marks", "wide", [FieldSpec("u8", f"f{i}") for i in range(100_000)], '"%d", REC->f1')
        file = TraceFile(events=[event, MARK])
        record = struct.pack("<HBBi", event.id, 0, 0, 1) + b"\7" * 100
        file.buffers[0].cpus = {0: file.stream([(1, record), (2, file.payload(MARK, 1, n=5))])}
        path = file.write(tmp_path / "t.dat")

        self.hold(run, path, commands=("info", "show"))

    def test_very_many_events(self, run, tmp_path):
        file = TraceFile(events=[replace(MARK, id=i % 65536, name=f"e{i}") for i in range(20_000)])

        self.hold(run, file.write(tmp_path / "t.dat"), commands=("info", "show"))

    @pytest.mark.parametrize(
        "text",
        [
            "name: x\nID: 2001\nformat:\n\tfield:" + "[" * 10**6 + ";\toffset:8;\tsize:4;\n",
            "name: x\nID: 2001\nformat:\n\tfield:int a;\toffset:" + "9" * 10**5 + ";\tsize:4;\n",
            "name: x\nID: 2001\n" + "\n" * 10**6,
            'name: x\nID: 2001\nprint fmt: "%d", ' + "(" * 10**5,
            'name: x\nID: 2001\nprint fmt: "' + "%d" * 10**5 + '", ' + "1, " * 10**5,
            'name: x\nID: 2001\nprint fmt: "%99999999999s%*d", "a", 999999999, 1\n',
        ],
        ids=["brackets", "digits", "lines", "parentheses", "conversions", "widths"],
    )
    def test_formats_that_are_hard_to_read(self, run, tmp_path, text):
        class Odd(Event):
            def format_text(self, long_size: int = 8) -> str:
                return text

        file = TraceFile(events=[MARK])
        file.buffers[0].cpus = {0: file.stream([(i, file.payload(MARK, 1, n=i)) for i in range(3)])}
        file.events = [Odd(2001, "marks", "x")]

        self.hold(run, file.write(tmp_path / "t.dat"), commands=("info", "show"))

    def test_names_that_steer_a_terminal(self, run, tmp_path):
        odd = "\x1b[2J\x07\r"
        file = TraceFile(events=[replace(MARK, name=f"m{odd}", system=f"s{odd}")], uname=f"Linux {odd}")
        file.guests = [GuestOption(f"g{odd}", 5, [(0, 1)])]
        file.cmdlines = {1: f"c{odd}"}
        file.buffers[0].cpus = {0: file.stream([(1, file.payload(MARK, 1, n=1))])}
        file.buffers.append(Buffer(f"b{odd}"))
        path = file.write(tmp_path / "t.dat")

        for argv in (["info", path], ["info", "--json", path], ["show", path], ["show", "--raw", path]):
            answer = run(*argv)

            assert answer.status == 0
            assert [line for line in (answer.out + answer.err).split("\n") if not line.isprintable()] == []
