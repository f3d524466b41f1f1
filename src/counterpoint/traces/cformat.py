"""The format string of a print fmt, split as libtraceevent does (parse_args), and C's rules for a conversion.

What printf() knows but libtraceevent does not (``%n``, ``%f``) shows as ``>n<``, and the text goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from counterpoint.traces.cexpr import NotUnderstoodError

MAX_CONVERSIONS = 512
"""Conversions of one format string."""
MAX_WIDTH = 4096
"""Characters one conversion is padded to."""
MAX_SPECIFICATION = 30
"""Characters of one conversion, as libtraceevent's own buffer."""

STAR: Final = -2
"""A width or precision that is an argument (-1: none)."""

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_TEXT = re.compile(r"(?:[^%\\]|%%|\\.?)+", re.DOTALL)
_ESCAPE = re.compile(r"%%|\\(.?)", re.DOTALL)
_MODIFIERS = re.compile(r"[#hlLzZ.0-9*+-]*")
_GRAMMAR = re.compile(r"([#0+-]*)(\*|[0-9]*)(?:\.(\*|-?[0-9]*))?[hlLzZ]*")
# what belongs to %p (libtraceevent, parse_arg_format_pointer)
_POINTER = re.compile(r"[FSfs]|[Mm][RF]?|[Ii](?:4[hnlb]?|6c?|S[pfs]*[hnlb]?c?)?|U[LlBb]?|h[CDN]?")


@dataclass(frozen=True, slots=True)
class Conversion:
    """One ``%`` conversion, of an integer of ``bits``; ``letter`` is its kind, ``pointer`` its suffix."""

    flags: str
    width: int
    precision: int
    bits: int
    letter: str
    pointer: str = ""
    is_long: bool = False

    @property
    def stars(self) -> int:
        """Arguments taken before the value."""
        return (self.width == STAR) + (self.precision == STAR)

    @property
    def is_signed(self) -> bool:
        """Whether the value prints with a sign."""
        return self.letter in "di"

    def given(self, number: int) -> Conversion:
        """Return this conversion with its star replaced by a number."""
        number = max(min(number, MAX_WIDTH), -MAX_WIDTH)
        if self.precision == STAR:
            return replace(self, precision=max(number, -1))
        flags = self.flags + "-" if number < 0 else self.flags
        return replace(self, flags=flags, width=abs(number))


Piece = str | Conversion


def _text(raw: str) -> str:
    def one(match: re.Match[str]) -> str:
        return "%" if match[0] == "%%" else _ESCAPES.get(match[1], match[1])

    return _ESCAPE.sub(one, raw)


def _number(digits: str | None) -> int:
    if digits is None:
        return -1
    if digits == "*":
        return STAR
    if digits.startswith("-"):
        return -1
    if len(digits) > 6 or int(digits or "0") > MAX_WIDTH:
        raise NotUnderstoodError(f"a conversion is wider than {MAX_WIDTH} characters")
    return int(digits or "0")


def split_format(text: str, *, chars: bool = True) -> list[Piece]:
    """Split a format string into text and conversions; ``chars``: whether ``%c`` and ``%+d`` are known."""
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        if len(pieces) > 2 * MAX_CONVERSIONS:
            raise NotUnderstoodError(f"the format string has more than {MAX_CONVERSIONS} conversions")
        if plain := _TEXT.match(text, at):
            pieces.append(_text(plain[0]))
            at = plain.end()
            continue
        start = at + 1
        match = _MODIFIERS.match(text, start)
        assert match is not None
        modifiers, at = match[0], match.end()
        if not chars and "+" in modifiers:
            at = start + modifiers.index("+")
        if at >= len(text):
            break
        letter = text[at]
        at += 1
        if letter not in ("cdiuxXosp" if chars else "diuxXosp"):
            pieces.append(f">{letter}<")
            continue
        pointer = ""
        if letter == "p" and (suffix := _POINTER.match(text, at)):
            pointer, at = suffix[0], suffix.end()
        grammar = _GRAMMAR.fullmatch(modifiers)
        if at - start + 1 > MAX_SPECIFICATION or grammar is None or modifiers.count("*") > 1:
            raise NotUnderstoodError("a conversion of the format string is not known")
        size = modifiers.count("l") - modifiers.count("h")
        if "L" in modifiers:
            size = 2
        elif "z" in modifiers or "Z" in modifiers:
            size = 1
        if letter not in "sp" and not -2 <= size <= 2:
            raise NotUnderstoodError("a conversion of the format string has no such size")
        bits = {-2: 8, -1: 16, 0: 32, 1: 64, 2: 64}.get(size, 32)
        width = _number(grammar[2])
        pieces.append(Conversion(grammar[1], width, _number(grammar[3]), bits, letter, pointer, size == 1))
    return pieces


def integer_template(conversion: Conversion) -> tuple[str, str | None]:
    """Return Python's ``%`` template for an integer conversion, and what 0 shows as where that differs.

    The conversion has no stars and its letter is none of ``c`` and ``o`` with ``#``.
    """
    flags = set(conversion.flags)
    letter = "d" if conversion.letter in "diu" else conversion.letter
    if letter != "d" or conversion.letter == "u":
        flags.discard("+")
    if letter == "d":
        flags.discard("#")
    if conversion.precision >= 0 or "-" in flags:
        flags.discard("0")
    width = str(conversion.width) if conversion.width > 0 else ""
    precision = f".{conversion.precision}" if conversion.precision >= 0 else ""
    template = f"%{''.join(sorted(flags))}{width}{precision}{letter}"
    if conversion.precision == 0:
        sign = "+" if "+" in flags else ""
        return template, ("%" + ("-" if "-" in flags else "") + width + "s") % sign
    if "#" in flags:
        return template, template.replace("#", "") % 0
    return template, None


def integer_text(conversion: Conversion) -> Callable[[int], str]:
    """Return what shows one integer, already of the conversion's size and sign."""
    if conversion.letter == "c":
        show = string_text(replace(conversion, precision=-1)) or str
        # the terminal's bytes are read as UTF-8, in which no byte past 0x7f stands alone
        return lambda value: show(chr(value & 0xFF) if value & 0xFF < 0x80 else "\ufffd")
    if conversion.letter == "o" and "#" in conversion.flags:
        plain = replace(conversion, flags=conversion.flags.replace("#", ""))

        def octal(value: int) -> str:
            # as many digits that the first is 0 (C11 7.21.6.1); 0 itself is one digit, whatever the precision
            digits = f"{value:o}"
            least = max(plain.precision, len(digits) + 1) if value else plain.precision or 1
            return integer_template(replace(plain, precision=least))[0] % value

        return octal
    template, zero = integer_template(conversion)
    if zero is None:
        return lambda value: template % value
    return lambda value: template % value if value else zero


def string_text(conversion: Conversion) -> Callable[[str], str] | None:
    """Return what pads or cuts a string; None where nothing is to do. C counts bytes, not characters."""
    width, precision, left = conversion.width, conversion.precision, "-" in conversion.flags
    if width <= 0 and precision < 0:
        return None

    def show(text: str) -> str:
        if text.isascii():
            if precision >= 0:
                text = text[:precision]
            return text.ljust(width) if left else text.rjust(width)
        data = text.encode("utf-8", "replace")
        if precision >= 0:
            data = data[:precision]
        return (data.ljust(width) if left else data.rjust(width)).decode("utf-8", "replace")

    return show
