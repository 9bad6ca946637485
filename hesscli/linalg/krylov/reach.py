"""How far the spectrum may go beyond what Krylov runs from random starts have seen of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hesscli.linalg.statistics import LEVEL

# The chance that an eigenvalue lies beyond an edge: both edges of a spectrum together keep the level.
_CHANCE = (1.0 - LEVEL) / 2


@dataclass(frozen=True, slots=True)
class ResidualPolynomial:
    """p with v_{m+1} = p(H) v_1: the product of (x - root) over the product of the betas."""

    roots: np.ndarray
    """(m,) Ritz values, those that restarts have dropped among them."""
    log_betas: float
    """The sum of the logarithms of all m betas; minus infinity where the Krylov space is invariant."""


def spectrum_edge(runs: Sequence[ResidualPolynomial], *, dimension: int, sign: int) -> float | None:
    """A number that no eigenvalue exceeds (sign 1) or falls below (sign -1), with a chance of 97.5 %.

    The runs start from independent vectors, uniform on the sphere of `dimension` entries. An eigenvector u to x
    has u.v_{m+1} = p(x) u.v_1, which is at most 1: so x beyond every root means a start with |u.v_1| below
    1 / p(x), and the chance of that is at most sqrt(2n / pi) / p(x) (van Dorsselaer, Hochstenbach and van der
    Vorst 2000, "Computing probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos
    method"). Chances of several runs multiply. It holds through restarts, and p is what the run itself knows: a
    gap makes it sharp. None where the edge lies farther out than all the roots are wide.
    """
    roots = [sign * run.roots for run in runs]
    top = max(float(r.max()) for r in roots)
    span = top - min(float(r.min()) for r in roots)
    if any(np.isneginf(run.log_betas) for run in runs):
        return sign * top
    if span == 0.0:
        return None
    needed, one = -np.log(_CHANCE), 0.5 * np.log(2 * dimension / np.pi)

    def excluded(distance: float) -> bool:
        grown = [float(np.log(distance + (top - r)).sum()) - run.log_betas for r, run in zip(roots, runs, strict=True)]
        return sum(max(0.0, g - one) for g in grown) >= needed

    if not excluded(span):
        return None
    low, high = np.log(1e-16 * span), np.log(span)
    while high - low > 1e-3:  # of the distance: the edge rounds outward
        middle = (low + high) / 2
        low, high = (low, middle) if excluded(float(np.exp(middle))) else (middle, high)
    return sign * (top + float(np.exp(high)))
