"""The long form of a report: one row a figure, with its error in parts and what identifies the run."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from hesscli.report.figures.stems import indexed_pairs
from hesscli.report.schema import Eigenpair, Errors, Metric, Report


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one run. What a figure does not have is None.

    `scope` says what it is of: `model`; `block`, `parameter`, `eigenpair` or `damping`, and then `item` is which. An
    eigenpair's item is its index: 1 is the largest eigenvalue, -1 the smallest.
    """

    run_id: str
    created: str
    command: str
    status: str
    verdict: str | None
    model: str
    revision: str | None
    commit: str | None
    weights_sha256: str | None
    num_selected: int
    dtype: str
    operator: str
    product: str
    dataset: str
    split: str | None
    tokens: int
    loss_terms: int
    fingerprint: str
    seed: int | None
    hess: str | None
    scope: str
    item: str | None
    metric: str
    value: float | None
    stderr: float | None
    ci_low: float | None
    ci_high: float | None
    level: float | None
    """That the interval holds with, None without an interval."""
    error_numeric: float | None
    error_probe: float | None
    error_data: float | None
    error_precision: float | None
    reason: str | None
    n: dict[str, int] = field(default_factory=dict)


COLUMNS = [column.name for column in fields(Row)]


def rows(report: Report) -> Iterator[Row]:
    """Yield the metrics of the model, then those of its parts, in the report's order."""
    identity = _identity(report)
    for scope, item, name, metric in figures(report):
        errors = metric.errors
        yield Row(
            **identity,
            scope=scope,
            item=item,
            metric=name,
            value=metric.value,
            stderr=metric.stderr,
            ci_low=metric.ci[0] if metric.ci else None,
            ci_high=metric.ci[1] if metric.ci else None,
            level=metric.level if metric.ci else None,
            error_numeric=errors.numeric,
            error_probe=errors.probe,
            error_data=errors.data,
            error_precision=errors.precision,
            reason=metric.reason,
            n=metric.n,
        )


def figures(report: Report) -> Iterator[tuple[str, str | None, str, Metric]]:
    """Yield (scope, item, name, metric) of everything in the report that is a figure with its error."""
    for name, metric in report.metrics.items():
        yield "model", None, name, metric
    for block in report.blocks:
        for name, metric in block.metrics.items():
            yield "block", block.name, name, metric
    for tensor in report.diagonal.tensors if report.diagonal else []:
        for name, metric in tensor.metrics.items():
            yield "parameter", tensor.name, name, metric
    for index, pair in indexed_pairs(report):
        yield "eigenpair", str(index), "eigenvalue", _eigenvalue(pair)
    for system in report.solve.systems if report.solve else []:
        for name, metric in system.metrics.items():
            yield "damping", f"{system.damping:g}", name, metric


def _eigenvalue(pair: Eigenpair) -> Metric:
    """Return the pair as a metric. Its bar is a bound on the algorithm, no 95 % interval, so it has no `ci`."""
    numeric = pair.residual if pair.bar is None else pair.bar
    reason = None if pair.converged else "not converged: the error is a residual, and a larger one may be missing"
    return Metric(value=pair.value, errors=Errors(numeric=numeric, data=pair.slice_error), reason=reason)


def _identity(report: Report) -> dict[str, Any]:
    model, data = report.model, report.data
    seed = report.estimator.get("seed")
    return {
        "run_id": report.run_id,
        "created": report.created,
        "command": report.command,
        "status": report.status,
        "verdict": report.verdict,
        "model": model.id,
        "revision": model.revision,
        "commit": model.commit,
        "weights_sha256": model.weights_sha256,
        "num_selected": model.num_selected,
        "dtype": model.dtype,
        "operator": report.operator.kind,
        "product": report.operator.product,
        "dataset": data.id,
        "split": data.split,
        "tokens": data.tokens,
        "loss_terms": data.loss_terms,
        "fingerprint": data.fingerprint,
        "seed": seed if isinstance(seed, int) else None,
        "hess": report.environment.get("hess"),
    }
