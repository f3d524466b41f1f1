"""Inputs that are nearly right: bytes of a right one changed here and there."""

from __future__ import annotations

import random
from collections.abc import Sequence

SIZES = (1, 2, 4, 8)
MAX_GROWTH = 1 << 16


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with one to eight changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(1 << rng.randrange(4)):
        if not data:
            data += bytes(rng.randrange(1, 64))
        rng.choice((_bit, _number, _number, _number, _digits, _cut, _insert, _repeat, _splice))(rng, data, seeds)
    return bytes(data)


def _bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Somewhere a number that programs trip over, in either byte order."""
    size = rng.choice(SIZES)
    bits = 8 * size
    near = rng.choice((0, 1, len(data), 1 << (bits - 1), (1 << bits) - 1, 1 << rng.randrange(bits), 4096, 0x10000))
    value = (near + rng.randrange(-2, 3)) % (1 << bits)
    at = rng.randrange(len(data))
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))[: len(data) - at]


def _digits(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """A number in a text, if there is one."""
    places = [at for at, byte in enumerate(data[:65536]) if 0x30 <= byte <= 0x39]
    if places:
        at = rng.choice(places)
        end = at
        while end < len(data) and 0x30 <= data[end] <= 0x39:
            end += 1
        data[at:end] = str(rng.choice((0, 1, -1, 1 << 31, 1 << 63, 1 << 64, 10**30, 4096))).encode()


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 8, 64, 4096, len(data)))]


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((b"\0", b"\xff", b"\x1b[31m", b"\n", b"%s", b"(", b'"', b"\x80")) * rng.randrange(1, 9)


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    part = bytes(data[at : at + rng.choice((1, 8, 64, 4096))])
    times = min(rng.choice((1, 2, 100)), MAX_GROWTH // len(part))
    data[at:at] = part * times


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    if other:
        start = rng.randrange(len(other))
        part = other[start : start + rng.choice((4, 16, 256, 4096))]
        at = rng.randrange(len(data))
        data[at : at + len(part)] = part
