"""Trees of print arguments to one Python function per event, over columns of records.

What an argument shows follows libtraceevent: eval_num_arg (numbers are unsigned 64-bit, a field is not
sign-extended), print_str_arg, print_arg_number and print_arg_pointer.

The generated source holds fixed words, the names this module makes up and integers, never text of the file:
that goes in as constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from counterpoint.traces import ctree, values
from counterpoint.traces.cexpr import NotUnderstoodError, number_of
from counterpoint.traces.cformat import Conversion, integer_template, integer_text, string_text
from counterpoint.traces.ctree import M64
from counterpoint.traces.formats import EventFormat, Field
from counterpoint.traces.symbols import Symbols

MAX_MEMO = 1 << 16
"""Values remembered with their text, per argument."""
MAX_LINE = 1 << 16
"""Characters of one rendered event; a record is at most as long."""
_MANY = 16  # arguments that could only together pass MAX_LINE

_SIZES = (1, 2, 4, 8)
_IDENTIFIER = re.compile(r"[a-z]\d+|\d+")
_COMPARE = ("==", "!=", "<", ">", "<=", ">=")
# the numbers libtraceevent shows where %pM and its kind have another argument than a field
_TYPES: dict[type, int] = {
    ctree.Number: 1, ctree.Name: 1, ctree.Text: 1, ctree.Rec: 2, ctree.Flags: 3, ctree.Symbolic: 4,
    ctree.IntArray: 6, ctree.Index: 11, ctree.Unary: 11, ctree.Binary: 11, ctree.Cond: 11, ctree.HexDump: 5,
}  # fmt: skip
_DYNAMIC_TYPES = {"string": 8, "array": 10, "bitmask": 13, "length": 14, "cpumask": 16}


class Batch(Protocol):
    """Columns of records of one event."""

    def __len__(self) -> int:
        """Count the records."""

    def ints(self, name: str) -> list[int]:
        """Return an integer field, signed as declared; of a dynamic field the locator."""

    def text(self, name: str) -> list[str]:
        """Return a string, up to its first NUL."""

    def raw(self, name: str) -> list[bytes]:
        """Return the bytes of an array, as recorded; of a dynamic field what its locator points to."""

    def array(self, name: str) -> list[list[int]]:
        """Return the elements of an array."""


class Memo(dict[Any, str]):
    """Text by value, made on demand and kept up to a limit."""

    def __init__(self, make: Callable[[Any], str]) -> None:
        """Start empty."""
        super().__init__()
        self._make = make

    def __missing__(self, key: object) -> str:
        """Make the text."""
        text = self._make(key)
        if len(self) < MAX_MEMO:
            self[key] = text
        return text


class Value(NamedTuple):
    """An expression for a number known to be at least 0 and to fit in so many bits."""

    code: str
    bits: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """A part of a line that is the same in all."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """A part of a line that an expression gives, shown by ``template``."""

    code: str
    template: str = "%s"


Part = Fixed | Code
_EMPTY = Fixed("")


def is_pointer(field: Field) -> bool:
    """Whether the field's type is a pointer."""
    return "*" in field.declaration


def field_type(field: Field) -> str:
    """Return the declaration without the field's name."""
    at = field.declaration.rfind(field.name) if field.name else -1
    return field.declaration if at < 0 else field.declaration[:at] + field.declaration[at + len(field.name) :]


def is_array(field: Field) -> bool:
    """Whether the field is declared an array; a dynamic bitmask ("__data_loc cpumask_t mask") is not."""
    return "[" in field.declaration


def symbol_text(symbols: Symbols, offset: bool, raw: bool) -> Callable[[int], str]:
    """Return what shows an address as %ps does, with ``offset`` as %pS; ``raw``: the address too."""

    def show(address: int) -> str:
        found = symbols.find(address)
        if found is None:
            return f" (0x{address:x})" if raw else f"0x{address:x}"
        text = f"{found[0]}+0x{address - found[1]:x}" if offset else found[0]
        return f"{text} (0x{address:x})" if raw else text

    return show


