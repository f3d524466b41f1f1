"""Addresses, Firecracker's handshake, serial devices, and who may come in."""

from __future__ import annotations

import os
import re
import socket
import threading

import pytest

from counterpoint.errors import UsageError
from counterpoint.live import links
from counterpoint.live.links import Address, Device, Listener, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("vsock://3:900", Address("vsock", "3", 900)),
        ("vsock://3", Address("vsock", "3", 824)),
        ("unix:///run/v.sock:52", Address("unix", "/run/v.sock", 52)),
        ("unix:///run/v:1.sock", Address("unix", "/run/v:1.sock")),
        ("tcp://guest:5000", Address("tcp", "guest", 5000)),
        ("tcp://[::1]:5000", Address("tcp", "::1", 5000)),
        ("tcp://10.0.0.7", Address("tcp", "10.0.0.7", 824)),
        ("serial:///dev/vport1p1", Address("serial", "/dev/vport1p1")),
    ],
)
def test_addresses(url, address):
    assert parse(url, 824) == address
    assert parse(str(address), 824) == address


@pytest.mark.parametrize(
    "url",
    ["guest", "vsock://guest:1", "vsock://5000000000:1", "vsock://3:99999999999", "tcp://h:70000", "tcp://a b:1",
     "serial://x", "ssh://x", "tcp://h:1/x", "vsock://3:4294967295"],
)  # fmt: skip
def test_what_is_no_address_is_said_to_be_none(url):
    with pytest.raises(
        UsageError,
        match=re.escape(f"{url}: vsock") if "tcp://h:7" not in url and "4294967295" not in url else "no port",
    ):
        parse(url, 824)


def vmm(folder, answer: bytes):
    """A VMM's UNIX socket; what it was told."""
    told: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "v.sock"))
    listener.listen(1)

    def serve() -> None:
        link, _ = listener.accept()
        with link, listener:
            told.append(link.recv(100))
            link.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"unix://{folder}/v.sock:824", told, thread


def test_firecracker_is_told_the_port_and_what_follows_its_line_is_the_guests(tmp_path):
    url, told, thread = vmm(tmp_path, b"OK 1073741824\nhello")

    link = links.connect(parse(url))
    thread.join()

    assert told == [b"CONNECT 824\n"]
    assert link.recv(100) == b"hello"
    link.close()


@pytest.mark.parametrize(
    ("answer", "said"), [(b"", "nothing in the guest"), (b"NO\n", "instead of OK"), (b"O" * 99, "no connection")]
)
def test_a_vmm_that_does_not_connect(tmp_path, answer, said):
    url, _, thread = vmm(tmp_path, answer)

    with pytest.raises(UsageError, match=said):
        links.connect(parse(url))
    thread.join()


def test_nobody_there(tmp_path):
    with pytest.raises(UsageError, match=r"tcp://127.0.0.1:1: Connection refused"):
        links.connect(parse("tcp://127.0.0.1:1"))
    with pytest.raises(UsageError, match="No such file"):
        links.connect(parse(f"unix://{tmp_path}/none:1"))
    with pytest.raises(UsageError, match="no character device"):
        (tmp_path / "plain").touch()
        links.connect(parse(f"serial://{tmp_path}/plain"))


def test_only_the_host_may_come_in_by_vsock():
    listener = object.__new__(Listener)
    listener.address, listener._cid, listener._sources = Address("vsock", "-1", 824), links.HOST_CID, None

    assert [listener.may_enter((cid, 1023)) for cid in (0, 1, 2, 3, 5, 2**32 - 1)] == [False, False, True] + [False] * 3


def test_over_tcp_only_who_was_named_may_come_in():
    for source, expected in (("127.0.0.1", True), ("127.0.0.2", False), (None, True)):
        listener = Listener(parse("tcp://127.0.0.1:0"), source=source)
        client = socket.create_connection(("127.0.0.1", listener.port))
        link, who = listener.accept()
        assert (link is not None, who) == (expected, "127.0.0.1")
        if link is None:
            assert client.recv(1) == b""
        else:
            link.close()
        client.close()
        listener.close()


def test_a_terminal_leaves_bytes_alone():
    master, slave = os.openpty()
    device = Device(os.ttyname(slave))
    everything = bytes(range(256))

    os.write(master, everything)
    device.settimeout(5)
    got = b""
    while len(got) < 256:
        got += device.recv(1000)
    device.sendall(everything)
    back = b""
    while len(back) < 256:
        back += os.read(master, 1000)

    assert got == everything == back
    device.settimeout(0.01)
    with pytest.raises(socket.timeout):
        device.recv(1)
    device.close()
    device.close()
    os.close(slave)
    os.close(master)
