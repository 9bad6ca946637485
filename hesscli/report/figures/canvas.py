"""What the figures share: colours, the title, the spectral axis, and files that come out the same twice."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hesscli.report.axis import decades
from hesscli.report.schema import Report
from hesscli.report.words import distrust, headline, settings

# Okabe and Ito (2008): told apart with every common kind of colour blindness, and in grey by their lightness.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#1a1a1a", "#8a8a8a"

# Inches from one line of a title to the next, per point of its size.
LEADING = 1.55 / 72

# Any: the names of settings are typed one by one, and change between versions of matplotlib.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "hess",
    "svg.fonttype": "path",
    "path.simplify": True,
}


def style() -> AbstractContextManager[None]:
    """Return the context in which figures are made and saved."""
    return mpl.rc_context(STYLE)


def sheet(report: Report, width: float, height: float) -> Figure:
    """Return an empty figure with the title that says what was measured, and in red what cannot be trusted."""
    lines = [(headline(report), 12.5, "bold", BLACK), (settings(report), 9.0, "normal", "#444444")]
    if report.status != "ok":
        lines.append((distrust(report), 9.0, "bold", VERMILION))
    return titled(lines, width, height)


def titled(lines: Sequence[tuple[str, float, str, str]], width: float, height: float) -> Figure:
    """Return an empty figure with lines of (text, size, weight, colour) above its panels."""
    used = (0.14 + sum(LEADING * size for _, size, _, _ in lines)) / height
    # The panels share the page below the title.
    engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04, rect=(0, 0, 1, 1 - used))
    figure = Figure(figsize=(width, height), layout=engine)
    y = 1 - 0.14 / height
    for text, size, weight, colour in lines:
        # A long line is set smaller rather than cut; 0.6 em is the mean width of a letter.
        fitted = min(size, 72 * (width - 0.3) / (0.6 * len(text)))
        figure.text(0.14 / width, y, text, va="top", fontsize=fitted, fontweight=weight, color=colour)
        y -= LEADING * size / height
    return figure


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[str]:
    """Write the figure in each format, without dates, and return the names of the files."""
    for ending in formats:
        metadata = {"Date": None, "Creator": "hess"} if ending == "svg" else {"Software": "hess"}
        figure.savefig(folder / f"{name}.{ending}", dpi=160, metadata=metadata)
    return [f"{name}.{ending}" for ending in formats]


def spectral_axis(axes: Axes, low: float, high: float, scale: float, count: int = 9) -> None:
    """Make the horizontal axis asinh(lambda / scale) from low to high, with zero and powers of ten as ticks."""
    axes.set_xscale("asinh", linear_width=scale)
    axes.set_xlim(low, high)
    labelled, other = decades(low, high, scale, count)
    if len(labelled) > 2:
        axes.xaxis.set_major_locator(FixedLocator(labelled))
        axes.xaxis.set_minor_locator(FixedLocator(other))
    else:
        # Nothing is far beyond l0: the axis is all but linear.
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def spectral_label(scale: float) -> str:
    """Return the label of the spectral axis, which says where it turns from linear to logarithmic."""
    return f"eigenvalue λ (asinh axis, linear below $l_0$ = {power_of_ten(float(f'{scale:.1g}'))})"


def power_of_ten(value: float) -> str:
    """Return 0, 1, 10, 100 as they are and what is larger or smaller with its power of ten, as mathtext."""
    if value == 0:
        return "0"
    if 0.1 <= abs(value) <= 100:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    mantissa, exponent = f"{abs(value):.2e}".split("e")
    sign = "-" if value < 0 else ""
    factor = "" if float(mantissa) == 1 else rf"{float(mantissa):g}\cdot "
    return f"${sign}{factor}10^{{{int(exponent)}}}$"
