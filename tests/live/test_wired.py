"""Which agent a URL of --guest means."""

from __future__ import annotations

import pytest

from counterpoint.errors import UsageError
from counterpoint.live.agent_guest import AgentGuest
from counterpoint.live.guests import make
from counterpoint.live.tracecmd_guest import TraceCmdGuest


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef")
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("vsock://3", AgentGuest, "guest-3"),
        ("vm1=vsock://3:900", AgentGuest, "vm1"),
        ("unix:///run/fc/v.sock:824", AgentGuest, "v-sock"),
        ("tcp://10.0.0.7:900", AgentGuest, "10-0-0-7"),
        ("serial:///dev/pts/7", AgentGuest, "7"),
        ("trace-cmd+vsock://3", TraceCmdGuest, "guest-3"),
        ("vm=trace-cmd+tcp://guest:900", TraceCmdGuest, "vm"),
    ],
)
def test_with_a_secret(secret, text, kind, name):
    guest = make(text, secret_file=secret)

    assert (type(guest), guest.name) == (kind, name)


def test_without_a_secret_it_is_trace_cmds():
    assert isinstance(make("vsock://3"), TraceCmdGuest)
    assert isinstance(make("unix:///run/v.sock:823"), TraceCmdGuest)
    for url in ("serial:///dev/pts/7", "unix:///run/v.sock"):
        with pytest.raises(UsageError, match="--guest-secret"):
            make(url)


@pytest.mark.parametrize(
    "text", ["host=vsock://3", "a/b=vsock://3", "=vsock://3x", "x=trace-cmd+ssh://y", "x=gopher://y"]
)
def test_what_is_none(text):
    with pytest.raises(UsageError):
        make(text)
