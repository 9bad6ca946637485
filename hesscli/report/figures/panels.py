"""The panels of a density figure, one function each."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hesscli.report.curves import Curve, Outlier, distribution, share_within, tail
from hesscli.report.figures.canvas import BLACK, BLUE, GREEN, GREY, SKY, VERMILION, power_of_ten, spectral_label
from hesscli.report.kernel import kernel_words
from hesscli.report.rounding import significant
from hesscli.report.schema import Spectrum
from hesscli.report.words import percent, plural

# Values are written beside the outliers of the first rank, and of the next two while ranks stand apart.
ROOMY = 12


def draw_density(axes: Axes, curve: Curve, peaks: list[Outlier], spectrum: Spectrum, scale: float) -> float:
    """Draw the density with its band and the outliers as a rug; return the bottom of the panel."""
    # The peak of a single eigenvalue stands about two decades above the bottom.
    bottom = float(max(0.02 / spectrum.dimension, curve.mean.max() * 1e-12))
    count = len(spectrum.nodes)
    axes.set_yscale("log")
    low, mean, high = (np.maximum(y, bottom / 10) for y in (curve.low, curve.mean, curve.high))
    if count > 1:
        label = f"lowest to highest of {plural(count, 'probe')}"
        axes.fill_between(curve.x, low, high, color=SKY, alpha=0.45, lw=0, label=label)
    axes.plot(curve.x, mean, color=BLUE, label="mean over probes" if count > 1 else "one probe: no band")
    axes.set_ylim(bottom, curve.high.max() * 3)
    if peaks:
        places = [peak.value for peak in peaks]
        transform = axes.get_xaxis_transform()
        style: dict[str, Any] = {"marker": "|", "ls": "none", "ms": 9, "mew": 1.2, "color": BLACK}
        axes.plot(places, [0.02] * len(peaks), transform=transform, label="converged Ritz values", **style)
    axes.set_title(", ".join(words for words in ("Spectral density", kernel_words(spectrum)) if words))
    axes.set_xlabel(spectral_label(scale))
    axes.set_ylabel("share of eigenvalues per asinh unit")
    axes.legend(loc="best")
    return bottom


def draw_outliers(axes: Axes, peaks: list[Outlier]) -> None:
    """Draw the sizes of the outliers by rank, both signs side by side, each with its residual bar."""
    axes.set_title("Outliers: sharply converged Ritz values")
    if not peaks:
        axes.set_axis_off()
        words = "no Ritz value is sharply converged"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color="#555555")
        return
    sizes = [abs(peak.value) for peak in peaks]
    span = max(sizes) / min(sizes)
    most = max(sum(peak.value > 0 for peak in peaks), sum(peak.value < 0 for peak in peaks))
    base = min(sizes) / (1.25 * span**0.08)
    for sign, colour, marker, line, name in ((1, VERMILION, "^", "-", "positive"), (-1, BLUE, "v", "--", "negative")):
        side = sorted((peak for peak in peaks if sign * peak.value > 0), key=lambda peak: -abs(peak.value))
        if not side:
            continue
        # The two signs stand beside each other where both have an outlier of that rank.
        ranks = [rank - 0.12 * sign for rank in range(1, len(side) + 1)]
        heights = [abs(peak.value) for peak in side]
        axes.vlines(ranks, base, heights, color=colour, lw=1.0, ls=line, alpha=0.6)
        bars = [peak.bar for peak in side]
        axes.errorbar(ranks, heights, yerr=bars, fmt=marker, color=colour, ms=5.5, label=f"{len(side)} {name}")
        for rank, peak in list(zip(ranks, side, strict=True))[: 3 if most <= ROOMY else 1]:
            place, text = (rank, abs(peak.value)), significant(peak.value, 3)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # stems of the other sign
            axes.annotate(text, place, (6, 0), textcoords="offset points", va="center", fontsize=7.5, bbox=behind)
    axes.set_yscale("log")
    axes.set_ylim(base, max(sizes) * 1.25 * span**0.08)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if span > 30 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_xlim(0.3, max(most, 5) + 0.7)
    axes.set_xlabel("rank by size, each sign by itself")
    axes.set_ylabel("|λ|, bar: residual")
    axes.legend(loc="upper right")


def draw_tails(axes: Axes, spectrum: Spectrum, scale: float) -> None:
    """Draw how much of the spectrum lies beyond each size, on log-log axes, each sign by itself."""
    largest = max(abs(node) for row in spectrum.nodes for node in row)
    x = np.geomspace(min(scale, largest) or scale, 1.5 * (largest or scale), 500)
    least = 0.2 / spectrum.dimension
    for sign, colour, line, name in (
        (1, VERMILION, "-", "share above λ"),
        (-1, BLUE, "--", "share below \N{MINUS SIGN}λ"),
    ):
        curve = tail(spectrum, x, sign)
        if curve.mean.max() == 0:
            continue
        found = curve.high > 0
        low, high = np.maximum(curve.low[found], least / 10), curve.high[found]
        axes.fill_between(x[found], low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(x[found], np.maximum(curve.mean[found], least / 10), color=colour, ls=line, label=name)
    axes.set_xscale("log")
    if largest < 30 * scale:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    axes.set_ylim(least, 1.5)
    axes.axhline(1 / spectrum.dimension, color=GREY, ls=":", lw=1.2, label="one eigenvalue")
    axes.set_title("Tails of both signs")
    axes.set_xlabel("|λ| (log axis)")
    axes.set_ylabel("share of eigenvalues beyond |λ|")
    axes.legend(loc="best")


def draw_distribution(axes: Axes, spectrum: Spectrum, scale: float, low: float, high: float) -> None:
    """Draw the cumulative distribution, what bounds it, and the zone around zero that is not resolved."""
    ends = np.arcsinh(np.array([low, high]) / scale)
    x = scale * np.sinh(np.linspace(ends[0], ends[1], 800))
    mean = distribution(spectrum, x).mean
    zone = spectrum.unresolved
    start, end = (-scale, scale) if zone is None else (zone.low, zone.high)
    axes.axvspan(start, end, color=GREY, alpha=0.15, lw=0, label=_unresolved(spectrum, scale))
    if spectrum.band is not None:
        band = spectrum.band
        # Between two of its points the distribution is above the left one's bound and below the right one's.
        left, right = np.repeat(band.low[:-1], 2), np.repeat(band.high[1:], 2)
        steps = np.repeat(band.x, 2)[1:-1]
        axes.fill_between(steps, left, right, color=GREEN, alpha=0.3, lw=0, label="bounds of the distribution")
    axes.plot(x, mean, color=GREEN, label="mean over probes" if len(spectrum.nodes) > 1 else "one probe")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Cumulative distribution")
    axes.set_xlabel(spectral_label(scale))
    axes.set_ylabel("share of eigenvalues at or below λ")
    # The curve leaves free the corner above its rise, or the one below it.
    rise = (np.arcsinh(x[np.searchsorted(mean, 0.5)] / scale) - ends[0]) / np.ptp(ends) if mean[-1] > 0.5 else 1.0
    corner: Literal["upper left", "lower right"] = "upper left" if rise > 0.42 else "lower right"
    axes.legend(loc=corner, frameon=True, edgecolor="none", framealpha=0.85)


def _unresolved(spectrum: Spectrum, scale: float) -> str:
    """Return the words for the zone where no eigenvalue is told apart, with its share where that is bounded."""
    if (zone := spectrum.unresolved) is not None:
        ends = f"{significant(zone.low, 2)} to {significant(zone.high, 2)}"
        return f"{ends} not resolved:\n{percent(zone.mass_low)} to {percent(zone.mass_high)} of all"
    words = "$|λ| < l_0$, not resolved"
    if spectrum.band is None:
        return words
    least, most = share_within(spectrum.band, scale)
    return f"{words}:\n{percent(least)} to {percent(most)} of all"
