"""The trace of each block with its interval."""

from typing import TYPE_CHECKING

from hesscli.report.figures.rows import column, height, name_rows
from hesscli.report.figures.table import Table
from hesscli.report.interval import arms
from hesscli.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(report: Report) -> "Figure":
    """Return a bar per block, blocks down the page."""
    from hesscli.report.figures.canvas import BLUE, VERMILION, sheet

    sheet_ = sheet(report, 8.5, height(len(report.blocks)))
    axes = sheet_.subplots()
    name_rows(axes, report)
    for row, metric in enumerate(column(report, "trace")):
        if metric is None or metric.value is None:
            axes.text(0, row, " no figure", ha="left", va="center", fontsize=8, color="#555555")
            continue
        low, high = arms(metric) or (0.0, 0.0)
        positive = metric.value >= 0
        axes.barh(
            row,
            metric.value,
            height=0.66,
            color=VERMILION if positive else BLUE,
            hatch=None if positive else "///",
            edgecolor="white",
            lw=0.5,
            xerr=[[low], [high]],
            error_kw={"elinewidth": 1.2, "capsize": 3},
        )
    axes.axvline(0, color="#555555", lw=0.8)
    axes.set_title("Trace of each diagonal block, 95 % intervals (hatched: negative)")
    axes.set_xlabel("trace of $H_{bb}$")
    return sheet_


def table(report: Report) -> Table:
    """Return a row per block."""
    rows: list[list[float | int | str | bool | None]] = []
    for block in report.blocks:
        metric = block.metrics.get("trace")
        low, high = metric.ci if metric and metric.ci else (None, None)
        rows.append(
            [
                block.name,
                block.num_parameters,
                metric.value if metric else None,
                metric.stderr if metric else None,
                low,
                high,
            ]
        )
    return Table("trace", ["block", "num_parameters", "trace", "trace_stderr", "trace_low", "trace_high"], rows)
