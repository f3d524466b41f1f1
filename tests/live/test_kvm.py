"""Requests and structs of KVM, and the interval that brackets leave."""

from __future__ import annotations

import random
import struct

from counterpoint.live import kvm
from counterpoint.live.vmm import intersect, signed

U64 = (1 << 64) - 1


def test_requests_are_those_of_the_kernels_header():
    # as strace prints them
    assert kvm.KVM_GET_DEVICE_ATTR == 0x4018AEE2
    assert kvm.KVM_GET_MSRS == 0xC008AE88
    assert kvm.KVM_GET_ONE_REG == 0x4010AEAB
    assert kvm.KVM_GET_CLOCK == 0x8030AE7C
    assert kvm.KVM_GET_TSC_KHZ == 0xAEA3


def test_pointers_are_put_in_where_the_argument_lies():
    memory = bytearray(b"\xff" * 64)

    kvm.tsc_offset().put(memory, 8, 0x7000)
    assert struct.unpack_from("<QIIQQQQ", memory) == (U64, 0, 0, 0, 0x7018, 0, U64)

    kvm.one_reg("TIMER_CNT", kvm.TIMER_CNT).put(memory, 8, 0x7000)
    assert struct.unpack_from("<QQQQ", memory) == (U64, 0x603000000013DF1A, 0x7010, 0)


def test_answers_are_decoded():
    assert kvm.tsc_offset_of(struct.pack("<IIQQq", 0, 0, 0, 1, -5)) == -5
    assert kvm.tsc_msr_of(struct.pack("<IIIIQ", 1, 0, 0x10, 0, 77)) == 77
    assert kvm.one_reg_of(struct.pack("<QQQ", 1, 2, 99)) == 99
    pair = kvm.clock_of(struct.pack("<QIIQQ16x", 5, 2 | 4 | 8, 0, 6, 7))
    assert (pair.kvmclock_ns, pair.realtime_ns, pair.host_tsc) == (5, 6, 7)
    # without a master clock there is no pair
    alone = kvm.clock_of(struct.pack("<QIIQQ16x", 5, 0, 0, 6, 7))
    assert (alone.kvmclock_ns, alone.realtime_ns, alone.host_tsc) == (5, None, None)


def test_brackets_leave_an_interval_with_the_true_offset_wherever_counters_wrap():
    chance = random.Random(1)
    for _ in range(2000):
        bits = chance.choice((0, 32, 48))
        ratio = chance.randrange(1 << bits >> 1, (1 << bits) * 2) if bits else 1
        offset = chance.choice((0, 1, -1, (1 << 63) - 1, -(1 << 63), chance.randrange(-(1 << 63), 1 << 63)))
        start = chance.choice((chance.randrange(1 << 40), U64 - chance.randrange(1 << 20) if not bits else 5))
        brackets = []
        for n in range(chance.randrange(1, 8)):
            before = start + n * 1000
            true = before + chance.randrange(100)
            after = true + chance.randrange(100)
            guest = (true * ratio >> bits) + offset & U64
            brackets.append((before, guest, after))

        low, high = intersect(brackets, ratio, bits)

        assert any(low <= offset + turn <= high for turn in (0, 1 << 64, -(1 << 64)))
        assert high - low <= (200 * ratio >> bits) + 1


def test_brackets_of_two_offsets_leave_nothing():
    assert intersect([(100, 1000, 110), (200, 2000, 210)]) is None
    assert intersect([]) is None
    assert intersect([(100, 1000, 110), (200, 1095, 204)]) == (891, 895)


def test_signed_takes_the_low_64_bits():
    assert [signed(value) for value in (0, U64, 1 << 63, (1 << 64) + 5)] == [0, -1, -(1 << 63), 5]
