"""The axis of a spectrum: u = asinh(lambda / l0), linear below l0 and logarithmic above, with both signs.

A trained network has a bulk of width 1e-3 beside an outlier at 500; on a linear axis the bulk is one pixel.
"""

import numpy as np

from hesscli.report.schema import Report, Spectrum

# Nothing below float32's rounding of the largest eigenvalue is told apart from zero.
FLOOR = {"float64": 1e-12, "float32": 1.2e-7}


def resolution(report: Report) -> float:
    """Return l0, the smallest scale that the spectrum of the report resolves.

    Half the distance between the two nodes next to zero, one on each side (where there is one sign only: the
    smallest node, or half its distance to the second, whichever is larger), the median over probes. Nodes
    below the noise floor are zero for this purpose: the floor is the largest relative error that the
    preflight found, or the rounding of the dtype, times the largest node.
    """
    if report.spectrum is None:
        return 1.0
    floor = max(FLOOR.get(report.model.dtype, FLOOR["float32"]), _noise(report))
    return gap_at_zero(report.spectrum, floor)


def gap_at_zero(spectrum: Spectrum, floor: float) -> float:
    """Return the scale that nodes resolve around zero; `floor` is relative to the largest node."""
    largest = max((abs(node) for row in spectrum.nodes for node in row), default=0.0)
    if largest == 0:
        return 1.0
    gaps = []
    for row in spectrum.nodes:
        nodes = np.asarray(row)
        above, below = nodes[nodes > floor * largest], -nodes[nodes < -floor * largest]
        if above.size and below.size:
            gaps.append((above.min() + below.min()) / 2)
        elif above.size or below.size:
            side = np.sort(above if above.size else below)
            gaps.append(max(side[0], np.diff(side[:2], append=side[0])[0] / 2))
    return float(np.median(gaps)) if gaps else floor * largest


def decades(low: float, high: float, scale: float, count: int = 9) -> tuple[list[float], list[float]]:
    """Return (labelled, other) ticks for an asinh axis: zero and signed powers of ten, at most about `count`."""
    span = np.arcsinh(high / scale) - np.arcsinh(low / scale)
    every = max(1, int(np.ceil(span / np.log(10) / max(count - 1, 1))))
    largest = max(abs(low), abs(high), scale)
    top = int(np.floor(np.log10(largest) + 1e-9))
    # Zero keeps its distance: no label closer to it than half the distance between two labels.
    bottom = int(np.ceil(np.log10(scale * np.sinh(max(1.5, 0.6 * every * np.log(10))))))
    bottom = min(bottom, top)
    labelled = {0.0} if low <= 0 <= high else set()
    other: set[float] = set()
    for power in range(int(np.floor(np.log10(scale))), top + 1):
        chosen = power >= bottom and (top - power) % every == 0
        for tick in (10.0**power, -(10.0**power)):
            if low <= tick <= high and abs(tick) >= 2 * scale:
                (labelled if chosen else other).add(tick)
    return sorted(labelled), sorted(other)


def _noise(report: Report) -> float:
    preflight = report.operator.preflight
    found = [preflight.symmetry, preflight.repeat, preflight.linearity, preflight.known_answer, preflight.rounding]
    found.append(preflight.rounding_at_ends)
    # A product that failed its preflight would hide the whole axis; its report says so in words.
    return min(max((abs(error) for error in found if error is not None), default=0.0), 1e-3)
