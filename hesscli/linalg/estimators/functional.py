"""Figures that follow from quadratures at no further product: effective dimension and the tail's exponent."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

from hesscli.linalg.statistics import LEVEL, Estimate, trace_estimate
from hesscli.linalg.tridiagonal import gauss_radau, ritz_decomposition

FEWEST_OUTLIERS = 6  # below it the tail's interval spans a factor of five


@dataclass(frozen=True, slots=True)
class EffectiveDimension:
    """tr H (H + damping)^-1 with an interval over probes of the bracket of each."""

    damping: float
    value: float
    bracket: tuple[float, float]
    """Means over probes of what each of them certainly lies between."""
    ci: tuple[float, float] | None
    stderr: float | None
    count: int


def effective_dimension(
    matrices: list[tuple[np.ndarray, np.ndarray]],
    known: np.ndarray,
    *,
    damping: float,
    below: float,
    dimension: int,
) -> EffectiveDimension:
    """The effective dimension of a positive semi-definite matrix from (alphas, betas) of each probe's T.

    x / (x + damping) has derivatives of alternating sign, so for each probe Gauss quadrature is an upper bound and
    Gauss-Radau with a node at -`below`, under the spectrum, a lower one (Golub and Meurant 2010, section 6).
    `known` are eigenvalues that were deflated and count exactly; the probes sample the other `dimension`.
    """

    def share(x: np.ndarray) -> np.ndarray:
        return x / (x + damping)

    exact = float(share(known).sum())
    if not matrices or dimension < 1:
        return EffectiveDimension(damping, exact, (exact, exact), (exact, exact), 0.0, 0)
    lows, highs, squares = [], [], []
    for alphas, betas in matrices:
        nodes, vectors = ritz_decomposition(alphas, betas[:-1])
        nodes, weights = np.maximum(nodes, -below), vectors[0] ** 2
        highs.append(dimension * float(weights @ share(nodes)))
        squares.append(dimension * float(weights @ share(nodes) ** 2))
        if betas[-1] > 0:
            nodes, weights = gauss_radau(alphas, betas, -below)
            nodes = np.maximum(nodes, -below)
        lows.append(dimension * float(weights @ share(nodes)))
    ends = [
        trace_estimate(0.0, np.array(forms), np.array(squares), dimension=dimension, share=1.0, inflation=1.0)
        for forms in (lows, highs)
    ]
    low, high = (exact + end.value for end in ends)
    ci = None
    if ends[0].ci is not None and ends[1].ci is not None:
        ci = (exact + max(0.0, ends[0].ci[0]), exact + min(float(dimension), ends[1].ci[1]))
    return EffectiveDimension(damping, (low + high) / 2, (low, high), ci, ends[1].stderr, len(matrices))


def tail_exponent(outliers: np.ndarray) -> Estimate | None:
    """The a in lambda_i ~ i^-a by Hill's estimator on the largest eigenvalues (count,).

    None of them may be missing. With the smallest as the threshold t, the mean of log(lambda_i / t) over the k others
    estimates a (Hill 1975). For a Pareto tail it is a times a Gamma(k, 1/k) variable, which gives the interval; for
    values that lie on the power law exactly it is 9 to 16 % low at 20 to 6 of them, well inside. What lies beyond a
    gap that no power law has, as the bulk does, is left out. None for fewer than seven.
    """
    sizes = np.sort(np.asarray(outliers, dtype=np.float64))[::-1]
    sizes = _before_a_break(sizes[sizes > 0])
    k = len(sizes) - 1
    if k < FEWEST_OUTLIERS:
        return None
    value = float(np.log(sizes[:-1] / sizes[-1]).mean())
    low, high = (k * value / float(gammaincinv(k, p)) for p in (0.5 + LEVEL / 2, 0.5 - LEVEL / 2))
    return Estimate(value, value / float(np.sqrt(k)), (low, high), k)


def _before_a_break(sizes: np.ndarray) -> np.ndarray:
    """The falling sizes up to the first gap that is too wide for the tail so far.

    Under a Pareto tail i log(lambda_i / lambda_{i+1}) are independent exponential variables of one mean (Renyi
    1953), so that one of them exceeds c times the mean of i others with a chance of (1 + c / i)^-i. A tail without
    a break is cut one time in a hundred.
    """
    if len(sizes) <= FEWEST_OUTLIERS:
        return sizes
    spacings = np.arange(1, len(sizes)) * np.log(sizes[:-1] / sizes[1:])
    for i in range(FEWEST_OUTLIERS, len(spacings)):
        if spacings[i] > spacings[:i].sum() * ((100 * len(spacings)) ** (1 / i) - 1):
            return sizes[: i + 1]
    return sizes
