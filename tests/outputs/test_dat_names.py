"""Print formats with the names of functions in them."""

from __future__ import annotations

import pytest

from counterpoint.outputs.dat_names import as_numbers, prints_symbols, read_printed

TICK = {0x10: ("tick", 0), 0x24: ("tock", 4), 0x30: None, 0x40: ('a"b', 0)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"to %ps", REC->f', '"to %s", __print_symbolic(REC->f, {0x10, "tick"}, {0x24, "tock"})'),
        (
            '"%d%% %*d %pS %s", REC->a, 3, f(REC->b, "x,("), (void *)(unsigned long)REC->f, REC->c',
            '"%d%% %*d %s %s", REC->a, 3, f(REC->b, "x,("), __print_symbolic(REC->f, {0x10, "tick+0x0"},'
            ' {0x24, "tock+0x4"}), REC->c',
        ),
        ('"%ps", (void *)(REC->f)', '"%s", __print_symbolic(REC->f, {0x10, "tick"}, {0x24, "tock"})'),
    ],
)
def test_names_stand_in_the_format(before, after):
    printed = read_printed(before)

    assert printed is not None
    assert printed.fields == {"f"}
    assert printed.named({"f": TICK}) == after


def test_where_nothing_has_a_name_the_format_prints_numbers():
    printed = read_printed('"to %pS!", (void *)REC->f')

    assert printed is not None
    assert printed.named({"f": {0x30: None}}) == '"to 0x%lx!", REC->f'


@pytest.mark.parametrize(
    "text",
    [
        '"%ps", *(void **)REC->f', '"%ps", REC->f + 4', '"%ps", REC->f[2]', '"%ps", g(REC->f)', '"%ps"', '"%d"', "",
        '"%ps" "more", REC->f', "REC->f", '"%ps, REC->f', '"%ps", REC->f, REC->g', '"%ps", ((((((((((((((((((((',
    ],
)  # fmt: skip
def test_what_is_more_than_a_field_is_left(text):
    assert read_printed(text) is None
    assert not prints_symbols(as_numbers(text))
