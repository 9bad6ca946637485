"""The density in a few rows of a terminal: asinh axis, logarithmic height."""

import numpy as np

from hesscli.report.axis import resolution
from hesscli.report.curves import density
from hesscli.report.rounding import significant
from hesscli.report.schema import Report

BARS = " ▁▂▃▄▅▆▇█"
ROWS = 4
WIDEST = 96


def sketch(report: Report, width: int) -> list[str]:
    """Return the lines of the sketch, none wider than `width`; no lines for a report without a spectrum.

    A column is as high as the logarithm of its share of the eigenvalues; the lowest visible share is a
    fifth of one eigenvalue.
    """
    if report.spectrum is None or width < 24:
        return []
    width = min(width, WIDEST)
    scale = resolution(report)
    curve = density(report.spectrum, scale)
    u = np.arcsinh(curve.x / scale)
    floor = 0.2 / report.spectrum.dimension
    nodes = [node for row in report.spectrum.nodes for node in row]
    # The labels of the ends are Ritz values, so what a kernel puts beyond them counts in the last column.
    edges = np.linspace(np.arcsinh(min(nodes) / scale), np.arcsinh(max(nodes) / scale), width + 1)
    if edges[0] == edges[-1]:
        edges = np.linspace(edges[0] - 1, edges[0] + 1, width + 1)
    shares, _ = np.histogram(np.clip(u, edges[0], edges[-1]), bins=edges, weights=curve.mean * np.gradient(u))
    heights = _heights(shares, floor)
    lines = ["".join(BARS[level] for level in np.clip(heights - 8 * row, 0, 8)) for row in reversed(range(ROWS))]
    ends = (float(scale * np.sinh(edges[0])), float(scale * np.sinh(edges[-1])))
    zero = int((0 - edges[0]) / (edges[-1] - edges[0]) * width)
    return [line.rstrip() for line in lines] + _axis(width, ends, zero)


def _heights(shares: np.ndarray, floor: float) -> np.ndarray:
    """Return eighths of a row: none at or below the floor, all of them for the largest share."""
    top = max(float(shares.max()), 10 * floor)
    logs = np.log(np.maximum(shares, floor) / floor) / np.log(top / floor)
    return np.ceil(logs * 8 * ROWS - 1e-9).astype(int)


def _axis(width: int, ends: tuple[float, float], zero: int) -> list[str]:
    """Return the rule with a mark at zero, and the labels of both ends and of zero where there is room."""
    left, right = significant(ends[0], 2), significant(ends[1], 2)
    rule, labels = ["─"] * width, [" "] * width
    labels[: len(left)] = left
    labels[width - len(right) :] = right
    if 0 <= zero < width:
        rule[zero] = "┴"
        if len(left) < zero < width - len(right) - 1:
            labels[zero] = "0"
    return ["".join(rule), "".join(labels)]
