"""Scaled counters, exactly: ``(value * ratio) >> frac_bits``, its inverse, and how KVM makes and composes ratios.

Sources: kvm_scale_tsc, set_tsc_khz, kvm_set_tsc_khz, kvm_calc_nested_tsc_multiplier, kvm_calc_nested_tsc_offset in
arch/x86/kvm/x86.c; mul_u64_u64_shr, mul_s64_u64_shr in include/linux/math64.h. ``frac_bits`` is 48 on Intel, 32 on AMD.

**Unreduced** is a scaled value before it is cut to 64 bits: u128, and it never decreases while the host counter rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterpoint.clocks.counter import I64, MASK, U64, to_signed
from counterpoint.clocks.wide import divide, multiples_within, multiply, shift_left, shift_right

TSC_TOLERANCE_PPM = 250
"""KVM's default for its parameter tsc_tolerance_ppm: a rate as near as this to the host's is not scaled."""

_OPEN = 1 << 62
"""Relative stamps at or beyond this stand for an open end (counterpoint.proof.windows.FOREVER)."""


@dataclass(frozen=True, slots=True)
class Scale:
    """``scaled = ((value * ratio) >> frac_bits) mod 2**64``, with an exact 128-bit product.

    ``ratio`` 1..2**64-1, ``frac_bits`` 0..63; ValueError otherwise. Equal are scales with equal fields: see ``of``.
    """

    ratio: int = 1
    frac_bits: int = 0

    def __post_init__(self) -> None:
        """Refuse factors that the exact arithmetic below does not cover (ValueError)."""
        if not 0 < self.ratio <= MASK or not 0 <= self.frac_bits <= 63:
            raise ValueError(f"ratio {self.ratio}, frac_bits {self.frac_bits} are outside 1..2^64-1, 0..63")

    @classmethod
    def of(cls, ratio: int, frac_bits: int) -> Scale:
        """The scale in lowest terms, which maps every value alike: equal maps are equal objects then."""
        scale = cls(ratio, frac_bits)
        spare = min((ratio & -ratio).bit_length() - 1, frac_bits)
        return cls(ratio >> spare, frac_bits - spare) if spare else scale

    @classmethod
    def from_khz(cls, guest_khz: int, host_khz: int, frac_bits: int, tolerance_ppm: int = 0) -> Scale:
        """The scale that KVM sets for a guest of ``guest_khz`` on a host of ``host_khz`` (both u32, above 0).

        That is ``(guest_khz << frac_bits) // host_khz`` (set_tsc_khz), and none where the guest's rate is within
        ``tolerance_ppm`` of the host's (kvm_set_tsc_khz; KVM's own default is TSC_TOLERANCE_PPM). ValueError where the
        ratio is 0 or passes 64 bits: KVM refuses it.
        """
        if guest_khz <= 0 or host_khz <= 0:
            raise ValueError(f"rates must be above 0 kHz: guest {guest_khz}, host {host_khz}")
        least = host_khz * (1_000_000 - tolerance_ppm) // 1_000_000
        most = host_khz * (1_000_000 + tolerance_ppm) // 1_000_000
        if least <= guest_khz <= most:
            return cls(1 << frac_bits, frac_bits)
        return cls((guest_khz << frac_bits) // host_khz, frac_bits)

    @property
    def is_identity(self) -> bool:
        """Values stay as they are: KVM's default ratio."""
        return self.ratio == 1 << self.frac_bits

    def apply_int(self, value: int) -> int:
        """The scaled value, u64, of ``value`` in 0..2**64-1."""
        return (value * self.ratio >> self.frac_bits) & MASK

    def apply(self, values: U64) -> U64:
        """The scaled values u64[n] of ``values`` u64[n]."""
        if self.is_identity:
            return values
        return shift_right(*multiply(values, self.ratio), self.frac_bits)[1]

    def inverse_int(self, value: int, near: int = 0, below: int = 0, above: int = 0) -> tuple[int, int]:
        """``inverse`` of one value in 0..2**64-1."""
        lo, hi = self.inverse(np.array([value], np.uint64), near, below, above)
        return int(lo[0]), int(hi[0])

    def inverse(self, values: U64, near: int = 0, below: int = 0, above: int = 0) -> tuple[U64, U64]:
        """The closed intervals (lo, hi), u64[n] each, of host values that scale to each of ``values`` u64[n].

        * Below 1 (``ratio < 1 << frac_bits``) several host values may share one scaled value: the interval of all.
        * Above 1 some values are skipped: lo and hi are the neighbouring host values between which such a value lies.
        * Above 1 the scaled value may have wrapped, and host values far apart share it. The one meant is that whose
          unreduced value is nearest to that of the host value ``near`` (0..2**64-1; the lower of two equally near): the
          values of one recording, within 2**63 of each other, go back to where they were, wrapped or not.
        * A value that no host value has, since it lies beyond that of 2**64-1, gives (2**64-1, 2**64-1).

        With ``below``, ``above`` (|.| < 2**64) the interval is that of all unreduced values from ``below`` less than
        each value's to ``above`` more, as far as host values reach, and outward: an end that is skipped takes in its
        neighbour.
        """
        if self.is_identity and not below and not above:
            return values, values
        turn = self._turn(values, near)
        if not below and not above:
            return self._interval(turn, values)
        return self._interval(*self._move(turn, values, -below))[0], self._interval(*self._move(turn, values, above))[1]

    def apply_signed_relative(self, values: I64, base: int) -> I64:
        """How far base + values scaled lies from ``base`` scaled, i64[n], all unreduced: any integers, below 0 too.

        ``floor((base + v) * ratio / 2**frac_bits) - floor(base * ratio / 2**frac_bits)``. ``values`` i64[n]: +-2**62
        and beyond stand for an open end and stay so, and a result that far is cut to it. Never falls as values rise.
        """
        rest = base * self.ratio & ((1 << self.frac_bits) - 1)
        negative = values < 0
        # floor(-x) is -ceil(x), so a negative value's magnitude is rounded up
        constant = np.where(negative, np.uint64(((1 << self.frac_bits) - 1) - rest), np.uint64(rest))
        high, low = multiply(_magnitude(values), self.ratio)
        total = low + constant
        high, low = shift_right(high + (total < low), total, self.frac_bits)
        size = np.where((high > 0) | (low > _OPEN), np.uint64(_OPEN), low).view(np.int64)
        return _keep_open(values, np.where(negative, -size, size))

    def inverse_signed_relative(self, values: I64, base: int) -> tuple[I64, I64]:
        """The closed intervals (lo, hi), i64[n] each, of what ``apply_signed_relative`` takes to each of ``values``.

        Conventions as there, and as in ``inverse`` where several or none do; here no value is out of reach.
        """
        rest = base * self.ratio & ((1 << self.frac_bits) - 1)
        last, before = self._last(values, rest), self._last(np.maximum(values, -_OPEN) - 1, rest)
        first = np.clip(before + 1, -_OPEN, _OPEN)
        last = np.maximum(last, -_OPEN)
        return _keep_open(values, np.minimum(first, last)), _keep_open(values, np.maximum(first, last))

    def _last(self, values: I64, rest: int) -> I64:
        """The last x with ``floor((x * ratio + rest) / 2**frac_bits)`` not above each value; cut to -2**62-1..2**62."""
        negative = values < 0
        # floor(x / y) of a negative x is ~floor(~x / y)
        size = np.where(negative, ~values, values).view(np.uint64)
        constant = np.where(negative, np.uint64(rest), np.uint64(((1 << self.frac_bits) - 1) - rest))
        high, low = shift_left(np.zeros_like(size), size, self.frac_bits)
        quotient, _ = divide(high, low | constant, self.ratio)
        cut = np.where((high >= self.ratio) | (quotient > _OPEN), np.uint64(_OPEN), quotient).view(np.int64)
        return np.where(negative, ~cut, cut)

    def _turn(self, values: U64, near: int) -> U64:
        """The high words u64[n] of the unreduced values that end in ``values``, each nearest to that of ``near``."""
        middle, top = near * self.ratio >> self.frac_bits, MASK * self.ratio >> self.frac_bits
        turn, last = middle >> 64, top >> 64
        ahead = (values - np.uint64(middle & MASK)).view(np.int64) >= 0
        out = np.full(len(values), turn, np.uint64)
        if turn < last:
            out[ahead & (values < middle & MASK)] += np.uint64(1)
        if turn > 0:
            out[~ahead & (values > middle & MASK)] -= np.uint64(1)
        if last > 0:
            out[(out == last) & (values > top & MASK)] -= np.uint64(1)
        return out

    def _move(self, turn: U64, values: U64, by: int) -> tuple[U64, U64]:
        """The unreduced values (turn, values) u128[n] plus ``by``, cut to 0..2**128-1, which no host value reaches."""
        moved = values + np.uint64(by & MASK)
        if by >= 0:
            carried = turn + (moved < values)
            passed, end = carried < turn, np.uint64(MASK)
        else:
            carried = turn - (moved > values)
            passed, end = carried > turn, np.uint64(0)
        return np.where(passed, end, carried), np.where(passed, end, moved)

    def _interval(self, turn: U64, values: U64) -> tuple[U64, U64]:
        """``inverse`` of the unreduced values (turn, values) u128[n]."""
        first, last = multiples_within(*shift_left(turn, values, self.frac_bits), self.ratio, self.frac_bits)
        if self.frac_bits:
            # what the shift pushes out is far beyond every host value
            lost = turn >> np.uint64(64 - self.frac_bits) > 0
            first[lost] = last[lost] = MASK
        return first, last


