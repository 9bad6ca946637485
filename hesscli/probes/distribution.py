"""Bounds on the cumulative distribution of eigenvalues, and what they leave open around zero."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.linalg.estimators.hutchinson import UNIFORM
from hesscli.linalg.krylov.deflation import Outliers
from hesscli.linalg.krylov.lanczos import LanczosState, Ritz
from hesscli.linalg.statistics import LEVEL, share_end
from hesscli.linalg.tridiagonal import stieltjes_bounds

V = TypeVar("V")

_ROUNDING = 1e-12  # of weights that sum to 1: a share of all is to be seen as all


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
    """Bounds on the distribution function at x, averaged over probes and widened by their sampling error.

    The weight that probes on the sphere give to a share F of the n eigenvalues has a beta distribution, of mean F and
    variance 2F(1 - F) / (n + 2) for each (Chen, Trogdon and Ubaru 2021); here on the part of the space that was not
    deflated. Each end is the share that makes what was seen as unlikely as one in forty (Clopper and Pearson 1934).
    """
    n, k = dimension, len(outliers.values)
    # A pair that was deflated may stand anywhere within its residual r, and moves what is left by r^2 / gap or r.
    slips = outliers.residual_norms
    gaps = np.maximum(np.abs(x[:, None] - outliers.values[None, :]), 2 * slips)
    smears = smear + np.max(2 * slips**2 / np.maximum(gaps, 1e-300), axis=1, initial=0.0)
    below = (outliers.values[None, :] + slips + smear < x[:, None]).sum(axis=1)
    perhaps = (outliers.values[None, :] - slips - smear <= x[:, None]).sum(axis=1)
    if not states:
        return DistributionBand(x, below / n, perhaps / n)
    lows = [[_bounds(s, point)[0] for point in x - smears] for s in states]
    highs = [[_bounds(s, point)[1] for point in x + smears] for s in states]
    low, high = np.mean(lows, axis=0), np.mean(highs, axis=0)
    weight, tail = float((n - k) * len(states)), (1 - LEVEL) / 2
    ends = (
        share_end(low - _ROUNDING, weight=weight, chance=1 - tail),
        share_end(high + _ROUNDING, weight=weight, chance=tail),
    )
    if n - k < UNIFORM:  # signs in few dimensions have few directions, and may miss an eigenvector altogether
        middle = np.clip((low + high) / 2, 0, 1)
        slack = 2 * np.sqrt(np.maximum(2 * middle * (1 - middle), 2 / (n - k)) / ((n - k + 2) * len(states)))
        ends = np.minimum(ends[0], np.maximum(low - slack, 0)), np.maximum(ends[1], np.minimum(high + slack, 1))
    # A distribution function rises: a bound at one point is a bound at every later (or earlier) one.
    low = np.maximum.accumulate(ends[0])
    high = np.minimum.accumulate(ends[1][::-1])[::-1]
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
