"""The tables of a run's page: each figure with its interval, the parts of its error, and what it is."""

from hesscli.report.figures.stems import indexed_pairs
from hesscli.report.glossary import meaning
from hesscli.report.interval import SOURCES, known_parts, main_source, value_and_error
from hesscli.report.page.parts import Card, Cell, Column, Table
from hesscli.report.rounding import MINUS, significant, with_error
from hesscli.report.schema import Block, Metric, Report, Solve
from hesscli.report.words import DASH, thousands

# The figures in large letters, by what was asked for.
_CARDS = {
    "density": ("lambda_max", "lambda_min", "trace", "negative_mass"),
    "topk": ("lambda_max", "lambda_min", "spectral_radius", "max_stable_learning_rate"),
    "trace": ("trace", "mean_eigenvalue", "frobenius_norm"),
    "blockdiag": ("relative_error", "cosine", "off_block_fraction", "top_curvature_inside"),
    "solve": ("quadratic_form", "relative_residual", "solution_norm"),
}
_PARTS = {
    "numeric": "how far the algorithm is from its limit",
    "probe": "one standard error over random probes",
    "data": "one standard error over batches of the slice",
    "precision": "what the noise of the product does to it",
}


def cards(report: Report) -> list[Card]:
    """Return the main figures of the command that have a value."""
    found = [(name, report.metrics[name]) for name in _CARDS[report.command] if name in report.metrics]
    return [_card(name, metric) for name, metric in found if metric.value is not None]


def metric_table(report: Report) -> Table:
    """Return a row per metric of the model."""
    columns = [Column("metric"), Column("value and interval", numeric=True)]
    columns += [Column(SOURCES[name], numeric=True, title=f"{name}: {text}") for name, text in _PARTS.items()]
    columns += [Column("remark")]
    rows = [_metric_row(name, metric) for name, metric in report.metrics.items()]
    return Table(
        "Metrics. The parts of an error stand apart; the largest is bold, a dash was not measured.", columns, rows
    )


def pair_table(report: Report) -> Table:
    """Return the eigenpairs from high to low."""
    columns = [Column("index", numeric=True), Column("eigenvalue", numeric=True)]
    columns += [Column("residual", numeric=True, title="||Hy - value y|| of the unit vector y")]
    columns += [Column("slice error", numeric=True, title="one standard error over the rows of the slice")]
    columns += [Column("held out", numeric=True, title="Rayleigh quotient on other sequences"), Column("converged")]
    rows = []
    for index, pair in indexed_pairs(report):
        value = with_error(pair.value, pair.residual if pair.bar is None else pair.bar)
        two = None if pair.held_out_error is None else 1.96 * pair.held_out_error
        rows.append(
            [
                Cell(str(index).replace("-", MINUS), index),
                Cell(value, pair.value, look="" if pair.converged else "faint"),
                Cell(f"{pair.residual:.1e}", pair.residual),
                Cell(DASH if pair.slice_error is None else significant(pair.slice_error, 2), _order(pair.slice_error)),
                Cell(DASH if pair.held_out is None else with_error(pair.held_out, two), _order(pair.held_out)),
                Cell("yes") if pair.converged else Cell("no", look="bad"),
            ]
        )
    return Table("Eigenpairs: an eigenvalue lies within the bar of each value.", columns, rows)


def block_table(blocks: list[Block], caption: str) -> Table:
    """Return a row per block, a column per figure that any of them has."""
    names = list(dict.fromkeys(name for block in blocks for name in block.metrics))
    columns = [Column("block"), Column("parameters", numeric=True)]
    columns += [Column(name.replace("_", " "), numeric=True, title=meaning(name)) for name in names]
    rows = [
        [
            Cell(block.name),
            Cell(thousands(block.num_parameters), block.num_parameters),
            *[figure_cell(block.metrics.get(name)) for name in names],
        ]
        for block in blocks
    ]
    return Table(caption, columns, rows)


def system_table(solve: Solve) -> Table:
    """Return a row per damping."""
    names = list(dict.fromkeys(name for system in solve.systems for name in system.metrics))
    columns = [Column("damping", numeric=True), Column("true residual", numeric=True), Column("ended")]
    columns += [Column(name.replace("_", " "), numeric=True, title=meaning(name)) for name in names]
    rows = [
        [
            Cell(f"{system.damping:g}", system.damping),
            Cell(f"{system.true_residuals[-1][1]:.1e}", system.true_residuals[-1][1]),
            Cell(system.ending.replace("_", " "), look="good" if system.converged else "bad"),
            *[figure_cell(system.metrics.get(name)) for name in names],
        ]
        for system in solve.systems
    ]
    return Table("Systems, one for each damping.", columns, rows)


def figure_cell(metric: Metric | None) -> Cell:
    """Return value and error in one cell; what has no value says why."""
    if metric is None:
        return Cell(DASH, "")
    if metric.value is None:
        return Cell(DASH, "", note=metric.reason or "")
    bare = metric.ci is None and metric.reason
    return Cell(_value(metric), metric.value, note=metric.reason or "" if bare else "")


def _metric_row(name: str, metric: Metric) -> list[Cell]:
    known, main = known_parts(metric.errors), main_source(metric.errors)
    parts = []
    for part in _PARTS:
        largest = main is not None and main[0] == SOURCES[part] and known[part] > 0
        text = DASH if part not in known else significant(known[part], 2)
        parts.append(Cell(text, _order(known.get(part)), look="main" if largest else "faint"))
    over = ", ".join(f"{count} {what if count != 1 else what.removesuffix('s')}" for what, count in metric.n.items())
    value = Cell(DASH, "") if metric.value is None else Cell(_value(metric), metric.value, note=_interval(metric))
    return [Cell(name, note=meaning(name)), value, *parts, Cell(_remark(metric, main, over), look="words faint")]


def _remark(metric: Metric, main: tuple[str, float] | None, over: str) -> str:
    said = metric.reason or ""
    if not said and main is not None and main[0] == "data":
        said = "the interval is for this slice: the error of the data is not in it"
    return "; ".join(filter(None, [over, said]))


def _card(name: str, metric: Metric) -> Card:
    value, error = value_and_error(metric)
    note = meaning(name) if metric.ci is not None else f"{meaning(name)}; {metric.reason or 'no interval'}"
    return Card(name, value, error, note)


def _value(metric: Metric) -> str:
    value, error = value_and_error(metric)
    return f"{value} {error}" if error else value


def _interval(metric: Metric) -> str:
    if metric.ci is None:
        return "no interval"
    low, high = metric.ci
    if low == high:
        return "exact"
    # Enough digits to tell the ends apart.
    span = max(abs(low), abs(high)) / (high - low)
    digits = min(3 + max(0, len(str(int(span))) - 1), 9)
    return f"{100 * metric.level:g} %: {significant(low, digits)} to {significant(high, digits)}"


def _order(value: float | None) -> float | str:
    return "" if value is None else value
