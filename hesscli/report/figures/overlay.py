"""Several spectral densities on one axis."""

from typing import TYPE_CHECKING

import numpy as np

from hesscli.report.axis import resolution
from hesscli.report.curves import Curve, density
from hesscli.report.figures.table import Table
from hesscli.report.figures.trend import LINES, title_lines
from hesscli.report.trends.points import Point, Trend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12  # curves; more are not told apart


def drawable(trend: Trend) -> list[Point]:
    """Return the points with a density that can be trusted, in the order of the axis."""
    found = [
        p
        for p in trend.points
        if p.report is not None and p.report.spectrum is not None and p.status != "untrustworthy"
    ]
    return sorted(found, key=lambda point: (trend.series.index(trend.label(point)), trend.place(point)))[:MOST]


def figure(trend: Trend) -> "Figure":
    """Return one panel with a curve a report, each the mean over its probes, all on the coarsest of their axes."""
    import matplotlib as mpl

    from hesscli.report.figures.canvas import spectral_axis, spectral_label, titled

    points = drawable(trend)
    scale, curves = _curves(points)
    bottom = min(0.02 / p.report.spectrum.dimension for p in points if p.report and p.report.spectrum)
    sheet = titled(title_lines(trend, "mean over probes"), 9.5, 5.4)
    axes = sheet.subplots()
    axes.set_yscale("log")
    # A dark to light scale that stays in order in grey and with every common kind of colour blindness.
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(points)))
    for number, (point, curve) in enumerate(zip(points, curves, strict=True)):
        name = name_of(trend, point) + (" (not converged)" if point.status == "not_converged" else "")
        axes.plot(curve.x, np.maximum(curve.mean, bottom / 10), color=shades[number], ls=LINES[number % 4], label=name)
    seen = np.concatenate([np.arcsinh(curve.x[curve.mean > bottom] / scale) for curve in curves])
    margin = 0.03 * np.ptp(seen)
    low, high = (float(scale * np.sinh(u)) for u in (seen.min() - margin, seen.max() + margin))
    spectral_axis(axes, low, high, scale, 11)
    axes.set_ylim(bottom, max(curve.mean.max() for curve in curves) * 3)
    axes.set_title("Spectral densities")
    axes.set_xlabel(spectral_label(scale))
    axes.set_ylabel("share of eigenvalues per asinh unit")
    axes.legend(loc="best")
    return sheet


def table(trend: Trend) -> Table:
    """Return the curves, one below the other."""
    points = drawable(trend)
    _, curves = _curves(points)
    rows: list[list[float | int | str | bool | None]] = []
    for point, curve in zip(points, curves, strict=True):
        columns = zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
        rows += [[name_of(trend, point), *(float(cell) for cell in row)] for row in columns]
    return Table("overlay", ["curve", "x", "density_mean", "density_low", "density_high"], rows)


def name_of(trend: Trend, point: Point) -> str:
    """Return what tells a curve from the others."""
    return ", ".join(word for word in (str(point.values.get(trend.x, "")), trend.label(point)) if word) or trend.title


def _curves(points: list[Point]) -> tuple[float, list[Curve]]:
    reports = [point.report for point in points if point.report is not None]
    scale = max(resolution(report) for report in reports)
    return scale, [density(report.spectrum, scale) for report in reports if report.spectrum is not None]
