"""Ritz stems: each eigenvalue with its certified bar; a pair that has not converged looks and reads so."""

from typing import TYPE_CHECKING

from hesscli.report.figures.table import Table
from hesscli.report.rounding import apart
from hesscli.report.schema import Eigenpair, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More stems than this in one figure and their values are left to the table.
LABELLED = 20


def figure(report: Report) -> "Figure":
    """Return stems from both ends on one scale: the upper end from the left, the lower end to the right."""
    from hesscli.report.figures.canvas import BLUE, VERMILION, sheet

    above, below = ends(report.eigenpairs)
    width = min(max(7.0, 2.4 + 0.7 * len(report.eigenpairs)), 16.0)
    sheet_ = sheet(report, width, 4.8)
    axes = sheet_.subplots()
    gap = 1 if above and below else 0
    positions = [*range(1, len(above) + 1), *range(len(above) + gap + 1, len(above) + gap + len(below) + 1)]
    _stems(axes, positions[: len(above)], above, VERMILION, "o", "upper end")
    _stems(axes, positions[len(above) :], below[::-1], BLUE, "s", "lower end")
    if len(positions) <= LABELLED:
        _write_values(axes, positions, [*above, *below[::-1]])
    axes.axhline(0, color="#555555", lw=0.8)
    names = [f"{index}" for index in range(1, len(above) + 1)]
    names += [f"\N{MINUS SIGN}{index}" for index in range(len(below), 0, -1)]
    every = 1 + len(names) // 40
    axes.set_xticks(positions[::every], names[::every])
    axes.set_xlim(0.3, positions[-1] + 0.7)
    axes.set_ylim(*_limits(above, below))
    axes.grid(axis="x", visible=False)
    axes.set_title("Ritz values at the ends of the spectrum")
    axes.set_xlabel("index: 1 is the largest eigenvalue, \N{MINUS SIGN}1 the smallest")
    axes.set_ylabel("eigenvalue λ")
    sheet_.legend(loc="outside lower center", ncols=4 if width > 8.5 else 2)
    return sheet_


def table(report: Report) -> Table:
    """Return the eigenpairs from high to low."""
    rows: list[list[float | int | str | bool | None]] = [
        [index, pair.value, pair.bar, pair.residual, pair.converged] for index, pair in indexed_pairs(report)
    ]
    return Table("topk", ["index", "value", "bar", "residual", "converged"], rows)


def ends(pairs: list[Eigenpair]) -> tuple[list[Eigenpair], list[Eigenpair]]:
    """Return (pairs of the upper end from the largest, pairs of the lower end from the smallest).

    A pair that does not tell its end is of the upper one where it is not negative.
    """
    above = sorted((pair for pair in pairs if _is_upper(pair)), key=lambda pair: -pair.value)
    below = sorted((pair for pair in pairs if not _is_upper(pair)), key=lambda pair: pair.value)
    return above, below


def indexed_pairs(report: Report) -> list[tuple[int, Eigenpair]]:
    """Return the pairs from high to low, each with its index: 1 is the largest, -1 the smallest."""
    above, below = ends(report.eigenpairs)
    indices = [*range(1, len(above) + 1), *range(-len(below), 0)]
    return list(zip(indices, [*above, *reversed(below)], strict=True))


def _is_upper(pair: Eigenpair) -> bool:
    return pair.value >= 0 if pair.end is None else pair.end == "upper"


def halfwidth(pair: Eigenpair) -> float:
    """Return the half-width of an interval that holds an eigenvalue: the bar, else the residual."""
    return pair.residual if pair.bar is None else pair.bar


def _stems(axes: "Axes", x: list[int], pairs: list[Eigenpair], colour: str, marker: str, end: str) -> None:
    from hesscli.report.figures.canvas import GREY

    for converged in (True, False):
        chosen = [(place, pair) for place, pair in zip(x, pairs, strict=True) if pair.converged is converged]
        if not chosen:
            continue
        places, values = [place for place, _ in chosen], [pair.value for _, pair in chosen]
        line = "-" if converged else (0, (2, 2))
        axes.vlines(places, 0, values, color=colour if converged else GREY, lw=1.4, ls=line)
        axes.errorbar(
            places,
            values,
            yerr=[halfwidth(pair) for _, pair in chosen],
            fmt=marker,
            ms=6.5,
            color=colour,
            mfc=colour if converged else "white",
            ecolor="black",
            elinewidth=1.1,
            capsize=4,
            label=f"{end}, {'converged' if converged else 'NOT converged'}",
        )


def _limits(above: list[Eigenpair], below: list[Eigenpair]) -> tuple[float, float]:
    """Return a range that holds every stem, its bar and the words at its tip."""
    high = max([0.0, *(pair.value + halfwidth(pair) for pair in (*above, *below))])
    low = min([0.0, *(pair.value - halfwidth(pair) for pair in (*above, *below))])
    span = high - low or 1.0

    def room(pairs: list[Eigenpair]) -> float:
        if len(above) + len(below) > LABELLED:
            return 0.05 * span if pairs else 0.0
        # Two lines at the tip of a converged pair, four at the others.
        return span * max((0.2 if pair.converged else 0.3 for pair in pairs), default=0.0)

    pairs = [*above, *below]
    return low - room([p for p in pairs if p.value < 0]), high + room([p for p in pairs if p.value >= 0])


def _write_values(axes: "Axes", positions: list[int], pairs: list[Eigenpair]) -> None:
    for place, pair in zip(positions, pairs, strict=True):
        side = 1 if pair.value >= 0 else -1
        value, bar = apart(pair.value, halfwidth(pair))
        text = f"{value}\n± {bar}"
        text += "" if pair.converged else "\nNOT\nconverged"
        tip = pair.value + side * halfwidth(pair)
        axes.annotate(
            text,
            (place, tip),
            xytext=(0, 7 * side),
            textcoords="offset points",
            ha="center",
            va="bottom" if side > 0 else "top",
            fontsize=7.5,
        )
