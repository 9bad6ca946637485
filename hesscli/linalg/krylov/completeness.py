"""Was an eigenvalue missed? Runs from new random starts on what is left when the pairs found are taken out.

One Krylov run misses an eigenvector that its start hardly has, and every further copy of a multiple eigenvalue; no
residual shows either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.linalg.basis import Basis
from hesscli.linalg.krylov.extremes import Target
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.reach import ResidualPolynomial, spectrum_edge
from hesscli.linalg.krylov.restart import expand_within
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")

STEPS = 8  # an eigenvalue that was missed lies beyond all that is left, and shows in six to eight steps
PROBES = 4  # two starts have next to no chance to miss the same; more lower the bound on what is left
# The sample index of the first start: no other vector of a run is drawn there.
_FIRST_INDEX = 1 << 42


@dataclass(frozen=True, slots=True)
class Completeness:
    """What the probes found."""

    num_probes: int
    num_matvecs: int
    num_found: int
    """Pairs that the first run had missed, or further copies of a multiple eigenvalue; they are in the basis now."""
    rest: tuple[float | None, float | None]
    """With 95 % chance the whole spectrum that is not in the basis lies between; None where that is not known."""
    complete: bool
    """With 95 % chance no eigenvalue is missing among the wanted ones."""


def find_missed(
    operator: LinearOperator[V],
    basis: Basis[V],
    values: np.ndarray,
    residual_norms: np.ndarray,
    target: Target,
    *,
    noise: float,
    max_steps: int,
    capacity: int,
    seed: int,
    on_step: Callable[[int, str, Mapping[str, float]], None],
) -> Completeness:
    """Look for eigenvalues beyond the k-th found at each wanted end, and append what is found to `basis`.

    `values` and `residual_norms` (k',) are those of the basis's vectors, `noise` the product's error on a unit
    vector. Costs 8 products a probe: one, or up to four where fewer do not settle it. Where something is found the
    probe goes on until it has converged, and new probes follow: together at most max(32, `max_steps`) products. Holds
    max(10, `capacity` - k') vectors beside the basis.

    An eigenvalue that lies beyond the k-th by less than the k-th's own residual counts as the k-th.
    """
    space = operator.space
    budget = max(PROBES * STEPS, max_steps)
    spent = probes = found = 0
    clean: list[ResidualPolynomial] = []
    rest: tuple[float | None, float | None] = (None, None)
    while len(basis) < space.dimension:
        limits = _limits(values, residual_norms, target, noise)
        complete = bool(clean) and _counted(values, residual_norms, rest, limits, target)
        if len(clean) == PROBES or spent + STEPS > budget or complete:
            return Completeness(probes, spent, found, rest, complete)
        start = space.random("gaussian", seed=seed, index=_FIRST_INDEX + probes)
        state, probes = LanczosState.start(space, start, reorthogonalise=True, outside=basis), probes + 1
        while state.num_matvecs < STEPS and not state.exhausted:
            state.expand(operator)
            on_step(spent + state.num_matvecs, f"probe {probes}", state.last_step(state.ritz()))
        room = max(STEPS + 2, capacity - len(basis))
        beyond = _converge(state, operator, limits, target, budget - spent, room)
        spent += state.num_matvecs
        if not len(beyond):
            clean.append(state.polynomial())
            rest = _edges(clean, space.dimension - len(basis), target)
            continue
        ritz, clean, rest = state.ritz(), [], (None, None)
        assert state.basis is not None
        for place in beyond:
            basis.append(state.basis.combine(ritz.vectors[:, [place]])[0])
        values = np.append(values, ritz.values[beyond])
        residual_norms = np.append(residual_norms, ritz.residual_norms[beyond])
        found += len(beyond)
    return Completeness(probes, spent, found, (np.inf, -np.inf), True)


def _limits(values: np.ndarray, residual_norms: np.ndarray, target: Target, noise: float) -> tuple[float, float]:
    """Beyond which an eigenvalue is one of the wanted ones: the k-th from each wanted end, and what blurs it."""
    order = np.argsort(values)
    low, high = target.ends(len(values))
    floor = 2 * noise + 10 * target.epsilon * float(np.abs(values).max())
    below, above = -np.inf, np.inf
    if low:
        below = float(values[order[low - 1]] - residual_norms[order[low - 1]]) - floor
    if high:
        above = float(values[order[-high]] + residual_norms[order[-high]]) + floor
    return below, above


def _counted(
    values: np.ndarray,
    residual_norms: np.ndarray,
    rest: tuple[float | None, float | None],
    limits: tuple[float, float],
    target: Target,
) -> bool:
    """Whether beyond each limit there are no more eigenvalues than wanted values that lie farther out than the k-th.

    H has A = diag(values) and B in its diagonal blocks, B being what is not in the basis, and residuals R between them.
    Where B stays below t, H has as many eigenvalues above t as A - t + R^T (t - B)^-1 R has above zero (Haynsworth
    1968). A guard that has not converged may hide one: then it is not enough that B ends below the limit.
    """
    low, high = target.ends(len(values))
    for sign, count in ((-1, low), (1, high)):
        if not count:
            continue
        edge, t = rest[max(sign, 0)], sign * limits[max(sign, 0)]
        if edge is None or sign * edge > t:
            return False
        others = np.argsort(-sign * values)[count - 1 :]
        others = others[residual_norms[others] > 0]
        below = t - sign * values[others]
        if (below <= 0).any():
            return False
        if others.size and float((residual_norms[others] ** 2 / below).sum()) >= t - sign * edge:
            return False
    return True


def _edges(clean: list[ResidualPolynomial], dimension: int, target: Target) -> tuple[float | None, float | None]:
    low, high = (
        spectrum_edge(clean, dimension=dimension, sign=sign) if sign in target.signs else None for sign in (-1, 1)
    )
    return low, high


def _converge(
    state: LanczosState[V],
    operator: LinearOperator[V],
    limits: tuple[float, float],
    target: Target,
    budget: int,
    capacity: int,
) -> np.ndarray:
    """The places of the Ritz values beyond the limits, after expanding until they have converged."""
    while True:
        ritz = state.ritz()
        beyond = np.flatnonzero((ritz.values < limits[0]) | (ritz.values > limits[1]))
        radius = max(state.scale, float(np.abs(ritz.values).max()))
        good = target.converged(ritz.values[beyond], ritz.residual_norms[beyond], radius=radius)
        if good.all() or state.exhausted or state.num_matvecs >= budget:
            return beyond
        low, high = int((ritz.values < limits[0]).sum()), int((ritz.values > limits[1]).sum())
        most = (capacity - 2) // 2
        expand_within(state, operator, capacity=capacity, low=min(low + 2, most), high=min(high + 2, most))
