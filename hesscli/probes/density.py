"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017), deflated, with bounds.

One Lanczos run finds the outliers; they count exactly, 1/n each (Bhattacharjee et al. 2024, arXiv 2410.21690).
Probes then sample what is left. The moments (trace, Frobenius norm) have Monte Carlo error alone; a share of the
spectrum below a point is bounded by Chebyshev, Markov and Stieltjes from the same T: an interval over probes
would cover a third of the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.estimators.functional import EffectiveDimension, effective_dimension, tail_exponent
from hesscli.linalg.estimators.hutchinson import UNIFORM
from hesscli.linalg.krylov.deflation import START_INDEX, Outliers, converged_outliers, goes_on
from hesscli.linalg.krylov.lanczos import LanczosState, Ritz
from hesscli.linalg.krylov.rayleigh_ritz import Certified, eigenvalue_bars
from hesscli.linalg.krylov.reach import spectrum_edge
from hesscli.linalg.krylov.window import WindowedLanczos
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space
from hesscli.linalg.statistics import Estimate, mean_estimate, positive_estimate, trace_estimate
from hesscli.probes.distribution import DistributionBand, Unresolved, band_points, distribution_band, unresolved

V = TypeVar("V")

# Residual over value of a pair that is deflated: what its deflation does to the rest is the square of this.
_DEFLATION_TOLERANCE = 1e-4
_DAMPING = 1e-3  # of the largest eigenvalue: what the effective dimension counts


@dataclass(frozen=True, slots=True)
class Density:
    """Quadrature per probe and what follows from it."""

    quadratures: tuple[Ritz, ...]
    """Per probe, the deflated outliers among the nodes, with bars for residuals; weights sum to 1."""
    band: DistributionBand
    unresolved: Unresolved
    trace: Estimate
    squared_frobenius: Estimate
    negative_mass: Estimate
    """The quadrature's own estimate of the share of eigenvalues below zero; the bounds below hold it."""
    negative_mass_bounds: tuple[float, float]
    reach: float | None
    """How far beyond the outermost nodes an eigenvalue may lie, with 95 % chance; None where steps are too few."""
    smear: float
    """What noise does to an eigenvalue: nothing smaller than this can be told from noise."""
    precision: float
    """The same for the outermost eigenvalues, which have products of their own where they were deflated."""
    effective_dimension: EffectiveDimension | None
    """None for a matrix that may be indefinite, and where noise is as large as the damping."""
    tail_exponent: Estimate | None
    """a in lambda_i ~ i^-a over the largest eigenvalues; None where too few stand apart."""
    nearest_to_zero: float
    """An eigenvalue is certainly no larger than this in size."""
    dimension: int
    num_deflated: int
    num_steps: int
    end_forms: dict[int, np.ndarray]
    """What the callable of that name gave at the upper (1) and the lower end (-1), (batches,) each."""


