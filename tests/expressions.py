"""C expressions over four fields, their text, and what they mean by a plain evaluator."""

from __future__ import annotations

from hypothesis import strategies as st

M64 = 2**64 - 1

_LEVEL = {"?": 0, "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7,
          "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10}  # fmt: skip
VALUES = {"a": 0, "b": 1, "c": 0xFFFFFFFF, "d": 12345}

expressions = st.recursive(
    st.sampled_from("abcd") | st.integers(0, M64),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from([op for op in _LEVEL if op != "?"]), inner, inner),
        st.tuples(st.sampled_from("-!~"), inner),
        st.tuples(st.just("?"), inner, inner, inner),
    ),
    max_leaves=12,
)


def written(tree, level=0) -> str:
    """Write a tree in C, with brackets only where C needs them."""
    match tree:
        case str(name):
            return f"REC->{name}"
        case int(number):
            return hex(number)
        case (op, item):
            return f"{op} {written(item, 11)}"
        case ("?", test, yes, no):
            text = f"{written(test, 1)} ? {written(yes)} : {written(no)}"
        case (op, left, right):
            text = f"{written(left, _LEVEL[op])} {op} {written(right, _LEVEL[op] + 1)}"
    return f"({text})" if _LEVEL[tree[0]] < level else text


def meant(tree) -> int:
    """Evaluate a tree as unsigned 64-bit numbers, the plain way."""
    match tree:
        case str(name):
            return VALUES[name]
        case int(number):
            return number
        case (op, item):
            value = meant(item)
            return {"-": (2**64 - value) % 2**64, "!": int(value == 0), "~": 2**64 - 1 - value}[op]
        case ("?", test, yes, no):
            return meant(yes) if meant(test) != 0 else meant(no)
    op, x, y = tree[0], meant(tree[1]), meant(tree[2])
    match op:
        case "/" | "%":
            return 0 if y == 0 else x // y if op == "/" else x - x // y * y
        case "<<" | ">>":
            return x * 2 ** (y % 64) % 2**64 if op == "<<" else x // 2 ** (y % 64)
        case "&&" | "||":
            return int(x != 0 and y != 0) if op == "&&" else int(x != 0 or y != 0)
    plain = {"+": x + y, "-": x - y, "*": x * y, "&": x & y, "|": x | y, "^": x ^ y, "==": x == y, "!=": x != y,
             "<": x < y, ">": x > y, "<=": x <= y, ">=": x >= y}  # fmt: skip
    return int(plain[op]) % 2**64
