"""The parser of print formats."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.traces import cexpr
from counterpoint.traces.cexpr import NotUnderstoodError, parse_print
from counterpoint.traces.ctree import (
    M64,
    Binary,
    Cast,
    Cond,
    Dynamic,
    Flags,
    Index,
    Name,
    Node,
    Number,
    Rec,
    Symbolic,
    Text,
    Unary,
    arithmetic,
)
from expressions import VALUES, expressions, meant, written

SIZES = {"a": 4, "b": 4, "c": 4, "d": 4, "arr": 0, "dyn": 0}
A, B, C, D = (Rec(name) for name in "abcd")


def parse(text: str, **how) -> Node:
    return parse_print(f'"%d", {text}', SIZES, **how).arguments[0]


def refused(text: str) -> str:
    with pytest.raises(NotUnderstoodError) as caught:
        parse_print(text, SIZES)
    return str(caught.value)


def test_strings_beside_each_other_are_one():
    parsed = parse_print('"a=%s " "b=%s", "KVM_EXIT_" "MMIO", REC->b', SIZES)
    assert parsed.format == "a=%s b=%s"
    assert parsed.arguments == (Text("KVM_EXIT_MMIO"), B)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("12", Number(12, "12")),
        ("0x10UL", Number(16, "0x10UL")),
        ("010", Number(8, "010")),
        ("(((0x00UL)))", Number(0, "0x00UL")),
        ("18446744073709551616", Number(M64, "18446744073709551616")),
        ("HRTIMER_MODE_ABS", Name("HRTIMER_MODE_ABS")),
        ("'e'", Number(101, "101")),
        (r"'\n'", Number(10, "10")),
        ("REC->a", A),
        ("(REC)->a", A),
        ("((REC->a))", A),
        ("(u8)REC->a", Cast("u8", A)),
        ("(unsigned long long) REC->a", Cast("unsigned long long", A)),
        ("(void *)REC->a", Cast("void *", A)),
        ("(int)-1", Cast("int", Number(M64, "-1"))),
        ("REC->arr[3]", Index(Rec("arr"), Number(3, "3"))),
        ("((u8 *)__get_dynamic_array(dyn))[1]", Index(Cast("u8 *", Dynamic("array", "dyn")), Number(1, "1"))),
        ("!REC->a", Unary("!", A)),
        ("1 << 4 | 2", Number(18, "18")),
        ("0 - 1", Number(M64, "-1")),
        ("REC->a ? 1 : 2", Cond(A, Number(1, "1"), Number(2, "2"))),
        ("__get_str(dyn)", Dynamic("string", "dyn")),
        ("__get_rel_str(dyn)", Dynamic("string", "dyn")),
        ("__get_cpumask(dyn)", Dynamic("cpumask", "dyn")),
        ("__get_dynamic_array_len(dyn)", Dynamic("length", "dyn")),
        ("__builtin_expect(REC->a, 0)", A),
        ("sizeof(unsigned long)", Number(8, "8")),
        ("sizeof(u16)", Number(2, "2")),
        ("sizeof(REC->a)", Number(4, "4")),
    ],
)
def test_values(text, node):
    assert parse(text) == node
    assert parse(text, regroup=False) == node


def test_tables():
    assert parse('__print_symbolic(REC->a, { 0, "R" }, { (1 << 1), "S" }, { ENUM, "T" })') == Symbolic(
        A, ((0, "R"), (2, "S"), (-1, "T"))
    )
    assert parse('__print_flags(REC->a & 7, "|", { 1, "A" }, { TIMER_SOFTIRQ, "B" }, { 1ULL << 63, "C" })') == Flags(
        Binary("&", A, Number(7, "7")), "|", ((1, "A"), (1, "B"), (-1, "C"))
    )
    assert parse('__print_symbolic64(REC->a, {0xffffffffffffffff, "max"})') == Symbolic(A, ((-1, "max"),))


@pytest.mark.parametrize(
    ("text", "in_c", "regrouped"),
    [
        ("REC->a - REC->b - REC->c", Binary("-", Binary("-", A, B), C), Binary("-", A, Binary("-", B, C))),
        ("REC->a & (REC->b | REC->c)", Binary("&", A, Binary("|", B, C)), Binary("|", Binary("&", A, B), C)),
        ("REC->a & (REC->b + REC->c)", Binary("&", A, Binary("+", B, C)), Binary("&", A, Binary("+", B, C))),
        ("REC->a & (REC->b ? REC->c : REC->d)", Binary("&", A, Cond(B, C, D)), Cond(Binary("&", A, B), C, D)),
        ("REC->a ? REC->b : REC->c + REC->d", Cond(A, B, Binary("+", C, D)), Binary("+", Cond(A, B, C), D)),
        ("REC->a ? 1 : REC->b ? 2 : 3",
         Cond(A, Number(1, "1"), Cond(B, Number(2, "2"), Number(3, "3"))),
         Cond(Cond(A, Number(1, "1"), B), Number(2, "2"), Number(3, "3"))),
        ("REC->a * -REC->b", Binary("*", A, Unary("-", B)), Binary("-", Binary("*", A, Number(0, "0")), B)),
        ("REC->a + REC->arr[0] == REC->b",
         Binary("==", Binary("+", A, Index(Rec("arr"), Number(0, "0"))), B),
         Binary("+", A, Binary("==", Index(Rec("arr"), Number(0, "0")), B))),
    ],
)  # fmt: skip
def test_grouping(text, in_c, regrouped):
    assert parse(text, regroup=False) == in_c
    assert parse(text) == regrouped


@pytest.mark.parametrize("regroup", [False, True])
def test_grouping_where_both_agree(regroup):
    text = "REC->a == 1 && REC->b || (REC->c << 4)"
    both = Binary("&&", Binary("==", A, Number(1, "1")), B)
    assert parse(text, regroup=regroup) == Binary("||", both, Binary("<<", C, Number(4, "4")))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not start with a format string"),
        ("REC->a", "does not start with a format string"),
        ('"%d" REC->a', "is followed by 'REC'"),
        ('"%s", REC->a ?: "UNKN"', "has ':' where a value belongs"),
        ('"%s", str_on_off(REC->a)', "function 'str_on_off' is not known"),
        ('"%d", *REC->a', "has '*' where a value belongs"),
        ('"%d", &REC->a', "has '&' where a value belongs"),
        ('"%d", REC->', "REC-> has the end where a name belongs"),
        ('"%d", (REC->a', "a bracket has the end where ')' belongs"),
        ('"%d", REC->arr[1', "an index has the end"),
        ('"%d", __get_dynamic_array(nothing)', "names a field the event has not, 'nothing'"),
        ('"%s", __print_symbolic(REC->a, {REC->b, "x"})', "has an entry that is no constant"),
        ('"%d", sizeof(struct foo)', "the size of 'struct' is not known"),
        ('"%d", sizeof(REC->arr)', "the size of 'REC' is not known"),
        ('"%d", REC->a ? 1', "a '?' has the end where ':' belongs"),
        ('"%d", \x01', "starts nothing known in C"),
        ('"open', "starts nothing known in C"),
        ('"%d", ' + "x" * 1000 + "(1)", "function 'xxx"),
    ],
)
def test_refusals(text, why):
    assert why in refused(text)
    assert len(refused(text)) < 200


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 5000 + "1",
        "REC->a" + "+REC->a" * 5000,
        "REC->a" + "?1:2" * 5000,
        "REC->a?" * 5000 + "1" + ":1" * 5000,
        "(u8)" * 5000 + "REC->a",
        "REC->arr[" * 5000 + "0" + "]" * 5000,
        "REC->arr" + "[0]" * 5000,
        "__builtin_expect(" * 5000 + "1" + ",1)" * 5000,
        "REC->a," * (cexpr.MAX_TOKENS // 4),
        "1" + "+1" * cexpr.MAX_TOKENS,
    ],
)
@pytest.mark.parametrize("regroup", [False, True])
def test_hostile_sizes_are_refused(text, regroup):
    with pytest.raises(NotUnderstoodError):
        parse(text, regroup=regroup)


def test_constants_fold_without_limit():
    assert parse("1" + "+1" * 5000, regroup=False) == Number(5001, "5001")


_WORDS = [
    '"%d"', '"', ",", "REC->a", "REC", "->", "a", "(", ")", "[", "]", "{", "}", "?", ":", "+", "-", "*", "&", "&&", "|",
    "<<", "!", "~", "0x1", "'c'", "__print_flags(", "__print_symbolic(", "__get_str(", "sizeof(", "(u8)", "(void *)",
    "__print_hex(", "__print_hex_dump(", "\\", "\0", "é", "unsigned long",
]  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS)), st.booleans())
def test_any_text_parses_or_is_refused(words, regroup):
    with contextlib.suppress(NotUnderstoodError):
        parse_print('"%d", ' + " ".join(words), SIZES, regroup=regroup)


def evaluated(node: Node) -> int:
    match node:
        case Number(value):
            return value
        case Rec(name):
            return VALUES[name]
        case Unary(op, item):
            value = evaluated(item)
            return {"-": -value & M64, "!": int(not value), "~": value ^ M64}[op]
        case Cond(test, yes, no):
            return evaluated(yes if evaluated(test) else no)
        case Binary(op, left, right):
            return arithmetic(op, evaluated(left), evaluated(right))
    raise AssertionError(node)


@given(expressions)
def test_expressions_mean_what_c_means(tree):
    assert evaluated(parse(written(tree), regroup=False)) == meant(tree)