def _cast(value: Value, type_: str) -> Value:
    """Cut a number to a type's size (libtraceevent, eval_type_str); pointers and unknown types leave it."""
    name = type_.removeprefix("unsigned ")
    bits = {"char": 8, "short": 16, "int": 32}.get(name) or {
        "u8": 8, "u16": 16, "u32": 32, "s8": 8, "s16": 16, "s32": 32,
    }.get(type_, 64)  # fmt: skip
    return value if value.bits <= bits else Value(f"({value.code} & {(1 << bits) - 1})", bits)


class Emitter:
    """Collects the columns and constants of one event's function while its arguments become expressions."""

    def __init__(self, event: EventFormat, symbols: Symbols, *, braces: bool) -> None:
        """Start with no columns."""
        self.event = event
        self.symbols = symbols
        self.braces = braces
        self.columns: dict[tuple[str, str, int], str] = {}
        self.constants: dict[str, object] = {}
        self.order: Literal["big", "little"] = "big" if symbols.big_endian else "little"

    def constant(self, value: object) -> str:
        """Name a constant."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def column(self, how: Literal["ints", "text", "raw", "array"], name: str, least: int = 0) -> str:
        """Name a column; arrays have at least so many elements."""
        return self.columns.setdefault((how, name, least), f"c{len(self.columns)}")

    def memo(self, make: Callable[[Any], str], key: str) -> Code:
        """Show a value by a function whose results are kept."""
        return Code(f"{self.constant(Memo(make))}[{key}]")

    # numbers

    def number(self, node: ctree.Node) -> Value:
        """Return the expression of a node as an unsigned 64-bit number."""
        match node:
            case ctree.Number(value):
                return Value(str(value), value.bit_length())
            case ctree.Text(text):
                value = number_of(text) or 0
                return Value(str(value), value.bit_length())
            case ctree.Name(text):
                # a function's or variable's name stands for its address
                value = self.symbols.address(text) & M64
                return Value(str(value), value.bit_length())
            case ctree.Rec(name):
                return self._field_number(name)
            case ctree.Index():
                return self._element(node)
            case ctree.Cast(type_, item):
                return _cast(self.number(item), type_)
            case ctree.Unary("!"):
                return Value(f"(1 if {self.truth(node)} else 0)", 1)
            case ctree.Unary(op, item):
                value_ = self.number(item)
                return Value(f"({value_.code} ^ {M64})" if op == "~" else f"(-{value_.code} & {M64})", 64)
            case ctree.Binary():
                return self._binary(node)
            case ctree.Cond(test, yes, no):
                first, second = self.number(yes), self.number(no)
                code = f"({first.code} if {self.truth(test)} else {second.code})"
                return Value(code, max(first.bits, second.bits))
            case ctree.Dynamic("length", name):
                return Value(f"({self.column('ints', name)} >> 16 & 65535)", 16)
        return Value("0", 0)

    def truth(self, node: ctree.Node) -> str:
        """Return the expression of a node as a condition."""
        match node:
            case ctree.Unary("!", item):
                return f"(not {self.truth(item)})"
            case ctree.Binary("&&", left, right):
                return f"({self.truth(left)} and {self.truth(right)})"
            case ctree.Binary("||", left, right):
                return f"({self.truth(left)} or {self.truth(right)})"
            case ctree.Binary(op, left, right) if op in _COMPARE:
                return f"({self.number(left).code} {op} {self.number(right).code})"
        return self.number(node).code

    def _binary(self, node: ctree.Binary) -> Value:
        op = node.op
        if op in _COMPARE or op in ("&&", "||"):
            return Value(f"(1 if {self.truth(node)} else 0)", 1)
        left, right = self.number(node.left), self.number(node.right)
        fixed = node.right.value if isinstance(node.right, ctree.Number) else None
        a, b = left.code, right.code
        match op:
            case "&":
                return Value(f"({a} & {b})", min(left.bits, right.bits))
            case "|" | "^":
                return Value(f"({a} {op} {b})", max(left.bits, right.bits))
            case ">>" if fixed is not None:
                return Value(f"({a} >> {fixed & 63})", max(left.bits - (fixed & 63), 0))
            case ">>":
                return Value(f"({a} >> ({b} & 63))", left.bits)
            case "<<" if fixed is not None:
                value = Value(f"({a} << {fixed & 63})", left.bits + (fixed & 63))
            case "<<":
                value = Value(f"({a} << ({b} & 63))", left.bits + 63)
            case "+":
                value = Value(f"({a} + {b})", max(left.bits, right.bits) + 1)
            case "-":
                return Value(f"(({a} - {b}) & {M64})", 64)
            case "*":
                value = Value(f"({a} * {b})", left.bits + right.bits)
            case _:
                if fixed:
                    return Value(f"({a} {'//' if op == '/' else '%'} {b})", left.bits)
                apply = self.constant(lambda x, y: ctree.arithmetic(op, x, y))
                return Value(f"{apply}({a}, {b})", 64)
        return value if value.bits <= 64 else Value(f"({value.code} & {M64})", 64)

    def _field_number(self, name: str) -> Value:
        field = self.event.field(name)
        if field is None or field.size not in _SIZES:
            return Value("0", 0)
        bits = field.size * 8
        if field.kind == "int" or field.dynamic:
            column = self.column("ints", name)
            signed = field.signed and not field.dynamic
            return Value(f"({column} & {(1 << bits) - 1})" if signed else column, bits)
        return self._peek(self.column("raw", name), "0", field.size)

    def _peek(self, data: str, at: str, size: int) -> Value:
        order = self.order

        def peek(data: bytes, at: int) -> int:
            part = data[at : at + size]
            return int.from_bytes(part, order) if len(part) == size else 0

        return Value(f"{self.constant(peek)}({data}, {at})", size * 8)

    def _element(self, node: ctree.Index) -> Value:
        base, pointer = node.base, ""
        while isinstance(base, ctree.Cast):
            pointer, base = pointer or base.type, base.item
        index = self.number(node.index)
        if isinstance(base, ctree.Dynamic) and base.what == "array":
            field = self.event.field(base.name)
            size = field.element_size if field and field.element_size in _SIZES else self.symbols.long_size
            # libtraceevent takes the index as bytes
            value = self._peek(self.column("raw", base.name), index.code, size)
        elif isinstance(base, ctree.Rec) and (field := self.event.field(base.name)) is not None:
            value = self._field_element(field, node.index, index)
        else:
            return Value("0", 0)
        return _cast(value, pointer[:-2]) if pointer.endswith(" *") else value

    def _field_element(self, field: Field, node: ctree.Node, index: Value) -> Value:
        if field.kind == "int" and not field.dynamic:
            number = self._field_number(field.name)
            return number if index.code == "0" else Value(f"({number.code} if {index.code} == 0 else 0)", number.bits)
        size = field.element_size
        if field.kind != "array" or size not in _SIZES:
            return self._peek(self.column("raw", field.name), index.code, 1)
        mask = f" & {(1 << size * 8) - 1}" if field.signed else ""
        count = field.size // size if not field.dynamic else 0
        if isinstance(node, ctree.Number) and node.value < count:
            column = self.column("array", field.name, count)
            return Value(f"({column}[{node.value}]{mask})", size * 8)

        def element(values: list[int], at: int) -> int:
            return values[at] if at < len(values) else 0

        column = self.column("array", field.name)
        return Value(f"({self.constant(element)}({column}, {index.code}){mask})", size * 8)

    # conversions

    def convert(self, conversion: Conversion, node: ctree.Node, star: ctree.Node | None, raw: bool = False) -> Part:
        """Return what a conversion shows of a node; ``star`` is the node of its width or precision."""
        if conversion.letter == "p":
            return self._pointer(conversion, node, star, raw)
        if conversion.letter == "s":
            return self._string_conversion(conversion, node, star)
        code = self._sized(conversion, node)
        if star is not None:
            shows = Memo(lambda width: integer_text(conversion.given(width)))  # type: ignore[arg-type,return-value]
            return Code(f"{self.constant(shows)}[{self._int(star)}]({code})")
        if conversion.letter == "c" or (conversion.letter == "o" and "#" in conversion.flags):
            return Code(f"{self.constant(integer_text(conversion))}({code})")
        template, zero = integer_template(conversion)
        return Code(code, template) if zero is None else self._unless_zero(code, template, zero)

    def _unless_zero(self, code: str, template: str, zero: str) -> Code:
        shown, nothing = self.constant(template), self.constant(zero)
        if _IDENTIFIER.fullmatch(code):
            return Code(f"({shown} % {code} if {code} else {nothing})")
        return Code(f"({shown} % v if (v := {code}) else {nothing})")

    def _sized(self, conversion: Conversion, node: ctree.Node) -> str:
        """Return a number cut to the conversion's size, with its sign."""
        bits, signed = conversion.bits, conversion.is_signed
        field = self.event.field(node.name) if isinstance(node, ctree.Rec) else None
        if signed and field and field.kind == "int" and not field.dynamic and field.signed and field.size * 8 == bits:
            return self.column("ints", field.name)
        value = self.number(node)
        code = value.code if value.bits <= bits else f"({value.code} & {(1 << bits) - 1})"
        if signed and value.bits >= bits:
            half = 1 << (bits - 1)
            return f"(({code} ^ {half}) - {half})"
        return code

    def _int(self, node: ctree.Node) -> str:
        return self._sized(Conversion("", 0, -1, 32, "d"), node)

    def _string_conversion(self, conversion: Conversion, node: ctree.Node, star: ctree.Node | None) -> Part:
        if star is None:
            return self.string(node, string_text(conversion))
        part = self.string(node, None)
        shows = Memo(lambda width: string_text(conversion.given(width)) or str)  # type: ignore[arg-type,return-value]
        return Code(f"{self.constant(shows)}[{self._int(star)}]({self._text_code(part)})")

    def _text_code(self, part: Part) -> str:
        if isinstance(part, Fixed):
            return self.constant(part.text)
        return part.code if part.template == "%s" else f"({self.constant(part.template)} % {part.code})"

    def _shown(self, code: str, show: Callable[[str], str] | None) -> Code:
        return Code(code if show is None else f"{self.constant(show)}({code})")

    # strings

    def string(self, node: ctree.Node, show: Callable[[str], str] | None) -> Part:
        """Return what ``%s`` shows of a node; ``show`` pads or cuts."""
        pad = show or str
        match node:
            case ctree.Number(_, text) | ctree.Name(text) | ctree.Text(text):
                return Fixed(pad(text))
            case ctree.Rec(name):
                return self._field_string(name, show)
            case ctree.Flags(value):
                return self.memo(
                    lambda number: values.flags_text(number, node.pairs, node.delim, pad),
                    self.number(value).code,
                )
            case ctree.Symbolic(value, pairs):
                table: dict[int, str] = {}
                for number, text in pairs:
                    table.setdefault(number & M64, pad(text))
                return self.memo(lambda number: table.get(number, f"0x{number:x}"), self.number(value).code)
            case ctree.Cond(test, yes, no):
                parts = self.string(yes, show), self.string(no, show)
                first, second = map(self._text_code, parts)
                return Code(f"({first} if {self.truth(test)} else {second})")
            case ctree.Hex(array, length, separator):
                if (data := self._data(array)) is None:
                    return _EMPTY
                show_hex, between = self.constant(values.hex_text), self.constant(separator)
                return Code(f"{show_hex}({data}, {self._count(length)}, {between})")
            case ctree.IntArray(array, count, element):
                if (data := self._data(array)) is None:
                    return _EMPTY
                show_ints, sizes = self.constant(values.int_array_text), self._int(element)
                settings = f"{self.braces}, {self.symbols.big_endian}"
                return Code(f"{show_ints}({data}, {self._count(count)}, {sizes}, {settings})")
            case ctree.HexDump():
                return self._hex_dump(node)
            case ctree.Dynamic(what, name):
                return self._dynamic_string(what, name, show)
        return _EMPTY

    def _count(self, node: ctree.Node) -> str:
        value = self.number(node)
        return value.code if value.bits <= 32 else f"({value.code} & {0xFFFFFFFF})"

    def _hex_dump(self, node: ctree.HexDump) -> Part:
        if (data := self._data(node.array)) is None:
            return _EMPTY
        big_endian = self.symbols.big_endian

        def show(data: bytes, length: int) -> str:
            part = data[:length]
            return values.hex_dump(part, node.prefix, node.prefix_type, node.row, node.group, node.ascii, big_endian)

        return Code(f"{self.constant(show)}({data}, {self._count(node.length)})")

    def _field_string(self, name: str, show: Callable[[str], str] | None) -> Part:
        field = self.event.field(name)
        if field is None:
            return _EMPTY
        if field.kind == "string":
            return self._shown(self.column("text", name), show)
        if field.kind != "int":
            return self._shown(f"{self.constant(values.bytes_text)}({self.column('raw', name)})", show)
        if field.size == self.symbols.long_size:
            # a pointer: to a string the recording knows, or shown as it is
            symbols = self.symbols
            return self.memo(lambda address: symbols.printk.get(address, f"{address:x}"), self._field_number(name).code)
        size, order, pad = field.size, self.order, show or str
        return self.memo(
            lambda value: pad(values.bytes_text(value.to_bytes(size, order))), self._field_number(name).code
        )

    def _dynamic_string(self, what: str, name: str, show: Callable[[str], str] | None) -> Part:
        field = self.event.field(name)
        if field is None or not field.dynamic or what in ("array", "length"):
            return _EMPTY
        if what == "string":
            column = self.column("text", name)
            if show is None:
                return Code(column)
            # a string of no length shows nothing, not even padding
            shown, nothing = self.constant(show), self.constant("")
            return Code(f"({shown}({column}) if {self.column('ints', name)} >> 16 else {nothing})")
        mask = values.bitmask_text if what == "bitmask" else values.cpumask_text
        pad, big_endian = show or str, self.symbols.big_endian
        return self.memo(lambda data: pad(mask(data, big_endian)), self.column("raw", name))

    def _data(self, node: ctree.Node) -> str | None:
        """Return the expression of the bytes a field holds."""
        while isinstance(node, ctree.Cast):
            node = node.item
        if not isinstance(node, ctree.Rec | ctree.Dynamic) or (field := self.event.field(node.name)) is None:
            return None
        if field.kind == "int" and not field.dynamic:
            size, order = field.size, self.order
            code = self.constant(lambda value: value.to_bytes(size, order))
            return f"{code}({self._field_number(field.name).code})"
        return self.column("raw", field.name)

    # pointers

    def _pointer(self, conversion: Conversion, node: ctree.Node, star: ctree.Node | None, raw: bool) -> Part:
        kind = conversion.pointer
        if kind[:1] in ("F", "f", "S", "s"):
            return self.memo(symbol_text(self.symbols, kind in "FS", raw), self.number(node).code)
        if not kind:
            return self._unless_zero(self.number(node).code, "0x%x", "(nil)")
        if kind in ("I", "i"):
            return _EMPTY
        while isinstance(node, ctree.Cast) and kind[0] != "h":
            node = node.item
        is_dynamic = isinstance(node, ctree.Dynamic) and node.what == "array"
        takes_field, takes_dynamic = kind[0] != "h", kind[0] == "h" or kind[1:2] == "S"
        fits = (takes_field and isinstance(node, ctree.Rec)) or (takes_dynamic and is_dynamic)
        if not fits:
            what = "NOR DYNAMIC ARRAY BUT TYPE" if kind[1:2] == "S" else "BUT"
            verb = "ARG NOT FIELD" if kind[1:2] == "S" else "ARG TYPE NOT FIELD"
            return Fixed(f"{verb} {what} {self._type(node)}")
        data = self._data(node)
        if data is None:
            return _EMPTY
        if kind[0] == "h":
            length = "1" if star is None else self._int(star)
            return Code(f"{self.constant(values.buffer_text)}({self.constant(kind)}, {data}, {length})")
        big_endian = self.symbols.big_endian
        if kind[0] in "Mm":
            return self.memo(lambda value: values.mac_text(kind, value), data)
        if kind[0] in "Ii":
            return self.memo(lambda value: values.ip_text(kind, value, big_endian), data)
        return self.memo(lambda value: values.uuid_text(kind, value), data)

    def _type(self, node: ctree.Node) -> int:
        if isinstance(node, ctree.Dynamic):
            return _DYNAMIC_TYPES[node.what]
        if isinstance(node, ctree.Hex):
            return 5 if node.separator else 15
        return _TYPES.get(type(node), 7)

    # the listing of fields

    def field(self, field: Field) -> Part:
        """Return what the field listing shows of a field (libtraceevent, print_field_raw)."""
        type_ = field_type(field)
        if is_array(field):
            could_be_text = any(word in type_ for word in ("char", "u8", "s8"))
            if field.size == 0 and not field.dynamic:
                return Code(self.column("text", field.name)) if could_be_text else Fixed("ARRAY[]")
            return self.memo(lambda data: values.raw_bytes_text(data, could_be_text), self.column("raw", field.name))
        value, bits = self._field_number(field.name), field.size * 8
        if is_pointer(field):
            return Code(value.code, "0x%x")
        is_long = "long" in type_
        if field.signed:
            if bits == 32 and is_long:
                return Code(value.code, "0x%x")
            if bits not in (8, 16, 32, 64):
                return Fixed("0")
            column = self.column("ints", field.name) if field.kind == "int" and not field.dynamic else value.code
            return Code(column, "%2d" if bits == 16 else "%d")
        return Code(value.code, "0x%x" if is_long else "%d")

    # the function

    def function(self, parts: list[Part]) -> Callable[[Batch], list[str]]:
        """Compile the parts of a line to a function over a batch; a newline at the end is left out."""
        parts = self._without_newline(parts)
        template = "".join(p.text.replace("%", "%%") if isinstance(p, Fixed) else p.template for p in parts)
        codes = [p.code for p in parts if isinstance(p, Code)]
        if not codes:
            line = template % ()
            return lambda batch: [line] * len(batch)
        shown = f"{self.constant(template)} % ({', '.join(codes)},)"
        if len(codes) > _MANY:
            shown = f"({shown})[:{MAX_LINE}]"
        lines = ["def render(batch):"]
        for (how, name, least), column in self.columns.items():
            fetched = f"batch.{how}({self.constant(name)})"
            if least:
                fetched = f"{self.constant(_padded)}({fetched}, {least})"
            lines.append(f"    {column}s = {fetched}")
        names = list(self.columns.values())
        source = "range(len(batch))" if not names else f"zip({', '.join(n + 's' for n in names)})"
        if len(names) == 1:
            source = names[0] + "s"
        lines.append(f"    return [{shown} for {', '.join(names) or '_'} in {source}]")
        namespace: dict[str, Any] = dict(self.constants)
        try:
            exec(compile("\n".join(lines), "<print fmt>", "exec"), namespace)  # noqa: S102
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise NotUnderstoodError("its expressions nest too deeply") from error
        render: Callable[[Batch], list[str]] = namespace["render"]
        return render

    def _without_newline(self, parts: list[Part]) -> list[Part]:
        parts = [part for part in parts if part != _EMPTY]
        if not parts:
            return parts
        *before, last = parts
        if isinstance(last, Fixed):
            return [*before, Fixed(last.text.removesuffix("\n"))]
        if last.template == "%s":
            return [*before, Code(f"{last.code}.removesuffix({self.constant(chr(10))})")]
        return parts


def _padded(arrays: list[list[int]], least: int) -> list[list[int]]:
    """Fill up arrays of records that end early, so that a constant index is always within."""
    if min(map(len, arrays), default=least) >= least:
        return arrays
    return [array if len(array) >= least else [*array, *[0] * (least - len(array))] for array in arrays]
