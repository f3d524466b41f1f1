"""How values show: what ``%p`` makes of a suffix and what the ``__print_*`` helpers make of arrays and masks.

Follows libtraceevent: print_mac_arg, print_ip_arg, print_uuid_arg, print_raw_buff_arg, print_str_arg,
print_field_raw.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Literal

_AF_INET, _AF_INET6 = 2, 10
_GUID = (3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15)


def mac_text(kind: str, data: bytes) -> str:
    """Show a hardware address: M, m, MF, MR, mR."""
    if len(data) != 6:
        return "INVALIDMAC"
    data = data[::-1] if kind[1:] == "R" else data
    return data.hex() if kind[0] == "m" else data.hex("-" if kind == "MF" else ":")


def _reverse(order: str, big_endian: bool) -> bool:
    return order == "l" or (order == "h" and not big_endian)


def _ipv4(leading: bool, reverse: bool, data: bytes) -> str:
    octets = data[::-1] if reverse else data
    return ".".join(f"{octet:03d}" if leading else str(octet) for octet in octets)


def _ipv6(kind: str, data: bytes) -> str:
    groups = [data[i : i + 2].hex() for i in range(0, 16, 2)]
    return (":" if kind == "I" else "").join(groups)


def _ipv6_short(data: bytes) -> str:
    mapped = data[:12] == bytes(10) + b"\xff\xff" or data[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")
    words = struct.unpack(">8H", data)[: 6 if mapped else 8]
    best, length = -1, 1
    for start in range(len(words)):
        run = 0
        while start + run < len(words) and words[start + run] == 0:
            run += 1
        if run > length:
            best, length = start, run
    if best < 0:
        text = ":".join(f"{word:x}" for word in words)
    else:
        before, after = words[:best], words[best + length :]
        text = ":".join(f"{w:x}" for w in before) + "::" + ":".join(f"{w:x}" for w in after)
    if not mapped:
        return text
    return text + ("" if text.endswith(":") else ":") + _ipv4(False, False, data[12:16])


def ip_text(kind: str, data: bytes, big_endian: bool) -> str:
    """Show an IP address: I4, i4, I6, i6, I6c and, from a socket address, IS, ISc, ISp, ISpc."""
    family, rest = kind[1:2], kind[2:]
    if family == "4":
        if len(data) != 4:
            return "INVALIDIPv4"
        return _ipv4(kind[0] == "i", _reverse(rest, big_endian), data)
    if family == "6":
        if len(data) != 16:
            return "INVALIDIPv6"
        return _ipv6_short(data) if kind == "I6c" else _ipv6(kind[0], data)
    if family == "S":
        return _socket_address(kind[0], rest, data, big_endian)
    return ""


def _socket_address(case: str, rest: str, data: bytes, big_endian: bool) -> str:
    port = short = False
    if case == "I":
        port = rest.startswith("p")
        rest = rest[port:]
        short = rest.startswith("c")
        rest = rest[short:]
    if len(data) < 2:
        return ""
    family = int.from_bytes(data[:2], "big" if big_endian else "little")
    if family == _AF_INET:
        if len(data) < 16:
            return "INVALIDIPv4"
        text = _ipv4(case == "i", _reverse(rest[:1], big_endian), data[4:8])
        return f"{text}:{int.from_bytes(data[2:4], 'big')}" if port else text
    if family == _AF_INET6:
        if len(data) < 28:
            return "INVALIDIPv6"
        text = _ipv6_short(data[8:24]) if short else _ipv6(case, data[8:24])
        return f"[{text}]:{int.from_bytes(data[2:4], 'big')}" if port else text
    return ""


def uuid_text(kind: str, data: bytes) -> str:
    """Show a UUID: U and Ub in byte order, Ul as a GUID; UB and UL in capitals."""
    if len(data) != 16:
        return "INVALIDUUID"
    if kind[1:] in ("l", "L"):
        data = bytes(data[i] for i in _GUID)
    digits = data.hex()
    text = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return text.upper() if kind[1:] in ("L", "B") else text


def buffer_text(kind: str, data: bytes, length: int) -> str:
    """Show the first ``length`` bytes: h, hC, hD, hN."""
    separator = {"": " ", "C": ":", "D": "-", "N": ""}[kind[1:]]
    data = data[: max(length, 0)]
    return data.hex(separator) if separator else data.hex()


def hex_text(data: bytes, length: int, separator: str) -> str:
    """Show ``length`` bytes as __print_hex does; what is not recorded is not shown."""
    data = data[:length]
    return data.hex(separator) if separator else data.hex()


def hex_dump(data: bytes, prefix: str, kind: str, row: int, group: int, with_text: bool, big_endian: bool) -> str:
    """Show rows as the kernel's hex_dump_to_buffer() does, each on a line of its own."""
    row = row if row in (16, 32) else 16
    group = group if group in (1, 2, 4, 8) else 1
    lines = []
    for at in range(0, len(data), row):
        part = data[at : at + row]
        size = group if len(part) % group == 0 else 1
        words = [part[i : i + size] for i in range(0, len(part), size)]
        text = " ".join((w if big_endian else w[::-1]).hex() for w in words)
        if with_text:
            width = row // size * (size * 2 + 1) + 1
            text = text.ljust(width) + "".join(chr(b) if 0x20 <= b < 0x7F else "." for b in part)
        where = f"{at:08x}: " if kind == "offset" else f"{at:016x}: " if kind == "address" else ""
        lines.append(prefix + where + text)
    return "\n".join(lines)


