"""The kernel's arithmetic once more, slowly: one Python integer at a time, and inverses found by bisection.

Nothing here is shared with what it tests. The names are those of the kernel's functions.
"""

from __future__ import annotations

from collections.abc import Callable

PERIOD = 1 << 64
OPEN = 1 << 62


def mul_u64_u64_shr(a: int, b: int, shift: int) -> int:
    """include/linux/math64.h: the product is u128, the result is cut to u64."""
    return a * b // 2**shift % PERIOD


def mul_s64_u64_shr(a: int, b: int, shift: int) -> int:
    """include/linux/math64.h: the sign is taken off before the multiplication and put back after the shift."""
    result = mul_u64_u64_shr(abs(a), b, shift)
    return (PERIOD - result) % PERIOD if a < 0 else result


def kvm_scale_tsc(tsc: int, ratio: int, frac: int) -> int:
    """arch/x86/kvm/x86.c."""
    return tsc if ratio == 2**frac else mul_u64_u64_shr(tsc, ratio, frac)


def kvm_read_l1_tsc(host_tsc: int, ratio: int, frac: int, offset: int) -> int:
    """arch/x86/kvm/x86.c."""
    return (offset + kvm_scale_tsc(host_tsc, ratio, frac)) % PERIOD


def kvm_calc_nested_tsc_multiplier(l1_multiplier: int, l2_multiplier: int, frac: int) -> int:
    """arch/x86/kvm/x86.c."""
    return l1_multiplier if l2_multiplier == 2**frac else mul_u64_u64_shr(l1_multiplier, l2_multiplier, frac)


def kvm_calc_nested_tsc_offset(l1_offset: int, l2_offset: int, l2_multiplier: int, frac: int) -> int:
    """arch/x86/kvm/x86.c; the offsets are u64, L1's is cast to s64."""
    signed = l1_offset - PERIOD if l1_offset >= PERIOD // 2 else l1_offset
    nested = l1_offset if l2_multiplier == 2**frac else mul_s64_u64_shr(signed, l2_multiplier, frac)
    return (nested + l2_offset) % PERIOD


def set_tsc_khz(user_khz: int, host_khz: int, frac: int, tolerance_ppm: int) -> int:
    """The ratio that kvm_set_tsc_khz and set_tsc_khz write (arch/x86/kvm/x86.c)."""
    lo = host_khz * (1_000_000 - tolerance_ppm) // 1_000_000
    hi = host_khz * (1_000_000 + tolerance_ppm) // 1_000_000
    scaled = user_khz < lo or user_khz > hi
    return 2**frac * user_khz // host_khz if scaled else 2**frac


def bisect(holds: Callable[[int], bool], lo: int, hi: int) -> int:
    """The first x in lo..hi with ``holds(x)``, which stays true from there on; hi + 1 where there is none."""
    hi += 1
    while lo < hi:
        middle = (lo + hi) // 2
        if holds(middle):
            hi = middle
        else:
            lo = middle + 1
    return lo


def preimage(rising: Callable[[int], int], value: int, lo: int, hi: int) -> tuple[int, int]:
    """The x in lo..hi with ``rising(x) == value`` (first, last); the neighbours of it where it is skipped.

    A value before all of them gives (lo, lo), one after all of them (hi, hi).
    """
    first = bisect(lambda x: rising(x) >= value, lo, hi)
    after = bisect(lambda x: rising(x) > value, lo, hi)
    if first == after:
        # skipped: the last x below and the first above
        return max(first - 1, lo), min(first, hi)
    return first, after - 1


def unreduced(value: int, near: int, ratio: int, frac: int) -> int:
    """The scaled value before it was cut to ``value``: of those that host values reach, the nearest to ``near``'s."""
    middle, top = near * ratio // 2**frac, (PERIOD - 1) * ratio // 2**frac
    turn = middle // PERIOD
    candidates = [value + t * PERIOD for t in (turn - 1, turn, turn + 1)]
    return min((c for c in candidates if 0 <= c <= top), key=lambda c: (abs(c - middle), c), default=value)


def inverse(value: int, near: int, ratio: int, frac: int, below: int = 0, above: int = 0) -> tuple[int, int]:
    """Host values of a scaled value, or of all unreduced ones from ``below`` less to ``above`` more."""
    middle = unreduced(value, near, ratio, frac)

    def scaled(host: int) -> int:
        return host * ratio // 2**frac

    first = preimage(scaled, max(middle - below, 0), 0, PERIOD - 1)[0]
    return first, preimage(scaled, max(middle + above, 0), 0, PERIOD - 1)[1]


def cut(value: int) -> int:
    """Saturated at what stands for an open end."""
    return max(-OPEN, min(OPEN, value))


def relative(value: int, base: int, ratio: int, frac: int) -> int:
    """How far base + value scaled lies from base scaled, all unreduced; open ends stay open."""
    if abs(value) >= OPEN:
        return cut(value)
    return cut((base + value) * ratio // 2**frac - base * ratio // 2**frac)


def relative_inverse(value: int, base: int, ratio: int, frac: int) -> tuple[int, int]:
    """The distances that ``relative`` takes to ``value``, cut to open ends."""
    if abs(value) >= OPEN:
        return cut(value), cut(value)
    start = base * ratio // 2**frac
    # an open end says as much as anything beyond it
    lo, hi = preimage(lambda x: (base + x) * ratio // 2**frac - start, value, -OPEN - 1, OPEN + 1)
    return cut(lo), cut(hi)


def timekeeping_ns(cycles: int, mult: int, shift: int, base: int) -> int:
    """kernel/time/timekeeping.c, timekeeping_cycles_to_ns: base is xtime_nsec - cycle_last * mult."""
    return (cycles * mult + base) // 2**shift
