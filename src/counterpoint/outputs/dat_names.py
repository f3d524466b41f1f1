"""Print formats that name a kernel's functions without that kernel's symbols: the names stand in the format itself.

``"to %ps", REC->function`` becomes ``"to %s", __print_symbolic(REC->function, {0xffffffff8107b190, "tick"})``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CONVERSION = re.compile(r"%[-+ #0]*(\*|[0-9]+)?(?:\.(\*|[0-9]+))?(?:hh|h|ll|l|z|t|j|L|q)?(p[sSfFB]R?b?|[a-zA-Z%])")
_SYMBOL = re.compile(r"%[-+ #0]*[0-9]*p[sSfFB]R?b?")
_FIELD = re.compile(r"REC->(\w+)")
_CASTS = frozenset({"void", "const", "unsigned", "long", "u64"})
_NAME = re.compile(r"[\w.$]+")

Name = tuple[str, int]
"""A function, and how far into it."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A print format that shows functions: its string and arguments.

    ``symbols``: where in the string each conversion of a function stands, which argument is its, and the field there.
    """

    string: str
    arguments: tuple[str, ...]
    symbols: tuple[tuple[int, int, int, str], ...]

    @property
    def fields(self) -> set[str]:
        """The fields that hold addresses of functions."""
        return {name for *_, name in self.symbols}

    def named(self, names: dict[str, dict[int, Name | None]]) -> str:
        """The format with names in it: ``names`` of the values of each field."""
        string, arguments = self.string, list(self.arguments)
        for begin, end, argument, name in reversed(self.symbols):
            with_offset = string[begin:end].rstrip("Rb")[-1] in "SFB"
            pairs = ", ".join(_pairs(names[name], with_offset))
            string = f"{string[:begin]}{'%s' if pairs else '0x%lx'}{string[end:]}"
            arguments[argument] = f"__print_symbolic(REC->{name}, {pairs})" if pairs else f"REC->{name}"
        return ", ".join([f'"{string}"', *arguments])


def _pairs(names: dict[int, Name | None], with_offset: bool) -> Iterable[str]:
    for value, found in sorted(names.items()):
        if found is not None and _NAME.fullmatch(found[0]):
            text = f"{found[0]}+0x{found[1]:x}" if with_offset else found[0]
            yield f'{{0x{value:x}, "{text}"}}'


def prints_symbols(print_format: str) -> bool:
    """Whether a print format shows functions."""
    return _SYMBOL.search(print_format) is not None


def as_numbers(print_format: str) -> str:
    """The format with addresses in place of functions."""
    return _SYMBOL.sub("0x%lx", print_format)


def read_printed(print_format: str) -> Printed | None:
    """Take a print format apart; None where it is not a string and arguments, or a function is more than a field."""
    found = _conversions(print_format)
    if found is None:
        return None
    string, arguments, conversions = found
    symbols = []
    for conversion, at in conversions:
        if len(conversion[3]) > 1:
            field = _field_of(arguments[at])
            if field is None:
                return None
            symbols.append((conversion.start(), conversion.end(), at, field))
    return Printed(string, tuple(arguments), tuple(symbols))


def hexadecimal_fields(print_format: str) -> set[str]:
    """The fields that a print format shows in hexadecimal, as they are."""
    found = _conversions(print_format)
    if found is None:
        return set()
    return {
        field for one, at in found[2] if one[3] in ("x", "X", "p") and (field := _field_of(found[1][at])) is not None
    }


def _conversions(print_format: str) -> tuple[str, list[str], list[tuple[re.Match[str], int]]] | None:
    """The string, its arguments, and each conversion with its argument's place; None where they do not match."""
    found = re.match(r'\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)', print_format, re.DOTALL)
    if found is None:
        return None
    arguments = _split(print_format[found.end() :])
    taken = []
    at = 0
    for conversion in _CONVERSION.finditer(found[1]):
        if conversion[3] == "%":
            continue
        at += (conversion[1] == "*") + (conversion[2] == "*")
        if at >= len(arguments):
            return None
        taken.append((conversion, at))
        at += 1
    return (found[1], arguments, taken) if at == len(arguments) else None


def _field_of(argument: str) -> str | None:
    """The field that an argument is, whatever it is cast to; None where it is more than a field."""
    found = _FIELD.search(argument)
    if found is None:
        return None
    rest = argument[: found.start()] + argument[found.end() :]
    # a star that no bracket follows is no part of a cast
    plain = re.fullmatch(r"[\s()*\w]*", rest) and not re.search(r"\*\s*[^\s*)]|\*\s*$", argument[: found.start()])
    return found[1] if plain and _CASTS.issuperset(re.findall(r"\w+", rest)) else None


def _split(text: str) -> list[str]:
    """Arguments, at commas that stand in no brackets and no string."""
    parts, depth, begin = [], 0, 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]', text, re.DOTALL):
        if token[0] in "({[":
            depth += 1
        elif token[0] in ")}]":
            depth -= 1
        elif token[0] == "," and not depth:
            parts.append(text[begin : token.start()].strip())
            begin = token.end()
    rest = text[begin:].strip()
    return [*parts, rest] if rest or parts else []
