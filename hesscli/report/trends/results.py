"""The results of a sweep as a table: a row a cell, with every metric and its interval."""

import json
from typing import TYPE_CHECKING, Any

from hesscli.report.figures.table import Table
from hesscli.report.interval import figure as shown
from hesscli.report.rounding import significant
from hesscli.report.trends.derived import ESTIMATES, figures_of
from hesscli.report.trends.points import KEY_METRICS, Point, Trend
from hesscli.report.words import DASH

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

_COLUMNS = 4  # metrics in a table that people read; the files have all of them


def results_table(trend: Trend) -> Table:
    """Every metric with its value and the ends of its interval; a cell without a report has its error."""
    names = _metric_names(trend)
    columns = [axis.key for axis in trend.axes] + ["status", "run_id"]
    for name in names:
        columns += [name, f"{name}_low", f"{name}_high"]
    rows: list[list[float | int | str | bool | None]] = []
    for point in trend.points:
        row: list[float | int | str | bool | None] = [_cell(point.values.get(axis.key)) for axis in trend.axes]
        row += [point.status, point.report.run_id if point.report else None]
        for name in names:
            metric = point.metric(name)
            low, high = metric.ci if metric is not None and metric.ci is not None else (None, None)
            row += [None if metric is None else metric.value, low, high]
        rows.append([*row, point.error])
    return Table("results", [*columns, "error"], rows)


def results_lines(trend: Trend) -> str:
    """The same as JSON lines, each metric with its standard error, the parts of its error, and a reason if null."""
    lines = []
    for point in trend.points:
        metrics = figures_of(point.report) if point.report is not None else {}
        content = {
            "values": point.values,
            "status": point.status,
            "run_id": point.report.run_id if point.report is not None else None,
            "error": point.error,
            "metrics": {name: metric.model_dump(mode="json") for name, metric in metrics.items()},
        }
        lines.append(json.dumps(content, sort_keys=True, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def results_markdown(trend: Trend) -> str:
    """The key metrics with their intervals as a Markdown table."""
    names = trend.metrics
    heads = [*(axis.key for axis in trend.axes), *names, "status"]
    rows = [heads, ["---"] * len(heads)]
    for point in trend.points:
        said = f"{point.status}: {point.error}" if point.error else point.status
        values = [_shown(point.values.get(axis.key)) for axis in trend.axes]
        rows.append([*values, *(figure(point, name) for name in names), said])
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def terminal_table(trend: Trend, width: int) -> "TerminalTable":
    """A row a cell with as many of the first metrics as fit; a status that is not ok stands out."""
    from rich.console import Console

    console = Console(width=1000)
    counts = range(min(_COLUMNS, len(trend.metrics)), 1, -1)
    tables = (_terminal_table(trend, trend.metrics[:count]) for count in counts)
    fitting = (table for table in tables if console.measure(table).maximum <= width)
    return next(fitting, _terminal_table(trend, trend.metrics[:1]))


def _terminal_table(trend: Trend, names: list[str]) -> "TerminalTable":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as TerminalTable
    from rich.text import Text

    table = TerminalTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for axis in trend.axes:
        table.add_column(Text(axis.key.rpartition(".")[2]), overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("status", no_wrap=True)
    for point in trend.points:
        cells = [_shown(point.values.get(axis.key)) for axis in trend.axes]
        cells += [figure(point, name) for name in names]
        style = "" if point.status == "ok" else "bold"
        table.add_row(*map(Text, cells), Text(point.status.replace("_", " "), style=style))
    return table


def figure(point: Point, name: str) -> str:
    """The metric with its 95 % interval, each arm where they differ; a dash where there is none."""
    metric = point.metric(name)
    if metric is None or metric.value is None:
        return DASH
    if name in ESTIMATES:
        return significant(metric.value, 2)
    return f"{significant(metric.value, 3)} (no interval)" if metric.ci is None else shown(metric)


def _metric_names(trend: Trend) -> list[str]:
    found = {name for point in trend.points if point.report is not None for name in figures_of(point.report)}
    return [*(n for n in KEY_METRICS if n in found), *sorted(found - set(KEY_METRICS))]


def _cell(value: Any) -> float | int | str | bool | None:
    return value if isinstance(value, float | int | str | bool | None) else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    return "" if value is None else str(_cell(value))
