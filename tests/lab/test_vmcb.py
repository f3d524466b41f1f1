"""VMCBs are found in memory, and nothing else is."""

import struct

from lab import vmcb


def page(offset=-5, asid=1, nested=1, cr3=0x123000, efer=0x1D01, cr0=0x80050033, rflags=2):
    data = bytearray(4096)
    fields = {0x50: offset, 0x58: asid, 0x90: nested, 0xB0: cr3, 0x4D0: efer, 0x558: cr0, 0x570: rflags}
    for at, value in fields.items():
        struct.pack_into("<q", data, at, value)
    return bytes(data)


def test_offsets_are_counted_by_vm(tmp_path):
    memory = tmp_path / "memory"
    with memory.open("wb") as file:
        file.write(bytes(4096) + page() + page(asid=2) + page(offset=7, cr3=0x456000))
        file.seek(1 << 20)  # a hole
        file.write(page(offset=9))
        for wrong in ({"asid": 0}, {"nested": 0}, {"cr3": 0x123456}, {"efer": 0x501}, {"cr0": 0}, {"rflags": 0}):
            file.write(page(offset=11, **wrong))

    assert vmcb.offsets(memory) == {(0x123000, -5): 2, (0x456000, 7): 1, (0x123000, 9): 1}
