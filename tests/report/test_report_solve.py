"""A solve in words, in a table and in a figure."""

import io

import known_reports
import pytest
from rich.console import Console

from hesscli.report.figures import draw
from hesscli.report.schema import NegativeCurvature, Report, Solve, System
from hesscli.report.sentence import sentence
from hesscli.report.terminal import render


def system(damping: float, ending: str = "converged", **changes: object) -> System:
    """A solve of 20 iterations that falls by a factor of 0.7 in each."""
    residuals = [0.7**i for i in range(21)]
    content: dict[str, object] = {
        "damping": damping,
        "converged": ending == "converged",
        "ending": ending,
        "residuals": residuals,
        "true_residuals": [(10, residuals[10]), (20, residuals[20])],
        "metrics": {"quadratic_form": known_reports.metric(0.5 / damping, 0.01, numeric=0.01)},
    }
    return System(**{**content, **changes})


def report(*systems: System, **changes: object) -> Report:
    """A report of conjugate gradients for the gradient."""
    solve = Solve(
        solver="cg", rhs="gradient", rhs_norm=1.0, tolerance=1e-3, preconditioner="none", systems=list(systems)
    )
    return known_reports.report("solve", **{"solve": solve, "metrics": systems[0].metrics, **changes})


def printed(content: Report) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    render(content, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_sentence_says_how_far_it_came_and_what_was_found():
    text = sentence(report(system(0.1), system(1.0, "stagnated")))
    assert "With damping 0.1, 20 iterations of conjugate gradients took the residual to 0.00080" in text
    assert "the Newton decrement squared is 5.000 ± 0.010" in text
    assert "1 of 2 dampings converged" in text


def test_negative_curvature_stands_in_the_sentence():
    found = NegativeCurvature(rayleigh_quotient=-3.34, bar=0.01)
    text = sentence(report(system(0.1, "negative_curvature", negative_curvature=found)))
    assert "curvature is \N{MINUS SIGN}3.34" in text


def test_a_zero_right_hand_side_has_a_sentence_and_no_figure(tmp_path):
    zero = report(system(0.1, "zero", residuals=[0.0], true_residuals=[(0, 0.0)], converged=True))
    assert sentence(zero) == "The right-hand side is zero, and so is the solution."
    assert draw(zero, tmp_path, ["svg"]) == []


def test_several_dampings_have_a_row_each_and_one_has_none():
    text = printed(report(system(0.01), system(0.1), system(1.0, "steps_spent")))
    assert "steps spent" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("0.01 ", "0.1 ", "1 "))] == [
        ["0.01", "20"],
        ["0.1", "20"],
        ["1", "20"],
    ]
    assert max(map(len, text.splitlines())) <= 80
    assert "ended" not in printed(report(system(0.1)))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_figure_has_every_damping_and_its_table_every_iteration(tmp_path, count):
    systems = [system(0.1 * (i + 1)) for i in range(count)]
    names = draw(report(*systems), tmp_path, ["png", "svg"])
    assert names == ["solve.png", "solve.svg", "solve.csv"]
    header, *rows = (tmp_path / "solve.csv").read_text().splitlines()
    assert header == "damping,iteration,recursive_residual,true_residual"
    assert len(rows) == 21 * count
    assert sum(not row.endswith(",") for row in rows) == 2 * count


def test_an_exact_residual_of_zero_is_drawn(tmp_path):
    exact = system(0.1, residuals=[1.0, 0.5, 0.0], true_residuals=[(2, 0.0)])
    assert draw(report(exact), tmp_path, ["svg"]) == ["solve.svg", "solve.csv"]
