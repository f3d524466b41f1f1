"""The tree of a print fmt's arguments, and the arithmetic of its operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

M64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Number:
    """A number: its 64 bits, and the text ``%s`` shows for it."""

    value: int
    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """Words that are no number: an enum name the kernel did not resolve, or a symbol of the kernel."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A string constant, escapes as written."""

    text: str


@dataclass(frozen=True, slots=True)
class Rec:
    """``REC->name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """``base[index]``."""

    base: Node
    index: Node


@dataclass(frozen=True, slots=True)
class Cast:
    """``(type) item``; a pointer's type ends with ``*``."""

    type: str
    item: Node


@dataclass(frozen=True, slots=True)
class Unary:
    """One of ``- ! ~`` and its operand."""

    op: str
    item: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """An arithmetic, logical or comparison operator and its operands."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Cond:
    """``test ? yes : no``."""

    test: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Flags:
    """``__print_flags(value, delim, {bits, text}...)``; bits are signed 64-bit, -1 where not known."""

    value: Node
    delim: str
    pairs: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Symbolic:
    """``__print_symbolic(value, {number, text}...)``; numbers are signed 64-bit, -1 where not known."""

    value: Node
    pairs: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Hex:
    """``__print_hex(array, length)``, or ``__print_hex_str`` with an empty separator."""

    array: Node
    length: Node
    separator: str


@dataclass(frozen=True, slots=True)
class HexDump:
    """``__print_hex_dump(prefix, prefix type, row size, group size, array, length, ascii)``."""

    prefix: str
    prefix_type: Literal["none", "address", "offset"]
    row: int
    group: int
    array: Node
    length: Node
    ascii: bool


@dataclass(frozen=True, slots=True)
class IntArray:
    """``__print_array(array, count, element size)``."""

    array: Node
    count: Node
    element: Node


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What a dynamic field holds: a string, a bitmask, a list of CPUs, its bytes or its length."""

    what: Literal["string", "bitmask", "cpumask", "array", "length"]
    name: str


Node = (
    Number | Name | Text | Rec | Index | Cast | Unary | Binary | Cond
    | Flags | Symbolic | Hex | HexDump | IntArray | Dynamic
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrintText:
    """A parsed print fmt: the format string, escapes as written, and its arguments."""

    format: str
    arguments: tuple[Node, ...]


def signed(value: int) -> int:
    """Return 64 bits as a signed number."""
    value &= M64
    return value - (1 << 64) if value >> 63 else value


def arithmetic(op: str, left: int, right: int) -> int:
    """Apply a C operator to two unsigned 64-bit numbers (libtraceevent, eval_num_arg); x / 0 is 0."""
    match op:
        case "+":
            return (left + right) & M64
        case "-":
            return (left - right) & M64
        case "*":
            return (left * right) & M64
        case "/":
            return left // right if right else 0
        case "%":
            return left % right if right else 0
        case "<<":
            return (left << (right & 63)) & M64
        case ">>":
            return left >> (right & 63)
        case "&":
            return left & right
        case "|":
            return left | right
        case "^":
            return left ^ right
        case "&&":
            return int(bool(left) and bool(right))
        case "||":
            return int(bool(left) or bool(right))
        case "==":
            return int(left == right)
        case "!=":
            return int(left != right)
        case "<":
            return int(left < right)
        case ">":
            return int(left > right)
        case "<=":
            return int(left <= right)
        case _:
            assert op == ">=", op
            return int(left >= right)
