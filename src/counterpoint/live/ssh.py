"""A guest that has nothing but a shell: ``ssh://[USER@]HOST[:PORT]``.

A script of POSIX shell (sh, cat, dd, grep, mkdir, mktemp, rm, sleep, wc) is handed to the guest's own sh by ssh. It
makes an instance in the guest's tracefs, sends what a file's head needs, then the pages of each CPU as they become
whole, and at the end what is left. It ends, and removes all that it made, when it is told to or when the connection
ends.

Pages are read by dd, which blocks where there is none: never more are asked for than per_cpu/cpuN/stats says are there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from counterpoint.errors import UsageError
from counterpoint.live import folder as parts_of
from counterpoint.live.folder import Parts, is_stem
from counterpoint.live.guests import GuestFile, Wanted
from counterpoint.live.stats import total
from counterpoint.live.tracedat import MAX_TEXT, head_from, new_trace_id

START_SECONDS = 60.0
"""Until the guest records: it sends its formats and symbols before."""
STOP_SECONDS = 60.0
"""Without a byte, after it was told to stop."""
MAX_CHUNK = 256 << 20
MAX_CPUS = 1 << 12

_URL = re.compile(
    r"ssh://(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\])(?::(?P<port>\d{1,5}))?/?", re.ASCII
)
_PATTERN = re.compile(r"[\w*?]+:[\w*?]+", re.ASCII)

# $1 clock, $2 buffer_kb, $3 1: in a circle, then the events; descriptor 0 says when to stop
SCRIPT = r"""
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin:/usr/bin:/bin"
die() { printf 'X %s\n' "$*"; exit 3; }
[ "$(id -u)" = 0 ] || die "it needs root there: ssh as root, or let the user run sudo without a password"
for t in /sys/kernel/tracing /sys/kernel/debug/tracing; do [ -d $t/instances ] && break; done
[ -d $t/instances ] || die "tracefs is not mounted there: mount -t tracefs nodev /sys/kernel/tracing"
begun() { [ -r /proc/$1/stat ] && { read -r s < /proc/$1/stat; s=${s##*) }; set -- $s; printf '%s' "${20}"; }; }
for x in $t/instances/counterpoint_*_*_*; do
  [ -d "$x" ] || continue
  p=${x##*/counterpoint_}; s=${p#*_}; p=${p%%_*}; s=${s%%_*}
  [ "$(begun $p)" = "$s" ] || { echo 0 > $x/events/enable; rmdir $x; } 2>/dev/null
done
clock=$1; kb=$2; circle=$3; shift 3
w=$(mktemp -d) || die "no temporary folder can be made there"
i=$t/instances/counterpoint_$$_$(begun $$)_0
clean() {
  trap '' HUP INT TERM PIPE; trap - EXIT
  [ -d $i ] && { echo 0 > $i/events/enable; n=0; until rmdir $i || [ $n = 5 ]; do sleep 1; n=$((n+1)); done; }
  rm -rf $w
  [ -n "$reader" ] && kill $reader
} 2>/dev/null
reader=
trap clean EXIT
trap 'exit 4' HUP INT TERM PIPE
mkdir $i || die "no tracefs instance can be made there"
send() { printf 'B %s %s\n' $1 $(($(wc -c < $2))) || exit 5; cat $2 || exit 5; }
e=$i/events
[ -e $e/header_page ] || e=$t/events
cat $e/header_page > $w/x; send header_page $w/x
cat $t/events/header_event > $w/x; send header_event $w/x
set -f; globs=; some=; whole=
for a in "$@"; do
  f=$t/events/${a%%:*}/${a#*:}/format; globs="$globs $f"
  case $a in *[*?]*:*) some="$some $f";; *:\*) whole="$whole $a";; *) some="$some $f";; esac
done
set +f
grep -s '' /dev/null $t/events/ftrace/*/format $globs > $w/x; send formats $w/x
cat /proc/kallsyms > $w/x; send kallsyms $w/x
cat $t/printk_formats > $w/x; send printk_formats $w/x
echo 0 > $i/tracing_on
echo $clock > $i/trace_clock || die "it has no trace clock $clock"
echo $kb > $i/buffer_size_kb || die "no buffers of $kb KB can be had there"
set -f; for a in $whole; do echo "$a" >> $i/set_event; done 2>/dev/null; set +f
for f in $some; do
  [ -e $f ] || continue
  f=${f%/format}; x=${f%/*}; echo ${x##*/}:${f##*/} >> $i/set_event
done 2>/dev/null
grep -q . $i/set_event || die "it has none of the events that are asked for"
cat $i/trace_clock > $w/x; send trace_clock $w/x
{ uname -s; uname -n; uname -r; uname -m; } > $w/x; send uname $w/x
page=4096
kb=4; [ -r $i/buffer_subbuf_size_kb ] && read -r kb < $i/buffer_subbuf_size_kb
page=$((kb * 1024))
cpus=; for c in $i/per_cpu/cpu*; do cpus="$cpus ${c##*/cpu}"; done
printf 'R %s %s\n' $page "$(set -- $cpus; echo $#)" || exit 5
exec 3<&0
( read -r x <&3; : > $w/stop ) 2>/dev/null &
reader=$!
echo 1 > $i/tracing_on
printf 'G\n'
have() { bytes=0; entries=0; while IFS=': ' read -r k v r; do
  case $k in bytes) bytes=$v;; entries) entries=$v;; esac; done < $i/per_cpu/cpu$1/stats; }
