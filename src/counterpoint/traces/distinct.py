"""The distinct among many short byte strings, without sorting them: most columns of texts have few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64, U64

_SLOT_BITS = 16
_ROUNDS = 4
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
"""Odd numbers of random bits: any do; what shares a slot by chance meets another in the next round."""


def distinct_rows(words: U64) -> tuple[I64, I64]:
    """The distinct rows of ``words`` u64[n, k]: where one of each stands, i64[m], and which each row is, i64[n].

    Each row goes to a slot by its bits; the one that holds the slot stands for all that are equal to it. What is left
    goes on to the next round, and after some rounds is sorted.
    """
    n = len(words)
    index = np.zeros(n, np.int64)
    found: list[I64] = []
    count = 0
    left: I64 | None = None
    for turn in range(_ROUNDS):
        rows = words if left is None else words[left]
        if not len(rows):
            break
        slot = _slots(rows, turn)
        holder = np.full(1 << _SLOT_BITS, -1, np.int64)
        holder[slot] = np.arange(len(rows))
        held = np.flatnonzero(holder >= 0)
        number = np.zeros(1 << _SLOT_BITS, np.int64)
        number[held] = np.arange(count, count + len(held))
        same = np.ones(len(rows), np.bool_)
        by = holder[slot]
        for column in range(rows.shape[1]):
            same &= rows[:, column] == rows[by, column]
        if left is None:
            index = number[slot]
        else:
            index[left[same]] = number[slot[same]]
        found.append(holder[held] if left is None else left[holder[held]])
        count += len(held)
        left = np.flatnonzero(~same) if left is None else left[~same]
    if left is not None and len(left):
        rest = np.ascontiguousarray(words[left]).view(f"V{words.shape[1] * 8}")[:, 0]
        _, first, number = np.unique(rest, return_index=True, return_inverse=True)
        index[left] = count + number
        found.append(left[first])
    return np.concatenate(found) if found else np.zeros(0, np.int64), index


def distinct_bytes(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
    """The same of the rows of ``data`` u8[n, size]."""
    n, size = data.shape
    words = np.zeros((n, max(-(-size // 8), 1) * 8), np.uint8)
    words[:, :size] = data
    return distinct_rows(words.view(np.uint64))


def _slots(rows: U64, turn: int) -> npt.NDArray[np.int64]:
    bits = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        bits = (bits ^ rows[:, column]) * _MIX[turn]
        bits ^= bits >> np.uint64(29)
    slots: npt.NDArray[np.int64] = ((bits * _MIX[turn]) >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
    return slots
