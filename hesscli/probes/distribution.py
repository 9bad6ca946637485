"""Bounds on the cumulative distribution of eigenvalues, and what they leave open around zero."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.linalg.krylov.deflation import Outliers
from hesscli.linalg.krylov.lanczos import LanczosState, Ritz
from hesscli.linalg.tridiagonal import stieltjes_bounds

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class DistributionBand:
    """Where the cumulative distribution of eigenvalues lies, at points x; sampling error included."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A zone around zero where eigenvalues are not told apart, and the least and most share that lies in it."""

    low: float
    high: float
    mass_low: float
    mass_high: float


def band_points(quadratures: tuple[Ritz, ...]) -> np.ndarray:
    """Points for the band, (at most 161,): dense near zero, evenly spaced in asinh, from end to end."""
    nodes = np.concatenate([q.values for q in quadratures])
    if not nodes.any():  # the matrix is zero, and has no scale
        return np.array([-1.0, 0.0, 1.0])
    weights = np.concatenate([q.weights for q in quadratures]) / len(quadratures)
    order = np.argsort(np.abs(nodes))
    inner = np.abs(nodes[order])[np.searchsorted(np.cumsum(weights[order]), 0.5)]
    scale = max(float(inner), 1e-6 * float(np.abs(nodes).max()), 1e-300)
    ends = np.arcsinh(1.02 * np.array([nodes.min(), nodes.max()]) / scale)
    return np.unique(np.append(scale * np.sinh(np.linspace(ends[0], ends[1], 160)), 0.0))


def distribution_band(
    states: list[LanczosState[V]], outliers: Outliers[V], x: np.ndarray, *, dimension: int, smear: float
) -> DistributionBand:
    """Bounds on the distribution function at x, averaged over probes and widened by two standard errors.

    Chen, Trogdon and Ubaru 2021: a probe on the sphere has variance 2F(1 - F) / (n + 2) about the truth, here
    on the part of the space that was not deflated.
    """
    n, k = dimension, len(outliers.values)
    below = (outliers.values[None, :] + smear < x[:, None]).sum(axis=1)
    perhaps = (outliers.values[None, :] - smear <= x[:, None]).sum(axis=1)
    if not states:
        return DistributionBand(x, below / n, perhaps / n)
    lows = [[_bounds(s, point - smear)[0] for point in x] for s in states]
    highs = [[_bounds(s, point + smear)[1] for point in x] for s in states]
    low, high = np.mean(lows, axis=0), np.mean(highs, axis=0)
    middle = np.clip((low + high) / 2, 0, 1)
    variance = np.maximum(2 * middle * (1 - middle), 2 / (n - k)) / ((n - k + 2) * len(states))
    sampling = 2 * np.sqrt(variance)
    # A distribution function rises: a bound at one point is a bound at every later (or earlier) one.
    low = np.maximum.accumulate(np.clip(low - sampling, 0, 1))
    high = np.minimum.accumulate(np.clip(high + sampling, 0, 1)[::-1])[::-1]
    share = (n - k) / n
    return DistributionBand(x, low * share + below / n, high * share + perhaps / n)


def _bounds(state: LanczosState[V], x: float) -> tuple[float, float]:
    return stieltjes_bounds(np.array(state.alphas), np.array(state.betas), x)


def unresolved(band: DistributionBand, *, smear: float) -> Unresolved:
    """The zone around zero at whose ends the band first is narrower than half of everything."""
    narrow = band.high - band.low < 0.5
    left = np.flatnonzero(narrow & (band.x < -smear))
    right = np.flatnonzero(narrow & (band.x > smear))
    start = int(left[-1]) if left.size else 0
    end = int(right[0]) if right.size else len(band.x) - 1
    below = (float(band.low[start]), float(band.high[start])) if left.size else (0.0, 0.0)
    above = (float(band.low[end]), float(band.high[end])) if right.size else (1.0, 1.0)
    return Unresolved(
        float(band.x[start]), float(band.x[end]), max(0.0, above[0] - below[1]), min(1.0, above[1] - below[0])
    )
