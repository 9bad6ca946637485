"""The language of assertions, read by a parser of its own: an expression is data, and nothing in it is run.

assertion  = "unchanged" "(" name [ "," number ] ")"  |  sum relation sum
relation   = "<" | "<=" | ">" | ">="
sum        = product { ("+" | "-") product }
product    = factor { ("*" | "/") factor }
factor     = [ "-" | "+" ] factor | number [ "%" ] | name | call | "(" sum ")"
call       = "abs" "(" sum ")" | ("min" | "max") "(" sum "," sum { "," sum } ")"
name       = word { "." word | "[" quoted "]" }
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import NoReturn

from hesscli.errors import UsageError

FUNCTIONS = ("abs", "min", "max")
RELATIONS = ("<=", ">=", "<", ">")
# An expression is a line that somebody typed: more than this in each other is a mistake, or an attack on the stack.
_DEEPEST = 40

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    |(?P<name>[^\W\d]\w*(?:\.\w+|\[(?:"[^"]*"|'[^']*')\])*)
    |(?P<sign><=|>=|==|!=|=|[-+*/(),<>%~])
    |(?P<other>\S))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was typed; `5%` is 0.05."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """A figure: `lambda_max`, `blocks.model.layers.0.trace`, `base`, `base.trace`."""

    path: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`+ - * /` of two, or `abs min max` of one or more."""

    sign: str
    operands: tuple["Expression", ...]


Expression = Number | Name | Operation


@dataclass(frozen=True, slots=True)
class Comparison:
    """left relation right."""

    text: str
    relation: str
    left: Expression
    right: Expression
    sides: tuple[str, str]
    """Both sides as they were typed."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The figure is not significantly different from the baseline's, or by no more than `tolerance` of it."""

    text: str
    name: str
    tolerance: float


Assertion = Comparison | Unchanged


def parse(text: str) -> Assertion:
    """Return the assertion in a line of text.

    Raises UsageError that says what is wrong, and where.
    """
    return _Parser(text).assertion()


def names_of(assertion: Assertion) -> list[str]:
    """Return the names in an assertion as they were typed, each once."""
    if isinstance(assertion, Unchanged):
        return [assertion.name, f"base.{assertion.name}"]
    found: dict[str, None] = {}
    stack: list[Expression] = [assertion.right, assertion.left]
    while stack:
        node = stack.pop()
        if isinstance(node, Name):
            found[node.path] = None
        elif isinstance(node, Operation):
            stack.extend(reversed(node.operands))
    return list(found)


def needs_baseline(assertion: Assertion) -> bool:
    """Whether the assertion speaks of the baseline."""
    return any(name == "base" or name.startswith("base.") for name in names_of(assertion))


