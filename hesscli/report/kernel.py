"""The Gaussians that a density is drawn with: a matter of drawing, on which no figure of a report depends.

One width for all nodes is what the literature smooths with: a share of the range of the nodes, or a number. Beside an
outlier it hides every bulk; by itself hess draws each node as wide as its place is unknown (`curves.density`).
"""

from hesscli.report.rounding import significant
from hesscli.report.schema import Report, Spectrum

KERNEL = "density.kernel_width"  # the key of a recipe


def node_range(spectrum: Spectrum) -> float:
    """Return the distance from the smallest node to the largest, over all probes."""
    nodes = [node for row in spectrum.nodes for node in row]
    return max(nodes) - min(nodes)


def kernel_sigma(spectrum: Spectrum, width: float | str) -> float | None:
    """Return the standard deviation that `width` stands for, in the unit of eigenvalues; None for `auto`.

    A number stands for itself, `1%` for that share of the nodes' range; of a range of zero any share is None.
    """
    if width == "auto":
        return None
    if isinstance(width, str):
        return float(width.removesuffix("%")) / 100 * node_range(spectrum) or None
    return width


def with_kernel(report: Report, width: float | str) -> Report:
    """Return the report, its density to be drawn with this kernel; the same one where it has no spectrum."""
    if report.spectrum is None:
        return report
    spectrum = report.spectrum.model_copy(update={"kernel_width": kernel_sigma(report.spectrum, width)})
    return report.model_copy(update={"spectrum": spectrum})


def kernel_words(spectrum: Spectrum) -> str:
    """Return what a picture says of its kernel, empty where each node has its own width."""
    sigma = spectrum.kernel_width
    if sigma is None:
        return ""
    spread = node_range(spectrum)
    share = f", {significant(100 * sigma / spread, 2)} % of the range" if spread > 0 else ""
    return f"kernel \N{GREEK SMALL LETTER SIGMA} = {significant(sigma, 2)}{share}"
