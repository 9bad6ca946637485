"""Deflation: take a few vectors out of an operator exactly, so that sampling has less to do.

Everything stochastic here has a variance that its largest eigenvalues dominate; what a short Krylov run finds
of them is then counted, not sampled (Lin 2017; Chen and Hallman 2022, arXiv 2205.01736).
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.basis import Basis
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.rayleigh_ritz import certify
from hesscli.linalg.krylov.refinement import SMALLEST
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")

# The sample index of the vector that a deflating run starts from: no probe draws it, and it must not depend on them.
START_INDEX = 1 << 41


def goes_on(state: LanczosState[V], *, steps: int, seed: int) -> bool:
    """Whether a deflating run of `steps` products has another one to take.

    Where a Krylov space ends before the budget, and the budget is the whole space, a new direction follows: then
    nothing is left to sample, and a space of a few entries needs no statistics.
    """
    space = state.space
    if not state.exhausted or steps < space.dimension:
        return not state.exhausted and state.num_matvecs < steps
    return state.restart_with(space.random("gaussian", seed=seed, index=START_INDEX + state.num_matvecs))


@dataclass(frozen=True, slots=True)
class Outliers(Generic[V]):
    """Converged eigenpairs: values rising, (k,), residuals of each, and orthonormal vectors."""

    values: np.ndarray
    residual_norms: np.ndarray
    basis: Basis[V]
    reach: float | None
    """How far beyond the run's outermost Ritz values the spectrum may go; None where that is not known."""
    noise: float
    """The product's error on a unit vector, as the run shows it."""
    shift: float
    """How far the deflation may move an eigenvalue of what is left, where that is not next to nothing."""
    asymmetry: float
    """Of the certified pairs: see `Certified`; 0 where the run's own residuals stand."""


# Residual over value of a pair from a rounded basis that is deflated, when rounding has been taken out of it.
_CERTIFIED_TOLERANCE = 1e-3


def converged_outliers(operator: LinearOperator[V], state: LanczosState[V], *, tolerance: float) -> Outliers[V]:
    """The pairs of a reorthogonalised run whose residual is below `tolerance` times their value. Holds k vectors.

    To deflate a pair with residual r shifts the rest of the spectrum by r^2 / gap at the most, tolerance squared
    times the value. A run with a rounded basis leaves rounding in its vectors: one product for each takes it out, as
    in `refined`, and one certifies what is left, to a residual of 1e-3 of the value. The k vectors are held at full
    width.

    Raises FloatingPointError where a product is not finite.
    """
    assert state.basis is not None
    ritz, rounded = state.ritz(), state.basis.rounding > 0
    good = ritz.residual_norms <= tolerance * np.abs(ritz.values)
    if rounded:  # what is small beside the largest cannot be refined: see `refined`
        good &= np.abs(ritz.values) >= SMALLEST * np.abs(ritz.values).max()
    basis = state.space.basis(exact=True)
    for place in np.flatnonzero(good):
        y = state.basis.combine(ritz.vectors[:, [place]])[0]
        if rounded:
            y = operator.matvec(y)
            state.space.scale(1.0 / state.space.norm(y), y)
        basis.append(y)
    if not (rounded and len(basis)):
        values, residual_norms = ritz.values[good], ritz.residual_norms[good]
        return Outliers(values, residual_norms, basis, state.reach(), state.noise(), 0.0, 0.0)
    certified = certify(operator, basis)
    kept = certified.residual_norms <= _CERTIFIED_TOLERANCE * np.abs(certified.values)
    basis.recombine(np.eye(len(basis))[:, kept])
    values, residual_norms = certified.values[kept], certified.residual_norms[kept]
    others = np.concatenate([ritz.values[~good], certified.values[~kept]])
    shift = _shift(values, residual_norms, others)
    return Outliers(values, residual_norms, basis, state.reach(), state.noise(), shift, certified.asymmetry)


def _shift(values: np.ndarray, residual_norms: np.ndarray, others: np.ndarray) -> float:
    """What leaving out the coupling R of these pairs to the rest does to the rest: ||R||^2 / gap, else ||R||.

    Mathias 1998, "Quadratic residual bounds for the Hermitian eigenvalue problem"; the rest is where the other Ritz
    values are.
    """
    coupling = float(np.linalg.norm(residual_norms))
    if not len(values) or not len(others):
        return coupling
    gap = float(np.abs(values[:, None] - others[None, :]).min())
    return min(coupling, coupling**2 / gap) if gap > 0 else coupling
