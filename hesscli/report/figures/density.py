"""The density of a spectrum: bulk, outliers, tails of both signs, and what is certain of the distribution."""

from typing import TYPE_CHECKING

import numpy as np

from hesscli.report.axis import resolution
from hesscli.report.curves import Curve, Outlier, density, outliers
from hesscli.report.figures.table import Table
from hesscli.report.schema import Report, Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(report: Report) -> "Figure":
    """Return four panels: the density, its outliers, its tails, its cumulative distribution."""
    from hesscli.report.figures.canvas import sheet, spectral_axis
    from hesscli.report.figures.panels import draw_density, draw_distribution, draw_outliers, draw_tails

    spectrum = _spectrum(report)
    scale = resolution(report)
    curve, peaks = density(spectrum, scale), outliers(spectrum, scale)
    sheet_ = sheet(report, 11.5, 8.0)
    panels = sheet_.subplots(2, 2)
    bottom = draw_density(panels[0, 0], curve, peaks, spectrum, scale)
    low, high = _limits(curve, peaks, bottom, scale)
    draw_outliers(panels[0, 1], peaks)
    draw_tails(panels[1, 0], spectrum, scale)
    draw_distribution(panels[1, 1], spectrum, scale, low, high)
    for axes in (panels[0, 0], panels[1, 1]):
        spectral_axis(axes, low, high, scale)
    return sheet_


def tables(report: Report) -> list[Table]:
    """Return the curve, the quadrature behind it, and the band of the distribution where there is one."""
    spectrum = _spectrum(report)
    scale = resolution(report)
    curve = density(spectrum, scale)
    columns = (curve.x, np.arcsinh(curve.x / scale), curve.mean, curve.low, curve.high)
    peaks: list[list[float | int | str | bool | None]] = [
        [peak.value, peak.bar, peak.weight, peak.stderr, peak.probes] for peak in outliers(spectrum, scale)
    ]
    found = [
        Table(
            "density",
            ["x", "asinh_x_over_l0", "density_mean", "density_low", "density_high"],
            [[float(cell) for cell in row] for row in zip(*columns, strict=True)],
        ),
        Table("density_nodes", ["probe", "node", "weight", "residual"], _quadrature(spectrum)),
        Table("density_outliers", ["value", "bar", "weight", "weight_stderr", "probes"], peaks),
    ]
    if spectrum.band is not None:
        band = spectrum.band
        rows = [list(row) for row in zip(band.x, band.low, band.high, strict=True)]
        found.append(Table("density_band", ["x", "cdf_low", "cdf_high"], [[*row] for row in rows]))
    return found


def _spectrum(report: Report) -> Spectrum:
    if report.spectrum is None:
        msg = "a density figure needs a spectrum"
        raise ValueError(msg)
    return report.spectrum


def _quadrature(spectrum: Spectrum) -> list[list[float | int | str | bool | None]]:
    return [
        [probe, *cells]
        for probe, rows in enumerate(zip(spectrum.nodes, spectrum.weights, spectrum.residuals, strict=True))
        for cells in zip(*rows, strict=True)
    ]


def _limits(curve: Curve, peaks: list[Outlier], bottom: float, scale: float) -> tuple[float, float]:
    """Return the range that holds every outlier and all density above the bottom of its panel."""
    places = np.concatenate([curve.x[curve.mean > bottom], [peak.value for peak in peaks]])
    seen = np.arcsinh(places / scale)
    margin = 0.03 * np.ptp(seen)
    return float(scale * np.sinh(seen.min() - margin)), float(scale * np.sinh(seen.max() + margin))
