"""Lanczos as resumable data: H V = V T + beta v e^T, grown one product at a time.

With full reorthogonalisation the new vector is made orthogonal to the whole basis by classical Gram-Schmidt,
twice (Giraud, Langou, Rozloznik and van den Eshof 2005): two reductions a step whatever the basis's length.
Without, three vectors are held; the quadrature stays right (Greenbaum 1989), single Ritz values may repeat.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.basis import Basis, project_out
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.reach import hidden_reach
from hesscli.linalg.space import Space
from hesscli.linalg.tridiagonal import ritz_decomposition

V = TypeVar("V")

# A residual this many rounding errors of ||H|| long is nothing but rounding: the Krylov space is invariant.
# sqrt(eps) would lie inside genuine float32 betas.
_BREAKDOWN = 10.0
_METER_FLOOR = 10.0  # times sqrt(eps): below it the noise meter reads rounding


@dataclass(frozen=True, slots=True)
class Ritz:
    """Ritz values in rising order with what the small problem knows of them, each (m,)."""

    values: np.ndarray
    residual_norms: np.ndarray
    """||H y - value y|| as beta_m |s_mi|: right for an exact product, blind to noise in it."""
    weights: np.ndarray
    """Squared first components: the quadrature's weights; they sum to 1."""
    vectors: np.ndarray
    """(m, m): columns are coordinates in the basis."""


@dataclass
class LanczosState(Generic[V]):
    """A Krylov run between two products.

    `current` is the next vector to be multiplied, of unit length. Vectors held: two, and the basis if there
    is one; the product makes a third.
    """

    space: Space[V]
    current: V
    basis: Basis[V] | None
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    previous: V | None = None
    start_norm: float = 1.0
    exhausted: bool = False
    """The Krylov space is invariant, to rounding: T is complete and no step can follow."""
    coefficients: list[np.ndarray] = field(default_factory=list)
    """Column j of the whole Gram-Schmidt matrix V^T H v_j, (j + 1,), where there is a basis."""

    @classmethod
    def start(cls, space: Space[V], v: V, *, reorthogonalise: bool) -> "LanczosState[V]":
        """A run from v, which is copied and normalised."""
        current = space.copy(v)
        norm = space.norm(current)
        space.scale(1.0 / norm, current)
        return cls(space, current, space.basis() if reorthogonalise else None, start_norm=norm)

    @property
    def num_matvecs(self) -> int:
        """Products taken in so far."""
        return len(self.alphas)

    @property
    def scale(self) -> float:
        """A lower estimate of ||H|| from the entries of T."""
        return max((abs(a) + b for a, b in zip(self.alphas, self.betas, strict=True)), default=0.0)

    def expand(self, operator: LinearOperator[V]) -> None:
        """One more step: one product."""
        self.absorb(operator.matvec(self.current))

    def absorb(self, w: V) -> None:
        """Take in `w = H current`, which is overwritten. Raises FloatingPointError if w is not finite."""
        space = self.space
        norm_in = space.norm(w)
        if not np.isfinite(norm_in):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        alpha = self._three_term(w) if self.basis is None else self._orthogonalise(w, self.basis)
        beta = space.norm(w)
        self.alphas.append(alpha)
        self.betas.append(beta)
        if beta <= _BREAKDOWN * space.epsilon * max(self.scale, norm_in) or (
            self.num_matvecs >= space.dimension and self.basis is not None
        ):
            self.betas[-1] = 0.0
            self.exhausted = True
            return
        space.scale(1.0 / beta, w)
        self.previous, self.current = (self.current if self.basis is None else None), w

    def _orthogonalise(self, w: V, basis: Basis[V]) -> float:
        basis.append(self.current)
        h = basis.inner(w)
        basis.subtract(h, w)
        again = basis.inner(w)
        basis.subtract(again, w)
        self.coefficients.append(h + again)
        return float(h[-1] + again[-1])

    def _three_term(self, w: V) -> float:
        if self.previous is not None:
            self.space.axpy(-self.betas[-1], self.previous, w)
        alpha = self.space.inner(self.current, w)
        self.space.axpy(-alpha, self.current, w)
        return alpha

    def restart_with(self, v: V) -> bool:
        """After exhaustion, go on from a new direction; T falls apart into blocks.

        Finds further copies of a multiple eigenvalue, of which one Krylov space shows one. False if v has
        nothing outside the basis.
        """
        if self.basis is None or self.num_matvecs >= self.space.dimension:
            return False
        current = self.space.copy(v)
        norm = self.space.norm(current)
        project_out(self.basis, current)
        left = self.space.norm(current)
        if left <= 1e3 * self.space.epsilon * norm:
            return False
        self.space.scale(1.0 / left, current)
        self.current, self.exhausted = current, False
        return True

    def ritz(self) -> Ritz:
        """Ritz values of the run so far."""
        values, vectors = ritz_decomposition(np.array(self.alphas), np.array(self.betas[:-1]))
        return Ritz(values, self.betas[-1] * np.abs(vectors[-1]), vectors[0] ** 2, vectors)

    def reach(self) -> float | None:
        """How far the spectrum may go beyond the outermost Ritz values; 0 once the Krylov space is invariant."""
        if 0.0 in self.betas:
            return 0.0
        values = self.ritz().values
        return hidden_reach(
            float(values[0]), float(values[-1]), dimension=self.space.dimension, num_steps=self.num_matvecs
        )

    def noise(self) -> float:
        """The length of the product's error on a unit vector, as the recurrence itself shows it; 0 without a basis.

        An exact symmetric product has v_{j-1}.H v_j = beta_{j-1}; an error e makes it fall short by |e|^2 / beta,
        since beta has the error's length in it. Rounding of an exact product alone reads as sqrt(eps): what is not
        well above that is given as 0.
        """
        squares = [
            beta * (beta - column[-2])
            for beta, column in zip(self.betas, self.coefficients[1:], strict=False)
            if beta > 0 and len(column) > 1
        ]
        # The first betas are as long as the outliers, and the error's component along v weighs with them.
        later = squares[len(squares) // 2 :]
        eta = float(np.sqrt(max(0.0, np.median(later)))) if later else 0.0
        return eta if eta > _METER_FLOOR * np.sqrt(self.space.epsilon) * self.scale else 0.0

    def orthogonality_loss(self) -> float:
        """The largest |v_i . v_m| for the last basis vector; 0 without a basis."""
        if self.basis is None or len(self.basis) < 2:
            return 0.0
        last = len(self.basis) - 1
        return float(np.abs(self.basis.inner(self.basis.vector(last))[:last]).max())
