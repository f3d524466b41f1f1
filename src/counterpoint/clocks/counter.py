"""64-bit counter arithmetic: values wrap, differences are signed.

KVM computes a guest's counter as ``guest = host + offset`` modulo 2**64 (x86: kvm_read_l1_tsc in
arch/x86/kvm/x86.c, without scaling; arm64: CNTVCT_EL0 = CNTPCT_EL0 - CNTVOFF_EL2, so offset = -CNTVOFF).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MASK = (1 << 64) - 1


def to_signed(value: int) -> int:
    """The signed number with the low 64 bits of ``value``: -2**63 <= result < 2**63."""
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def relative(stamps: U64, base: int) -> I64:
    """``stamps`` u64 minus ``base``, modulo 2**64, as signed i64: exact while within 2**63 of the base."""
    return (stamps - np.uint64(base & MASK)).view(np.int64)


def add(stamps: U64, delta: int) -> U64:
    """``stamps`` u64 plus ``delta`` (any integer), modulo 2**64."""
    return stamps + np.uint64(delta & MASK)


def distinct(values: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], I64]:
    """The distinct values in order, and the position of the first of each (np.unique, which imports numpy.ma)."""
    if not len(values):
        return values, np.zeros(0, np.int64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return ordered[first], order[first]
