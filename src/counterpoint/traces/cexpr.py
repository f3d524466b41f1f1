"""The C text of an event's ``print fmt:``, read to a format string and a tree per argument.

The text is what the kernel's TP_printk() left after macro expansion::

    "pid=%d state=%s", REC->pid, __print_symbolic(REC->state, { 0, "R" }, { 1, "S" })

What is read and refused follows libtraceevent (event_read_print and the process_* functions it calls).
What that parser does not know (``a ?: b``, ``*p``, ``&x``, calls of functions it has no name for) raises
NotUnderstoodError, and the event is then shown field by field.

That parser also groups some expressions otherwise than C does: ``a - b - c`` as ``a - (b - c)`` and, as it
forgets brackets around a right operand, ``a & (b | c)`` as ``(a & b) | c``. ``regroup`` follows it; without,
operators bind as in C.

The text comes from a file, so length, nesting and the number of operators are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeVar

from counterpoint.traces.ctree import (
    M64,
    Binary,
    Cast,
    Cond,
    Dynamic,
    Flags,
    Hex,
    HexDump,
    Index,
    IntArray,
    Name,
    Node,
    Number,
    PrintText,
    Rec,
    Symbolic,
    Text,
    Unary,
    arithmetic,
    signed,
)  # fmt: skip

MAX_TEXT = 1 << 18
"""Characters of one print fmt; the kernel's longest are some 20,000."""
MAX_TOKENS = 1 << 16
"""Tokens of one print fmt."""
MAX_DEPTH = 60
"""Levels of one argument's tree (generated code nests no deeper than a few times this)."""
MAX_OPEN = 150
"""Operands and brackets open at once while reading; each is up to three calls deep."""

MAX_OPERATORS = 200
"""Operators of one argument, where they are regrouped; constants do not fold while they move."""


class NotUnderstoodError(Exception):
    """A print fmt has a construct that is not known; the message is one sentence on which."""


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<char>'(?:[^'\\]|\\.)*')
    | (?P<word>[A-Za-z0-9_]+)
    | (?P<op>->|\|\||&&|<<|>>|\+\+|--|[<>=!]=|[]!#$%&()*+,./:;<=>?@[\\^`{|}~-])
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
# strings that some kernels' mac80211 events name by their macro (kernel commit 811cb50baf63)
_MACROS = {"LOCAL_PR_FMT": "%s", "STA_PR_FMT": " sta:%pM", "VIF_PR_FMT": " vif:%p(%d)"}
# enum names the kernel leaves in its formats (libtraceevent, eval_flag)
_KNOWN = {
    **{
        f"{name}_SOFTIRQ": number
        for number, name in enumerate(
            ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")
        )
    },
    "HRTIMER_NORESTART": 0,
    "HRTIMER_RESTART": 1,
}
_LEVELS = ("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %")
_BINARY = {op: level for level, ops in enumerate(_LEVELS, start=2) for op in ops.split()}
_COND_LEVEL = 1
# how loosely operators bind (libtraceevent, get_op_prio)
_WEIGHT = {op: 16 - level for op, level in _BINARY.items()} | {"?": 16, "!": 4, "~": 4}
_TYPE_WORD = re.compile(
    r"(?:un)?signed|int|long|short|char|bool|(?:__)?[us](?:8|16|32|64)|u?int(?:8|16|32|64)_t|size_t"
)
_SIZES = {"int": 4, "u64": 8, "s64": 8, "u32": 4, "s32": 4, "u16": 2, "s16": 2, "u8": 1, "s8": 1}
_SHOWN = 40
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}

_Token = tuple[str, str]
_N = TypeVar("_N", Node, Node | None)
_END: _Token = ("end", "")


