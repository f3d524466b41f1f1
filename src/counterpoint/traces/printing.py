"""Events as text: what ``trace-cmd report`` shows of a record, and of its fields with ``-R``.

An event's ``print fmt:`` becomes one function over columns of records. Where the C text has a construct that
is not known, the event is shown as libtraceevent shows one it could not parse: ``[FAILED TO PARSE]`` and its
fields (pretty_print, print_selected_fields).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from counterpoint.traces.bprint import compile_bprint
from counterpoint.traces.cexpr import NotUnderstoodError, parse_print
from counterpoint.traces.cformat import Conversion, Piece, split_format
from counterpoint.traces.codegen import Batch, Emitter, Fixed, Part, is_array
from counterpoint.traces.ctree import Cast, Node, Rec
from counterpoint.traces.formats import EventFormat, Field
from counterpoint.traces.symbols import Kallsyms, Symbols, parse_kallsyms, parse_printk

__all__ = [
    "CURRENT",
    "EXACT_C",
    "V1_7",
    "Batch",
    "Dialect",
    "Kallsyms",
    "PrintFormat",
    "Symbols",
    "compile_fields",
    "compile_print",
    "format_fields",
    "parse_kallsyms",
    "parse_printk",
]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Whose reading is followed where readings differ.

    ``chars``: ``%c``, ``%+d`` and ``'x'`` are known. ``braces``: __print_array shows ``{0x1,0x2}``, not
    ``1 2``. ``addresses``: the listing of fields shows a function's address behind its name. ``regroup``:
    operators group as libtraceevent groups them, not as in C (see cexpr).
    """

    chars: bool = True
    braces: bool = True
    addresses: bool = True
    regroup: bool = True


CURRENT = Dialect()
"""libtraceevent 1.8.4."""
V1_7 = Dialect(chars=False, braces=False, addresses=False)
"""libtraceevent 1.7, as in Debian 12."""
EXACT_C = Dialect(regroup=False)
"""The meaning the kernel's compiler gives the text."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A conversion with the arguments it takes."""

    conversion: Conversion
    node: Node
    star: Node | None


_Parsed = list[str | _Taken]


@dataclass(frozen=True, slots=True)
class PrintFormat:
    """Renders the records of one event; ``fallback`` says why only its fields can be shown, None: all can."""

    _function: Callable[[Batch], list[str]]
    fallback: str | None = None

    def render(self, batch: Batch) -> list[str]:
        """Return one text per record."""
        return self._function(batch)


def _parse(event: EventFormat, symbols: Symbols, dialect: Dialect) -> _Parsed:
    """Read the event's print fmt and hand each conversion its arguments."""
    sizes = {f.name: 0 if is_array(f) else f.size for f in (*event.common, *event.fields)}
    text = parse_print(
        event.print_fmt, sizes, long_size=symbols.long_size, chars=dialect.chars, regroup=dialect.regroup
    )
    arguments: tuple[Node, ...] = text.arguments
    if not arguments and event.system == "ftrace":
        # formats of old kernels name no arguments: they are the fields
        arguments = tuple(Rec(f.name) for f in event.fields)
    rest = iter(arguments)
    return [_take(piece, rest) for piece in split_format(text.format, chars=dialect.chars)]


def _take(piece: Piece, rest: Iterator[Node]) -> str | _Taken:
    if isinstance(piece, str):
        return piece
    taken = list(islice(rest, piece.stars + 1))
    if len(taken) <= piece.stars:
        raise NotUnderstoodError("the format string has more conversions than there are arguments")
    return _Taken(piece, taken[-1], taken[0] if piece.stars else None)


def _print_parts(emitter: Emitter, parsed: _Parsed) -> list[Part]:
    return [Fixed(p) if isinstance(p, str) else emitter.convert(p.conversion, p.node, p.star) for p in parsed]


def _field_parts(emitter: Emitter, event: EventFormat, parsed: _Parsed, raw: bool) -> list[Part]:
    """List ``name=value``, each value as the print fmt shows it, if it does (libtraceevent, print_field)."""
    parts: list[Part] = []
    start: int | None = 0 if parsed else None
    for field in event.fields:
        parts.append(Fixed(f" {field.name}="))
        found = None if start is None or is_array(field) else _find(event, parsed, field, start)
        if found is None:
            parts.append(emitter.field(field))
            continue
        at, prefixed = found
        if prefixed:
            parts.append(Fixed("0x"))
        taken = parsed[at]
        assert isinstance(taken, _Taken)
        parts.append(emitter.convert(taken.conversion, taken.node, taken.star, raw))
        # behind the last conversion libtraceevent has none to look at, and shows all further fields plainly
        start = at + 1 if at + 1 < len(parsed) else None
    return parts


def _find(event: EventFormat, parsed: _Parsed, field: Field, start: int) -> tuple[int, bool] | None:
    """Find the conversion that shows a field, from ``start`` around; say too whether "0x" is before it."""
    prefixed = False
    for step in range(len(parsed)):
        at = (start + step) % len(parsed)
        piece = parsed[at]
        if isinstance(piece, str):
            prefixed = piece.endswith("0x")
            continue
        node = piece.node
        while isinstance(node, Cast):
            node = node.item
        if isinstance(node, Rec) and event.field(node.name) == field:
            return at, prefixed
        prefixed = False
    return None


def _is_bprint(event: EventFormat) -> bool:
    return event.system == "ftrace" and event.name == "bprint"


def compile_print(event: EventFormat, symbols: Symbols, dialect: Dialect = CURRENT) -> PrintFormat:
    """Make what renders an event as ``trace-cmd report -N`` does."""
    if _is_bprint(event) and (render := compile_bprint(event, symbols)) is not None:
        return PrintFormat(render)
    try:
        emitter = Emitter(event, symbols, braces=dialect.braces)
        return PrintFormat(emitter.function(_print_parts(emitter, _parse(event, symbols, dialect))))
    except NotUnderstoodError as error:
        emitter = Emitter(event, symbols, braces=dialect.braces)
        parts = [Fixed("[FAILED TO PARSE]"), *_field_parts(emitter, event, [], False)]
        return PrintFormat(emitter.function(parts), f"{event.system}/{event.name}: {error}")


def compile_fields(event: EventFormat, symbols: Symbols, dialect: Dialect = CURRENT) -> PrintFormat:
    """Make what lists an event's fields as ``trace-cmd report -N -R`` does."""
    fallback: str | None = None
    parsed: _Parsed = []
    if not _is_bprint(event):
        try:
            parsed = _parse(event, symbols, dialect)
        except NotUnderstoodError as error:
            fallback = f"{event.system}/{event.name}: {error}"
    emitter = Emitter(event, symbols, braces=dialect.braces)
    try:
        render = emitter.function(_field_parts(emitter, event, parsed, dialect.addresses))
    except NotUnderstoodError as error:
        fallback = f"{event.system}/{event.name}: {error}"
        emitter = Emitter(event, symbols, braces=dialect.braces)
        render = emitter.function(_field_parts(emitter, event, [], False))
    return PrintFormat(render, fallback)


def format_fields(
    event: EventFormat, batch: Batch, symbols: Symbols | None = None, dialect: Dialect = CURRENT
) -> list[str]:
    """List the fields of records as ``trace-cmd report -N -R`` does."""
    return compile_fields(event, symbols or Symbols(), dialect).render(batch)
