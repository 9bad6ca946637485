"""The equation (H + damping I) x = b, and what one product tells of a candidate for x."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.solvers.inverse_form import form_bounds

V = TypeVar("V")

_FAITHFUL = 0.1  # relative difference of true and recursive residual up to which T is that of the matrix


@dataclass(frozen=True, slots=True)
class Checked:
    """A candidate's figures from a product of its own; the residual is relative to ||b||."""

    residual: float
    norm: float
    product_norm: float
    """||H x||."""
    form: float
    """b.x + x.r."""
    least_squares: bool
    """Nothing of the residual is left in the matrix's range, to the tolerance that was asked with."""


@dataclass(frozen=True, slots=True)
class LinearSystem(Generic[V]):
    """The matrix H, the right-hand side b with its norm, and a number that no eigenvalue of H is below."""

    operator: LinearOperator[V]
    rhs: V
    rhs_norm: float
    floor: float | None

    def check(self, x: V, damping: float, *, size: float | None, tolerance: float) -> Checked:
        """The true residual: one product, one vector; one of each more where the matrix's size is given.

        Least squares is ||(H + damping I) r|| below tolerance times size times ||r||. Raises FloatingPointError
        where the product is not finite.
        """
        space = self.operator.space
        r = self.operator.matvec(x)
        product_norm = space.norm(r)
        space.axpy(damping, x, r)
        space.scale(-1.0, r)
        space.axpy(1.0, self.rhs, r)
        residual = space.norm(r)
        if not np.isfinite(residual):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        form = space.inner(self.rhs, x) + space.inner(x, r)
        least_squares = False
        if size is not None:
            gradient = self.operator.matvec(r)
            space.axpy(damping, r, gradient)
            least_squares = space.norm(gradient) <= tolerance * size * residual
        return Checked(residual / self.rhs_norm, space.norm(x), product_norm, form, least_squares)

    def form_bounds(
        self, checked: Checked, *, damping: float, recursive: float, lanczos: tuple[list[float], list[float]] | None
    ) -> tuple[float, float] | None:
        """Bounds on b.A^-1 b with A = H + damping I; None where A is not known to be positive definite.

        b.A^-1 b = b.x + x.r + r.A^-1 r for any x with its true residual r, and 0 <= r.A^-1 r <= ||r||^2 / lambda_min.
        The quadrature of `lanczos`, T of H from b, is sharper far from convergence; it is used while the recursive
        residual is the true one.
        """
        if self.floor is None or self.floor + damping <= 0:
            return None
        low = checked.form
        high = low + (checked.residual * self.rhs_norm) ** 2 / (self.floor + damping)
        if lanczos is not None and abs(recursive - checked.residual) <= _FAITHFUL * checked.residual:
            rules = form_bounds(*lanczos, rhs_norm=self.rhs_norm, damping=damping, floor=self.floor)
            if rules is not None and rules[0] <= high and rules[1] >= low:
                low, high = max(low, rules[0]), min(high, rules[1])
        # The true residual is itself rounded: entries of b, H x and damping x were added.
        lengths = self.rhs_norm + checked.product_norm + damping * checked.norm
        rounding = self.operator.space.epsilon * checked.norm * lengths
        return low - rounding, high + rounding