def density(
    operator: LinearOperator[V],
    *,
    probes: int,
    steps: int,
    deflate: bool,
    window: int | None,
    semi_definite: bool,
    noise: float,
    seed: int,
    on_event: OnEvent,
    quadratic_forms: Callable[[Sequence[V]], np.ndarray] | None = None,
) -> Density:
    """Nodes and weights of `probes` Lanczos runs of `steps` products each, in lockstep.

    With `deflate`, one run of as many products comes first, holds its basis of `steps` vectors, and leaves one
    vector for each pair that converged. The probes hold 3 vectors each, and `window` more: the latest that a new one
    is made orthogonal to, all of them for None and for 0 none. A matrix that is `semi_definite` has an effective
    dimension, bracketed at a damping of 1e-3 of its largest eigenvalue. `noise` is the product's relative error;
    the band is widened by twice what it does to an eigenvalue, or by what a rounded basis does if that is more; without
    a basis by twice what the errors of all steps do together.

    `quadratic_forms` maps a few vectors u to u.H_b u for each batch b, (batches, vectors); it is called on the Ritz
    vectors of both ends, where they are at hand: deflated, or in a probe's basis.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    steps = min(steps, space.dimension)
    on_event(Started("density", (probes + deflate) * steps))
    outliers = _outliers(operator, steps if deflate else 0, seed, on_event)
    states = []
    for i in range(probes if len(outliers.basis) < space.dimension else 0):
        start = space.random("rademacher", seed=seed, index=i)
        kind = WindowedLanczos if window else LanczosState
        state = kind.start(space, start, reorthogonalise=window is None, outside=outliers.basis)
        if isinstance(state, WindowedLanczos):
            state.window = window or 0
        states.append(state)
        del start  # a vector that the run has a copy of
    done = steps if deflate else 0
    for _ in range(min(steps, space.dimension - len(outliers.basis))):
        live = [s for s in states if not s.exhausted]
        if not live:
            break
        for state, product in zip(live, operator.matvecs([s.current for s in live]), strict=True):
            state.absorb(product)
        done += len(live)
        on_event(Advanced("density", done, values={"betas": [s.betas[-1] for s in live]}))
    on_event(Finished("density"))
    return _gathered(states, outliers, space, noise, semi_definite, _end_forms(states, outliers, quadratic_forms))


def _outliers(operator: LinearOperator[V], steps: int, seed: int, on_event: OnEvent) -> Outliers[V]:
    space = operator.space
    if not steps:
        return Outliers(np.zeros(0), np.zeros(0), space.basis(), None, 0.0, 0.0, 0.0)
    start = space.random("gaussian", seed=seed, index=START_INDEX)
    state = LanczosState.start(space, start, reorthogonalise=True)
    del start
    while goes_on(state, steps=steps, seed=seed):
        state.expand(operator)
        step = state.last_step(state.ritz())
        on_event(Advanced("density", state.num_matvecs, f"lambda_max {step['leading_value']:.4g}", step))
    return converged_outliers(operator, state, tolerance=_DEFLATION_TOLERANCE)


def _end_forms(
    states: list[LanczosState[V]],
    outliers: Outliers[V],
    quadratic_forms: Callable[[Sequence[V]], np.ndarray] | None,
) -> dict[int, np.ndarray]:
    """u.H_b u over batches at the outermost Ritz vectors, by end; none where the vector is not held."""
    if quadratic_forms is None:
        return {}
    found: dict[int, V] = {}
    rests = [s.ritz() for s in states]
    for sign in (1, -1):
        place = -1 if sign > 0 else 0
        ends = [sign * q.values[place] for q in rests]
        if len(outliers.values) and sign * outliers.values[place] >= max(ends, default=-np.inf):
            found[sign] = outliers.basis.vector(place % len(outliers.values))
        elif ends:
            state, ritz = states[int(np.argmax(ends))], rests[int(np.argmax(ends))]
            if state.basis is not None:
                found[sign] = state.basis.combine(ritz.vectors[:, [place]])[0]
    if not found:
        return {}
    forms = quadratic_forms(list(found.values()))
    return {sign: forms[:, i] for i, sign in enumerate(found)}


def _gathered(
    states: list[LanczosState[V]],
    outliers: Outliers[V],
    space: Space[V],
    noise: float,
    semi_definite: bool,
    end_forms: dict[int, np.ndarray],
) -> Density:
    n, k = space.dimension, len(outliers.values)
    nothing = Ritz(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0)))
    bars = _bars(states, outliers, n - k)
    quadratures = tuple(_with_outliers(s.ritz(), outliers, bars, n) for s in states) or (
        _with_outliers(nothing, outliers, bars, n),
    )
    # An exact product is rounded all the same: an eigenvalue that is zero may come out on either side.
    largest = max(float(np.abs(q.values).max()) for q in quadratures)
    # Noise of length eta spreads every eigenvalue over a semicircle of radius 2 eta.
    slip = max((s.slip for s in states), default=0.0)
    precision = 2 * max(max(noise, space.epsilon) * largest, outliers.noise)
    drift = max((_drift(s, max(noise, space.epsilon)) for s in states if s.basis is None), default=0.0)
    smear = max(precision, 2 * slip, 2 * drift) + outliers.shift
    rests = [s.ritz() for s in states]
    if not _outermost(outliers.values, rests):
        precision = smear
    exact_trace = float(outliers.values.sum())
    exact_squares = float((outliers.values**2).sum() + 2 * (outliers.residual_norms**2).sum())
    # The mean squared length of a projected vector of signs. In few dimensions its direction is not uniform, and
    # the length belongs to the draw.
    sizes = [n - k if n - k >= UNIFORM else s.start_norm**2 for s in states]
    forms = np.array([size * (q.weights @ q.values) for size, q in zip(sizes, rests, strict=True)])
    squares = np.array([size * (q.weights @ q.values**2) for size, q in zip(sizes, rests, strict=True)])
    fourths = np.array([size * (q.weights @ q.values**4) for size, q in zip(sizes, rests, strict=True)])
    zero = distribution_band(states, outliers, np.array([0.0]), dimension=n, smear=smear)
    band = distribution_band(states, outliers, band_points(quadratures), dimension=n, smear=smear)
    return Density(
        quadratures=quadratures,
        band=band,
        unresolved=unresolved(band, smear=smear),
        trace=_trace(exact_trace, forms, squares, dimension=n - k if n - k >= UNIFORM else n),
        squared_frobenius=_squares(exact_squares, squares, fourths, dimension=n - k),
        negative_mass=mean_estimate(np.array([q.weights[q.values < 0].sum() for q in quadratures])),
        negative_mass_bounds=(float(zero.low[0]), float(zero.high[0])),
        reach=_reach(states, outliers),
        smear=smear,
        precision=precision,
        effective_dimension=_effective_dimension(states, outliers, n - k, smear, largest) if semi_definite else None,
        tail_exponent=tail_exponent(_largest_beyond(outliers, rests)),
        nearest_to_zero=min(float((np.abs(q.values) + q.residual_norms).min()) for q in quadratures),
        dimension=n,
        num_deflated=k,
        num_steps=max((s.num_matvecs for s in states), default=0),
        end_forms=end_forms,
    )


def _drift(state: LanczosState[V], noise: float) -> float:
    """The length of the errors of all products of a run without a basis: T of the identity has it for its last beta.

    A product has the length ||H v_j||^2 = alpha_j^2 + beta_j^2 + beta_{j-1}^2.
    """
    if not state.alphas:
        return 0.0
    alphas, betas = np.array(state.alphas), np.array(state.betas)
    return noise * float(np.sqrt((alphas**2 + betas**2).sum() + (betas[:-1] ** 2).sum()))


def _reach(states: list[LanczosState[V]], outliers: Outliers[V]) -> float | None:
    """From the run over the whole space, else from the probe that says most: they are of one length."""
    known = [outliers.reach] if outliers.reach is not None or len(outliers.basis) else [s.reach() for s in states]
    return min((r for r in known if r is not None), default=None)


def _trace(known: float, forms: np.ndarray, squares: np.ndarray, *, dimension: int) -> Estimate:
    """What is known exactly plus the mean of draws; without draws it is all known."""
    if not forms.size:
        return Estimate(known, 0.0, (known, known), 0)
    return trace_estimate(known, forms, squares, dimension=dimension, share=1.0, inflation=1.0)


def _squares(known: float, squares: np.ndarray, fourths: np.ndarray, *, dimension: int) -> Estimate:
    """Likewise; `fourths` are draws of tr B^4, and the variance of ||Bg||^2 is at most 2 (tr B^4 - (tr B^2)^2 / n)."""
    if not squares.size:
        return Estimate(known, 0.0, (known, known), 0)
    mean = float(squares.mean())
    bound = 2 * max(0.0, float(fourths.mean()) / mean**2 - 1 / dimension) if mean > 0 else 0.0
    few = dimension < UNIFORM
    return positive_estimate(known, squares, inflation=1.0, relative_variance=bound, two_sided=few)


def _effective_dimension(
    states: list[LanczosState[V]], outliers: Outliers[V], dimension: int, smear: float, largest: float
) -> EffectiveDimension | None:
    damping = _DAMPING * largest
    if damping <= 4 * smear:  # what noise makes of a zero would count as a dimension
        return None
    matrices = [(np.array(s.alphas), np.array(s.betas)) for s in states]
    return effective_dimension(matrices, outliers.values, damping=damping, below=smear, dimension=dimension)


def _outermost(values: np.ndarray, rests: list[Ritz]) -> bool:
    """Whether these eigenvalues have all Ritz values of the rest between them."""
    if not values.size:
        return False
    return all(values[0] <= q.values[0] and q.values[-1] <= values[-1] for q in rests)


def _largest_beyond(outliers: Outliers[V], rests: list[Ritz]) -> np.ndarray:
    """Deflated eigenvalues above whatever the probes see on the rest: where one was missed, they would see it."""
    edge = max((float((q.values + q.residual_norms).max()) for q in rests), default=0.0)
    return outliers.values[outliers.values > max(edge, 0.0)]


def _bars(states: list[LanczosState[V]], outliers: Outliers[V], dimension: int) -> np.ndarray:
    """Half-widths (k,) of intervals that hold an eigenvalue each; the probes bound what else there is."""
    if not len(outliers.values):
        return outliers.residual_norms
    certified = Certified(outliers.values, outliers.residual_norms, outliers.asymmetry)
    if not states:
        return eigenvalue_bars(certified, rest=(np.inf, -np.inf))
    runs = [s.polynomial() for s in states]
    low, high = (spectrum_edge(runs, dimension=dimension, sign=sign) for sign in (-1, 1))
    return eigenvalue_bars(certified, rest=(low, high))


def _with_outliers(rest: Ritz, outliers: Outliers[V], bars: np.ndarray, dimension: int) -> Ritz:
    """The quadrature of the whole spectrum: the outliers with weight 1/n each, the rest with what remains."""
    k = len(outliers.values)
    values = np.concatenate([rest.values, outliers.values])
    weights = np.concatenate([rest.weights * (1 - k / dimension), np.full(k, 1 / dimension)])
    residuals = np.concatenate([rest.residual_norms, bars])
    order = np.argsort(values, kind="stable")
    return Ritz(values[order], residuals[order], weights[order], rest.vectors)
