"""Intervals and the parts of an error, as they are read from a metric."""

from hesscli.report.schema import Errors, Metric

SOURCES = {
    "numeric": "algorithm",
    "probe": "probes",
    "data": "data",
    "precision": "precision",
}


def arms(metric: Metric) -> tuple[float, float] | None:
    """Return how far the interval reaches below and above the value; None where there is no interval."""
    if metric.value is None or metric.ci is None:
        return None
    return max(metric.value - metric.ci[0], 0.0), max(metric.ci[1] - metric.value, 0.0)


def halfwidth(metric: Metric) -> float | None:
    """Return the longer arm of the interval; None where there is no interval."""
    found = arms(metric)
    return None if found is None else max(found)


def main_source(errors: Errors) -> tuple[str, float] | None:
    """Return the largest part of the error and its size; None where no part was measured."""
    parts = known_parts(errors)
    if not parts:
        return None
    name = max(parts, key=lambda part: parts[part])
    return SOURCES[name], parts[name]


def known_parts(errors: Errors) -> dict[str, float]:
    """Return the parts of the error that this run measured."""
    return {name: abs(size) for name in SOURCES if (size := getattr(errors, name)) is not None}
