"""What studies are about and no metric of a report is: an eigenvector on other data, and the error of differences."""

from collections.abc import Callable

from hesscli.report.schema import Eigenpair, Metric, Report

ERROR = "product_error"
# Names whose figure is an estimate itself, and has no interval of its own.
ESTIMATES = (ERROR,)
_HELD_OUT: dict[str, tuple[str, Callable[[Eigenpair], float]]] = {
    "lambda_max_held_out": ("lambda_max", lambda pair: pair.value),
    "lambda_min_held_out": ("lambda_min", lambda pair: -pair.value),
}


def figures_of(report: Report) -> dict[str, Metric]:
    """Return the metrics of the report, and by further names what else it tells.

    `lambda_max_held_out`, `lambda_min_held_out`: the Rayleigh quotient of the end's eigenvector on the held-out
    sequences, with 1.96 standard errors, as its table has it. `product_error`: the largest estimated error of a product
    by differences, over the product's length.
    """
    found = dict(report.metrics)
    for name, (end, height) in _HELD_OUT.items():
        pairs = [pair for pair in report.eigenpairs if pair.held_out is not None]
        if pairs and end in report.metrics and report.metrics[end].value is not None:
            found[name] = _held_out(max(pairs, key=height))
    if report.operator.error_estimate is not None:
        found[ERROR] = Metric(value=report.operator.error_estimate, reason="it is an estimate, within a factor of 3")
    return found


def _held_out(pair: Eigenpair) -> Metric:
    value, stderr = pair.held_out, pair.held_out_error
    assert value is not None
    if stderr is None:
        return Metric(value=value, reason="too few sequences were held out")
    return Metric(value=value, stderr=stderr, ci=(value - 1.96 * stderr, value + 1.96 * stderr))