def int_array_text(data: bytes, count: int, size: int, braces: bool, big_endian: bool) -> str:
    """Show ``count`` integers as __print_array does; ``braces``: as hexadecimal, in braces."""
    order: Literal["big", "little"] = "big" if big_endian else "little"
    shown: list[str] = []
    at = 0
    while len(shown) < count and at < len(data):
        if size in (1, 2, 4, 8):
            value = int.from_bytes(data[at : at + size], order)
            shown.append(f"0x{value:x}" if braces else str(value))
        else:
            shown.append(f"BAD SIZE:{size} 0x{data[at]:x}")
            size = 1
        at += size
    return "{" + ",".join(shown) + "}" if braces else " ".join(shown)


def bitmask_text(data: bytes, big_endian: bool) -> str:
    """Show a bit mask as hexadecimal digits, a comma every 32 bits."""
    digits = (data if big_endian else data[::-1]).hex()
    first = len(digits) % 8
    groups = [digits[:first]] if first else []
    groups += [digits[i : i + 8] for i in range(first, len(digits), 8)]
    return ",".join(groups)


def cpumask_text(data: bytes, big_endian: bool) -> str:
    """Show a CPU mask as a list of ranges."""
    bits = int.from_bytes(data, "big" if big_endian else "little")
    ranges = []
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        at, bits = at + zeros, bits >> zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        ranges.append(str(at) if ones == 1 else f"{at}-{at + ones - 1}")
        at, bits = at + ones, bits >> ones
    return ",".join(ranges)


def flags_text(value: int, pairs: Sequence[tuple[int, str]], delim: str, show: Callable[[str], str]) -> str:
    """Show a value as __print_flags does."""
    text: list[str] = []
    some = False
    for bits, name in pairs:
        if not value and bits < 0:
            text.append(show(name))
            break
        if bits > 0 and value & bits == bits:
            if some:
                text.append(delim)
            text.append(show(name))
            some = True
            value &= ~bits
    if value:
        text.append(f"{delim if some else ''}0x{value:x}")
    return "".join(text)


def bytes_text(data: bytes) -> str:
    """Return the text up to the first NUL."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def raw_bytes_text(data: bytes, could_be_text: bool) -> str:
    """Show an array as the field listing does."""
    if could_be_text:
        head = data.split(b"\0", 1)[0]
        if all(0x20 <= byte < 0x7F or 9 <= byte <= 13 for byte in head):
            return head.decode("ascii")
    return f"ARRAY[{data.hex(' ').replace(' ', ', ')}]"
