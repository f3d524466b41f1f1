"""Columns to protobuf messages: one message per row, built as rows of bytes in numpy.

A message is described once by parts, each one value for all rows or a column with a value per row::

    packet = message(PACKET, integer(TIMESTAMP, ts), message(TRACK_EVENT, fields, integer(NAME_IID, names)))
    for block in encode(packet):
        file.write(block)

Rows are encoded in blocks. Within a block every part gets a fixed number of byte columns, wide enough for
its widest value there, so that writing a part is a few strided stores for all rows at once. A varint is
padded to that width with continuation bits, which protobuf allows; a message then has the same length in all
rows, and the block of bytes is the result. Where rows differ in length (texts, absent parts, numbers of mixed
sign) a second array of the same shape says which bytes are kept, and one boolean selection closes the gaps.
The rows stay in order either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS: Final = 16384
"""Rows encoded at a time: few enough that a block of ordinary rows stays in the processor's cache."""
BLOCK_BYTES: Final = 4 << 20
"""Bytes a block may take with every row at its widest; a block above it is split, down to a single row."""

TABLE_BYTES: Final = 1 << 20
"""Pieces to choose from are laid out once for all blocks if they take no more than that."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Lengths = int | NDArray[np.int64]
"""Bytes taken by a part: one number for all rows of a block, or a number for each."""
Integers = NDArray[np.integer[Any]] | NDArray[np.bool_]

_VARINT, _FIXED64, _DELIMITED = 0, 1, 2  # wire types
_WORD_BITS = 56  # of the value in the eight bytes of a word: seven in each
_WORD_MASK = np.uint64((1 << _WORD_BITS) - 1)
_VARINT_BYTES = 10
_U64 = 1 << 64


def varint(value: int, length: int = 1) -> bytes:
    """One integer from -2**63 to 2**64 - 1 as a varint of at least ``length`` bytes; a negative one takes ten."""
    if not -(_U64 >> 1) <= value < _U64:
        raise ValueError(f"{value} does not fit into 64 bits")
    value %= _U64
    out = bytearray()
    while value > 0x7F or len(out) < length - 1:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, data: bytes) -> bytes:
    """A string, bytes or message field."""
    return _tag(number, _DELIMITED) + varint(len(data)) + data


def _kind(values: NDArray[Any]) -> str:
    return f"{values.dtype} of shape {values.shape}"


def _tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def _continuations(length: int) -> tuple[int, int]:
    """The continuation bits of a varint of ``length`` bytes, in its first eight and its last two bytes."""
    bits = sum(0x80 << 8 * i for i in range(length - 1))
    return bits & (_U64 - 1), bits >> 64


_CONTINUATIONS = np.array([_continuations(max(n, 1)) for n in range(_VARINT_BYTES + 1)], dtype=np.uint64)


class _Cell(ABC):
    """Some adjacent byte columns of a block; of row i its first ``length[i]`` bytes are kept."""

    __slots__ = ("length", "width")

    def __init__(self, width: int, length: Lengths) -> None:
        self.width = width
        self.length = length

    @abstractmethod
    def put(self, out: Bytes, column: int) -> None:
        """Write into the rows of ``out``, a contiguous (rows, width of all) array, from ``column`` on."""

    def where(self, present: NDArray[np.bool_]) -> None:
        """Keep nothing in the other rows."""
        self.length = np.where(present, self.length, 0).astype(np.int64, copy=False)


class _SameCell(_Cell):
    """The same bytes in every row; ``encode`` lays them under all others in one go."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data), len(data))
        self.data = data

    def put(self, out: Bytes, column: int) -> None:
        pass


