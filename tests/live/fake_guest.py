"""In place of ssh: says what the script in a guest would say, from a folder of files; argv: folder, what goes wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

folder, wrong = Path(sys.argv[1]), sys.argv[2]
out = sys.stdout.buffer


def text(name: str) -> None:
    data = (folder / name).read_bytes()
    out.write(b"B %s %d\n" % (name.encode(), len(data)) + data)


if wrong == "refused":
    print("ssh: connect to host there port 22: Connection refused", file=sys.stderr)
    sys.exit(255)
if wrong == "no root":
    print("X it needs root there", flush=True)
    sys.exit(3)
if wrong == "noise":
    print("Welcome to this machine!", flush=True)
    sys.exit(0)
if wrong == "huge":
    out.write(b"B formats 99999999999\n")
    out.flush()
    sys.exit(0)
for name in ("header_page", "header_event", "formats", "kallsyms", "printk_formats", "trace_clock", "uname"):
    text(name)
cpus = 10**6 if wrong == "cpus" else len(list(folder.glob("cpu?")))
out.write(b"R 4096 %d\nG\n" % cpus)
out.flush()
pages = {cpu: (folder / f"cpu{cpu}").read_bytes() for cpu in range(len(list(folder.glob("cpu?"))))}
for cpu, data in pages.items():
    out.write(b"D %d 4096\n" % cpu + data[:4096])
if wrong == "foreign CPU":
    out.write(b"D 77 4\nabcd")
if wrong == "cut":
    out.write(b"D 0 4096\nabc")
    out.flush()
    sys.exit(0)
out.flush()
os.read(0, 100)
for cpu, data in pages.items():
    out.write(b"D %d %d\n" % (cpu, len(data) - 4096) + data[4096:])
for name in ("stats", "saved_cmdlines", "comms"):
    text(name)
out.write(b"E\n")
