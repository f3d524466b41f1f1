"""Pages from pipes into files: all of them, in order, within the limit; pipes stand for trace_pipe_raw."""

from __future__ import annotations

import os
import random
import time

import pytest

from counterpoint.live import libc, spool
from counterpoint.live.spool import CpuSpool, Pump

PAGE = 4096


@pytest.fixture
def cpus(tmp_path):
    """Two CPUs' spools, and the ends to write into."""
    ends, spools = [], []
    for cpu in range(2):
        fifo = tmp_path / f"fifo{cpu}"
        os.mkfifo(fifo)
        spools.append(CpuSpool(cpu, fifo, tmp_path / f"cpu{cpu}", PAGE))
        ends.append(os.open(fifo, os.O_WRONLY))
    yield spools, ends
    for each in spools:
        each.close()
    for end in ends:
        os.close(end)


def feed(ends: list[int], pages: int) -> list[bytes]:
    rng = random.Random(5)
    content = [rng.randbytes(pages * PAGE) for _ in ends]
    for at in range(0, pages * PAGE, 4 * PAGE):
        for end, data in zip(ends, content, strict=True):
            os.write(end, data[at : at + 4 * PAGE])
    return content


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


@pytest.mark.parametrize("by_ctypes", [False, True])
def test_all_pages_arrive_in_order(cpus, monkeypatch, by_ctypes):
    spools, ends = cpus
    if by_ctypes:  # as Python 3.9 does it
        monkeypatch.setattr(libc, "_os_splice", None)
    woken = []
    pump = Pump(spools, lambda: woken.append(1))
    pump.start()

    content = feed(ends, 100)
    until(lambda: pump.bytes == 200 * PAGE)
    pump.finish()
    pump.close()

    assert [each.target.read_bytes() for each in spools] == content
    assert [each.bytes for each in spools] == [100 * PAGE, 100 * PAGE]
    assert not woken and not pump.full


def test_a_cpu_that_has_no_buffer_costs_nothing(cpus):
    spools, ends = cpus
    pump = Pump(spools, lambda: None)
    pump.start()
    for end in ends:  # poll says POLLHUP then, as it says POLLERR of a CPU that was never there
        os.dup2(os.open(os.devnull, os.O_WRONLY), end)
    before = time.process_time()

    time.sleep(0.4)

    assert time.process_time() - before < 0.1
    pump.close()


def test_what_is_left_at_the_end_is_taken_too(cpus):
    spools, ends = cpus
    pump = Pump(spools, lambda: None)

    content = feed(ends, 8)
    pump.finish()
    pump.stop()
    pump.close()
    pump.close()

    assert [each.target.read_bytes() for each in spools] == content


def test_no_more_than_the_limit(cpus):
    spools, ends = cpus
    woken = []
    pump = Pump(spools, lambda: woken.append(1), max_bytes=10 * PAGE)
    feed(ends, 8)
    pump.start()

    until(lambda: woken)
    pump.finish()
    pump.close()

    assert pump.full and pump.bytes == 16 * PAGE  # what one go takes is not cut


def test_a_file_that_cannot_be_written_ends_it(cpus, monkeypatch):
    spools, ends = cpus
    woken = []
    pump = Pump(spools, lambda: woken.append(1))
    real = libc.splice

    def full(source, target, count, flags=0):
        if target == spools[0]._file:
            raise OSError(28, "No space left on device")
        return real(source, target, count, flags)

    monkeypatch.setattr(spool.libc, "splice", full)
    pump.start()
    feed(ends, 4)

    until(lambda: woken)
    with pytest.raises(OSError, match="No space"):
        pump.finish()
    pump.close()


def test_a_splice_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(libc, "_os_splice", None)
    read, write = os.pipe2(os.O_NONBLOCK)
    other = os.pipe()
    try:
        with pytest.raises(BlockingIOError):
            libc.splice(read, other[1], PAGE, libc.SPLICE_NONBLOCK)
        with pytest.raises(OSError, match="Bad file"):
            libc.splice(12345, other[1], PAGE, 0)
    finally:
        for descriptor in (read, write, *other):
            os.close(descriptor)
