"""The toy language of the embedded text: assignments, `if`, `repeat`, `print`; values wrap at 100."""

from dataclasses import dataclass, field
from random import Random

VARIABLES = "abcdnxyz"
WRAP = 100  # two digits, so that a model of this size can hold a value


@dataclass(frozen=True, slots=True)
class Let:
    """`name = left + right`: a variable, then a variable and a variable or a number."""

    name: str
    left: str
    sign: str
    right: str


@dataclass(frozen=True, slots=True)
class Print:
    """`print name`."""

    name: str


@dataclass(frozen=True, slots=True)
class If:
    """`if left < right` with two branches."""

    left: str
    sign: str
    right: str
    then: list["Statement"]
    otherwise: list["Statement"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`repeat times` with a body."""

    times: int
    body: list["Statement"]


Statement = Let | Print | If | Repeat


def program(rng: Random) -> str:
    """A program and, after `> `, each value that it prints."""
    names = rng.sample(VARIABLES, rng.randrange(2, 4))
    values = {name: rng.randrange(1, 20) for name in names}
    lines = [f"let {name} = {value}" for name, value in values.items()]
    body = [_statement(rng, names) for _ in range(rng.randrange(2, 5))]
    body += [Print(name) for name in names]
    outputs: list[int] = []
    run(body, values, outputs)
    return "\n".join(lines + written(body) + [f"> {value}" for value in outputs])


def _statement(rng: Random, names: list[str], depth: int = 0) -> Statement:
    kind = rng.choice(["let", "let", "print"] if depth else ["let", "let", "if", "repeat"])
    right = rng.choice([rng.choice(names), str(rng.randrange(1, 20))])
    if kind == "let":
        return Let(rng.choice(names), rng.choice(names), rng.choice("+-*"), right)
    if kind == "print":
        return Print(rng.choice(names))
    body = [_statement(rng, names, depth + 1) for _ in range(rng.randrange(1, 3))]
    if kind == "repeat":
        return Repeat(rng.randrange(2, 5), body)
    otherwise = [_statement(rng, names, depth + 1) for _ in range(rng.randrange(2))]
    return If(rng.choice(names), rng.choice("<>"), right, body, otherwise)


def written(statements: list[Statement], indent: str = "") -> list[str]:
    """The source lines of some statements."""
    lines: list[str] = []
    for statement in statements:
        match statement:
            case Let(name, left, sign, right):
                lines.append(f"{indent}{name} = {left} {sign} {right}")
            case Print(name):
                lines.append(f"{indent}print {name}")
            case If(left, sign, right, then, otherwise):
                lines += [f"{indent}if {left} {sign} {right}", *written(then, indent + "  ")]
                if otherwise:
                    lines += [f"{indent}else", *written(otherwise, indent + "  ")]
                lines.append(f"{indent}end")
            case Repeat(times, body):
                lines += [f"{indent}repeat {times}", *written(body, indent + "  "), f"{indent}end"]
    return lines


def run(statements: list[Statement], values: dict[str, int], outputs: list[int]) -> None:
    """Execute statements: `values` is changed in place, what is printed is appended to `outputs`."""
    for statement in statements:
        match statement:
            case Let(name, left, sign, right):
                a, b = values[left], _value(right, values)
                values[name] = {"+": a + b, "-": a - b, "*": a * b}[sign] % WRAP
            case Print(name):
                outputs.append(values[name])
            case If(left, sign, right, then, otherwise):
                a, b = values[left], _value(right, values)
                run(then if (a < b if sign == "<" else a > b) else otherwise, values, outputs)
            case Repeat(times, body):
                for _ in range(times):
                    run(body, values, outputs)


def _value(term: str, values: dict[str, int]) -> int:
    return int(term) if term.isdigit() else values[term]