class _Parser:
    """Recursive descent over the tokens of one line."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.tokens = [(m.lastgroup or "", m.group(m.lastgroup or 0), m.start(m.lastgroup or 0)) for m in self._scan()]
        self.place, self.depth = 0, 0

    def _scan(self) -> list[re.Match[str]]:
        found = list(_TOKEN.finditer(self.text))
        odd = next((m for m in found if m.group("other")), None)
        if odd is not None:
            self.refuse(f"{odd.group('other')!r} at character {odd.start('other') + 1} has no meaning")
        return found

    def refuse(self, what: str, remedy: str = "write e.g. 'lambda_max <= base * 1.10'") -> NoReturn:
        raise UsageError("assert", f"{self.text!r}: {what}", remedy)

    @property
    def token(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else "end"

    @property
    def start(self) -> int:
        return self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)

    def take(self, word: str = "") -> str:
        """Return the token and go on; refuse another one than `word`."""
        if word and self.token != word:
            self.refuse(f"{word!r} is missing {self.here()}")
        token = self.token
        self.place += 1
        return token

    def here(self) -> str:
        return "at the end" if self.kind == "end" else f"before {self.token!r}"

    def assertion(self) -> Assertion:
        if not self.tokens:
            self.refuse("is empty")
        if self.token == "unchanged" and len(self.tokens) > 1 and self.tokens[1][1] == "(":
            return self.unchanged()
        left = self.sum()
        between, relation = self.start, self.relation()
        after = self.start
        right = self.sum()
        if self.token in ("<", "<=", ">", ">="):
            self.refuse("compares more than once", "give one --assert for each comparison")
        if self.kind != "end":
            self.refuse(f"{self.token!r} at character {self.start + 1} is one too many")
        sides = (self.text[:between].strip(), self.text[after:].strip())
        return Comparison(self.text, relation, left, right, sides)

    def relation(self) -> str:
        if self.token in ("==", "!=", "=", "~"):
            why = "figures are measured with an error, and are never equal to the last digit"
            self.refuse(f"{self.token!r} is not offered: {why}", "write unchanged(NAME), or abs(a - b) < c")
        if self.kind == "end":
            self.refuse("compares nothing", "end it with a limit, as in 'lambda_max < 50'")
        if self.token not in RELATIONS:
            self.refuse(f"{self.token!r} at character {self.start + 1} is not one of < <= > >=")
        return self.take()

    def unchanged(self) -> Unchanged:
        self.take()
        self.take("(")
        if self.kind != "name":
            self.refuse("unchanged takes the name of a figure", "write e.g. unchanged(lambda_max)")
        name, tolerance = self.take(), 0.0
        if name == "base" or name.startswith("base."):
            self.refuse("unchanged compares with the baseline by itself", f"write unchanged({name[5:] or 'NAME'})")
        if self.token == ",":
            self.take()
            if self.kind != "number":
                self.refuse("the tolerance is a number", "write e.g. unchanged(lambda_max, 5%)")
            tolerance = self.number().value
        self.take(")")
        if self.kind != "end":
            self.refuse("unchanged(...) stands by itself", "give one --assert for each")
        return Unchanged(self.text, name, tolerance)

    def sum(self) -> Expression:
        return self.chain(("+", "-"), self.product)

    def product(self) -> Expression:
        return self.chain(("*", "/"), self.factor)

    def chain(self, signs: tuple[str, ...], operand: Callable[[], Expression]) -> Expression:
        """Return operands joined from the left by these signs."""
        node = operand()
        while self.token in signs and self.kind == "sign":
            sign = self.take()
            node = Operation(sign, (node, operand()))
        return node

    def factor(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.refuse(f"is nested more than {_DEEPEST} deep")
        try:
            return self.atom()
        finally:
            self.depth -= 1

    def atom(self) -> Expression:
        if self.token in ("-", "+"):
            sign = self.take()
            node = self.factor()
            return node if sign == "+" else Operation("-", (Number(0.0), node))
        if self.kind == "number":
            return self.number()
        if self.token == "(":
            self.take()
            node = self.sum()
            self.take(")")
            return node
        if self.kind != "name":
            self.refuse(f"a figure or a number is missing {self.here()}")
        name = self.take()
        return self.call(name) if self.token == "(" else Name(name)

    def number(self) -> Number:
        value = float(self.take())
        if not isfinite(value):
            self.refuse("a number is too large")
        if self.token == "%":
            self.take()
            value /= 100
        return Number(value)

    def call(self, name: str) -> Expression:
        if name not in FUNCTIONS:
            near = get_close_matches(name, (*FUNCTIONS, "unchanged"), n=1)
            remedy = f"did you mean {near[0]}?" if near else f"functions are {', '.join(FUNCTIONS)} and unchanged"
            if name == "unchanged":
                remedy = "give it an --assert of its own"
            self.refuse(f"{name!r} is no function that can stand here", remedy)
        self.take("(")
        operands = [self.sum()]
        while self.token == ",":
            self.take()
            operands.append(self.sum())
        self.take(")")
        if (name == "abs") != (len(operands) == 1):
            self.refuse(f"{name} takes {'one figure' if name == 'abs' else 'two or more'}, not {len(operands)}")
        return Operation(name, tuple(operands))
