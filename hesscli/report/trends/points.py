"""What reports differ in: which of it is the horizontal axis of a trend, and which tells its series apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hesscli.report.kernel import KERNEL, with_kernel
from hesscli.report.schema import Metric, Report
from hesscli.report.sweep import Axis, Cell, Manifest
from hesscli.report.trends.derived import ERROR, figures_of
from hesscli.report.trends.steps import natural_order, positions

# A revision before a model before anything else: the trend of a training is what most sweeps are for.
FIRST = ("model.revision", "model.id")

# What a report's estimator says of what was asked for; the rest of it is what came of that.
ASKED = (
    *("probes", "steps", "k", "which", "tolerance", "damping", "solver", "preconditioner", "rhs", "reorthogonalise"),
    *("method", "diagonal", "krylov_dim", "basis_dtype", "basis_product", "held_out", "held_out_from", "data_error"),
    *("top", "seed"),
)

# The figures that tables and trends are about, by what a reader looks for first.
KEY_METRICS = (
    "lambda_max",
    "lambda_max_held_out",
    "lambda_min",
    "lambda_min_held_out",
    "trace",
    "frobenius_norm",
    "negative_mass",
    "effective_rank",
    "relative_error",
    "cosine",
    "off_block_fraction",
    "quadratic_form",
    "relative_residual",
    "solution_norm",
    ERROR,
)
# Keys whose sweeps are about the error of a product.
_OF_PRODUCTS = ("operator.step", "operator.product", "model.dtype")


@dataclass(frozen=True, slots=True)
class Point:
    """One report, or a cell without one, at its place."""

    values: dict[str, Any]
    report: Report | None
    status: str
    """`ok`, `not_converged` or `untrustworthy` as the report says, else `failed`, `missing` or `skipped`."""
    error: str | None = None

    def metric(self, name: str) -> Metric | None:
        """The metric if the report has one with a value that can be trusted."""
        metric = None if self.report is None else figures_of(self.report).get(name)
        return None if metric is None or metric.value is None or self.status == "untrustworthy" else metric


@dataclass(frozen=True, slots=True)
class Trend:
    """Points over one axis, in series."""

    title: str
    points: list[Point]
    axes: list[Axis]
    x: str
    """The key on the horizontal axis, empty where the points differ in nothing."""
    ticks: list[Any]
    """Its values in natural order."""
    steps: list[float | None]
    """Where each stands on a numeric axis; all None where the values are words."""
    series: list[str]
    """Their labels, one empty one where the points differ in x alone."""
    metrics: list[str] = field(default_factory=list)
    """The key metrics that at least one point has, at most six."""

    def place(self, point: Point) -> int:
        """The index of the point's tick."""
        return [_text(tick) for tick in self.ticks].index(_text(point.values.get(self.x)))

    def label(self, point: Point) -> str:
        """The series of the point."""
        return _label(point.values, [axis.key for axis in self.axes if axis.key != self.x])


def trend_of_sweep(manifest: Manifest, cells: Sequence[tuple[Cell, Report | None]]) -> Trend:
    """The trend over a sweep's cells."""
    points = []
    for cell, report in cells:
        status = cell.report_status if cell.report_status is not None and report is not None else cell.status
        if report is not None and KERNEL in cell.values:  # a matter of drawing: such cells share one report
            report = with_kernel(report, cell.values[KERNEL])
        points.append(Point(cell.values, report, status, cell.error))
    return _trend(manifest.name, points, manifest.axes)


def trend_of_reports(reports: Sequence[Report]) -> Trend:
    """The trend over reports alone: model, revision, operator, data and settings, as far as they differ."""
    facts = [_facts(report) for report in reports]
    keys = [
        key for key in dict.fromkeys(k for row in facts for k in row) if len({_text(r.get(key)) for r in facts}) > 1
    ]
    points = [
        Point({key: row[key] for key in keys if key in row}, report, report.status)
        for row, report in zip(facts, reports, strict=True)
    ]
    axes = []
    for key in keys:
        distinct = list({_text(row[key]): row[key] for row in facts if key in row}.values())
        order = natural_order(distinct) if key in FIRST else range(len(distinct))
        axes.append(Axis(key=key, values=[distinct[i] for i in order]))
    models = list(dict.fromkeys(report.model.id for report in reports))
    return _trend(models[0] if len(models) == 1 else f"{len(models)} models", points, axes)


def _trend(title: str, points: list[Point], axes: list[Axis]) -> Trend:
    varied = [axis for axis in axes if len(axis.values) > 1]
    varied.sort(key=lambda axis: FIRST.index(axis.key) if axis.key in FIRST else len(FIRST))
    numeric = [axis for axis in varied if sum(step is not None for step in positions(axis.values)) > 1]
    chosen = (numeric or varied or [Axis(key="", values=[None])])[0]
    if any(chosen.key not in point.values for point in points) and chosen.key:
        chosen = Axis(key=chosen.key, values=[*chosen.values, None])
    other = [axis.key for axis in axes if axis.key != chosen.key]
    series = list(dict.fromkeys(_label(point.values, other) for point in points))
    names: Sequence[str] = KEY_METRICS
    if any(axis.key in _OF_PRODUCTS for axis in varied):
        names = (names[0], ERROR, *(name for name in names[1:] if name != ERROR))
    metrics = [name for name in names if any(point.metric(name) for point in points)]
    return Trend(title, points, axes, chosen.key, chosen.values, positions(chosen.values), series, metrics[:6])


def _facts(report: Report) -> dict[str, Any]:
    """What a report says of its own settings, by the dotted paths of a recipe."""
    facts: dict[str, Any] = {
        "probe": report.command,
        "model.id": report.model.id,
        "model.revision": report.model.revision or report.model.commit or "main",
        "model.dtype": report.model.dtype,
        "data.id": report.data.id,
        "data.limit": report.data.sequences,
        "data.max_length": report.data.max_length,
        "operator.kind": report.operator.kind,
        "operator.product": report.operator.product,
        "operator.params": report.operator.params,
    }
    if report.operator.steps is not None and report.operator.steps[0] == report.operator.steps[1]:
        facts["operator.step"] = report.operator.steps[0]
    return facts | {f"estimator.{key}": report.estimator[key] for key in ASKED if key in report.estimator}


def _label(values: dict[str, Any], keys: Sequence[str]) -> str:
    words = []
    for key in keys:
        if key in values:
            value = values[key]
            words.append(value if isinstance(value, str) else f"{key.rpartition('.')[2]}={_text(value)}")
    return ", ".join(words)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