take() { dd if=$i/per_cpu/cpu$1/trace_pipe_raw of=$w/p bs=$page count=$2 2>/dev/null
  printf 'D %s %s\n' $1 $(($(wc -c < $w/p))) || exit 5; cat $w/p || exit 5; }
while [ ! -e $w/stop ]; do
  [ $circle = 1 ] || for c in $cpus; do
    have $c; n=$((bytes / page - 1)); [ $n -lt 2 ] || take $c $n
  done
  sleep 1
done
echo 0 > $i/tracing_on
for c in $cpus; do
  have $c
  while [ $entries -gt 0 ]; do
    n=$((bytes / page - 1)); [ $n -gt 0 ] || n=1
    take $c $n; have $c
  done
done
grep '' /dev/null $i/per_cpu/cpu*/stats > $w/x; send stats $w/x
cat $t/saved_cmdlines > $w/x; send saved_cmdlines $w/x
grep -s '' /dev/null /proc/[0-9]*/task/[0-9]*/comm > $w/x; send comms $w/x
clean
printf 'E\n'
"""
_BOOT = 'if [ "$(id -u)" = 0 ]; then exec sh -c "$0" sh "$@"; else exec sudo -n sh -c "$0" sh "$@"; fi'


class SshGuest:
    """One guest, over ssh (``command``: the words before its own, e.g. "ssh -i key")."""

    def __init__(self, url: str, name: str = "", command: str = "ssh") -> None:
        """Nothing is run yet. UsageError where ``url`` is none."""
        match = _URL.fullmatch(url)
        if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
            raise UsageError(f"{url}: ssh://[USER@]HOST[:PORT] is expected")
        self.url = url
        self.name = name or re.sub(r"\W", "-", match["host"].strip("[]"))
        if not is_stem(self.name) or self.name == "host":
            raise UsageError(f"--guest {self.name}={url}: a guest's name is a file's, and not 'host'")
        self._target = (f"{match['user']}@" if match["user"] else "") + match["host"].strip("[]")
        self._port = match["port"]
        self._command = shlex.split(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._changed = 0
        self._texts: dict[str, bytes] = {}
        self._error: str | None = None
        self._is_recording = False
        self._is_whole = False
        self._parts: Parts | None = None
        self._files: dict[int, IO[bytes]] = {}
        self._bytes = 0

    def start(self, folder: Path, wanted: Wanted) -> None:
        """As ``GuestTracer`` has it."""
        self._folder = folder
        remote = [
            "sh", "-c", _BOOT, SCRIPT, wanted.clock, str(wanted.buffer_kb), "1" if wanted.flight else "0",
            *(text for text in wanted.events if _PATTERN.fullmatch(text)),
        ]  # fmt: skip
        port = ["-p", self._port] if self._port else []
        line = " ".join(shlex.quote(word) for word in remote)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            # a session of its own: Ctrl-C is the recorder's, who then ends the guest in good order
            self._process = subprocess.Popen(  # noqa: S603
                [*self._command, "-T", "-o", "BatchMode=yes", *port, self._target, line],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            self._log.close()
            raise UsageError(f"{self.url}: {self._command[0]} cannot be run: {err.strerror}") from None
        self._thread = threading.Thread(target=self._run, name=f"guest {self.name}", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            self._error = f"it did not begin to record within {START_SECONDS:.0f} s"
        if not self._is_recording:
            self.abandon()
            raise UsageError(f"{self.url}: {self._error}")

    def stop(self) -> GuestFile:
        """As ``GuestTracer`` has it."""
        assert self._process is not None and self._thread is not None and self._parts is not None
        self._tell()
        seen = -1
        while self._thread.is_alive() and seen != self._changed:
            seen = self._changed
            self._thread.join(STOP_SECONDS)
        notes = []
        if not self._is_whole:
            notes.append(f"the guest was lost before the end: {self._error or 'it does not answer'}")
        self.abandon()
        stats = _by_cpu(self._texts.get("stats", b""))
        counts = total(stats) if stats else None
        path = parts_of.end(self._folder, self.name, self._parts, self._cmdlines(), stats)
        clock = re.search(r"\[([^\]]+)\]", self._parts.clock)
        return GuestFile(
            path, clock[1] if clock else "local", self._parts.cpus, counts["events"] if counts else None,
            counts["lost"] if counts else None, self._bytes, notes, self._parts.trace_id,
        )  # fmt: skip

    def abandon(self) -> None:
        """As ``GuestTracer`` has it: the end of its input ends the script, which removes what it made."""
        process = self._process
        if process is None:
            return
        self._tell()
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        for end in (None, process.terminate, process.kill):
            if end is not None:
                end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        if self._thread is not None:
            self._thread.join()
        for file in self._files.values():
            file.close()
        assert process.stdout is not None
        process.stdout.close()
        self._log.close()
        self._process = None

    def _tell(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(b"stop\n")
            self._process.stdin.flush()

    # -- what it sends, in a thread of its own

    def _run(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        try:
            self._listen(self._process.stdout)
        except (OSError, ValueError, IndexError) as err:
            self._error = self._error or f"what it sends is not understood ({err})"
        if not self._is_whole and self._error is None:
            self._error = self._said() or "the connection ended"
        self._ready.set()

    def _said(self) -> str:
        """The last line that ssh or the guest's shell complained with."""
        with suppress(OSError, ValueError, subprocess.TimeoutExpired):
            assert self._process is not None
            self._process.wait(5)
            self._log.seek(0)
            lines = self._log.read(1 << 16).decode("utf-8", "replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")[:400]
        return ""

    def _listen(self, stream: IO[bytes]) -> None:
        while True:
            line = stream.readline(1024)
            if not line:
                return
            self._changed += 1
            words = line.decode("utf-8", "replace").split()
            kind = words[0] if words else ""
            if kind == "B":
                if len(self._texts) > 100:
                    raise ValueError("too many texts")
                self._texts[words[1]] = _exactly(stream, int(words[2]), MAX_TEXT)
            elif kind == "D":
                self._pages(int(words[1]), _exactly(stream, int(words[2]), MAX_CHUNK))
            elif kind == "R":
                self._begin(int(words[1]), int(words[2]))
            elif kind == "G":
                self._is_recording = True
                self._ready.set()
            elif kind == "X":
                self._error = " ".join(words[1:])
            elif kind == "E":
                self._is_whole = True
                return
            else:
                raise ValueError(f"{line[:80]!r}")

    def _begin(self, page: int, cpus: int) -> None:
        if not 0 < cpus <= MAX_CPUS or not 1 << 10 <= page <= 1 << 20:
            raise ValueError(f"{cpus} CPUs, pages of {page} bytes")
        text = self._texts
        head = head_from(
            text["header_page"], text["header_event"], formats_of(text["formats"]), text["kallsyms"],
            text["printk_formats"], page_size=page,
        )  # fmt: skip
        uname = " ".join(text["uname"].decode("utf-8", "replace").split())
        self._parts = Parts(text["trace_clock"].decode("utf-8", "replace"), cpus, new_trace_id(), uname)
        parts_of.begin(self._folder, self.name, head, self._parts)

    def _pages(self, cpu: int, data: bytes) -> None:
        if self._parts is None or not 0 <= cpu < self._parts.cpus:
            raise ValueError(f"pages of CPU {cpu}")
        if cpu not in self._files:
            self._files[cpu] = open(parts_of.pages(self._folder, self.name, cpu), "xb", buffering=0)  # noqa: SIM115
        self._files[cpu].write(data)
        self._bytes += len(data)

    def _cmdlines(self) -> bytes:
        saved = self._texts.get("saved_cmdlines", b"")
        known = {line.split(b" ", 1)[0] for line in saved.splitlines()}
        more = []
        for line in self._texts.get("comms", b"").splitlines():
            match = re.match(rb"/proc/\d+/task/(\d+)/comm:(.*)", line)
            if match and match[1] not in known:
                more.append(match[1] + b" " + match[2] + b"\n")
        return saved + b"".join(more)


