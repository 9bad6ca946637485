"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017), deflated, with bounds.

One Lanczos run finds the outliers; they count exactly, 1/n each (Bhattacharjee et al. 2024, arXiv 2410.21690).
Probes then sample what is left. The moments (trace, Frobenius norm) have Monte Carlo error alone; a share of the
spectrum below a point is bounded by Chebyshev, Markov and Stieltjes from the same T: an interval over probes
would cover a third of the time.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.basis import project_out
from hesscli.linalg.deflation import START_INDEX, DeflatedOperator, Outliers, converged_outliers, goes_on
from hesscli.linalg.lanczos import LanczosState, Ritz
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space
from hesscli.linalg.statistics import Estimate, mean_estimate
from hesscli.linalg.tridiagonal import stieltjes_bounds

V = TypeVar("V")

# Residual over value of a pair that is deflated: what its deflation does to the rest is the square of this.
_DEFLATION_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class DistributionBand:
    """Where the cumulative distribution of eigenvalues lies, at points x; sampling error included."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Density:
    """Quadrature per probe and what follows from it."""

    quadratures: tuple[Ritz, ...]
    """Per probe, the deflated outliers among the nodes; weights sum to 1."""
    band: DistributionBand
    trace: Estimate
    squared_frobenius: Estimate
    negative_mass: Estimate
    """The quadrature's own estimate of the share of eigenvalues below zero; the bounds below hold it."""
    negative_mass_bounds: tuple[float, float]
    reach: float | None
    """How far beyond the outermost nodes an eigenvalue may lie, with 95 % chance; None where steps are too few."""
    smear: float
    """What noise does to an eigenvalue: nothing smaller than this can be told from noise."""
    dimension: int
    num_deflated: int
    num_steps: int


def density(
    operator: LinearOperator[V],
    *,
    probes: int,
    steps: int,
    deflate: bool,
    reorthogonalise: bool,
    noise: float,
    seed: int,
    on_event: OnEvent,
) -> Density:
    """Nodes and weights of `probes` Lanczos runs of `steps` products each, in lockstep.

    With `deflate`, one run of as many products comes first, holds its basis of `steps` vectors, and leaves one
    vector for each pair that converged. The probes hold 3 vectors each, and `steps` more where theirs is kept
    (`reorthogonalise`). `noise` is the product's relative error; the band is widened by twice what it does to
    an eigenvalue.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    steps = min(steps, space.dimension)
    on_event(Started("density", (probes + deflate) * steps))
    outliers = _outliers(operator, steps if deflate else 0, seed, on_event)
    rest = DeflatedOperator(operator, outliers.basis)
    states = []
    for i in range(probes if len(outliers.basis) < space.dimension else 0):
        start = space.random("rademacher", seed=seed, index=i)
        project_out(outliers.basis, start)
        states.append(LanczosState.start(space, start, reorthogonalise=reorthogonalise))
    done = steps if deflate else 0
    for _ in range(min(steps, space.dimension - len(outliers.basis))):
        live = [s for s in states if not s.exhausted]
        if not live:
            break
        for state, product in zip(live, rest.matvecs([s.current for s in live]), strict=True):
            state.absorb(product)
        done += len(live)
        on_event(Advanced("density", done))
    on_event(Finished("density"))
    return _gathered(states, outliers, space, noise)


def _outliers(operator: LinearOperator[V], steps: int, seed: int, on_event: OnEvent) -> Outliers[V]:
    space = operator.space
    if not steps:
        return Outliers(np.zeros(0), np.zeros(0), space.basis(), None, 0.0)
    start = space.random("gaussian", seed=seed, index=START_INDEX)
    state = LanczosState.start(space, start, reorthogonalise=True)
    while goes_on(state, steps=steps, seed=seed):
        state.expand(operator)
        on_event(Advanced("density", state.num_matvecs, f"lambda_max {state.ritz().values[-1]:.4g}"))
    return converged_outliers(state, tolerance=_DEFLATION_TOLERANCE)


def _gathered(states: list[LanczosState[V]], outliers: Outliers[V], space: Space[V], noise: float) -> Density:
    n, k = space.dimension, len(outliers.values)
    nothing = Ritz(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0)))
    quadratures = tuple(_with_outliers(s.ritz(), outliers, n) for s in states) or (
        _with_outliers(nothing, outliers, n),
    )
    # An exact product is rounded all the same: an eigenvalue that is zero may come out on either side.
    largest = max(float(np.abs(q.values).max()) for q in quadratures)
    # Noise of length eta spreads every eigenvalue over a semicircle of radius 2 eta.
    smear = 2 * max(max(noise, space.epsilon) * largest, outliers.noise)
    # A projected Rademacher vector has E |g|^2 = n - k: unnormalised, it gives traces over the rest of the space.
    rests = [(s.start_norm**2, s.ritz()) for s in states]
    exact_trace = float(outliers.values.sum())
    exact_squares = float((outliers.values**2).sum() + 2 * (outliers.residual_norms**2).sum())
    zero = distribution_band(states, outliers, np.array([0.0]), dimension=n, smear=smear)
    return Density(
        quadratures=quadratures,
        band=distribution_band(states, outliers, band_points(quadratures), dimension=n, smear=smear),
        trace=_mean(exact_trace, [size * (q.weights @ q.values) for size, q in rests]),
        squared_frobenius=_mean(exact_squares, [size * (q.weights @ q.values**2) for size, q in rests]),
        negative_mass=mean_estimate(np.array([q.weights[q.values < 0].sum() for q in quadratures])),
        negative_mass_bounds=(float(zero.low[0]), float(zero.high[0])),
        reach=_reach(states, outliers),
        smear=smear,
        dimension=n,
        num_deflated=k,
        num_steps=max((s.num_matvecs for s in states), default=0),
    )


def _reach(states: list[LanczosState[V]], outliers: Outliers[V]) -> float | None:
    """From the run over the whole space, else from the probe that says most: they are of one length."""
    known = [outliers.reach] if outliers.reach is not None or len(outliers.basis) else [s.reach() for s in states]
    return min((r for r in known if r is not None), default=None)


def _mean(known: float, draws: list[float]) -> Estimate:
    """What is known exactly plus the mean of draws; without draws it is all known."""
    return mean_estimate(known + np.array(draws)) if draws else Estimate(known, 0.0, (known, known), 0)


def _with_outliers(rest: Ritz, outliers: Outliers[V], dimension: int) -> Ritz:
    """The quadrature of the whole spectrum: the outliers with weight 1/n each, the rest with what remains."""
    k = len(outliers.values)
    values = np.concatenate([rest.values, outliers.values])
    weights = np.concatenate([rest.weights * (1 - k / dimension), np.full(k, 1 / dimension)])
    residuals = np.concatenate([rest.residual_norms, outliers.residual_norms])
    order = np.argsort(values, kind="stable")
    return Ritz(values[order], residuals[order], weights[order], rest.vectors)


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
