"""The residuals of a solve by iteration: what the recurrence believes, and what products of their own found."""

from typing import TYPE_CHECKING

from hesscli.report.figures.table import Table
from hesscli.report.schema import Report, Solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(report: Report) -> "Figure":
    """Return one curve and one row of markers for each damping, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    from hesscli.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, power_of_ten, sheet

    solve = _solve(report)
    looks = [(BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v")]
    page = sheet(report, 8.5, 4.6)
    axes = page.subplots()
    axes.set_yscale("log")
    for place, system in enumerate(solve.systems):
        colour, marker = looks[place % len(looks)]
        # Zero has no place on the axis: an exact solution ends its line.
        curve = [value if value > 0 else float("nan") for value in system.residuals]
        axes.plot(range(len(curve)), curve, color=colour, lw=1.1, alpha=0.75)
        found = [(step, value) for step, value in system.true_residuals if value > 0]
        steps, values = [step for step, _ in found], [value for _, value in found]
        ended = "" if system.converged else f", {system.ending.replace('_', ' ')}"
        label = f"damping {system.damping:g}{ended}"
        axes.plot(steps, values, color=colour, marker=marker, ms=6, ls="none", mfc="white", mew=1.5, label=label)
    axes.axhline(solve.tolerance, color=GREY, ls=":", lw=1.2, label=f"tolerance {solve.tolerance:g}")
    name = "Conjugate gradients" if solve.solver == "cg" else "MINRES"
    axes.set_title(f"{name}: true residual (markers) and the recurrence's own (lines)")
    axes.set_xlabel(f"iteration, preconditioner: {solve.preconditioner}")
    axes.set_ylabel("residual / right-hand side")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="best", ncols=1 if len(solve.systems) < 6 else 2)
    return page


def table(report: Report) -> Table:
    """Return a row for each damping and iteration; the true residual is empty where it was not taken."""
    rows: list[list[float | int | str | bool | None]] = []
    for system in _solve(report).systems:
        true = dict(system.true_residuals)
        rows += [[system.damping, step, value, true.get(step)] for step, value in enumerate(system.residuals)]
    return Table("solve", ["damping", "iteration", "recursive_residual", "true_residual"], rows)


def _solve(report: Report) -> Solve:
    if report.solve is None:
        msg = "residuals need a solve"
        raise ValueError(msg)
    return report.solve
