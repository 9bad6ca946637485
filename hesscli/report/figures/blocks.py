"""The block-diagonal test: how far each block acts alone, against a matrix without block structure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hesscli.report.figures.rows import column, height, name_rows
from hesscli.report.figures.table import Table
from hesscli.report.interval import arms
from hesscli.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(report: Report) -> "Figure":
    """Return relative error and cosine of each block, side by side, blocks down the page."""
    from hesscli.report.figures.canvas import BLUE, VERMILION, sheet

    sheet_ = sheet(report, 10.5, height(len(report.blocks)))
    left, right = sheet_.subplots(1, 2, sharey=True)
    error, cosine = baseline([b.num_parameters for b in report.blocks])
    _draw(left, report, "relative_error", error, VERMILION, "o")
    _draw(right, report, "cosine", cosine, BLUE, "s")
    left.set_title("Relative error of the block alone")
    left.set_xlabel("$\\Vert (Hv)_b - H_{bb} v_b \\Vert \\;/\\; \\Vert (Hv)_b \\Vert$   (0: block-diagonal)")
    right.set_title("Cosine with the block alone")
    right.set_xlabel("$\\cos((Hv)_b,\\, H_{bb} v_b)$   (1: block-diagonal)")
    name_rows(left, report)
    name_rows(right, report)
    right.set_ylabel("")
    sheet_.legend(loc="outside lower center", ncols=4)
    return sheet_


def baseline(sizes: Sequence[int]) -> tuple[float, float]:
    """Return the mean (relative error, cosine) of a matrix without structure cut into blocks of these sizes.

    A block of the share s of all parameters expects sqrt(1 - s) and sqrt(s): 1/sqrt(B) for B equal blocks.
    """
    shares = [size / sum(sizes) for size in sizes]
    mean_error = sum((1 - s) ** 0.5 for s in shares) / len(shares)
    return mean_error, sum(s**0.5 for s in shares) / len(shares)


def table(report: Report) -> Table:
    """Return a row per block: each figure with its interval."""
    rows: list[list[float | int | str | bool | None]] = []
    for block in report.blocks:
        row: list[float | int | str | bool | None] = [block.name, block.num_parameters]
        for name in ("relative_error", "cosine"):
            metric = block.metrics.get(name)
            low, high = metric.ci if metric and metric.ci else (None, None)
            row += [metric.value if metric else None, metric.stderr if metric else None, low, high]
        rows.append(row)
    columns = ["block", "num_parameters"]
    for name in ("relative_error", "cosine"):
        columns += [name, f"{name}_stderr", f"{name}_low", f"{name}_high"]
    return Table("blockdiag", columns, rows)


def _draw(axes: "Axes", report: Report, name: str, expected: float, colour: str, marker: str) -> None:
    metrics = column(report, name)
    rows = [(row, metric) for row, metric in enumerate(metrics) if metric is not None]
    for row, metric in enumerate(metrics):
        if metric is None:
            axes.text(0.5, row, "no figure", ha="center", va="center", fontsize=8, color="#555555")
    values = [metric.value or 0.0 for _, metric in rows]
    bars = [arms(metric) or (0.0, 0.0) for _, metric in rows]
    axes.errorbar(
        values,
        [row for row, _ in rows],
        xerr=[[low for low, _ in bars], [high for _, high in bars]],
        fmt=marker,
        color=colour,
        ms=5.5,
        elinewidth=1.2,
        capsize=3,
        label=f"{name.replace('_', ' ')} with 95 % interval",
    )
    label = f"no structure, mean: {expected:.2f}"
    axes.axvline(expected, color="black", ls="--" if marker == "o" else ":", lw=1.4, label=label)
    lows = [value - low for value, (low, _) in zip(values, bars, strict=True)]
    highs = [value + high for value, (_, high) in zip(values, bars, strict=True)]
    axes.set_xlim(min(0.0, *lows, 0.0) - 0.03, max(1.0, *highs, 1.0) + 0.03)