def nested_ratio(l1_ratio: int, l12_ratio: int, frac_bits: int) -> int:
    """The ratio from the host to L2, u64, of L1's and of what L1 gives L2 (kvm_calc_nested_tsc_multiplier).

    KVM's exception for its default ratio changes no value, here and below: the product has 128 bits.
    """
    return (l1_ratio * l12_ratio >> frac_bits) & MASK


def nested_offset(l1_offset: int, l12_offset: int, l12_ratio: int, frac_bits: int) -> int:
    """The offset from the host to L2, u64, of L1's and of what L1 gives L2 (kvm_calc_nested_tsc_offset).

    L1's offset is taken as signed and scaled by mul_s64_u64_shr, which scales the magnitude and puts the sign back: it
    rounds toward 0. So L2's counter may differ by a tick from scaling step by step.
    """
    signed = to_signed(l1_offset)
    size = abs(signed) * l12_ratio >> frac_bits
    return (l12_offset + (-size if signed < 0 else size)) & MASK


def nested_cntvoff(*cntvoffs: int) -> int:
    """arm64: what is subtracted from the host's counter, u64, of the CNTVOFFs of each level: their sum.

    timer_get_offset in include/kvm/arm_arch_timer.h; the offset of a clock map is the negative of it.
    """
    return sum(cntvoffs) & MASK


def _magnitude(values: I64) -> U64:
    """|values| as u64[n], that of -2**63 too."""
    bits = values.view(np.uint64)
    return np.where(values < 0, ~bits + np.uint64(1), bits)


def _keep_open(values: I64, results: I64) -> I64:
    """``results``, but +-2**62 where the value was that far out already."""
    out = np.where(values >= _OPEN, _OPEN, results)
    return np.where(values <= -_OPEN, -_OPEN, out)
