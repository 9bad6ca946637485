"""Curves of a spectrum, from the quadrature nodes and weights of each probe.

The density is a sum of Gaussians in u = asinh(lambda / l0): a fixed width on the linear axis would be the
size of the range over the number of steps, and hide every bulk. It is taken where a kernel's width is asked for.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesscli.report.schema import Band, Spectrum

Floats = npt.NDArray[np.float64]

# A Ritz value is drawn as one eigenvalue where its residual is below this share of it, and of its distance
# to the next one: at the edge of a bulk residuals are small too, but so are the distances.
SHARP, ALONE = 1e-2, 1e-2
# Two Ritz values of different probes closer than this share of their size are the same eigenvalue.
SAME = 1e-3
# Narrowest kernel, as a share of the axis: two pixels of a printed panel.
NARROWEST = 1 / 200
# Of a kernel of one width: it is drawn this many standard deviations to each side, where 1e-14 of its height is left,
# at half of one from point to point.
REACH = 8.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A function of lambda with what it was over the probes: their mean, the lowest and the highest."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Outlier:
    """One eigenvalue that the probes agree on."""

    value: float
    bar: float
    """Largest residual of its Ritz values: an eigenvalue lies within it of each of them."""
    weight: float
    """Mean quadrature weight; its expectation is multiplicity over dimension."""
    stderr: float | None
    probes: int


def density(spectrum: Spectrum, scale: float, points: int = 1200) -> Curve:
    """Return the share of eigenvalues per unit of u = asinh(x / scale), which integrates to 1 over u.

    A node's kernel is as wide (at half its height) as its place is unknown: the distance to the next node, or
    twice its residual where that is smaller, and never narrower than a few pixels. Where the spectrum has a
    `kernel_width`, all are Gaussians of that standard deviation on the linear axis.
    """
    if spectrum.kernel_width is not None:
        return _smoothed(spectrum, scale, spectrum.kernel_width, points)
    places = [np.arcsinh(np.asarray(row) / scale) for row in spectrum.nodes]
    low, high = min(u.min() for u in places), max(u.max() for u in places)
    narrowest = max((high - low) * NARROWEST, 0.02)
    widths = [
        _widths(np.asarray(row), np.asarray(residual), scale, narrowest)
        for row, residual in zip(spectrum.nodes, spectrum.residuals, strict=True)
    ]
    start = min((u - 5 * width).min() for u, width in zip(places, widths, strict=True))
    end = max((u + 5 * width).max() for u, width in zip(places, widths, strict=True))
    points = max(points, int(np.ceil(4 * (end - start) / narrowest)))
    grid = np.linspace(start, end, points)
    rows = []
    for u, width, weight in zip(places, widths, spectrum.weights, strict=True):
        bells = np.exp(-0.5 * ((grid[:, None] - u) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        rows.append(bells @ np.asarray(weight))
    return _over_probes(scale * np.sinh(grid), rows)


def _smoothed(spectrum: Spectrum, scale: float, sigma: float, points: int) -> Curve:
    nodes = np.concatenate([np.asarray(row) for row in spectrum.nodes])
    ends = np.arcsinh(np.array([nodes.min() - REACH * sigma, nodes.max() + REACH * sigma]) / scale)
    even = np.linspace(ends[0], ends[1], points)
    # Beside the even points those that show each Gaussian: one far from zero may fall between two of the others.
    near = (nodes[:, None] + sigma * np.linspace(-REACH, REACH, round(4 * REACH) + 1)).ravel()
    near = near[sigma < 4 * (even[1] - even[0]) * np.hypot(near, scale)]
    grid = np.unique(np.round(np.concatenate([even, np.arcsinh(near / scale)]), 12))
    x = scale * np.sinh(grid)
    rows = []
    for row, weight in _probes(spectrum):
        bells = np.exp(-0.5 * ((x[:, None] - row) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        rows.append(np.hypot(x, scale) * (bells @ weight))  # d lambda / du
    return _over_probes(x, rows)


def distribution(spectrum: Spectrum, x: Floats) -> Curve:
    """Return the share of eigenvalues at or below x."""
    return _over_probes(x, [_share(row, weight, x) for row, weight in _probes(spectrum)])


def tail(spectrum: Spectrum, x: Floats, sign: int) -> Curve:
    """Return the share of eigenvalues beyond x > 0 on one side: above x, or below -x for sign = -1."""
    return _over_probes(x, [_share(-sign * row, weight, -x, open_=True) for row, weight in _probes(spectrum)])


def share_within(band: Band, radius: float) -> tuple[float, float]:
    """Return (least, most) share of eigenvalues in [-radius, radius] that the band allows.

    Between its points the bounds of a distribution are known only to lie between their neighbours.
    """
    x, low, high = np.asarray(band.x), np.asarray(band.low), np.asarray(band.high)
    inside = np.flatnonzero(np.abs(x) <= radius)
    left, right = np.flatnonzero(x <= -radius), np.flatnonzero(x >= radius)
    least = low[inside[-1]] - high[inside[0]] if inside.size else 0.0
    above = high[right[0]] if right.size else 1.0
    below = low[left[-1]] if left.size else 0.0
    return float(np.clip(least, 0, 1)), float(np.clip(above - below, 0, 1))


def outliers(spectrum: Spectrum, scale: float) -> list[Outlier]:
    """Return, from low to high, the sharply converged eigenvalues that at least half of the probes found.

    Copies that Lanczos makes of a converged eigenvalue without reorthogonalisation count as one.
    """
    found = [
        (node, residual, weight, probe)
        for probe, rows in enumerate(zip(spectrum.nodes, spectrum.residuals, spectrum.weights, strict=True))
        for node, residual, weight, distance in zip(*rows, _distances(rows[0]), strict=True)
        if residual <= min(SHARP * abs(node), ALONE * distance) and abs(node) > scale
    ]
    groups: list[list[tuple[float, float, float, int]]] = []
    for item in sorted(found):
        last = groups[-1][-1] if groups else None
        if last and item[0] - last[0] <= item[1] + last[1] + SAME * abs(item[0]):
            groups[-1].append(item)
        else:
            groups.append([item])
    count = len(spectrum.nodes)
    merged = [_merge(group, count) for group in groups]
    return [outlier for outlier in merged if 2 * outlier.probes >= count]


def _distances(row: list[float]) -> Floats:
    """Return the distance from each node to the next one that is not a copy of it."""
    nodes = np.asarray(row)
    apart = np.abs(nodes[:, None] - nodes)
    return np.where(apart > SAME * np.abs(nodes[:, None]), apart, np.inf).min(axis=1)


def _merge(group: list[tuple[float, float, float, int]], probes: int) -> Outlier:
    values, residuals, weights, rows = (np.asarray(column) for column in zip(*group, strict=True))
    per_probe = np.bincount(rows, weights=weights, minlength=probes)
    stderr = float(per_probe.std(ddof=1) / np.sqrt(probes)) if probes > 1 else None
    return Outlier(
        value=float(np.average(values, weights=weights)) if weights.sum() > 0 else float(values.mean()),
        bar=float(max(residuals.max(), np.ptp(values) / 2)),
        weight=float(per_probe.mean()),
        stderr=stderr,
        probes=len(set(rows.tolist())),
    )


def _widths(nodes: Floats, residuals: Floats, scale: float, narrowest: float) -> Floats:
    order = np.argsort(nodes)
    gaps = np.diff(np.arcsinh(nodes[order] / scale), prepend=-np.inf, append=np.inf)
    spacing = np.empty(len(nodes))
    # The nearer neighbour: the edge of a bulk is not smeared over the gap to the first outlier.
    spacing[order] = np.minimum(gaps[:-1], gaps[1:])
    reach = np.arcsinh((nodes + residuals) / scale) - np.arcsinh((nodes - residuals) / scale)
    return np.maximum(np.minimum(spacing, reach) / 2, narrowest)


def _probes(spectrum: Spectrum) -> list[tuple[Floats, Floats]]:
    pairs = zip(spectrum.nodes, spectrum.weights, strict=True)
    return [(np.asarray(row), np.asarray(weight)) for row, weight in pairs]


def _share(nodes: Floats, weights: Floats, x: Floats, *, open_: bool = False) -> Floats:
    order = np.argsort(nodes)
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    return total[np.searchsorted(nodes[order], x, side="left" if open_ else "right")]


def _over_probes(x: Floats, rows: list[Floats]) -> Curve:
    table = np.asarray(rows)
    return Curve(x, table.mean(axis=0), table.min(axis=0), table.max(axis=0))
