"""The client of the debug stub, against a small stub: registers by name, and the machine runs on whatever happens."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from lab.rsp import Stub, StubError

DOCUMENTS = {
    "target.xml": '<target><xi:include href="core.xml"/><xi:include href="system.xml"/></target>',
    "core.xml": "<feature><reg name='x0' bitsize='64'/><reg name='x1' bitsize='64'/></feature>",
    "system.xml": '<feature><reg name="CNTVOFF_EL2" bitsize="64" regnum="9"/>\n<reg name="HCR_EL2"/></feature>',
}
VALUES = {"p01.01": {"9": 77, "a": 1 << 63}, "p01.02": {"9": 0, "a": 5}}


class FakeStub:
    """Two CPUs; ``asked`` is what it was asked."""

    def __init__(self, path) -> None:
        self.asked: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        link, _ = self.listener.accept()
        data, cpu = b"", ""
        with link:
            while part := link.recv(1000):
                data += part
                while b"#" in data[:-2]:
                    request, data = data.split(b"$", 1)[1].split(b"#", 1)
                    data = data[2:]
                    text = request.decode()
                    self.asked.append(text)
                    if text.startswith("Hg"):
                        cpu = text[2:]
                    # the stop that the connection itself makes may be reported at any time
                    link.sendall(b"$T02thread:01;#00" + self.framed(self.answer(text, cpu)))

    def framed(self, text: str) -> bytes:
        return b"+$" + text.replace("}", "}]").encode() + b"#00"

    def answer(self, text: str, cpu: str) -> str:
        if text.startswith("qXfer:features:read:"):
            name, _, span = text.removeprefix("qXfer:features:read:").partition(":")
            at, size = (int(word, 16) for word in span.split(","))
            part = DOCUMENTS[name][at : at + min(size, 50)]
            return ("l" if at + len(part) >= len(DOCUMENTS[name]) else "m") + part
        if text.startswith("p"):
            value = VALUES[cpu].get(text[1:])
            return "E01" if value is None else value.to_bytes(8, "little").hex()
        return {"qfThreadInfo": "mp01.01", "qsThreadInfo": "mp01.02" if text not in self.asked[:-1] else "l"}.get(
            text, "OK"
        )


@pytest.fixture
def stub(tmp_path) -> Iterator[FakeStub]:
    fake = FakeStub(tmp_path / "gdb")
    yield fake
    fake.listener.close()
    fake.thread.join(5)


def test_registers_of_each_cpu_by_name(tmp_path, stub):
    numbers: dict[str, int] = {}
    with Stub(tmp_path / "gdb", numbers) as link:
        found = link.registers(["CNTVOFF_EL2", "HCR_EL2", "CNTPOFF_EL2", "x1"])

    assert numbers == {"x0": 0, "x1": 1, "CNTVOFF_EL2": 9, "HCR_EL2": 10}
    assert found == [
        {"CNTVOFF_EL2": 77, "HCR_EL2": 1 << 63, "CNTPOFF_EL2": None, "x1": None},
        {"CNTVOFF_EL2": 0, "HCR_EL2": 5, "CNTPOFF_EL2": None, "x1": None},
    ]
    assert stub.asked[-1] == "D;1"


def test_the_machine_runs_on_where_the_caller_fails(tmp_path, stub):
    with pytest.raises(KeyError), Stub(tmp_path / "gdb"):
        raise KeyError

    assert stub.asked[-1] == "D;1"


def test_a_stub_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(StubError, match="nowhere"):
        Stub(tmp_path / "nowhere")
