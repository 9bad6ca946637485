"""Intervals and the parts of an error, as they are read from a metric."""

from hesscli.report.rounding import MINUS, apart, arm, significant, with_error
from hesscli.report.schema import Errors, Metric
from hesscli.report.words import thousands

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


def value_and_error(metric: Metric) -> tuple[str, str]:
    """Return a value and `± half`, or its two arms where they differ by more than a fifth; no error, an empty one.

    The value is rounded where its longer arm has its second digit, but never below three digits of its own: beside an
    arm of thousands on one side 49 would be 0, and the short arm would hang on nothing.
    """
    assert metric.value is not None
    found = arms(metric)
    if found is None:
        return significant(metric.value, 3), ""
    below, above = found
    if max(found) == 0:
        return thousands(int(metric.value)) if metric.value.is_integer() else significant(metric.value, 6), ""
    value, error = apart(metric.value, max(found))
    if abs(above - below) <= 0.2 * max(found):
        return value, f"± {error}"
    texts = (value, significant(metric.value, 3))
    nearest = min(texts, key=lambda text: abs(float(text.replace(MINUS, "-")) - (metric.value or 0.0)))
    return nearest, f"+{arm(above)} {MINUS}{arm(below)}"


def figure(metric: Metric) -> str:
    """Return the same in one text, `1.23 ± 0.12`; a large or small value shares its power of ten with its error."""
    assert metric.value is not None
    value, error = value_and_error(metric)
    if metric.ci is not None and not error.startswith("±"):
        return f"{value} {error or '± 0'}"
    return with_error(metric.value, halfwidth(metric))


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
