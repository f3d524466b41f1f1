"""Runs in a guest: adds to a model-specific register of one CPU. lab-msr CPU REGISTER DELTA"""

import os
import struct
import sys


def main():
    """Read, add, write, on that CPU so that little time passes in between."""
    cpu, register, delta = (int(word, 0) for word in sys.argv[1:4])
    os.sched_setaffinity(0, {cpu})
    device = os.open(f"/dev/cpu/{cpu}/msr", os.O_RDWR)
    (before,) = struct.unpack("<Q", os.pread(device, 8, register))
    os.pwrite(device, struct.pack("<Q", (before + delta) % (1 << 64)), register)
    (after,) = struct.unpack("<Q", os.pread(device, 8, register))
    print(before, after)


main()
