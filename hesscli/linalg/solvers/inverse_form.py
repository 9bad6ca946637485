"""b.(H + damping I)^-1 b between two bounds (Golub and Meurant 2010, chapters 6 and 7)."""

from collections.abc import Sequence


def form_bounds(
    alphas: Sequence[float], betas: Sequence[float], *, rhs_norm: float, damping: float, floor: float
) -> tuple[float, float] | None:
    """The Gauss rule of T, which is never above, and the Gauss-Radau rule with a node at `floor`, never below.

    T is that of a Lanczos run of m steps from b, betas (m,) with the one that links to the next step. `floor` is
    a number that no eigenvalue of H is below, and floor + damping > 0. None where rounding has put an eigenvalue of
    T below the floor: the rules then say nothing.
    """
    # T - floor I and T + damping I, each factored as L D L^T row by row; `entry` is that of L^-1 e1.
    at_floor, at_damping, entry, total, beta = float("inf"), float("inf"), 1.0, 0.0, 0.0
    for alpha, beta_after in zip(alphas, betas, strict=True):
        at_floor = alpha - floor - beta**2 / at_floor
        at_damping = alpha + damping - beta**2 / at_damping
        if at_floor <= 0 or at_damping <= 0:
            return None
        total += entry**2 / at_damping
        entry *= -beta_after / at_damping
        beta = beta_after
    # The last row of the extended matrix puts an eigenvalue at the floor; where beta is 0 the Gauss rule is exact.
    last = floor + damping + beta**2 * (1 / at_floor - 1 / at_damping)
    return rhs_norm**2 * total, rhs_norm**2 * (total + entry**2 / last)
