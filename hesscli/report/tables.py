"""The tables of a report in the terminal. Cells are plain text: a name with brackets is not markup."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hesscli.report.figures.stems import indexed_pairs
from hesscli.report.interval import arms, known_parts, main_source, value_and_error
from hesscli.report.rounding import apart, significant, with_error
from hesscli.report.schema import Metric, Report, Solve
from hesscli.report.words import DASH, thousands

# More rows than this and the rest is left to the report.
MOST = 40


def metric_table(report: Report) -> Table:
    """Return metric, value, interval and the main source of its error."""
    table = _table("metric", "value", "± 95 %", "main source of error")
    for name, metric in report.metrics.items():
        value, error, source = metric_cells(metric)
        table.add_row(*map(Text, (name, value, error, source)))
    return table


def metric_cells(metric: Metric) -> tuple[str, str, str]:
    """Return (value, interval, main source of error), a dash for each that is not there and the reason last."""
    if metric.value is None:
        return DASH, DASH, metric.reason or "no value"
    value, error = value_and_error(metric)
    if metric.ci is None:
        return value, DASH, metric.reason or "no interval: error not measured"
    if not error:
        return value, "0", metric.reason or "exact"
    error = error.removeprefix("± ")
    source = main_source(metric.errors)
    if source is None:
        return value, error, "parts not measured"
    name, size = source
    only = "; other parts not measured" if len(known_parts(metric.errors)) == 1 else ""
    if name == "data":  # intervals are for this slice, but for the spread between its rows, which has no other error
        only = "" if size == metric.stderr else ", not in the bar"
    return value, error, f"{name} ({significant(size, 2)}){only}"


def pair_table(report: Report) -> Table:
    """Return the eigenpairs from high to low; one that has not converged says so in words."""
    spread = any(pair.slice_error is not None for pair in report.eigenpairs)
    further = any(pair.held_out is not None for pair in report.eigenpairs)
    columns = ["slice error"] * spread + ["held out"] * further
    table = _table("eigenpair", "value", "± bar", "residual", *columns, "converged")
    for index, pair in indexed_pairs(report)[: 2 * MOST]:
        value, bar = apart(pair.value, pair.bar if pair.bar is not None else pair.residual)
        converged = Text("yes") if pair.converged else Text("NO", style="bold")
        cells = [_signed(index), value, DASH if pair.bar is None else bar, f"{pair.residual:.1e}"]
        if spread:
            cells.append(DASH if pair.slice_error is None else significant(pair.slice_error, 2))
        if further:
            two = None if pair.held_out_error is None else 1.96 * pair.held_out_error
            cells.append(DASH if pair.held_out is None else with_error(pair.held_out, two))
        table.add_row(*map(Text, cells), converged)
    return table


def block_table(report: Report) -> Table:
    """Return a row per block with its figures."""
    figures = ("relative_error", "cosine", "share", "trace")
    names = [name for name in figures if any(name in b.metrics for b in report.blocks)]
    table = _table("block", "parameters", *[name.replace("_", " ") for name in names])
    for block in report.blocks[:MOST]:
        cells = [_cell(block.metrics.get(name)) for name in names]
        table.add_row(*map(Text, (block.name, thousands(block.num_parameters), *cells)))
    if len(report.blocks) > MOST:
        table.add_row(Text(f"and {len(report.blocks) - MOST} more in the report"))
    return table


def system_table(solve: Solve) -> Table:
    """Return a row per damping; one that has not converged stands out by how it ended."""
    table = _table("damping", "iterations", "residual", "b.x", "ended")
    for system in solve.systems[:MOST]:
        cells = (f"{system.damping:g}", str(len(system.residuals) - 1), f"{system.true_residuals[-1][1]:.1e}")
        ended = Text(system.ending.replace("_", " "), style="" if system.converged else "bold")
        table.add_row(*map(Text, (*cells, _cell(system.metrics.get("quadratic_form")))), ended)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=first == "metric", overflow="fold")
    for name in others:
        words = name in ("main source of error", "converged", "ended")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return table


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return DASH
    found = arms(metric)
    return with_error(metric.value, None if found is None else max(found))


def _signed(index: int) -> str:
    return str(index).replace("-", "\N{MINUS SIGN}")