class _WordCell(_Cell):
    """Up to 16 bytes a row, as one or two columns of little-endian words."""

    __slots__ = ("words",)

    def __init__(self, width: int, length: Lengths, words: Sequence[NDArray[Any]]) -> None:
        super().__init__(width, length)
        self.words = words

    def put(self, out: Bytes, column: int) -> None:
        """Store each word in pieces of 8, 4, 2 and 1 bytes: exactly the width, and few stores."""
        rows, pitch = out.shape
        for nth, word in enumerate(self.words):
            left = min(8, self.width - 8 * nth)
            done = 0
            for size in (8, 4, 2, 1):
                if left & size:
                    piece = word.view(f"<u{size}")[done // size :: word.itemsize // size]
                    at = column + 8 * nth + done
                    np.ndarray(rows, piece.dtype, buffer=out, offset=at, strides=(pitch,))[:] = piece
                    done += size


class _ChosenCell(_Cell):
    """One of some byte strings a row: its line of a table in which they are filled up to the widest."""

    __slots__ = ("index", "table")

    def __init__(self, width: int, length: Lengths, table: Callable[[], Bytes], index: NDArray[Any]) -> None:
        super().__init__(width, length)
        self.table = table
        self.index = index

    def put(self, out: Bytes, column: int) -> None:
        rows, pitch = out.shape
        line = np.dtype(f"V{self.width}")
        chosen = self.table()[:, : self.width].take(self.index, axis=0).view(line)[:, 0]
        np.ndarray(rows, line, buffer=out, offset=column, strides=(pitch,))[:] = chosen


_SPREAD = [
    (4, 0x000000000FFFFFFF, 0x00FFFFFFF0000000, 4),
    (2, 0x00003FFF00003FFF, 0x0FFFC0000FFFC000, 2),
    (1, 0x007F007F007F007F, 0x3F803F803F803F80, 1),
]
"""Steps that give each seven bits a byte: needed above so many groups; bits that stay; that move; how far."""


def _spread(values: Words, width: int) -> Words:
    """The seven-bit groups of values below 2**56, the lowest ``width`` of them, one to a byte."""
    for above, stay, move, by in _SPREAD:
        if width > above:
            values = (values & np.uint64(stay)) | ((values & np.uint64(move)) << np.uint64(by))
    return values


def _varint_cell(values: Integers) -> _Cell:
    """A block of integers as varints: padded to the widest, but trimmed where the signs are mixed.

    A negative number takes ten bytes. Padding the others to that would double the size of an ordinary column
    of return values, in which a few are errors.
    """
    mixed = False
    if values.dtype.kind == "i":
        signed = values.astype(np.int64, copy=False)
        mixed = bool(signed.min() < 0 <= signed.max())
        words = signed.view(np.uint64)
    else:
        words = values.astype(np.uint64, copy=False)
    width = max(1, -(-int(words.max()).bit_length() // 7))
    length: Lengths = width
    if mixed:
        length = np.ones(len(words), np.int64)
        for n in range(1, width):
            length += words >= np.uint64(1 << 7 * n)
    elif width == 1:
        return _WordCell(1, 1, [words.astype(np.uint8)])

    ends = _CONTINUATIONS[length]
    low = _spread(words & _WORD_MASK if width > 8 else words, min(width, 8)) | ends[..., 0]
    if width <= 8:
        return _WordCell(width, length, [low.astype("<u8", copy=False)])
    high = _spread(words >> np.uint64(_WORD_BITS), 2) | ends[..., 1]
    return _WordCell(width, length, [low.astype("<u8", copy=False), high.astype("<u8", copy=False)])


class Part(ABC):
    """A piece of a message, for all rows."""

    __slots__ = ("rows",)

    def __init__(self, rows: int | None) -> None:
        """Of this number of ``rows``, or of any (None) because it is the same in all."""
        self.rows = rows

    @abstractmethod
    def lay(self, rows: slice) -> list[_Cell]:
        """The cells of a block of rows, left to right; the block is not empty."""


class _Same(Part):
    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        super().__init__(None)
        self.data = data

    def lay(self, rows: slice) -> list[_Cell]:  # noqa: ARG002
        return [_SameCell(self.data)]


class _Varint(Part):
    __slots__ = ("tag", "values")

    def __init__(self, field: int, values: Integers) -> None:
        if values.ndim != 1 or values.dtype.kind not in "iub":
            raise ValueError(f"a varint column is a vector of integers, not {_kind(values)}")
        super().__init__(len(values))
        self.tag = _tag(field, _VARINT)
        self.values = values

    def lay(self, rows: slice) -> list[_Cell]:
        return [_SameCell(self.tag), _varint_cell(self.values[rows])]


class _Fixed64(Part):
    __slots__ = ("tag", "values")

    def __init__(self, field: int, values: NDArray[Any]) -> None:
        if values.ndim != 1 or values.dtype.itemsize != 8 or values.dtype.kind not in "iuf":
            raise ValueError(f"a fixed64 column is a vector of 8-byte numbers, not {_kind(values)}")
        super().__init__(len(values))
        self.tag = _tag(field, _FIXED64)
        self.values = values

    def lay(self, rows: slice) -> list[_Cell]:
        values = self.values[rows]
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        return [_SameCell(self.tag), _WordCell(8, 8, [little.view("<u8")])]


class _Chosen(Part):
    __slots__ = ("index", "lengths", "pieces", "table")

    def __init__(self, pieces: Sequence[bytes], index: NDArray[np.integer[Any]]) -> None:
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ValueError(f"the index of a column of bytes is a vector of integers, not {_kind(index)}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(pieces):
            raise ValueError(f"the index of a column of bytes leaves its {len(pieces)} pieces")
        super().__init__(len(index))
        self.index = index
        self.pieces = pieces
        self.lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self.table: Bytes | None = None
        if len(pieces) * int(self.lengths.max(initial=0)) <= TABLE_BYTES:
            self.table = _table(pieces, int(self.lengths.max(initial=0)))

    def lay(self, rows: slice) -> list[_Cell]:
        index = self.index[rows]
        lengths = self.lengths[index]
        width = int(lengths.max())
        if not width:
            return []
        length = width if int(lengths.min()) == width else lengths
        table = self.table
        if table is not None:
            return [_ChosenCell(width, length, lambda: table, index)]
        used, index = np.unique(index, return_inverse=True)
        # made when the block is known to be small enough
        return [_ChosenCell(width, length, lambda: _table([self.pieces[i] for i in used.tolist()], width), index)]


def _table(pieces: Sequence[bytes], width: int) -> Bytes:
    joined = b"".join(piece.ljust(width, b"\0") for piece in pieces)
    return np.frombuffer(joined, np.uint8).reshape(len(pieces), width)


class _Message(Part):
    __slots__ = ("parts", "tag")

    def __init__(self, field: int, parts: Sequence[Part]) -> None:
        super().__init__(_common_rows(parts))
        self.tag = _tag(field, _DELIMITED)
        self.parts = parts

    def lay(self, rows: slice) -> list[_Cell]:
        body = [cell for part in self.parts for cell in part.lay(rows)]
        length: Lengths = sum((cell.length for cell in body), start=0)
        if isinstance(length, int):
            return [_SameCell(self.tag + varint(length)), *body]
        return [_SameCell(self.tag), _varint_cell(length), *body]


class _When(Part):
    __slots__ = ("parts", "present")

    def __init__(self, present: NDArray[np.bool_], parts: Sequence[Part]) -> None:
        if present.ndim != 1 or present.dtype != np.bool_:
            raise ValueError(f"presence is a vector of booleans, not {_kind(present)}")
        rows = _common_rows(parts)
        if rows not in (None, len(present)):
            raise ValueError(f"presence is given for {len(present)} rows, the parts have {rows}")
        super().__init__(len(present))
        self.present = present
        self.parts = parts

    def lay(self, rows: slice) -> list[_Cell]:
        present = self.present[rows]
        if not present.any():
            return []
        cells = [cell for part in self.parts for cell in part.lay(rows)]
        if not present.all():
            for cell in cells:
                cell.where(present)
        return cells


def _common_rows(parts: Sequence[Part]) -> int | None:
    counts = {part.rows for part in parts if part.rows is not None}
    if len(counts) > 1:
        raise ValueError(f"the columns of a message differ in length: {sorted(counts)}")
    return counts.pop() if counts else None


def constant(data: bytes) -> Part:
    """These bytes in every row: fields that were encoded before."""
    return _Same(data)


def integer(field: int, value: int | Integers) -> Part:
    """A varint field (int32, int64, uint32, uint64, bool, enum): an int, or a column of any such dtype."""
    if isinstance(value, (int, np.integer)):
        return _Same(_tag(field, _VARINT) + varint(int(value)))
    return _Varint(field, value)


def chosen(pieces: Sequence[bytes], index: NDArray[np.integer[Any]]) -> Part:
    """Of these pieces, which are fields that were encoded before, the one that ``index`` (rows,) says."""
    return _Chosen(pieces, index)


def fixed64(field: int, values: NDArray[Any]) -> Part:
    """A fixed64, sfixed64 or double field, from a column of uint64, int64 or float64."""
    return _Fixed64(field, values)


def text(field: int, value: bytes | Sequence[bytes], index: NDArray[np.integer[Any]] | None = None) -> Part:
    """A string or bytes field: one value; or a value per row; or distinct values and an ``index`` (rows,)."""
    if isinstance(value, bytes):
        return _Same(delimited(field, value))
    pieces = [delimited(field, one) for one in value]
    return chosen(pieces, np.arange(len(value)) if index is None else index)


def message(field: int, *parts: Part) -> Part:
    """A message field, behind its tag and length: also the rows of a file of length-prefixed messages."""
    same = [part.data for part in parts if isinstance(part, _Same)]
    if len(same) == len(parts):
        return text(field, b"".join(same))
    return _Message(field, parts)


def when(present: NDArray[np.bool_], *parts: Part) -> Part:
    """These parts in the rows where ``present`` (rows,) is true.

    The values of a column in other rows are not written, but a large one still widens its block.
    """
    return _When(present, parts)


def encode(*parts: Part) -> Iterator[Bytes]:
    """The bytes of all rows in order, as uint8 vectors that each hold some whole rows.

    The parts follow each other within a row. Without any column there is one row.
    """
    rows = _common_rows(parts)
    total = 1 if rows is None else rows
    for start in range(0, total, BLOCK_ROWS):
        yield from _encode_block(parts, start, min(start + BLOCK_ROWS, total))


def _encode_block(parts: Sequence[Part], start: int, stop: int) -> Iterator[Bytes]:
    cells = [cell for part in parts for cell in part.lay(slice(start, stop))]
    width = sum(cell.width for cell in cells)
    rows = stop - start
    if rows * width > BLOCK_BYTES and rows > 1:
        middle = (start + stop) // 2
        yield from _encode_block(parts, start, middle)
        yield from _encode_block(parts, middle, stop)
        return

    ground = b"".join(cell.data if isinstance(cell, _SameCell) else bytes(cell.width) for cell in cells)
    out = np.empty((rows, width), np.uint8)
    out[:] = np.frombuffer(ground, np.uint8)
    column = 0
    for cell in cells:
        cell.put(out, column)
        column += cell.width
    if all(isinstance(cell.length, int) for cell in cells):
        yield out.reshape(-1)
    else:
        yield out[_kept(cells, out.shape)]


def _kept(cells: Sequence[_Cell], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which bytes of a block are part of the result, where the lengths of its rows differ."""
    kept = np.ones(shape, np.bool_)
    column = 0
    for cell in cells:
        if not isinstance(cell.length, int):
            kept[:, column : column + cell.width] = np.arange(cell.width) < cell.length[:, None]
        column += cell.width
    return kept
