"""``counterpoint agent``."""

from __future__ import annotations

import argparse
import json
import signal
from contextlib import ExitStack
from typing import Any

from counterpoint.commands.common import warn
from counterpoint.errors import UsageError
from counterpoint.outputs.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A guest's side of record: lets its host record this machine, in a tracefs instance that is gone afterwards."
        " Who has the secret may ask what this machine is, record events, and stop; nothing else, and never a command."
        " Without --listen or --serial it waits at a vsock port, for this machine's host (CID 2) alone."
        " Ctrl-C and SIGTERM end it. Exit status: 0 ended so, 2 it cannot serve."
    )
    parser.epilog = (
        "examples:\n  (umask 077; head -c 32 /dev/urandom | base64 > secret)      # the same file in host and guest\n"
        "  sudo counterpoint agent --secret-file secret                # in the guest\n"
        "  sudo counterpoint agent --secret-file secret --serial /dev/virtio-ports/counterpoint\n"
        "  sudo counterpoint agent --trace-cmd                         # for a stock trace-cmd record -A"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--vsock", type=int, metavar="PORT", help="the port (default 824; with --trace-cmd 823)")
    place.add_argument(
        "--listen", metavar="tcp://HOST:PORT",
        help="at this address of this machine instead: for networks that you trust, what is recorded is not encrypted",
    )  # fmt: skip
    place.add_argument("--serial", metavar="DEVICE", help="at a virtio-serial port or another character device instead")
    parser.add_argument(
        "--secret-file", metavar="FILE", help="the secret: 16 bytes or more, readable by its owner only"
    )
    parser.add_argument(
        "--from", dest="source", metavar="ADDRESS", help="with --listen: let in this address alone (name or number)"
    )
    parser.add_argument(
        "--max-buffer", type=int, default=1 << 16, metavar="KB", help="the largest buffer of a CPU (default 65536)"
    )
    parser.add_argument(
        "--trace-cmd", action="store_true",
        help="speak trace-cmd's protocol, which knows no secret: any process on the host may record this machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="what happens as JSON, an object a line")


def run(args: argparse.Namespace) -> int:
    from counterpoint.live import frames, links, tracefs, wire
    from counterpoint.live.agent import agent
    from counterpoint.live.serving import Server
    from counterpoint.live.tracecmd_agent import tracecmd_agent
    from counterpoint.live.tracer import MAX_BUFFER_KB, MIN_BUFFER_KB, LocalTracer
    from counterpoint.live.watchdog import watchdog

    _check(args, MIN_BUFFER_KB, MAX_BUFFER_KB)
    # (before tracefs: what is wrong with the arguments is said first)
    secret = b"" if args.trace_cmd else frames.read_secret(args.secret_file)
    address = links.parse(args.listen) if args.listen else None
    if address is not None and (address.kind != "tcp" or address.port is None):
        raise UsageError(f"--listen {args.listen}: tcp://HOST:PORT is expected")
    root = tracefs.require_root()
    say = _say_json if args.json else _say

    def make_tracer() -> LocalTracer:
        return LocalTracer(root, args.max_buffer)

    with ExitStack() as stack:
        stack.enter_context(watchdog(root))
        for left in tracefs.sweep(root):
            say({"removed": f"{left.kind} {left.name} of a process that was killed"})

        def heard(text: str) -> None:
            say({"peer": text})

        server: Server
        if args.serial:
            device = links.Device(args.serial)
            stack.callback(device.close)
            server, where = agent(secret, make_tracer, device=device, say=heard), f"serial://{args.serial}"
        else:
            port = (
                args.vsock if args.vsock is not None else wire.DEFAULT_PORT if args.trace_cmd else frames.DEFAULT_PORT
            )
            address = address or links.Address("vsock", "-1", port)
            if args.trace_cmd:
                server, listener = tracecmd_agent(make_tracer, address, source=args.source, say=heard)
            else:
                listener = links.Listener(address, source=args.source)
                server = agent(secret, make_tracer, listener, say=heard)
            stack.callback(listener.close)
            where = f"vsock port {listener.port}" if address.kind == "vsock" else str(address.at(listener.port))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: server.stop()))
        say({"listening": where})
        server.serve()
    return 0


def _check(args: argparse.Namespace, least: int, most: int) -> None:
    if args.trace_cmd and args.serial:
        raise UsageError("--trace-cmd: trace-cmd reaches an agent by vsock or TCP, not over a serial device")
    if args.trace_cmd and args.secret_file:
        raise UsageError("--trace-cmd: that protocol knows no secret; leave out --secret-file, or --trace-cmd")
    if not args.trace_cmd and not args.secret_file:
        raise UsageError("--secret-file is needed: (umask 077; head -c 32 /dev/urandom | base64 > FILE)")
    if args.trace_cmd and args.listen and not args.source:
        raise UsageError("--trace-cmd --listen: --from ADDRESS is needed: nothing else keeps strangers out")
    if args.source and not args.listen:
        raise UsageError("--from is for --listen")
    if args.vsock is not None and not 0 < args.vsock < (1 << 32) - 1:
        raise UsageError(f"--vsock {args.vsock}: there is no such port")
    if not least <= args.max_buffer <= most:
        raise UsageError(f"--max-buffer {args.max_buffer}: {least} to {most} are possible")


_WORDS = {"listening": "waits at", "removed": "removed the", "peer": ""}


def _say(what: dict[str, Any]) -> None:
    for key, text in what.items():
        warn(f"{_WORDS[key]} {text}".strip())


def _say_json(what: dict[str, Any]) -> None:
    print(json.dumps({"schema": 1, **{key: printable(text) for key, text in what.items()}}), flush=True)  # noqa: T201
