"""trace_printk() events: the format is a string of the kernel, the arguments lie packed in the record.

How the arguments are packed is the kernel's vbin_printf(); what they show follows libtraceevent
(get_bprint_format, make_bprint_args).
"""

from __future__ import annotations

from collections.abc import Callable

from counterpoint.traces.cexpr import NotUnderstoodError
from counterpoint.traces.cformat import Conversion, Piece, integer_text, split_format, string_text
from counterpoint.traces.codegen import MAX_LINE, Batch, Memo, symbol_text
from counterpoint.traces.formats import EventFormat
from counterpoint.traces.symbols import Symbols

_MAX_FORMATS = 1 << 12


class _Arguments:
    """Takes one packed argument after the other; past the end all are 0 and empty."""

    def __init__(self, data: bytes, offset: int, big_endian: bool) -> None:
        self.data = data
        self.at = 0
        self.offset = offset
        self.big_endian = big_endian

    def number(self, size: int) -> int:
        align = min(size, 4)
        self.at += -(self.offset + self.at) % align
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "big" if self.big_endian else "little") if len(part) == size else 0

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        end = len(self.data) if end < 0 else end
        part = self.data[self.at : end]
        self.at = end + 1
        return part.decode("utf-8", "replace")

    def starts_text(self) -> bool:
        return self.data[self.at : self.at + 1].isascii() and self.data[self.at : self.at + 1].decode().isprintable()


def _signed(value: int, conversion: Conversion) -> int:
    bits = conversion.bits
    value &= (1 << bits) - 1
    return value - (1 << bits) if conversion.is_signed and value >> (bits - 1) else value


def compile_bprint(event: EventFormat, symbols: Symbols) -> Callable[[Batch], list[str]] | None:
    """Return what renders trace_printk() events; None where the event lacks the fields."""
    field = event.field("buf")
    if field is None or event.field("ip") is None or event.field("fmt") is None:
        return None
    offset = field.offset
    names = Memo(symbol_text(symbols, False, False))
    offsets = Memo(symbol_text(symbols, True, False))
    formats: dict[int, list[Piece]] = {}

    def pieces_of(address: int) -> list[Piece]:
        pieces = formats.get(address)
        if pieces is None:
            text = symbols.printk.get(address)
            if text is None:
                pieces = [f"(NO FORMAT FOUND at {address:x})\n"]
            else:
                try:
                    pieces = split_format(text)
                except NotUnderstoodError:
                    pieces = [text]
            if len(formats) < _MAX_FORMATS:
                formats[address] = pieces
        return pieces

    def one(conversion: Conversion, arguments: _Arguments) -> str:
        if conversion.stars:
            star = arguments.number(4)
            conversion = conversion.given(star - (1 << 32) if star >> 31 else star)
        if conversion.letter == "s":
            text = arguments.text()
            show = string_text(conversion)
            return text if show is None else show(text)
        if conversion.letter == "p":
            kind = conversion.pointer[:1]
            if kind and kind not in "sSfF" and arguments.starts_text():
                return arguments.text()
            value = arguments.number(symbols.long_size)
            if kind and kind in "sSfF":
                return (offsets if kind in "SF" else names)[value]
            return f"0x{value:x}" if value else "(nil)"
        size = 1 if conversion.letter == "c" else conversion.bits // 8
        if conversion.is_long and symbols.long_size == 4:
            size = 4
        return integer_text(conversion)(_signed(arguments.number(size), conversion))

    def render(batch: Batch) -> list[str]:
        lines = []
        for ip, address, data in zip(batch.ints("ip"), batch.ints("fmt"), batch.raw("buf"), strict=True):
            arguments = _Arguments(data, offset, symbols.big_endian)
            pieces = pieces_of(address)
            parts = [piece if isinstance(piece, str) else one(piece, arguments) for piece in pieces]
            lines.append(f"{names[ip]}: {''.join(parts)}"[:MAX_LINE].removesuffix("\n"))
        return lines

    return render
