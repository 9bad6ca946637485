"""Positive definite matrices M near H + damping I whose inverse is at hand, for conjugate gradients."""

from typing import Generic, Protocol, TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.basis import Basis
from hesscli.linalg.krylov.deflation import START_INDEX, converged_outliers
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space

V = TypeVar("V")

# A pair is worth taking long before its value is known well: at this residual its eigenvalue is right to 1 %.
_PAIR_TOLERANCE = 0.1


class Preconditioner(Protocol[V]):
    """M^-1 for every damping."""

    rank: int | None
    """Eigenpairs in it, where it is made of such."""

    def inverse(self, v: V, *, damping: float) -> V:
        """M^-1 v, in storage of its own."""


class LowRank(Generic[V]):
    """M = damping I + U Theta U^T from eigenpairs (Theta, U) of H; one that is not positive is left out."""

    def __init__(self, space: Space[V], values: np.ndarray, basis: Basis[V]) -> None:
        self._space, self._values, self._basis = space, np.maximum(values, 0.0), basis
        self.rank: int | None = int((values > 0).sum())

    def inverse(self, v: V, *, damping: float) -> V:
        """M^-1 v = v / damping + U (1 / (Theta + damping) - 1 / damping) U^T v: two passes over the pairs."""
        out = self._space.copy(v)
        self._space.scale(1.0 / damping, out)
        if self.rank:
            within = 1.0 / (self._values + damping) - 1.0 / damping
            self._basis.subtract(-within * self._basis.inner(v), out)
        return out


class MeanDiagonal(Generic[V]):
    """M = damping I + the mean of H's diagonal over each part of the space, none below zero."""

    def __init__(self, space: Space[V], means: np.ndarray) -> None:
        self._space, self._means = space, np.maximum(means, 0.0)
        self.rank: int | None = None

    def inverse(self, v: V, *, damping: float) -> V:
        """Each part over its own mean + damping."""
        out = self._space.copy(v)
        self._space.scale_parts(1.0 / (self._means + damping), out)
        return out


def low_rank(operator: LinearOperator[V], *, steps: int, seed: int, on_event: OnEvent) -> LowRank[V]:
    """The positive outliers that `steps` Lanczos products find. Holds `steps` vectors, then one a pair."""
    space = operator.space
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=START_INDEX), reorthogonalise=True)
    on_event(Started("precondition", steps))
    while state.num_matvecs < steps and not state.exhausted:
        state.expand(operator)
        on_event(Advanced("precondition", state.num_matvecs, values=state.last_step(state.ritz())))
    on_event(Finished("precondition"))
    outliers = converged_outliers(operator, state, tolerance=_PAIR_TOLERANCE)
    return LowRank(space, outliers.values, outliers.basis)


def mean_diagonal(operator: LinearOperator[V], *, probes: int, seed: int, on_event: OnEvent) -> MeanDiagonal[V]:
    """Hutchinson's means tr(H_bb) / n_b over the parts, one product a probe (Bekas, Kokiopoulou and Saad 2007).

    Single entries would need a hundred times the probes; a mean over a tensor needs few. Holds two vectors. Raises
    FloatingPointError where a product is not finite.
    """
    space = operator.space
    sums: np.ndarray | float = 0.0
    on_event(Started("precondition", probes))
    for i in range(probes):
        z = space.random("rademacher", seed=seed, index=START_INDEX + i)
        found = space.inners(z, operator.matvec(z))
        if not np.isfinite(found).all():
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        sums = sums + found / np.maximum(space.inners(z, z), 1.0)
        on_event(Advanced("precondition", i + 1))
    on_event(Finished("precondition"))
    return MeanDiagonal(space, np.asarray(sums) / probes)
