"""Runs in the machines: the CPU's counter beside its clocks, and marks in the trace that carry the counter.

lab-counter now | clocks | marks CPU SECONDS PERIOD_MS
"""

import ctypes
import glob
import json
import mmap
import os
import platform
import sys
import time

CODE = {
    # rdtscp; shl rdx, 32; or rax, rdx; ret -- rdtscp waits for what comes before it
    "x86_64": bytes.fromhex("0f01f948c1e2204809d0c3"),
    # isb; mrs x0, cntvct_el0; ret
    "aarch64": bytes.fromhex("df3f03d540e03bd5c0035fd6"),
}
CLOCKS = {
    "realtime": time.CLOCK_REALTIME,
    "mono": time.CLOCK_MONOTONIC,
    "mono_raw": time.CLOCK_MONOTONIC_RAW,
    "boot": time.CLOCK_BOOTTIME,
}


def reader():
    """Return a function that reads the counter of the CPU that it runs on."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(CODE[platform.machine()])
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    read.memory = memory
    return read


def clocks(read, rounds=300):
    """Return for each clock the narrowest of many [counter before, ns, counter after]."""
    found = {}
    for name, number in CLOCKS.items():
        tries = [(read(), time.clock_gettime_ns(number), read()) for _ in range(rounds)]
        found[name] = min(tries, key=lambda t: t[2] - t[0])
    return found


def marks(read, cpu, seconds, period):
    """Write "lab cpu=C n=N counter=T" into each trace instance (the top-level buffer where there is none)."""
    os.sched_setaffinity(0, {cpu})
    base = "/sys/kernel/tracing"
    ends, number = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        names = glob.glob(base + "/instances/*/trace_marker") or [base + "/trace_marker"]
        for name in names:
            try:
                target = os.open(name, os.O_WRONLY)
            except OSError:  # it is gone already
                continue
            for _ in range(2):  # the second's counter is later than the first's stamp
                os.write(target, b"lab cpu=%d n=%d counter=%d\n" % (cpu, number, read()))
                number += 1
            os.close(target)
        time.sleep(period / 1000)


def main():
    """Do what the command line says."""
    read, what = reader(), sys.argv[1]
    if what == "now":
        print(read())
    elif what == "clocks":
        print(json.dumps(clocks(read)))
    elif what == "marks":
        marks(read, int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))


main()
