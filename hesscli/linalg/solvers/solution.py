"""What a linear solve gives back: the solution, what became of its residual, and how it ended."""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

V = TypeVar("V")


class Ending(Enum):
    """The end of a solve: what happened, and why that can be and what to change."""

    CONVERGED = "the true residual is below the tolerance", ""
    ZERO = "the right-hand side is zero, and so is the solution", ""
    STEPS_SPENT = (
        "the budget of products was spent before the true residual was below the tolerance",
        "the damping is small beside the largest eigenvalue, or the matrix is indefinite: raise --steps or --damping, "
        "or use --operator ggn with --preconditioner low-rank",
    )
    STAGNATED = (
        "the true residual stopped decreasing: what is left is the product's own error, or out of a singular matrix's "
        "reach",
        "raise --damping or --tolerance, use --dtype float64, or look at the preflight",
    )
    NEGATIVE_CURVATURE = (
        "conjugate gradients met a direction of negative curvature and stopped",
        "raise --damping above the most negative eigenvalue, or use --solver minres or --operator ggn",
    )
    SINGULAR = (
        "conjugate gradients met a direction without curvature and stopped: the matrix is singular along it",
        "raise --damping, or use --solver minres",
    )
    LEAST_SQUARES = (
        "the matrix is singular to the tolerance: the solution is one of least squares, not the shortest",
        "give a --damping above 0 for a solution of the equation",
    )

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy


@dataclass(frozen=True, slots=True)
class NegativeCurvature(Generic[V]):
    """A direction in which p.(H + damping I)p is below zero."""

    rayleigh_quotient: float
    """p.Hp / p.p, from a product of its own: an eigenvalue of H is no higher."""
    direction: V
    """p, of unit length."""
    product_norm: float
    """||H p||, which the error of a product is relative to."""


@dataclass(frozen=True, slots=True)
class Solution(Generic[V]):
    """x near (H + damping I)^-1 b, with residuals relative to ||b||."""

    damping: float
    vector: V
    ending: Ending
    residuals: tuple[float, ...]
    """As the recurrence has them, one for each iteration and the first for x = 0: blind to noise of the product."""
    true_residuals: tuple[tuple[int, float], ...]
    """(iteration, ||b - (H + damping I) x|| / ||b||) from products of their own; the last is the solution's."""
    norm: float
    """||x||."""
    product_norm: float
    """||H x||, which the error of a product is relative to."""
    form: float
    """b.x + x.r with the true residual r: misses b.(H + damping I)^-1 b by r.(H + damping I)^-1 r alone."""
    form_bounds: tuple[float, float] | None
    """Bounds on b.(H + damping I)^-1 b; None where no lower bound on the eigenvalues is known."""
    ritz_ends: tuple[float, float] | None
    """The outermost Ritz values of the matrix that was solved with: H + damping I, preconditioned if that was asked."""
    negative_curvature: NegativeCurvature[V] | None

    @property
    def converged(self) -> bool:
        """Whether the true residual is below the tolerance."""
        return self.ending in (Ending.CONVERGED, Ending.ZERO)

    @property
    def num_iterations(self) -> int:
        """Each one product."""
        return len(self.residuals) - 1

    @property
    def relative_residual(self) -> float:
        """The true residual over the right-hand side; 0 where both are zero."""
        return self.true_residuals[-1][1]
