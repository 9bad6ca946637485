"""MINRES (Paige and Saunders 1975) for (H + damping I) x = b, several dampings at once.

The residual is the shortest that the Krylov space has, whether or not the matrix is definite. All dampings have the
same Krylov space: several cost no more products than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Generic, TypeVar

from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space

V = TypeVar("V")
_SINGULAR = 100.0  # rounding errors of the matrix: what is shorter is nothing


@dataclass(slots=True)
class _Recurrence(Generic[V]):
    """One damping: the QR factors of T + damping I one column a step."""

    damping: float
    solution: V
    directions: tuple[V, V]  # the last two columns of V R^-1, the older one first
    residual_norm: float
    least_squares: bool = False
    rotation: tuple[float, float] = (-1.0, 0.0)  # cosine and sine of the last one
    above: float = 0.0  # what the rotations so far left over the diagonal of the next column
    far: float = 0.0  # and two places over it

    def advance(self, space: Space[V], v: V, *, alpha: float, beta: float, null: float) -> None:
        (cosine, sine), diagonal = self.rotation, alpha + self.damping
        over = cosine * self.above + sine * diagonal
        pivot = sine * self.above - cosine * diagonal
        far, self.far, self.above = self.far, sine * beta, -cosine * beta
        # This is ||(H + damping I) r|| / ||r||. A step would make x long and the residual no shorter.
        self.least_squares = self.least_squares or hypot(pivot, self.above) <= null
        if self.least_squares:
            return
        length = hypot(pivot, beta)
        self.rotation = pivot / length, beta / length
        oldest, last = self.directions
        space.scale(-far / length, oldest)
        space.axpy(-over / length, last, oldest)
        space.axpy(1.0 / length, v, oldest)
        self.directions = last, oldest
        space.axpy(self.rotation[0] * self.residual_norm, oldest, self.solution)
        self.residual_norm *= self.rotation[1]


@dataclass
class Minres(Generic[V]):
    """The iteration between two steps. Vectors held: two of the Lanczos run, and three for each damping."""

    lanczos: LanczosState[V]
    systems: dict[float, _Recurrence[V]]
    null_tolerance: float
    """Without damping, eigenvalues that are smaller in relation to the largest count as zero."""
    indefinite: bool = False
    """Never an end: MINRES does not need a definite matrix."""

    @classmethod
    def start(cls, space: Space[V], rhs: V, *, dampings: Sequence[float], null_tolerance: float) -> "Minres[V]":
        """The iteration at x = 0."""
        lanczos = LanczosState.start(space, rhs, reorthogonalise=False)
        norm = lanczos.start_norm
        systems = {d: _Recurrence(d, space.zeros(), (space.zeros(), space.zeros()), norm) for d in dampings}
        return cls(lanczos, systems, null_tolerance)

    @property
    def num_matvecs(self) -> int:
        """Products taken in so far."""
        return self.lanczos.num_matvecs

    @property
    def exhausted(self) -> bool:
        """The Krylov space is invariant: no step can follow."""
        return self.lanczos.exhausted

    def expand(self, operator: LinearOperator[V]) -> None:
        """One more step: one product. Raises FloatingPointError where it is not finite."""
        state = self.lanczos
        v = state.current
        state.expand(operator)
        rounding = _SINGULAR * state.space.epsilon
        for damping, system in self.systems.items():
            # With damping, whatever is not rounding is solved for.
            null = (rounding if damping else max(self.null_tolerance, rounding)) * self.size(damping)
            system.advance(state.space, v, alpha=state.alphas[-1], beta=state.betas[-1], null=null)

    def residual_norm(self, damping: float) -> float:
        """||b - (H + damping I) x|| as the recurrence has it: blind to noise of the product."""
        return self.systems[damping].residual_norm

    def least_squares(self, damping: float) -> bool:
        """Whether nothing of the residual is left in the matrix's range: no step follows for this damping."""
        return self.systems[damping].least_squares

    def size(self, damping: float) -> float:
        """A lower estimate of ||H + damping I||."""
        return self.lanczos.scale + damping

    def solution(self, damping: float) -> V:
        """The solution so far, not to be changed."""
        return self.systems[damping].solution

    def drop(self, damping: float) -> None:
        """Leave a damping's solution as it is and let go of what it needed."""
        del self.systems[damping]

    def tridiagonal(self) -> tuple[list[float], list[float]]:
        """The Lanczos matrix of H: its diagonal and what is beside it, (m,) each."""
        return self.lanczos.alphas, self.lanczos.betas
