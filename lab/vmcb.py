"""TSC offsets as the emulated CPU itself sees them: the VMCBs in the machine's memory.

AMD64 Architecture Programmer's Manual, volume 2, appendix B. Nothing of Linux is asked: a page is a VMCB of a guest
with nested paging if its fields can be nothing else. Of a VM that is gone a page may be left, and a hypervisor inside
keeps VMCBs of its own guests in the same memory: a caller knows which offset it looks for.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

PAGE = 4096
CHUNK = 64 << 20
# of u64 words in the page
TSC_OFFSET, ASID, NESTED, NESTED_CR3 = 0x50 // 8, 0x58 // 8, 0x90 // 8, 0xB0 // 8
EFER, CR0, RFLAGS = 0x4D0 // 8, 0x558 // 8, 0x570 // 8
SVME, PAGING_OR_PROTECTED = 1 << 12, 1 << 31 | 1


def memory_file(process: int) -> Path:
    """Return the file that is the memory of a machine, of the QEMU process with a memory-backend-memfd."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        if "memfd:memory-backend-memfd" in str(link.readlink()):
            return link
    raise FileNotFoundError(f"/proc/{process}/fd: no memfd")


def offsets(memory: Path) -> Counter[tuple[int, int]]:
    """Return (nested CR3, TSC offset) of each VMCB in a machine's memory: nested CR3 is one for a VM."""
    found: Counter[tuple[int, int]] = Counter()
    with memory.open("rb", 0) as file:
        at, end = 0, file.seek(0, os.SEEK_END)
        while at < end:
            try:
                start = file.seek(at, os.SEEK_DATA)
            except OSError:  # ENXIO: no data behind
                break
            stop = min(file.seek(start, os.SEEK_HOLE), start + CHUNK)
            words = np.frombuffer(os.pread(file.fileno(), stop - start, start), np.uint64).reshape(-1, PAGE // 8)
            asid, cr3 = words[:, ASID] & 0xFFFFFFFF, words[:, NESTED_CR3]
            is_vmcb = (asid > 0) & (asid < 1 << 16) & (words[:, NESTED] & 0xFF == 1)
            is_vmcb &= (cr3 > 0) & (cr3 < 1 << 40) & (cr3 % PAGE == 0)
            is_vmcb &= (words[:, EFER] & SVME != 0) & (words[:, CR0] & PAGING_OR_PROTECTED != 0)
            is_vmcb &= words[:, RFLAGS] & 2 != 0
            for page in np.flatnonzero(is_vmcb):
                found[int(cr3[page]), int(words[page, TSC_OFFSET].astype(np.int64))] += 1
            at = stop
    return found
