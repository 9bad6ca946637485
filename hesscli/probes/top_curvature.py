"""How much of the top curvature lives inside blocks: K_ab = u_a.(H u_b)_a for an eigenvector u and its parts u_b.

No sampling: the entries of K sum to the eigenvalue, and the trace of K is what the diagonal blocks alone give along u.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.krylov.deflation import START_INDEX
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")

MOST_STEPS = 40
_TOLERANCE = 1e-3  # residual over value


@dataclass(frozen=True, slots=True)
class TopCurvature:
    """One eigenvector's curvature by block."""

    value: float
    """u.Hu from the products themselves, the sum of K."""
    residual_norm: float
    gap: float
    """Distance to the nearest other Ritz value."""
    radius: float
    """The largest Ritz value in size."""
    matrix: np.ndarray
    """(B, B): K, symmetric but for the product's own error."""

    @property
    def inside(self) -> float:
        """The share of the eigenvalue that the diagonal blocks give; nan of an eigenvalue 0."""
        return float(np.trace(self.matrix) / self.value) if self.value else float("nan")

    @property
    def inside_error(self) -> float:
        """What u's own error does to the share; infinite where no gap shows.

        u turns by at most t = residual / gap, and u.Du by 2 t ||D||, where the diagonal blocks D are no longer than H.
        """
        room = self.gap - self.residual_norm
        if room <= 0 or not self.value:
            return float("inf")
        return 2.0 * self.residual_norm / room * max(1.0, self.radius / abs(self.value))


def top_curvature(
    operator: LinearOperator[V], *, blocks: list[frozenset[int]], count: int, seed: int, on_event: OnEvent
) -> list[TopCurvature]:
    """K for the eigenvectors of the `count` largest eigenvalues, from high to low.

    At most 40 products for them, held as a basis, then one for each block and vector. Raises FloatingPointError
    where a product is not finite.
    """
    space = operator.space
    count = min(count, space.dimension)
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=START_INDEX), reorthogonalise=True)
    on_event(Started("eigenvectors", None))
    while state.num_matvecs < MOST_STEPS and not state.exhausted:
        state.expand(operator)
        ritz = state.ritz()
        on_event(Advanced("eigenvectors", state.num_matvecs, values=state.last_step(ritz)))
        top = slice(-count, None)
        enough = state.num_matvecs > count and state.num_matvecs >= 2 * count
        if enough and (ritz.residual_norms[top] <= _TOLERANCE * np.abs(ritz.values[top])).all():
            break
    assert state.basis is not None
    ritz, members, found = state.ritz(), [sorted(b) for b in blocks], []
    for place in range(len(ritz.values) - 1, max(-1, len(ritz.values) - 1 - count), -1):
        u = state.basis.combine(ritz.vectors[:, [place]])[0]
        matrix = np.empty((len(blocks), len(blocks)))
        for b, block in enumerate(blocks):
            by_part = space.inners(u, operator.matvec(space.restrict(u, block)))
            matrix[:, b] = [by_part[m].sum() for m in members]
        others = np.delete(ritz.values, place)
        gap = float(np.abs(others - ritz.values[place]).min()) if others.size else float("inf")
        radius = float(np.abs(ritz.values).max())
        found.append(TopCurvature(float(matrix.sum()), float(ritz.residual_norms[place]), gap, radius, matrix))
    on_event(Finished("eigenvectors"))
    return found
