"""128-bit products and quotients over arrays, as pairs of u64 words (high, low): numpy has none."""

from __future__ import annotations

import numpy as np

from counterpoint.clocks.counter import MASK, U64

_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def multiply(values: U64, factor: int) -> tuple[U64, U64]:
    """The exact products u128[n] of ``values`` u64[n] and ``factor`` (0..2**64-1), as (high, low)."""
    low_factor, high_factor = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    low, high = values & _LOW_HALF, values >> _HALF
    first = low * low_factor
    # at most (2^32-1)^2 + (2^32-1): none of the sums of halves passes 64 bits
    middle = high * low_factor + (first >> _HALF)
    other = low * high_factor + (middle & _LOW_HALF)
    return high * high_factor + (middle >> _HALF) + (other >> _HALF), (other << _HALF) | (first & _LOW_HALF)


def shift_right(high: U64, low: U64, bits: int) -> tuple[U64, U64]:
    """The u128[n] (high, low) shifted right by ``bits`` (0..63)."""
    # a shift by 64 is not defined
    if bits == 0:
        return high, low
    return high >> np.uint64(bits), (high << np.uint64(64 - bits)) | (low >> np.uint64(bits))


def shift_left(high: U64, low: U64, bits: int) -> tuple[U64, U64]:
    """The u128[n] (high, low) shifted left by ``bits`` (0..63), modulo 2**128."""
    if bits == 0:
        return high, low
    return (high << np.uint64(bits)) | (low >> np.uint64(64 - bits)), low << np.uint64(bits)


def divide(high: U64, low: U64, divisor: int) -> tuple[U64, U64]:
    """Quotients and remainders u64[n] of the u128[n] (high, low) by ``divisor`` (1..2**64-1).

    Exact where ``high < divisor``, that is where the quotient fits 64 bits; elsewhere both are meaningless.
    """
    if divisor >> 32 == 0:
        # remainder and next half together fit 64 bits
        small = np.uint64(divisor)
        part = (high << _HALF) | (low >> _HALF)
        upper = part // small
        part = ((part - upper * small) << _HALF) | (low & _LOW_HALF)
        lower = part // small
        return (upper << _HALF) | lower, part - lower * small
    spare = 64 - divisor.bit_length()
    divisor <<= spare
    high, low = shift_left(high, low, spare)
    upper, rest = _digit(high, low >> _HALF, divisor)
    lower, rest = _digit(rest, low & _LOW_HALF, divisor)
    return (upper << _HALF) | lower, rest >> np.uint64(spare)


def multiples_within(high: U64, low: U64, factor: int, bits: int) -> tuple[U64, U64]:
    """The closed intervals (first, last), u64[n] each, of x with n <= x * ``factor`` < n + 2**``bits``.

    n is the u128[n] (high, low), ``factor`` 1..2**64-1, ``bits`` 0..63. Where no x does, first and last are the two
    neighbours between which it would lie. Both are 2**64-1 where it would lie beyond that, and last is cut to it.
    """
    quotient, rest = divide(high, low, factor)
    more, part = divmod((1 << bits) - 1, factor)
    step = (rest >= factor - part) + np.uint64(more)
    first = quotient + (rest > 0)
    last = np.where(quotient > MASK - step, np.uint64(MASK), quotient + step)
    beyond = (high >= factor) | (first < quotient)
    first[beyond] = last[beyond] = MASK
    return np.minimum(first, last), np.maximum(first, last)


def _digit(rest: U64, half: U64, divisor: int) -> tuple[U64, U64]:
    """One 32-bit digit of a long division: (rest * 2**32 + half) by ``divisor`` with its top bit set, rest < divisor.

    The digit guessed from the divisor's upper half is at most 2 too large (Knuth, The Art of Computer Programming
    vol. 2, 4.3.1, theorem B).
    """
    upper_half, lower_half = np.uint64(divisor >> 32), np.uint64(divisor & 0xFFFFFFFF)
    digit = rest // upper_half
    left = rest - digit * upper_half
    for _ in range(2):
        # the guess is too large where digit * divisor passes the dividend, which ``left`` below 2^32 alone allows
        excess = (left <= _LOW_HALF) & ((digit > _LOW_HALF) | (digit * lower_half > ((left << _HALF) | half)))
        digit = digit - excess.astype(np.uint64)
        left = np.where(excess, left + upper_half, left)
    # the difference fits 64 bits, whatever the two terms wrap to
    return digit, ((rest << _HALF) | half) - digit * np.uint64(divisor)