def number_of(text: str) -> int | None:
    """Return the number a text starts with, as strtoull() with base 0 reads it; None where there is none."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    digits = match[0]
    base = 16 if digits[1:2] in ("x", "X") else 8 if digits[0] == "0" else 10
    # a decimal of thousands of digits is refused by int(); strtoull() gives its largest
    return min(int(digits, base), M64) if len(digits) < 64 else M64


def _shown(token: _Token) -> str:
    kind, text = token
    if kind == "end":
        return "the end"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _tokens(text: str) -> list[_Token]:
    """Split the text; adjacent strings are one."""
    if len(text) > MAX_TEXT:
        raise NotUnderstoodError(f"its text is longer than {MAX_TEXT} characters")
    tokens: list[_Token] = []
    pieces: list[str] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise NotUnderstoodError(f"character {at} starts nothing known in C")
        at = match.end()
        kind, word = match.lastgroup, match[match.lastgroup]
        if kind == "word" and word in _MACROS:
            kind, word = "text", f'"{_MACROS[word]}"'
        if kind == "text":
            pieces.append(word[1:-1])
            continue
        if pieces:
            tokens.append(("text", "".join(pieces)))
            pieces = []
        tokens.append((kind, word[1:-1] if kind == "char" else word))
        if len(tokens) > MAX_TOKENS:
            raise NotUnderstoodError(f"it has more than {MAX_TOKENS} tokens")
    if pieces:
        tokens.append(("text", "".join(pieces)))
    return tokens


class _Branch:
    """An operator's place in the tree while libtraceevent's way of grouping still moves it about.

    ``node`` is set on leaves; else ``op`` with ``right`` and, unless it has one operand, ``left``; ``other``
    is what a ``?`` has behind the colon. ``indexed``: a leaf that ends with ``[...]``, outside of brackets.
    """

    __slots__ = ("indexed", "left", "node", "op", "other", "right", "weight")

    def __init__(self, node: Node | None = None) -> None:
        self.node = node
        self.indexed = isinstance(node, Index)
        self.op = ""
        self.left: _Branch | None = None
        self.right: _Branch | None = None
        self.other: _Branch | None = None
        self.weight = 0

    def take(self, branch: _Branch) -> None:
        """Become what another branch is."""
        for name in self.__slots__:
            setattr(self, name, getattr(branch, name))

    def copy(self) -> _Branch:
        """Return a branch that is what this one is."""
        branch = _Branch()
        branch.take(self)
        return branch


class _Parser:
    """Recursive descent over the tokens; every node comes with the levels below it, kept under MAX_DEPTH."""

    def __init__(self, tokens: list[_Token], long_size: int, sizes: dict[str, int], chars: bool, regroup: bool) -> None:
        self.tokens = tokens
        self.at = 0
        self.open = 0
        self.depths: dict[int, tuple[Node, int]] = {}
        self.long_size = long_size
        self.sizes = sizes
        self.chars = chars
        self.regroup = regroup
        self.operators = 0

    def peek(self, ahead: int = 0) -> _Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else _END

    def next(self) -> _Token:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, op: str) -> bool:
        if self.peek() == ("op", op):
            self.at += 1
            return True
        return False

    def expect(self, op: str, where: str) -> None:
        token = self.next()
        if token != ("op", op):
            raise NotUnderstoodError(f"{where} has {_shown(token)} where {op!r} belongs")

    def word(self, where: str) -> str:
        kind, text = token = self.next()
        if kind != "word":
            raise NotUnderstoodError(f"{where} has {_shown(token)} where a name belongs")
        return text

    def made(self, node: Node, *children: Node) -> Node:
        """Note how deep a new node's tree is; refuse one that is too deep."""
        depth = 1 + max(self.depths[id(child)][1] if id(child) in self.depths else 0 for child in children)
        if depth > MAX_DEPTH:
            raise NotUnderstoodError(f"an expression nests deeper than {MAX_DEPTH} levels")
        # the node is kept too, or its id could come back as another's
        self.depths[id(node)] = (node, depth)
        return node

    def nested(self, parse: Callable[[], _N]) -> _N:
        self.open += 1
        if self.open > MAX_OPEN:
            raise NotUnderstoodError(f"brackets nest deeper than {MAX_OPEN // 2} levels")
        node = parse()
        self.open -= 1
        return node

    def expression(self, level: int = 0) -> Node:
        if self.regroup:
            before, self.operators = self.operators, 0
            node = self.grown(self.branch())
            self.operators = before
            return node
        left = self.nested(self.unary)
        while True:
            kind, op = self.peek()
            if kind != "op":
                return left
            if op == "?" and level <= _COND_LEVEL:
                self.next()
                yes = self.nested(self.expression)
                self.expect(":", "a '?'")
                no = self.nested(lambda: self.expression(_COND_LEVEL))
                left = self.made(Cond(left, yes, no), left, yes, no)
                continue
            own = _BINARY.get(op)
            if own is None or own < level:
                return left
            self.next()
            right = self.nested(lambda own=own: self.expression(own + 1))  # type: ignore[misc]
            left = self.binary(op, left, right)

    # libtraceevent's grouping: process_op, process_cond

    def branch(self) -> _Branch:
        """Read an operand and the operators behind it."""
        branch = self.operand()
        while self.operator() is not None:
            self.grow(branch)
        return branch

    def operator(self) -> str | None:
        kind, op = self.peek()
        return op if kind == "op" and op in _WEIGHT and op not in ("!", "~") else None

    def operand(self) -> _Branch:
        """Read an operand; what is in brackets can still be moved; ``-x`` takes the operators behind it."""
        self.open += 1
        if self.open > MAX_OPEN:
            raise NotUnderstoodError(f"brackets nest deeper than {MAX_OPEN // 2} levels")
        kind, op = self.peek()
        node: Node | None = None
        if kind == "op" and op in ("-", "+", "!", "~"):
            self.next()
            branch = _Branch()
            branch.op, branch.right = op, self.operand()
            if op in "-+":
                branch.left = _Branch(Number(0, "0"))
            if branch.right.indexed:
                self.grow(branch.right)
            while self.operator() is not None:
                self.grow(branch)
        elif (kind, op) == ("op", "("):
            self.next()
            node = self.nested(self.cast_or_member)
            if node is None:
                branch = self.branch()
                branch.indexed = False
                self.expect(")", "a bracket")
                node = self.grown(branch) if self.peek() == ("op", "[") else None
            if node is not None:
                branch = _Branch(self.indexed(node))
        else:
            branch = _Branch(self.unary())
        self.open -= 1
        return branch

    def grow(self, branch: _Branch) -> None:
        """Read the operators behind ``branch``, which is then the top one of them."""
        while (op := self.operator()) is not None:
            self.operators += 1
            if self.operators > MAX_OPERATORS:
                raise NotUnderstoodError(f"it has more than {MAX_OPERATORS} operators")
            self.next()
            branch.left = branch.copy()
            branch.node, branch.op, branch.weight, branch.indexed = None, op, 0, False
            if op == "?":
                branch.right = self.branch()
                self.expect(":", "a '?'")
                branch.other = self.operand()
                continue
            branch.weight, branch.other = _WEIGHT[op], None
            branch.right = right = self.operand()
            if right.node is None and _WEIGHT[op] < _WEIGHT[right.op]:
                # what binds less goes to the top, brackets or not
                top = right.copy()
                branch.right = top.left
                top.left = right
                right.take(branch)
                branch.take(top)
            follows = self.operator()
            if follows is not None and (right.indexed or _WEIGHT[follows] <= branch.weight):
                # an index is an operator too, and the last one read
                branch = right

    def grown(self, branch: _Branch | None) -> Node:
        """Return the final tree of a branch."""
        assert branch is not None
        if branch.node is not None:
            return branch.node
        right = self.grown(branch.right)
        if branch.op == "?":
            test, other = self.grown(branch.left), self.grown(branch.other)
            return self.made(Cond(test, right, other), test, right, other)
        if branch.left is None:
            return self.sign(branch.op, right)
        return self.binary(branch.op, self.grown(branch.left), right)

    def binary(self, op: str, left: Node, right: Node) -> Node:
        if isinstance(left, Number) and isinstance(right, Number):
            value = arithmetic(op, left.value, right.value)
            return Number(value, str(signed(value)))
        return self.made(Binary(op, left, right), left, right)

    def unary(self) -> Node:
        kind, text = token = self.next()
        node: Node
        if kind == "text":
            node = Text(text)
        elif kind == "char":
            if not self.chars:
                node = Text(text)
            else:
                char = _ESCAPES.get(text[1:], text[1:]) if text[:1] == "\\" else text
                code = (char.encode("utf-8", "replace") or b"\0")[0]
                node = Number(code, str(code))
        elif kind == "word":
            node = self.words(text)
        elif kind == "op" and text in ("-", "+", "!", "~"):
            item = self.nested(self.unary)
            return item if text == "+" else self.sign(text, item)
        elif token == ("op", "("):
            node = self.nested(self.bracket)
        else:
            raise NotUnderstoodError(f"an expression has {_shown(token)} where a value belongs")
        return self.indexed(node)

    def indexed(self, node: Node) -> Node:
        while self.accept("["):
            index = self.nested(self.expression)
            self.expect("]", "an index")
            node = self.made(Index(node, index), node, index)
        return node

    def sign(self, op: str, item: Node) -> Node:
        if isinstance(item, Number):
            value = {"-": -item.value & M64, "~": ~item.value & M64, "!": int(not item.value)}[op]
            return Number(value, str(signed(value)))
        return self.made(Unary(op, item), item)

    def bracket(self) -> Node:
        """Read what follows ``(``."""
        node = self.cast_or_member()
        if node is None:
            node = self.expression()
            self.expect(")", "a bracket")
        return node

    def cast_or_member(self) -> Node | None:
        """Read ``type) item`` or ``REC)->name``; None where something else follows the ``(``."""
        if self.peek() == ("word", "REC") and self.peek(1) == ("op", ")"):
            self.at += 2
            return self.member()
        ahead, words, stars = 0, [], 0
        while True:
            kind, text = self.peek(ahead)
            if kind == "word" and not stars:
                words.append(text)
            elif (kind, text) == ("op", "*") and words:
                stars += 1
            else:
                break
            ahead += 1
        if words and self.peek(ahead) == ("op", ")"):
            follows = self.peek(ahead + 1)
            is_type = stars > 0 or all(map(_TYPE_WORD.fullmatch, words))
            if (
                follows[0] in ("word", "text", "char")
                or follows == ("op", "(")
                or (is_type and follows[1] in ("-", "+", "~", "!"))
            ):
                self.at += ahead + 1
                item = self.nested(self.unary)
                return self.made(Cast(" ".join(words) + (" *" if stars else ""), item), item)
            if stars:
                raise NotUnderstoodError("a cast to a pointer casts nothing")
        return None

    def member(self) -> Node:
        self.expect("->", "REC")
        return Rec(self.word("REC->"))

    def words(self, first: str) -> Node:
        if first == "REC":
            return self.member()
        if self.accept("("):
            return self.nested(lambda: self.call(first))
        words = [first]
        while self.peek()[0] == "word":
            words.append(self.next()[1])
        text = " ".join(words)
        value = number_of(text)
        return Name(text) if value is None else Number(value, text)

    def call(self, name: str) -> Node:
        node: Node
        match name:
            case "__print_flags" | "__print_flags_u64":
                value = self.expression()
                self.expect(",", name)
                delim = self.next()[1] if self.peek()[0] in ("text", "word", "char") else ""
                self.expect(",", name)
                return self.made(Flags(value, delim, self.pairs(name)), value)
            case "__print_symbolic" | "__print_symbolic64":
                value = self.expression()
                self.expect(",", name)
                return self.made(Symbolic(value, self.pairs(name)), value)
            case "__print_hex" | "__print_hex_str":
                array = self.argument(name, ",")
                length = self.argument(name, ")")
                return self.made(Hex(array, length, " " if name == "__print_hex" else ""), array, length)
            case "__print_hex_dump":
                return self.hex_dump(name)
            case "__print_array":
                array = self.argument(name, ",")
                count = self.argument(name, ",")
                element = self.argument(name, ")")
                return self.made(IntArray(array, count, element), array, count, element)
            case "__get_str" | "__get_rel_str":
                node = Dynamic("string", self.word(name))
            case "__get_bitmask" | "__get_rel_bitmask":
                node = Dynamic("bitmask", self.word(name))
            case "__get_cpumask" | "__get_rel_cpumask":
                node = Dynamic("cpumask", self.word(name))
            case "__get_dynamic_array" | "__get_rel_dynamic_array" | "__get_sockaddr" | "__get_sockaddr_rel":
                node = Dynamic("array", self.field(name))
            case "__get_dynamic_array_len" | "__get_rel_dynamic_array_len":
                node = Dynamic("length", self.field(name))
            case "__builtin_expect":
                node = self.argument(name, ",")
                self.word(name)
            case "sizeof":
                return self.size_of()
            case _:
                raise NotUnderstoodError(f"function {_shown(('word', name))} is not known")
        self.expect(")", name)
        return node

    def argument(self, name: str, then: str) -> Node:
        node = self.expression()
        self.expect(then, name)
        return node

    def field(self, name: str) -> str:
        word = self.word(name)
        if word not in self.sizes:
            raise NotUnderstoodError(f"{name} names a field the event has not, {_shown(('word', word))}")
        return word

    def pairs(self, name: str) -> tuple[tuple[int, str], ...]:
        """Read ``{value, text}, ...`` and the closing bracket of the call."""
        pairs: list[tuple[int, str]] = []
        while self.accept("{"):
            value = self.argument(name, ",")
            while isinstance(value, Cast):
                value = value.item
            text = self.argument(name, "}")
            if not isinstance(value, Number | Name | Text) or not isinstance(text, Number | Name | Text):
                raise NotUnderstoodError(f"{name} has an entry that is no constant")
            if isinstance(value, Number):
                # a negative result of arithmetic is no digit to eval_flag(), so it is as good as unknown
                number = -1 if value.text.startswith("-") else signed(value.value)
            else:
                number = _KNOWN.get(value.text, -1)
            pairs.append((number, text.text))
            if not self.accept(","):
                break
        self.expect(")", name)
        return tuple(pairs)

    def size_of(self) -> Node:
        if self.accept("("):
            raise NotUnderstoodError("sizeof of an expression is not known")
        words = [self.word("sizeof")]
        size: int | None
        if words == ["REC"]:
            self.expect("->", "REC")
            name = self.word("REC->")
            size = self.sizes.get(name) or None
        else:
            while self.peek()[0] == "word":
                words.append(self.next()[1])
            if words[0] == "unsigned":
                words = words[1:] or ["int"]
            if words[0] == "long":
                size = 8 if words[1:2] == ["long"] else self.long_size
            else:
                size = _SIZES.get(words[0].removeprefix("__"))
        if size is None:
            raise NotUnderstoodError(f"the size of {_shown(('word', words[0]))} is not known")
        self.expect(")", "sizeof")
        return Number(size, str(size))

    def hex_dump(self, name: str) -> Node:
        prefix = self.argument(name, ",")
        kind = self.argument(name, ",")
        row = self.argument(name, ",")
        group = self.argument(name, ",")
        array = self.argument(name, ",")
        length = self.argument(name, ",")
        ascii_ = self.argument(name, ")")
        kinds: dict[str, Literal["none", "address", "offset"]] = {
            "0": "none", "1": "address", "2": "offset",
            "DUMP_PREFIX_NONE": "none", "DUMP_PREFIX_ADDRESS": "address", "DUMP_PREFIX_OFFSET": "offset",
        }  # fmt: skip
        if (
            not isinstance(prefix, Text)
            or not isinstance(kind, Number | Name)
            or kind.text not in kinds
            or not isinstance(row, Number)
            or not isinstance(group, Number)
        ):
            raise NotUnderstoodError(f"{name} has an argument that is no constant")
        wants_ascii = isinstance(ascii_, Number) and ascii_.value != 0
        wants_ascii |= isinstance(ascii_, Name) and ascii_.text == "true"
        dump = HexDump(prefix.text, kinds[kind.text], row.value, group.value, array, length, wants_ascii)
        return self.made(dump, array, length)


def parse_print(
    text: str, sizes: dict[str, int], *, long_size: int = 8, chars: bool = True, regroup: bool = True
) -> PrintText:
    """Read a print fmt; raise NotUnderstoodError where it has a construct that is not known.

    ``sizes`` has the event's fields and their sizes (0 for arrays, which sizeof() does not take). ``chars``:
    whether ``'x'`` is a number. ``regroup``: whether operators group as libtraceevent groups them.
    """
    tokens = _tokens(text)
    if not tokens or tokens[0][0] != "text":
        raise NotUnderstoodError("it does not start with a format string")
    parser = _Parser(tokens, long_size, sizes, chars, regroup)
    parser.next()
    if len(tokens) > 1 and tokens[1] != ("op", ","):
        raise NotUnderstoodError(f"the format string is followed by {_shown(tokens[1])}")
    arguments: list[Node] = []
    try:
        while parser.accept(","):
            arguments.append(parser.expression())
    except RecursionError as error:
        # the limits keep well below Python's own, but the caller may be deep already
        raise NotUnderstoodError("an expression nests too deeply") from error
    return PrintText(tokens[0][1], tuple(arguments))
