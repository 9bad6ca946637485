"""The language of assertions: what parses means what arithmetic means, what does not is told where."""

import pytest
from written_reports import figure, written

from hesscli.errors import UsageError
from hesscli.report.comparing.measured import measured
from hesscli.report.gating.grammar import Comparison, Number, Operation, Unchanged, names_of, needs_baseline, parse
from hesscli.report.gating.judge import judge


def value(text):
    """The value of an expression of numbers, by this parser and by Python's."""
    node = parse(f"{text} < 0").left

    def walk(node):
        if isinstance(node, Number):
            return node.value
        operands = [walk(operand) for operand in node.operands]
        return {
            "+": lambda a, b: a + b,
            "-": lambda a, b: a - b,
            "*": lambda a, b: a * b,
            "/": lambda a, b: a / b,
            "abs": abs,
            "min": min,
            "max": max,
        }[node.sign](*operands)

    return walk(node)


@pytest.mark.parametrize(
    "text",
    [
        "1 + 2 * 3",
        "(1 + 2) * 3",
        "10 - 4 - 3",
        "16 / 4 / 2",
        "-3 * -(2 - 5)",
        "--4",
        "2 * -3 + 1e-3",
        ".5 + 1. + 1.5E2",
        "abs(2 - 7) * 2",
        "min(3, 1 + 1, 4) - max(1, 2)",
    ],
)
def test_arithmetic_is_read_as_python_reads_it(text):
    assert value(text) == pytest.approx(eval(text), rel=1e-15)


def test_a_percentage_is_a_hundredth():
    assert value("110% * 2") == pytest.approx(2.2)


def test_a_comparison_keeps_its_sides_as_typed():
    found = parse("  abs(lambda_min)<=  10% *lambda_max ")
    assert isinstance(found, Comparison)
    assert (found.relation, found.sides) == ("<=", ("abs(lambda_min)", "10% *lambda_max"))
    assert names_of(found) == ["lambda_min", "lambda_max"]
    assert isinstance(found.right, Operation)


@pytest.mark.parametrize(
    ("text", "names", "relative"),
    [
        ("trace < base", ["trace", "base"], True),
        ("trace < base.frobenius_norm * 2", ["trace", "base.frobenius_norm"], True),
        ("blocks.model.layers.0.cosine > 0.9", ["blocks.model.layers.0.cosine"], False),
        ('blocks["a-b, c"].trace > 0', ['blocks["a-b, c"].trace'], False),
        ("unchanged(trace)", ["trace", "base.trace"], True),
        ("baseline_figure < 1", ["baseline_figure"], False),
    ],
)
def test_names_are_found(text, names, relative):
    found = parse(text)
    assert (names_of(found), needs_baseline(found)) == (names, relative)


def test_unchanged_takes_a_tolerance():
    assert parse("unchanged(blocks.h.0.trace)") == Unchanged("unchanged(blocks.h.0.trace)", "blocks.h.0.trace", 0.0)
    assert parse("unchanged(trace, 5%)").tolerance == 0.05


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("trace == 3", "'==' is not offered: figures are measured with an error"),
        ("trace != 3", "'!=' is not offered"),
        ("trace = 3", "'=' is not offered"),
        ("trace ~ base", "write unchanged(NAME)"),
        ("trace", "compares nothing"),
        ("1 < trace < 3", "compares more than once; give one --assert for each"),
        ("trace < 3 4", "'4' at character 11 is one too many"),
        ("trace < ", "a figure or a number is missing at the end"),
        ("trace < * 3", "a figure or a number is missing before '*'"),
        ("trace < (3", "')' is missing at the end"),
        ("sqrt(trace) < 3", "'sqrt' is no function"),
        ("mim(trace, 3) < 3", "did you mean min?"),
        ("abs(trace, 3) < 3", "abs takes one figure, not 2"),
        ("min(trace) < 3", "min takes two or more, not 1"),
        ("trace < 1e999", "a number is too large"),
        ("trace < 3kg", "'3' at character 9 has no meaning"),
        ("trace < 3; import os", "';' at character 10 has no meaning"),
        ("__import__('os').system('true') < 3", "has no meaning"),
        ("trace < 2 ** 9", "a figure or a number is missing before '*'"),
        ("unchanged(3)", "unchanged takes the name of a figure"),
        ("unchanged(base.trace)", "write unchanged(trace)"),
        ("unchanged(trace, wide)", "the tolerance is a number"),
        ("unchanged(trace) < 3", "stands by itself"),
        ("3 < unchanged(trace)", "give it an --assert of its own"),
        (f"{'(' * 50}1{')' * 50} < 2", "nested more than 40 deep"),
        (f"{'-' * 9999}1 < 2", "nested more than 40 deep"),
    ],
)
def test_what_does_not_parse_is_told_in_one_line(text, says):
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert says in str(refused.value)
    assert str(refused.value).startswith("assert: ")
    assert "\n" not in str(refused.value)


def test_a_quoted_block_name_is_the_block_of_that_name():
    report = measured(written({}, blocks={"a-b, c": {"trace": figure(3.0, half=0.1)}}))
    assert judge([parse('blocks["a-b, c"].trace < 4')], report, None, num_unchanged=0)[0].verdict == "pass"
