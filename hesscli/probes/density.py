"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017), with bounds.

The figures that are moments (trace, Frobenius norm) are exact per probe and have Monte Carlo error alone. A
share of the spectrum below a point is bounded by Chebyshev, Markov and Stieltjes from the same T; an interval
over probes alone would cover a third of the time.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.lanczos import LanczosState, Ritz
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.statistics import Estimate, mean_estimate
from hesscli.linalg.tridiagonal import stieltjes_bounds

V = TypeVar("V")


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
    band: DistributionBand
    trace: Estimate
    squared_frobenius: Estimate
    negative_mass: Estimate
    """The quadrature's own estimate of the share of eigenvalues below zero; `band` bounds it."""
    negative_mass_bounds: tuple[float, float]
    dimension: int
    num_steps: int


def density(
    operator: LinearOperator[V],
    *,
    probes: int,
    steps: int,
    reorthogonalise: bool,
    noise: float,
    seed: int,
    on_event: OnEvent,
) -> Density:
    """Nodes and weights of `probes` Lanczos runs of `steps` products each, in lockstep.

    Holds 3 vectors per probe, and `steps` more where the basis is kept (reorthogonalise). `noise` is the
    product's relative error; the band is widened by twice what it does to an eigenvalue.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    steps = min(steps, space.dimension)
    states = [
        LanczosState.start(space, space.random("rademacher", seed=seed, index=i), reorthogonalise=reorthogonalise)
        for i in range(probes)
    ]
    on_event(Started("density", probes * steps))
    done = 0
    for _ in range(steps):
        live = [s for s in states if not s.exhausted]
        for state, product in zip(live, operator.matvecs([s.current for s in live]), strict=True):
            state.absorb(product)
        done += len(live)
        on_event(Advanced("density", done, f"lambda_max {max(s.ritz().values[-1] for s in live):.4g}" if live else ""))
    on_event(Finished("density"))
    n = space.dimension
    quadratures = tuple(s.ritz() for s in states)
    smear = 2 * noise * max(float(np.abs(q.values).max()) for q in quadratures)
    return Density(
        quadratures=quadratures,
        band=distribution_band(states, band_points(quadratures), dimension=n, smear=smear),
        trace=mean_estimate(np.array([n * (q.weights @ q.values) for q in quadratures])),
        squared_frobenius=mean_estimate(np.array([n * (q.weights @ q.values**2) for q in quadratures])),
        negative_mass=mean_estimate(np.array([q.weights[q.values < 0].sum() for q in quadratures])),
        negative_mass_bounds=_bounds_at_zero(states, n, smear),
        dimension=n,
        num_steps=max(s.num_matvecs for s in states),
    )


def band_points(quadratures: tuple[Ritz, ...]) -> np.ndarray:
    """Points for the band, (at most 161,): dense near zero, evenly spaced in asinh, from end to end."""
    nodes = np.concatenate([q.values for q in quadratures])
    weights = np.concatenate([q.weights for q in quadratures]) / len(quadratures)
    order = np.argsort(np.abs(nodes))
    inner = np.abs(nodes[order])[np.searchsorted(np.cumsum(weights[order]), 0.5)]
    scale = max(float(inner), 1e-6 * float(np.abs(nodes).max()), 1e-300)
    ends = np.arcsinh(1.02 * np.array([nodes.min(), nodes.max()]) / scale)
    return np.unique(np.append(scale * np.sinh(np.linspace(ends[0], ends[1], 160)), 0.0))


def distribution_band(
    states: list[LanczosState[V]], x: np.ndarray, *, dimension: int, smear: float
) -> DistributionBand:
    """Bounds on the distribution function at x, averaged over probes and widened by two standard errors.

    Chen, Trogdon and Ubaru 2021: a probe on the sphere has variance 2F(1 - F) / (n + 2) about the truth.
    """
    low = np.mean([[_bounds(s, point - smear)[0] for point in x] for s in states], axis=0)
    high = np.mean([[_bounds(s, point + smear)[1] for point in x] for s in states], axis=0)
    middle = np.clip((low + high) / 2, 0, 1)
    variance = np.maximum(2 * middle * (1 - middle), 2 / dimension) / ((dimension + 2) * len(states))
    sampling = 2 * np.sqrt(variance)
    # A distribution function rises: a bound at one point is a bound at every later (or earlier) one.
    low = np.maximum.accumulate(np.clip(low - sampling, 0, 1))
    high = np.minimum.accumulate(np.clip(high + sampling, 0, 1)[::-1])[::-1]
    return DistributionBand(x, low, high)


def _bounds(state: LanczosState[V], x: float) -> tuple[float, float]:
    return stieltjes_bounds(np.array(state.alphas), np.array(state.betas), x)


def _bounds_at_zero(states: list[LanczosState[V]], dimension: int, smear: float) -> tuple[float, float]:
    band = distribution_band(states, np.array([0.0]), dimension=dimension, smear=smear)
    return float(band.low[0]), float(band.high[0])
