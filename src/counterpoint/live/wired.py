"""Which agent a guest's URL means: Counterpoint's own where there is a secret, trace-cmd's where there is none."""

from __future__ import annotations

import re

from counterpoint.errors import UsageError
from counterpoint.live import frames, links
from counterpoint.live.agent_guest import AgentGuest
from counterpoint.live.folder import is_stem
from counterpoint.live.tracecmd_guest import TraceCmdGuest

SCHEMES = ("vsock", "unix", "tcp", "serial")
TRACE_CMD = "trace-cmd+"
"""Before a URL: trace-cmd's agent, though there is a secret for other guests."""


def is_wired(url: str) -> bool:
    """Whether ``url`` is one of an agent."""
    return url.startswith(TRACE_CMD) or url.partition("://")[0] in SCHEMES


def wired(url: str, name: str = "", secret_file: str | None = None) -> AgentGuest | TraceCmdGuest:
    """The source of an agent's URL; ``name``: of its file, else made from the URL. UsageError where it is none."""
    plain = url[len(TRACE_CMD) :] if url.startswith(TRACE_CMD) else url
    address = links.parse(plain)
    stem = name or _name(address)
    if not is_stem(stem) or stem == "host":
        raise UsageError(f"--guest {stem}={url}: a guest's name is a file's, and not 'host'")
    if secret_file is not None and plain == url:
        return AgentGuest(plain, stem, frames.read_secret(secret_file))
    if address.kind == "serial" or (address.kind == "unix" and address.port is None):
        raise UsageError(f"{url}: only counterpoint agent can be there: --guest-secret FILE is needed")
    return TraceCmdGuest(plain, stem)


def _name(address: links.Address) -> str:
    if address.kind == "vsock":
        return f"guest-{address.place}"
    last = address.place.rsplit("/", 1)[-1] if address.kind != "tcp" else address.place
    return re.sub(r"\W", "-", last).strip("-") or "guest"
