"""Rows of bytes against the protobuf package: whatever columns go in, the same values are read back."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from counterpoint.outputs import protorows
from counterpoint.outputs.protorows import constant, encode, fixed64, integer, message, text, when

I64, U64 = np.iinfo(np.int64), np.iinfo(np.uint64)
EDGES = sorted({v for n in range(65) for v in ((1 << n) - 1, 1 << n) if v <= U64.max})
SIGNED_EDGES = [sign * v for v in EDGES for sign in (1, -1) if I64.min <= sign * v <= I64.max]
SMALL = 21  # a field number whose tag takes two bytes

Field = descriptor_pb2.FieldDescriptorProto


def _message_types():
    """Make Rows, of rows with a field of each kind, and ``m``, a row within."""
    file = descriptor_pb2.FileDescriptorProto(name="row.proto", package="test", syntax="proto2")
    row = file.message_type.add(name="Row")
    kinds = [("i", 1, Field.TYPE_INT64), ("u", 2, Field.TYPE_UINT64), ("b", 3, Field.TYPE_BOOL)]
    kinds += [("d", 4, Field.TYPE_DOUBLE), ("s", 5, Field.TYPE_BYTES), ("f", 6, Field.TYPE_FIXED64)]
    for name, number, kind in kinds:
        row.field.add(name=name, number=number, type=kind, label=Field.LABEL_OPTIONAL)
    nested = {"type": Field.TYPE_MESSAGE, "type_name": ".test.Row"}
    row.field.add(name="m", number=SMALL, label=Field.LABEL_OPTIONAL, **nested)
    file.message_type.add(name="Rows").field.add(name="row", number=1, label=Field.LABEL_REPEATED, **nested)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Rows"))


Rows = _message_types()


def read(*parts):
    return Rows.FromString(b"".join(block.tobytes() for block in encode(*parts))).row


def rows_of(dtype, elements=None):
    return hnp.arrays(dtype, st.integers(0, 40), elements=elements)


signed = st.one_of(st.sampled_from(SIGNED_EDGES), st.integers(I64.min, I64.max))
unsigned = st.one_of(st.sampled_from(EDGES), st.integers(0, U64.max))


@given(rows_of(np.int64, signed))
def test_signed_integers_read_back(values):
    assert [row.i for row in read(message(1, integer(1, values)))] == values.tolist()


@given(rows_of(np.uint64, unsigned))
def test_unsigned_integers_read_back(values):
    assert [row.u for row in read(message(1, integer(2, values)))] == values.tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, ">i8", ">u4"])
def test_every_integer_type_reads_back(dtype):
    limits = np.iinfo(dtype)
    values = np.array([limits.min, 0, 1, limits.max], dtype)
    assert [row.i for row in read(message(1, integer(1, values)))] == values.tolist()


@pytest.mark.parametrize("value", SIGNED_EDGES)
def test_a_single_edge_reads_back_alone_and_beside_zero(value):
    for values in ([value], [value, 0], [0, value, -1]):
        column = np.array(values, np.int64)
        assert [row.i for row in read(message(1, integer(1, column)))] == values
        assert [row.i for row in read(message(1, integer(1, value), integer(2, column.view(np.uint64))))] == (
            [value] * len(values)
        )


@given(rows_of(np.float64))
def test_doubles_read_back(values):
    back = np.array([row.d for row in read(message(1, fixed64(4, values)))], np.float64)
    assert np.array_equal(back, values, equal_nan=True)


@given(rows_of(np.uint64, unsigned))
def test_fixed64_reads_back_from_a_strided_column(values):
    assert [row.f for row in read(message(1, fixed64(6, np.repeat(values, 3)[::3])))] == values.tolist()


@given(st.data())
def test_messages_of_all_kinds_nest_and_stay_in_order(data):
    rows = data.draw(st.integers(0, 30))
    i = data.draw(hnp.arrays(np.int64, rows, elements=signed))
    u = data.draw(hnp.arrays(np.uint64, rows, elements=unsigned))
    b = data.draw(hnp.arrays(np.bool_, rows))
    texts = data.draw(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
    index = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, len(texts) - 1)))
    there, below = data.draw(hnp.arrays(np.bool_, rows)), data.draw(hnp.arrays(np.bool_, rows))
    inner = message(SMALL, integer(3, b), when(below, text(5, texts, index)), when(b, integer(1, i)))
    same = b"".join(x.tobytes() for x in encode(integer(2, 7)))
    parts = [integer(2, u), when(there, inner, constant(same)), text(5, texts, index)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protorows, "BLOCK_ROWS", data.draw(st.integers(1, 40)))
        patch.setattr(protorows, "BLOCK_BYTES", data.draw(st.integers(1, 4000)))
        back = read(message(1, *parts))
    assert len(back) == rows
    for at, row in enumerate(back):
        expected = Rows().row.add(u=7 if there[at] else int(u[at]), s=texts[index[at]])
        if there[at]:
            expected.m.b = b[at]
            if below[at]:
                expected.m.s = texts[index[at]]
            if b[at]:
                expected.m.i = int(i[at])
        assert row == expected


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_texts_without_an_index_are_one_per_row(texts):
    assert [row.s for row in read(message(1, text(5, texts)))] == texts


def test_lengths_around_the_steps_of_a_varint():
    sizes = [0, 1, 126, 127, 128, 129, 16382, 16383, 16384, 16385]
    texts = [bytes([65 + n % 26]) * n for n in sizes]
    rows = read(message(1, message(SMALL, text(5, texts)), integer(2, np.arange(len(sizes)))))
    assert [row.m.s for row in rows] == texts
    assert [row.u for row in rows] == list(range(len(sizes)))


def test_what_is_the_same_in_all_rows_makes_one_row():
    rows = read(message(1, integer(1, -1), message(SMALL, text(5, b"x"))))
    assert [(row.i, row.m.s) for row in rows] == [(-1, b"x")]


def test_no_rows_make_no_bytes():
    empty = np.array([], np.int64)
    assert list(encode(message(1, integer(1, empty), text(5, [], empty)))) == []


def test_one_long_text_does_not_widen_all_blocks():
    texts = [b"x" * 1_000_000, b"y"]
    index = np.ones(20_000, np.int64)
    index[777] = 0
    rows = read(message(1, text(5, texts, index)))
    assert [len(row.s) for row in rows] == np.where(index, 1, 1_000_000).tolist()


def test_blocks_are_contiguous_bytes_of_whole_rows():
    blocks = list(encode(message(1, integer(1, np.arange(protorows.BLOCK_ROWS + 5)))))
    assert [block.dtype for block in blocks] == [np.uint8] * 2
    assert len(Rows.FromString(blocks[1].tobytes()).row) == 5


def test_a_row_may_be_two_messages():
    values = np.arange(3)
    rows = read(message(1, integer(1, values)), when(values != 1, message(1, integer(2, values))))
    assert [(row.HasField("i"), row.i + row.u) for row in rows] == [
        (True, 0),
        (False, 0),
        (True, 1),
        (True, 2),
        (False, 2),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: integer(1, np.zeros((2, 2), np.int64)), "vector of integers"),
        (lambda: integer(1, np.zeros(2)), "vector of integers"),
        (lambda: integer(1, 1 << 64), "64 bits"),
        (lambda: integer(1, -(1 << 63) - 1), "64 bits"),
        (lambda: fixed64(1, np.zeros(2, np.float32)), "8-byte"),
        (lambda: text(1, [b""], np.array([1])), "leaves its 1 pieces"),
        (lambda: text(1, [b""], np.array([-1])), "leaves its 1 pieces"),
        (lambda: text(1, [b""], np.array([0.0])), "vector of integers"),
        (lambda: when(np.array([1]), integer(1, 1)), "vector of booleans"),
        (lambda: when(np.array([True]), integer(1, np.arange(2))), "given for 1 rows"),
        (lambda: message(1, integer(1, np.arange(2)), integer(2, np.arange(3))), r"length: \[2, 3\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