def _exactly(stream: IO[bytes], count: int, limit: int) -> bytes:
    if not 0 <= count <= limit:
        raise ValueError(f"{count} bytes")
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it ended in the middle")
    return data


def formats_of(text: bytes) -> list[tuple[str, bytes]]:
    """(system, format) of lines "PATH/events/SYSTEM/EVENT/format:LINE", as grep prints them; each event once."""
    found: dict[tuple[str, str], list[bytes]] = {}
    closed: set[tuple[str, str]] = set()
    last: tuple[str, str] | None = None
    for line in text.split(b"\n"):
        match = re.match(rb"[^:]*/events/([^/:]+)/([^/:]+)/format:(.*)", line)
        if match is None:
            continue
        key = match[1].decode("utf-8", "replace"), match[2].decode("utf-8", "replace")
        if key in found and match[3].startswith(b"name: "):
            # two patterns name it: its text comes twice
            closed.add(key)
        if key != last and last is not None:
            closed.add(last)
        last = key
        if key not in closed:
            found.setdefault(key, []).append(match[3] + b"\n")
    return [(system, b"".join(lines)) for (system, _), lines in sorted(found.items())]


def _by_cpu(text: bytes) -> dict[int, str]:
    out: dict[int, list[str]] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        match = re.match(r".*/per_cpu/cpu(\d{1,5})/stats:(.*)", line)
        if match:
            out.setdefault(int(match[1]), []).append(match[2])
    return {cpu: "\n".join(lines) + "\n" for cpu, lines in out.items()}
